"""A greenlet's turn. All greenlets share one thread: whoever has much to do passes the turn on from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

SLICE_SECONDS = 0.001
# Long enough to be a timer: gevent serves sleep(0) up to 50 times before it looks at sockets and other timers.
YIELD_SECONDS = 1e-6


class TimeSlice:
    """One greenlet's. It begins when the greenlet says so, and is over after TURN_SECONDS."""

    __slots__ = ("_clock", "_ends")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin(clock())

    def __repr__(self) -> str:
        return f"<TimeSlice until {self._ends}>"

    def begin(self, now: float) -> None:
        """The greenlet has just waited for something, so the others have had their turns."""
        self._ends = now + SLICE_SECONDS

    def over(self) -> bool:
        """Whether it has taken long enough."""
        return self._clock() >= self._ends

    def yield_to_hub(self) -> None:
        """Lets whoever is ready have a turn, then begins anew."""
        gevent.sleep(YIELD_SECONDS)
        self.begin(self._clock())
