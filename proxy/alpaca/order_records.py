"""What Alpaca's REST API says of orders, and the order updates that follow from it.

Orders and fills are listed page by page (docs.alpaca.markets, "Orders" and "Account Activities"): `after` and `until`
of orders are times of submission, so an old order that changed lately is found by its id alone, or by its fills.

A record shows what has happened to an order, but not every state that it passed through: fills, with their own price
and quantity, and the final states. Updates are made of these alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import NamedTuple
from urllib.parse import quote, urlencode

from proxy.alpaca import timestamps
from proxy.alpaca.codec import JSON, Malformed, Raw

ORDERS_PER_PAGE = 500
FILLS_PER_PAGE = 100
MAX_DIGITS = 64  # characters of a quantity that is read

MAX_ORDER_BYTES = 64 * 1024  # of an order with its legs, which has some thousand
MAX_LEGS = 64  # of an order, with those of its legs
MAX_VALUES = 200_000  # of a page, by its commas: 500 orders with two legs each have 60,000

Fields = Mapping[str, Raw]
UpdateKey = tuple[str, "Decimal | str"]
"""What an update is about: an order's id, and the quantity that is filled so far or the event."""

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

    `time` is Alpaca's, in nanoseconds since 1970, `data` the update as on the stream, and `created_at` the time at
    which its order was created, 0 if that is unknown.
    """

    key: UpdateKey
    time: int
    data: bytes
    created_at: int


class Fill(NamedTuple):
    """A fill among the account's activities; `id` is the page token after it."""

    id: str
    key: UpdateKey
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


def page_of(body: bytes, most: int) -> list[Raw]:
    """Return the undecoded items of a page. Raises Malformed if it is not an array of at most so many."""
    if not JSON.is_array(body.lstrip()) or body.count(b",") > MAX_VALUES:
        raise Malformed("no page of records")
    items = JSON.items_of(body)
    if len(items) > most or not (items or body.strip(b" \t\r\n[]") == b""):
        raise Malformed("no page of records")
    return items


def order_of(value: Raw | bytes) -> Fields:
    """Return the fields of an order's record. Raises Malformed if it is something else, or too large."""
    fields = JSON.fields_of(value) if len(value) <= MAX_ORDER_BYTES else None
    if fields is None or not JSON.text_of(fields.get("id")):
        raise Malformed("no record of an order")
    return fields


def fill_of(value: Raw | bytes) -> Fill:
    """Return an activity that is a fill. Raises Malformed if it is something else."""
    fields = JSON.fields_of(value) or {}
    token, order_id = JSON.text_of(fields.get("id")), JSON.text_of(fields.get("order_id"))
    filled, time = quantity(fields.get("cum_qty")), time_of(fields.get("transaction_time"))
    if JSON.text_of(fields.get("type")) not in FILL_EVENTS or filled is None or time is None:
        raise Malformed("no record of a fill")
    if not token or not order_id:
        raise Malformed("no record of a fill")
    return Fill(token, (order_id, filled), time, fields)


def with_legs(order: Fields) -> list[Fields]:
    """Return an order and its legs, which may have legs of their own. Raises Malformed if there are too many."""
    orders = [order]
    for parent in orders:
        orders += [order_of(leg) for leg in JSON.items_of(parent.get("legs"))]
        if len(orders) > MAX_LEGS:
            raise Malformed("an order with too many legs")
    return orders


def key_of(event: str | None, order: Fields) -> UpdateKey | None:
    """Return what an update is about; None if that cannot be told."""
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
    """Return a time in nanoseconds since 1970; None if it is missing, not RFC 3339, or earlier."""
    try:
        time = timestamps.nanoseconds(JSON.text_of(value) or "")
    except (ValueError, OverflowError):
        return None
    return time if time >= 0 else None


def filled(fill: Fill, order: Fields) -> RecordedUpdate:
    """Return the update of a fill: its order as it was then, as far as the records show."""
    fields = fill.fields
    changed = {"filled_qty": "cum_qty", "status": "order_status"}
    then = {**order, **{name: fields[source] for name, source in changed.items() if source in fields}}
    details = {name: fields[name] for name in ("price", "qty") if name in fields}
    return _update(fill.key, JSON.text_of(fields["type"]) or "", then, details, fields["transaction_time"], fill.time)


def ended(order: Fields) -> RecordedUpdate | None:
    """Return the update of the state that an order has ended in, or rests in for the day; None if it has not.

    Raises Malformed for such a state without a time.
    """
    event = JSON.text_of(order.get("status")) or ""
    if event not in _TIMES:
        return None
    for name in (_TIMES[event], "updated_at"):
        if (time := time_of(order.get(name))) is not None:
            return _update((JSON.text_of(order["id"]) or "", event), event, order, {}, order[name], time)
    raise Malformed(f"an order that is {event}, at an unknown time")


def last_fill(order: Fields, since: int) -> UpdateKey | None:
    """Return what the last fill of an order is about, if the record of the order shows one since a time."""
    event = JSON.text_of(order.get("status"))
    if event not in ("filled", "partially_filled"):
        return None
    times = (time_of(order.get(name)) for name in (("filled_at",) if event == "filled" else ()) + ("updated_at",))
    time = next((time for time in times if time is not None), 0)
    return key_of("fill", order) if time >= since else None


def _update(key: UpdateKey, event: str, order: Fields, details: Fields, stamp: Raw, time: int) -> RecordedUpdate:
    data = JSON.encode({"event": event, "order": order, **details, "timestamp": stamp, "recovered": True})
    return RecordedUpdate(key, time, data, time_of(order.get("created_at")) or 0)
