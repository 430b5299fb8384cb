"""Synthetic market: settings, random walks of prices, and bars.

`Market` holds the settings. The *tapes* of `stocks`, `crypto`, `options`, `news` and `orders` generate the messages,
one tape for each feed; `exchange` advances them. All of it is pure: times are nanoseconds and are passed in, and so is
the `random.Random`, so that equal seeds and times make equal markets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from proxy.alpaca import timestamps

JsonObject = dict[str, Any]

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
MAX_SYMBOLS = 512  # instruments of one tape; further symbols get no messages


@dataclass(frozen=True, slots=True)
class Market:
    """Activity of the market.

    `rate` is ticks a second on each feed, `bar_seconds` the span of a bar (a minute at Alpaca), `news_seconds` the
    average time between articles and `order_seconds` that between steps of an order. `foreign_orders` is the share of
    orders whose client_order_id is not a strategy's.
    """

    rate: float = 20
    bar_seconds: float = 60
    news_seconds: float = 20
    order_seconds: float = 1
    foreign_orders: float = 0.1


class Walk:
    """Random walk of a price, with a drift back to its start."""

    def __init__(self, rng: Random, start: float, volatility: float, decimals: int) -> None:
        self.price = start
        self.decimals = decimals
        self._rng = rng
        self._start = start
        self._volatility = volatility

    def move(self) -> float:
        """Make one step and return the new price, rounded."""
        drift = 0.002 * math.log(self._start / self.price)
        self.price = self.price * math.exp(drift + self._rng.gauss(0, self._volatility))
        return self.rounded(self.price)

    def rounded(self, price: float) -> float:
        """Round a price to the quoted decimals; at least one unit of the last decimal."""
        return max(round(price, self.decimals), 10.0**-self.decimals)


class Bar:
    """One bar: open, high, low, close, volume, trade count and average price."""

    def __init__(self, start: int, price: float) -> None:
        self.start = start
        self.count = 0
        self._open = self._high = self._low = self._close = price
        self._volume: float = 0
        self._value = 0.0

    def add(self, price: float, size: float) -> None:
        """Add one trade."""
        if not self.count:
            self._open = self._high = self._low = price
        self._high = max(self._high, price)
        self._low = min(self._low, price)
        self._close = price
        self._volume += size
        self._value += price * size
        self.count += 1

    def message(self, kind: str, symbol: str) -> JsonObject:
        """Return the bar as a message of kind `b`, `d` or `u`.

        As at Alpaca, `v` is an integer where sizes are integers, and `vw` is 0 without trades.
        """
        volume = self._volume if isinstance(self._volume, int) else round(self._volume, 9)
        return {
            "T": kind,
            "S": symbol,
            "o": self._open,
            "h": self._high,
            "l": self._low,
            "c": self._close,
            "v": volume,
            "t": timestamps.rfc3339(self.start),
            "n": self.count,
            "vw": round(self._value / self._volume, 6) if self._volume else 0,
        }


class Instrument:
    """One symbol of a tape: its walk, its bars, its trade numbers."""

    def __init__(self, symbol: str, walk: Walk, first_id: int) -> None:
        self.symbol = symbol
        self.walk = walk
        self.bar: Bar | None = None
        self.closed: Bar | None = None  # the last complete bar; a late trade can still change it
        self.day: Bar | None = None
        self._next_id = first_id

    def take_id(self) -> int:
        """Return the next trade number; a gap in the numbers shows a loss."""
        self._next_id += 1
        return self._next_id - 1

    def add(self, price: float, size: float, bar_start: int, day_start: int) -> None:
        """Add a trade to the current bar and the daily bar."""
        if self.bar is None:
            self.bar = Bar(bar_start, price)
        if self.day is None or self.day.start != day_start:
            self.day = Bar(day_start, price)
        self.bar.add(price, size)
        self.day.add(price, size)


class PriceTape(ABC):
    """Tape of ticks and bars; subclasses define the messages of a tick. `rate` is ticks a second; it may be changed."""

    volatility = 0.0004
    day_offset = 0  # nanoseconds from midnight UTC to the start of the daily bar

    def __init__(self, market: Market, rng: Random, now: int, universe: Mapping[str, float]) -> None:
        self.rate = market.rate
        self._rng = rng
        self._period = max(1, int(market.bar_seconds * SECOND))
        self._last_tick = now
        self._bar_start = now - now % self._period
        self._revised = False
        self._instruments: dict[str, Instrument] = {}
        for symbol, price in universe.items():
            self._add(symbol, price)
        self._instrument_list = list(self._instruments.values())

    def follow(self, symbol: str) -> None:
        """Add an instrument for a symbol that has none, up to MAX_SYMBOLS."""
        if symbol not in self._instruments and len(self._instruments) < MAX_SYMBOLS:
            self._add(symbol, round(self._rng.uniform(5, 400), 2))
            self._instrument_list = list(self._instruments.values())

    def snapshots(self, symbol: str, now: int) -> list[JsonObject]:
        """Return the whole order books that start a subscription to this symbol or `*`."""
        return []

    def advance(self, now: int) -> list[JsonObject]:
        """Return the messages since the last call."""
        messages: list[JsonObject] = []
        step = SECOND / self.rate if self.rate > 0 else math.inf
        if now - self._last_tick > max(SECOND, 2 * step):  # the feed had no clients for a while: do not catch up
            self._last_tick = now
        ticks = int((now - self._last_tick) / step)
        for _ in range(ticks):
            self._last_tick += int(step)
            messages += self.tick(self._rng.choice(self._instrument_list), self._last_tick)
        if now - self._bar_start >= self._period:
            messages += self._close_bars(now)
        elif not self._revised and now - self._bar_start >= self._period // 2:
            self._revised = True
            messages += self._revise_bars()
        return messages

    @abstractmethod
    def tick(self, instrument: Instrument, now: int) -> list[JsonObject]:
        """Return the messages of one price step of one instrument."""

    def late_size(self) -> float:
        """Return the size of a trade that is reported late."""
        return 100

    def instrument(self, symbol: str, walk: Walk) -> Instrument:
        return Instrument(symbol, walk, 1)

    def decimals(self, price: float) -> int:
        return 2

    def _add(self, symbol: str, price: float) -> None:
        walk = Walk(self._rng, price, self.volatility, self.decimals(price))
        self._instruments[symbol] = self.instrument(symbol, walk)

    def _add_trade(self, instrument: Instrument, price: float, size: float, now: int) -> None:
        instrument.add(price, size, self._bar_start, now - (now - self.day_offset) % DAY)

    def _close_bars(self, now: int) -> list[JsonObject]:
        """Close the period: return its bars, then the daily bars."""
        messages: list[JsonObject] = []
        for instrument in self._instrument_list:
            instrument.closed, instrument.bar = instrument.bar, None
            if instrument.closed is not None:
                messages.append(instrument.closed.message("b", instrument.symbol))
        messages += [each.day.message("d", each.symbol) for each in self._instrument_list if each.day is not None]
        self._bar_start = now - now % self._period
        self._revised = False
        return messages

    def _revise_bars(self) -> list[JsonObject]:
        """Return updates of some of the last bars, with a late trade added.

        Called half a period after their close.
        """
        messages = []
        for instrument in self._instrument_list:
            if instrument.closed is not None and self._rng.random() < 0.3:
                instrument.closed.add(instrument.walk.rounded(instrument.walk.price), self.late_size())
                messages.append(instrument.closed.message("u", instrument.symbol))
        return messages
