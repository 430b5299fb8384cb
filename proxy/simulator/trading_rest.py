"""The REST calls that read orders and fills: a request in, a response out; pure.

    GET /v2/orders?status=…&limit=…&after=…&until=…&direction=…&nested=…&symbols=…
    GET /v2/orders/{id}?nested=…
    GET /v2/account/activities/FILL?after=…&until=…&direction=…&page_size=…&page_token=…

As at Alpaca, `after` and `until` are exclusive; for orders they concern the time of submission. With `nested=true` legs
are in the `legs` of their parent alone, and a parent is listed if its own status matches or that of one of its legs.
Parameters that are unknown or empty are ignored. (docs.alpaca.markets, "Get All Orders", "Account Activities")
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qs

from proxy.alpaca import timestamps
from proxy.simulator.account_plan import AccountSlots
from proxy.simulator.conversation import Credentials
from proxy.simulator.order_records import FINAL, OrderRecord, OrderRecords

ORDERS = "/v2/orders"
FILLS = "/v2/account/activities/FILL"
MAX_ORDERS, DEFAULT_ORDERS = 500, 50
MAX_FILLS = 100
MINUTE = 60 * 1_000_000_000
JSON = "application/json; charset=utf-8"

_ORDER = re.compile(f"{ORDERS}/([^/]+)")
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_CODES = {
    401: (40110000, "request is not authorized"),
    404: (40410000, "order not found"),
    405: (40510000, "method not allowed"),
    429: (42910000, "rate limit exceeded"),
    500: (50010000, "internal server error occurred"),
}

JsonObject = dict[str, Any]
Query = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RestResponse:
    """A response: the HTTP status, the body, its type, and headers beside that one."""

    status: int
    body: str
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def is_rest(path: str) -> bool:
    """Return whether a path is one of these calls'."""
    return path in (ORDERS, FILLS) or _ORDER.fullmatch(path) is not None


def json_response(document: object, headers: tuple[tuple[str, str], ...] = ()) -> RestResponse:
    return RestResponse(200, _encode(document), headers=headers)


def error(status: int, headers: tuple[tuple[str, str], ...] = ()) -> RestResponse:
    """Return an error with Alpaca's code and message."""
    return _error(status, *_CODES[status], headers)


def rate_limit_headers(limit: int, remaining: int, reset: int) -> tuple[tuple[str, str], ...]:
    """Return the headers of a rate limit; `reset` is its end in nanoseconds since 1970."""
    seconds = -(-reset // 1_000_000_000)
    values = {"Limit": limit, "Remaining": remaining, "Reset": seconds}
    return tuple((f"X-Ratelimit-{name}", str(value)) for name, value in values.items())


def credentials(headers: Mapping[str, str]) -> Credentials | None:
    """Return the credentials of a request: APCA-API-…, or a Bearer token, which is the secret of the key `oauth`.

    The names of the headers are in lower case.
    """
    key, secret = headers.get("apca-api-key-id"), headers.get("apca-api-secret-key")
    if key is not None and secret is not None:
        return Credentials(key, secret)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return Credentials("oauth", token.strip()) if scheme.lower() == "bearer" else None


class TradingRest:
    """Answers requests from the records. `slots` has the keys, and the plan with its rate limit."""

    def __init__(self, records: OrderRecords, slots: AccountSlots) -> None:
        self._records = records
        self._slots = slots
        self._windows: dict[str, tuple[int, int]] = {}  # key → start of its minute, and the requests in it

    def answer(self, method: str, path: str, query: str, headers: Mapping[str, str], now: int) -> RestResponse:
        """Answer one request. The names of the headers are in lower case; `now` is nanoseconds since 1970."""
        given = credentials(headers)
        if given is None or not self._slots.knows(given.key, given.secret):
            return error(401)
        limit_headers, exceeded = self._count(given.key, now)
        if exceeded:
            return error(429, limit_headers)
        if method not in ("GET", "HEAD"):
            return error(405, limit_headers)
        values = {name: texts[-1] for name, texts in parse_qs(query).items()}
        try:
            document = self._document(path, values)
        except ValueError as invalid:
            return _error(422, 40010001, str(invalid), limit_headers)
        return error(404, limit_headers) if document is None else json_response(document, limit_headers)

    def _count(self, key: str, now: int) -> tuple[tuple[tuple[str, str], ...], bool]:
        """Count a request; return the headers of the rate limit, and whether it is exceeded."""
        limit = self._slots.plan.rest_requests_per_minute
        if limit is None:
            return (), False
        start, used = self._windows.get(key, (now, 0))
        if not 0 <= now - start < MINUTE:
            start, used = now, 0
        used = min(used + 1, limit + 1)
        self._windows[key] = start, used
        return rate_limit_headers(limit, max(0, limit - used), start + MINUTE), used > limit

    def _document(self, path: str, query: Query) -> object:
        """Return the document at a path, or None. Raises ValueError for an invalid parameter."""
        if path == ORDERS:
            return self._orders(query)
        if path == FILLS:
            return self._fills(query)
        match = _ORDER.fullmatch(path)
        nested = _boolean(query, "nested")
        record = None if match is None else self._records.get(match[1])
        return None if record is None else self._shown(record, nested)

    def _orders(self, query: Query) -> list[JsonObject]:
        status = _choice(query, "status", ("open", "closed", "all"), "open")
        limit = _count(query, "limit", MAX_ORDERS, DEFAULT_ORDERS)
        after, until = _moment(query, "after"), _moment(query, "until")
        descending = _choice(query, "direction", ("asc", "desc"), "desc") == "desc"
        nested = _boolean(query, "nested")
        symbols = set(filter(None, query.get("symbols", "").split(",")))

        def matches(record: OrderRecord) -> bool:
            return status == "all" or (record.order["status"] in FINAL) is (status == "closed")

        def listed(record: OrderRecord) -> bool:
            order = record.order
            if symbols and str(order["symbol"]) not in symbols:
                return False
            if not _within(record.submitted, after, until):
                return False
            if not nested:
                return matches(record)
            legs = self._records.legs(order["id"])
            return not self._records.is_leg(order["id"]) and any(map(matches, (record, *legs)))

        records = _directed([record for record in self._records.orders() if listed(record)], descending)
        return [self._shown(record, nested) for record in records[:limit]]

    def _shown(self, record: OrderRecord, nested: bool) -> JsonObject:
        legs = [leg.order for leg in self._records.legs(record.order["id"])] if nested else []
        return {**record.order, "legs": legs or None}

    def _fills(self, query: Query) -> list[JsonObject]:
        size = _count(query, "page_size", MAX_FILLS, MAX_FILLS)
        after, until = _moment(query, "after"), _moment(query, "until")
        descending = _choice(query, "direction", ("asc", "desc"), "desc") == "desc"
        fills = _directed(self._records.fills(), descending)
        if "page_token" in query:
            token = query["page_token"]
            at = next((at for at, fill in enumerate(fills) if fill.activity["id"] == token), None)
            if at is None:
                raise ValueError("page_token is not the id of an activity")
            fills = fills[at + 1 :]
        return [fill.activity for fill in fills if _within(fill.time, after, until)][:size]


def _error(status: int, code: int, message: str, headers: tuple[tuple[str, str], ...]) -> RestResponse:
    return RestResponse(status, _encode({"code": code, "message": message}), headers=headers)


def _encode(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))


def _directed(items: list[T], descending: bool) -> list[T]:
    return items[::-1] if descending else items


def _within(time: int, after: int | None, until: int | None) -> bool:
    return (after is None or time > after) and (until is None or time < until)


def _choice(query: Query, name: str, choices: Sequence[str], default: str) -> str:
    text = query.get(name, default)
    if text not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}")
    return text


def _boolean(query: Query, name: str) -> bool:
    return _choice(query, name, ("true", "false"), "false") == "true"


def _count(query: Query, name: str, most: int, default: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise ValueError(f"{name} must be from 1 to {most}")
    return int(text)


def _moment(query: Query, name: str) -> int | None:
    """Return a time in nanoseconds since 1970; a date is its first moment in UTC."""
    text = query.get(name)
    if text is None:
        return None
    try:
        return timestamps.nanoseconds(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be a date or an RFC 3339 time") from None
