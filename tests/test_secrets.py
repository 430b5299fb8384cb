"""No secret is disclosed.

Canaries stand for every secret: the accounts' keys and secrets, the clients' secrets, the admin token, and the
credentials that unauthenticated clients try. Everything that the proxy logs, serves, sends or prints is searched for
them.
"""

from __future__ import annotations

import base64
import gc
import http.client
import io
import json
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from proxy.alpaca.market import AuthRequest
from proxy.alpaca.server_protocol import Authenticate
from proxy.cli import main
from proxy.config.errors import ConfigError
from proxy.observe import logs
from proxy.simulator import Simulator
from tests.harness import Harness, Process, Wire, dial, wait_for

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


@pytest.mark.parametrize(
    "verb", [["check"], ["explain", "alpha", "iex", "trades", "AAPL"], ["status"], ["healthcheck"], ["reload"]]
)
@pytest.mark.parametrize("broken", [False, True])
def test_output_of_the_verbs(
    file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: list[str], broken: bool
) -> None:
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
    ],
    ids=lambda damage: damage[1].split("\n")[0],
)
def test_configuration_errors(file: Path, monkeypatch: pytest.MonkeyPatch, damage: tuple[str, str]) -> None:
    """The error, its causes and contexts, problems and traceback hold no secret."""
    from proxy.config import model as config

    text = file.read_text().replace(*damage)
    with pytest.raises(ConfigError) as refused:
        config.parse(text, "proxy.yaml", ENVIRON, file.parent)
    chain: list[BaseException | None] = [refused.value]
    while (last := chain[-1]) is not None:
        chain.append(last.__cause__ or last.__context__)
    shown = "".join(f"{error} {error!r}" for error in chain) + repr(refused.value.problems)
    shown += "".join(traceback.format_exception(refused.value)).replace(damage[1], "")
    # The names of settings are shown so that a misspelled one can be found; their values are not.
    assert clean(shown.replace("CANARY_KEY", "").replace("CANARY_CLIENT", "").replace("canary-mapping", ""))


def test_the_repr_of_every_object(start: Callable[..., Harness], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No object's repr and no log of an internal error at level debug holds a secret."""
    log = io.StringIO()
    logs.set_up("json", "debug", log)
    accounts = f"  main: {{{{key: {ACCOUNT_KEY}, secret: canary-account, data_url: '{{url}}'}}}}"
    clients = "  alpha: {key: alpha, secret: canary-client, allow: {iex: '*'}}"
    admin = "token: canary-admin-token"
    proxy = start(clients, config={"accounts": accounts, "admin": admin}, keys={ACCOUNT_KEY: "canary-account"})
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
