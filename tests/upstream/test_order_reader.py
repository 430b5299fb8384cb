"""The reader of Alpaca's records, and its REST client, with a server whose answers are functions of the test."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer

from proxy.alpaca import timestamps
from proxy.alpaca.client_protocol import Login
from proxy.alpaca.codec import JSON
from proxy.alpaca.endpoints import endpoint
from proxy.gateway import GC_THRESHOLDS
from proxy.routing.allowlists import OrderPatterns
from proxy.routing.order_history import OrderHistory
from proxy.routing.order_ownership import Orders
from proxy.routing.order_router import OrderRouter, Recovery
from proxy.upstream import trading_rest
from proxy.upstream.order_reader import CALLS, SINGLE_ORDERS, CallBudget, OrderReader
from proxy.upstream.trading_rest import RestError, TradingRest
from tests.harness import wait_for
from tests.routing.test_order_router import Member

UPDATES = frozenset([("trade_updates", "*")])
HUB_SECONDS = 0.25  # without the yields it is seconds; other programs may hold the processor for a while

Answer = Callable[[str], Any]


class Api:
    """A REST API: `answer(path)` returns a document, or a status and a body; `paths` are those that were asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        self.answers: dict[str, Any] = {"/v2/orders": [], "/v2/account/activities/FILL": []}
        self._server = WSGIServer(("127.0.0.1", 0), self._serve, log=None)
        self._server.start()

    @property
    def login(self) -> Login:
        return Login("main", f"ws://127.0.0.1:{self._server.server_port}/stream", "key", "secret")

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        path = environ["PATH_INFO"]
        self.paths.append(path)
        answer = self.answers.get(path, (404, b'{"code":40410000,"message":"order not found"}'))
        if callable(answer):
            answer = answer(environ["QUERY_STRING"])
        status, body = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())
        start(f"{status} Status", [("Content-Type", "application/json"), *self.headers.items()])
        return [body]

    def close(self) -> None:
        self._server.stop(timeout=1)


class Account:
    """A router with a listening member, its reader, and what became of both."""

    def __init__(self, login: Login) -> None:
        served = endpoint("trading")
        assert served is not None
        orders = Orders(lambda: {"alpha": patterns})
        patterns = OrderPatterns(["alpha*"])
        history = OrderHistory(lambda body, now: orders.known_receivers(body), time.time_ns)
        self.router = OrderRouter(served, orders, time.monotonic, history)
        self.frames: list[bytes] = []
        self.closed: list[Recovery] = []
        self.reader = OrderReader(self.router, login, time.monotonic, self._send, self.closed.append)
        self.router.reader = self.reader
        self.router.acked_changed(UPDATES)
        self.router.set_subscription(Member("alpha"), UPDATES)
        wait_for(self.reader._lists_read.is_set)

    def _send(self) -> None:
        self.frames += [delivery.payload for delivery in self.router.flush()]

    @property
    def sent(self) -> list[dict[str, Any]]:
        """The updates that were sent."""
        return [json.loads(frame)["data"] for frame in self.frames]

    def outage(self) -> None:
        """Lose the stream, and have it back; wait for the end of the recovery."""
        self.router.acked_changed(frozenset())
        self.router.acked_changed(UPDATES)
        wait_for(lambda: self.router.recovery is None, "the recovery has not ended")
        gevent.sleep(0)


def order(order_id: str, **more: Any) -> dict[str, Any]:
    now = timestamps.rfc3339(time.time_ns())
    return {"id": order_id, "client_order_id": f"alpha-{order_id}", "status": "new", "submitted_at": now, **more}


def fill(order_id: str, quantity: str) -> dict[str, Any]:
    now = timestamps.rfc3339(time.time_ns())
    more = {"transaction_time": now, "price": "1", "qty": quantity, "order_status": "filled"}
    return {"id": f"{now}::{order_id}", "order_id": order_id, "type": "fill", "cum_qty": quantity, **more}


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.close()


@pytest.fixture
def account(api: Api) -> Iterator[Account]:
    account = Account(api.login)
    yield account
    account.reader.stop()


def longest_stop(during: Callable[[], Any]) -> float:
    """The longest time in seconds for which no other greenlet ran; the garbage collector is set as in the product."""
    stops: list[float] = []
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)

    def watch() -> None:
        last = time.monotonic()
        while True:
            gevent.sleep(0.001)
            stops.append(time.monotonic() - last)
            last = time.monotonic()

    watcher = gevent.spawn(watch)
    gevent.sleep(0.01)
    try:
        during()
    finally:
        gevent.sleep(0.01)
        watcher.kill()
        gc.set_threshold(*before)
        gc.unfreeze()
    return max(stops)


def test_a_fill_that_only_the_order_shows_yet_is_awaited(api: Api, account: Account) -> None:
    now = timestamps.rfc3339(time.time_ns())
    api.answers["/v2/orders"] = [order("a", status="filled", filled_qty="10", filled_at=now)]
    fills = iter([[], [], [fill("a", "10")]])
    api.answers["/v2/account/activities/FILL"] = lambda query: next(fills)
    account.outage()
    assert [(data["event"], data["order"]["filled_qty"]) for data in account.sent] == [("fill", "10")]
    assert account.closed == []


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([order("a", status="canceled")], "an unknown time"),
        ([order(str(number)) for number in range(501)], "too long"),
        ([order("a", legs=[order(str(number)) for number in range(64)])], "too many legs"),
        ([order("a", note="x" * 65536)], "too large"),
        ([7], "no order"),
        ({"orders": []}, "no list"),
        ((200, b"[1,"), "no JSON"),
        ((200, b""), "empty"),
        ((302, b"[]"), "a redirect"),
    ],
)
def test_records_in_another_form_end_the_sessions(api: Api, account: Account, records: Any, why: str) -> None:
    api.answers["/v2/orders"] = records
    account.outage()
    assert len(account.closed) == 1, why
    assert account.sent == []


def test_an_open_order_that_is_unknown_at_alpaca_may_have_ended_unseen(api: Api, account: Account) -> None:
    account.router.orders.learn(JSON.fields(json.dumps(order("a")).encode()), 0.0)
    account.outage()
    assert "/v2/orders/a" in api.paths
    assert len(account.closed) == 1


def test_an_error_while_updates_are_sent_ends_the_sessions(
    api: Api, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timestamps.rfc3339(time.time_ns())
    api.answers["/v2/orders"] = [order("a", status="canceled", canceled_at=now)]
    monkeypatch.setattr(account.router, "_gather", None)
    account.router.acked_changed(frozenset())
    account.router.acked_changed(UPDATES)
    wait_for(lambda: account.closed, "the sessions were not closed")


def test_no_redirect_is_followed_with_the_key(api: Api) -> None:
    other = Api()
    api.answers["/v2/orders"] = (307, b"")
    api.headers["Location"] = f"http://127.0.0.1:{other._server.server_port}/v2/orders"
    with pytest.raises(RestError, match="307"):
        TradingRest(api.login).get("/v2/orders")
    assert other.paths == []
    other.close()


@pytest.mark.parametrize(
    ("ahead", "offset"), [(3600, 3600.0), (-3600, -3600.0), (0, 0.0), (40 * 365 * 86_400, 0.0)], ids=str
)
def test_the_clock_of_the_answers_is_alpacas(api: Api, ahead: int, offset: float) -> None:
    stamp = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + ahead))
    api.headers["Date"] = stamp
    rest = TradingRest(api.login)
    rest.get("/v2/orders")
    assert rest.clock_offset / 1e9 == pytest.approx(offset, abs=1.5)


def endless(head: bytes, chunk: bytes) -> StreamServer:
    def serve(sock: Any, _: object) -> None:
        try:
            sock.sendall(head)
            while True:
                sock.sendall(chunk)
        except OSError:
            pass

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    return server


@pytest.mark.parametrize(
    ("head", "chunk"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n[\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", b"[" * 65536),
        (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 65536),
    ],
    ids=["continue", "trailers", "chunks", "body", "header"],
)
def test_an_answer_without_an_end_costs_bounded_bytes_and_stops_nothing(head: bytes, chunk: bytes) -> None:
    server = endless(head, chunk)
    rest = TradingRest(Login("main", f"ws://127.0.0.1:{server.server_port}/stream", "key", "secret"))

    def read() -> None:
        with pytest.raises(RestError):
            rest.get("/v2/orders")

    began = time.monotonic()
    assert longest_stop(read) < HUB_SECONDS
    assert time.monotonic() - began < trading_rest.ANSWER_SECONDS + 1
    server.stop(timeout=1)


def test_thousands_of_records_do_not_stop_the_hub(api: Api, account: Account) -> None:
    """A recovery of 2,500 orders with legs that were canceled: each of them is sent."""
    now = timestamps.rfc3339(time.time_ns())
    ended = {"status": "canceled", "canceled_at": now, "text": "x" * 1000}
    orders = [
        order(str(n), **ended, submitted_at=timestamps.rfc3339(10**18 - n * 10**6), legs=[order(f"{n}-leg", **ended)])
        for n in range(2_500)
    ]

    pages = iter([json.dumps(orders[at : at + 500]).encode() for at in range(0, len(orders) + 1, 500)])
    api.answers["/v2/orders"] = lambda query: (200, next(pages) if "status=all" in query else b"[]")
    assert longest_stop(account.outage) < HUB_SECONDS
    assert account.closed == []
    assert len(account.sent) == 5_000


def test_the_budget_of_calls() -> None:
    now = 0.0
    budget = CallBudget(lambda: now)
    singles = [budget.take(single=True) for _ in range(SINGLE_ORDERS + 1)]
    assert singles == [True] * SINGLE_ORDERS + [False]
    assert not budget.take(reserve=CALLS - SINGLE_ORDERS)
    others = [budget.take() for _ in range(CALLS - SINGLE_ORDERS + 1)]
    assert others == [True] * (CALLS - SINGLE_ORDERS) + [False]
    now = 59.9
    assert not budget.has()
    now = 60.0
    assert budget.take(single=True)
