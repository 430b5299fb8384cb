"""The work for a message from Alpaca's socket to the clients' sockets.

It is counted instead of timed. Everything between the sockets is real; those of the clients are replaced. The tests
count calls of Python and C functions, and sends: both are the same on every machine, and each additional step increases
them. Raise a bound only on purpose, after `benchmarks/run.py` has shown the cost of the new step.
"""

from __future__ import annotations

import gc
import socket
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import msgspec
import pytest

from proxy.alpaca.client_protocol import Login
from proxy.alpaca.codec import JSON, MSGPACK, Codec
from proxy.alpaca.endpoints import endpoint
from proxy.alpaca.topics import Subscription
from proxy.downstream.outbox import Outbox, Outboxes
from proxy.routing.router import Router
from proxy.transport import frames
from proxy.transport.connection import ClientConnection
from proxy.upstream.alpaca_connection import AlpacaConnection
from proxy.upstream.source import FeedSettings
from proxy.upstream.supervisor import FeedSupervisor
from proxy.upstream.websocket import UPSTREAM_READ_BYTES, UpstreamConnection

SYMBOLS = [f"S{number}" for number in range(100)]
WAITING = 40  # frames that are ready in Alpaca's socket together


class ClientSocket:
    """A socket that accepts all data and counts the sends."""

    def __init__(self) -> None:
        self._sock = self
        self.sends = 0

    def setsockopt(self, *_: int) -> None: ...

    def send(self, data: bytes) -> int:
        self.sends += 1
        return len(data)


class Member:
    """The part of a session that the router uses."""

    def __init__(self, codec: Codec, outboxes: Outboxes) -> None:
        self.name = "momentum"
        self.codec = codec
        self.accepts_unknown = None
        self.outages = 0
        self.socket = ClientSocket()
        connection = ClientConnection(self.socket, None, "127.0.0.1:1")
        opcode = frames.TEXT if codec.text else frames.BINARY
        self.outbox = Outbox(connection, outboxes, opcode=opcode, limit=1 << 20, slow_words=b"")
        self.put: Callable[[bytes, int], None] = self.outbox.put

    def abort(self) -> None:
        self.outbox.abort()


class Pipeline:
    """The data path from Alpaca's socket to those of the members.

    `subscription` returns the subscription of a member by its number.
    """

    def __init__(self, source: Codec, members: list[Member], subscription: Callable[[int], Subscription]) -> None:
        iex = endpoint("iex")
        assert iex is not None
        self.members = members
        self.router = Router(iex, source)
        self._source = source
        self._alpaca, sock = socket.socketpair()
        self._alpaca.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._connection = UpstreamConnection(lambda *_: None)
        self._connection.begin(sock, b"")
        login = Login("main", "wss://nowhere", "key", "secret")
        settings = FeedSettings(login, source)
        self._feed = AlpacaConnection(iex, settings, lambda: 0.0)
        self._upstream = FeedSupervisor(
            iex, settings, self.router, lambda *_: self._feed, lambda: 0.0, lambda live: None, lambda lost: None
        )
        for number, member in enumerate(members):
            self.router.set_subscription(member, subscription(number))

    def deliver(self, count: int, batch: int) -> int:
        """Deliver `count` frames of `batch` messages; return the number of calls.

        The frames arrive at once.
        """
        opcode = frames.TEXT if self._source.text else frames.BINARY
        messages = [trade(self._source, number) for number in range(batch)]
        self._alpaca.sendall(frames.encode(opcode, self._source.encode(messages)) * count)
        before, calls = self.router.received, 0

        def count_call(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count_call)
        try:
            while self.router.received < before + count * batch:
                self._upstream._take(self._feed, self._connection.receive())
        finally:
            sys.setprofile(None)
        return calls

    def close(self) -> None:
        self._connection.free()
        self._alpaca.close()

    @property
    def sends(self) -> int:
        return sum(member.socket.sends for member in self.members)


@contextmanager
def opened(
    source: Codec, target: Codec, clients: int, subscription: Callable[[int], Subscription]
) -> Iterator[Pipeline]:
    """A pipeline with idle writers, as those of real sessions."""
    outboxes = Outboxes(1 << 30)
    members = [Member(target, outboxes) for _ in range(clients)]
    with ExitStack() as stack:
        for member in members:
            writer = gevent.spawn(member.outbox.run)
            stack.callback(writer.kill)
        gevent.sleep(0)
        pipeline = Pipeline(source, members, subscription)
        stack.callback(pipeline.close)
        pipeline.deliver(2, 100)  # fills the cache of routes
        yield pipeline


def everything(number: int) -> Subscription:
    return frozenset([("trades", "*")])


def a_tenth(number: int) -> Subscription:
    """Ten of the hundred symbols."""
    return frozenset(("trades", symbol) for symbol in SYMBOLS[number % 10 :: 10])


def trade(codec: Codec, number: int) -> dict[str, Any]:
    time: Any = "2023-04-06T11:54:26.838232225Z"
    if codec is MSGPACK:
        time = msgspec.msgpack.Ext(-1, (838232225 << 34 | 1680782066).to_bytes(8, "big"))
    details = {"x": "V", "p": 100.25, "s": 100, "t": time, "c": ["@"], "z": "C"}
    return {"T": "t", "S": SYMBOLS[number % len(SYMBOLS)], "i": number, **details}


@pytest.mark.parametrize(
    ("source", "target", "subscription", "calls"),
    [
        pytest.param(JSON, JSON, everything, 1.2, id="everything"),
        pytest.param(JSON, JSON, a_tenth, 1.2, id="symbols"),
        pytest.param(MSGPACK, MSGPACK, a_tenth, 1.2, id="msgpack"),
        pytest.param(MSGPACK, JSON, a_tenth, 10.5, id="msgpack-to-json"),
        pytest.param(JSON, MSGPACK, a_tenth, 14.2, id="json-to-msgpack"),
    ],
)
def test_calls_for_each_message(
    source: Codec, target: Codec, subscription: Callable[[int], Subscription], calls: float
) -> None:
    with opened(source, target, 10, subscription) as pipeline:
        more = (pipeline.deliver(WAITING, 200) - pipeline.deliver(WAITING, 100)) / (WAITING * 100)
        assert more <= calls, f"{more:.2f} calls a message"


def test_calls_for_each_frame() -> None:
    with opened(JSON, JSON, 1, everything) as pipeline:
        more = (pipeline.deliver(2 * WAITING - 20, 1) - pipeline.deliver(WAITING - 20, 1)) / WAITING
        assert more <= 14.5, f"{more:.2f} calls a frame"


def test_calls_for_a_frame_that_comes_alone() -> None:
    """It wakes the reader, and is delivered before the next one comes."""
    with opened(JSON, JSON, 1, everything) as pipeline:
        calls = max(pipeline.deliver(1, 1) for _ in range(10))
        assert calls <= 56, f"{calls} calls"


def test_calls_for_each_send_to_a_client() -> None:
    with opened(JSON, JSON, 10, everything) as few, opened(JSON, JSON, 110, everything) as many:
        more = (many.deliver(1, 10) - few.deliver(1, 10)) / 100
        assert more <= 4.5, f"{more:.2f} calls a client"


def test_nothing_is_left_to_the_garbage_collector() -> None:
    """What a message needs is freed when it is sent: no cycles, and nothing that stays."""
    with opened(JSON, JSON, 10, a_tenth) as pipeline:
        pipeline.deliver(WAITING, 10)
        before = [generation["collections"] for generation in gc.get_stats()]
        for _ in range(200):
            pipeline.deliver(WAITING, 10)
        assert [generation["collections"] for generation in gc.get_stats()] == before


def test_copies_of_a_frame() -> None:
    """A frame that all receive is copied from the buffer of the socket, and into the frame that all share."""
    with opened(JSON, JSON, 20, everything) as pipeline:
        size = len(JSON.encode([trade(JSON, number) for number in range(400)]))
        tracemalloc.start()
        try:
            pipeline.deliver(1, 400)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            pipeline.deliver(1, 400)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert peak <= UPSTREAM_READ_BYTES + 3.5 * size, f"{peak:,} bytes for a frame of {size:,}"


@pytest.mark.parametrize("subscription", [everything, a_tenth])
def test_frames_that_arrive_together_reach_each_client_in_one_send(
    subscription: Callable[[int], Subscription],
) -> None:
    with opened(JSON, JSON, 20, subscription) as pipeline:
        before = pipeline.sends
        pipeline.deliver(WAITING, 10)
        assert pipeline.sends - before == 20


def test_a_single_frame_reaches_each_client_in_one_send() -> None:
    with opened(JSON, JSON, 20, everything) as pipeline:
        before = pipeline.sends
        for _ in range(3):
            pipeline.deliver(1, 1)
        assert pipeline.sends - before == 60
