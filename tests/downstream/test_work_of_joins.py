"""The work that a join with thousands of symbols costs, and a leave, counted and not timed.

Everything from the words of a client to its acknowledgement is real; Alpaca and the two sockets are not. What is
counted are lines of Python: each step of a loop is one, a set operation is one however large the sets. A bound that a
change makes too low is raised on purpose, with `benchmarks/run.py joins` to say what it costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import gevent
import pytest

from proxy.alpaca import server_protocol as session
from proxy.alpaca.client_protocol import Confirmed, Login, Phase
from proxy.alpaca.codec import JSON, MSGPACK
from proxy.alpaca.endpoints import endpoint
from proxy.alpaca.server_protocol import ServerProtocol
from proxy.downstream import client_session as sessions
from proxy.downstream.client_session import ClientSession
from proxy.downstream.outbox import Outboxes
from proxy.routing.allowlists import Allowlist, Client, digest
from proxy.routing.router import Router
from proxy.transport.connection import ClientConnection
from proxy.upstream import ack_dispatcher as teller
from proxy.upstream.supervisor import FeedSupervisor
from tests.downstream.test_work import ClientSocket

SYMBOLS = [f"SYM{number:05}" for number in range(8000)]
IEX = endpoint("iex")
assert IEX is not None


def lines(work: Callable[[], object]) -> int:
    """How many lines of Python the work takes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


class Proxy:
    """One feed, and whoever joins it. It is the desk of their conversations, and Alpaca."""

    message_limit = 1 << 20
    default_feed = "iex"

    def __init__(self, allow: Allowlist) -> None:
        assert IEX is not None
        self.outboxes = Outboxes(1 << 30)
        self.client = Client("all", "all", digest("all"), {"default": "main"}, allow, outbox=1 << 30)
        self.alpaca = FeedSupervisor(IEX, Login("main", "", "", ""), MSGPACK, Router(IEX, MSGPACK), self.clock)
        self.alpaca.phase = Phase.LIVE
        self.alpaca._greenlet = gevent.Greenlet()  # so that no connection is made

    def identify(self, conversation: ClientSession, key: str, secret: str) -> Client | int:
        return self.client

    def auth_delay(self, conversation: ClientSession) -> float:
        return 0.0

    def upstream(self, client: Client, feed: str) -> FeedSupervisor:
        return self.alpaca

    def clock(self) -> float:
        return 0.0

    def confirm(self) -> None:
        gevent.sleep(0)  # what is asked of Alpaca is asked in a turn of its own
        while self.alpaca.reconciler.request is not None:
            self.alpaca._handle(Confirmed())
            gevent.sleep(0)

    def join(self, symbols: list[str] = SYMBOLS) -> ClientSession:
        assert IEX is not None
        connection = ClientConnection(ClientSocket(), None, "127.0.0.1:1")
        conversation = ClientSession(connection, ServerProtocol(IEX, JSON), self)
        conversation._message(JSON.encode({"action": "auth", "key": "all", "secret": "all"}))
        conversation._message(JSON.encode({"action": "subscribe", "trades": symbols}))
        self.confirm()
        assert len(conversation.subscribers[0].held) == len(symbols)
        return conversation

    def leave(self, conversation: ClientSession) -> None:
        conversation.subscribers[0].leave()
        self.confirm()


@pytest.fixture(autouse=True)
def one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in the greenlet that counts, and nothing is remembered of other tests."""
    session._changes.clear()
    session._acknowledgements.clear()
    monkeypatch.setattr(sessions, "LONG_MESSAGE", 1 << 30)
    monkeypatch.setattr(teller, "SHORT", 1 << 30)


@pytest.mark.parametrize(
    ("entries", "others", "symbols", "joining", "leaving"),
    [
        pytest.param(["*"], 0, SYMBOLS, 8.8, 6.5, id="first"),
        pytest.param(["*"], 3, SYMBOLS, 0.2, 0.02, id="like-others"),
        pytest.param(["*"], 3, SYMBOLS[::-1], 0.2, 0.02, id="like-others-in-words-of-its-own"),
        pytest.param(["*"], 3, SYMBOLS[1:], 2.2, 0.02, id="almost-like-others"),
        pytest.param(SYMBOLS, 3, SYMBOLS, 1.2, 0.02, id="by-name"),
    ],
)
def test_a_join_and_a_leave_loop_little(
    entries: list[str], others: int, symbols: list[str], joining: float, leaving: float
) -> None:
    proxy = Proxy(Allowlist({"iex": {"trades": entries}}))
    proxy.leave(proxy.join())  # topics are made once
    for _ in range(others):
        proxy.join()
    found: list[ClientSession] = []
    took = lines(lambda: found.append(proxy.join(symbols))) / len(SYMBOLS)
    assert took <= joining, f"{took:.2f} lines for each topic of a join"
    took = lines(lambda: proxy.leave(found[0])) / len(SYMBOLS)
    assert took <= leaving, f"{took:.2f} lines for each topic of a leave"
