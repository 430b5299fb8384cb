"""Monotonic clock that ignores gaps while the process was suspended.

After a suspend of the process or its machine, every peer looks timed out. A running proxy reads the clock several times
a second, so a gap of at least GAP_SECONDS between two readings is taken for a suspend and counts as no time at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

GAP_SECONDS = 5.0


class Clock:
    """A callable that returns seconds. `steady` is the machine's monotonic clock."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self.steady = steady
        self._last_reading = steady()
        self._suspended = 0.0  # seconds of all gaps

    def __repr__(self) -> str:
        return f"<Clock {self():.3f}>"

    def __call__(self) -> float:
        now = self.steady()
        gap = now - self._last_reading
        if gap >= GAP_SECONDS:
            self._suspended += gap
        self._last_reading = now
        return now - self._suspended
