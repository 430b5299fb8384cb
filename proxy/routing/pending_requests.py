"""What sessions have asked one feed for, and been told.

A *claim* is one accepted request of one session, kept while the session holds any topic of it. A *seat* is a session's
place at the feed: its claims, the state that it was last told, and the requests that it waits for. The `ledger` decides
what becomes of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """What a seat is told: an error, its whole state, or (refused after an acknowledgement) one and then the other."""

    requests: SubscriberRequests
    error: tuple[int, str] | None
    state: Subscription | None


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request of a seat. `holds` shrinks as the seat gives topics up."""

    requests: SubscriberRequests
    add: Subscription
    remove: Subscription
    asked: float
    holds: Subscription
    answered: bool = False
    remembered: bool = False  # answered before Alpaca was heard
    error: tuple[int, str] | None = None
    times_sent: int = 0  # how many requests carried a part of it


@dataclass(slots=True, eq=False)
class SubscriberRequests:
    """One session's place at a feed. `member` is whom answers are for; `shown` the state that it was last told;
    `waiting` what it has asked since."""

    member: Any
    acknowledged: Subscription = NO_TOPICS
    pending: list[PendingRequest] = field(default_factory=list)
    waiting: deque[PendingRequest] = field(default_factory=deque)

    def __repr__(self) -> str:
        return f"<SubscriberRequests {self.member} {len(self.acknowledged)} topics, {len(self.waiting)} waiting>"

    @property
    def holds(self) -> Subscription:
        """Everything that the seat wants, confirmed or not."""
        return NO_TOPICS.union(*(pending.holds for pending in self.pending))

    def recall(self, acked: Set[Topic]) -> None:
        """Sees which of its claims Alpaca has confirmed since they were acknowledged."""
        for pending in self.pending:
            pending.remembered = pending.remembered and not pending.holds <= acked

    def confirmed(self, acked: Set[Topic]) -> Subscription:
        """What Alpaca has confirmed for the seat since it asked, be it for an older connection, and stays."""
        self.recall(acked)
        confirmed = NO_TOPICS.union(
            *(pending.holds for pending in self.pending if pending.answered and not pending.remembered)
        )
        return confirmed.difference(*(pending.remove for pending in self.waiting))

    def acknowledge(self, pending: PendingRequest) -> None:
        """The state that it is told next; without a copy, where the request is all of it."""
        acknowledged = self.acknowledged | pending.add if self.acknowledged else pending.add
        self.acknowledged = acknowledged - pending.remove if pending.remove else acknowledged
