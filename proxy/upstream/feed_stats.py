"""Measurements of one feed: lag, age of the last message, outages.

Outages are measured because the messages that Alpaca would have sent meanwhile cannot be counted.

Nothing is measured for every message: lag is sampled from one message every SAMPLE_SECONDS, and whether messages
arrived is checked at each tick.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from proxy.alpaca.codec import Codec
from proxy.alpaca.event_time import event_time
from proxy.observe.history import Lags

SAMPLE_SECONDS = 0.05


class FeedStats:
    """The measurements of one feed.

    `due` is when the next sample may be taken. `clock` is monotonic time, `wall` Unix time, both in seconds.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self.lags = Lags()
        self.due = clock()
        self._clock = clock
        self._wall = wall
        self.outages = 0
        self._past_outages = 0.0  # seconds, without a current outage
        self._lost_at: float | None = None
        self._received = 0
        self._received_at: float | None = None

    def __repr__(self) -> str:
        return f"<FeedStats {self.lags!r}>"

    def sample(self, frame: bytes, codec: Codec, received_at: float) -> None:
        """Add the lag of a frame's first message: from its event time to `received_at`."""
        now = self._clock()
        self.due = now + SAMPLE_SECONDS
        created = event_time(frame, codec)
        if created is not None:
            self.lags.add(self._wall() - (now - received_at) - created)

    def tick(self, received: int, now: float) -> None:
        """Note whether `received`, the count of messages so far, has changed."""
        if received != self._received:
            self._received, self._received_at = received, now

    def begin_outage(self) -> None:
        """Begin an outage: the connection was live, and sessions want topics of it."""
        self.outages += 1
        self._lost_at = self._clock()

    def end_outage(self) -> None:
        """End the outage, if there is one.

        The feed is live again, or no session wants it any more.
        """
        self._past_outages, self._lost_at = self.outage_seconds(), None

    def outage_seconds(self) -> float:
        """Return the seconds of all outages since the start, a current one included."""
        return self._past_outages + (0.0 if self._lost_at is None else self._clock() - self._lost_at)

    def age(self, now: float) -> float | None:
        """Return the seconds since the last message; None before the first.

        The last message is dated by the tick that noticed it.
        """
        return None if self._received_at is None else now - self._received_at
