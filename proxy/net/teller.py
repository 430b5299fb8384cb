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

from proxy.logs import Log
from proxy.net.turn import Turn
from proxy.routing.claims import Answer, Seat
from proxy.routing.router import Member

SHORT = 1000  # topics


class Audience(Member, Protocol):
    """A session, as far as its feed knows it. `answered` is called once for each `change`, in their order, and once
    more if something was refused after it had been acknowledged; before it, `prepare`, which pauses."""

    seat: Seat

    def prepare(self, answer: Answer) -> Iterator[None]: ...
    def answered(self, answer: Answer) -> None: ...


class Teller:
    """One feed's. `tell` pauses where others may have a turn, if it has much to say. Who has left is not told any
    more."""

    def __init__(self, tell: Callable[[Answer], Iterator[None]], log: Log) -> None:
        self._tell = tell
        self._log = log
        self._due: dict[Seat, deque[Answer]] = {}
        self._greenlet: gevent.Greenlet | None = None

    def __repr__(self) -> str:
        return f"<Teller {len(self._due)} sessions due>"

    def take(self, answers: list[Answer]) -> None:
        """These are to be told, after what is due already."""
        turn = Turn()
        for answer in answers:
            if answer.seat in self._due or len(answer.state or ()) > SHORT or turn.over():
                self._due.setdefault(answer.seat, deque()).append(answer)
            else:
                for _ in self._tell(answer):
                    pass
        if self._due and self._greenlet is None:
            self._greenlet = gevent.spawn(self._work)

    def _work(self) -> None:
        turn = Turn()
        while self._due:
            seat, answers = next(iter(self._due.items()))
            try:
                for _ in self._tell(answers[0]) if seat.member is not None else ():
                    if turn.over():
                        turn.pass_on()
            except Exception:  # a bug costs this answer, not the others'
                self._log.error("bug", seat=repr(seat))
            answers.popleft()
            del self._due[seat]
            if answers:  # more have come meanwhile: they stand behind the other sessions
                self._due[seat] = answers
            if turn.over():
                turn.pass_on()
        self._greenlet = None
