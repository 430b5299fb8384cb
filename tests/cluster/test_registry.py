"""The access to Redis, on real servers: every call, every refusal, and the time limit."""

from __future__ import annotations

import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent
import pytest
from gevent.server import StreamServer

from proxy.cluster.registry import ACL, CALL_SECONDS, Places, Registry, RegistryError
from tests.cluster.redis_server import Certificates, RedisServer, sentinel

SLOT = "0123abcd:iex"
LIMIT = CALL_SECONDS + 0.25
PASSWORD = "canary-of-redis"

Wait = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server for tests that only write and read."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.cli("FLUSHALL")
    return server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificates, Path]:
    """A server's certificate of a CA of its own, for 127.0.0.1, and another CA."""
    folder = tmp_path_factory.mktemp("ca")

    def openssl(command: str, *files: str) -> None:
        subprocess.run(["openssl", *command.split(), *files], cwd=folder, check=True, capture_output=True, timeout=20)

    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for ca in ("ours", "other"):
        openssl(f"req -x509 {key} -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(f"req -new {key} -subj /CN=redis -keyout redis.key -out redis.csr")
    openssl(
        "x509 -req -days 2 -in redis.csr -CA ours.pem -CAkey ours.key -CAcreateserial -extfile names -out redis.pem"
    )
    return Certificates(folder / "redis.pem", folder / "redis.key", folder / "ours.pem"), folder / "other.pem"


@contextmanager
def opened(url: str, *arguments: Any) -> Iterator[Registry]:
    registry = Registry(url, *arguments)
    try:
        yield registry
    finally:
        registry.close()


def refusal(call: Callable[..., object], *arguments: Any) -> str:
    """The text of the RegistryError that the call raises in time: one line, without the password."""
    begun = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        call(*arguments)
    assert time.monotonic() - begun < LIMIT
    shown = "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in shown
    assert "\n" not in str(caught.value)
    return str(caught.value)


def calls(registry: Registry) -> list[Callable[[], object]]:
    """Every call of a registry that uses Redis."""
    return [
        lambda: registry.exchange(SLOT, "", "lease", "leader"),
        lambda: registry.release(SLOT, "lease"),
        registry.token,
        registry.knows_tokens,
        lambda: registry.announce("n1", "value"),
        registry.nodes,
        lambda: registry.withdraw("n1"),
        lambda: registry.places("n1", [Places("algo", "iex", 1, 1, 3)]),
        lambda: registry.places("n1", [Places("algo", "iex", 0, 0, 0)]),
    ]


@contextmanager
def answering(*answers: bytes, pause: float = 0.0) -> Iterator[str]:
    """The URL of a server that sends the answers after the first bytes that it receives, and then no more."""

    def serve(sock: Any, _: object) -> None:
        sock.recv(65536)
        for answer in answers:
            sock.sendall(answer)
            gevent.sleep(pause)
        while sock.recv(65536):
            pass

    fake = StreamServer(("127.0.0.1", 0), serve)
    fake.start()
    try:
        yield f"redis://user:{PASSWORD}@127.0.0.1:{fake.server_port}"
    finally:
        fake.stop(1)


# The calls


def test_a_lease_is_taken_extended_and_refused(redis: RedisServer) -> None:
    with opened(redis.url) as registry:
        assert registry.exchange(SLOT, "", "") == ("", "")
        assert registry.exchange(SLOT, "", "a1", "a") == ("a1", "a")
        assert registry.exchange(SLOT, "", "b1", "b") == ("a1", "a")
        assert registry.exchange(SLOT, "a1", "a2") == ("a2", "a")
        assert registry.exchange(SLOT, "a1", "a3", "x") == ("a2", "a")
        assert registry.exchange(SLOT, "a2", "") == ("a2", "a")
        assert registry.exchange("other:sip", "", "") == ("", "")
    assert set(redis.cli("KEYS", "*").split()) == {f"alpaca-proxy:{key}:{SLOT}" for key in ("lease", "last")}


def test_a_lease_is_released_by_its_holder_only(redis: RedisServer) -> None:
    with opened(redis.url) as registry:
        registry.exchange(SLOT, "", "a1", "a")
        registry.release(SLOT, "b1")
        registry.release(SLOT, "")
        assert registry.exchange(SLOT, "", "") == ("a1", "a")
        registry.release(SLOT, "a1")
        assert registry.exchange(SLOT, "", "") == ("", "a")
        registry.release(SLOT, "")


def test_a_lease_expires_after_a_second_and_its_leader_does_not(redis: RedisServer, wait_until: Wait) -> None:
    with opened(redis.url) as registry:
        begun = time.monotonic()
        registry.exchange(SLOT, "", "a1", "a")
        assert int(redis.cli("PTTL", f"alpaca-proxy:lease:{SLOT}")) in range(800, 1001)
        assert redis.cli("PTTL", f"alpaca-proxy:last:{SLOT}") == "-1"
        wait_until(lambda: registry.exchange(SLOT, "", "") == ("", "a"))
        assert 0.95 < time.monotonic() - begun < 1.3
        assert registry.exchange(SLOT, "", "b1") == ("b1", "a")


def test_one_of_two_registries_wins(redis: RedisServer) -> None:
    with opened(redis.url) as one, opened(redis.url) as other:
        lease = ""
        for turn in range(50):
            news = [f"{name}{turn}" for name in ("one", "other")]
            attempts = [
                gevent.spawn(registry.exchange, SLOT, lease, new, new)
                for registry, new in zip((one, other), news, strict=True)
            ]
            seen = {attempt.get() for attempt in attempts}
            assert len(seen) == 1
            lease, leader = seen.pop()
            assert lease == leader
            assert lease in news


def test_greenlets_share_a_registry(redis: RedisServer) -> None:
    with opened(redis.url) as registry:
        tokens = [gevent.spawn(registry.token) for _ in range(20)]
        leases = [gevent.spawn(registry.exchange, f"{number}:iex", "", str(number)) for number in range(20)]
        assert len({token.get() for token in tokens}) == 20
        assert [lease.get() for lease in leases] == [(str(number), "") for number in range(20)]
        connections = int(redis.cli("INFO", "clients").partition("connected_clients:")[2].split()[0])
        for _ in range(20):
            registry.token()
        assert int(redis.cli("INFO", "clients").partition("connected_clients:")[2].split()[0]) == connections


def test_nodes_are_announced_withdrawn_and_expire(redis: RedisServer) -> None:
    redis.cli("MSET", "alpaca-proxyX:node:x", "x", "alpaca-proxy:nodes", "x", "alpaca-proxy:lease:node:x", "x")
    with opened(redis.url) as registry:
        assert registry.nodes() == {}
        registry.announce("n1", "one")
        registry.announce("n:2", "two ü \udcff")  # the last is a byte that is not UTF-8
        assert registry.nodes() == {"n1": "one", "n:2": "two ü \udcff"}
        registry.announce("n1", "uno")
        registry.withdraw("n:2")
        registry.withdraw("n3")
        assert registry.nodes() == {"n1": "uno"}
        assert int(redis.cli("PTTL", "alpaca-proxy:node:n1")) in range(4800, 5001)


def test_nodes_among_many_other_keys(redis: RedisServer) -> None:
    fill = "for n = 1, 20000 do redis.call('SET', 'other:' .. n, n) end"
    redis.cli("EVAL", fill, "0")
    with opened(redis.url) as registry:
        for number in range(50):
            registry.announce(str(number), "value")
        assert registry.nodes() == {str(number): "value" for number in range(50)}


def test_names_separate_clusters(redis: RedisServer) -> None:
    with opened(redis.url, "*") as star, opened(redis.url, "b[c]?") as other:
        star.announce("n1", "star")
        other.announce("n1", "other")
        assert (star.nodes(), other.nodes()) == ({"n1": "star"}, {"n1": "other"})
        assert star.exchange(SLOT, "", "a") == ("a", "")
        assert other.exchange(SLOT, "", "") == ("", "")
        star.token()
        assert (star.knows_tokens(), other.knows_tokens()) == (True, False)


@pytest.mark.parametrize("written", ["inf", "1e300", "9007199254740993"])
def test_a_counter_that_another_program_has_written_gives_no_token(redis: RedisServer, written: str) -> None:
    redis.cli("SET", "alpaca-proxy:token", written)
    registry = Registry(redis.url)
    with pytest.raises(RegistryError, match="cannot be read"):
        registry.token()
    registry.close()


def test_tokens_rise_also_above_the_clock(redis: RedisServer) -> None:
    with opened(redis.url) as registry:
        assert not registry.knows_tokens()
        tokens = [registry.token() for _ in range(100)]
        assert tokens == sorted(set(tokens))
        assert abs(tokens[0] / 10**6 - time.time()) < 5
        assert registry.knows_tokens()
        ahead = tokens[-1] + 10**12
        redis.cli("SET", "alpaca-proxy:token", str(ahead))
        assert [registry.token(), registry.token()] == [ahead + 1, ahead + 2]


def test_a_restart_that_empties_redis() -> None:
    with RedisServer() as server, opened(server.url) as registry:
        tokens = [registry.token()]
        assert registry.exchange(SLOT, "", "a1", "a") == ("a1", "a")
        for _ in range(2):
            server.restart()
            assert not registry.knows_tokens()
            tokens.append(registry.token())
            assert registry.exchange(SLOT, "a1", "") == ("", "")
        assert tokens == sorted(set(tokens))
        server.cli("SCRIPT", "FLUSH")
        assert registry.token() > tokens[-1]
        server.kill()
        refusal(registry.token)
        server.start()
        assert registry.token() > tokens[-1]


def test_values_of_strangers(redis: RedisServer) -> None:
    redis.cli("SET", "alpaca-proxy:token", "1e400")
    redis.cli("RPUSH", f"alpaca-proxy:lease:{SLOT}", "list")
    redis.cli("RPUSH", "alpaca-proxy:node:n1", "list")
    with opened(redis.url) as registry:
        assert "check what writes to its keys" in refusal(registry.token)
        assert "WRONGTYPE" in refusal(registry.exchange, SLOT, "", "a")
        assert registry.nodes() == {}


def test_a_closed_registry_keeps_no_connection(redis: RedisServer, wait_until: Wait) -> None:
    before = redis.cli("CLIENT", "LIST").count("\n")
    registry = Registry(redis.url)
    registry.token()
    assert redis.cli("CLIENT", "LIST").count("\n") == before + 1
    registry.close()
    registry.withdraw("n1")
    wait_until(lambda: redis.cli("CLIENT", "LIST").count("\n") == before)


# Time limit


def test_a_hang_ends_every_call_and_holds_no_other_greenlet() -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    def failure(call: Callable[[], object]) -> tuple[str, float]:
        begun = time.monotonic()
        try:
            call()
        except RegistryError as error:
            return str(error), time.monotonic() - begun
        return "", 0

    with RedisServer() as server, opened(server.url) as used, opened(server.url) as new:
        used.token()
        server.stop()
        ticker = gevent.spawn(tick)
        attempts = [gevent.spawn(failure, call) for registry in (used, new) for call in calls(registry)]
        failures = [attempt.get() for attempt in attempts]
        ticker.kill()
        assert max(seconds for _, seconds in failures) < LIMIT
        assert {text for text, _ in failures} == {
            f"Redis at 127.0.0.1:{server.port} does not answer within 0.5 s; check that it runs, and the network to it"
        }
        assert ticks > 5  # 0 or 1 if the calls held the hub
        server.resume()
        assert used.token() < used.token()


def test_an_answer_byte_by_byte_is_cut_off() -> None:
    with answering(*[b"+" + b"x" * 100] * 30, pause=0.05) as url, opened(url) as registry:
        assert "does not answer within 0.5 s" in refusal(registry.knows_tokens)


def test_a_name_service_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: gevent.sleep(30))
    with opened("redis://redis.example") as registry:
        assert "Redis at redis.example:6379 does not answer within 0.5 s" in refusal(registry.token)


def test_a_killed_greenlet_leaves_no_answer_to_another_call(wait_until: Wait) -> None:
    with RedisServer() as server, opened(server.url) as registry:
        registry.token()
        server.stop()
        call = gevent.spawn(registry.token)
        wait_until(lambda: not registry._idle)
        call.kill()
        server.resume()
        assert registry.exchange(SLOT, "", "a1", "a") == ("a1", "a")


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_greenlet_killed_while_it_connects_leaves_no_socket(scheme: str) -> None:
    """An unclosed socket is a ResourceWarning, which fails the test."""
    with RedisServer() as server, opened(f"{scheme}://127.0.0.1:{server.port}") as registry:
        server.stop()
        for milliseconds in (0, 1, 2, 5, 20):
            call = gevent.spawn(registry.token)
            gevent.sleep(milliseconds / 1000)
            call.kill()
        server.resume()


# Refusals


def test_no_server(tmp_path: Path) -> None:
    with RedisServer() as server:
        port = server.port
    for url, expected in {
        f"redis://:{PASSWORD}@127.0.0.1:{port}": f"Redis at 127.0.0.1:{port} cannot be reached: Connection refused;",
        f"redis://:{PASSWORD}@[::1]:{port}": f"Redis at [::1]:{port} cannot be reached: ",
        f"unix://:{PASSWORD}@{tmp_path}/none?db=1": f"Redis at {tmp_path}/none cannot be reached: No such file",
        f"redis://:{PASSWORD}@nowhere.invalid": "Redis at nowhere.invalid:6379 has a host name that cannot be",
        "redis://a..b:1": "Redis at a..b:1 has a host name that cannot be resolved;",
    }.items():
        with opened(url) as registry:
            assert refusal(registry.token).startswith(expected)
            assert PASSWORD not in repr(registry)


def test_a_replica_refuses_writes(wait_until: Wait) -> None:
    with RedisServer() as primary, RedisServer(replica_of=primary) as replica, opened(replica.url) as registry:
        wait_until(lambda: "master_link_status:up" in replica.cli("INFO", "replication"))
        text = refusal(registry.exchange, SLOT, "", "a")
        assert text == (
            f"Redis at 127.0.0.1:{replica.port} refuses writes: it is a replica; "
            "name the primary, or use redis+sentinel://"
        )
        assert refusal(registry.token) == refusal(registry.announce, "n", "v") == text


def test_a_replica_without_its_primary(wait_until: Wait) -> None:
    with (
        RedisServer() as primary,
        RedisServer(replica_of=primary, options={"replica-serve-stale-data": "no"}) as replica,
        opened(replica.url) as registry,
    ):
        primary.kill()
        wait_until(lambda: "master_link_status:down" in replica.cli("INFO", "replication"))
        assert "is a replica that has lost its primary; name the primary" in refusal(registry.knows_tokens)


def test_full_memory() -> None:
    with RedisServer(maxmemory="1") as server, opened(server.url) as registry:
        for call in (calls(registry)[0], registry.token, calls(registry)[4]):
            assert "refuses writes: its memory is full; raise maxmemory" in refusal(call)
        assert registry.exchange(SLOT, "", "") == ("", "")
        assert not registry.knows_tokens()


def test_passwords() -> None:
    with RedisServer(password=PASSWORD) as server:
        place = server.url.removeprefix("redis://")
        for login in (f":{PASSWORD}@", f"default:{PASSWORD}@", f"default:%{ord('c'):x}{PASSWORD[1:]}@"):
            with opened(f"redis://{login}{place}/3") as registry:
                assert registry.token() < registry.token()
        for login, reason in {
            "": "asks for a password; add it to cluster.redis",
            f":{PASSWORD}-@": "refuses the user or the password; correct it in cluster.redis",
            f"nobody:{PASSWORD}@": "refuses the user or the password; correct it in cluster.redis",
        }.items():
            with opened(f"redis://{login}{place}") as registry:
                assert reason in refusal(registry.token)
        with opened(f"redis://:{PASSWORD}@{place}/99") as registry:
            assert "has no such database" in refusal(registry.token)


def test_a_password_for_a_server_without_one(redis: RedisServer) -> None:
    with opened(redis.url.replace("//", f"//:{PASSWORD}@")) as registry:
        assert "has no password, but cluster.redis gives one; remove it" in refusal(registry.token)


def test_the_rule_for_an_acl_user_is_exactly_enough() -> None:
    with RedisServer(acl={"node": f"on >{PASSWORD} {ACL}"}) as server:
        url = f"redis://node:{PASSWORD}@127.0.0.1:{server.port}/1"

        def lacking() -> set[str]:
            """The reasons of the calls that are refused, in a new connection to a Redis that knows no script."""
            server.cli("SCRIPT", "FLUSH")
            reasons = set()
            with opened(url) as registry:
                for call in calls(registry):
                    try:
                        call()
                    except RegistryError as error:
                        reasons.add(str(error))
            return reasons

        assert lacking() == set()
        commands = [word[1:] for word in ACL.split() if word.startswith("+")]
        assert len(commands) == 14
        for command in commands:
            server.cli("ACL", "SETUSER", "node", f"-{command}")
            reasons = lacking()
            assert reasons
            assert all(f"not permit the command {command} to" in why or "a command to" in why for why in reasons)
            server.cli("ACL", "SETUSER", "node", f"+{command}")
        with opened(url, "other") as registry:
            assert "does not permit a key" in refusal(registry.token)
            assert refusal(registry.announce, "n", "v").endswith(ACL.replace("alpaca-proxy", "other"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "is still loading its data; wait until it has"),
        (b"-NOREPLICAS Not enough good replicas to write.\r\n", "refuses writes: it has too few replicas"),
        (b"-MISCONF Redis is configured to save RDB snapshots, but\r\n", "refuses writes: it cannot save its data"),
        (b"-BUSY Redis is busy running a script.\r\n", "is busy with a script of someone else"),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", "is a Redis Cluster, which is not supported"),
        (b"-CROSSSLOT Keys in request don't hash to the same slot\r\n", "is a Redis Cluster, which is not supported"),
        (b"-CLUSTERDOWN The cluster is down\r\n", "is a Redis Cluster, which is not supported"),
        (b"-ERR max number of clients reached\r\n", "has too many connections"),
        (b"-DENIED Redis is running in protected mode because\r\n", "is in protected mode"),
        (
            b"-ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write\r\n",
            "refuses writes: it is a replica",  # as before Redis 7
        ),
        (
            f"-ERR unknown command `AUTH`, with args beginning with: `user`, `{PASSWORD}`, \r\n".encode(),
            "refuses: unknown command `AUTH`; check Redis and its log",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak the protocol of Redis"),
        (b"\xff\x00\x1b[31m\r\n", "does not speak the protocol of Redis"),
        (f"-ODD {'x' * 195}{PASSWORD}\r\n".encode(), f"refuses: ODD {'x' * 195}…; check"),
        (b"-ODD \x1b[31m\r\n", r"refuses: 'ODD \x1b[31m'; check Redis"),
        (b"*x\r\n", "gave an answer that cannot be read"),
    ],
)
def test_answers_of_other_servers(answer: bytes, expected: str) -> None:
    with answering(answer) as url, opened(url) as registry:
        assert expected in refusal(registry.token)


def test_a_connection_that_the_server_closes(redis: RedisServer) -> None:
    with opened(redis.url) as registry:
        registry.token()
        redis.cli("CLIENT", "KILL", "TYPE", "normal")
        assert registry.token() < registry.token()


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{PASSWORD}@127.0.0.1",
        f"redis:{PASSWORD}",
        f"redis://:{PASSWORD}@",
        f"redis://:{PASSWORD}@host:{PASSWORD}",
        f"redis://:{PASSWORD}@host:99999",
        f"redis://:{PASSWORD}@host/{PASSWORD}",
        f"redis://host?password={PASSWORD}",
        f"redis://host?{PASSWORD}",
        f"redis://:{PASSWORD}@a,b",
        f"redis://:{PASSWORD}@[::1",
        f"unix://:{PASSWORD}@host/path",
        "unix://",
        f"redis+sentinel://:{PASSWORD}@a,b",
        f"redis+sentinel://:{PASSWORD}@a,/service",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    assert refusal(Registry, url).startswith("cluster.redis is not the URL of a Redis: ")


# TLS, Unix sockets, Sentinel


def test_tls(certificates: tuple[Certificates, Path], tmp_path: Path) -> None:
    files, other = certificates
    with RedisServer(tls=files, password=PASSWORD) as server:
        url = f"rediss://:{PASSWORD}@127.0.0.1:{server.port}"
        with opened(url, "alpaca-proxy", files.ca) as registry:
            assert registry.token() < registry.token()
            assert registry.exchange(SLOT, "", "a" * 100_000)[0] == "a" * 100_000
            server.restart()
            assert not registry.knows_tokens()
            server.stop()
            assert "does not answer within 0.5 s" in refusal(registry.token)
            server.resume()
        for ca in (other, None):
            with opened(url, "alpaca-proxy", ca) as registry:
                assert "has a certificate that is not valid here: " in refusal(registry.token)
        with opened(url.replace("127.0.0.1", "localhost"), "alpaca-proxy", files.ca) as registry:
            assert "Hostname mismatch" in refusal(registry.token)
        with opened(url.replace("rediss", "redis")) as registry:
            assert "closed the connection; if it expects TLS, write rediss://" in refusal(registry.token)
    (tmp_path / "empty.pem").touch()
    for name, reason in {"empty.pem": "it has no certificate", "none.pem": "No such file or directory"}.items():
        with opened(url, "alpaca-proxy", tmp_path / name) as registry:
            assert refusal(registry.token) == f"the CA file {tmp_path / name} of cluster.redis cannot be read: {reason}"


def test_tls_to_a_server_without_it(redis: RedisServer) -> None:
    with opened(f"rediss://127.0.0.1:{redis.port}") as registry:
        assert "does not complete a TLS handshake" in refusal(registry.token)
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url, opened(url.replace("redis", "rediss", 1)) as registry:
        assert "if it has no TLS write redis://" in refusal(registry.token)


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "a redis.sock"
    url = f"unix://:{PASSWORD}@{quote(str(path))}?db=2"
    with RedisServer(unix=path, password=PASSWORD) as server, opened(url) as registry:
        assert registry.token() < registry.token()
        assert server.cli("-n", "2", "EXISTS", "alpaca-proxy:token") == "1"
        server.stop()
        assert "does not answer within 0.5 s" in refusal(registry.token)
        server.resume()


def test_sentinel_fails_over(wait_until: Wait) -> None:
    options = {"masterauth": PASSWORD}
    with (
        RedisServer(password=PASSWORD, options=options) as primary,
        RedisServer(password=PASSWORD, options=options, replica_of=primary) as replica,
        sentinel(primary, "mine", password=PASSWORD) as watcher,
        RedisServer() as dead,
        opened(f"redis+sentinel://:{PASSWORD}@127.0.0.1:{dead.port},127.0.0.1:{watcher.port}/mine/1") as registry,
    ):
        dead.stop()
        wait_until(lambda: "master_link_status:up" in replica.cli("INFO", "replication"))
        wait_until(lambda: str(replica.port) in watcher.cli("SENTINEL", "REPLICAS", "mine"))
        first = registry.token()
        primary.kill()
        refusal(registry.token)

        texts = []

        def next_token() -> int:
            try:
                return registry.token()
            except RegistryError as error:
                texts.append(str(error))
                gevent.sleep(0.05)
                return 0

        assert wait_until(next_token, 15) > first
        assert PASSWORD not in "".join(texts)
        assert replica.cli("-n", "1", "EXISTS", "alpaca-proxy:token") == "1"


def test_sentinels_without_a_primary() -> None:
    with RedisServer() as primary, sentinel(primary, "mine") as watcher:
        with RedisServer() as server:
            gone = f"127.0.0.1:{server.port}"
        sentinels = f"{gone},127.0.0.1:{watcher.port}"
        with opened(f"redis+sentinel://{sentinels}/mine") as registry:
            assert registry.token()
        with opened(f"redis+sentinel://user:{PASSWORD}@{sentinels}/other/0") as registry:
            text = f"{gone} cannot be reached: Connection refused; 127.0.0.1:{watcher.port} does not know it"
            for _ in range(3):
                assert refusal(registry.token) in (
                    f'no Sentinel has a primary for "other": {reasons};'
                    " check the Sentinels and the names in cluster.redis"
                    for reasons in (text, "; ".join(reversed(text.split("; "))))
                )
        watcher.stop()
        with opened(f"redis+sentinel://127.0.0.1:{watcher.port}/mine") as registry:
            assert "does not answer within 0.2 s" in refusal(registry.token)
        watcher.resume()
