"""Wanted and acked of one feed, and whose wish each topic is.

*Wanted* is the union of what the sessions asked for, *acked* what Alpaca confirmed. After anything (a join, a leave, an
answer, a reconnect) `next_request` gives the next piece of the difference, additions before removals; the caller sends
it and reports `confirmed` or `refused`. One request is under way at a time, so an answer needs no guessing.

What sessions ask for are claims (`claims`), which travel upstream together. If Alpaca refuses such a piece, nobody can
tell whose it was: the claims in it are then asked for one by one, oldest first, until the refusal has found its author;
who loses it gets the error, and nobody else hears of it.

Each seat hears its answers in the order of its requests: when Alpaca has confirmed, or for the remembered state when
`PATIENCE` seconds have passed. No I/O and no clock here: `now` is a parameter, answers are returned.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Set
from math import inf

from proxy.protocol.topics import NOTHING, Subscription, Topic, channel_of
from proxy.routing.claims import Answer, Claim, Seat
from proxy.routing.request import Piece, Request
from proxy.routing.tally import Tally

PATIENCE = 1.5  # seconds, and a tick until somebody looks: 2 at most. Go's SDK gives up after 3
MOST_CLAIMS = 64  # of a seat; over it, those that Alpaca has yet to hear of count as one


class Ledger:
    """Wanted, acked and the claims between them."""

    def __init__(self) -> None:
        self.acked: set[Topic] = set()
        self.request: Request | None = None
        self.channels: Counter[str] = Counter()  # how many topics of each are wanted
        self._wanted = Tally()  # of the claims that hold each
        self._missing: dict[Topic, None] = {}  # wanted and not acked, in order of asking
        self._surplus: set[Topic] = set()  # acked and not wanted
        self._claims: dict[Claim, None] = {}  # every claim that holds something, oldest first
        self._waiting: dict[Seat, None] = {}  # seats with an answer outstanding
        self._trial: deque[Claim] = deque()  # claims asked for one by one, since one of them was refused
        self._unsure = False  # a claim has given up a topic of the request under way: who is left may not be its author
        self._remove_first = False
        self._closed: tuple[int, str] | None = None

    def __repr__(self) -> str:
        return f"<Ledger {len(self._wanted.topics)} wanted, {len(self.acked)} acked, {len(self._claims)} claims>"

    @property
    def wanted(self) -> frozenset[Topic]:
        """The union of what the sessions asked for."""
        return frozenset(self._wanted.topics)

    @property
    def idle(self) -> bool:
        """Whether nobody wants anything of this feed."""
        return not self._wanted.topics

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
        confirmed = seat.confirmed(self.acked)
        claim = Claim(seat, add, remove, now, holds=add - confirmed if confirmed else add)
        if claim.holds:
            self._enter(claim)
            if len(seat.claims) > MOST_CLAIMS:
                self._merge(seat)
        return self._queue(claim)

    def adopt(self, seat: Seat, requests: Iterable[Subscription]) -> list[Answer]:
        """A seat that another account served until now. What it held there, request by request, counts as remembered:
        it is refused, if it is, after it was acknowledged."""
        seat.shown = NOTHING.union(*requests)
        for topics in requests:
            self._enter(Claim(seat, topics, NOTHING, 0.0, topics, answered=True, remembered=True))
        return self._refuse_remembered() if self._closed else []

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
            self._surplus.difference_update(piece.topics)
            self.acked.difference_update(piece.topics)  # no longer there for anybody who asks from now on
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
        topics = frozenset(request.topics)
        self.acked |= topics
        self._found(topics)
        self._surplus |= topics - self._wanted.topics
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
        for seat in {claim.seat: None for claim in self._claims if claim.remembered}:
            seat.recall(self.acked)
        self.acked.clear()
        self._surplus.clear()
        self._missing = dict.fromkeys(self._wanted.topics)
        self._trial.clear()

    def close(self, code: int, msg: str) -> list[Answer]:
        """Alpaca will not serve this feed (409): what waits is refused, what it has never confirmed too, and so is what
        is asked from now on. What it once confirmed stays, and is asked for when it serves the feed again."""
        self._closed = (code, msg)
        answers = self._refuse_remembered()
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
            piece.fill(_common(self._trial[0].holds, missing))
            if piece.topics:
                return piece
            self._trial.popleft()
        heads = [seat.waiting[0] for seat in self._waiting]
        for claim in sorted((claim for claim in heads if claim.holds), key=lambda claim: claim.flights):
            if piece.full or len(piece.topics) == len(missing):
                break
            before = len(piece.topics)
            piece.fill(_common(claim.holds, missing))
            claim.flights += len(piece.topics) > before
        if len(piece.topics) < len(missing):
            piece.fill(missing)
        return piece

    def _enter(self, claim: Claim) -> None:
        claim.seat.claims.append(claim)
        self._claims[claim] = None
        fresh = self._wanted.add(claim.holds)
        self.channels.update(map(channel_of, fresh))
        kept = fresh & self._surplus
        self._surplus -= kept
        self._missing |= dict.fromkeys(fresh - kept if kept else fresh)

    def _found(self, topics: Set[Topic]) -> None:
        """These are not missing any more."""
        missing = self._missing
        for topic in [*_common(topics, missing)]:
            del missing[topic]
        if not missing:
            missing.clear()  # a dictionary keeps the places of what has left it, and each look at it walks them all

    def _merge(self, seat: Seat) -> None:
        """Makes one claim of those that are remembered: a client may ask on and on while Alpaca is away."""
        remembered = [claim for claim in seat.claims if claim.remembered]
        if len(remembered) < 2:
            return
        everything = NOTHING.union(*(claim.holds for claim in remembered))
        self._wanted.add(everything)
        for claim in remembered:
            self._wanted.remove(claim.holds)
            claim.holds = NOTHING
        oldest, *others = remembered
        oldest.holds = everything
        for claim in others:
            seat.claims.remove(claim)
            del self._claims[claim]

    def _shrink(self, claim: Claim, topics: Subscription) -> None:
        """The claim gives up what it holds of these topics."""
        given = topics if topics is claim.holds else claim.holds & topics
        if not given:
            return
        if self.request is not None and not given.isdisjoint(self.request.topics):
            self._unsure = True
        everything = len(given) == len(claim.holds)
        gone = self._wanted.remove(claim.holds) if everything else self._wanted.shrink(claim.holds, given)
        claim.holds = NOTHING if everything else claim.holds - given
        if everything:
            claim.seat.claims.remove(claim)
            del self._claims[claim]
        self._found(gone)
        self.channels -= Counter(map(channel_of, gone))
        self._surplus |= gone & self.acked

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

    def _refuse_remembered(self) -> list[Answer]:
        """Every claim that was acknowledged before Alpaca was heard; each seat hears of it once."""
        assert self._closed is not None
        last: dict[Seat, Answer] = {}
        for claim in [claim for claim in self._claims if claim.remembered]:
            last |= {answer.seat: answer for answer in self._refuse(claim, self._closed)}
        return [*last.values()]

    def _settle(self) -> list[Answer]:
        return [answer for seat in [*self._waiting] for answer in self._answers(seat)]

    def _answers(self, seat: Seat, now: float = -inf) -> Iterator[Answer]:
        """The answers that are due, in order; the first that is not holds up the rest."""
        while seat.waiting:
            claim = seat.waiting[0]
            if claim.error is None and any(_common(claim.holds, self._missing)):
                if now - claim.asked < PATIENCE:
                    return
                claim.remembered = True
            seat.waiting.popleft()
            if claim.error is None:
                for older in [*seat.claims] if claim.add and claim.remove else ():
                    if older.answered:
                        self._shrink(older, claim.remove)
                claim.answered = True
                seat.acknowledge(claim)
                yield Answer(seat, None, seat.shown)
            else:
                yield Answer(seat, claim.error, None)
        self._waiting.pop(seat, None)


def _common(topics: Set[Topic], others: dict[Topic, None]) -> Iterator[Topic]:
    """What is in both, found as it is asked for."""
    few, many = (topics, others) if len(topics) < len(others) else (others, topics)
    return filter(many.__contains__, few)
