"""What Alpaca's REST API says of orders, and the order updates that follow from it.

Orders and fills are listed page by page (docs.alpaca.markets, "Orders" and "Account Activities"): `after` and `until`
of orders are times of submission, so an old order that changed lately is found by its id alone, or by its fills.

A record shows what has happened to an order, but not every state that it passed through: fills, with their own price
and quantity, and the final states. Updates are made of these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import NamedTuple
from urllib.parse import quote, urlencode

from proxy.alpaca import timestamps
from proxy.alpaca.codec import JSON, Raw

ORDERS_PER_PAGE = 500
FILLS_PER_PAGE = 100
MAX_DIGITS = 64  # characters of a quantity that is read

Fields = Mapping[str, Raw]
Key = tuple[str, "Decimal | str"]
"""What an update tells: an order's id, and the quantity that is filled so far or the event."""

FILL_EVENTS = ("fill", "partial_fill")
# The states that an order's record shows, which are the names of their events, and the field with the time of each.
_TIMES = {
    "canceled": "canceled_at",
    "expired": "expired_at",
    "replaced": "replaced_at",
    "rejected": "failed_at",
    "done_for_day": "updated_at",
}


class RecordedUpdate(NamedTuple):
    """An update that follows from records.

    `time` is Alpaca's, in nanoseconds since 1970, `data` the update as on the stream, and `made_at` the time at which
    its order was created, 0 if that is unknown.
    """

    key: Key
    time: int
    data: bytes
    made_at: int


class Fill(NamedTuple):
    """A fill among the account's activities; `id` is the page token after it."""

    id: str
    order_id: str
    time: int
    fields: Fields


def orders_path(status: str, *, after: int | None = None, until: int | None = None, symbol: str = "") -> str:
    """Return the path of one page of orders, the newest first; times in nanoseconds since 1970."""
    query = {"status": status, "limit": str(ORDERS_PER_PAGE), "direction": "desc", "nested": "true"}
    if after is not None:
        query["after"] = timestamps.rfc3339(after)
    if until is not None:
        query["until"] = timestamps.rfc3339(until)
    if symbol:
        query["symbols"] = symbol
    return f"/v2/orders?{urlencode(query)}"


def order_path(order_id: str) -> str:
    """Return the path of one order with its legs."""
    return f"/v2/orders/{quote(order_id, safe='')}?nested=true"


def fills_path(since: int, page_token: str = "") -> str:
    """Return the path of one page of fills since a time in nanoseconds since 1970, the oldest first."""
    query = {"after": timestamps.rfc3339(since), "direction": "asc", "page_size": str(FILLS_PER_PAGE)}
    if page_token:
        query["page_token"] = page_token
    return f"/v2/account/activities/FILL?{urlencode(query)}"


def items(body: bytes) -> list[Raw]:
    """Return the undecoded items of a page. Raises Malformed if it is not an array."""
    return JSON.split(body)[0]


def order_of(value: Raw | bytes) -> Fields | None:
    """Return the fields of an order's record; None if it is something else."""
    fields = JSON.fields_of(value)
    return fields if fields is not None and JSON.text_of(fields.get("id")) else None


def fill_of(value: Raw | bytes) -> Fill | None:
    """Return an activity that is a fill; None for anything else."""
    fields = JSON.fields_of(value)
    if fields is None or JSON.text_of(fields.get("type")) not in FILL_EVENTS or quantity(fields.get("cum_qty")) is None:
        return None
    identity, order_id = JSON.text_of(fields.get("id")), JSON.text_of(fields.get("order_id"))
    time = time_of(fields.get("transaction_time"))
    return Fill(identity, order_id, time, fields) if identity and order_id and time is not None else None


def with_legs(order: Fields) -> Iterator[Fields]:
    """Yield an order and its legs, which may have legs of their own."""
    pending = [order]
    while pending:
        fields = pending.pop()
        yield fields
        pending += [leg for value in JSON.items_of(fields.get("legs")) if (leg := order_of(value)) is not None]


def key_of(event: str | None, order: Fields) -> Key | None:
    """Return what an update tells of its order; None if that cannot be told."""
    order_id = JSON.text_of(order.get("id"))
    if not order_id or not event:
        return None
    if event not in FILL_EVENTS:
        return order_id, event
    filled = quantity(order.get("filled_qty"))
    return None if filled is None else (order_id, filled)


def quantity(value: Raw | None) -> Decimal | None:
    """Return a quantity, which is a text or a number; None for anything else."""
    text = JSON.text_of(value)
    if text is None:
        text = bytes(value or b"").decode("ascii", "replace")
    try:
        number = Decimal(text) if len(text) <= MAX_DIGITS else None
    except InvalidOperation:
        return None
    return number if number is not None and number.is_finite() else None


def time_of(value: Raw | None) -> int | None:
    """Return a time in nanoseconds since 1970; None if it is missing or not RFC 3339."""
    try:
        return timestamps.nanoseconds(JSON.text_of(value) or "")
    except (ValueError, OverflowError):
        return None


def filled(fill: Fill, order: Fields) -> RecordedUpdate | None:
    """Return the update of a fill: its order as it was then, as far as the records show."""
    fields = fill.fields
    changed = {"filled_qty": "cum_qty", "status": "order_status"}
    then = {**order, **{name: fields[source] for name, source in changed.items() if source in fields}}
    event = JSON.text_of(fields["type"])
    details = {name: fields[name] for name in ("price", "qty") if name in fields}
    key = key_of(event, then)
    return None if key is None else _update(key, event, then, details, fields["transaction_time"], fill.time)


def ended(order: Fields) -> RecordedUpdate | None:
    """Return the update of the state that an order has ended in, or rests in for the day; None if it has not."""
    event = JSON.text_of(order.get("status"))
    if event not in _TIMES:
        return None
    stamp = next((order[name] for name in (_TIMES[event], "updated_at") if time_of(order.get(name)) is not None), None)
    key, time = key_of(event, order), time_of(stamp)
    return None if key is None or stamp is None or time is None else _update(key, event, order, {}, stamp, time)


def _update(key: Key, event: str | None, order: Fields, details: Fields, stamp: Raw, time: int) -> RecordedUpdate:
    data = JSON.encode({"event": event, "order": order, **details, "timestamp": stamp, "recovered": True})
    return RecordedUpdate(key, time, data, time_of(order.get("created_at")) or 0)
