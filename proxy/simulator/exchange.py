"""Message generators (tapes) of all feeds.

A tape starts at its feed's first subscription and advances while the feed has a client; that of the orders always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Protocol

from proxy.alpaca.endpoints import WILDCARD
from proxy.simulator.crypto import PAIRS, PERPETUALS, CryptoTape, PerpetualTape
from proxy.simulator.market import JsonObject, Market, PriceTape
from proxy.simulator.news import NewsTape
from proxy.simulator.options import CONTRACTS, OptionTape
from proxy.simulator.orders import OrderTape
from proxy.simulator.stocks import STOCKS, TEST_STOCKS, StockTape


class Tape(Protocol):
    """Generator of one feed's messages. Times are nanoseconds since 1970."""

    def follow(self, symbol: str) -> None: ...

    def snapshots(self, symbol: str, now: int) -> list[JsonObject]: ...

    def advance(self, now: int) -> list[JsonObject]: ...


PAUSE_SECONDS = 0.02


class SourceError(Exception):
    """The source cannot go on; the text is a sentence."""


class DataSource(Protocol):
    """Source of the simulator's data: `Exchange`, or a recording. Times are nanoseconds since 1970.

    `patient`: delivery waits for slow clients, so that none gets a 407. `ended`: the source has no more messages.
    """

    patient: bool
    ended: bool

    def follow(self, feed: str, channel: str, symbol: str, now: int) -> list[Any]:
        """Register a subscription; return the order books to send to it first."""

    def advance(self, now: int, live: Mapping[str, int]) -> Iterator[tuple[str, list[Any]]]:
        """Yield each feed with its messages that are due.

        `live` are the feeds with clients, and for each the number of those that have subscribed. A list without
        messages lets the caller pause. Raises SourceError.
        """

    def pause(self, now: int) -> float:
        """Return the seconds until the next call of `advance`."""

    def set_rate(self, rate: float) -> None:
        """Set the ticks a second on each feed, where they are synthetic."""


class Exchange:
    """The synthetic market on every feed. Equal seeds and times make equal messages."""

    patient = False
    ended = False

    def __init__(self, market: Market, seed: int) -> None:
        self._market = market
        self._seed = seed
        self._tapes: dict[str, Tape] = {}

    def follow(self, feed: str, channel: str, symbol: str, now: int) -> list[JsonObject]:
        """Register a subscription; return the snapshots of order books to send."""
        tape = self._tapes.get(feed)
        if tape is None:
            tape = self._tapes[feed] = _tape(feed, self._market, Random(f"{self._seed}/{feed}"), now)
        if symbol != WILDCARD:
            tape.follow(symbol)
        return tape.snapshots(symbol, now) if channel == "orderbooks" else []

    def set_rate(self, rate: float) -> None:
        """Set the ticks a second on each feed. News and order updates keep their pace."""
        self._market = replace(self._market, rate=rate)
        for tape in self._tapes.values():
            if isinstance(tape, PriceTape):
                tape.rate = rate

    def pause(self, now: int) -> float:
        return PAUSE_SECONDS

    def advance(self, now: int, live: Mapping[str, int]) -> Iterator[tuple[str, list[JsonObject]]]:
        """Yield each feed with its messages since the last call."""
        for feed in sorted(live):
            tape = self._tapes.get(feed)
            if tape is not None and (messages := tape.advance(now)):
                yield feed, messages


def _tape(feed: str, market: Market, rng: Random, now: int) -> Tape:
    if feed == "trading":
        return OrderTape(market, rng, now)
    if feed == "news":
        return NewsTape(market, rng, now)
    if feed in ("opra", "indicative"):
        return OptionTape(market, rng, now, CONTRACTS)
    if feed.startswith("crypto-perps"):
        return PerpetualTape(market, rng, now, PERPETUALS)
    if feed.startswith("crypto"):
        return CryptoTape(market, rng, now, PAIRS)
    return StockTape(market, rng, now, TEST_STOCKS if feed == "test" else STOCKS)
