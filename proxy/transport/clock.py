"""Steady time, as far as this process was there to live it.

Who was stopped, or sat on a machine that was, wakes up to clients that seem to have been silent for as long. So a gap
in which nothing here looked at the clock, which happens several times a second, counts as no time at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

GAP_SECONDS = 5.0


class Clock:
    """Calling it gives seconds. `steady` is the machine's own steady clock."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self.steady = steady
        self._looked_at = steady()
        self._slept = 0.0

    def __repr__(self) -> str:
        return f"<Clock {self():.3f}>"

    def __call__(self) -> float:
        now = self.steady()
        gap = now - self._looked_at
        if gap >= GAP_SECONDS:
            self._slept += gap
        self._looked_at = now
        return now - self._slept
