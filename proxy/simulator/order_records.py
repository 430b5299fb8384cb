"""Orders and fills of the account, as its REST calls return them.

The records are fed by order updates and by orders that are placed without one. An order that comes with few fields gets
the others that Alpaca's REST objects have; what is passed in is never changed. Times are nanoseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from proxy.alpaca import timestamps

MAX_ORDERS = 20_000
MAX_FILLS = 20_000

# The statuses of orders that are done, each with the field that has its time (docs.alpaca.markets, "Placing Orders").
FINAL: Mapping[str, str] = {
    "filled": "filled_at",
    "canceled": "canceled_at",
    "expired": "expired_at",
    "replaced": "replaced_at",
    "rejected": "failed_at",
}
FILLS = ("fill", "partial_fill")
# Events after which an order has another status; after others it keeps the one that it had.
STATUS_AFTER: Mapping[str, str] = {
    "fill": "filled",
    "partial_fill": "partially_filled",
    **{
        name: name
        for name in (
            "new", "accepted", "pending_new", "canceled", "expired", "replaced", "rejected", "done_for_day", "stopped",
            "suspended", "pending_cancel", "pending_replace", "calculated", "held",
        )
    },
}  # fmt: skip

JsonObject = dict[str, Any]

_FIELDS: JsonObject = {
    **dict.fromkeys(
        (
            "id", "client_order_id", "created_at", "updated_at", "submitted_at", "filled_at", "expired_at",
            "canceled_at", "failed_at", "replaced_at", "replaced_by", "replaces", "asset_id", "symbol", "notional",
            "qty", "filled_avg_price", "type", "side", "limit_price", "stop_price", "status", "legs", "trail_percent",
            "trail_price", "hwm",
        )
    ),
    "asset_class": "us_equity",
    "filled_qty": "0",
    "order_class": "",
    "order_type": None,
    "time_in_force": "day",
    "extended_hours": False,
}  # fmt: skip


@dataclass(slots=True)
class OrderRecord:
    """The newest state of an order, without legs, and the time of its submission."""

    order: JsonObject
    submitted: int


@dataclass(frozen=True, slots=True)
class FillRecord:
    """The account activity of one fill, and its time."""

    activity: JsonObject
    time: int


class OrderRecords:
    """The newest state of each order, its legs, and every fill. The oldest ones make room for new ones."""

    def __init__(self, max_orders: int = MAX_ORDERS, max_fills: int = MAX_FILLS) -> None:
        self._max_orders = max_orders
        self._max_fills = max_fills
        self._orders: dict[str, OrderRecord] = {}
        self._legs: dict[str, list[str]] = {}
        self._parents: dict[str, str] = {}
        self._fills: dict[str, FillRecord] = {}
        self._fill_count = 0

    def place(self, order: Mapping[str, Any], legs: Iterable[Mapping[str, Any]], now: int) -> None:
        """Record an order and its legs without an update.

        A known order is changed in the fields that are given. Raises ValueError for an order without an `id`.
        """
        legs = list(legs)
        if not all(_has_id(each) for each in (order, *legs)):
            raise ValueError("an order needs an id, which is text")
        self._store(order, "", now, now)
        for leg in legs:
            self._store_leg(leg, now)
        self._relate(order["id"], [leg["id"] for leg in legs])
        self._add_legs(order, now)

    def add(self, update: Mapping[str, Any], now: int) -> None:
        """Record the order of an update, and its fill if it is one. Data without an order's `id` is left out."""
        order, event = update.get("order"), update.get("event")
        if not isinstance(order, dict) or not _has_id(order) or not isinstance(event, str):
            return
        at = _time(update.get("timestamp"), now)
        given = {**order, **self._filled(order, update)} if event in FILLS else order
        self._store(given, STATUS_AFTER.get(event, ""), at, now)
        if event in FILLS:
            self._add_fill(update, self._orders[order["id"]].order, at)
        self._add_legs(order, now)

    def get(self, order_id: str) -> OrderRecord | None:
        return self._orders.get(order_id)

    def legs(self, order_id: str) -> list[OrderRecord]:
        """Return the legs of an order, in their order."""
        return [self._orders[leg] for leg in self._legs.get(order_id, ())]

    def is_leg(self, order_id: str) -> bool:
        return order_id in self._parents

    def orders(self) -> list[OrderRecord]:
        """Return every order, in the order of submission."""
        return sorted(self._orders.values(), key=lambda record: record.submitted)

    def fills(self) -> list[FillRecord]:
        """Return every fill, in the order of time."""
        return sorted(self._fills.values(), key=lambda record: record.time)

    def _store(self, given: Mapping[str, Any], status: str, at: int, now: int) -> None:
        """Record the state of an order, whose status is its own, else `status`, else the one that it had.

        `at` is the time of that state, for the field of a final status.
        """
        order_id = given["id"]
        record = self._orders.get(order_id)
        stamp = timestamps.rfc3339(now)
        if record is None:
            generated_id = str(uuid5(NAMESPACE_OID, order_id))
            before = {**_FIELDS, "client_order_id": generated_id, "created_at": stamp, "submitted_at": stamp}
        else:
            before = record.order
        order = {**before, **given, "legs": None}
        own = given.get("status")
        order["status"] = (isinstance(own, str) and own) or status or before["status"] or "new"
        order["updated_at"] = given.get("updated_at") or stamp
        final = FINAL.get(order["status"])
        if final is not None:
            order[final] = order[final] or timestamps.rfc3339(at)
        for name in ("created_at", "submitted_at"):
            order[name] = order[name] or stamp
        for name, other in (("type", "order_type"), ("order_type", "type")):
            order[name] = order[name] or order[other]
        self._orders[order_id] = OrderRecord(order, _time(order["submitted_at"], now))
        if len(self._orders) > self._max_orders:
            self._forget(next(iter(self._orders)))

    def _store_leg(self, leg: Mapping[str, Any], now: int) -> None:
        self._store(leg, "" if leg["id"] in self._orders else "held", now, now)

    def _forget(self, order_id: str) -> None:
        del self._orders[order_id]
        for leg in self._legs.pop(order_id, ()):
            del self._parents[leg]
        parent = self._parents.pop(order_id, None)
        if parent is not None:
            self._legs[parent].remove(order_id)

    def _add_legs(self, order: Mapping[str, Any], now: int) -> None:
        """Record the legs that an order carries.

        A leg that is known changes only if the order carries a newer state, since a parent may repeat an old one.
        """
        legs = order.get("legs")
        legs = [leg for leg in legs if isinstance(leg, dict) and _has_id(leg)] if isinstance(legs, list) else []
        for leg in legs:
            known = self._orders.get(leg["id"])
            if known is None or _time(leg.get("updated_at"), -1) > _time(known.order["updated_at"], now):
                self._store_leg(leg, now)
        self._relate(order["id"], [leg["id"] for leg in legs])

    def _relate(self, parent: str, legs: Iterable[str]) -> None:
        """Make these orders legs of another. Ignores those that are not recorded, or have a parent already."""
        for leg in legs:
            if leg != parent and leg not in self._parents and {leg, parent} <= self._orders.keys():
                self._parents[leg] = parent
                self._legs.setdefault(parent, []).append(leg)

    def _filled(self, order: Mapping[str, Any], update: Mapping[str, Any]) -> JsonObject:
        """Return the filled quantity, and the price of this fill as the average, if the order lacks them."""
        record = self._orders.get(order["id"])
        before = _FIELDS if record is None else record.order
        lacking: JsonObject = {}
        if order.get("filled_qty") is None:
            whole = order.get("qty") or before["qty"]
            filled = _sum(before["filled_qty"], update.get("qty"), 1)
            lacking["filled_qty"] = whole if whole and update["event"] == "fill" else filled
        if order.get("filled_avg_price") is None:
            lacking["filled_avg_price"] = update.get("price") or before["filled_avg_price"]
        return lacking

    def _add_fill(self, update: Mapping[str, Any], order: JsonObject, at: int) -> None:
        self._fill_count += 1
        execution_id = update.get("execution_id")
        if not isinstance(execution_id, str) or not execution_id:
            execution_id = str(uuid5(NAMESPACE_OID, f"{order['id']} {self._fill_count}"))
        fill_id = f"{_compact(at)}::{execution_id}"
        self._fills.setdefault(fill_id, FillRecord(_activity(fill_id, update, order, at), at))
        if len(self._fills) > self._max_fills:
            del self._fills[next(iter(self._fills))]


def _activity(fill_id: str, update: Mapping[str, Any], order: JsonObject, at: int) -> JsonObject:
    whole = order["qty"]
    return {
        "id": fill_id,
        "activity_type": "FILL",
        "transaction_time": timestamps.rfc3339(at),
        "type": update["event"],
        "price": _text(update.get("price") or order["filled_avg_price"]),
        "qty": _text(update.get("qty") or order["filled_qty"]),
        "side": order["side"],
        "symbol": order["symbol"],
        "leaves_qty": "0" if not whole or update["event"] == "fill" else _sum(whole, order["filled_qty"], -1),
        "order_id": order["id"],
        "cum_qty": _text(order["filled_qty"]),
        "order_status": order["status"],
    }


def _has_id(order: Mapping[str, Any]) -> bool:
    return isinstance(order.get("id"), str)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _sum(number: object, other: object, sign: int) -> str:
    """Return `number` plus or minus `other` as a decimal; `number` alone if one of them is none."""
    try:
        return f"{Decimal(str(number)) + sign * Decimal(str(other)):f}"
    except InvalidOperation:
        return str(number)


def _time(text: object, default: int) -> int:
    """Return nanoseconds since 1970, or the default for what is no RFC 3339."""
    try:
        return timestamps.nanoseconds(text) if isinstance(text, str) else default
    except (ValueError, OverflowError):
        return default


def _compact(at: int) -> str:
    """Return a time as in the ids of activities: digits down to the millisecond, in UTC."""
    seconds, rest = divmod(at, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y%m%d%H%M%S}{rest // 1_000_000:03d}"
