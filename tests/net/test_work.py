"""The work that a message costs on its way from Alpaca's socket to the clients', counted and not timed.

Everything between the two sockets is real; the sockets only count. What is counted are calls, Python's and C's: they
are the same on every machine, and a step more on the way shows. A bound that a change makes too low is raised on
purpose, with `benchmarks/run.py` beside it to say what the step costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest

from proxy.net import frames
from proxy.net.connection import ClientConnection
from proxy.net.outbox import Outbox, Outboxes
from proxy.net.upstream import Upstream
from proxy.net.websocket import UpstreamConnection
from proxy.protocol.codec import JSON, MSGPACK, Codec
from proxy.protocol.feed import Login
from proxy.protocol.feeds import endpoint
from proxy.protocol.topics import Subscription
from proxy.routing.router import Router

ROUNDS = 40
SYMBOLS = [f"S{number}" for number in range(100)]
EVERYTHING: Subscription = frozenset([("trades", "*")])


class AlpacaSocket:
    """Gives what there is in one piece."""

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
        self.bytes = 0

    def setsockopt(self, *_: int) -> None: ...

    def send(self, data: bytes) -> int:
        self.sends += 1
        self.bytes += len(data)
        return len(data)


class Member:
    """A session, as far as routing knows it."""

    def __init__(self, codec: Codec, outboxes: Outboxes) -> None:
        self.name = "momentum"
        self.codec = codec
        self.curious = False
        self.socket = ClientSocket()
        connection = ClientConnection(self.socket, None, "127.0.0.1:1")
        opcode = frames.TEXT if codec.text else frames.BINARY
        self.outbox = Outbox(connection, outboxes, opcode=opcode, limit=1 << 20, slow_words=b"")
        self.put: Callable[[bytes, int], None] = self.outbox.put


class Path:
    """The whole way, with so many clients."""

    def __init__(self, codec: Codec, members: list[Member], hold: Callable[[int], Subscription]) -> None:
        known = endpoint("iex")
        assert known is not None
        self.members = members
        self._codec = codec
        self._alpaca: Any = AlpacaSocket()
        self._connection = UpstreamConnection(lambda *_: None)
        self._connection.sock = self._alpaca
        router = Router(known, codec)
        self._upstream = Upstream(known, Login("main", "wss://nowhere", "k", "s"), codec, router, lambda: 0.0)
        for number, member in enumerate(members):
            router.hold(member, hold(number))

    def deliver(self, batches: list[list[dict[str, Any]]]) -> None:
        """These messages arrive, a frame for each list."""
        opcode = frames.TEXT if self._codec.text else frames.BINARY
        self._alpaca.data = b"".join(frames.encode(opcode, self._codec.encode(batch)) for batch in batches)
        left = sum(map(len, batches))
        heard = self._upstream.router.received
        while self._upstream.router.received < heard + left:
            self._upstream._take(self._connection.receive())

    def calls(self, batches: list[list[dict[str, Any]]]) -> int:
        """How many calls that takes, once everything has been seen before."""
        self.deliver(batches)
        count = 0

        def note(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        opcode = frames.TEXT if self._codec.text else frames.BINARY
        self._alpaca.data = b"".join(frames.encode(opcode, self._codec.encode(batch)) for batch in batches)
        sys.setprofile(note)
        try:
            while self._alpaca.data or self._connection._at < len(self._connection._data):
                self._upstream._take(self._connection.receive())
        finally:
            sys.setprofile(None)
        return count


@contextmanager
def path(codec: Codec, clients: int, hold: Callable[[int], Subscription], heard: Codec | None = None) -> Iterator[Path]:
    """With writers that wait for something to do, as they do in an idle session."""
    outboxes = Outboxes(1 << 30)
    members = [Member(heard or codec, outboxes) for _ in range(clients)]
    with ExitStack() as stack:
        for member in members:
            writer = gevent.spawn(member.outbox.run)
            stack.callback(writer.kill)
        gevent.sleep(0)
        yield Path(codec, members, hold)


def everything(number: int) -> Subscription:
    return EVERYTHING


def tenth(number: int) -> Subscription:
    """Ten symbols, others than the neighbours'."""
    return frozenset(("trades", symbol) for symbol in SYMBOLS[number % 10 :: 10])


def trades(count: int) -> list[dict[str, Any]]:
    details = {"x": "V", "p": 100.25, "s": 100, "c": ["@"], "z": "C"}
    return [
        {"T": "t", "S": SYMBOLS[number % 100], "i": number, **details, "t": _time(codec=JSON)}
        for number in range(count)
    ]


def _time(codec: Codec) -> Any:
    return "2023-04-06T11:54:26.838232225Z"


def growth(way: Path, batch: Callable[[int], list[list[dict[str, Any]]]], more: int) -> float:
    """The calls that `more` messages more make, each."""
    return (way.calls(batch(ROUNDS + more)) - way.calls(batch(ROUNDS))) / more
