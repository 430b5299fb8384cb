"""Reconcile the topics that sessions want with those that Alpaca has confirmed.

One reconciler serves one feed. *Wanted* is the union of what the sessions hold and have requested, *acked* the topics
that Alpaca has confirmed. After every event (a request, a leave, an answer of Alpaca, a reconnect) `next_request`
returns the next part of the difference, additions before removals. The caller sends it, one request at a time, and
reports its end: `answered`, `refused` or `failed`.

Requests of several sessions share an upstream request. A *verdict* (VERDICTS) does not tell which topic was its cause,
so the requests in it are sent again one by one, oldest first, and the one that is refused alone gets the error; the
other sessions are not affected. Anything else (an error 500, a close, no answer) says nothing about the requests: they
are sent again, one by one, too, but one that has failed alone goes last, after a wait of its own.

No I/O and no clock here: `now` is a parameter in seconds, and outcomes are returned.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import chain, filterfalse
from math import inf

from proxy.alpaca.client_protocol import Acknowledged
from proxy.alpaca.cooperative import CHUNK_SIZE, chunks
from proxy.alpaca.market import ERRORS
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic, channel_of
from proxy.routing.request_builder import RequestBuilder, UpstreamRequest
from proxy.routing.subscriber import Error, PendingRequest, RequestOutcome, RequestState, Subscriber

ACK_SECONDS = 1.5  # and up to one tick until `overdue` is called: 2 s at most. Go's SDK gives up after 3 s
MAX_REMEMBERED = 64  # requests of a subscriber; above it, they are merged into one
VERDICTS = frozenset((400, 405, 409, 410, 412, 413))  # codes that refuse a request; any other says nothing about it
MAX_CLOSES = 3  # in answer to one request alone, while others were confirmed: a verdict on it
RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 30.0
SYMBOL_LIMIT = 405
WITHHELD_SECONDS = 30.0  # that Alpaca may leave out a topic that it had confirmed, before sessions are told


Halves = dict[Subscription, list[Subscription]]


@dataclass(slots=True)
class Absence:
    """A topic that Alpaca had confirmed and leaves out of its answers now."""

    since: float
    retry_at: float
    wait: float = RETRY_SECONDS
    told: bool = False


class SubscriptionReconciler:
    """Wanted topics, acked topics and the open requests of one feed."""

    def __init__(self) -> None:
        self.acked: set[Topic] = set()
        self.channels: Counter[str] = Counter()  # wanted topics of each
        # References to each wanted topic: each subscriber's confirmed set and each open request has one.
        self._wanted: Counter[Topic] = Counter()
        self._missing: dict[Topic, None] = {}  # wanted and not acked, in order of request
        self._surplus: set[Topic] = set()  # acked and not wanted
        self._restored = NO_TOPICS  # wanted when the connection was lost: they are requested together
        self._open: dict[PendingRequest, None] = {}  # unanswered or remembered, oldest first
        self._subscribers: dict[Subscriber, None] = {}  # those with confirmed topics, oldest first
        self._released: deque[list[Topic]] = deque()  # references that are still counted
        self._absent: dict[Topic, Absence] = {}
        self._remove_first = False
        self._has_made_room = False  # since the last confirmed addition
        self._removal_failures = 0
        self._remove_at = -inf
        self._alone_next = True
        self._is_full = False  # a single topic has exceeded the plan's symbol limit
        self._closed: Error | None = None

    def __repr__(self) -> str:
        return f"<SubscriptionReconciler {len(self._wanted)} wanted, {len(self.acked)} acked, {len(self._open)} open>"

    @property
    def wanted(self) -> Set[Topic]:
        """The union of what the sessions hold and have requested."""
        return self._wanted.keys()

    @property
    def idle(self) -> bool:
        """Whether no session wants a topic of this feed."""
        return not self._wanted

    @property
    def has_clients(self) -> bool:
        """Whether a session of a client, and not only other nodes, wants a topic of this feed."""
        subscribers = (request.subscriber for request in self._open)
        return any(not subscriber.patient for subscriber in chain(self._subscribers, subscribers))

    @property
    def closed(self) -> bool:
        """Whether all subscribes are refused, since Alpaca does not serve this feed."""
        return self._closed is not None

    @property
    def refusal(self) -> Error | None:
        """The error with which all subscribes are refused, None while they are not."""
        return self._closed

    # Calls on behalf of sessions

    def request(self, request: PendingRequest) -> Iterator[None]:
        """Take a request that its session has queued, yielding between chunks of topics.

        Topics that are both added and removed are added. Topics that Alpaca has confirmed for the session are not put
        at risk again: Python's SDKs resend their whole set each time.
        """
        request.remove -= request.add
        if request.add and self._closed:
            request.state, request.error = RequestState.REFUSED, self._closed
            return
        subscriber = request.subscriber
        removed = [other.remove for other in subscriber.waiting if other.remove and other is not request]
        topics = request.add - (subscriber.confirmed.difference(*removed) if removed else subscriber.confirmed)
        for topic in topics & self._absent.keys():
            self._absent[topic].retry_at = -inf
        add = request.add
        for chunk in [topics] if len(topics) <= CHUNK_SIZE else map(frozenset, chunks(topics)):
            if request.resolved:  # it was refused or given up during a pause
                return
            part = chunk if request.add is add else chunk & request.add  # some may have been revoked during a pause
            if part:
                request.topics = request.topics | part if request.topics else part
                self._open[request] = None
                self._refer(part)
            if chunk is not topics:
                request.complete = False
                yield
        request.complete = True
        if not request.resolved and not self._lacks(request):
            request.state = RequestState.CONFIRMED

    def apply(self, request: PendingRequest) -> None:
        """Give the session the topics of a resolved request, and take those that it removes.

        Call it when the request is at the front of its session's queue and not refused.
        """
        subscriber = request.subscriber
        request.answered = True
        self._give_up([*subscriber.remembered], request.remove)
        self._take_confirmed(subscriber, subscriber.confirmed & request.remove)
        if request.state is RequestState.CONFIRMED:
            self._confirm(request)
        elif request.topics:
            subscriber.remembered.append(request)
            self._merge_remembered(subscriber)

    def merge(self, subscriber: Subscriber) -> None:
        """Merge the remembered requests that are confirmed by now into what the subscriber has confirmed.

        Call it for each outcome: to do so for hundreds of subscribers at once would take too long.
        """
        for request in [*subscriber.remembered]:
            if request.state is RequestState.CONFIRMED:
                subscriber.remembered.remove(request)
                self._confirm(request)

    def adopt(self, subscriber: Subscriber, topics: Subscription) -> list[RequestOutcome]:
        """Take over a subscriber from another account, where it held these topics.

        They count as remembered, so a refusal arrives as error and state.
        """
        if not topics:
            return []
        self._open[_remembered(subscriber, topics)] = None
        self._refer(topics)
        return self._refuse_remembered() if self._closed else self._resolve()

    def revoke(self, subscriber: Subscriber, topics: Subscription) -> None:
        """Take topics away from the subscriber, those of its unanswered requests included."""
        waiting = subscriber.waiting
        for request in waiting:
            request.add -= topics
        self._give_up([*subscriber.remembered, *waiting], topics)
        self._take_confirmed(subscriber, subscriber.confirmed & topics)
        for request in waiting:
            if not request.resolved and request.complete and not self._lacks(request):
                request.state = RequestState.CONFIRMED

    def leave(self, subscriber: Subscriber) -> None:
        """Remove a subscriber and all that it wants; its unanswered requests are resolved without topics."""
        for request in [*subscriber.remembered, *subscriber.waiting]:
            self._give_up([request], request.topics)
        self._take_confirmed(subscriber, subscriber.confirmed)

    # Calls on behalf of the connection to Alpaca

    def next_request(self, now: float) -> UpstreamRequest | None:
        """Return the next part of the difference, which counts as sent; None if there is none to send now.

        Call it only while no request is under way.
        """
        removal_due = bool(self._surplus) and now >= self._remove_at
        if not (removal_due and self._remove_first) and (request := self._additions(now)) is not None:
            return request
        if not removal_due:
            return None
        builder = RequestBuilder()
        builder.fill(self._surplus)
        self._surplus.difference_update(builder.topics)
        self._remove_first = self._remove_first and bool(self._surplus)
        self.acked.difference_update(builder.topics)  # a session that subscribes from now on has to wait for them
        return UpstreamRequest(False, tuple(builder.topics))

    def answered(self, request: UpstreamRequest, state: Acknowledged, now: float) -> list[RequestOutcome]:
        """Record Alpaca's answer to a request: all topics of the connection."""
        if not request.add:
            self._is_full = False
            if not self._restore_removal(state.topics.intersection(request.topics), now):
                self._removal_failures = 0
            return self._compare(state, now)
        requested = frozenset(request.topics)
        left_out = state.lacks(requested)
        self._has_made_room = False
        for other in self._open:
            other.others_confirmed = other.others_confirmed or not requested <= other.topics
        self._ack(requested - left_out)
        outcomes = self._leave_out(left_out, now) if left_out else []
        return outcomes + self._compare(state, now)

    def reported(
        self, state: Acknowledged, error: Error | None, now: float, under_way: UpstreamRequest | None = None
    ) -> list[RequestOutcome]:
        """Record a state that is not the answer to the request under way.

        Alpaca sends none, but another proxy does: after the late refusal of a request that it had acknowledged (then
        the error came first), and when its own configuration takes topics away.
        """
        if under_way is not None and not under_way.add:  # its topics are still in the state, but not for long
            state = Acknowledged(state.topics.difference(under_way.topics), state.channels)
        lost = state.lacks(self.acked)
        if error is None or error[0] not in VERDICTS or not lost:
            return self._compare(state, now)
        self.acked -= lost
        self._surplus -= lost
        self._missing |= dict.fromkeys(lost & self._wanted.keys())
        outcomes = []
        candidates = self._candidates(lost)
        one_session = len({candidate.subscriber for candidate in candidates}) == 1
        for candidate in candidates:
            part = candidate.topics & lost
            if len(lost) == 1 or (one_session and lost.isdisjoint(self._restored)):
                self._give_up([candidate], part)
                outcomes.append(RequestOutcome(candidate.subscriber, unasked=True, error=error))
            elif candidate.divisible:  # the refused request had topics of several requests
                self._divide(candidate, [candidate.topics - part, *_halves(part)])
            else:
                candidate.alone = True
        return outcomes + self._resolve()

    def refused(self, request: UpstreamRequest, error: Error, now: float) -> list[RequestOutcome]:
        """Record that Alpaca refused a request; it does so as a whole and keeps its state."""
        if error[0] not in VERDICTS:
            return self.failed(request, now)
        if not request.add:
            self._restore_removal(request.topics, now)
            return self._resolve()
        if error[0] == SYMBOL_LIMIT and self._surplus and not self._removal_failures and not self._has_made_room:
            # The plan's symbol limit may be exceeded only because additions go before removals: remove, then retry.
            self._remove_first = self._has_made_room = True
            return []
        topics = frozenset(request.topics)
        self._is_full = self._is_full or (error[0] == SYMBOL_LIMIT and len(topics) == 1)
        outcomes = []
        halves: Halves = {}
        for candidate in self._candidates(topics):
            candidate.alone = True
            if topics <= candidate.topics:  # alone, it would have been refused as well
                outcomes += self._refuse_part(candidate, error, halves)
        return outcomes + self._resolve()

    def failed(
        self, request: UpstreamRequest, now: float, closed: bool = False, others_confirmed: bool = False
    ) -> list[RequestOutcome]:
        """Record that a request got no verdict; `closed`: the connection was closed, or did not answer.

        `others_confirmed`: that connection had confirmed topics of others, whose requests this reconciler does not see.
        """
        if not request.add:
            self._restore_removal(request.topics, now)
            return self._resolve()
        outcomes = []
        for candidate in self._candidates(frozenset(request.topics)):
            candidate.alone = True
            if closed:
                candidate.blamed = True
                if candidate.subscriber.patient:
                    candidate.others_confirmed = any(topic not in candidate.topics for topic in self.acked)
            elif candidate.subscriber.patient and not candidate.answered:  # the node asks again, one by one
                outcomes += self._refuse(candidate, (500, ERRORS[500]))
            if not (closed and candidate.confirmed_before):  # what was confirmed is hardly the cause of the close
                candidate.retry_at = max(candidate.retry_at, now + RETRY_SECONDS)
        sole = request.sole
        if sole is None or sole not in self._open or (sole.subscriber.patient and not sole.answered):
            return outcomes
        sole.failures += 1
        sole.retry_at = now + _wait_after(sole.failures)
        if closed and (not sole.closes or sole.others_confirmed or others_confirmed):
            sole.closes += 1
            sole.others_confirmed = False
        return outcomes + (self._refuse_part(sole, (400, ERRORS[400]), {}) if sole.closes >= MAX_CLOSES else [])

    def lost(self) -> None:
        """Record that the connection is lost: nothing is acked, everything is missing."""
        self.acked.clear()
        self._surplus.clear()
        self._missing = dict.fromkeys(self._wanted)
        self._restored = frozenset(self._wanted)
        self._remove_first = self._has_made_room = self._is_full = self._alone_next = False
        self._removal_failures, self._remove_at = 0, -inf
        for absence in self._absent.values():
            absence.retry_at, absence.wait = -inf, RETRY_SECONDS

    def close(self, code: int, msg: str) -> list[RequestOutcome]:
        """Record that Alpaca does not serve this feed (409); return the refusals.

        Every unanswered or remembered request is refused, and from now on every subscribe. Topics that Alpaca has
        confirmed stay wanted, and are requested when it serves the feed again.
        """
        self._closed = (code, msg)
        outcomes = self._refuse_remembered()
        for request in [request for request in self._open if not request.answered]:
            outcomes += self._refuse(request, self._closed)
        return outcomes

    def open(self) -> None:
        """Record that Alpaca serves this feed (again)."""
        self._closed = None

    def overdue(self, now: float) -> list[RequestOutcome]:
        """Resolve the requests that have waited ACK_SECONDS, and report topics that are left out for too long."""
        outcomes = []
        for request in self._open:
            due = not request.subscriber.patient and now - request.requested_at >= ACK_SECONDS
            if due and not request.resolved and request.complete:
                request.state = RequestState.REMEMBERED
                outcomes.append(RequestOutcome(request.subscriber))
        late = [topic for topic, absence in self._absent.items() if now - absence.since >= WITHHELD_SECONDS]
        withheld = frozenset(topic for topic in late if not self._absent[topic].told)
        for topic in withheld:
            self._absent[topic].told = True
        for subscriber in self._wanting(withheld):
            if told := withheld & subscriber.held:
                subscriber.withheld |= told
                outcomes.append(RequestOutcome(subscriber, unasked=True))
        return outcomes

    # What to send

    def _additions(self, now: float) -> UpstreamRequest | None:
        """Return a request for missing topics.

        Requests that go alone and those that are merged take turns; a request that has failed alone comes last.
        """
        if not self._missing:
            return None
        alone = [request for request in self._open if request.alone]
        first = [request for request in alone if not request.failures and request.retry_at <= now]
        last = [request for request in alone if request.failures and request.retry_at <= now]
        merged = self._merged(alone, now)
        if self._alone_next or merged is None:
            for request in first:
                if (upstream := self._sole(request)) is not None:
                    self._alone_next = False
                    return upstream
        self._alone_next = True
        if merged is not None:
            return merged
        return next((upstream for request in last if (upstream := self._sole(request)) is not None), None)

    def _sole(self, request: PendingRequest) -> UpstreamRequest | None:
        builder = RequestBuilder()
        builder.fill(_intersection(request.topics, self._missing))
        return UpstreamRequest(True, tuple(builder.topics), request) if builder.topics else None

    def _merged(self, alone: list[PendingRequest], now: float) -> UpstreamRequest | None:
        """Return a request for the missing topics that need not be requested alone or later.

        The oldest unanswered request of each subscriber comes first, those that have been sent least often in front, so
        that large requests take turns; then the rest.
        """
        builder, missing = RequestBuilder(), self._missing
        later = {topic for topic, absence in self._absent.items() if absence.retry_at > now}
        oldest: dict[Subscriber, PendingRequest] = {}
        for request in self._open:
            if not request.resolved and not request.alone:
                oldest.setdefault(request.subscriber, request)
        for request in sorted(oldest.values(), key=lambda request: request.times_sent):
            if builder.full:
                break
            before = len(builder.topics)
            builder.fill(topic for topic in _intersection(request.topics, missing) if topic not in later)
            request.times_sent += len(builder.topics) > before
        builder.fill(topic for topic in (self._missing_together() if alone else missing) if topic not in later)
        return UpstreamRequest(True, tuple(builder.topics)) if builder.topics else None

    def _missing_together(self) -> Iterator[Topic]:
        """Iterate over the missing topics that are not wanted by requests that go alone only."""
        together = [request.topics for request in self._open if not request.alone]
        together += [subscriber.confirmed for subscriber in self._subscribers]
        for topics in dict.fromkeys(together):  # many may be equal
            yield from _intersection(topics, self._missing)

    # Alpaca's states

    def _ack(self, topics: Set[Topic]) -> None:
        if not topics:
            return
        self.acked |= topics
        self._remove_missing(topics)
        # A set's difference would walk over all that are wanted.
        self._surplus |= frozenset(filterfalse(self._wanted.__contains__, topics))

    def _restore_removal(self, topics: Iterable[Topic], now: float) -> bool:
        """Count topics as acked again whose removal has not happened, to remove them later; return False for none."""
        restored = frozenset(topics)
        if restored:
            self._removal_failures += 1
            self._remove_at = now + _wait_after(self._removal_failures)
            self._ack(restored)
        return bool(restored)

    def _leave_out(self, topics: Set[Topic], now: float) -> list[RequestOutcome]:
        """Record that Alpaca left requested topics out of its answer.

        Requests lose them; topics that were confirmed before are requested again later.
        """
        outcomes = []
        for request in [*self._open]:
            if not request.confirmed_before and (lost := request.topics & topics):
                self._give_up([request], lost)
                outcomes.append(RequestOutcome(request.subscriber, unasked=request.answered))
        for topic in topics & self._wanted.keys():
            absence = self._absent.setdefault(topic, Absence(now, now))
            absence.retry_at = now + absence.wait
            absence.wait = min(2 * absence.wait, MAX_RETRY_SECONDS)
        return outcomes

    def _compare(self, state: Acknowledged, now: float) -> list[RequestOutcome]:
        """Compare Alpaca's state with the acked topics, and return the outcomes that are due."""
        outcomes = []
        if lost := state.lacks(self.acked):
            self.acked -= lost
            self._surplus -= lost
            self._missing |= dict.fromkeys(lost & self._wanted.keys())
            for topic in lost & self._wanted.keys():
                self._absent.setdefault(topic, Absence(now, now + RETRY_SECONDS))
        self._ack(state.topics - self.acked)  # what is not wanted is removed
        if self._absent:
            outcomes = self._end_absences()
        return outcomes + self._resolve()

    def _end_absences(self) -> list[RequestOutcome]:
        """Forget the absences of topics that are acked or not wanted; report those that sessions were told of."""
        over = [topic for topic in self._absent if topic in self.acked or topic not in self._wanted]
        back = frozenset(topic for topic in over if self._absent.pop(topic).told)
        outcomes = []
        for subscriber in self._wanting(back):
            if subscriber.withheld & back:
                subscriber.withheld -= back
                outcomes.append(RequestOutcome(subscriber, unasked=True))
        return outcomes

    def _resolve(self) -> list[RequestOutcome]:
        """Confirm the open requests without a missing topic."""
        outcomes = []
        lacking: dict[Subscription, bool] = {}  # hundreds of sessions may hold the same topics
        for request in self._open:
            if request.state is RequestState.CONFIRMED or not request.complete:
                continue
            if request.topics not in lacking:
                lacking[request.topics] = self._lacks(request)
            if not lacking[request.topics]:
                request.state = RequestState.CONFIRMED
                outcomes.append(RequestOutcome(request.subscriber))
        return outcomes

    def _lacks(self, request: PendingRequest) -> bool:
        """Whether Alpaca has to confirm any topic of the request."""
        return any(True for _ in _intersection(request.topics, self._missing))

    # Refusals

    def _candidates(self, topics: Set[Topic]) -> list[PendingRequest]:
        """Return the requests with any of the topics, oldest first.

        What a subscriber has confirmed becomes a remembered request: it is at risk on this connection.
        """
        older = []
        for subscriber in [*self._subscribers]:
            if not subscriber.confirmed.isdisjoint(topics):
                confirmed, subscriber.confirmed = subscriber.confirmed, NO_TOPICS
                del self._subscribers[subscriber]
                older.append(_remembered(subscriber, confirmed, confirmed_before=True))
        if older:
            self._open = dict.fromkeys([*older, *self._open])
        return [request for request in self._open if not request.topics.isdisjoint(topics)]

    def _refuse_part(self, request: PendingRequest, error: Error, halves: Halves) -> list[RequestOutcome]:
        """Refuse a request, or a part of one that may be divided: its halves are sent one by one.

        `halves` are those of this refusal's other requests, since hundreds of sessions may hold the same topics.
        """
        topics = request.topics
        if not request.divisible or len(topics) == 1:
            return self._refuse(request, error)
        if error[0] == SYMBOL_LIMIT and self._is_full:  # no half of it could be added
            self._give_up([request], topics & self._missing.keys())
            return [RequestOutcome(request.subscriber, unasked=True, error=error)]
        if topics not in halves:
            halves[topics] = _halves(topics)
        self._divide(request, halves[topics])
        return []

    def _divide(self, request: PendingRequest, parts: Iterable[Subscription]) -> None:
        """Replace a remembered request by requests for parts of it, which go alone.

        The references to its topics stay as they are.
        """
        request.subscriber.remembered.remove(request)
        del self._open[request]
        for topics in parts:
            if topics:
                part = _remembered(request.subscriber, topics, request.confirmed_before)
                part.alone = True
                self._open[part] = None

    def _refuse(self, request: PendingRequest, error: Error) -> list[RequestOutcome]:
        self._give_up([request], request.topics)
        if request.answered:
            return [RequestOutcome(request.subscriber, unasked=True, error=error)]
        request.state, request.error = RequestState.REFUSED, error
        return [RequestOutcome(request.subscriber)]

    def _refuse_remembered(self) -> list[RequestOutcome]:
        """Refuse every remembered request; return one outcome for each subscriber."""
        assert self._closed is not None
        remembered = [
            request
            for request in self._open
            if request.answered and request.state is RequestState.REMEMBERED and not request.confirmed_before
        ]
        for request in remembered:
            self._refuse(request, self._closed)
        subscribers = dict.fromkeys(request.subscriber for request in remembered)
        return [RequestOutcome(subscriber, unasked=True, error=self._closed) for subscriber in subscribers]

    # What is wanted

    def _confirm(self, request: PendingRequest) -> None:
        """Move the topics of an answered request to those that its subscriber has confirmed."""
        subscriber = request.subscriber
        if request.topics:
            del self._open[request]
            self._unrefer(request.topics & subscriber.confirmed)
            subscriber.confirmed = subscriber.confirmed | request.topics if subscriber.confirmed else request.topics
            self._subscribers[subscriber] = None

    def _merge_remembered(self, subscriber: Subscriber) -> None:
        """Merge remembered requests that are too many, since a client may go on subscribing in an outage."""
        remembered = [
            request for request in subscriber.remembered if not request.alone and not request.confirmed_before
        ]
        if len(remembered) <= MAX_REMEMBERED:
            return
        merged = NO_TOPICS.union(*(request.topics for request in remembered))
        self._open[_remembered(subscriber, merged)] = None
        self._refer(merged)
        for request in remembered:
            self._give_up([request], request.topics)

    def _wanting(self, topics: Set[Topic]) -> list[Subscriber]:
        """Return the subscribers that hold or have requested any of the topics."""
        if not topics:
            return []
        holders = [subscriber for subscriber in self._subscribers if not subscriber.confirmed.isdisjoint(topics)]
        requesting = [request.subscriber for request in self._open if not request.topics.isdisjoint(topics)]
        return [*dict.fromkeys([*holders, *requesting])]

    def _give_up(self, requests: Iterable[PendingRequest], topics: Set[Topic]) -> None:
        """Remove the topics from these requests; one that is left without any waits for nothing."""
        for request in requests:
            removed = topics if topics is request.topics else request.topics & topics
            if not removed:
                continue
            request.topics = NO_TOPICS if removed is request.topics else request.topics - removed
            request.subscriber.forget_withheld()
            if not request.topics:
                del self._open[request]
                if request.answered:
                    request.subscriber.remembered.remove(request)
                elif not request.resolved:
                    request.state = RequestState.CONFIRMED
            self._unrefer(removed)

    def _take_confirmed(self, subscriber: Subscriber, topics: Subscription) -> None:
        """Remove topics that the subscriber has confirmed."""
        if topics:
            subscriber.confirmed = NO_TOPICS if topics is subscriber.confirmed else subscriber.confirmed - topics
            if not subscriber.confirmed:
                del self._subscribers[subscriber]
            subscriber.forget_withheld()
            self._unrefer(topics)

    def _refer(self, topics: Subscription) -> None:
        """Count one more reference to each topic."""
        wanted, before = self._wanted, len(self._wanted)
        wanted.update(topics)  # a Counter counts in C: a third of the time of a loop
        if len(wanted) > before:
            new = frozenset(topic for topic in topics if wanted[topic] == 1)
            self.channels.update(map(channel_of, new))
            self._surplus -= new
            self._missing |= dict.fromkeys(new - self.acked)

    def release(self) -> bool:
        """Count off one chunk of the references that were given up; return whether there are more."""
        if self._released:
            self._unrefer_now(self._released.popleft())
        return bool(self._released)

    def _unrefer(self, topics: Set[Topic]) -> None:
        """Count one reference less to each topic; of thousands, `release` does it."""
        if len(topics) <= CHUNK_SIZE:
            self._unrefer_now(topics)
        else:
            self._released.extend(chunks(topics))

    def _unrefer_now(self, topics: Iterable[Topic]) -> None:
        wanted = self._wanted
        unwanted = []
        for topic in topics:
            if left := wanted[topic] - 1:
                wanted[topic] = left
            else:
                del wanted[topic]
                unwanted.append(topic)
        if unwanted:
            self._remove_missing(unwanted)
            self.channels -= Counter(map(channel_of, unwanted))
            self._surplus |= self.acked.intersection(unwanted)

    def _remove_missing(self, topics: Iterable[Topic]) -> None:
        missing = self._missing
        if not missing:
            return
        for topic in topics:
            missing.pop(topic, None)
        if not missing:
            missing.clear()  # a dict keeps the slots of deleted keys, and every iteration walks over them


def _wait_after(failures: int) -> float:
    """Return the seconds to wait after so many failures."""
    return min(RETRY_SECONDS * 2.0 ** min(failures, 10), MAX_RETRY_SECONDS)


def _halves(topics: Subscription) -> list[Subscription]:
    """Return the topics as two sets of about the same size; one of them may be empty."""
    ordered = sorted(topics)
    middle = len(ordered) // 2
    return [frozenset(ordered[:middle]), frozenset(ordered[middle:])]


def _remembered(subscriber: Subscriber, topics: Subscription, confirmed_before: bool = False) -> PendingRequest:
    """Add a remembered request that may be divided to a subscriber."""
    request = PendingRequest(subscriber, topics, NO_TOPICS, -inf, topics=topics, divisible=True)
    request.state, request.answered, request.confirmed_before = RequestState.REMEMBERED, True, confirmed_before
    subscriber.remembered.append(request)
    return request


def _intersection(topics: Set[Topic], others: dict[Topic, None]) -> Iterator[Topic]:
    """Iterate lazily over the topics in both, by looking the fewer up in the many."""
    few, many = (topics, others) if len(topics) < len(others) else (others, topics)
    return filter(many.__contains__, few)
