"""Attacks by clients, before and after log-in.

Meanwhile, the delay of another client's messages is measured.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import gevent
import pytest

from proxy.simulator import Simulator
from tests.attacks.payloads import colliding_map, filled, with_map
from tests.attacks.target import CALM_SECONDS, Target, long
from tests.harness import BINARY, CLOSE, PING, TEXT, Wire, wait_for

pytestmark = pytest.mark.attack

UNAUTHENTICATED_BYTES = 64 * 1024
CLIENT_BYTES = 1 << 20
OPTIONS = "/v1beta1/opra"

Start = Callable[..., Target]


def await_answer(wire: Wire) -> None:
    """Wait for an answer or for the end of the connection."""
    with suppress(EOFError, OSError):
        wire.receive()


@pytest.mark.parametrize("sockets", [long(1), 20])
def test_colliding_msgpack_keys_before_log_in(target: Start, sockets: int) -> None:
    """Array keys with the same hash, in the largest message before log-in.

    On the options path, msgpack is the default codec.
    """
    proxy = target()
    body = colliding_map(UNAUTHENTICATED_BYTES - 100)

    def attack() -> None:
        with ExitStack() as stack:
            wires = [proxy.wire(OPTIONS) for _ in range(sockets)]
            for wire in wires:
                stack.callback(wire.socket.close)
                wire.receive()  # the greeting
            for wire in wires:
                wire.send(BINARY, body)
            for wire in wires:
                await_answer(wire)

    cost = proxy.cost(attack, 3 if sockets > 1 else 1)
    assert cost.excess <= CALM_SECONDS, repr(cost)


@pytest.mark.parametrize("place", ["request", long("value"), long("log-in")])
def test_colliding_msgpack_keys_of_a_client(target: Start, place: str) -> None:
    """The same in a message of 1 MB after log-in.

    The map is the request, a value in a request, or a value in a second log-in.
    """
    proxy = target()
    keys = colliding_map(CLIENT_BYTES - 200)
    request = {"action": "subscribe", "trades": ["AAPL"]}
    log_in = {"action": "auth", "key": "victim", "secret": "victim"}
    body = {"request": keys, "value": with_map(request, "more", keys), "log-in": with_map(log_in, "more", keys)}[place]

    def attack() -> None:
        wire = proxy.client(msgpack=True)
        wire.send(BINARY, body)
        await_answer(wire)
        with suppress(OSError):
            wire.send(CLOSE, b"\x03\xe8")
        wire.socket.close()

    cost = proxy.cost(attack, 3)
    assert cost.excess <= CALM_SECONDS, repr(cost)


# A flood repeats one frame: its path, opcode and payload.
FLOODS = {
    "bad JSON": ("/v2/iex", TEXT, b"x"),
    "empty pings": ("/v2/iex", PING, b""),
    "long integers": ("/v2/iex", TEXT, filled(b"9" * 4200, UNAUTHENTICATED_BYTES)),
    "long fractions": ("/v2/iex", TEXT, filled(b"0.1" + b"9" * 30_000 + b"e-300", UNAUTHENTICATED_BYTES)),
    "many documents": ("/v2/iex", TEXT, b"{}" * 250),
    "small objects": ("/v2/iex", TEXT, filled(b"[]", UNAUTHENTICATED_BYTES)),
    "small msgpack objects": (OPTIONS, BINARY, b"\xdd" + (65_000).to_bytes(4, "big") + b"\x90" * 65_000),
    "log-ins": ("/v2/iex", TEXT, b'{"action":"auth","key":"unknown","secret":"nothing"}'),
    "subscriptions": ("/v2/iex", TEXT, b'{"action":"subscribe","trades":["AAPL"]}'),
}


UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def flood(proxy: Target, kind: str, until: float, key: str = "") -> None:
    """Send the frame repeatedly on one socket and discard the answers.

    Connect again when the socket is closed.
    """
    path, opcode, payload = FLOODS[kind]
    frames = Wire.frame(opcode, payload)
    frames *= max(1, 4096 // len(frames))
    log_in = json.dumps({"action": "auth", "key": key, "secret": key}).encode()
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(proxy.address, 5) as sock:
            reading = gevent.spawn(discard, sock)
            try:
                sock.sendall(UPGRADE.format(path=path).encode() + (Wire.frame(TEXT, log_in) if key else b""))
                while time.monotonic() < until:
                    sock.sendall(frames)
                    gevent.sleep(0)
            finally:
                reading.kill()
        gevent.sleep(0.05)


def discard(sock: socket.socket) -> None:
    with suppress(OSError):
        while sock.recv(1 << 16):
            pass


def floods(proxy: Target, kind: str, sockets: int, seconds: float, key: str = "") -> Callable[[], None]:
    def attack() -> None:
        until = time.monotonic() + seconds - 0.3
        flooding = [gevent.spawn(flood, proxy, kind, until, key) for _ in range(sockets)]
        try:
            gevent.joinall(flooding)
        finally:
            gevent.killall(flooding)

    return attack


@pytest.mark.parametrize(
    ("kind", "sockets"),
    [
        long("bad JSON", 50),
        long("bad JSON", 250),
        long("empty pings", 250),
        long("long integers", 50),
        long("long fractions", 50),
        long("many documents", 50),
        long("small objects", 50),
        ("small msgpack objects", 50),
        long("log-ins", 50),
        long("subscriptions", 50),
    ],
)
def test_a_flood_of_strangers(target: Start, kind: str, sockets: int) -> None:
    """All unauthenticated clients together have one hub budget."""
    proxy = target()
    cost = proxy.cost(floods(proxy, kind, sockets, 2), 2)
    assert cost.excess <= CALM_SECONDS, repr(cost)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "sockets"), [("bad JSON", 50), ("bad JSON", 250), ("empty pings", 250), ("long integers", 50)]
)
def test_a_long_flood_of_unauthenticated_clients(target: Start, kind: str, sockets: int) -> None:
    proxy = target()
    cost = proxy.cost(floods(proxy, kind, sockets, 7), 7)
    assert cost.excess <= CALM_SECONDS, repr(cost)


@pytest.mark.parametrize("kind", [long("bad JSON"), long("empty pings"), "many documents", long("subscriptions")])
def test_a_flood_of_a_client(target: Start, kind: str) -> None:
    """All sessions of a client together have one hub budget."""
    proxy = target()
    cost = proxy.cost(floods(proxy, kind, 4, 2, "victim"), 2)
    assert cost.excess <= CALM_SECONDS, repr(cost)


@pytest.mark.parametrize(("count", "allowed"), [(8_000, CALM_SECONDS), long(44_000, 0.15)])
def test_sessions_that_change_many_symbols(target: Start, count: int, allowed: float) -> None:
    """Six sessions subscribe to thousands of symbols and unsubscribe, repeatedly.

    Their client's allowlist permits the symbols by a prefix.
    """
    symbols = [f"S{number:06}" for number in range(count)]
    seconds = 5.0
    churner = (
        '  churner: {key: churner, secret: churner, account: bad, max_connections: 20, allow: {iex: {quotes: ["S*"]}}}'
    )

    def churn(wire: Wire, number: int) -> None:
        start = number * count // 6
        rotated = symbols[start:] + symbols[:start]
        with suppress(OSError, EOFError):
            while True:
                for action in ("subscribe", "unsubscribe"):
                    wire.send_json({"action": action, "quotes": rotated})
                    opcode = PING
                    while opcode != TEXT:
                        opcode, _ = wire.receive()

    with Simulator(keys={"bad": "bad"}) as alpaca:
        proxy = target(alpaca.url, clients=churner)

        def attack() -> None:
            churning = [gevent.spawn(churn, proxy.client("churner"), number) for number in range(6)]
            try:
                gevent.sleep(seconds - 0.2)
            finally:
                gevent.killall(churning)
                proxy.close_clients()

        cost = proxy.cost(attack, seconds, tries=2)
    assert cost.excess <= allowed, repr(cost)


@pytest.mark.parametrize("kind", ["small objects", long("small msgpack objects")])
def test_memory_that_strangers_take(target: Start, kind: str) -> None:
    """250 unauthenticated clients send 64 KB of tiny objects each at once.

    Their memory is freed after they close.
    """
    proxy = target()
    path, opcode, payload = FLOODS[kind]
    wires = [proxy.wire(path) for _ in range(250)]
    before = proxy.memory()

    def attack() -> None:
        for wire in wires:
            wire.send(opcode, payload)
        for wire in wires:
            await_answer(wire)
            await_answer(wire)

    grown = proxy.grows(attack, 6)
    proxy.close_clients()
    gevent.sleep(1)
    left = (proxy.memory() - before) / (1 << 20)
    assert grown < 100
    assert left < 50


@contextmanager
def crowd(proxy: Target, beginning: bytes, sockets: int = 300) -> Iterator[None]:
    """Open sockets that send the beginning of a session and nothing more."""
    with ExitStack() as stack:
        for _ in range(sockets):
            sock = stack.enter_context(socket.create_connection(proxy.address, 5))
            with suppress(OSError):
                sock.sendall(beginning)
        yield


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /v2/iex HTTP/1.1\r\nHost: localhost\r\n",
        UPGRADE.format(path="/v2/iex").encode(),
    ],
    ids=["nothing", "half a head", "no log-in"],
)
def test_log_in_beside_sockets_that_stay(target: Start, beginning: bytes) -> None:
    """More sockets than an address may have: a new one displaces the oldest.

    Behind a reverse proxy, all clients have the same address.
    """
    proxy = target()
    with crowd(proxy, beginning):
        began = time.monotonic()
        for _ in range(3):
            proxy.client()
        assert time.monotonic() - began < 2
        proxy.close_clients()


REST_CALL = b"GET /v2/events/orders HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(("sockets", "most", "share"), [(1, 3, 0.1), long(150, 150, 0.75)])
def test_a_hot_loop_of_rest_calls(target: Start, sockets: int, most: int, share: float) -> None:
    """Each refusal waits, so who asks again at once does not take up the processor or delay others.

    A background stream of Go's SDK asked 1,350 times a second, for good, and took 84 % of a core. Of many such loops at
    one address, as many wait as there are places; the others are hung up on.
    """
    proxy = target()
    seconds = 3.0
    answers: list[bytes] = []
    taken: list[float] = []

    def loop() -> None:
        while True:
            with suppress(OSError), socket.create_connection(proxy.address, 5) as sock:
                sock.sendall(REST_CALL)
                answers.append(sock.recv(1 << 16))
            gevent.sleep(0.02 if sockets > 1 else 0)

    def attack() -> None:
        answers.clear()
        before = proxy.processor()
        loops = [gevent.spawn(loop) for _ in range(sockets)]
        gevent.sleep(seconds)
        gevent.killall(loops)
        taken.append((proxy.processor() - before) / seconds)

    cost = proxy.cost(attack, seconds + 0.5)
    assert cost.excess <= CALM_SECONDS, repr(cost)
    assert 1 <= sum(answer.startswith(b"HTTP/1.1 404 ") for answer in answers) <= most
    assert min(taken) < share  # of a core, with the messages of the witness


def test_an_authenticated_client_is_not_displaced(target: Start) -> None:
    """However many unauthenticated sockets are opened."""
    proxy = target()
    client = proxy.client()
    for _ in range(3):
        with crowd(proxy, b"GET / HTTP/1.1\r\n"):
            client.send(PING, b"still here")
            assert client.receive() == (10, b"still here")


def test_displaced_sockets_are_closed_at_once(target: Start) -> None:
    """Their file descriptors are closed too."""
    proxy = target()
    before = proxy.sockets()
    with crowd(proxy, b"GET / HTTP/1.1\r\n", 600):
        wait_for(lambda: proxy.sockets() - before <= 256 + 16, "the displaced sockets stay open", 5)
    wait_for(lambda: proxy.sockets() <= before + 1, "the sockets stay open", 5)
