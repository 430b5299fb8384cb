"""A session's subscription to one feed, and the queue of its replies.

A `Subscriber` is a session as the feed's router and reconciler see it: the client's name, its codec, and where its
messages go. A session on market data has one; a session on `/stream` may have two, for trading and the default feed.

Alpaca answers requests in their order. In the proxy one request may wait for Alpaca while the next could be answered at
once, so replies pass through a `ReplyQueue`, which sends them from the front.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from gevent.event import Event

from proxy.alpaca.codec import Codec, Raw
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.routing.allowlists import Client
from proxy.routing.feed import Feed
from proxy.routing.pending_requests import RequestOutcome, SubscriberRequests


@dataclass(slots=True, eq=False)
class PendingReply:
    """A reply in the queue; ready when `left` is 0.

    `left` is the number of feeds that have not answered yet. `payload` is set if its bytes need no answer of a feed,
    `error` if a feed has refused, `resolved` once a feed has answered.
    """

    left: int
    payload: bytes | None = None
    error: tuple[int, str] | None = None
    resolved: Event = field(default_factory=Event)

    def resolve(self, error: tuple[int, str] | None) -> None:
        """Record the answer of one feed; the first error is kept."""
        self.left -= 1
        self.error = self.error or error
        self.resolved.set()


class ReplyQueue:
    """The pending replies of one session, in the order of its requests.

    `acked` and `refused` return the bytes of a reply, and `send` sends them. `prepare` computes a long acknowledgement
    in advance, yielding between chunks.
    """

    def __init__(
        self,
        *,
        prepare: Callable[[Subscription], Iterator[None]],
        acked: Callable[[], bytes],
        refused: Callable[[int, str], bytes],
        send: Callable[[bytes], None],
    ) -> None:
        self._queue: deque[PendingReply] = deque()
        self.prepare = prepare
        self._acked = acked
        self._refused = refused
        self._send = send

    def __repr__(self) -> str:
        return f"<ReplyQueue {len(self)} due>"

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, reply: PendingReply) -> None:
        """Queue a reply; send it now if it is ready and first."""
        self._queue.append(reply)
        self.advance()

    def reply(self, payload: bytes) -> None:
        """Queue a reply that is ready now."""
        self.add(PendingReply(0, payload))

    def advance(self) -> None:
        """Send the replies at the front that are ready."""
        while self._queue and not self._queue[0].left:
            reply = self._queue.popleft()
            if reply.payload is not None:
                self._send(reply.payload)
            else:
                self._send(self._acked() if reply.error is None else self._refused(*reply.error))

    def end(self) -> None:
        """Drop all replies, and the references to the session's callbacks."""
        self._queue.clear()
        self.prepare = self._acked = self._refused = self._send = _empty

    def refuse_late(self, error: tuple[int, str]) -> None:
        """Refuse a request that was acknowledged already.

        The error is sent first, then the current state.
        """
        self._send(self._refused(*error))
        self._send(self._acked())


def _empty(*_: object) -> Any:
    return b""


class Subscriber:
    """A session at one feed.

    `put` takes its data frames, `held` is the subscription that was last acknowledged.
    """

    def __init__(
        self,
        client: Client,
        upstream: Feed,
        codec: Codec,
        put: Callable[[bytes, int], None],
        replies: ReplyQueue,
    ) -> None:
        self.name = client.name
        self.codec = codec
        self.accepts_unknown = client.allow.accepts_unknown(upstream.endpoint.feed)
        self.outages = 0
        self.put = put
        self.requests = SubscriberRequests(self)
        self.upstream = upstream
        self.held: Subscription = NO_TOPICS
        self._replies = replies
        self._unresolved: deque[PendingReply] = deque()

    def __repr__(self) -> str:
        return f"<Subscriber {self.name} at {self.upstream.endpoint.feed}>"

    def request_change(self, add: Subscription, remove: Subscription, reply: PendingReply, since: float = inf) -> None:
        """Request a change from the feed; `reply` is resolved when the feed has answered.

        `since` is when the client asked, if that was earlier.
        """
        self._unresolved.append(reply)
        self.upstream.change(self, add, remove, since)

    def revoke(self, topics: Subscription, reply: PendingReply) -> None:
        """Remove topics at once; `reply` is resolved in its order."""
        self.held -= topics
        self._unresolved.append(reply)
        self.upstream.revoke(self, topics)

    def prepare(self, outcome: RequestOutcome) -> Iterator[None]:
        """Compute the reply to an outcome in advance, yielding between chunks."""
        yield from self._replies.prepare(outcome.state or NO_TOPICS)

    def answered(self, outcome: RequestOutcome) -> None:
        """Handle the feed's answer to its oldest unanswered request.

        It may also be a late refusal of an older one.
        """
        if outcome.state is not None:
            self.held = outcome.state
        if outcome.error is not None and outcome.state is not None:
            self._replies.refuse_late(outcome.error)
            return
        self._unresolved.popleft().resolve(outcome.error)
        self._replies.advance()

    def whole_book(self, symbol: str) -> Raw | bytes | None:
        """Return a pair's full order book in this session's codec, or None.

        `symbol` is the codec's own name of the pair.
        """
        return self.upstream.router.book(self.codec.to_alpaca_symbol(symbol), self.codec)

    def refresh_permissions(self, client: Client) -> None:
        """Apply the client's new allowlist to messages of unknown kinds."""
        self.accepts_unknown = client.allow.accepts_unknown(self.upstream.endpoint.feed)
        if not self.left:
            self.upstream.router.set_subscription(self, self.held)

    @property
    def left(self) -> bool:
        """Whether the subscriber has left the feed for good.

        Its last frames may still be in the outbox.
        """
        return self.requests.member is None

    def leave(self) -> None:
        """Leave the feed, and clear the reference of `requests` back to this subscriber."""
        self.upstream.leave(self)
        self.requests.member = None

    def move(self, upstream: Feed) -> None:
        """Move to another account's connection and request all held topics there.

        Requests without an answer are acknowledged. If the new account refuses a topic, the client is sent the error.
        """
        if self.left:
            return
        requests = [pending.holds for pending in self.requests.pending]
        self.held = self.requests.holds
        self.leave()
        self.upstream, self.requests = upstream, SubscriberRequests(self)
        while self._unresolved:
            self._unresolved.popleft().resolve(None)
        self._replies.advance()
        upstream.adopt(self, requests)
