"""Reconcile the topics that sessions want with those that Alpaca has confirmed.

One reconciler serves one feed. *Wanted* is the union of the sessions' requests, *acked* the topics that Alpaca has
confirmed. After every event (a subscribe, a leave, a reply of Alpaca, a reconnect) `next_request` returns the next part
of the difference, additions before removals; the caller sends it and reports `confirmed` or `refused`. One upstream
request is under way at a time, so a reply always belongs to that request.

Pending requests of several sessions share an upstream request. If Alpaca refuses it, its reply does not tell which
topic was the cause: the pending requests in it are then retried one by one, oldest first, and the one that is refused
alone gets the error; the other sessions are not affected.

Each subscriber gets the outcomes in the order of its requests: when Alpaca has confirmed, or a provisional
acknowledgement after ACK_SECONDS. No I/O and no clock here: `now` is a parameter, outcomes are returned.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Set
from math import inf

from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic, channel_of
from proxy.routing.pending_requests import PendingRequest, RequestOutcome, SubscriberRequests
from proxy.routing.request_builder import RequestBuilder, UpstreamRequest
from proxy.routing.topic_ref_counts import TopicRefCounts

ACK_SECONDS = 1.5  # and up to one tick until `overdue` is called: 2 s at most. Go's SDK gives up after 3 s
MAX_REQUESTS = 64  # of a subscriber; above it, the provisional ones are merged into one


class SubscriptionReconciler:
    """Wanted topics, acked topics and the pending requests of one feed."""

    def __init__(self) -> None:
        self.acked: set[Topic] = set()
        self.request: UpstreamRequest | None = None  # under way
        self.channels: Counter[str] = Counter()  # wanted topics of each
        self._wanted = TopicRefCounts()  # references are the pending requests that hold a topic
        self._missing: dict[Topic, None] = {}  # wanted and not acked, in order of request
        self._surplus: set[Topic] = set()  # acked and not wanted
        self._pending: dict[PendingRequest, None] = {}  # all that hold a topic, oldest first
        self._unanswered: dict[SubscriberRequests, None] = {}  # subscribers with an unanswered request
        self._retries: deque[PendingRequest] = deque()  # sent one by one, since one of them was refused
        self._request_reduced = False  # a pending request gave up a topic of `request`, so it may be the refused one
        self._remove_first = False
        self._closed: tuple[int, str] | None = None

    def __repr__(self) -> str:
        wanted, pending = len(self._wanted.topics), len(self._pending)
        return f"<SubscriptionReconciler {wanted} wanted, {len(self.acked)} acked, {pending} requests>"

    @property
    def wanted(self) -> frozenset[Topic]:
        """The union of what the sessions have requested."""
        return frozenset(self._wanted.topics)

    @property
    def idle(self) -> bool:
        """Whether no session wants a topic of this feed."""
        return not self._wanted.topics

    @property
    def closed(self) -> bool:
        """Whether all subscribes are refused, since Alpaca does not serve this feed."""
        return self._closed is not None

    # Calls on behalf of sessions

    def change(
        self, requests: SubscriberRequests, add: Subscription, remove: Subscription, now: float
    ) -> list[RequestOutcome]:
        """Add topics and remove others, as one request with one outcome.

        Topics that are in both are added. A request that only removes cannot be refused and takes effect at once. Any
        other takes effect as a whole, or not at all, with its outcome.
        """
        if self._closed and add:
            return self.deny(requests, *self._closed, now)
        requests.revoked -= add
        remove -= add
        for pending in [*requests.pending] if not add else ():
            self._shrink(pending, remove)
        # Topics that Alpaca has confirmed for this subscriber are not put at risk again: Python's SDKs resend their
        # whole set each time.
        confirmed = requests.confirmed(self.acked)
        pending = PendingRequest(requests, add, remove, now, holds=add - confirmed if confirmed else add)
        if pending.holds:
            self._add(pending)
            if len(requests.pending) > MAX_REQUESTS:
                self._merge(requests)
        return self._enqueue(pending)

    def adopt(self, requests: SubscriberRequests, held: Iterable[Subscription]) -> list[RequestOutcome]:
        """Take over a subscriber from another account.

        `held` are the topics of each request that it held there. They count as acknowledged provisionally, so a refusal
        arrives as error and state.
        """
        requests.acknowledged = NO_TOPICS.union(*held)
        for topics in held:
            self._add(PendingRequest(requests, topics, NO_TOPICS, 0.0, topics, answered=True, provisional=True))
        return self._refuse_provisional() if self._closed else []

    def revoke(self, requests: SubscriberRequests, topics: Subscription, now: float) -> list[RequestOutcome]:
        """Remove topics that the subscriber may not have any more, from its unanswered requests too.

        The outcome, the state without them, comes in order.
        """
        requests.acknowledged -= topics
        requests.revoked |= topics
        for pending in requests.unanswered:
            pending.add -= topics
        return self.change(requests, NO_TOPICS, topics, now)

    def deny(self, requests: SubscriberRequests, code: int, msg: str, now: float) -> list[RequestOutcome]:
        """Refuse a request that is not sent to Alpaca; its outcome comes in order."""
        return self._enqueue(PendingRequest(requests, NO_TOPICS, NO_TOPICS, now, NO_TOPICS, error=(code, msg)))

    def leave(self, requests: SubscriberRequests) -> None:
        """Remove a subscriber and all that it wants."""
        self._unanswered.pop(requests, None)
        for pending in [*requests.pending]:
            self._shrink(pending, pending.holds)

    # Calls on behalf of the connection to Alpaca

    def next_request(self) -> UpstreamRequest | None:
        """Return the next part of the difference, which counts as sent.

        None if a request is under way or there is no difference.
        """
        if self.request is not None:
            return None
        if self._surplus and (self._remove_first or not self._missing):
            builder = RequestBuilder()
            builder.fill(self._surplus)
            self._surplus.difference_update(builder.topics)
            self.acked.difference_update(builder.topics)  # a session that subscribes from now on has to wait for them
            self.request = UpstreamRequest(False, tuple(builder.topics))
        else:
            self._remove_first = False
            builder = self._additions()
            self.request = UpstreamRequest(True, tuple(builder.topics)) if builder.topics else None
        return self.request

    def confirmed(self) -> list[RequestOutcome]:
        """Record that Alpaca accepted the request under way; return the due outcomes.

        The content of Alpaca's reply is not compared with the request: a reply that lacks a channel's key confirms it
        all the same.
        """
        request, _ = self._end_request()
        if request is None or not request.add:
            return []
        topics = frozenset(request.topics)
        self.acked |= topics
        self._remove_missing(topics)
        self._surplus |= topics - self._wanted.topics
        return self._all_due_outcomes()

    def refused(self, code: int, msg: str) -> list[RequestOutcome]:
        """Record that Alpaca refused the request under way; return the due outcomes.

        Alpaca refuses a request as a whole and keeps its state.
        """
        request, reduced = self._end_request()
        if request is None or not request.add:  # a refused removal concerns no session
            return []
        if self._surplus:
            # The plan's symbol limit may be exceeded only because additions go before removals: remove, then retry.
            self._remove_first = True
            return []
        if self._retries:
            return [] if reduced else self._refuse(self._retries.popleft(), (code, msg))
        candidates = [pending for pending in self._pending if not pending.holds.isdisjoint(request.topics)]
        if len(candidates) == 1 and not reduced:
            return self._refuse(candidates[0], (code, msg))
        self._retries.extend(candidates)
        return []

    def lost(self) -> None:
        """Record that the connection is lost: nothing is acked, everything is missing."""
        self._end_request()
        for requests in {pending.requests: None for pending in self._pending if pending.provisional}:
            requests.update_provisional(self.acked)
        self.acked.clear()
        self._surplus.clear()
        self._missing = dict.fromkeys(self._wanted.topics)
        self._retries.clear()

    def close(self, code: int, msg: str) -> list[RequestOutcome]:
        """Record that Alpaca does not serve this feed (409); return the refusals.

        Every unanswered or provisional request is refused, and from now on every subscribe. Requests that Alpaca has
        confirmed stay wanted, and are sent when it serves the feed again.
        """
        self._closed = (code, msg)
        outcomes = self._refuse_provisional()
        for requests in [*self._unanswered]:
            for pending in [*requests.unanswered]:
                if pending.holds:
                    pending.error = self._closed
                    self._shrink(pending, pending.holds)
            outcomes.extend(self._due_outcomes(requests))
        return outcomes

    def open(self) -> None:
        """Record that Alpaca serves this feed (again)."""
        self._closed = None

    def overdue(self, now: float) -> list[RequestOutcome]:
        """Acknowledge provisionally the requests that have waited ACK_SECONDS."""
        outcomes: list[RequestOutcome] = []
        for requests in [*self._unanswered]:
            outcomes.extend(self._due_outcomes(requests, now))
        return outcomes

    # Implementation

    def _end_request(self) -> tuple[UpstreamRequest | None, bool]:
        """End the request under way; return it, and whether a part of it was given up."""
        ended = self.request, self._request_reduced
        self.request, self._request_reduced = None, False
        return ended

    def _enqueue(self, pending: PendingRequest) -> list[RequestOutcome]:
        pending.requests.unanswered.append(pending)
        self._unanswered[pending.requests] = None
        return list(self._due_outcomes(pending.requests))

    def _additions(self) -> RequestBuilder:
        """Collect the topics to add next.

        A request that is retried goes alone. Otherwise the oldest unanswered request of each subscriber comes first,
        those that have been sent least often in front, so that large requests take turns; then the rest.
        """
        builder, missing = RequestBuilder(), self._missing
        while self._retries:
            builder.fill(_intersection(self._retries[0].holds, missing))
            if builder.topics:
                return builder
            self._retries.popleft()
        oldest = [requests.unanswered[0] for requests in self._unanswered]
        for pending in sorted((pending for pending in oldest if pending.holds), key=lambda pending: pending.times_sent):
            if builder.full or len(builder.topics) == len(missing):
                break
            before = len(builder.topics)
            builder.fill(_intersection(pending.holds, missing))
            pending.times_sent += len(builder.topics) > before
        if len(builder.topics) < len(missing):
            builder.fill(missing)
        return builder

    def _add(self, pending: PendingRequest) -> None:
        pending.requests.pending.append(pending)
        self._pending[pending] = None
        new = self._wanted.add(pending.holds)
        self.channels.update(map(channel_of, new))
        still_acked = new & self._surplus
        self._surplus -= still_acked
        self._missing |= dict.fromkeys(new - still_acked if still_acked else new)

    def _remove_missing(self, topics: Set[Topic]) -> None:
        missing = self._missing
        for topic in [*_intersection(topics, missing)]:
            del missing[topic]
        if not missing:
            missing.clear()  # a dict keeps the slots of deleted keys, and every iteration walks over them

    def _merge(self, requests: SubscriberRequests) -> None:
        """Merge provisional requests, since a client may go on subscribing in an outage."""
        provisional = [pending for pending in requests.pending if pending.provisional]
        if len(provisional) < 2:
            return
        all_topics = NO_TOPICS.union(*(pending.holds for pending in provisional))
        self._wanted.add(all_topics)
        for pending in provisional:
            self._wanted.remove(pending.holds)
            pending.holds = NO_TOPICS
        oldest, *others = provisional
        oldest.holds = all_topics
        for pending in others:
            requests.pending.remove(pending)
            del self._pending[pending]

    def _shrink(self, pending: PendingRequest, topics: Subscription) -> None:
        """Give up those of the topics that the pending request holds."""
        removed = topics if topics is pending.holds else pending.holds & topics
        if not removed:
            return
        if self.request is not None and not removed.isdisjoint(self.request.topics):
            self._request_reduced = True
        all_of_it = len(removed) == len(pending.holds)
        unwanted = self._wanted.remove(pending.holds) if all_of_it else self._wanted.shrink(pending.holds, removed)
        pending.holds = NO_TOPICS if all_of_it else pending.holds - removed
        if all_of_it:
            pending.requests.pending.remove(pending)
            del self._pending[pending]
        self._remove_missing(unwanted)
        self.channels -= Counter(map(channel_of, unwanted))
        self._surplus |= unwanted & self.acked

    def _refuse(self, pending: PendingRequest, error: tuple[int, str]) -> list[RequestOutcome]:
        refused = pending.holds
        if not refused:  # given up in the meantime
            return []
        self._shrink(pending, refused)
        pending.error = error
        requests = pending.requests
        if not pending.answered:
            return list(self._due_outcomes(requests))
        lost = refused.difference(*(other.holds for other in requests.pending if other.answered))
        requests.acknowledged -= lost
        for later in requests.unanswered:  # topics that they did not request again, since they were confirmed
            later.add -= lost - later.holds
        return [RequestOutcome(requests, error, requests.acknowledged)]

    def _refuse_provisional(self) -> list[RequestOutcome]:
        """Refuse every provisional request; return one outcome for each subscriber."""
        assert self._closed is not None
        last: dict[SubscriberRequests, RequestOutcome] = {}
        for pending in [pending for pending in self._pending if pending.provisional]:
            last |= {outcome.requests: outcome for outcome in self._refuse(pending, self._closed)}
        return [*last.values()]

    def _all_due_outcomes(self) -> list[RequestOutcome]:
        return [outcome for requests in [*self._unanswered] for outcome in self._due_outcomes(requests)]

    def _due_outcomes(self, requests: SubscriberRequests, now: float = -inf) -> Iterator[RequestOutcome]:
        """Yield the outcomes that are due, in order, up to the first that is not."""
        while requests.unanswered:
            pending = requests.unanswered[0]
            if pending.error is None and any(_intersection(pending.holds, self._missing)):
                if now - pending.requested_at < ACK_SECONDS:
                    return
                pending.provisional = True
            requests.unanswered.popleft()
            if pending.error is None:
                for older in [*requests.pending] if pending.add and pending.remove else ():
                    if older.answered:
                        self._shrink(older, pending.remove)
                pending.answered = True
                requests.acknowledge(pending)
                yield RequestOutcome(requests, None, requests.acknowledged)
            else:
                yield RequestOutcome(requests, pending.error, None)
        self._unanswered.pop(requests, None)


def _intersection(topics: Set[Topic], others: dict[Topic, None]) -> Iterator[Topic]:
    """Iterate lazily over the topics in both, by looking the fewer up in the many."""
    few, many = (topics, others) if len(topics) < len(others) else (others, topics)
    return filter(many.__contains__, few)
