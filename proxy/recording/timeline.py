"""The recorded messages of several files in the order of their arrival.

Files of one feed that follow one another are one *track*; tracks are merged by the times of their batches. A batch is
what arrived at once. A file is opened when its turn comes, and read in pieces of whole lines. Where the clock was set
back while recording, the time of a batch is the latest one before it, so that the order of arrival is kept.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from datetime import time as time_of_day
from pathlib import Path
from typing import Any, NamedTuple

from proxy.alpaca.codec import JSON, Head, Malformed
from proxy.alpaca.endpoints import endpoint
from proxy.recording import lines
from proxy.recording.files import NotARecording, RecordedFile
from proxy.routing.order_books import CHANNEL
from proxy.simulator.wire import Recorded

TRADING = "trading"
NEWS = "n"
PIECE_BYTES = 16 * 1024  # of lines that are read without a pause

_TIMES = re.compile(rb'\n\{(?:"recording":"[a-z]+",)?"at":([1-9]\d{18})[,}]')
_GAP = re.compile(rb'\n\{"recording":"gap"')
_UNREADABLE = re.compile(rb'\n\{(?:"recording":"book",)?"at":(?![1-9]\d{18},[ \t\r]*")')

Windows = Sequence[tuple[int, int]]
"""Times from and until which messages are wanted, in order; nanoseconds since 1970."""


class Batch(NamedTuple):
    """The messages that arrived at once on a feed.

    `wanted` is false if they lie outside of the windows: they may change books. One without messages lets the
    reader pause.
    """

    at: int
    feed: str
    messages: list[Recorded]
    books: list[Recorded]  # whole order books that the recorder has added
    wanted: bool
    gap: bool = False  # messages are missing before it


@dataclass(frozen=True, slots=True)
class Recording:
    """One file: its feed, the earliest and the latest time of its lines, its messages; `torn`: its end is missing."""

    path: Path
    feed: str
    first: int
    last: int
    messages: int
    torn: bool


def scan(path: Path, progress: Callable[[], None] = lambda: None) -> Recording:
    """Read a file through. Raises OSError and NotARecording; `progress` is called after each piece."""
    file = RecordedFile(path)
    start = lines.first_line(next(file.frames())) or {}
    feed, first, messages = str(start.get("feed")), start.get("at"), 0
    if endpoint(feed) is None:
        raise NotARecording("is of a feed that this version does not know")
    if not isinstance(first, int) or not 10**18 <= first < 10**19:
        raise NotARecording("has no time in its first line")
    last = first
    for piece in _pieces(file):
        if times := _TIMES.findall(piece):
            first, last = min(first, int(min(times))), max(last, int(max(times)))
        messages += lines.message_count(piece)
        progress()
    return Recording(path, feed, first, last, messages, file.torn)


def _pieces(file: RecordedFile) -> Iterator[bytes]:
    """Yield whole lines, each after a line break; a gap is the first line of its piece.

    A line without a time of 19 digits is the torn end of the file.
    """
    for frame in file.frames():
        begin = 0
        while begin < len(frame):
            end = frame.find(b"\n", begin + PIECE_BYTES) + 1 or len(frame)
            piece = b"\n" + frame[begin:end].lstrip(b"\n")
            if (unreadable := _UNREADABLE.search(piece)) is not None:
                file.torn = True
                yield piece[: unreadable.start()]
                return
            if (gap := _GAP.search(piece, 1)) is not None:
                end -= len(piece) - gap.start()
                piece = piece[: gap.start()]
            yield piece
            begin = end


def windows(
    recordings: Sequence[Recording],
    begin: time_of_day | None = None,
    end: time_of_day | None = None,
    zone: tzinfo = timezone.utc,
) -> Windows:
    """Return the part of each recorded day from `begin` to `end`, local times; the end may be on the next day."""
    first, last = min(each.first for each in recordings), max(each.last for each in recordings)
    if begin is None and end is None:
        return [(first, last + 1)]
    found = []
    begin, end = begin or time_of_day(), end or time_of_day()
    day = _local(first, zone).date() - timedelta(days=1)
    while day <= _local(last, zone).date():
        start = _instant(day, begin, zone)
        stop = _instant(day if end > begin else day + timedelta(days=1), end, zone)
        if stop > first and start <= last and start < stop:
            found.append((max(start, first), min(stop, last + 1)))
        day += timedelta(days=1)
    return found


def _local(at: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(at // 10**9, zone)


def _instant(day: date, time: time_of_day, zone: tzinfo) -> int:
    """Return when a clock shows this time; for a time that the clock skips, the moment of the skip."""
    moment = datetime.combine(day, time, zone)
    late, early = (int(moment.replace(fold=fold).timestamp()) for fold in (0, 1))
    if early >= late:  # not skipped
        return late * 10**9
    before = _offset(early, zone)
    while late - early > 1:
        middle = (early + late) // 2
        early, late = (middle, late) if _offset(middle, zone) == before else (early, middle)
    return late * 10**9


def _offset(second: int, zone: tzinfo) -> timedelta | None:
    return datetime.fromtimestamp(second, zone).utcoffset()


def batches(
    recordings: Iterable[Recording], within: Windows, symbols: frozenset[str], most: int = 1
) -> Iterator[Batch]:
    """Yield the batches of all files in order; of these symbols only, if any are named.

    With `most`, what arrived one after the other on a feed is one batch of up to so many messages.
    """
    tracks: list[list[Recording]] = []
    for recording in sorted(recordings, key=lambda each: each.first):
        for track in tracks:
            if track[-1].feed == recording.feed and track[-1].last <= recording.first:
                track.append(recording)
                break
        else:
            tracks.append([recording])
    return heapq.merge(*(_track(track, within, symbols, most) for track in tracks), key=lambda batch: batch.at)


def _track(track: Iterable[Recording], within: Windows, symbols: frozenset[str], most: int) -> Iterator[Batch]:
    at = 0
    for recording in track:
        if recording.first >= within[-1][1]:
            return
        try:
            for batch in _batches(recording, at, within, symbols, most):
                at = batch.at
                yield batch
        except NotARecording as error:
            raise NotARecording(f"{recording.path} {error}") from error


def _batches(recording: Recording, at: int, within: Windows, symbols: frozenset[str], most: int) -> Iterator[Batch]:
    """Yield the batches of a file, none before `at`, and at least one for each piece of it."""
    feed, found = recording.feed, endpoint(recording.feed)
    has_books = found is not None and CHANNEL in found.channels
    batch: Batch | None = None
    window: tuple[int, int] | None = None  # the one of `batch`
    present: tuple[int, int] | None = None  # the one of the line
    for piece in _pieces(RecordedFile(recording.path)):
        yielded = False
        if _GAP.match(piece):
            if batch is not None:
                yield batch
                batch = None
            yield Batch(at, feed, [], [], wanted=False, gap=True)
        for line in lines.read(piece):
            at = max(at, line.at)
            if present is None or at >= present[1]:
                present = next((each for each in within if each[0] <= at < each[1]), None)
            if present is None and not has_books:
                continue
            message = recorded(feed, line.body)
            if symbols and symbols.isdisjoint(_symbols(message)):
                continue
            is_full = batch is None or bool(batch.books) or len(batch.messages) >= most or present is not window
            if batch is None or (is_full and batch.at != at) or not line.is_message:
                if batch is not None:
                    yielded = True
                    yield batch
                batch, window = Batch(at, feed, [], [], present is not None), present
            (batch.messages if line.is_message else batch.books).append(message)
        if not yielded:
            yield batch or Batch(at, feed, [], [], wanted=False)
            batch = None
    if batch is not None:
        yield batch


def recorded(feed: str, body: bytes) -> Recorded:
    """Return a message with the keys by which the simulator delivers it."""
    if feed == TRADING:
        return Recorded(_order_update(body), body)
    try:
        head = JSON.head(body)
    except Malformed:
        head = Head()
    if head.T == NEWS:
        return Recorded({"T": NEWS, "S": head.S, "symbols": JSON.news_symbols(body)}, body)
    return Recorded({"T": head.T, "S": head.S}, body)


def _order_update(body: bytes) -> dict[str, Any]:
    try:
        update = json.loads(body)
        return {"stream": update["stream"], "data": update["data"]}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {"stream": "", "data": {}}


def _symbols(message: Recorded) -> Collection[str]:
    if "stream" in message:
        order = message["data"].get("order") if isinstance(message["data"], dict) else None
        return [str(order.get("symbol"))] if isinstance(order, dict) else []
    return message["symbols"] if message["T"] == NEWS else [message["S"]]
