"""What the proxy knows of itself at one moment: plain values, from which every page and metric is rendered.

Taking one is quick and happens in one go, so that its numbers agree with each other; nothing in it changes afterwards,
so that rendering it may take its time. No value in it is a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Key = tuple[str, str]  # account and feed, or client and feed


@dataclass(frozen=True, slots=True)
class Lag:
    """Receive time minus message time, of messages sampled from one feed; in seconds, below 0 if the clocks differ.

    `p50` and `p99` are those of the last minute, None if it had no samples. The rest counts since the start: `samples`
    by upper bound (the last one is infinity) and cumulative, as a Prometheus histogram wants them, and their `sum`.
    """

    p50: float | None = None
    p99: float | None = None
    samples: tuple[tuple[float, int], ...] = ()
    sum: float = 0.0


@dataclass(frozen=True, slots=True)
class FeedState:
    """One upstream connection. Times are in seconds; `age` is that of the last message, None before the first.

    `wanted` counts topics by channel, `acked` those that Alpaca has confirmed. `received` are messages, `unheard` those
    of them that nobody wanted, `malformed` frames. `needed`: somebody wants something of it; `outages` are how often it
    was lost then, and `away` how many seconds that took together.
    """

    account: str
    feed: str
    phase: str
    state_age: float
    last_error: str
    wanted: Mapping[str, int]
    acked: int
    connects: int
    received: int
    unrouted: int
    malformed: int
    age: float | None
    outages: int
    outage_seconds: float
    needed: bool
    lag: Lag


@dataclass(slots=True)
class Totals:
    """What one client got of one feed since the start, over all its sessions. `lost` is by reason; what it missed in
    the `outages` of the feed that its sessions lived through, nobody knows."""

    sessions: int = 0
    delivered: int = 0
    conflated: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    outages: int = 0

    def add(self, delivered: int, conflated: int, lost: int, reason: str, outages: int = 0) -> None:
        self.outages += outages
        self.delivered += delivered
        self.conflated += conflated
        if lost:
            self.lost[reason] = self.lost.get(reason, 0) + lost

    def copy(self) -> Totals:
        return Totals(self.sessions, self.delivered, self.conflated, dict(self.lost), self.outages)


class SessionState(NamedTuple):  # made by the thousand, for which a frozen dataclass takes four times as long
    """One session of a client: `pending` of at most `limit` bytes wait in its outbox; `age` is in seconds.

    `held` are its topics, by channel and symbol. `delivered`, `conflated` and `lost` are messages.
    """

    client: str
    feed: str
    address: str
    codec: str
    age: float
    held: frozenset[tuple[str, str]]
    pending: int
    limit: int
    delivered: int
    conflated: int
    lost: int
    slow: bool


@dataclass(frozen=True, slots=True)
class FeedSecond:
    """One feed in one second: messages a second, and the lag of its samples, None if it had none."""

    received: float
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Second:
    """What happened in one second; `number` counts them. `delivered` is in messages a second, to all clients together;
    `delay` how long, at worst, whatever was due then had to wait for its turn, in seconds."""

    number: int
    feeds: Mapping[Key, FeedSecond]
    delivered: float
    delay: float


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Something that was logged: `time` in seconds since 1970, `name` as in `upstream.lost`, what it is about."""

    time: float
    level: str
    name: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything. `accounts` is how many are configured; `totals` is by client and feed.

    `time` is in seconds since 1970. Rates are messages a second over the last few seconds, `received` by account and
    feed, `delivered` by client and feed. `outboxes` are the bytes that wait in all of them, at most `outboxes_limit`.
    `seconds` are the last few minutes and `events` the newest, oldest first.
    """

    state: str
    time: float
    uptime: float
    accounts: int
    feeds: tuple[FeedState, ...]
    sessions: tuple[SessionState, ...]
    totals: Mapping[Key, Totals]
    outboxes: int
    outboxes_limit: int
    unauthenticated: int
    received: Mapping[Key, float]
    delivered: Mapping[Key, float]
    seconds: tuple[Second, ...]
    events: tuple[LogEvent, ...]

    @property
    def unready(self) -> tuple[FeedState, ...]:
        """The feeds that somebody wants and that are not live."""
        return tuple(feed for feed in self.feeds if feed.needed and feed.phase != "live")

    @property
    def ready(self) -> bool:
        """Whether it serves, and every feed that somebody wants is live."""
        return self.state == "serving" and not self.unready

    @property
    def delay(self) -> float:
        """How long anything had to wait for its turn in the last seconds, at worst; in seconds."""
        return max((second.delay for second in self.seconds[-60:]), default=0.0)
