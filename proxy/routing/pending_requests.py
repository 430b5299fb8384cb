"""The requests of each session at one feed, and their answers.

`SubscriberRequests` is the state of one session at the feed: its accepted requests, the state that it was last sent,
and the requests without an answer. A `PendingRequest` is one accepted request, kept while the session holds any topic
of it. The reconciler changes both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """The answer to a request: an error, or all topics that the subscriber holds.

    With both `error` and `state` set, a request that was acknowledged already has been refused: the error is sent
    first, then the state.
    """

    requests: SubscriberRequests
    error: tuple[int, str] | None
    state: Subscription | None


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request of a subscriber. `holds` shrinks as the subscriber gives topics up."""

    requests: SubscriberRequests
    add: Subscription
    remove: Subscription
    requested_at: float
    holds: Subscription
    answered: bool = False
    provisional: bool = False  # acknowledged before Alpaca had confirmed it
    error: tuple[int, str] | None = None
    times_sent: int = 0  # upstream requests that carried a part of it


@dataclass(slots=True, eq=False)
class SubscriberRequests:
    """The requests of one session at a feed.

    `member` receives the answers; `acknowledged` is the state that it was last sent; `revoked` are topics that were
    taken away, which no answer holds until they are requested again; `pending` are the requests that hold topics,
    answered or not; `unanswered` are those without an answer, in order.
    """

    member: Any
    acknowledged: Subscription = NO_TOPICS
    revoked: Subscription = NO_TOPICS
    pending: list[PendingRequest] = field(default_factory=list)
    unanswered: deque[PendingRequest] = field(default_factory=deque)

    def __repr__(self) -> str:
        return f"<SubscriberRequests {self.member} {len(self.acknowledged)} topics, {len(self.unanswered)} waiting>"

    @property
    def holds(self) -> Subscription:
        """All topics that the subscriber has requested and not given up."""
        return NO_TOPICS.union(*(pending.holds for pending in self.pending))

    def update_provisional(self, acked: Set[Topic]) -> None:
        """Clear `provisional` of the requests that Alpaca has confirmed in the meantime."""
        for pending in self.pending:
            pending.provisional = pending.provisional and not pending.holds <= acked

    def confirmed(self, acked: Set[Topic]) -> Subscription:
        """Return the topics that Alpaca has confirmed for this subscriber.

        A confirmation on an earlier connection counts. Topics that an unanswered request removes are left out.
        """
        self.update_provisional(acked)
        confirmed = NO_TOPICS.union(
            *(pending.holds for pending in self.pending if pending.answered and not pending.provisional)
        )
        return confirmed.difference(*(pending.remove for pending in self.unanswered))

    def acknowledge(self, pending: PendingRequest) -> None:
        """Update `acknowledged`, without a copy if the request is all of it."""
        acknowledged = self.acknowledged | pending.add if self.acknowledged else pending.add
        self.acknowledged = acknowledged - pending.remove if pending.remove else acknowledged
