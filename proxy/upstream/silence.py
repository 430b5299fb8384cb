"""Detect a feed that has fallen silent although it is connected.

A connection may stay open, and answer pings, while Alpaca sends nothing on it any more. Silence alone shows nothing:
minute bars come once a minute, and nothing comes at night. But a feed that was never silent for GAP_SECONDS over
minutes, and then is for `limit` seconds, is taken for broken.
"""

from __future__ import annotations

GAP_SECONDS = 5.0
LEAST_OBSERVED_SECONDS, OBSERVED_SECONDS = 60.0, 300.0
PAUSE_SECONDS = 300.0  # between two silences that are reported


class SilenceDetector:
    """Whether a feed was busy and is silent now; `limit` in seconds, None for never. `now` is monotonic time."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._received = 0  # at the last tick
        self._began: float | None = None  # the first message that is observed
        self._busy_since = self._last = 0.0
        self._reported_at = float("-inf")

    def __repr__(self) -> str:
        return f"<SilenceDetector {self._last - self._busy_since:.0f} s busy>"

    def restart(self) -> None:
        """Observe anew: on a new connection, and when topics were given up."""
        self._began = None

    def tick(self, received: int, now: float) -> bool:
        """Return whether the feed has fallen silent; `received` is its count of messages so far."""
        if received != self._received:
            if self._began is None:
                self._began = self._busy_since = now
            elif now - self._last > GAP_SECONDS:
                self._busy_since = now
            self._received, self._last = received, now
            return False
        if self.limit is None or self._began is None or now - self._last < self.limit:
            return False
        observed = self._last - self._began
        busy = self._last - self._busy_since
        if observed < LEAST_OBSERVED_SECONDS or busy < min(observed, OBSERVED_SECONDS):
            return False
        if now - self._reported_at < PAUSE_SECONDS:
            return False
        self._reported_at = now
        self.restart()
        return True
