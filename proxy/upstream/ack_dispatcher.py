"""Tells sessions their feed's answers, without holding anybody up.

To tell thousands of topics takes milliseconds, and when Alpaca confirms a request hundreds of sessions may have waited
for it. So what is short is told at once, as long as that is a moment's work; the rest by a greenlet, one answer of each
session after another. A session hears its own answers in their order, and no data of them before: `tell` does both.
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

SHORT = 1000  # topics


class AckReceiver(Member, Protocol):
    """A session, as far as its feed knows it. `answered` is called once for each `change`, in their order, and once
    more if something was refused after it had been acknowledged; before it, `prepare`, which pauses."""

    requests: SubscriberRequests

    def prepare(self, answer: RequestOutcome) -> Iterator[None]: ...
    def answered(self, answer: RequestOutcome) -> None: ...


class AckDispatcher:
    """One feed's. `tell` pauses where others may have a turn, if it has much to say. Who has left is not told any
    more."""

    def __init__(self, tell: Callable[[RequestOutcome], Iterator[None]], log: Log) -> None:
        self._tell = tell
        self._log = log
        self._due: dict[SubscriberRequests, deque[RequestOutcome]] = {}
        self._greenlet: gevent.Greenlet | None = None

    def __repr__(self) -> str:
        return f"<AckDispatcher {len(self._due)} sessions due>"

    def take(self, answers: list[RequestOutcome]) -> None:
        """These are to be told, after what is due already."""
        turn = TimeSlice()
        for answer in answers:
            if answer.requests in self._due or len(answer.state or ()) > SHORT or turn.over():
                self._due.setdefault(answer.requests, deque()).append(answer)
            else:
                for _ in self._tell(answer):
                    pass
        if self._due and self._greenlet is None:
            self._greenlet = gevent.spawn(self._work)

    def _work(self) -> None:
        turn = TimeSlice()
        while self._due:
            requests, answers = next(iter(self._due.items()))
            try:
                for _ in self._tell(answers[0]) if requests.member is not None else ():
                    if turn.over():
                        turn.yield_to_hub()
            except Exception:  # a bug costs this answer, not the others'
                self._log.error("internal_error", requests=repr(requests))
            answers.popleft()
            del self._due[requests]
            if answers:  # more have come meanwhile: they stand behind the other sessions
                self._due[requests] = answers
            if turn.over():
                turn.yield_to_hub()
        self._greenlet = None
