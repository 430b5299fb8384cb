"""No secret is disclosed.

Canaries stand for every secret: the accounts' keys and secrets, the clients' secrets, the admin token, the cluster's
secret and the password of its Redis, and the credentials that unauthenticated clients try. Everything that the proxy
logs, serves, sends, prints or writes to Redis is searched for them.
"""

from __future__ import annotations

import base64
import gc
import http.client
import io
import json
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import msgpack
import pytest

from proxy.alpaca.market import AuthRequest
from proxy.alpaca.server_protocol import Authenticate
from proxy.cli import main
from proxy.cluster import dialect
from proxy.cluster.registry import ACL
from proxy.config.errors import ConfigError
from proxy.observe import logs
from proxy.simulator import Simulator
from tests.cluster.redis_server import RedisServer
from tests.harness import Harness, Process, Wire, dial, wait_for
from tests.ports import free_port

ACCOUNT_KEY = "PKCANARY0000WXYZ"  # its last four characters may be shown
SHOWN = "WXYZ"
CANARY = "canary"

CONFIG = """\
listen: {port: 0}
admin: {port: 0, token: canary-admin-token}
log: {level: debug}
accounts:
  literal: {key: ACCOUNT_KEY, secret: canary-account-literal, data_url: "URL", trading_url: "URL"}
  elsewhere:
    key: ${CANARY_KEY}
    secret: ${file:account.secret}
    data_url: URL
    trading_url: URL
clients:
  alpha: {key: alpha, secret: canary-client-literal, account: literal, allow: {iex: "*", trading: "*", crypto: "*"}}
  beta: {key: beta, secret: "${CANARY_CLIENT}", account: elsewhere, allow: {iex: "*"}}
"""
CLUSTER = """\
cluster:
  redis: redis://node:canary-redis-password@127.0.0.1:${REDIS:-1}/0
  listen: 127.0.0.1:${LINKS:-8767}
  url: ws://127.0.0.1:${LINKS:-8767}
  secret: canary-cluster-secret
"""
SECRETS = {"alpha": "canary-client-literal", "beta": "canary-client-environ"}
ENVIRON = {"CANARY_KEY": ACCOUNT_KEY + "2", "CANARY_CLIENT": "canary-client-environ"}
KEYS = {ACCOUNT_KEY: "canary-account-literal", ACCOUNT_KEY + "2": "canary-account-file"}
TOKEN = {"Authorization": "Bearer canary-admin-token"}


@pytest.fixture
def alpaca() -> Iterator[Simulator]:
    with Simulator(keys=KEYS) as simulator:
        yield simulator


@pytest.fixture
def file(tmp_path: Path, alpaca: Simulator) -> Path:
    (tmp_path / "account.secret").write_text("canary-account-file\n")
    path = tmp_path / "proxy.yaml"
    path.write_text(CONFIG.replace("URL", alpaca.url).replace("ACCOUNT_KEY", ACCOUNT_KEY))
    return path


@pytest.fixture
def node_file(file: Path) -> Path:
    """The same, as the configuration of a node of a cluster."""
    file.write_text(file.read_text() + CLUSTER)
    return file


def clean(text: str) -> bool:
    """Whether the text holds no canary, as text, hexadecimal or base64 `key:secret`."""
    lowered = text.lower()
    encoded = [base64.b64encode(f"{key}:{secret}".encode()).decode().lower() for key, secret in SECRETS.items()]
    return not any(word in lowered for word in (CANARY, "pkcanary", CANARY.encode().hex(), *encoded))


def fetch(address: tuple[str, int], path: str, headers: dict[str, str]) -> str:
    connection = http.client.HTTPConnection(*address, timeout=5)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    text = f"{response.status} {response.getheaders()} {response.read().decode()}"
    connection.close()
    return text


REFUSED = [
    ("/v2/iex?secret=canary-query", {"APCA-API-KEY-ID": "stranger", "APCA-API-SECRET-KEY": "canary-wrong"}, "[]"),
    ("/v2/iex", {"Authorization": "Basic " + base64.b64encode(b"alpha:canary-wrong").decode()}, "[]"),
    ("/v2/iex", {"Authorization": "Bearer canary-bearer", "Cookie": "session=canary-cookie"}, "[]"),
    ("/v2/iex", {}, '{"action":"auth","key":"alpha","secret":"canary-unterminated'),
    ("/v2/iex", {}, '{"action":"auth","key":"alpha","secret":["canary-list"]}'),
    ("/v2/iex", {}, '{"action":"auth","key":"alpha","secret":"canary-wrong"}'),
    ("/v2/iex", {}, '{"action":"auth","key":"canary-account-literal","secret":"PKCANARY0000WXYZ"}'),
    ("/v2/iex", {}, '{"action":"auth","key":"canary-client-literal","secret":"alpha"}'),
    ("/v2/iex", {}, '{"action":"auth","key":"PKCANARY0000WXYZ","secret":"canary-wrong"}'),
    ("/v2/iex", {}, '{"action":"canary-action"}'),
    ("/stream", {}, '{"action":"authenticate","data":{"key_id":"alpha","secret_key":"canary-wrong"}}'),
]


def attack(address: tuple[str, int]) -> None:
    """Try to log in with the wrong credentials of REFUSED.

    The replies must hold no secret either.
    """

    def attempt(path: str, headers: dict[str, str], request: str) -> None:
        with dial(address, path, headers=headers) as client:
            client.ws.send(request)
            replies = [client.receive() for _ in range(1 if path == "/stream" else 2)]
            assert clean(json.dumps(replies))
            assert "error" in str(replies[-1]) or "unauthorized" in str(replies[-1])

    for greenlet in gevent.joinall([gevent.spawn(attempt, *case) for case in REFUSED], timeout=10):
        greenlet.get()


@pytest.mark.slow
def test_output_of_a_running_process(file: Path, alpaca: Simulator) -> None:
    """Run a process with log level debug from start to stop.

    It is used, refuses log-ins, is refused by Alpaca, and reloads a faulty file.
    """
    with Process("-c", str(file), folder=file.parent, environ=ENVIRON) as process:
        address, admin = process.address(), process.address("proxy.admin")
        with dial(address) as alpha, dial(address, "/stream") as orders, dial(address) as beta:
            for client, key in ((alpha, "alpha"), (beta, "beta")):
                client.receive()
                client.log_in(key, SECRETS[key]).subscribe(trades=["AAPL"])
            orders.log_in("alpha", SECRETS["alpha"]).listen("trade_updates")
            attack(address)
            garbage = Wire(address)
            garbage.socket.sendall(b"\x81\x05canary")
            list(garbage.rest())
            garbage.socket.close()
            alpaca.fail_auth("iex", 402)
            alpaca.drop("iex")
            wait_for(lambda: "Alpaca says 402" in fetch(admin, "/status.json", TOKEN))
            for path in ("/", "/status.json", "/metrics", "/healthz", "/readyz", "/tap?client=alpha", "/canary-free"):
                assert clean(fetch(admin, path, TOKEN).replace("/canary-free", ""))
                assert clean(fetch(admin, path, {"Authorization": "Bearer canary-wrong"}))
            good = file.read_text()
            file.write_text(good.replace("secret: canary-account-literal", "secrett: canary-account-typo, secret: []"))
            process.popen.send_signal(signal.SIGHUP)
            wait_for(lambda: "gateway.reload" in process.text)
            file.write_text(good.replace("canary-client-literal", "canary-client-changed"))
            process.popen.send_signal(signal.SIGHUP)
            assert alpha.closed()[0] == 1008
        process.popen.send_signal(signal.SIGTERM)
        assert process.end(seconds=10) == 0
        assert clean(process.text)
        assert "session.refused" in process.text
        assert "upstream.failed" in process.text


LINKS_REFUSED: list[tuple[dict[str, str], bytes]] = [
    ({"Authorization": "Bearer canary-bearer"}, b""),
    ({dialect.HEADER: "canary-version"}, b""),
    ({dialect.HEADER: "1", "Content-Type": "application/canary"}, b""),
    ({dialect.HEADER: "1", "Content-Type": "application/msgpack"}, b"canary, and no msgpack"),
    (
        {dialect.HEADER: "1", "Content-Type": "application/msgpack"},
        msgpack.packb(
            {"action": "auth", "version": 1, "node": "n", "account": "a", "nonce": "0" * 32, "proof": "0" * 64}
            | {"secret": "canary-cluster-secret"}
        ),
    ),
]


@pytest.mark.slow
def test_output_of_two_nodes(node_file: Path, alpaca: Simulator) -> None:
    """Run two linked nodes with log level debug; strangers call the port for nodes, and Redis refuses the password.

    What is in Redis, and what the port for nodes answers, is searched as well.
    """
    users = {"node": f"on >canary-redis-password {ACL}"}
    with RedisServer(acl=users) as redis, ExitStack() as stack:

        def node() -> Process:
            environ = {**ENVIRON, "LINKS": str(free_port()), "REDIS": str(redis.port)}
            return stack.enter_context(Process("-c", str(node_file), folder=node_file.parent, environ=environ))

        nodes = [node(), node()]
        for process in nodes:  # the first one leads the feed
            client = stack.enter_context(dial(process.address()))
            client.receive()
            client.log_in("alpha", SECRETS["alpha"]).subscribe(trades=["AAPL"])
        wait_for(lambda: "node.linked" in nodes[0].text)
        keys = redis.cli("KEYS", "*").splitlines()
        stored = {key: redis.cli("HGETALL" if ":places:" in key else "GET", key) for key in keys}
        assert {key.split(":")[1] for key in stored} == {"lease", "last", "node", "places", "token"}
        assert not any("WRONGTYPE" in value for value in stored.values())
        assert clean(str(stored))
        port = int(next(key for key in stored if ":node:" in key).partition("#")[0].rpartition(":")[2])
        for headers, message in LINKS_REFUSED:
            assert clean(_call_links(port, headers, message))
        redis.cli("ACL", "SETUSER", "node", "<canary-redis-password", ">canary-another")
        redis.cli("CLIENT", "KILL", "USER", "node")
        for process in nodes:
            wait_for(lambda text=process: "cluster.redis_away" in text.text)  # type: ignore[misc]
            for path in ("/", "/status.json", "/metrics", "/readyz"):
                assert clean(fetch(process.address("proxy.admin"), path, TOKEN))
        for process in nodes:
            process.popen.send_signal(signal.SIGTERM)
        for process in nodes:
            assert process.end(seconds=20) == 0
            assert clean(process.text)
        text = "".join(process.text for process in nodes)
        assert "refuses the user or the password" in text
        assert "auth failed" in text


def _call_links(port: int, headers: dict[str, str], message: bytes) -> str:
    """Return all that the port for nodes answers to this request."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        fields = {"Host": f"127.0.0.1:{port}", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **upgrade, **headers}
        lines = ["GET /v2/iex HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        sock.sendall("\r\n".join(lines).encode())
        answer = sock.recv(65536)
        if message and b" 101 " in answer:
            sock.sendall(Wire.frame(2, message))
        while data := sock.recv(65536):
            answer += data
        return answer.decode("utf-8", "replace")


@pytest.mark.parametrize(
    "verb",
    [
        ["check"],
        ["check", "--online"],
        ["explain", "alpha", "iex", "trades", "AAPL"],
        ["status"],
        ["healthcheck"],
        ["reload"],
    ],
)
@pytest.mark.parametrize("broken", [False, True])
def test_output_of_the_verbs(
    node_file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: list[str], broken: bool
) -> None:
    file = node_file
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    if broken:
        file.write_text(
            file.read_text().replace("admin: {port: 0, token", "admin: {port: 0, tokens").replace("}\n", "]\n")
        )
    main([*verb, "-c", str(file)])
    output = capfd.readouterr()
    assert clean(output.out + output.err)
    assert output.out + output.err


@pytest.mark.parametrize(
    "damage",
    [
        ("secret: canary-account-literal", "secret: {canary-mapping: 1}"),
        ("secret: canary-account-literal", "secret: [canary-list]"),
        ("secret: canary-account-literal", "secret: ' canary-space '"),
        ("secret: canary-account-literal", "secret: sha256:canary"),
        ("secret: canary-client-literal", "secret: sha256:canary-digest"),
        ("token: canary-admin-token", "token: 'canary token'"),
        ("${CANARY_KEY}", "${CANARY_KEY"),
        ("port: 0, token", "port: ${CANARY_CLIENT}, token"),
        ("level: debug", 'level: "${CANARY_CLIENT}"'),
        ("clients:", "clients: canary-clients\nclients:"),
        ("account: elsewhere", 'account: "${CANARY_CLIENT}"'),
        ("secret: canary-cluster-secret", "secret: {canary-mapping: 1}"),
        ("secret: canary-cluster-secret", "secret: canary-short"),
        ("secret: canary-cluster-secret", "secret: sha256:canary"),
        ("redis: redis://", "redis: http://"),
        ("redis: redis://node:", "redis: redis://node/"),
        ("canary-redis-password@127.0.0.1", "canary-redis#password@127.0.0.1"),
        ("${REDIS:-1}/0", "${CANARY_CLIENT}/0"),
        ("listen: 127.0.0.1:${LINKS:-8767}", "listen: ${CANARY_CLIENT}"),
        ("url: ws://127.0.0.1:${LINKS:-8767}", "url: https://${CANARY_CLIENT}:1"),
        ("cluster:\n", "cluster:\n  ca: ${CANARY_CLIENT}\n"),
    ],
    ids=lambda damage: damage[1].split("\n")[0],
)
def test_configuration_errors(node_file: Path, monkeypatch: pytest.MonkeyPatch, damage: tuple[str, str]) -> None:
    """The error, its causes and contexts, problems and traceback hold no secret."""
    from proxy.config import model as config

    text = node_file.read_text().replace(*damage)
    with pytest.raises(ConfigError) as refused:
        config.parse(text, "proxy.yaml", ENVIRON, node_file.parent)
    chain: list[BaseException | None] = [refused.value]
    while (last := chain[-1]) is not None:
        chain.append(last.__cause__ or last.__context__)
    shown = "".join(f"{error} {error!r}" for error in chain) + repr(refused.value.problems)
    shown += "".join(traceback.format_exception(refused.value)).replace(damage[1], "")
    # The names of settings are shown so that a misspelled one can be found; their values are not.
    assert clean(shown.replace("CANARY_KEY", "").replace("CANARY_CLIENT", "").replace("canary-mapping", ""))


@pytest.mark.parametrize("cluster", ["", CLUSTER], ids=["alone", "node"])  # the node's Redis is not there
def test_the_repr_of_every_object(
    start: Callable[..., Harness], file: Path, monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    """No object's repr and no log of an internal error at level debug holds a secret."""
    log = io.StringIO()
    logs.set_up("json", "debug", log)
    accounts = f"  main: {{{{key: {ACCOUNT_KEY}, secret: canary-account, data_url: '{{url}}'}}}}"
    clients = "  alpha: {key: alpha, secret: canary-client, allow: {iex: '*'}}"
    admin = "token: canary-admin-token"
    more = cluster.replace("${LINKS:-8767}", str(free_port()))
    settings = {"accounts": accounts, "admin": admin, "more": more}
    proxy = start(clients, config=settings, keys={ACCOUNT_KEY: "canary-account"})
    client = proxy.dial()
    client.receive()
    client.log_in("alpha", "canary-client").subscribe(trades=["AAPL"])
    gc.unfreeze()  # otherwise the objects built at the start would be missing from gc.get_objects()
    shown = [repr(item) for item in gc.get_objects() if str(type(item).__module__).startswith("proxy.")]
    shown += [repr(proxy.gateway.config), str(proxy.gateway.config), repr(proxy.upstream().settings.login)]
    shown += [repr(Authenticate("alpha", "canary-client")), repr(AuthRequest("alpha", "canary-client"))]
    assert len(shown) > 50
    assert clean("\n".join(shown))
    assert SHOWN in repr(proxy.upstream().settings.login)

    def fail(*_: Any) -> None:
        raise RuntimeError

    unauthenticated = proxy.dial()
    unauthenticated.receive()
    monkeypatch.setattr(type(proxy.gateway.config.directory), "authenticate", fail)
    unauthenticated.send_json({"action": "auth", "key": "alpha", "secret": "canary-client"})
    assert unauthenticated.closed() == (1011, "internal error")
    assert "RuntimeError" in log.getvalue()
    assert clean(log.getvalue())
    proxy.bugs.clear()
    logs.set_up("json", "info", io.StringIO())


def test_the_search_finds_canaries() -> None:
    """Guards the other tests, which would pass if `clean` were always true."""
    assert not clean("so the Canary sang")
    assert not clean("x".join(["", CANARY.encode().hex(), ""]))
    assert not clean(ACCOUNT_KEY)
    assert clean(SHOWN)
