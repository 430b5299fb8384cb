"""What the proxy knows of itself at one moment: plain values, from which every page and metric is rendered."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FeedState:
    """One upstream connection. Times are in seconds; `age` is that of the last frame, None before the first."""

    account: str
    feed: str
    phase: str
    since: float
    trouble: str
    wanted: int
    acked: int
    connects: int
    received: int
    unheard: int
    malformed: int
    age: float | None
    needed: bool


@dataclass(slots=True)
class Totals:
    """What one client got of one feed since the start, over all its sessions. `lost` is by reason."""

    sessions: int = 0
    delivered: int = 0
    conflated: int = 0
    lost: dict[str, int] = field(default_factory=dict)

    def add(self, delivered: int, conflated: int, lost: int, reason: str) -> None:
        self.delivered += delivered
        self.conflated += conflated
        if lost:
            self.lost[reason] = self.lost.get(reason, 0) + lost


@dataclass(frozen=True, slots=True)
class SessionState:
    """One session of a client."""

    client: str
    feed: str
    address: str
    codec: str
    topics: int
    pending: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything. `totals` is by client and feed."""

    state: str
    uptime: float
    feeds: tuple[FeedState, ...]
    sessions: tuple[SessionState, ...]
    totals: dict[tuple[str, str], Totals]
    outboxes: int
    strangers: int

    @property
    def unready(self) -> tuple[FeedState, ...]:
        """The feeds that somebody wants and that are not live."""
        return tuple(feed for feed in self.feeds if feed.needed and feed.phase != "live")
