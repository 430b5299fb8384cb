"""A synthetic market: what it is like, how a price walks, and how trades add up to bars.

`Market` is the setting. The *tapes* of `stocks`, `crypto`, `options`, `news` and `orders` make messages out of it, one
tape to a feed; `exchange` keeps them going. All of it is pure: time is nanoseconds given by the caller, chance a
`random.Random`, so that the same seed and the same clock make the same market.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from proxy.alpaca import timestamps

JsonObject = dict[str, Any]

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
MAX_SYMBOLS = 512  # walks of one tape; symbols asked for beyond them stay silent


@dataclass(frozen=True, slots=True)
class Market:
    """How lively it is: `rate` ticks a second on each feed, a bar every `bar_seconds` (a minute at Alpaca), an article
    every `news_seconds` and a step of some order every `order_seconds`, on average."""

    rate: float = 20
    bar_seconds: float = 60
    news_seconds: float = 20
    order_seconds: float = 1


class Walk:
    """A price that wanders by a small fraction at each step and is drawn back to where it began."""

    def __init__(self, rng: Random, start: float, volatility: float, decimals: int) -> None:
        self.price = start
        self.decimals = decimals
        self._rng = rng
        self._start = start
        self._volatility = volatility

    def move(self) -> float:
        """One step; the new price."""
        home = 0.002 * math.log(self._start / self.price)
        self.price = self.price * math.exp(home + self._rng.gauss(0, self._volatility))
        return self.rounded(self.price)

    def rounded(self, price: float) -> float:
        """A price as it is quoted; never under one step."""
        return max(round(price, self.decimals), 10.0**-self.decimals)


class Bar:
    """Open, high, low, close, volume, number of trades and their average price, for one span of time."""

    def __init__(self, start: int, price: float) -> None:
        self.start = start
        self.count = 0
        self._open = self._high = self._low = self._close = price
        self._volume: float = 0
        self._value = 0.0

    def add(self, price: float, size: float) -> None:
        """Takes one trade in."""
        if not self.count:
            self._open = self._high = self._low = price
        self._high = max(self._high, price)
        self._low = min(self._low, price)
        self._close = price
        self._volume += size
        self._value += price * size
        self.count += 1

    def message(self, kind: str, symbol: str) -> JsonObject:
        """The bar as it stands: `b`, `d` or `u`. Alpaca's v is an integer where sizes are, and vw 0 without trades."""
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
    """One symbol on a tape: its walk, its bars, its trade numbers."""

    def __init__(self, symbol: str, walk: Walk, first_id: int) -> None:
        self.symbol = symbol
        self.walk = walk
        self.bar: Bar | None = None
        self.closed: Bar | None = None  # the last whole bar; a late trade still changes it
        self.day: Bar | None = None
        self._next_id = first_id

    def take_id(self) -> int:
        """Trade numbers count up by ones: a reader can tell that none is missing."""
        self._next_id += 1
        return self._next_id - 1

    def add(self, price: float, size: float, bar_start: int, day_start: int) -> None:
        """A trade goes into the bars that are open."""
        if self.bar is None:
            self.bar = Bar(bar_start, price)
        if self.day is None or self.day.start != day_start:
            self.day = Bar(day_start, price)
        self.bar.add(price, size)
        self.day.add(price, size)


class PriceTape:
    """A feed of ticks and bars. What a tick is made of, the kinds of instruments say."""

    volatility = 0.0004
    day_offset = 0  # of the daily bar's start from midnight UTC

    def __init__(self, market: Market, rng: Random, now: int, universe: Mapping[str, float]) -> None:
        self._market = market
        self._rng = rng
        self._period = max(1, int(market.bar_seconds * SECOND))
        self._ticked = now
        self._bar_start = now - now % self._period
        self._revised = False
        self._instruments: dict[str, Instrument] = {}
        for symbol, price in universe.items():
            self._add(symbol, price)
        self._order = list(self._instruments.values())

    def follow(self, symbol: str) -> None:
        """A symbol that somebody asked for and nobody knew gets a walk of its own."""
        if symbol not in self._instruments and len(self._instruments) < MAX_SYMBOLS:
            self._add(symbol, round(self._rng.uniform(5, 400), 2))
            self._order = list(self._instruments.values())

    def snapshots(self, symbol: str, now: int) -> list[JsonObject]:
        """The whole order books that a new subscription to this symbol, or to `*`, begins with."""
        return []

    def advance(self, now: int) -> list[JsonObject]:
        """What has happened since the last time."""
        messages: list[JsonObject] = []
        step = SECOND / self._market.rate if self._market.rate > 0 else math.inf
        if now - self._ticked > max(SECOND, 2 * step):  # nobody was here for a while, and nothing has happened
            self._ticked = now
        ticks = int((now - self._ticked) / step)
        for _ in range(ticks):
            self._ticked += int(step)
            messages += self.tick(self._rng.choice(self._order), self._ticked)
        if now - self._bar_start >= self._period:
            messages += self._close_bars(now)
        elif not self._revised and now - self._bar_start >= self._period // 2:
            self._revised = True
            messages += self._revise_bars()
        return messages

    def tick(self, instrument: Instrument, now: int) -> list[JsonObject]:
        """One movement of one instrument."""
        raise NotImplementedError

    def late_size(self) -> float:
        """The size of a trade that is reported late."""
        return 100

    def instrument(self, symbol: str, walk: Walk) -> Instrument:
        return Instrument(symbol, walk, 1)

    def decimals(self, price: float) -> int:
        return 2

    def _add(self, symbol: str, price: float) -> None:
        walk = Walk(self._rng, price, self.volatility, self.decimals(price))
        self._instruments[symbol] = self.instrument(symbol, walk)

    def _traded(self, instrument: Instrument, price: float, size: float, now: int) -> None:
        instrument.add(price, size, self._bar_start, now - (now - self.day_offset) % DAY)

    def _close_bars(self, now: int) -> list[JsonObject]:
        """The bars of the period that is over, then the daily bars."""
        messages: list[JsonObject] = []
        for instrument in self._order:
            instrument.closed, instrument.bar = instrument.bar, None
            if instrument.closed is not None:
                messages.append(instrument.closed.message("b", instrument.symbol))
        messages += [each.day.message("d", each.symbol) for each in self._order if each.day is not None]
        self._bar_start = now - now % self._period
        self._revised = False
        return messages

    def _revise_bars(self) -> list[JsonObject]:
        """Half a period on, some bars are told again with a trade that came late."""
        messages = []
        for instrument in self._order:
            if instrument.closed is not None and self._rng.random() < 0.3:
                instrument.closed.add(instrument.walk.rounded(instrument.walk.price), self.late_size())
                messages.append(instrument.closed.message("u", instrument.symbol))
        return messages
