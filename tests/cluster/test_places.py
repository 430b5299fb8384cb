"""`max_connections` over all nodes: the counts in a real Redis, and real nodes that die, and lose and find Redis."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from proxy.cluster import places as module
from proxy.cluster.places import CHECK_SECONDS, ClusterPlaces
from proxy.cluster.registry import CALL_SECONDS, NODE_MS, PLACES_MS, Places, Registry
from proxy.config import model as configuration
from proxy.downstream import client_session
from proxy.simulator import Simulator
from tests.cluster.redis_server import RedisServer
from tests.harness import AUTHENTICATED, CLOSE, Client, Harness, Process, dial, wait_for
from tests.ports import free_port

KEY = "algo", "iex"
HASH = "alpaca-proxy:places:algo:iex"
NO_TIME = 0.1  # seconds of a log-in that does not wait for Redis, with a process that is busy besides

Wait = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.cli("FLUSHALL")
    return server


# The script


@pytest.fixture
def registry(redis: RedisServer) -> Iterator[Registry]:
    registry = Registry(redis.url)
    yield registry
    registry.close()


def test_places_are_granted_up_to_the_limit_of_all_nodes(registry: Registry, redis: RedisServer) -> None:
    assert registry.places("a", [Places(*KEY, 0, 1, 3)]) == [(1, 0, 0)]
    assert registry.places("b", [Places(*KEY, 0, 5, 3)]) == [(2, 0, 1)]
    assert registry.places("a", [Places(*KEY, 1, 1, 3)]) == [(0, 1, 2)]
    assert registry.places("a", [Places(*KEY, 1, 2, 4), Places("algo", "sip", 0, 1, 3)]) == [(1, 1, 2), (1, 0, 0)]
    assert registry.places("b", [Places(*KEY, 0, 0, 0)]) == [(0, 2, 2)]
    assert redis.cli("HGETALL", HASH).split() == ["a", "2"]
    assert 0 < int(redis.cli("PTTL", HASH)) <= PLACES_MS
    assert registry.places("a", [Places(*KEY, 5, 1, 3)]) == [(0, 2, 0)]  # it had more without Redis
    assert registry.places("b", [Places(*KEY, 0, 1, 3)]) == [(0, 0, 5)]
    registry.places("a", [Places(*KEY, 0, 0, 0), Places("algo", "sip", 0, 0, 0)])
    assert redis.cli("KEYS", "*places*") == ""
    assert registry.places("a", []) == []


def test_places_of_a_node_without_a_key_are_free(registry: Registry, redis: RedisServer) -> None:
    registry.announce("a", "text")
    registry.places("a", [Places(*KEY, 0, 1, 1)])
    assert registry.nodes() == {"a": "text"}  # the script keeps what it says
    registry.withdraw("a")
    assert registry.places("b", [Places(*KEY, 0, 1, 1)]) == [(1, 0, 0)]
    assert redis.cli("HGETALL", HASH).split() == ["b", "1"]
    assert 0 < int(redis.cli("PTTL", "alpaca-proxy:node:b")) <= NODE_MS


@pytest.mark.parametrize("value", ["", "-5", "1e9", "nan", "inf", "0x10", "123456", "9" * 400, "x\ny"])
def test_counts_that_are_none_count_nothing(registry: Registry, redis: RedisServer, value: str) -> None:
    redis.cli("HSET", HASH, "foreign", value, "a", value)
    registry.announce("foreign", "text")
    assert registry.places("a", [Places(*KEY, 0, 2, 1)]) == [(1, 0, 0)]


# The counts of nodes in one process


class Node:
    """The sessions of a node, without the rest of it."""

    def __init__(self, name: str, url: str) -> None:
        self.sessions: Counter[tuple[str, str]] = Counter()
        self.registry = Registry(url)
        self.places = ClusterPlaces(self.registry, name, lambda: self, time.monotonic)
        self.places.start()

    def held(self, client: str, feed: str) -> int:
        return self.sessions[client, feed]

    def held_now(self) -> dict[tuple[str, str], int]:
        return dict(+self.sessions)

    def log_in(self, client: str = "algo", feed: str = "iex", limit: int = 3) -> bool:
        free = self.places.take(client, feed, limit)
        self.sessions[client, feed] += free
        return free

    def end_session(self, client: str = "algo", feed: str = "iex") -> None:
        self.sessions[client, feed] -= 1
        self.places.changed(client, feed)

    def close(self) -> None:
        self.places.stop()
        self.registry.close()


@contextmanager
def nodes(redis: RedisServer, *names: str) -> Iterator[list[Node]]:
    made = [Node(name, redis.url) for name in names]
    try:
        yield made
    finally:
        for node in made:
            node.close()


def test_a_race_of_nodes(redis: RedisServer, wait_until: Wait) -> None:
    """200 log-ins at once, then sessions that come and go: never over the limit, and no place is lost."""
    limit, most, granted = 7, 0, 0
    with nodes(redis, "a", "b") as both:

        def total() -> int:
            return sum(node.held(*KEY) for node in both)

        def log_in(node: Node, stay: float) -> bool:
            nonlocal most, granted
            if not node.log_in(limit=limit):
                return False
            granted += 1
            most = max(most, total())
            gevent.sleep(stay)
            if stay:
                node.end_session()
            return True

        attempts = [gevent.spawn(log_in, both[number % 2], 0) for number in range(200)]
        assert sum(attempt.get() for attempt in attempts) == limit == total()
        for node in both:
            while node.held(*KEY):
                node.end_session()
        wait_until(lambda: redis.cli("HLEN", HASH) == "0", 1)

        def churn(node: Node, number: int) -> None:
            for turn in range(20):
                log_in(node, (number + turn) % 5 / 1000 or 0.001)
                gevent.sleep((number * turn) % 7 / 1000)

        gevent.joinall([gevent.spawn(churn, both[number % 2], number) for number in range(40)], raise_error=True)
        assert most == limit
        assert granted > 100
        assert total() == 0
        wait_until(lambda: redis.cli("HLEN", HASH) == "0", 1)
        assert [both[0].log_in(limit=limit) for _ in range(limit + 1)] == [True] * limit + [False]


def test_many_log_ins_share_calls_and_one_connection(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(redis, "a") as [node]:
        assert node.log_in("first")
        before = int(redis.cli("INFO", "clients").partition("connected_clients:")[2].split()[0])
        calls = 0
        places = node.registry.places

        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return places(*arguments)

        monkeypatch.setattr(node.registry, "places", counted)
        attempts = [gevent.spawn(node.log_in, f"c{number}") for number in range(1000)]
        assert all(attempt.get() for attempt in attempts)
        assert calls < 20
        assert int(redis.cli("INFO", "clients").partition("connected_clients:")[2].split()[0]) == before


def test_a_place_that_is_not_used_is_free_again(redis: RedisServer, wait_until: Wait) -> None:
    with nodes(redis, "a", "b") as [node, other]:
        assert node.places.take(*KEY, 1)
        assert not other.log_in(limit=1)
        assert other.places.elsewhere(*KEY) == 1
        wait_until(lambda: other.log_in(limit=1), CHECK_SECONDS + 0.5)
        assert other.places.elsewhere(*KEY) == 0


def test_a_log_in_that_is_killed_keeps_no_place(redis: RedisServer, wait_until: Wait) -> None:
    with nodes(redis, "a", "b") as [node, other]:
        node.log_in("first")
        redis.stop()
        attempt = gevent.spawn(node.log_in, limit=1)
        wait_until(lambda: not node.places._asked and not node.places._wake.is_set())
        attempt.kill()
        redis.resume()
        wait_until(lambda: redis.cli("HLEN", HASH) == "0", CHECK_SECONDS + 0.5)
        assert other.log_in(limit=1)
        assert not +node.places._granted


def test_counts_are_written_again_in_a_redis_that_was_emptied(redis: RedisServer, wait_until: Wait) -> None:
    with nodes(redis, "a") as [node]:
        clients = [f"c{number}" for number in range(600)]  # more than are written again at each comparison
        for client in clients:
            assert node.log_in(client)
        redis.cli("FLUSHALL")
        wait_until(lambda: redis.cli("DBSIZE") == "601", 2 * CHECK_SECONDS + 0.5)


def test_a_node_that_stops_gives_its_places_back(redis: RedisServer) -> None:
    with nodes(redis, "a", "b") as [node, other]:
        for _ in range(3):
            assert node.log_in()
        node.sessions.clear()  # they are closing
        node.places.end()
        node.places.join()
        assert [other.log_in() for _ in range(4)] == [True, True, True, False]
        assert node.log_in()  # it does not ask any more


def test_an_internal_error_costs_no_log_in(
    redis: RedisServer, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nodes(redis, "a") as [node]:
        monkeypatch.setattr(node.registry, "places", lambda *_: [][0])
        assert node.log_in()
        assert node.places.problem
        monkeypatch.undo()
        wait_until(lambda: not node.places.problem)
        wait_until(lambda: redis.cli("HGETALL", HASH).split() == ["a", "1"], 1)


@pytest.mark.slow
def test_no_log_in_waits_for_a_redis_that_hangs(wait_until: Wait) -> None:
    with RedisServer() as redis, nodes(redis, "a") as [node]:
        node.log_in()

        def timed() -> float:
            began = time.monotonic()
            assert node.log_in(limit=1000)
            return time.monotonic() - began

        redis.stop()
        first = [gevent.spawn(timed) for _ in range(50)]
        assert max(attempt.get() for attempt in first) < CALL_SECONDS + 0.1
        later = []
        until = time.monotonic() + 2
        while time.monotonic() < until:
            later.append(timed())
            gevent.sleep(0.01)
        assert max(later) < 0.01
        redis.resume()
        wait_until(lambda: redis.cli("HGET", HASH, "a") == str(node.held(*KEY)), module.AWAY_SECONDS + CALL_SECONDS + 1)


# The client port, with the places of a cluster that are as the test says


class Script:
    """Places that are free or not, after what happens while a log-in waits for them."""

    def __init__(self, free: bool, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.free = free
        self.meanwhile = meanwhile
        self.ended = 0

    def take(self, client: str, feed: str, limit: int) -> bool:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return self.free

    def changed(self, client: str, feed: str) -> None:
        self.ended += 1

    def elsewhere(self, client: str, feed: str) -> int:
        return 0


CLIENTS = """
  algo: {key: algo, secret: algo, max_connections: 2, allow: {iex: {trades: "*"}}}
  other: {key: other, secret: other, allow: {iex: {trades: "*"}}}
"""


@pytest.mark.slow
def test_only_a_session_of_the_same_node_gives_way(
    start: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_session, "PING_SECONDS", 0.1)
    monkeypatch.setattr(client_session, "UNRESPONSIVE_SECONDS", 0.3)
    proxy = start(CLIENTS)
    proxy.gateway.server._places = script = Script(free=True)
    dead = proxy.wire().log_in("algo", trades=["AAPL"])
    [session] = proxy.gateway.server.sessions
    script.free = False
    wait_for(lambda: session.unresponsive(proxy.gateway._clock()))
    assert code(greeted(proxy)) == 0
    assert [frame for frame in dead.rest() if frame[0] == CLOSE]
    wait_for(lambda: script.ended == 1)
    assert code(greeted(proxy)) == 406  # the other one answers pings
    assert code(greeted(proxy), "other") == 406  # it has none here


@pytest.mark.parametrize(("change", "answer"), [("", 0), ("secret: algo", 402), ("iex: {trades", 409)])
def test_a_reload_while_a_log_in_waits(start: Callable[..., Harness], change: str, answer: int) -> None:
    """The configuration that is in force when the place is granted decides."""
    proxy = start(CLIENTS)
    new = CLIENTS.replace(change, change and {"secret: algo": "secret: new", "iex: {trades": "sip: {trades"}[change], 1)
    text = CONFIG_OF_PROXY.format(url=proxy.simulator.url, clients=new)
    config = configuration.parse(text, "proxy.yaml", {}, Path())
    proxy.gateway.server._places = Script(True, lambda: proxy.gateway.reload(config))
    assert code(greeted(proxy)) == answer
    assert all(session.client in (None, *config.directory) for session in proxy.gateway.server.sessions)


def test_a_wait_is_not_charged_to_the_budget(start: Callable[..., Harness]) -> None:
    proxy = start(CLIENTS)
    server = proxy.gateway.server
    server._places = Script(True, lambda: gevent.sleep(0.5))
    assert code(greeted(proxy)) == 0
    assert server.budget("")._overdrawn_until < server.clock() + 0.1


def greeted(proxy: Harness) -> Client:
    client = proxy.dial()
    client.receive()
    return client


CONFIG_OF_PROXY = """\
listen: {{port: 0}}
admin: {{port: 0}}
accounts:
  main: {{key: key, secret: secret, data_url: "{url}", trading_url: "{url}"}}
clients:
{clients}
"""

# Real nodes

CONFIG = """\
listen: {port: "${LISTEN}"}
admin: {port: 0}
log: {format: json}
cluster:
  redis: redis://127.0.0.1:${REDIS}
  listen: 127.0.0.1:${LINKS}
  url: ws://127.0.0.1:${LINKS}
  secret: ${CLUSTER_SECRET}
accounts:
  main: {key: key, secret: secret, data_url: "${ALPACA}", trading_url: "${ALPACA}"}
clients:
  algo: {key: algo, secret: algo, max_connections: 3, allow: {iex: {trades: "*"}, trading: "*"}}
  many: {key: many, secret: many, max_connections: 1000, allow: {iex: {trades: "*"}}}
"""


class Cluster:
    """Two nodes, each a process, with a Redis and Alpaca."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        self._stack.__enter__()
        self.redis = self._stack.enter_context(RedisServer())
        simulator = self._stack.enter_context(Simulator())
        (self._folder / "proxy.yaml").write_text(CONFIG)
        self._variables = [
            {
                "LISTEN": str(free_port()),
                "LINKS": str(free_port()),
                "REDIS": str(self.redis.port),
                "ALPACA": simulator.url,
                "CLUSTER_SECRET": "a secret of all nodes, and long",
            }
            for _ in range(2)
        ]
        self.nodes = [self.start(number) for number in range(2)]
        for node in self.nodes:
            node.address()
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            assert "internal_error" not in node.text, node.text[-6000:]
            assert "Traceback" not in node.text, node.text[-6000:]
        self._stack.close()

    def start(self, number: int) -> Process:
        file = str(self._folder / "proxy.yaml")
        return self._stack.enter_context(Process("-c", file, folder=self._folder, environ=self._variables[number]))

    def dial(self, number: int) -> Client:
        client = self._stack.enter_context(dial(("127.0.0.1", int(self._variables[number]["LISTEN"]))))
        client.receive()
        return client

    def log_in(self, number: int, key: str = "algo") -> Client:
        return self.dial(number).log_in(key)

    def code(self, number: int) -> int:
        """The code of the answer to another log-in at a node; 0 if it succeeds."""
        return code(self.dial(number))

    def refusals(self, number: int) -> list[dict[str, Any]]:
        return [event for event in self.nodes[number].events if event["event"].endswith(".refused")]


def code(client: Client, key: str = "algo") -> int:
    answer = client.ask({"action": "auth", "key": key, "secret": key})
    return 0 if answer == AUTHENTICATED else answer[0]["code"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


def until_free(client: Client, seconds: float) -> float:
    """Log in again until it succeeds; return how long that took."""
    began = time.monotonic()
    wait_for(lambda: code(client) == 0, "no place became free", seconds)
    return time.monotonic() - began


@pytest.mark.slow
def test_the_limit_is_that_of_all_nodes(cluster: Cluster) -> None:
    """A fourth session is refused by either node; one that ends makes room on the other node within a second."""
    first, _, third = cluster.log_in(0), cluster.log_in(0), cluster.log_in(1)
    waiting = [cluster.dial(number) for number in range(2)]
    assert [code(client) for client in waiting] == [406, 406]
    wait_for(lambda: all(cluster.refusals(number) for number in range(2)))
    for number, elsewhere in enumerate((1, 2)):
        event = cluster.refusals(number)[-1]
        assert (event["reason"], event["rule"]) == ("connection_limit", "clients.algo.max_connections")
        assert event["held_on_other_nodes"] == elsewhere
    cluster.log_in(0, "many")  # another client has its own
    first.ws.close()
    wait_for(lambda: cluster.redis.cli("HVALS", HASH).split() == ["1", "1"], seconds=1)
    assert code(waiting[1]) == 0
    assert code(waiting[0]) == 406
    third.ws.socket.close()  # as a program that crashes
    wait_for(lambda: cluster.redis.cli("HVALS", HASH).split() == ["1", "1"], seconds=1)
    assert code(waiting[0]) == 0


@pytest.mark.slow
def test_log_ins_at_both_nodes_at_once(cluster: Cluster) -> None:
    clients = [cluster.dial(number % 2) for number in range(20)]
    for turn in range(3):
        answers = [gevent.spawn(code, client) for client in clients]
        assert sorted(answer.get() for answer in answers) == [0] * 3 + [406] * 17
        held = [client for client, answer in zip(clients, answers, strict=True) if answer.get() == 0]
        for client in held:
            client.ws.close()
            clients.remove(client)
        clients += [cluster.dial(turn % 2) for _ in held]
        wait_for(lambda: cluster.redis.cli("EXISTS", HASH) == "0", seconds=1)


@pytest.mark.slow
def test_event_streams_count_as_well(cluster: Cluster) -> None:
    def stream(number: int) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", int(cluster._variables[number]["LISTEN"]), timeout=20)
        connection.request(
            "GET", "/v2/events/trades", headers={"APCA-API-KEY-ID": "algo", "APCA-API-SECRET-KEY": "algo"}
        )
        response = connection.getresponse()
        connections.append((connection, response))
        return response

    connections: list[tuple[http.client.HTTPConnection, http.client.HTTPResponse]] = []
    try:
        assert [stream(number).status for number in (0, 1, 1)] == [200, 200, 200]
        assert [stream(number).status for number in (0, 1)] == [429, 429]
        [event] = cluster.refusals(0)
        assert event["held_on_other_nodes"] == 2
        assert json.loads(connections[-1][1].read())["message"] == "connection limit exceeded"
    finally:
        for connection, response in connections:
            response.close()
            connection.close()


@pytest.mark.slow
def test_places_of_a_killed_node_are_free_when_its_key_expires(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.log_in(0)
    waiting = cluster.dial(1)
    assert code(waiting) == 406
    cluster.nodes[0].popen.kill()
    assert 1 < until_free(waiting, 9) < NODE_MS / 1000 + 2.5 + 0.5  # the last refusal was answered after up to 2.5 s
    cluster.log_in(1)
    cluster.log_in(1)
    assert cluster.code(1) == 406
    assert len(cluster.redis.cli("HKEYS", HASH).split()) == 1


@pytest.mark.slow
def test_places_of_a_node_that_ends_are_free_at_once(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.log_in(0)
    cluster.nodes[0].popen.terminate()
    wait_for(lambda: cluster.redis.cli("EXISTS", HASH) == "0", seconds=1)
    for _ in range(3):
        cluster.log_in(1)
    assert cluster.code(1) == 406


@pytest.mark.slow
def test_redis_is_away_and_comes_back_empty(cluster: Cluster) -> None:
    """Each node counts its own sessions; when Redis is back, all count."""
    held = [cluster.log_in(0), cluster.log_in(1)]
    cluster.redis.kill()
    held += [cluster.log_in(number) for number in (0, 0, 1, 1)]
    assert [cluster.code(number) for number in range(2)] == [406, 406]
    cluster.redis.start()
    wait_for(lambda: cluster.redis.cli("HVALS", HASH).split() == ["3", "3"], seconds=3)
    for client in (held[0], held[2], held[3]):
        client.ws.close()
    wait_for(lambda: cluster.redis.cli("HVALS", HASH) == "3", seconds=1)
    assert cluster.code(0) == 406
    cluster.redis.cli("FLUSHALL")
    wait_for(lambda: cluster.redis.cli("HVALS", HASH) == "3", seconds=2 * CHECK_SECONDS + 0.5)
    assert cluster.code(0) == 406


@pytest.mark.slow
def test_redis_hangs(cluster: Cluster) -> None:
    """A log-in waits for half a second at most, and most wait for no time; when Redis answers again, all count."""
    cluster.log_in(0, "many")
    cluster.redis.stop()
    seconds = []
    for turn in range(60):
        client = cluster.dial(turn % 2)
        began = time.monotonic()
        client.log_in("many")
        seconds.append(time.monotonic() - began)
        gevent.sleep(0.02)
    assert max(seconds) < 1
    assert sum(each > NO_TIME for each in seconds) <= 2  # the first of each node
    assert sum(cluster.code(0) == 0 for _ in range(4)) == 3
    cluster.redis.resume()
    wait_for(lambda: all("cluster.redis_back" in node._names() for node in cluster.nodes), seconds=3)
    assert cluster.redis.cli("HVALS", HASH) == "3"
    assert cluster.code(1) == 406
