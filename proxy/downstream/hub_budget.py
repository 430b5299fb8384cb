"""A bounded share of the hub's time for work that peers can cause.

All greenlets share one thread, so a flood of small messages from a few hundred sockets would delay the market data of
all sessions. Each session handles received data in slices of SLICE_SECONDS, and reserves the time of each slice in
advance. Sessions with the same budget are served in the order of their reservations, and together take no more than
its share. While the budget is not used up, no reservation waits.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent

SLICE_SECONDS = 0.0005
MAX_CHARGE_SECONDS = 0.05  # for one slice: it may include a wait, which cannot be distinguished from work


class HubBudget:
    """A budget of `share` (a fraction of 1) of the hub's time.

    `clock` returns monotonic time in seconds.
    """

    __slots__ = ("_clock", "_factor", "_free_at", "_overdrawn_until")

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self._factor = 1 / share
        self._clock = clock
        self._free_at = 0.0  # when the next slice can be reserved for
        self._overdrawn_until = 0.0  # when the slices so far, which may have taken longer, are paid for

    def __repr__(self) -> str:
        return f"<HubBudget 1/{self._factor:.0f}, free in {max(0.0, self._free_at - self._clock()):.3f} s>"

    def reserve(self) -> float:
        """Wait for the next free slice and return its start time, for `charge`."""
        now = self._clock()
        start = max(now, self._free_at)
        self._free_at = start + SLICE_SECONDS * self._factor
        while start > now:
            gevent.sleep(start - now)
            now = self._clock()
            start = self._overdrawn_until  # a slice before this one may have taken longer than it had reserved
        return now

    def charge(self, began: float) -> None:
        """Replace the reserved time by the time that the slice really took."""
        taken = min(self._clock() - began, MAX_CHARGE_SECONDS)
        self._overdrawn_until = max(self._overdrawn_until, began + taken * self._factor)
        self._free_at = max(self._free_at + (taken - SLICE_SECONDS) * self._factor, began)
