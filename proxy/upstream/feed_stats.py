"""What is measured of one feed beside its data path: how late its messages come, when the last one came, and how often
and how long it was away, for nobody can count what Alpaca would have sent meanwhile.

Both are looked at from time to time only: a sample of one message is taken many times a second, not of every message,
and whether anything came is seen at the tick.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from proxy.alpaca.codec import Codec
from proxy.alpaca.event_time import event_time
from proxy.observe.history import Lags

SAMPLE_SECONDS = 0.05


class FeedStats:
    """`due` is when the next sample may be taken. `clock` is steady time in seconds, `wall` that since 1970."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self.lags = Lags()
        self.due = clock()
        self._clock = clock
        self._wall = wall
        self.outages = 0
        self._away = 0.0  # seconds, but for an outage that is not over
        self._lost_at: float | None = None
        self._received = 0
        self._received_at: float | None = None

    def __repr__(self) -> str:
        return f"<FeedStats {self.lags!r}>"

    def sample(self, frame: bytes, codec: Codec, received_at: float) -> None:
        """Looks how old a frame's first message was when it was heard."""
        now = self._clock()
        self.due = now + SAMPLE_SECONDS
        made = event_time(frame, codec)
        if made is not None:
            self.lags.add(self._wall() - (now - received_at) - made)

    def tick(self, received: int, now: float) -> None:
        """How many messages have come so far."""
        if received != self._received:
            self._received, self._received_at = received, now

    def lost(self) -> None:
        """The feed was live, and somebody wants it."""
        self.outages += 1
        self._lost_at = self._clock()

    def found(self) -> None:
        """It is live, or nobody wants it any more."""
        self._away, self._lost_at = self.outage_seconds(), None

    def outage_seconds(self) -> float:
        """Seconds of all outages since the start."""
        return self._away + (0.0 if self._lost_at is None else self._clock() - self._lost_at)

    def age(self, now: float) -> float | None:
        """Seconds since the last message, as of the last tick; None before the first."""
        return None if self._received_at is None else now - self._received_at
