"""Rates and lag of the last minutes, second by second; bounded in memory.

Pure: callers pass the time. `Lags` takes the samples of one feed. `History` takes the counters once a second and keeps
their rates. The values that it returns are never changed afterwards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from math import ceil, inf
from types import MappingProxyType
from typing import NamedTuple

from proxy.observe.snapshot import FeedSecond, Key, Lag, Second

SECONDS = 300  # of history
LAG_SECONDS = 60  # window of a feed's quantiles
RATE_SECONDS = 5  # window of a rate
MAX_SAMPLES = 100  # kept of one second, the newest

LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 1800.0)
"""The upper bounds of the lag histogram, in seconds; the last few are for feeds that Alpaca delays on purpose."""


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest-rank quantile of sorted values; None if there are none."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


class Lags:
    """The lag of one feed, in seconds, from samples."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LAG_BOUNDS) + 1)
        self._sum = 0.0
        self._samples: deque[float] = deque(maxlen=MAX_SAMPLES)  # of the current second
        self._seconds: deque[list[float]] = deque(maxlen=LAG_SECONDS)
        self._p50: float | None = None
        self._p99: float | None = None

    def __repr__(self) -> str:
        return f"<Lags p50 {self._p50} p99 {self._p99}>"

    def add(self, lag: float) -> None:
        """Add a sample. A negative one (the clocks differ) counts as 0 in the sum, which must never decrease."""
        self._counts[bisect_left(LAG_BOUNDS, lag)] += 1
        self._sum += max(lag, 0.0)
        self._samples.append(lag)

    def turn(self) -> tuple[float | None, float | None]:
        """End the current second; return its p50 and p99."""
        second = sorted(self._samples)
        self._samples.clear()
        self._seconds.append(second)
        minute = sorted(chain.from_iterable(self._seconds))
        self._p50, self._p99 = quantile(minute, 0.5), quantile(minute, 0.99)
        return quantile(second, 0.5), quantile(second, 0.99)

    def state(self) -> Lag:
        """The lag for the snapshot, with the quantiles as of the last `turn`."""
        samples = tuple(zip((*LAG_BOUNDS, inf), accumulate(self._counts), strict=True))
        return Lag(self._p50, self._p99, samples, self._sum)


class History:
    """Rates from counters. `received` and `delivered` are rates over RATE_SECONDS, by the counters' keys."""

    def __init__(self, now: float) -> None:
        self.seconds: deque[Second] = deque(maxlen=SECONDS)
        self.received: Mapping[Key, float] = {}
        self.delivered: Mapping[Key, float] = {}
        self._number = 0
        self._readings = deque([_Reading(now, {}, {})], maxlen=RATE_SECONDS + 1)

    def __repr__(self) -> str:
        return f"<History of {len(self.seconds)} seconds>"

    def add(
        self,
        now: float,
        *,
        received: Mapping[Key, int],
        delivered: Mapping[Key, int],
        lags: Mapping[Key, Lags],
        delay: float,
        pending: Mapping[Key, int] = MappingProxyType({}),
    ) -> None:
        """End a second.

        `received` (by feed) and `delivered` (by client and feed) are counters since the start; a counter may restart
        at 0. `pending` is the number of bytes in the fullest outbox, by client and feed. `delay` is the longest delay
        of the event loop in this second, in seconds.
        """
        last = self._readings[-1]
        rates = _rates(last.received, received, now - last.time)
        quantiles = {key: lag.turn() for key, lag in lags.items()}
        feeds = {key: FeedSecond(rate, *quantiles.get(key, (None, None))) for key, rate in rates.items()}
        active = {key: rate for key, rate in _rates(last.delivered, delivered, now - last.time).items() if rate}
        waiting = {key: size for key, size in pending.items() if size}
        self._number += 1
        self.seconds.append(Second(self._number, feeds, sum(active.values()), active, waiting, delay))
        self._readings.append(_Reading(now, received, delivered))
        first = self._readings[0]
        self.received = _rates(first.received, received, now - first.time)
        self.delivered = _rates(first.delivered, delivered, now - first.time)


class _Reading(NamedTuple):
    """The counters at a point in time."""

    time: float
    received: Mapping[Key, int]
    delivered: Mapping[Key, int]


def _rates(before: Mapping[Key, int], now: Mapping[Key, int], span: float) -> dict[Key, float]:
    """Rates by key; a new counter started at 0, and one that has decreased was restarted at 0."""
    return {key: _increase(before.get(key, 0), count) / max(span, _MIN_SPAN) for key, count in now.items()}


def _increase(before: int, now: int) -> int:
    return now - before if now >= before else now


def columns(seconds: Iterable[Second], of: Key) -> tuple[list[float], list[float | None], list[float | None]]:
    """One feed's rates, p50 and p99, second by second; a rate of 0 in seconds before the feed existed."""
    rows = [second.feeds.get(of, _ABSENT) for second in seconds]
    return [row.received for row in rows], [row.p50 for row in rows], [row.p99 for row in rows]


def client_columns(seconds: Iterable[Second], of: Key) -> tuple[list[float], list[int]]:
    """One client's delivered messages a second on a feed, and the bytes in its fullest outbox, second by second."""
    rows = [*seconds]
    return [row.clients.get(of, 0.0) for row in rows], [row.pending.get(of, 0) for row in rows]


_MIN_SPAN = 1e-9  # avoids a division by zero
_ABSENT = FeedSecond(0.0, None, None)
