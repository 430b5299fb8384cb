"""The work for a subscribe request of thousands of symbols, and for a leave.

It is counted instead of timed. Everything from the client's request to its acknowledgement is real; Alpaca and the
sockets are replaced. The tests count executed lines of Python: each iteration of a loop counts, a set operation is one
line, however large the sets. Raise a bound only on purpose, after `benchmarks/run.py joins` has shown the cost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import gevent
import pytest

from proxy.alpaca import server_protocol
from proxy.alpaca.client_protocol import Confirmed, Login, Phase
from proxy.alpaca.codec import JSON, MSGPACK
from proxy.alpaca.endpoints import endpoint
from proxy.alpaca.server_protocol import ServerProtocol
from proxy.downstream.client_session import ClientSession
from proxy.downstream.hub_budget import HubBudget
from proxy.downstream.outbox import Outboxes
from proxy.routing.allowlists import Allowlist, Client, digest
from proxy.routing.router import Router
from proxy.transport.connection import ClientConnection
from proxy.upstream import ack_dispatcher
from proxy.upstream.supervisor import FeedSupervisor
from tests.downstream.test_work import ClientSocket

SYMBOLS = [f"SYM{number:05}" for number in range(8000)]
IEX = endpoint("iex")
assert IEX is not None


def lines(work: Callable[[], object]) -> int:
    """Return the number of lines of Python that `work` executes."""
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
    """One feed and its sessions.

    It is their `ClientHost`, and it confirms requests in place of Alpaca.
    """

    message_limit = 1 << 20
    default_feed = "iex"

    def __init__(self, allow: Allowlist) -> None:
        assert IEX is not None
        self.outboxes = Outboxes(1 << 30)
        self.client = Client("all", "all", digest("all"), {"default": "main"}, allow, outbox=1 << 30)
        self.supervisor = FeedSupervisor(IEX, Login("main", "", "", ""), MSGPACK, Router(IEX, MSGPACK), self.clock)
        self.supervisor.phase = Phase.LIVE
        self.supervisor._greenlet = gevent.Greenlet()  # keeps the supervisor from connecting

    def identify(self, session: ClientSession, key: str, secret: str) -> Client | int:
        return self.client

    def budget(self, client: str) -> HubBudget:
        return HubBudget(1, self.clock)

    def auth_delay(self, session: ClientSession) -> float:
        return 0.0

    def upstream(self, client: Client, feed: str) -> FeedSupervisor:
        return self.supervisor

    def clock(self) -> float:
        return 0.0

    def confirm(self) -> None:
        gevent.sleep(0)  # the request to Alpaca is sent by a greenlet of its own
        while self.supervisor.reconciler.request is not None:
            self.supervisor._handle(Confirmed())
            gevent.sleep(0)

    def join(self, symbols: list[str] = SYMBOLS) -> ClientSession:
        assert IEX is not None
        connection = ClientConnection(ClientSocket(), None, "127.0.0.1:1")
        session = ClientSession(connection, ServerProtocol(IEX, JSON), self)
        session._message(JSON.encode({"action": "auth", "key": "all", "secret": "all"}))
        session._message(JSON.encode({"action": "subscribe", "trades": symbols}))
        self.confirm()
        assert len(session.subscribers[0].held) == len(symbols)
        return session

    def leave(self, session: ClientSession) -> None:
        session.subscribers[0].leave()
        self.confirm()


@pytest.fixture(autouse=True)
def single_greenlet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do all work in the greenlet that counts it, and begin with empty caches."""
    server_protocol._changes.clear()
    server_protocol._acknowledgements.clear()
    monkeypatch.setattr(ack_dispatcher, "MAX_TOPICS_AT_ONCE", 1 << 30)


@pytest.mark.parametrize(
    ("entries", "others", "symbols", "joining", "leaving"),
    [
        pytest.param(["*"], 0, SYMBOLS, 8.8, 6.5, id="first"),
        pytest.param(["*"], 3, SYMBOLS, 0.2, 0.02, id="like-others"),
        pytest.param(["*"], 3, SYMBOLS[::-1], 0.2, 0.02, id="like-others-in-another-order"),
        pytest.param(["*"], 3, SYMBOLS[1:], 2.2, 0.02, id="almost-like-others"),
        pytest.param(SYMBOLS, 3, SYMBOLS, 1.2, 0.02, id="by-name"),
    ],
)
def test_lines_for_each_topic_of_a_join_and_a_leave(
    entries: list[str], others: int, symbols: list[str], joining: float, leaving: float
) -> None:
    proxy = Proxy(Allowlist({"iex": {"trades": entries}}))
    proxy.leave(proxy.join())  # fills the cache of topics
    for _ in range(others):
        proxy.join()
    joined: list[ClientSession] = []
    count = lines(lambda: joined.append(proxy.join(symbols))) / len(SYMBOLS)
    assert count <= joining, f"{count:.2f} lines for each topic of a join"
    count = lines(lambda: proxy.leave(joined[0])) / len(SYMBOLS)
    assert count <= leaving, f"{count:.2f} lines for each topic of a leave"
