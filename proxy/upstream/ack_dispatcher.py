"""Deliver the outcomes of requests to sessions, without blocking the hub.

An outcome with thousands of topics takes milliseconds to deliver, and one confirmation of Alpaca can answer requests of
hundreds of sessions. Outcomes with few topics are delivered at once, for at most one time slice; a greenlet delivers
the others, one of each session at a time. Each session gets its outcomes in order. That no data of a topic comes before
the outcome that acknowledges it is up to `deliver`, which is the supervisor's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import gevent

from proxy.observe.logs import Log
from proxy.routing.pending_requests import RequestOutcome, SubscriberRequests
from proxy.routing.router import Member
from proxy.transport.time_slice import TimeSlice

MAX_TOPICS_AT_ONCE = 1000  # in an outcome that is delivered without the greenlet


class AckReceiver(Member, Protocol):
    """The part of a session that its feed uses.

    `prepare` and then `answered` are called once for each of its requests, in order, and once more if a request is
    refused after it had been acknowledged. `prepare` yields between its steps.
    """

    requests: SubscriberRequests

    def prepare(self, outcome: RequestOutcome) -> Iterator[None]: ...
    def answered(self, outcome: RequestOutcome) -> None: ...


class AckDispatcher:
    """The queue of outcomes of one feed.

    `deliver` yields where other greenlets may run. Outcomes of sessions that have left are dropped.
    """

    def __init__(self, deliver: Callable[[RequestOutcome], Iterator[None]], log: Log) -> None:
        self._deliver = deliver
        self._log = log
        self._queued: dict[SubscriberRequests, deque[RequestOutcome]] = {}
        self._greenlet: gevent.Greenlet | None = None

    def __repr__(self) -> str:
        return f"<AckDispatcher {len(self._queued)} sessions queued>"

    def take(self, outcomes: list[RequestOutcome]) -> None:
        """Deliver short outcomes at once and queue the others."""
        time_slice = TimeSlice()
        for outcome in outcomes:
            if outcome.requests in self._queued or len(outcome.state or ()) > MAX_TOPICS_AT_ONCE or time_slice.over():
                self._queued.setdefault(outcome.requests, deque()).append(outcome)
            else:
                self._deliver_now(outcome)
        if self._queued and self._greenlet is None:
            self._greenlet = gevent.spawn(self._work)

    def _deliver_now(self, outcome: RequestOutcome) -> None:
        try:
            for _ in self._deliver(outcome) if outcome.requests.member is not None else ():
                pass
        except Exception:  # an internal error costs this outcome, not the others
            self._log.error("internal_error", requests=repr(outcome.requests))

    def _work(self) -> None:
        time_slice = TimeSlice()
        while self._queued:
            requests, outcomes = next(iter(self._queued.items()))
            try:
                for _ in self._deliver(outcomes[0]) if requests.member is not None else ():
                    if time_slice.over():
                        time_slice.yield_to_hub()
            except Exception:  # an internal error costs this outcome, not the others
                self._log.error("internal_error", requests=repr(requests))
            outcomes.popleft()
            del self._queued[requests]
            if outcomes:  # the rest goes behind the other sessions
                self._queued[requests] = outcomes
            if time_slice.over():
                time_slice.yield_to_hub()
        self._greenlet = None
