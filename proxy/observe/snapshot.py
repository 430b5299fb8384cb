"""The state of the proxy at one moment, as plain values; every page and metric is rendered from it.

A snapshot is taken quickly and without yielding, so its numbers are consistent. It never changes afterwards, so
rendering may yield. No value in it is a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Key = tuple[str, str]  # account and feed, or client and feed
RefusalKey = tuple[str, str, str]  # client, feed and reason; client and feed may be empty


@dataclass(frozen=True, slots=True)
class Lag:
    """Receive time minus message time, of messages sampled from one feed; in seconds, below 0 if the clocks differ.

    `p50` and `p99` are of the last minute, None without samples. The rest counts since the start: `samples` are
    cumulative counts by upper bound (the last one is infinity), as in a Prometheus histogram, and `sum` is their sum.
    """

    p50: float | None = None
    p99: float | None = None
    samples: tuple[tuple[float, int], ...] = ()
    sum: float = 0.0


@dataclass(frozen=True, slots=True)
class FeedState:
    """One upstream connection. Times are in seconds; `age` is the time since the last message, None before the first.

    `wanted` counts topics by channel, `acked` those that Alpaca has confirmed. `received` counts messages,
    `unrouted` the messages among them that no session had subscribed to, `malformed` frames, and `irregular` by
    reason the messages that could not be passed on as they came. `unowned` counts order updates that belong to no
    client, `recovered` those that were read from Alpaca's records after an outage; both are None for market data.
    `needed`: some session wants a topic of the feed. `outages` counts the outages while it was needed,
    `outage_seconds` is their total time; `silences` counts the times that it was connected anew since it had fallen
    silent. `next_attempt` is the time until the next connection is opened, None if none is due.
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
    irregular: Mapping[str, int]
    age: float | None
    outages: int
    outage_seconds: float
    silences: int
    needed: bool
    lag: Lag
    next_attempt: float | None = None
    unowned: int | None = None
    recovered: int | None = None


@dataclass(slots=True)
class Totals:
    """Counts of one client and feed since the start, over all its sessions.

    `lost` is by reason. `outages` counts the outages of the feed while it had sessions; the messages missed in them
    cannot be counted.
    """

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


class SessionState(NamedTuple):  # thousands in a snapshot; a frozen dataclass takes four times as long to create
    """One session of a client: its outbox holds `pending` of at most `limit` bytes; `age` is in seconds.

    `held` are its topics, as (channel, symbol), of the account's feed. `delivered`, `conflated` and `lost` count
    messages.
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
    account: str = ""


class ClientPresence(NamedTuple):
    """A configured client: the number of its sessions, and when it last had one, in seconds since 1970.

    `last_seen` is the snapshot's time while it has a session, and None if it has had none since the start.
    """

    client: str
    connected: int
    last_seen: float | None


@dataclass(frozen=True, slots=True)
class FeedSecond:
    """One feed in one second: messages a second, and the lag of its samples, None without samples."""

    received: float
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Second:
    """One second of the history; `number` counts them from the start.

    `delivered` is messages a second to all clients together, and `clients` to each client and feed. `pending` are the
    bytes in the fullest outbox of each. Both leave out the zeros, since most clients are idle most of the time. `delay`
    is the longest delay of the event loop, in seconds.
    """

    number: int
    feeds: Mapping[Key, FeedSecond]
    delivered: float
    clients: Mapping[Key, float]
    pending: Mapping[Key, int]
    delay: float


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A logged event: `time` in seconds since 1970, `name` as in `upstream.lost`, and its fields."""

    time: float
    level: str
    name: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ReloadState:
    """The reloads of the configuration file. Times are in seconds since 1970.

    `count` counts those that have ended, `running` tells whether one is under way. Of the last one, `time` is its end
    (None before the first), `ok` whether its file was applied, `plan` what that changed, and `problems` are the reasons
    why it was not applied. `applied_at` is the time at which a file was last applied, the start included.
    """

    count: int
    running: bool
    time: float | None
    ok: bool
    plan: tuple[str, ...]
    problems: tuple[str, ...]
    applied_at: float

    def ended(self, time: float, plan: tuple[str, ...], problems: tuple[str, ...]) -> ReloadState:
        """The state after one more reload, which was applied if it had no problems."""
        ok = not problems
        return ReloadState(self.count + 1, False, time, ok, plan, problems, time if ok else self.applied_at)


@dataclass(frozen=True, slots=True)
class RecordingState:
    """The recording: `messages` and `bytes` written by feed, and messages `dropped` by feed and reason.

    `active` are the feeds that this proxy records now; the others are recorded by another node, or by none while the
    feed is not live.
    `pending` bytes of at most `limit` wait for the disk. `newest` is the name of the newest file, `last_at` the time of
    the last write in seconds since 1970. `free` is the free space of the disk, in bytes. None: not known yet.
    `problem` is the reason why nothing can be written now, if so.
    """

    folder: str
    feeds: tuple[str, ...]
    active: frozenset[str]
    messages: Mapping[str, int]
    bytes: Mapping[str, int]
    dropped: Mapping[tuple[str, str], int]
    pending: int
    limit: int
    newest: str
    last_at: float | None
    free: int | None
    min_free: int
    problem: str


class ClusterNode(NamedTuple):
    """A node of the cluster as it announced itself, this one included. `feeds` counts those that its clients use."""

    name: str
    url: str
    version: str
    feeds: int


@dataclass(frozen=True, slots=True)
class ClusterFeed:
    """One feed of this node in the cluster.

    `role` is `leading`, `following` or `none`. `leader` is the name of the node that leads, this one's if it is
    `leading`, and empty if it is not known. `live` is whether that node is connected to Alpaca, as far as this one
    knows. `token` is that of the leader's lease.

    `link` is the state of the link to the leader: `none`, `waiting` (for the leader to be live), `working` or `mute`
    (open, but nothing comes). `round_trip` is that of its last ping, in seconds, None without one. `links` counts the
    nodes that follow this one, `changes` the changes of leader since the start.
    """

    account: str
    feed: str
    role: str
    leader: str
    live: bool
    token: int
    link: str
    round_trip: float | None
    links: int
    changes: int


@dataclass(frozen=True, slots=True)
class ClusterState:
    """This node of a cluster, and the others.

    `redis` is its URL without user and password. `redis_problem` is why Redis cannot be used, with the next step; empty
    while it answers. `nodes` are those that Redis knew when it last answered. `refused` counts log-ins of other nodes
    that were refused, but not those that came to a node that does not lead.
    """

    name: str
    url: str
    redis: str
    redis_problem: str
    nodes: tuple[ClusterNode, ...]
    feeds: tuple[ClusterFeed, ...]
    refused: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state. `accounts` is the number of configured accounts; `totals` is by client and feed.

    `configured` are all clients of the configuration, connected or not.
    `pid` is the id of the process, `pid_start` its start time in the kernel's clock ticks, None if that is not known.
    `time` is in seconds since 1970. `received` (by account and feed) and `delivered` (by client and feed) are rates in
    messages a second over the last few seconds. `outboxes` is the number of bytes pending in all outboxes, at most
    `outboxes_limit`. `seconds` are the last few minutes, `events` the newest log events; both oldest first.
    `refused` counts HTTP requests and log-ins that were refused, `refused_requests` requests of sessions.
    `recording` is None if nothing is recorded, `cluster` if the proxy is no node of a cluster.
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
    configured: tuple[ClientPresence, ...]
    pid: int
    pid_start: int | None
    reload: ReloadState
    refused: Mapping[RefusalKey, int] = field(default_factory=dict)
    refused_requests: Mapping[RefusalKey, int] = field(default_factory=dict)
    recording: RecordingState | None = None
    cluster: ClusterState | None = None

    @property
    def unready(self) -> tuple[FeedState, ...]:
        """The feeds that are needed and not live."""
        return tuple(feed for feed in self.feeds if feed.needed and feed.phase != "live")

    @property
    def ready(self) -> bool:
        """Whether the proxy serves and every needed feed is live."""
        return self.state == "serving" and not self.unready

    @property
    def delay(self) -> float:
        """The longest delay of the event loop in the last 60 seconds, in seconds."""
        return max((second.delay for second in self.seconds[-60:]), default=0.0)
