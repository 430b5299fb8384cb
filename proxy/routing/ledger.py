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
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from proxy.protocol.topics import NOTHING, Subscription, Topic
from proxy.routing.request import Piece, Request

PATIENCE = 2.0  # seconds; Go's SDK gives up after 3
MOST_CLAIMS = 64  # of a seat; over it, those that Alpaca has yet to hear of count as one


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


class Ledger:
    """Wanted, acked and the claims between them."""

    def __init__(self) -> None:
        self.acked: set[Topic] = set()
        self.request: Request | None = None
        self.channels: Counter[str] = Counter()  # how many topics of each are wanted
        self._wanted: dict[Topic, int] = {}  # how many claims hold it
        self._missing: dict[Topic, None] = {}  # wanted and not acked, in order of asking
        self._surplus: dict[Topic, None] = {}  # acked and not wanted
        self._claims: dict[Claim, None] = {}  # every claim that holds something, oldest first
        self._waiting: dict[Seat, None] = {}  # seats with an answer outstanding
        self._trial: deque[Claim] = deque()  # claims asked for one by one, since one of them was refused
        self._unsure = False  # a claim has given up a topic of the request under way: who is left may not be its author
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
        """The seat asks for `add` and gives up what else it holds of `remove`, as one request with one answer.

        What only gives up cannot be refused and does so at once; otherwise it waits for the answer, all or nothing.
        """
        if self._closed and add:
            return self.deny(seat, *self._closed, now)
        remove -= add
        for claim in [*seat.claims] if not add else ():
            self._shrink(claim, remove)
        # What Alpaca has confirmed for this seat is not at stake again; Python's SDKs resend their whole set each time.
        claim = Claim(seat, add, remove, now, holds=add - self._confirmed(seat))
        if claim.holds:
            seat.claims.append(claim)
            self._claims[claim] = None
            self._want(claim.holds)
            if len(seat.claims) > MOST_CLAIMS:
                self._merge(seat)
        return self._queue(claim)

    def deny(self, seat: Seat, code: int, msg: str, now: float) -> list[Answer]:
        """The seat's request is refused here already; it hears so in its turn."""
        return self._queue(Claim(seat, NOTHING, NOTHING, now, NOTHING, error=(code, msg)))

    def leave(self, seat: Seat) -> None:
        """The session is gone, and with it all that it wanted."""
        self._waiting.pop(seat, None)
        for claim in [*seat.claims]:
            self._shrink(claim, claim.holds)

    # What Alpaca does

    def next_request(self) -> Request | None:
        """The next piece of the difference, or None: one is under way, or there is none. It counts as sent."""
        if self.request is not None:
            return None
        if self._surplus and (self._remove_first or not self._missing):
            piece = Piece()
            piece.fill(self._surplus)
            for topic in piece.topics:  # no longer there for anybody who asks from now on
                del self._surplus[topic]
                self.acked.discard(topic)
            self.request = Request(False, tuple(piece.topics))
        else:
            self._remove_first = False
            piece = self._additions()
            self.request = Request(True, tuple(piece.topics)) if piece.topics else None
        return self.request

    def confirmed(self) -> list[Answer]:
        """Alpaca accepted the request under way. Its reply is not compared with ours: one that lacks a channel's key
        confirms it all the same."""
        request, _ = self._answered()
        if request is None or not request.add:
            return []
        for topic in request.topics:
            self.acked.add(topic)
            self._missing.pop(topic, None)
            if topic not in self._wanted:
                self._surplus[topic] = None
        return self._settle()

    def refused(self, code: int, msg: str) -> list[Answer]:
        """Alpaca refused the request under way, whole, and kept its state."""
        request, unsure = self._answered()
        if request is None or not request.add:  # what Alpaca will not give up, nobody hears
            return []
        if self._surplus:
            # A plan's limit may be reached only because additions go before removals: make room and ask again.
            self._remove_first = True
            return []
        if self._trial:
            return [] if unsure else self._refuse(self._trial.popleft(), (code, msg))
        authors = [claim for claim in self._claims if not claim.holds.isdisjoint(request.topics)]
        if len(authors) == 1 and not unsure:
            return self._refuse(authors[0], (code, msg))
        self._trial.extend(authors)
        return []

    def lost(self) -> None:
        """The connection is gone: nothing is acked any more, everything wanted is to be asked for again."""
        self._answered()
        self.acked.clear()
        self._surplus.clear()
        self._missing = dict.fromkeys(self._wanted)
        self._trial.clear()

    def close(self, code: int, msg: str) -> list[Answer]:
        """Alpaca will not serve this feed (409): what waits is refused, and so is what is asked from now on."""
        self._closed = (code, msg)
        answers: list[Answer] = []
        for seat in [*self._waiting]:
            for claim in [*seat.waiting]:
                if claim.holds:
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
            answers.extend(self._answers(seat, now))
        return answers

    # How it is done

    def _answered(self) -> tuple[Request | None, bool]:
        """Ends the request under way: which it was, and whether a claim has given up a part of it since."""
        ended = self.request, self._unsure
        self.request, self._unsure = None, False
        return ended

    def _queue(self, claim: Claim) -> list[Answer]:
        claim.seat.waiting.append(claim)
        self._waiting[claim.seat] = None
        return list(self._answers(claim.seat))

    def _additions(self) -> Piece:
        """What to ask for next: a claim on trial alone; else the sessions that wait in turns, then the rest."""
        piece, missing = Piece(), self._missing
        while self._trial:
            piece.fill(self._trial[0].holds.intersection(missing))
            if piece.topics:
                return piece
            self._trial.popleft()
        heads = [seat.waiting[0] for seat in self._waiting]
        for claim in sorted((claim for claim in heads if claim.holds), key=lambda claim: claim.flights):
            if piece.full or len(piece.topics) == len(missing):
                break
            before = len(piece.topics)
            piece.fill(claim.holds.intersection(missing))
            claim.flights += len(piece.topics) > before
        piece.fill(missing)
        return piece

    def _confirmed(self, seat: Seat) -> Subscription:
        """What Alpaca has confirmed for the seat since it asked, be it for an older connection, and stays."""
        for claim in seat.claims:
            claim.remembered = claim.remembered and not claim.holds <= self.acked
        confirmed = NOTHING.union(*(claim.holds for claim in seat.claims if claim.answered and not claim.remembered))
        return confirmed.difference(*(claim.remove for claim in seat.waiting))

    def _merge(self, seat: Seat) -> None:
        """Makes one claim of those that are remembered: a client may ask on and on while Alpaca is away."""
        remembered = [claim for claim in seat.claims if claim.remembered]
        for claim in remembered[1:]:
            oldest = remembered[0]
            for topic in claim.holds & oldest.holds:
                self._wanted[topic] -= 1
            oldest.holds |= claim.holds
            claim.holds = NOTHING
            seat.claims.remove(claim)
            del self._claims[claim]

    def _want(self, topics: Subscription) -> None:
        """One more claim holds these. Whole sets at a time: a client may ask for thousands while data flows."""
        wanted = self._wanted
        fresh = topics.difference(wanted)
        for topic in topics - fresh:
            wanted[topic] += 1
        wanted |= dict.fromkeys(fresh, 1)
        self.channels += Counter(topic[0] for topic in fresh)
        self._missing |= dict.fromkeys(fresh - self.acked)
        for topic in fresh.intersection(self._surplus):
            del self._surplus[topic]

    def _shrink(self, claim: Claim, topics: Subscription) -> None:
        """The claim gives up what it holds of these topics."""
        given = claim.holds & topics
        if not given:
            return
        if self.request is not None and not given.isdisjoint(self.request.topics):
            self._unsure = True
        claim.holds -= given
        if not claim.holds:
            claim.seat.claims.remove(claim)
            del self._claims[claim]
        wanted = self._wanted
        gone = [topic for topic in given if wanted[topic] == 1]
        for topic in given.difference(gone):
            wanted[topic] -= 1
        for topic in gone:
            del wanted[topic]
            self._missing.pop(topic, None)
        self.channels -= Counter(topic[0] for topic in gone)
        self._surplus |= dict.fromkeys(filter(self.acked.__contains__, gone))

    def _refuse(self, claim: Claim, error: tuple[int, str]) -> list[Answer]:
        lost = claim.holds
        if not lost:  # it has been given up meanwhile
            return []
        self._shrink(claim, lost)
        claim.error = error
        seat = claim.seat
        if not claim.answered:
            return list(self._answers(seat))
        gone = lost.difference(*(other.holds for other in seat.claims if other.answered))
        seat.shown -= gone
        for later in seat.waiting:  # what it took for granted
            later.add -= gone - later.holds
        return [Answer(seat, error, seat.shown)]

    def _settle(self) -> list[Answer]:
        return [answer for seat in [*self._waiting] for answer in self._answers(seat)]

    def _answers(self, seat: Seat, now: float = -inf) -> Iterator[Answer]:
        """The answers that are due, in order; the first that is not holds up the rest."""
        while seat.waiting:
            claim = seat.waiting[0]
            if claim.error is None and not claim.holds <= self.acked:
                if now - claim.asked < PATIENCE:
                    return
                claim.remembered = True
            seat.waiting.popleft()
            if claim.error is None:
                for older in [*seat.claims] if claim.add and claim.remove else ():
                    if older.answered:
                        self._shrink(older, claim.remove)
                claim.answered = True
                seat.shown = (seat.shown | claim.add) - claim.remove
                yield Answer(seat, None, seat.shown)
            else:
                yield Answer(seat, claim.error, None)
        self._waiting.pop(seat, None)
