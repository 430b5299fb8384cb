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

from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic, channel_of
from proxy.routing.pending_requests import PendingRequest, RequestOutcome, SubscriberRequests
from proxy.routing.request_builder import RequestBuilder, UpstreamRequest
from proxy.routing.topic_ref_counts import TopicRefCounts

ACK_SECONDS = 1.5  # seconds, and a tick until somebody looks: 2 at most. Go's SDK gives up after 3
MAX_REQUESTS = 64  # of a seat; over it, those that Alpaca has yet to hear of count as one


class SubscriptionReconciler:
    """Wanted, acked and the claims between them."""

    def __init__(self) -> None:
        self.acked: set[Topic] = set()
        self.request: UpstreamRequest | None = None
        self.channels: Counter[str] = Counter()  # how many topics of each are wanted
        self._wanted = TopicRefCounts()  # of the claims that hold each
        self._missing: dict[Topic, None] = {}  # wanted and not acked, in order of asking
        self._surplus: set[Topic] = set()  # acked and not wanted
        self._pending: dict[PendingRequest, None] = {}  # every claim that holds something, oldest first
        self._waiting: dict[SubscriberRequests, None] = {}  # seats with an answer outstanding
        self._trial: deque[PendingRequest] = deque()  # claims asked for one by one, since one of them was refused
        self._unsure = False  # a claim has given up a topic of the request under way: who is left may not be its author
        self._remove_first = False
        self._closed: tuple[int, str] | None = None

    def __repr__(self) -> str:
        wanted, pending = len(self._wanted.topics), len(self._pending)
        return f"<SubscriptionReconciler {wanted} wanted, {len(self.acked)} acked, {pending} requests>"

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

    def change(
        self, requests: SubscriberRequests, add: Subscription, remove: Subscription, now: float
    ) -> list[RequestOutcome]:
        """The seat asks for `add` and gives up what else it holds of `remove`, as one request with one answer.

        What only gives up cannot be refused and does so at once; otherwise it waits for the answer, all or nothing.
        """
        if self._closed and add:
            return self.deny(requests, *self._closed, now)
        remove -= add
        for pending in [*requests.pending] if not add else ():
            self._shrink(pending, remove)
        # What Alpaca has confirmed for this seat is not at stake again; Python's SDKs resend their whole set each time.
        confirmed = requests.confirmed(self.acked)
        pending = PendingRequest(requests, add, remove, now, holds=add - confirmed if confirmed else add)
        if pending.holds:
            self._add(pending)
            if len(requests.pending) > MAX_REQUESTS:
                self._merge(requests)
        return self._queue(pending)

    def adopt(self, requests: SubscriberRequests, held: Iterable[Subscription]) -> list[RequestOutcome]:
        """A seat that another account served until now. What it held there, request by request, counts as remembered:
        it is refused, if it is, after it was acknowledged."""
        requests.acknowledged = NO_TOPICS.union(*held)
        for topics in held:
            self._add(PendingRequest(requests, topics, NO_TOPICS, 0.0, topics, answered=True, remembered=True))
        return self._refuse_remembered() if self._closed else []

    def deny(self, requests: SubscriberRequests, code: int, msg: str, now: float) -> list[RequestOutcome]:
        """The seat's request is refused here already; it hears so in its turn."""
        return self._queue(PendingRequest(requests, NO_TOPICS, NO_TOPICS, now, NO_TOPICS, error=(code, msg)))

    def leave(self, requests: SubscriberRequests) -> None:
        """The session is gone, and with it all that it wanted."""
        self._waiting.pop(requests, None)
        for pending in [*requests.pending]:
            self._shrink(pending, pending.holds)

    # What Alpaca does

    def next_request(self) -> UpstreamRequest | None:
        """The next piece of the difference, or None: one is under way, or there is none. It counts as sent."""
        if self.request is not None:
            return None
        if self._surplus and (self._remove_first or not self._missing):
            piece = RequestBuilder()
            piece.fill(self._surplus)
            self._surplus.difference_update(piece.topics)
            self.acked.difference_update(piece.topics)  # no longer there for anybody who asks from now on
            self.request = UpstreamRequest(False, tuple(piece.topics))
        else:
            self._remove_first = False
            piece = self._additions()
            self.request = UpstreamRequest(True, tuple(piece.topics)) if piece.topics else None
        return self.request

    def confirmed(self) -> list[RequestOutcome]:
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

    def refused(self, code: int, msg: str) -> list[RequestOutcome]:
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
        authors = [pending for pending in self._pending if not pending.holds.isdisjoint(request.topics)]
        if len(authors) == 1 and not unsure:
            return self._refuse(authors[0], (code, msg))
        self._trial.extend(authors)
        return []

    def lost(self) -> None:
        """The connection is gone: nothing is acked any more, everything wanted is to be asked for again."""
        self._answered()
        for requests in {pending.requests: None for pending in self._pending if pending.remembered}:
            requests.recall(self.acked)
        self.acked.clear()
        self._surplus.clear()
        self._missing = dict.fromkeys(self._wanted.topics)
        self._trial.clear()

    def close(self, code: int, msg: str) -> list[RequestOutcome]:
        """Alpaca will not serve this feed (409): what waits is refused, what it has never confirmed too, and so is what
        is asked from now on. What it once confirmed stays, and is asked for when it serves the feed again."""
        self._closed = (code, msg)
        answers = self._refuse_remembered()
        for requests in [*self._waiting]:
            for pending in [*requests.waiting]:
                if pending.holds:
                    pending.error = self._closed
                    self._shrink(pending, pending.holds)
            answers.extend(self._answers(requests))
        return answers

    def open(self) -> None:
        """Alpaca serves this feed (again)."""
        self._closed = None

    def overdue(self, now: float) -> list[RequestOutcome]:
        """The answers that have waited long enough: they are given for the remembered state."""
        answers: list[RequestOutcome] = []
        for requests in [*self._waiting]:
            answers.extend(self._answers(requests, now))
        return answers

    # How it is done

    def _answered(self) -> tuple[UpstreamRequest | None, bool]:
        """Ends the request under way: which it was, and whether a claim has given up a part of it since."""
        ended = self.request, self._unsure
        self.request, self._unsure = None, False
        return ended

    def _queue(self, pending: PendingRequest) -> list[RequestOutcome]:
        pending.requests.waiting.append(pending)
        self._waiting[pending.requests] = None
        return list(self._answers(pending.requests))

    def _additions(self) -> RequestBuilder:
        """What to ask for next: a claim on trial alone; else the sessions that wait in turns, then the rest."""
        piece, missing = RequestBuilder(), self._missing
        while self._trial:
            piece.fill(_common(self._trial[0].holds, missing))
            if piece.topics:
                return piece
            self._trial.popleft()
        heads = [requests.waiting[0] for requests in self._waiting]
        for pending in sorted((pending for pending in heads if pending.holds), key=lambda pending: pending.times_sent):
            if piece.full or len(piece.topics) == len(missing):
                break
            before = len(piece.topics)
            piece.fill(_common(pending.holds, missing))
            pending.times_sent += len(piece.topics) > before
        if len(piece.topics) < len(missing):
            piece.fill(missing)
        return piece

    def _add(self, pending: PendingRequest) -> None:
        pending.requests.pending.append(pending)
        self._pending[pending] = None
        fresh = self._wanted.add(pending.holds)
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

    def _merge(self, requests: SubscriberRequests) -> None:
        """Makes one claim of those that are remembered: a client may ask on and on while Alpaca is away."""
        remembered = [pending for pending in requests.pending if pending.remembered]
        if len(remembered) < 2:
            return
        everything = NO_TOPICS.union(*(pending.holds for pending in remembered))
        self._wanted.add(everything)
        for pending in remembered:
            self._wanted.remove(pending.holds)
            pending.holds = NO_TOPICS
        oldest, *others = remembered
        oldest.holds = everything
        for pending in others:
            requests.pending.remove(pending)
            del self._pending[pending]

    def _shrink(self, pending: PendingRequest, topics: Subscription) -> None:
        """The claim gives up what it holds of these topics."""
        given = topics if topics is pending.holds else pending.holds & topics
        if not given:
            return
        if self.request is not None and not given.isdisjoint(self.request.topics):
            self._unsure = True
        everything = len(given) == len(pending.holds)
        gone = self._wanted.remove(pending.holds) if everything else self._wanted.shrink(pending.holds, given)
        pending.holds = NO_TOPICS if everything else pending.holds - given
        if everything:
            pending.requests.pending.remove(pending)
            del self._pending[pending]
        self._found(gone)
        self.channels -= Counter(map(channel_of, gone))
        self._surplus |= gone & self.acked

    def _refuse(self, pending: PendingRequest, error: tuple[int, str]) -> list[RequestOutcome]:
        lost = pending.holds
        if not lost:  # it has been given up meanwhile
            return []
        self._shrink(pending, lost)
        pending.error = error
        requests = pending.requests
        if not pending.answered:
            return list(self._answers(requests))
        gone = lost.difference(*(other.holds for other in requests.pending if other.answered))
        requests.acknowledged -= gone
        for later in requests.waiting:  # what it took for granted
            later.add -= gone - later.holds
        return [RequestOutcome(requests, error, requests.acknowledged)]

    def _refuse_remembered(self) -> list[RequestOutcome]:
        """Every claim that was acknowledged before Alpaca was heard; each seat hears of it once."""
        assert self._closed is not None
        last: dict[SubscriberRequests, RequestOutcome] = {}
        for pending in [pending for pending in self._pending if pending.remembered]:
            last |= {answer.requests: answer for answer in self._refuse(pending, self._closed)}
        return [*last.values()]

    def _settle(self) -> list[RequestOutcome]:
        return [answer for requests in [*self._waiting] for answer in self._answers(requests)]

    def _answers(self, requests: SubscriberRequests, now: float = -inf) -> Iterator[RequestOutcome]:
        """The answers that are due, in order; the first that is not holds up the rest."""
        while requests.waiting:
            pending = requests.waiting[0]
            if pending.error is None and any(_common(pending.holds, self._missing)):
                if now - pending.asked < ACK_SECONDS:
                    return
                pending.remembered = True
            requests.waiting.popleft()
            if pending.error is None:
                for older in [*requests.pending] if pending.add and pending.remove else ():
                    if older.answered:
                        self._shrink(older, pending.remove)
                pending.answered = True
                requests.acknowledge(pending)
                yield RequestOutcome(requests, None, requests.acknowledged)
            else:
                yield RequestOutcome(requests, pending.error, None)
        self._waiting.pop(requests, None)


def _common(topics: Set[Topic], others: dict[Topic, None]) -> Iterator[Topic]:
    """What is in both, found as it is asked for."""
    few, many = (topics, others) if len(topics) < len(others) else (others, topics)
    return filter(many.__contains__, few)
