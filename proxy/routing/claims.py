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

from proxy.protocol.topics import NOTHING, Subscription, Topic


@dataclass(frozen=True, slots=True)
class Answer:
    """What a seat is told: an error, its whole state, or (refused after an acknowledgement) one and then the other."""

    seat: Seat
    error: tuple[int, str] | None
    state: Subscription | None


@dataclass(slots=True, eq=False)
class Claim:
    """One request of a seat. `holds` shrinks as the seat gives topics up."""

    seat: Seat
    add: Subscription
    remove: Subscription
    asked: float
    holds: Subscription
    answered: bool = False
    remembered: bool = False  # answered before Alpaca was heard
    error: tuple[int, str] | None = None
    flights: int = 0  # how many requests carried a part of it


@dataclass(slots=True, eq=False)
class Seat:
    """One session's place at a feed. `member` is whom answers are for; `shown` the state that it was last told;
    `waiting` what it has asked since."""

    member: Any
    shown: Subscription = NOTHING
    claims: list[Claim] = field(default_factory=list)
    waiting: deque[Claim] = field(default_factory=deque)

    def __repr__(self) -> str:
        return f"<Seat {self.member} {len(self.shown)} topics, {len(self.waiting)} waiting>"

    @property
    def holds(self) -> Subscription:
        """Everything that the seat wants, confirmed or not."""
        return NOTHING.union(*(claim.holds for claim in self.claims))

    def recall(self, acked: Set[Topic]) -> None:
        """Sees which of its claims Alpaca has confirmed since they were acknowledged."""
        for claim in self.claims:
            claim.remembered = claim.remembered and not claim.holds <= acked

    def confirmed(self, acked: Set[Topic]) -> Subscription:
        """What Alpaca has confirmed for the seat since it asked, be it for an older connection, and stays."""
        self.recall(acked)
        confirmed = NOTHING.union(*(claim.holds for claim in self.claims if claim.answered and not claim.remembered))
        return confirmed.difference(*(claim.remove for claim in self.waiting))

    def acknowledge(self, claim: Claim) -> None:
        """The state that it is told next; without a copy, where the request is all of it."""
        shown = self.shown | claim.add if self.shown else claim.add
        self.shown = shown - claim.remove if claim.remove else shown
