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

from proxy.net.upstream import Upstream
from proxy.protocol.codec import Codec, Raw
from proxy.protocol.topics import NOTHING, Subscription
from proxy.routing.access import Client
from proxy.routing.claims import Answer, Seat


@dataclass(slots=True, eq=False)
class Due:
    """One answer in the line. It is ready when `left` feeds have still to be heard, none; `payload` is set if what it
    says is known already, `error` if a feed refused, `heard` once a feed has answered."""

    left: int
    payload: bytes | None = None
    error: tuple[int, str] | None = None
    heard: Event = field(default_factory=Event)

    def hear(self, error: tuple[int, str] | None) -> None:
        """One feed has answered."""
        self.left -= 1
        self.error = self.error or error
        self.heard.set()


class Answers:
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
        self._line: deque[Due] = deque()
        self.prepare = prepare
        self._acked = acked
        self._refused = refused
        self._send = send

    def __repr__(self) -> str:
        return f"<Answers {len(self)} due>"

    def __len__(self) -> int:
        return len(self._line)

    def add(self, due: Due) -> None:
        """One more at the end; it may leave at once."""
        self._line.append(due)
        self.advance()

    def say(self, payload: bytes) -> None:
        """An answer that waits for nobody but those before it."""
        self.add(Due(0, payload))

    def advance(self) -> None:
        """Sends those at the front that are ready."""
        while self._line and not self._line[0].left:
            due = self._line.popleft()
            if due.payload is not None:
                self._send(due.payload)
            else:
                self._send(self._acked() if due.error is None else self._refused(*due.error))

    def end(self) -> None:
        """Nobody is there to be answered any more; whoever made the answers is let go of."""
        self._line.clear()
        self.prepare = self._acked = self._refused = self._send = _nothing

    def late(self, error: tuple[int, str]) -> None:
        """A refusal of what was acknowledged already: the error, then the state as it now is."""
        self._send(self._refused(*error))
        self._send(self._acked())


def _nothing(*_: object) -> Any:
    return b""


class Place:
    """A session at one feed. `put` takes its data frames; `held` is the state that it was last told."""

    def __init__(
        self, client: Client, upstream: Upstream, codec: Codec, put: Callable[[bytes, int], None], answers: Answers
    ) -> None:
        self.name = client.name
        self.codec = codec
        self.curious = client.allow.takes_unknown(upstream.endpoint.feed)
        self.outages = 0
        self.put = put
        self.seat = Seat(self)
        self.upstream = upstream
        self.held: Subscription = NOTHING
        self._answers = answers
        self._asked: deque[Due] = deque()

    def __repr__(self) -> str:
        return f"<Place {self.name} at {self.upstream.endpoint.feed}>"

    def ask(self, add: Subscription, remove: Subscription, due: Due, since: float = inf) -> None:
        """Asks the feed for a change, which the client asked for `since` or now; `due` becomes ready when it has
        answered."""
        self._asked.append(due)
        self.upstream.change(self, add, remove, since)

    def prepare(self, answer: Answer) -> Iterator[None]:
        """Makes ready what the client will hear of it; pauses where others may have a turn."""
        yield from self._answers.prepare(answer.state or NOTHING)

    def answered(self, answer: Answer) -> None:
        """The feed's answer to the oldest request that it has not answered, or a late refusal of an older one."""
        if answer.state is not None:
            self.held = answer.state
        if answer.error is not None and answer.state is not None:
            self._answers.late(answer.error)
            return
        self._asked.popleft().hear(answer.error)
        self._answers.advance()

    def whole_book(self, symbol: str) -> Raw | bytes | None:
        """A pair's order book in full, as this session's codec and its names have it; None if it is not known."""
        return self.upstream.router.book(self.codec.undress(symbol), self.codec)

    def look_again(self, client: Client) -> None:
        """The client's allowlist may have changed what unknown kinds it hears."""
        self.curious = client.allow.takes_unknown(self.upstream.endpoint.feed)
        if not self.left:
            self.upstream.router.hold(self, self.held)

    @property
    def left(self) -> bool:
        """Whether the session has left for good, though its last words may still be on their way."""
        return self.seat.member is None

    def leave(self) -> None:
        """The session is gone. Its seat lets go of it, so that nothing refers back to it."""
        self.upstream.leave(self)
        self.seat.member = None

    def move(self, upstream: Upstream) -> None:
        """The client's account for this feed is another now, which is asked for all that is held; what was still
        waited for counts as held. If that account refuses something, the client hears so."""
        if self.left:
            return
        requests = [claim.holds for claim in self.seat.claims]
        self.held = self.seat.holds
        self.leave()
        self.upstream, self.seat = upstream, Seat(self)
        while self._asked:
            self._asked.popleft().hear(None)
        self._answers.advance()
        upstream.adopt(self, requests)
