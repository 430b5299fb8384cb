"""The time that a greenlet runs before it yields.

All greenlets share one thread, and gevent does not preempt them: long work must yield to the hub by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

SLICE_SECONDS = 0.001
# Long enough to be a timer: gevent serves sleep(0) up to 50 times before it looks at sockets and other timers.
YIELD_SECONDS = 1e-6


class TimeSlice:
    """The time slice of one greenlet: over SLICE_SECONDS after it began."""

    __slots__ = ("_clock", "_ends")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin()

    def __repr__(self) -> str:
        return f"<TimeSlice until {self._ends}>"

    def begin(self, now: float | None = None) -> None:
        """Begin anew, after the greenlet has waited for something and others have run."""
        self._ends = (self._clock() if now is None else now) + SLICE_SECONDS

    def over(self) -> bool:
        """Return whether the greenlet should yield."""
        return self._clock() >= self._ends

    def pause(self) -> None:
        """Let other greenlets run if the slice is over."""
        if self._clock() >= self._ends:
            self.yield_to_hub()

    def yield_to_hub(self) -> None:
        """Let other greenlets run, then begin anew."""
        gevent.sleep(YIELD_SECONDS)
        self.begin()
