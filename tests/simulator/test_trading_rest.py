"""REST calls that read orders and fills, without a connection."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.alpaca import timestamps
from proxy.simulator.account_plan import AccountPlan, AccountSlots
from proxy.simulator.order_records import OrderRecords
from proxy.simulator.trading_rest import MINUTE, RestResponse, TradingRest, is_rest

NOW = timestamps.nanoseconds("2026-03-02T15:00:00Z")
SECOND = 1_000_000_000
KEYS = {"apca-api-key-id": "key", "apca-api-secret-key": "secret"}
ORDERS = "/v2/orders"
FILLS = "/v2/account/activities/FILL"


@pytest.fixture
def records() -> OrderRecords:
    """Records of orders `1` to `5`, a second apart: new, canceled, a bracket with legs `3a` and `3b`, filled, new."""
    records = OrderRecords()
    records.place({"id": "1", "symbol": "AAPL"}, (), NOW)
    records.add({"event": "canceled", "order": {"id": "2", "symbol": "MSFT"}}, NOW + SECOND)
    bracket = {"id": "3", "symbol": "AAPL", "status": "filled"}
    records.place(bracket, [{"id": "3a", "symbol": "AAPL"}, {"id": "3b", "status": "canceled"}], NOW + 2 * SECOND)
    records.add({"event": "fill", "order": {"id": "4", "symbol": "BTC/USD"}}, NOW + 3 * SECOND)
    records.place({"id": "5", "symbol": "SPY"}, (), NOW + 4 * SECOND)
    return records


def make(records: OrderRecords, limit: int | None = None) -> TradingRest:
    plan = AccountPlan(rest_requests_per_minute=limit)
    return TradingRest(records, AccountSlots({"key": "secret", "other": "secret", "oauth": "token"}, plan, lambda: 0.0))


def ask(records: OrderRecords, path: str, query: str = "") -> tuple[int, Any]:
    response = make(records).answer("GET", path, query, KEYS, NOW)
    return response.status, json.loads(response.body)


def at(seconds: float) -> str:
    return timestamps.rfc3339(NOW + int(seconds * SECOND))


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", "5 3a 1"),
        ("status=open", "5 3a 1"),
        ("status=closed", "4 3b 3 2"),
        ("status=all", "5 4 3b 3a 3 2 1"),
        ("status=all&direction=asc", "1 2 3 3a 3b 4 5"),
        ("status=all&limit=2", "5 4"),
        ("status=all&limit=2&direction=asc", "1 2"),
        (f"status=all&after={at(3)}", "5"),
        (f"status=all&after={at(2.5)}", "5 4"),
        (f"status=all&until={at(1)}", "1"),
        (f"status=all&after={at(0)}&until={at(2)}", "2"),
        ("status=all&after=2026-03-03", ""),
        ("status=all&symbols=AAPL,MSFT", "3a 3 2 1"),
        ("status=all&symbols=BTC/USD&unknown=1&after=", "4"),
        ("status=all&nested=false", "5 4 3b 3a 3 2 1"),
        ("nested=true", "5 3 1"),
        ("nested=true&status=closed", "4 3 2"),
        ("nested=true&status=all", "5 4 3 2 1"),
        ("nested=true&status=all&limit=3", "5 4 3"),
    ],
)
def test_orders(records: OrderRecords, query: str, ids: str) -> None:
    status, orders = ask(records, ORDERS, query)
    assert status == 200
    assert [order["id"] for order in orders] == ids.split()
    legs = {order["id"]: [leg["id"] for leg in order["legs"]] for order in orders if order["legs"]}
    assert legs == ({"3": ["3a", "3b"]} if "nested=true" in query else {})


def test_one_order(records: OrderRecords) -> None:
    assert ask(records, f"{ORDERS}/3")[1]["legs"] is None
    parent = ask(records, f"{ORDERS}/3", "nested=true")[1]
    leg = ask(records, f"{ORDERS}/3a", "nested=true")[1]
    assert parent["legs"][0] == leg
    assert leg["legs"] is None
    assert ask(records, f"{ORDERS}/7") == (404, {"code": 40410000, "message": "order not found"})


def fill_thrice(records: OrderRecords) -> list[str]:
    """Add three fills at seconds 10 to 12; return the ids of these and of the one before."""
    for number in (10, 11, 12):
        update = {"event": "partial_fill", "order": {"id": "5"}, "qty": "1", "timestamp": at(number)}
        records.add(update, NOW)
    return [fill.activity["id"] for fill in records.fills()]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "3210"),
        ("direction=asc", "0123"),
        ("direction=asc&page_size=2", "01"),
        (f"after={at(10)}", "32"),
        (f"until={at(11)}", "10"),
        (f"after={at(3)}&until={at(12)}&direction=asc", "12"),
    ],
)
def test_fills(records: OrderRecords, query: str, expected: str) -> None:
    ids = fill_thrice(records)
    activities = ask(records, FILLS, query)[1]
    assert [each["id"] for each in activities] == [ids[int(number)] for number in expected]


@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_pages_of_fills(records: OrderRecords, direction: str) -> None:
    ids = fill_thrice(records)
    pages, token = [], ""
    while page := ask(records, FILLS, f"direction={direction}&page_size=3&page_token={token}")[1]:
        pages.append([each["id"] for each in page])
        token = page[-1]["id"]
    assert [len(page) for page in pages] == [3, 1]
    assert [fill_id for page in pages for fill_id in page] == (ids if direction == "asc" else ids[::-1])


@pytest.mark.parametrize(
    ("path", "query", "message"),
    [
        (ORDERS, "status=done", "status must be one of open, closed, all"),
        (ORDERS, "limit=501", "limit must be from 1 to 500"),
        (ORDERS, "limit=0", "limit must be from 1 to 500"),
        (ORDERS, "limit=-1", "limit must be from 1 to 500"),
        (ORDERS, "after=yesterday", "after must be a date or an RFC 3339 time"),
        (ORDERS, "until=2026-13-01", "until must be a date or an RFC 3339 time"),
        (ORDERS, "direction=up", "direction must be one of asc, desc"),
        (f"{ORDERS}/1", "nested=maybe", "nested must be one of true, false"),
        (FILLS, "page_size=101", "page_size must be from 1 to 100"),
        (FILLS, "page_token=1", "page_token is not the id of an activity"),
    ],
)
def test_invalid_parameters(records: OrderRecords, path: str, query: str, message: str) -> None:
    assert ask(records, path, query) == (422, {"code": 40010001, "message": message})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (KEYS, 200),
        ({"authorization": "Bearer token"}, 200),
        ({}, 401),
        (KEYS | {"apca-api-secret-key": "wrong"}, 401),
        ({"apca-api-key-id": "key"}, 401),
        ({"authorization": "Bearer secret"}, 401),
        ({"authorization": "Basic a2V5OnNlY3JldA=="}, 401),
    ],
)
def test_authentication(records: OrderRecords, headers: dict[str, str], status: int) -> None:
    response = make(records).answer("GET", ORDERS, "", headers, NOW)
    assert response.status == status
    if status == 401:
        assert json.loads(response.body) == {"code": 40110000, "message": "request is not authorized"}


def test_the_rate_limit(records: OrderRecords) -> None:
    rest = make(records, limit=2)

    def ask(now: int, key: str = "key") -> RestResponse:
        return rest.answer("GET", ORDERS, "", KEYS | {"apca-api-key-id": key}, now)

    first, _, third = (ask(NOW + number * SECOND) for number in range(3))
    assert dict(first.headers) == {
        "X-Ratelimit-Limit": "2",
        "X-Ratelimit-Remaining": "1",
        "X-Ratelimit-Reset": str((NOW + MINUTE) // SECOND),
    }
    assert third.status == 429
    assert json.loads(third.body) == {"code": 42910000, "message": "rate limit exceeded"}
    assert dict(third.headers) == dict(first.headers) | {"X-Ratelimit-Remaining": "0"}
    assert ask(NOW, key="other").status == 200  # each account has its own
    assert ask(NOW + MINUTE - 1).status == 429
    assert ask(NOW + MINUTE).status == 200
    assert make(records).answer("GET", ORDERS, "", KEYS, NOW).headers == ()


def test_orders_are_only_read(records: OrderRecords) -> None:
    assert make(records).answer("POST", ORDERS, "", KEYS, NOW).status == 405


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (ORDERS, True), (f"{ORDERS}/1", True), (FILLS, True), (f"{ORDERS}/", False), (f"{ORDERS}/1/2", False),
        ("/v2/positions", False), ("/v2/iex", False),
    ],
)  # fmt: skip
def test_paths(path: str, expected: bool) -> None:
    assert is_rest(path) is expected
