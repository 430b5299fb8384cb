"""The rules by which a node leads a feed or follows another one, one election for each feed on each node.

    NONE ──a lease is free──► LEADING ──another node is live──► NONE
      └──another node leads──► FOLLOWING ──its link is mute or broken, and its lease is free──► LEADING

Alpaca's connection slot is the fence: it admits one connection. The lease only spares attempts, so a leader whose
connection is live goes on without Redis, and a node whose link to a leader works does not care what Redis says.

Pure: `decide` returns what to do next; the caller does it and reports what came of it. `now` is in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import inf

from proxy.cluster.lease import Lease

LEASE_SECONDS = 1.0
ALONE_SECONDS = 5.0  # without Redis: before Alpaca is tried without a lease, and before an isolated leader yields
TAKEOVER_SECONDS = 3.0  # after a change of leader, for which a taken slot is tried again and again
RETRY_SECONDS = 0.3  # between those attempts
UNREACHABLE_SECONDS = 5.0  # for which the last leader is not asked again after it could not be reached


class Role(Enum):
    NONE = "none"
    LEADING = "leading"
    FOLLOWING = "following"


class Link(Enum):
    """The state of the link to the leader that is followed."""

    NONE = "none"
    WAITING = "waiting"  # connecting, or the leader is not live
    WORKING = "working"
    MUTE = "mute"


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Take the lease if it is still `over`, or write it anew; then lead."""

    over: Lease | None


@dataclass(frozen=True, slots=True)
class Lead:
    """Lead without a lease, since Redis cannot be reached."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Follow this leader. What came from another one ends."""

    leader: Lease


@dataclass(frozen=True, slots=True)
class Release:
    """Give the lease back and stop leading, but keep the link."""


@dataclass(frozen=True, slots=True)
class Yield:
    """Stop leading and close the connection to Alpaca."""

    reason: str


Step = Wait | Claim | Lead | Follow | Release | Yield


@dataclass(slots=True)
class Registered:
    """The last answer of Redis about a feed.

    `lease` and `last` (the last live leader) are those of the last answer. `since` is the time of the first answer
    after a failure, None while Redis cannot be used; `failing_since` that of the first failure.
    """

    lease: Lease | None = None
    last: Lease | None = None
    since: float | None = None
    failing_since: float = -inf

    def answered(self, lease: Lease | None, last: Lease | None, now: float, settled: bool = False) -> None:
        """Record an answer; `settled`: Redis is known not to have lost a lease."""
        if self.since is None:
            self.since = -inf if settled else now
        self.lease = lease
        self.last = last or self.last  # an emptied Redis has forgotten it

    def failed(self, now: float) -> None:
        """Record that Redis could not be used."""
        if self.since is not None or self.failing_since == -inf:
            self.failing_since = now
        self.since = self.lease = None


@dataclass(slots=True)
class Election:
    """One node's part in the election for one feed.

    `owner` is the node's own name in leases. These are kept by the caller: `role`, `live` (its own connection to
    Alpaca), `token` (of its own lease; 0 for none), `link` (in this state since `link_since`) and `leader`, whom it
    follows; a node that leads keeps a mute link until its own connection is live. `asks`: it has a source, which waits
    for a role or has one; `wanted`: it has one, or leads for its sessions. `draining`: the caller gives the lease back.
    `sessions`: it has clients of its own for the feed; `heard_at`: the last sign of life of a node that follows it.
    """

    owner: str
    role: Role = Role.NONE
    live: bool = False
    token: int = 0
    link: Link = Link.NONE
    link_since: float = -inf
    leader: Lease | None = None
    draining: bool = False
    wanted: bool = False
    asks: bool = False
    sessions: bool = False
    heard_at: float = -inf
    slot_taken: bool = False  # Alpaca has refused the last log-in with 406
    registered: Registered = field(default_factory=Registered)
    _void: set[int] = field(default_factory=set)  # tokens of leases whose owner does not lead
    _denied: set[str] = field(default_factory=set)  # owners that were found not to lead since a link to them worked
    _unreachable: dict[str, float] = field(default_factory=dict)  # by owner: when it could not be reached

    def decide(self, now: float) -> Step:
        """Return the next step."""
        if self.draining:
            return Wait()
        if not self.wanted:
            return Yield("no session wants it any more") if self.role is Role.LEADING else Wait()
        if self.role is Role.LEADING and self.link is Link.NONE:
            return self._as_leader(now)
        if self.link is Link.WORKING:
            return self._with_link()
        if self.link is Link.MUTE:
            return self._with_mute_link(now)
        return self._without_link(now)

    def gone(self, leader: Lease, now: float, *, denied: bool) -> None:
        """Record that a leader could not be reached; `denied`: nothing listens there, or it does not lead.

        One that has a live lease again after that does lead, at an address that is wrong or that this node cannot
        reach: its lease is not void.
        """
        known = self.registered
        named = [lease for lease in (known.lease, known.last, leader) if lease is not None]
        self._void &= {lease.token for lease in named}
        self._denied &= {lease.owner for lease in named}
        if denied and not (leader.live and leader.owner in self._denied):
            self._void.add(leader.token)
        if denied:
            self._denied.add(leader.owner)
        self._unreachable = {leader.owner: now}

    # The rules, by the state of this node

    def _as_leader(self, now: float) -> Step:
        known = self.registered
        if known.since is None:
            failing = now - known.failing_since >= ALONE_SECONDS
            if failing and not self.sessions and now - self.heard_at >= ALONE_SECONDS:
                return Yield("neither Redis nor another node can be reached, and no client is here")
            return Wait()
        lease = known.lease
        if lease is None or lease.owner == self.owner:
            if self.slot_taken and not self.live and self.asks and (last := self._last(now)) is not None:
                return Follow(last)
            return Claim(lease)
        if lease.token in self._void:
            return Claim(lease)
        if not self.live:
            return Follow(lease)
        if lease.live and lease.token > self.token:
            return Follow(lease)
        return Claim(lease)

    def _with_link(self) -> Step:
        if self.leader is not None:
            self._denied.discard(self.leader.owner)
        if self.role is Role.LEADING:  # the leader has come back before this node was live
            return Release()
        return self._follow_live() or Wait()

    def _with_mute_link(self, now: float) -> Step:
        if (other := self._follow_live()) is not None:
            return other
        known, leads = self.registered, self.role is Role.LEADING
        if known.since is None:
            return Lead() if not leads and now - known.failing_since >= ALONE_SECONDS else Wait()
        lease = known.lease
        if (lease is None and leads) or self._is_free(lease, now):
            return Claim(lease)
        return Release() if leads else Wait()

    def _without_link(self, now: float) -> Step:
        known = self.registered
        lease = known.lease
        if lease is not None and lease.owner != self.owner and lease.token not in self._void:
            return Follow(lease)
        if (last := self._last(now)) is not None and lease is None:
            return Follow(last)
        if known.since is None:  # a leader without clients of its own would yield
            return Lead() if self.sessions and now - known.failing_since >= ALONE_SECONDS else Wait()
        if self._is_free(lease, now):
            return Claim(lease)
        return Wait()

    def _follow_live(self) -> Follow | None:
        """Return the step to another leader that is live."""
        lease, leader = self.registered.lease, self.leader
        if lease is None or not lease.live or lease.owner == self.owner:
            return None
        if leader is not None and lease.owner == leader.owner:
            return None
        return Follow(lease)

    def _is_free(self, lease: Lease | None, now: float) -> bool:
        """Whether this node, which is not live, may claim the lease.

        After Redis was away it may have lost the lease of a leader that is live: that one comes first.
        """
        if lease is not None:
            return lease.owner == self.owner or lease.token in self._void
        since = self.registered.since
        return since is not None and now - since >= LEASE_SECONDS

    def _last(self, now: float) -> Lease | None:
        """Return the last live leader if it is worth asking: it may lead without a lease."""
        last = self.registered.last
        if last is None or last.owner == self.owner or last.token in self._void:
            return None
        if (
            self.leader is not None
            and self.leader.owner == last.owner
            and self.link is Link.WAITING
            and now - self.link_since >= ALONE_SECONDS
        ):
            return None  # it leads without a lease, but is not live
        return last if now - self._unreachable.get(last.owner, -inf) >= UNREACHABLE_SECONDS else None
