"""The work that a message costs on its way from Alpaca's socket to the clients', counted and not timed.

Everything between the two sockets is real; the sockets only count. What is counted are calls, Python's and C's, and
sends: they are the same on every machine, and a step more on the way shows. A bound that a change makes too low is
raised on purpose, with `benchmarks/run.py` beside it to say what the step costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

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
from proxy.upstream.supervisor import FeedSupervisor
from proxy.upstream.websocket import UpstreamConnection

SYMBOLS = [f"S{number}" for number in range(100)]
WAITING = 40  # frames that wait in Alpaca's socket together


class AlpacaSocket:
    """Gives what there is, in one piece."""

    def __init__(self) -> None:
        self.data = b""

    def recv(self, size: int) -> bytes:
        data, self.data = self.data, b""
        return data


class ClientSocket:
    """Takes everything, and counts how often."""

    def __init__(self) -> None:
        self._sock = self
        self.sends = 0

    def setsockopt(self, *_: int) -> None: ...

    def send(self, data: bytes) -> int:
        self.sends += 1
        return len(data)


class Member:
    """A session, as far as routing knows it."""

    def __init__(self, codec: Codec, outboxes: Outboxes) -> None:
        self.name = "momentum"
        self.codec = codec
        self.accepts_unknown = False
        self.socket = ClientSocket()
        connection = ClientConnection(self.socket, None, "127.0.0.1:1")
        opcode = frames.TEXT if codec.text else frames.BINARY
        self.outbox = Outbox(connection, outboxes, opcode=opcode, limit=1 << 20, slow_words=b"")
        self.put: Callable[[bytes, int], None] = self.outbox.put


class Way:
    """From Alpaca's socket to those of so many clients, of which each holds what `hold` says."""

    def __init__(self, source: Codec, members: list[Member], hold: Callable[[int], Subscription]) -> None:
        known = endpoint("iex")
        assert known is not None
        self.members = members
        self.router = Router(known, source)
        self._source = source
        self._alpaca = AlpacaSocket()
        self._connection = UpstreamConnection(lambda *_: None)
        self._connection.sock = cast(Any, self._alpaca)
        login = Login("main", "wss://nowhere", "key", "secret")
        self._upstream = FeedSupervisor(known, login, source, self.router, lambda: 0.0)
        for number, member in enumerate(members):
            self.router.set_subscription(member, hold(number))

    def deliver(self, count: int, batch: int) -> int:
        """So many frames arrive at once; how many calls that takes."""
        opcode = frames.TEXT if self._source.text else frames.BINARY
        messages = [trade(self._source, number) for number in range(batch)]
        self._alpaca.data = frames.encode(opcode, self._source.encode(messages)) * count
        heard, calls = self.router.received, 0

        def note(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            while self.router.received < heard + count * batch:
                self._upstream._take(self._connection.receive())
        finally:
            sys.setprofile(None)
        return calls

    @property
    def sends(self) -> int:
        return sum(member.socket.sends for member in self.members)


@contextmanager
def opened(source: Codec, heard: Codec, clients: int, hold: Callable[[int], Subscription]) -> Iterator[Way]:
    """With writers that wait for something to do, as those of idle sessions do."""
    outboxes = Outboxes(1 << 30)
    members = [Member(heard, outboxes) for _ in range(clients)]
    with ExitStack() as stack:
        for member in members:
            writer = gevent.spawn(member.outbox.run)
            stack.callback(writer.kill)
        gevent.sleep(0)
        way = Way(source, members, hold)
        way.deliver(2, 100)  # routes are found once
        yield way


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
    ("source", "heard", "hold", "calls"),
    [
        pytest.param(JSON, JSON, everything, 1.2, id="everything"),
        pytest.param(JSON, JSON, a_tenth, 1.2, id="symbols"),
        pytest.param(MSGPACK, MSGPACK, a_tenth, 1.2, id="msgpack"),
        pytest.param(MSGPACK, JSON, a_tenth, 10.5, id="msgpack-to-json"),
        pytest.param(JSON, MSGPACK, a_tenth, 14.2, id="json-to-msgpack"),
    ],
)
def test_a_message_takes_few_calls_beside_its_frames(
    source: Codec, heard: Codec, hold: Callable[[int], Subscription], calls: float
) -> None:
    with opened(source, heard, 10, hold) as way:
        more = (way.deliver(WAITING, 200) - way.deliver(WAITING, 100)) / (WAITING * 100)
        assert more <= calls, f"{more:.2f} calls a message"


def test_a_frame_takes_few_calls_beside_its_messages() -> None:
    with opened(JSON, JSON, 1, everything) as way:
        more = (way.deliver(2 * WAITING - 20, 1) - way.deliver(WAITING - 20, 1)) / WAITING
        assert more <= 18.5, f"{more:.2f} calls a frame"


def test_a_client_takes_few_calls_for_each_time_that_it_is_sent_something() -> None:
    with opened(JSON, JSON, 10, everything) as few, opened(JSON, JSON, 110, everything) as many:
        more = (many.deliver(1, 10) - few.deliver(1, 10)) / 100
        assert more <= 5.5, f"{more:.2f} calls a client"


@pytest.mark.parametrize("hold", [everything, a_tenth])
def test_frames_that_wait_together_reach_each_client_in_one_send(hold: Callable[[int], Subscription]) -> None:
    with opened(JSON, JSON, 20, hold) as way:
        before = way.sends
        way.deliver(WAITING, 10)
        assert way.sends - before == 20


def test_a_frame_alone_reaches_each_client_in_one_send() -> None:
    with opened(JSON, JSON, 20, everything) as way:
        before = way.sends
        for _ in range(3):
            way.deliver(1, 1)
        assert way.sends - before == 60
