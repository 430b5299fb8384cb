"""A session at one feed, and its requests.

A client's request is one `PendingRequest` in the one queue of its session. `routing.reconciler` changes its state; the
session answers requests from the front of the queue once they are resolved:

    PENDING ──Alpaca confirms────────────► CONFIRMED ──┐
       ├──────after ACK_SECONDS──────────► REMEMBERED ─┴► answered with all topics that the session holds
       └──────Alpaca refuses─────────────► REFUSED ─────► answered with the error

A remembered request becomes confirmed or refused later. What a session holds is stored in its subscriber: `confirmed`,
one set whatever the number of requests that brought its topics, and the remembered requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from proxy.alpaca.codec import Codec, Raw
from proxy.alpaca.endpoints import Endpoint
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.routing.allowlists import SymbolPatterns

Error = tuple[int, str]


class RequestState(Enum):
    PENDING = "pending"
    CONFIRMED = "confirmed"
    REMEMBERED = "remembered"
    REFUSED = "refused"


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request of a session at a feed: topics to add, and topics to remove when it is answered.

    `topics` are those that the request adds to what the session has confirmed; they shrink when the session gives
    topics up, and when Alpaca refuses them or leaves them out. `silent`: no acknowledgement is sent, since the next
    request's covers it. `divisible`: a part of the topics may be refused, since several requests brought them.
    `confirmed_before`: it was made from what the session had confirmed.

    `alone`: it is not merged with others upstream, since an earlier request with its topics was refused or has failed.
    `failures` counts the requests upstream that carried it alone and got no verdict, `closes` those in answer to which
    the connection was closed; it is not sent again before `retry_at`. `blamed`: the connection was closed in answer to
    an upstream request that carried a part of it.
    """

    subscriber: Subscriber
    add: Subscription
    remove: Subscription
    requested_at: float
    silent: bool = False
    topics: Subscription = NO_TOPICS
    state: RequestState = RequestState.PENDING
    error: Error | None = None
    answered: bool = False
    complete: bool = True  # all of its topics are counted as wanted
    divisible: bool = False
    confirmed_before: bool = False
    alone: bool = False
    times_sent: int = 0  # upstream requests that carried a part of it
    failures: int = 0
    closes: int = 0
    blamed: bool = False
    others_confirmed: bool = False  # a request with topics of others was confirmed since the last of the closes
    retry_at: float = 0.0

    def __repr__(self) -> str:
        return f"<PendingRequest {self.state.value} +{len(self.add)} -{len(self.remove)} topics>"

    @property
    def resolved(self) -> bool:
        """Whether the request can be answered."""
        return self.state is not RequestState.PENDING


Queue = deque[PendingRequest | bytes | None]
"""A session's requests without an answer, in order; bytes are an answer that is ready, None an acknowledgement."""


class Session(Protocol):
    """The part of a `downstream.client_session.ClientSession` that its feeds use."""

    def answer(self) -> None:
        """Answer the requests at the front of the queue that are resolved."""

    def report(self, error: Error | None) -> None:
        """Send the state, which has changed without a request; before it the error, if that is the cause."""

    def abort(self) -> None:
        """End the connection at once."""


class Feed(Protocol):
    """The part of an `upstream.supervisor.FeedSupervisor` that sessions use: one feed of one account."""

    endpoint: Endpoint

    def request(self, request: PendingRequest) -> Iterator[None]:
        """Take a request that its session has queued, yielding between chunks of topics."""

    def apply(self, request: PendingRequest) -> None:
        """Give the session what a resolved request brings; its messages are not sent yet."""

    def install(self, subscriber: Subscriber) -> list[tuple[bytes, int]]:
        """Have the messages of all that the subscriber holds sent from now on, right after they are acknowledged.

        Return the data frames to send first, each with its number of messages.
        """

    def revoke(self, subscriber: Subscriber, topics: Subscription) -> None:
        """Take topics away: no message of them is sent from now on."""

    def adopt(self, subscriber: Subscriber, topics: Subscription) -> list[tuple[bytes, int]]:
        """Add a subscriber that wants these topics and held them at another account; return as `install` does."""

    def leave(self, subscriber: Subscriber) -> None:
        """Remove a subscriber and all its topics."""

    def book(self, symbol: str, codec: Codec) -> Raw | bytes | None:
        """Return the body of a message with a pair's whole order book, or None if it is not kept."""


class Subscriber:
    """A session at one feed: what it holds, and where its messages go.

    A session on market data has one; a session on `/stream` may have two, for trading and the default feed. `queue` is
    the session's. `withheld` are topics that it holds but Alpaca does not send, as the session has been told. `left`:
    the session has ended, or may no longer use the feed. `patient`: it is told nothing that Alpaca has not said, since
    it is another node, whose clients' patience is its own; so none of its requests is remembered for want of an answer,
    and one that got no verdict is returned to it with an error 500.
    """

    def __init__(
        self,
        session: Session,
        feed: Feed,
        queue: Queue,
        *,
        name: str,
        codec: Codec,
        put: Callable[[bytes, int], None],
        accepts_unknown: SymbolPatterns | None = None,
        patient: bool = False,
    ) -> None:
        self.session = session
        self.feed = feed
        self.queue = queue
        self.name = name
        self.codec = codec
        self.put = put
        self.accepts_unknown = accepts_unknown
        self.patient = patient
        self.outages = 0
        self.left = False
        self.confirmed: Subscription = NO_TOPICS
        self.remembered: list[PendingRequest] = []
        self.withheld: Subscription = NO_TOPICS

    def __repr__(self) -> str:
        return f"<Subscriber {self.name} {len(self.held)} topics, {len(self.queue)} waiting>"

    @property
    def held(self) -> Subscription:
        """The topics that the session holds: those of its last acknowledgement."""
        held = _union([self.confirmed, *(request.topics for request in self.remembered)])
        return held - self.withheld if self.withheld else held

    @property
    def wanted(self) -> Subscription:
        """All topics that the session has requested and not given up, answered or not."""
        waiting = (request.topics if request.complete else request.add for request in self.waiting)
        return _union([self.confirmed, *(request.topics for request in self.remembered), *waiting])

    @property
    def waiting(self) -> list[PendingRequest]:
        """The requests of this subscriber without an answer, in order."""
        return [item for item in self.queue if isinstance(item, PendingRequest) and item.subscriber is self]

    def forget_withheld(self) -> None:
        """Forget the withheld topics that it does not want any more."""
        if self.withheld:
            self.withheld &= self.wanted

    def abort(self) -> None:
        """End the session at once, after an internal error."""
        self.session.abort()


def _union(sets: list[Subscription]) -> Subscription:
    """Return the union, without a copy if only one of the sets has topics."""
    filled = [topics for topics in sets if topics]
    return filled[0] if len(filled) == 1 else NO_TOPICS.union(*filled)


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """The outcome that a session tells its client.

    Its requests at the front of the queue are resolved or, with `unasked`, its state has changed without a request;
    `error` is the refusal that is the cause.
    """

    subscriber: Subscriber
    unasked: bool = False
    error: Error | None = None
