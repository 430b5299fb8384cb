"""Message generator for order updates on the trading stream.

A scenario is a generator that receives the time and yields the seconds until its next step with the updates of this
one. Strategies prefix the client_order_id of their orders (`momentum-…`); replacements and legs of brackets have ids
that Alpaca generates, as in production.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from random import Random
from typing import Any
from uuid import UUID

from proxy.alpaca import timestamps
from proxy.simulator.market import SECOND, JsonObject, Market
from proxy.simulator.stocks import STOCKS

Scenario = Generator[tuple[float, list[JsonObject]], int, None]

STRATEGIES = ("momentum", "meanrev")
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class OrderTape:
    """Trading stream of one account."""

    def __init__(self, market: Market, rng: Random, now: int) -> None:
        self._step_seconds = market.order_seconds
        self._foreign_orders = market.foreign_orders
        self._rng = rng
        self._scenarios = (self._filled, self._canceled, self._replaced, self._bracket)
        self._started = 0
        self._active: list[tuple[int, int, Scenario]] = []
        self._due = now

    def follow(self, symbol: str) -> None:
        """Do nothing: the orders do not depend on the subscriptions."""

    def snapshots(self, symbol: str, now: int) -> list[JsonObject]:
        return []

    def advance(self, now: int) -> list[JsonObject]:
        """Return the updates that are due."""
        messages: list[JsonObject] = []
        if now >= self._due:
            self._due = now + int(self._rng.expovariate(1) * 4 * self._step_seconds * SECOND)
            scenario = self._scenarios[self._started % len(self._scenarios)]()
            self._started += 1
            next(scenario)
            heapq.heappush(self._active, (now, self._started, scenario))
        while self._active and self._active[0][0] <= now:
            _, number, scenario = heapq.heappop(self._active)
            try:
                delay, updates = scenario.send(now)
            except StopIteration:
                continue
            messages += [{"stream": "trade_updates", "data": update} for update in updates]
            heapq.heappush(self._active, (now + int(delay * self._step_seconds * SECOND), number, scenario))
        return messages

    def _filled(self) -> Scenario:
        """Market order that is filled in two parts."""
        now = yield 0, []
        order = self._order(now)
        now = yield 1, [self._update("new", order, now)]
        half = int(order["qty"]) // 2
        now = yield 1, [self._fill(order, half, now)]
        yield 1, [self._fill(order, int(order["qty"]) - half, now)]

    def _canceled(self) -> Scenario:
        """Limit order that is canceled unfilled."""
        now = yield 0, []
        order = self._order(now, limit=True)
        now = yield 2, [self._update("new", order, now)]
        order["canceled_at"] = timestamps.rfc3339(now)
        yield 1, [self._update("canceled", order, now)]

    def _replaced(self) -> Scenario:
        """Limit order that is replaced twice and then filled."""
        now = yield 0, []
        order = self._order(now, limit=True)
        now = yield 1, [self._update("new", order, now)]
        for _ in range(2):
            successor = self._order(now, limit=True, generated_id=True, symbol=order["symbol"], qty=order["qty"])
            successor["replaces"] = order["id"]
            order["replaced_by"] = successor["id"]
            order["replaced_at"] = timestamps.rfc3339(now)
            updates = [self._update("replaced", order, now), self._update("new", successor, now)]
            order = successor
            now = yield 1, updates
        yield 1, [self._fill(order, int(order["qty"]), now)]

    def _bracket(self) -> Scenario:
        """Bracket order: the profit leg is filled, so the loss leg is canceled."""
        now = yield 0, []
        order = self._order(now)
        profit = self._order(now, limit=True, generated_id=True, symbol=order["symbol"], qty=order["qty"])
        loss = self._order(now, generated_id=True, symbol=order["symbol"], qty=order["qty"])
        loss |= {"type": "stop", "order_type": "stop", "stop_price": _price(STOCKS[order["symbol"]] * 0.97)}
        for leg in (profit, loss):
            leg |= {"side": "sell", "order_class": "bracket", "status": "held"}
        order |= {"side": "buy", "order_class": "bracket", "legs": [dict(profit), dict(loss)]}
        now = yield 1, [self._update("new", order, now)]
        now = yield 1, [self._fill(order, int(order["qty"]), now)]
        now = yield 1, [self._update("new", profit, now), self._update("new", loss, now)]
        updates = [self._fill(profit, int(profit["qty"]), now)]
        loss["canceled_at"] = timestamps.rfc3339(now)
        yield 1, [*updates, self._update("canceled", loss, now)]

    def _order(
        self,
        now: int,
        *,
        limit: bool = False,
        generated_id: bool = False,
        symbol: str | None = None,
        qty: str | None = None,
    ) -> JsonObject:
        """Return a new order.

        Its client_order_id is a strategy's, or with `generated_id` one of Alpaca's.
        """
        stamp = timestamps.rfc3339(now)
        symbol = symbol or self._rng.choice(list(STOCKS))
        kind = "limit" if limit else "market"
        foreign = generated_id or self._rng.random() < self._foreign_orders
        return {
            "asset_class": "us_equity",
            "asset_id": self._uuid(),
            "cancel_requested_at": None,
            "canceled_at": None,
            "client_order_id": self._uuid() if foreign else f"{self._rng.choice(STRATEGIES)}-{self._uuid()[:8]}",
            "created_at": stamp,
            "expired_at": None,
            "extended_hours": False,
            "failed_at": None,
            "filled_at": None,
            "filled_avg_price": None,
            "filled_qty": "0",
            "hwm": None,
            "id": self._uuid(),
            "legs": None,
            "limit_price": _price(STOCKS[symbol] * self._rng.uniform(0.99, 1.01)) if limit else None,
            "notional": None,
            "order_class": "",
            "order_type": kind,
            "qty": qty or str(self._rng.randint(2, 200)),
            "replaced_at": None,
            "replaced_by": None,
            "replaces": None,
            "side": self._rng.choice(("buy", "sell")),
            "status": "new",
            "stop_price": None,
            "submitted_at": stamp,
            "symbol": symbol,
            "time_in_force": "day",
            "trail_percent": None,
            "trail_price": None,
            "type": kind,
            "updated_at": stamp,
        }

    def _update(self, event: str, order: JsonObject, now: int, **more: Any) -> JsonObject:
        """Return an update: the event, and the order as it is now."""
        stamp = timestamps.rfc3339(now)
        order["updated_at"] = stamp
        if event in ("new", "canceled", "replaced"):
            order["status"] = event
        return {
            "at": stamp,
            "event": event,
            "event_id": self._ulid(now),
            "execution_id": self._uuid(),
            "order": dict(order),
            **more,
            "timestamp": stamp,
        }

    def _fill(self, order: JsonObject, qty: int, now: int) -> JsonObject:
        price = order["limit_price"] or _price(STOCKS[order["symbol"]] * self._rng.uniform(0.999, 1.001))
        filled = int(order["filled_qty"]) + qty
        whole = filled == int(order["qty"])
        order |= {"filled_qty": str(filled), "filled_avg_price": price}
        order["status"] = "filled" if whole else "partially_filled"
        if whole:
            order["filled_at"] = timestamps.rfc3339(now)
        position = filled if order["side"] == "buy" else -filled
        event = "fill" if whole else "partial_fill"
        return self._update(event, order, now, position_qty=str(position), price=price, qty=str(qty))

    def _uuid(self) -> str:
        return str(UUID(int=self._rng.getrandbits(128), version=4))

    def _ulid(self, now: int) -> str:
        number = (now // 1_000_000) << 80 | self._rng.getrandbits(80)
        return "".join(_BASE32[number >> shift & 31] for shift in range(125, -1, -5))


def _price(price: float) -> str:
    return f"{price:.2f}"
