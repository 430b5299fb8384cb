"""Recorded messages as data of the simulator: the recorded bytes, at the recorded pace or another.

The clock of a replay starts with the first subscription. Order books are kept as they pass, so that a session that
joins late gets the whole book first. Times are nanoseconds since 1970.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from proxy.alpaca import timestamps
from proxy.alpaca.codec import JSON
from proxy.alpaca.endpoints import WILDCARD
from proxy.alpaca.topics import NO_TOPICS
from proxy.recording.files import NotARecording
from proxy.recording.timeline import Batch, Recording, Windows, batches, recorded
from proxy.routing.order_books import CHANNEL, KIND, Books
from proxy.simulator.exchange import SourceError
from proxy.simulator.wire import Recorded

START_PAUSE = 0.02  # seconds between two looks for the first subscription
LONGEST_PAUSE = 1.0
LOOP_PAUSE = 10**9  # nanoseconds between two passes, where the pace matters
MERGED = 200  # messages of one frame, at most, where the pace does not matter

_TIMESTAMP = re.compile(rb'(?<=")(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d))(?=")')
_MINUTE = 60 * 10**9
_BARS = frozenset("bud")  # their time is a minute, and stays one


@dataclass(frozen=True, slots=True)
class Pace:
    """Pace and repetition of a replay.

    `speed` is a factor; None: as fast as clients read. `shift`: the timestamps in messages become the times of their
    delivery. `loop`: the replay begins anew at the end. `wait`: the number of subscribed sessions with which it begins.
    """

    speed: float | None = 1.0
    shift: bool = False
    loop: bool = False
    wait: int = 1


class Replay:
    """Recorded files as a `simulator.exchange.DataSource`.

    `at` is the time in the recording, `sent` counts messages.
    """

    def __init__(
        self, recordings: Sequence[Recording], within: Windows, pace: Pace, symbols: frozenset[str] = frozenset()
    ) -> None:
        self.patient = pace.speed is None
        self.ended = False
        self.begun = False
        self.sent = 0
        self.at = within[0][0]
        self._recordings = recordings
        self._within = within
        self._pace = pace
        self._symbols = symbols
        self._books: dict[str, Books] = {recording.feed: Books(JSON) for recording in recordings}
        self._stale: set[tuple[str, str]] = set()  # feeds and symbols of books with a gap since the last whole one
        self._batches = self._read()
        self._next: Batch | None = None
        self._window: tuple[int, int] | None = None  # the one of the last message
        self._origin = (0, 0)  # a time in the recording, and when it was or will be
        self._sent_before = 0  # in earlier passes of a loop
        self._resumes = 0  # when the next pass of a loop begins

    def __repr__(self) -> str:
        return f"<Replay of {len(self._recordings)} files, {self.sent} messages sent>"

    @property
    def left(self) -> int:
        """Nanoseconds of the recording that are left, windows alone."""
        return sum(max(0, end - max(begin, self.at)) for begin, end in self._within)

    # Calls of the simulator

    def follow(self, feed: str, channel: str, symbol: str, now: int) -> list[Recorded]:
        """Return the order books that start a subscription to this symbol or `*`."""
        if channel != CHANNEL or not self.begun or feed not in self._books:
            return []
        return self._whole_books(feed, None if symbol == WILDCARD else symbol, now - self.at)

    def set_rate(self, rate: float) -> None:
        """Do nothing: the pace is that of the recording."""

    def pause(self, now: int) -> float:
        if not self.begun:
            return START_PAUSE
        if self._next is None or self.patient:
            return 0.0
        due = max(self._due(self._next.at) if self._window else now, self._resumes)
        return min(max(0.0, (due - now) / 1e9), LONGEST_PAUSE)

    def advance(self, now: int, live: Mapping[str, int]) -> Iterator[tuple[str, list[Recorded]]]:
        """Yield each feed with the messages that are due, and lists without messages where many are left out."""
        if now < self._resumes:
            return
        if not self.begun:
            if sum(live.values()) < self._pace.wait:
                return
            self.begun = True
            self._next = self._following()
        while (batch := self._next) is not None:
            if batch.wanted and not self._is_in_window(batch.at):  # the time until the next window is not waited for
                self._window = next(window for window in self._within if window[0] <= batch.at < window[1])
                self._origin = batch.at, now
                for feed in self._books:
                    yield feed, self._whole_books(feed, None, now - batch.at)
            due = now if self._pace.speed is None else self._due(batch.at)
            if batch.wanted and due > now:
                return
            yield batch.feed, self._pass(batch, due)
            self._next = self._following()
        self._end(now)

    def _is_in_window(self, at: int) -> bool:
        return self._window is not None and self._window[0] <= at < self._window[1]

    def _due(self, at: int) -> int:
        began_at, began = self._origin
        return began + int((at - began_at) / (self._pace.speed or 1.0))

    def _pass(self, batch: Batch, due: int) -> list[Recorded]:
        """Apply a batch to the state; return the messages to send."""
        books = self._books[batch.feed]
        if batch.gap:
            self._stale.update((batch.feed, symbol) for symbol in books.gained(NO_TOPICS, {(CHANNEL, WILDCARD)}))
        if not batch.messages and not batch.books:
            return []
        self.at = max(self.at, batch.at)
        messages = [*(book for book in batch.books if self._is_needed(batch.feed, book)), *batch.messages]
        for message in batch.messages:
            if message.get("T") == KIND:
                books.apply(message["S"], message.body)
        if not batch.wanted:
            self._window = None
            return []
        self.sent += len(batch.messages)
        return [self._shifted(batch.feed, message, due - batch.at) for message in messages]

    def _following(self) -> Batch | None:
        try:
            return next(self._batches, None)
        except (OSError, NotARecording) as error:
            raise SourceError(str(error)) from error

    def _is_needed(self, feed: str, book: Recorded) -> bool:
        """Apply a recorded whole book; return whether subscribers need it: it is the first, or another after a gap."""
        books, symbol = self._books[feed], book["S"]
        before = books.whole(symbol)
        books.apply(symbol, book.body)
        if (feed, symbol) not in self._stale:
            return before is None
        self._stale.remove((feed, symbol))
        return _levels(before) != _levels(books.whole(symbol))

    def _whole_books(self, feed: str, symbol: str | None, delta: int) -> list[Recorded]:
        books = self._books[feed]
        symbols = books.gained(NO_TOPICS, {(CHANNEL, WILDCARD)}) if symbol is None else [symbol]
        bodies = [body for one in symbols if (body := books.whole(one)) is not None]
        return [self._shifted(feed, recorded(feed, body), delta) for body in bodies]

    def _shifted(self, feed: str, message: Recorded, delta: int) -> Recorded:
        """Return the message; with `shift`, its timestamps are moved by so many nanoseconds."""
        if not self._pace.shift:
            return message
        if message.get("T", "") in _BARS:
            delta -= delta % _MINUTE

        def moved(match: re.Match[bytes]) -> bytes:
            try:
                return timestamps.rfc3339(timestamps.nanoseconds(match[1].decode()) + delta).encode()
            except (ValueError, OverflowError):
                return match[1]

        return recorded(feed, _TIMESTAMP.sub(moved, message.body))

    def _end(self, now: int) -> None:
        """End, or begin anew. Raises SourceError if there was nothing to send."""
        if self.sent == self._sent_before:
            of = f" of {', '.join(sorted(self._symbols))}" if self._symbols else ""
            raise SourceError(f"no message{of} was recorded in the chosen span")
        if not self._pace.loop:
            self.ended = True
            self.at = self._within[-1][1] - 1
            return
        self._sent_before = self.sent
        if self._pace.speed is not None:
            self._resumes = now + LOOP_PAUSE
        self.at = self._within[0][0]
        self._books = {feed: Books(JSON) for feed in self._books}
        self._stale.clear()
        self._window = None
        self._batches = self._read()
        self._next = self._following()

    def _read(self) -> Iterator[Batch]:
        return batches(self._recordings, self._within, self._symbols, MERGED if self.patient else 1)


def _levels(book: bytes | None) -> object:
    fields = None if book is None else json.loads(book)
    return fields and (fields["b"], fields["a"])
