"""A conversation's place at a feed, and the order of its answers.

A `Place` is what the feed's router and ledger know of a session: who it is, which codec it takes, where its messages
go. A conversation on market data has one; one on `/stream` may have two, trading and the default feed.

Alpaca answers requests in their order. Here one may have to wait for Alpaca while the next could be answered at once,
so answers stand in a line, `Answers`, and leave it from the front.
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
    """One answer in the line. It is ready when `left` feeds have still to be heard, none; `payload` is set if what it
    says is known already, `error` if a feed refused, `heard` once a feed has answered."""

    left: int
    payload: bytes | None = None
    error: tuple[int, str] | None = None
    resolved: Event = field(default_factory=Event)

    def resolve(self, error: tuple[int, str] | None) -> None:
        """One feed has answered."""
        self.left -= 1
        self.error = self.error or error
        self.resolved.set()


class ReplyQueue:
    """The line. `acked` and `refused` make the bytes of an answer, `send` sends them; `prepare` makes those of a long
    acknowledgement beforehand, with pauses."""

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

    def add(self, due: PendingReply) -> None:
        """One more at the end; it may leave at once."""
        self._queue.append(due)
        self.advance()

    def reply(self, payload: bytes) -> None:
        """An answer that waits for nobody but those before it."""
        self.add(PendingReply(0, payload))

    def advance(self) -> None:
        """Sends those at the front that are ready."""
        while self._queue and not self._queue[0].left:
            due = self._queue.popleft()
            if due.payload is not None:
                self._send(due.payload)
            else:
                self._send(self._acked() if due.error is None else self._refused(*due.error))

    def end(self) -> None:
        """Nobody is there to be answered any more; whoever made the answers is let go of."""
        self._queue.clear()
        self.prepare = self._acked = self._refused = self._send = _nothing

    def refuse_late(self, error: tuple[int, str]) -> None:
        """A refusal of what was acknowledged already: the error, then the state as it now is."""
        self._send(self._refused(*error))
        self._send(self._acked())


def _nothing(*_: object) -> Any:
    return b""


class Subscriber:
    """A session at one feed. `put` takes its data frames; `held` is the state that it was last told."""

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
        self._answers = replies
        self._asked: deque[PendingReply] = deque()

    def __repr__(self) -> str:
        return f"<Subscriber {self.name} at {self.upstream.endpoint.feed}>"

    def request_change(self, add: Subscription, remove: Subscription, due: PendingReply, since: float = inf) -> None:
        """Asks the feed for a change, which the client asked for `since` or now; `due` becomes ready when it has
        answered."""
        self._asked.append(due)
        self.upstream.change(self, add, remove, since)

    def prepare(self, answer: RequestOutcome) -> Iterator[None]:
        """Makes ready what the client will hear of it; pauses where others may have a turn."""
        yield from self._answers.prepare(answer.state or NO_TOPICS)

    def answered(self, answer: RequestOutcome) -> None:
        """The feed's answer to the oldest request that it has not answered, or a late refusal of an older one."""
        if answer.state is not None:
            self.held = answer.state
        if answer.error is not None and answer.state is not None:
            self._answers.refuse_late(answer.error)
            return
        self._asked.popleft().resolve(answer.error)
        self._answers.advance()

    def whole_book(self, symbol: str) -> Raw | bytes | None:
        """A pair's order book in full, as this session's codec and its names have it; None if it is not known."""
        return self.upstream.router.book(self.codec.to_alpaca_symbol(symbol), self.codec)

    def refresh_permissions(self, client: Client) -> None:
        """The client's allowlist may have changed what unknown kinds it hears."""
        self.accepts_unknown = client.allow.accepts_unknown(self.upstream.endpoint.feed)
        if not self.left:
            self.upstream.router.set_subscription(self, self.held)

    @property
    def left(self) -> bool:
        """Whether the session has left for good, though its last words may still be on their way."""
        return self.requests.member is None

    def leave(self) -> None:
        """The session is gone. Its seat lets go of it, so that nothing refers back to it."""
        self.upstream.leave(self)
        self.requests.member = None

    def move(self, upstream: Feed) -> None:
        """The client's account for this feed is another now, which is asked for all that is held; what was still
        waited for counts as held. If that account refuses something, the client hears so."""
        if self.left:
            return
        requests = [pending.holds for pending in self.requests.pending]
        self.held = self.requests.holds
        self.leave()
        self.upstream, self.requests = upstream, SubscriberRequests(self)
        while self._asked:
            self._asked.popleft().resolve(None)
        self._answers.advance()
        upstream.adopt(self, requests)
