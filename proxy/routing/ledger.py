"""Wanted and acked of one feed, and whose wish each topic is.

*Wanted* is the union of what the sessions asked for, *acked* what Alpaca confirmed. After anything (a join, a leave, an
answer, a reconnect) `next_request` gives the next piece of the difference, additions before removals; the caller sends
it and reports `confirmed` or `refused`. One request is under way at a time, so an answer needs no guessing.

A *claim* is one accepted request of one session, kept while the session holds any topic of it. Claims travel upstream
together. If Alpaca refuses such a piece, nobody can tell whose it was: the claims in it are then asked for one by one,
oldest first, until the refusal has found its author; who loses it gets the error, and nobody else hears of it.

Each seat hears its answers in the order of its requests: when Alpaca has confirmed, or for the remembered state when
`PATIENCE` seconds have passed. No I/O and no clock here: `now` is a parameter, answers are returned.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from proxy.protocol.topics import NOTHING, Subscription, Topic

PATIENCE = 2.0  # seconds; Go's SDK gives up after 3
REQUEST_BYTES = 16 * 1024
_TOPIC_BYTES = 4  # quotes and comma of JSON, the longer codec


@dataclass(frozen=True, slots=True)
class Request:
    """One piece of the difference between wanted and acked, to be sent upstream."""

    add: bool
    topics: tuple[Topic, ...]


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
    remembered: bool = False  # answered, or to be answered, before Alpaca was heard
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


class Ledger:
    """Wanted, acked and the claims between them."""

    def __init__(self) -> None:
        self.acked: set[Topic] = set()
        self.request: Request | None = None
        self._wanted: Counter[Topic] = Counter()
        self._missing: dict[Topic, None] = {}  # wanted and not acked, in order of asking
        self._surplus: dict[Topic, None] = {}  # acked and not wanted
        self._claims: dict[Claim, None] = {}  # every claim that holds something, oldest first
        self._waiting: dict[Seat, None] = {}  # seats with an answer outstanding
        self._trial: deque[Claim] = deque()  # claims asked for one by one, since one of them was refused
        self._remove_first = False
        self._closed: tuple[int, str] | None = None

    def __repr__(self) -> str:
        return f"<Ledger {len(self._wanted)} wanted, {len(self.acked)} acked, {len(self._claims)} claims>"

    @property
    def wanted(self) -> frozenset[Topic]:
        """The union of what the sessions asked for."""
        return frozenset(self._wanted)

    @property
    def idle(self) -> bool:
        """Whether nobody wants anything of this feed."""
        return not self._wanted

    @property
    def closed(self) -> bool:
        """Whether every request is refused, since Alpaca does not serve this feed."""
        return self._closed is not None

    # What sessions do

    def change(self, seat: Seat, add: Subscription, remove: Subscription, now: float) -> list[Answer]:
        """The seat asks for `add` and gives up `remove`, as one request with one answer."""
        if self._closed and add:
            return self.deny(seat, *self._closed, now)
        for claim in [*seat.claims] if remove else ():
            self._shrink(claim, remove)
        # What Alpaca has confirmed for this seat is not at stake again; Python's SDKs resend their whole set each time.
        confirmed = NOTHING.union(*(old.holds for old in seat.claims if old.answered and not old.remembered))
        claim = Claim(seat, add, remove, now, holds=add - confirmed)
        if claim.holds:
            seat.claims.append(claim)
            self._claims[claim] = None
            self._want(claim.holds)
        return self._queue(claim)

    def deny(self, seat: Seat, code: int, msg: str, now: float) -> list[Answer]:
        """The seat's request is refused here already; it hears so in its turn."""
        return self._queue(Claim(seat, NOTHING, NOTHING, now, NOTHING, error=(code, msg)))

    def leave(self, seat: Seat) -> None:
        """The session is gone, and with it all that it wanted."""
        seat.waiting.clear()
        self._waiting.pop(seat, None)
        for claim in [*seat.claims]:
            self._shrink(claim, claim.holds)

    # What Alpaca does

    def next_request(self) -> Request | None:
        """The next piece of the difference, or None: one is under way, or there is none. It counts as sent."""
        if self.request is not None:
            return None
        if self._surplus and (self._remove_first or not self._missing):
            self.request = Request(False, tuple(_piece(self._surplus)))
        else:
            self._remove_first = False
            topics = tuple(self._additions())
            self.request = Request(True, topics) if topics else None
        return self.request

    def confirmed(self) -> list[Answer]:
        """Alpaca accepted the request under way. Its reply is not compared with ours: one that lacks a channel's key
        confirms it all the same."""
        request, self.request = self.request, None
        if request is None:
            return []
        for topic in request.topics:
            if request.add:
                self.acked.add(topic)
                self._missing.pop(topic, None)
                if topic not in self._wanted:
                    self._surplus[topic] = None
            else:
                self.acked.discard(topic)
                self._surplus.pop(topic, None)
                if topic in self._wanted:
                    self._missing[topic] = None
        return self._settle()

    def refused(self, code: int, msg: str) -> list[Answer]:
        """Alpaca refused the request under way, whole, and kept its state."""
        request, self.request = self.request, None
        if request is None:
            return []
        if not request.add:  # nobody asked for this one; what Alpaca will not give up is at least not missed
            for topic in request.topics:
                self._surplus.pop(topic, None)
                self.acked.discard(topic)
            return self._settle()
        if self._surplus and not self._remove_first:
            # A plan's limit may be reached only because additions go before removals: make room and ask again.
            self._remove_first = True
            return []
        if self._trial:
            return self._refuse(self._trial.popleft(), (code, msg))
        authors = [claim for claim in self._claims if not claim.holds.isdisjoint(request.topics)]
        if len(authors) == 1:
            return self._refuse(authors[0], (code, msg))
        self._trial.extend(authors)
        return []

    def lost(self) -> None:
        """The connection is gone: nothing is acked any more, everything wanted is to be asked for again."""
        self.request = None
        self.acked.clear()
        self._surplus.clear()
        self._missing = dict.fromkeys(self._wanted)
        self._trial.clear()
        self._remove_first = False

    def close(self, code: int, msg: str) -> list[Answer]:
        """Alpaca will not serve this feed (409): what waits is refused, and so is what is asked from now on."""
        self._closed = (code, msg)
        answers: list[Answer] = []
        for seat in [*self._waiting]:
            for claim in [*seat.waiting]:
                if claim.holds and not claim.answered:
                    claim.error = self._closed
                    self._shrink(claim, claim.holds)
            answers.extend(self._answers(seat))
        return answers

    def open(self) -> None:
        """Alpaca serves this feed (again)."""
        self._closed = None

    def overdue(self, now: float) -> list[Answer]:
        """The answers that have waited long enough: they are given for the remembered state."""
        answers: list[Answer] = []
        for seat in [*self._waiting]:
            for claim in seat.waiting:
                claim.remembered = claim.remembered or now - claim.asked >= PATIENCE
            answers.extend(self._answers(seat))
        return answers

    # How it is done

    def _queue(self, claim: Claim) -> list[Answer]:
        claim.seat.waiting.append(claim)
        self._waiting[claim.seat] = None
        return list(self._answers(claim.seat))

    def _additions(self) -> Iterator[Topic]:
        """What to ask for next: a claim on trial alone; else the sessions that wait in turns, then the rest."""
        while self._trial:
            claim = self._trial[0]
            if topics := [topic for topic in claim.holds if topic in self._missing]:
                yield from _piece(topics)
                return
            self._trial.popleft()
        if not self._missing:
            return
        heads = [seat.waiting[0] for seat in self._waiting]
        turns = sorted((claim for claim in heads if claim.holds), key=lambda claim: claim.flights)
        chosen: dict[Topic, None] = {}
        room = REQUEST_BYTES
        for claim in turns:
            part = _piece((t for t in claim.holds if t in self._missing and t not in chosen), room)
            before = len(chosen)
            for topic in part:
                chosen[topic] = None
                room -= _size(topic)
            claim.flights += len(chosen) > before
        chosen.update(dict.fromkeys(_piece((t for t in self._missing if t not in chosen), room)))
        yield from chosen

    def _want(self, topics: Iterable[Topic]) -> None:
        wanted, acked = self._wanted, self.acked
        for topic in topics:
            wanted[topic] += 1
            if topic in acked:
                self._surplus.pop(topic, None)
            else:
                self._missing[topic] = None

    def _shrink(self, claim: Claim, topics: Subscription) -> None:
        """The claim gives up what it holds of these topics."""
        given = claim.holds & topics
        if not given:
            return
        claim.holds -= given
        if not claim.holds:
            claim.seat.claims.remove(claim)
            del self._claims[claim]
        wanted = self._wanted
        for topic in given:
            wanted[topic] -= 1
            if not wanted[topic]:
                del wanted[topic]
                self._missing.pop(topic, None)
                if topic in self.acked:
                    self._surplus[topic] = None

    def _refuse(self, claim: Claim, error: tuple[int, str]) -> list[Answer]:
        lost = claim.holds
        self._shrink(claim, lost)
        claim.error = error
        seat = claim.seat
        if not claim.answered:
            return list(self._answers(seat))
        seat.shown -= lost - seat.holds
        return [Answer(seat, error, seat.shown)]

    def _settle(self) -> list[Answer]:
        return [answer for seat in [*self._waiting] for answer in self._answers(seat)]

    def _answers(self, seat: Seat) -> Iterator[Answer]:
        """The answers that are due, in order; the first that is not holds up the rest."""
        while seat.waiting:
            claim = seat.waiting[0]
            if claim.error is None and not claim.remembered and not claim.holds <= self.acked:
                return
            seat.waiting.popleft()
            claim.answered = True
            if claim.error is None:
                seat.shown = (seat.shown | claim.add) - claim.remove
                yield Answer(seat, None, seat.shown)
            else:
                yield Answer(seat, claim.error, None)
        self._waiting.pop(seat, None)


def _size(topic: Topic) -> int:
    return len(topic[1].encode()) + _TOPIC_BYTES


def _piece(topics: Iterable[Topic], room: int = REQUEST_BYTES) -> Iterator[Topic]:
    """As many of the topics as a request has room for."""
    for topic in topics:
        room -= _size(topic)
        if room < 0:
            return
        yield topic
