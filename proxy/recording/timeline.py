"""The recorded messages of several files in the order of their arrival.

Files of one feed that follow one another are one *track*; tracks are merged by the times of their batches. A batch is
what arrived at once. A file is opened when its turn comes, and read frame by frame.
"""

from __future__ import annotations

import heapq
import json
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

Windows = Sequence[tuple[int, int]]
"""Times from and until which messages are wanted, in order; nanoseconds since 1970."""


class Batch(NamedTuple):
    """What arrived at once on a feed. `wanted` is false if it lies outside of the windows: it may change books."""

    at: int
    feed: str
    messages: list[Recorded]
    books: list[Recorded]  # whole order books that the recorder has added
    wanted: bool


@dataclass(frozen=True, slots=True)
class Recording:
    """One file: its feed, the times of its first and last line, its messages; `torn`: its end is missing."""

    path: Path
    feed: str
    first: int
    last: int
    messages: int
    torn: bool


def scan(path: Path, progress: Callable[[], None] = lambda: None) -> Recording:
    """Read a file through. Raises OSError and NotARecording; `progress` is called after each frame."""
    file = RecordedFile(path)
    feed, first, last, messages = "", 0, 0, 0
    for frame in file.frames():
        begin, last = lines.span(frame)
        if not first:
            first, feed = begin, str((lines.first_line(frame) or {})["feed"])
            if endpoint(feed) is None:
                raise NotARecording("is of a feed that this version does not know")
        messages += lines.message_count(frame)
        progress()
    return Recording(path, feed, first, last, messages, file.torn)


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
        if stop > first and start <= last:
            found.append((max(start, first), min(stop, last + 1)))
        day += timedelta(days=1)
    return found


def _local(at: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(at // 10**9, zone)


def _instant(day: date, time: time_of_day, zone: tzinfo) -> int:
    return int(datetime.combine(day, time, zone).timestamp()) * 10**9


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
    for recording in track:
        if recording.first >= within[-1][1]:
            return
        found = endpoint(recording.feed)
        has_books = found is not None and CHANNEL in found.channels
        for frame in RecordedFile(recording.path).frames():
            first, last = lines.span(frame)
            overlapping = [window for window in within if window[0] <= last and first < window[1]]
            whole = any(begin <= first and last < end for begin, end in overlapping)
            if overlapping or has_books:
                yield from _batches(recording.feed, frame, overlapping, symbols, most if whole else 1)
            else:
                yield Batch(first, recording.feed, [], [], False)


def _batches(feed: str, frame: bytes, within: Windows, symbols: frozenset[str], most: int) -> Iterator[Batch]:
    batch: Batch | None = None
    for line in lines.read(frame):
        message = recorded(feed, line.body)
        if symbols and symbols.isdisjoint(_symbols(message)):
            continue
        is_full = batch is None or bool(batch.books) or len(batch.messages) >= most
        if batch is None or (is_full and batch.at != line.at) or not line.is_message:
            if batch is not None:
                yield batch
            batch = Batch(line.at, feed, [], [], any(begin <= line.at < end for begin, end in within))
        (batch.messages if line.is_message else batch.books).append(message)
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
