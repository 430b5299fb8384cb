"""The tape of orders: short stories of orders as the trading stream tells them.

A story is a generator: it is sent the time and yields the updates of that moment, with the seconds until its next.
Strategies sign their orders with a prefix (`momentum-…`); the replacements and the legs of brackets carry ids that
Alpaca invents, as they do in truth.
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

Story = Generator[tuple[float, list[JsonObject]], int, None]

STRATEGIES = ("momentum", "meanrev")
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class OrderTape:
    """The trading stream of one account."""

    def __init__(self, market: Market, rng: Random, now: int) -> None:
        self._pace = market.order_seconds
        self._rng = rng
        self._stories = (self._filled, self._canceled, self._replaced, self._bracket)
        self._told = 0
        self._going: list[tuple[int, int, Story]] = []
        self._due = now

    def follow(self, symbol: str) -> None:
        """Orders are about what the strategies trade, whoever listens."""

    def snapshots(self, symbol: str, now: int) -> list[JsonObject]:
        return []

    def advance(self, now: int) -> list[JsonObject]:
        """The updates that are due."""
        messages: list[JsonObject] = []
        if now >= self._due:
            self._due = now + int(self._rng.expovariate(1) * 4 * self._pace * SECOND)
            story = self._stories[self._told % len(self._stories)]()
            self._told += 1
            next(story)
            heapq.heappush(self._going, (now, self._told, story))
        while self._going and self._going[0][0] <= now:
            _, number, story = heapq.heappop(self._going)
            try:
                delay, updates = story.send(now)
            except StopIteration:
                continue
            messages += [{"stream": "trade_updates", "data": update} for update in updates]
            heapq.heappush(self._going, (now + int(delay * self._pace * SECOND), number, story))
        return messages

    def _filled(self) -> Story:
        """A market order that is filled in two parts."""
        now = yield 0, []
        order = self._order(now)
        now = yield 1, [self._update("new", order, now)]
        half = int(order["qty"]) // 2
        now = yield 1, [self._fill(order, half, now)]
        yield 1, [self._fill(order, int(order["qty"]) - half, now)]

    def _canceled(self) -> Story:
        """A limit order that nobody takes."""
        now = yield 0, []
        order = self._order(now, limit=True)
        now = yield 2, [self._update("new", order, now)]
        order["canceled_at"] = timestamps.rfc3339(now)
        yield 1, [self._update("canceled", order, now)]

    def _replaced(self) -> Story:
        """A limit order that is replaced twice, and filled at last."""
        now = yield 0, []
        order = self._order(now, limit=True)
        now = yield 1, [self._update("new", order, now)]
        for _ in range(2):
            successor = self._order(now, limit=True, invented=True, symbol=order["symbol"], qty=order["qty"])
            successor["replaces"] = order["id"]
            order["replaced_by"] = successor["id"]
            order["replaced_at"] = timestamps.rfc3339(now)
            updates = [self._update("replaced", order, now), self._update("new", successor, now)]
            order = successor
            now = yield 1, updates
        yield 1, [self._fill(order, int(order["qty"]), now)]

    def _bracket(self) -> Story:
        """An order with a profit and a loss leg: one of them is filled, and the other is canceled for it."""
        now = yield 0, []
        order = self._order(now)
        profit = self._order(now, limit=True, invented=True, symbol=order["symbol"], qty=order["qty"])
        loss = self._order(now, invented=True, symbol=order["symbol"], qty=order["qty"])
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
        invented: bool = False,
        symbol: str | None = None,
        qty: str | None = None,
    ) -> JsonObject:
        """A new order; its client_order_id is a strategy's or, `invented`, one of Alpaca's own making."""
        stamp = timestamps.rfc3339(now)
        symbol = symbol or self._rng.choice(list(STOCKS))
        kind = "limit" if limit else "market"
        nobody = invented or self._rng.random() < 0.1
        return {
            "asset_class": "us_equity",
            "asset_id": self._uuid(),
            "cancel_requested_at": None,
            "canceled_at": None,
            "client_order_id": self._uuid() if nobody else f"{self._rng.choice(STRATEGIES)}-{self._uuid()[:8]}",
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
        """One update: the order as it is now, and what has happened to it."""
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
