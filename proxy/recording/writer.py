"""The thread that compresses, writes and deletes.

It is a thread of the operating system, since a write to a disk may block for long. It holds the interpreter's lock for
moments only: compression and system calls release it. It does not log and uses no primitive of gevent's, which belong
to the hub's thread. The recorder hands chunks over in a queue, whose size in bytes it bounds, and reads the counts.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty
from traceback import format_exc
from typing import NamedTuple

from gevent.monkey import get_original

from proxy.alpaca.cooperative import run_to_end
from proxy.alpaca.topics import Subscription, by_channel
from proxy.recording import files, lines
from proxy.recording.files import HOUR, OpenFile

QUEUE_BYTES = 32 * 1024 * 1024
IDLE_SECONDS = 1.0  # after which the thread looks for files to seal and to delete, if no chunk comes
CLEAN_SECONDS = 60.0  # between two looks at all files of the folder
PAUSE_SECONDS = 0.0005  # in which the hub gets the interpreter's lock, in long work
OTHERS_HOURS = 2 * HOUR  # from its start on, in which another node may still write to a file
FULL = errno.ENOSPC, errno.EDQUOT  # after these errors the same file can go on
# The reasons for which a message is not recorded.
REASONS = QUEUE_FULL, DISK_ERROR, MIN_FREE, NO_OBJECT = "queue_full", "disk_error", "min_free", "no_object"


class NoRoom(OSError):
    """The disk has less than `min_free`."""


class Chunk(NamedTuple):
    """Lines of one feed and hour, for one frame."""

    feed: str
    hour: int
    lines: list[bytes]
    messages: int
    size: int
    at: int  # the time of its first line


@dataclass(slots=True)
class Gap:
    """Messages that were dropped, since a time."""

    since: int
    reason: str
    messages: int = 0

    def line(self, at: int) -> bytes:
        return lines.own(lines.GAP, at, since=self.since, messages=self.messages, reason=self.reason)


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of the files and its limits: `keep` in seconds, `max` and `min_free` in bytes.

    `node` is in the names of the files that are written: the `files.node_name` of this node; empty without a cluster.
    """

    path: Path
    keep: float
    max: int
    min_free: int
    node: str = ""


@dataclass(slots=True)
class Written:
    """Counts and state of the thread, which alone changes them.

    `problem` is the reason why it cannot write, if any; `tidy_problem` why it cannot seal or delete a file.
    """

    messages: Counter[str] = field(default_factory=Counter)  # by feed, as the others
    bytes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)  # by feed and reason
    last_at: float | None = None  # in seconds since 1970
    newest: str = ""
    free: int | None = None
    problem: str = ""
    tidy_problem: str = ""
    deleted: deque[str] = field(default_factory=deque)  # names of files, until the recorder has logged them
    bug: str = ""  # the traceback of an internal error


class Writer:
    """The queue and the thread, which runs `run`. `topics` are those of each feed, for the first line of its files."""

    def __init__(
        self, folder: Folder, topics: Mapping[str, Subscription], clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.written = Written()
        self._folder = folder
        self._topics = topics
        self._headers: dict[str, dict[str, list[str]]] = {}
        self._clock = clock
        self._queue = get_original("queue", "SimpleQueue")()
        self._put_bytes = 0  # by the recorder
        self._taken_bytes = 0  # by the thread
        self._open: dict[str, OpenFile] = {}
        self._gaps: dict[str, Gap] = {}
        self._clean_at = 0.0  # on the monotonic clock
        self._pause = partial(get_original("time", "sleep"), PAUSE_SECONDS)

    def __repr__(self) -> str:
        return f"<Writer {self._folder.path} {self.pending} bytes pending>"

    @property
    def pending(self) -> int:
        """The bytes in the queue, and in the chunk that is being written."""
        return self._put_bytes - self._taken_bytes

    def put(self, chunk: Chunk) -> None:
        """Hand over a chunk; never waits."""
        self._put_bytes += chunk.size
        self._queue.put(chunk)

    def finish(self, feed: str) -> None:
        """Have the file of a feed sealed, after what was handed over before."""
        self._queue.put(feed)

    def end(self) -> None:
        """Let the thread end once it has written what is in the queue."""
        self._queue.put(None)

    def discard(self) -> int:
        """Drop what is in the queue after `end`, and have a line written about it; return the number of messages."""
        last: dict[str, Chunk] = {}
        gaps: dict[str, Gap] = {}
        with suppress(Empty):
            while True:
                if isinstance(chunk := self._queue.get_nowait(), Chunk):
                    self._put_bytes -= chunk.size
                    last[chunk.feed] = chunk
                    gaps.setdefault(chunk.feed, Gap(chunk.at, QUEUE_FULL)).messages += chunk.messages
        for feed, chunk in last.items():
            line = gaps[feed].line(chunk.at)
            self.put(Chunk(feed, chunk.hour, [line], 0, len(line), chunk.at))
        self.end()
        return sum(gap.messages for gap in gaps.values())

    # The thread

    def run(self) -> None:
        """Write until `end`, then seal the files."""
        while True:
            try:
                chunk = self._queue.get(timeout=IDLE_SECONDS)
            except Empty:
                self._guarded(self._recover)
            else:
                if chunk is None:
                    break
                if isinstance(chunk, str):
                    self._guarded(partial(self._seal, chunk))
                else:
                    self._write(chunk)
                    self._taken_bytes += chunk.size
            self._guarded(self._tidy)
        self._guarded(self._write_gaps)
        for feed in [*self._open]:
            self._guarded(partial(self._seal, feed))

    def _guarded(self, do: Callable[[], None]) -> None:
        try:
            do()
        except OSError as error:
            self.written.problem = _words(error)
        except Exception:  # an internal error does not end the thread
            self.written.bug = format_exc()

    def _write(self, chunk: Chunk) -> None:
        try:
            self._measure()
            self._append(chunk)
        except NoRoom as error:
            self._drop(chunk, MIN_FREE, _words(error))
        except OSError as error:
            self._drop(chunk, DISK_ERROR, _words(error))
        except Exception:
            self._drop(chunk, DISK_ERROR, "an internal error")
            self.written.bug = format_exc()
        else:
            self._gaps.pop(chunk.feed, None)
            self.written.problem = ""
            self.written.messages[chunk.feed] += chunk.messages
            self.written.last_at = self._clock() / 1e9

    def _drop(self, chunk: Chunk, reason: str, problem: str) -> None:
        self.written.problem = problem
        self.written.dropped[chunk.feed, reason] += chunk.messages
        self._gaps.setdefault(chunk.feed, Gap(chunk.at, reason)).messages += chunk.messages

    def _measure(self) -> None:
        """Measure the free space. Raises NoRoom if it is too little. The folder is made if it is missing."""
        folder = self._folder.path
        with suppress(FileExistsError):
            folder.mkdir(0o700)  # not its parent: that of a disk which is not mounted would be on another one
        self.written.free = free = shutil.disk_usage(folder).free
        if free < self._folder.min_free:
            raise NoRoom(errno.ENOSPC, f"less than {self._folder.min_free:,} bytes are free (min_free)", str(folder))

    def _recover(self) -> None:
        """Write the gaps while no message comes. If that succeeds, the disk is well again."""
        self._measure()
        self._write_gaps()
        self.written.problem = ""

    def _write_gaps(self) -> None:
        at = self._clock()
        for feed in [*self._gaps]:
            self._append(Chunk(feed, at - at % HOUR, [], 0, 0, at))
            del self._gaps[feed]

    def _append(self, chunk: Chunk) -> None:
        feed = chunk.feed
        if feed in self._open and self._open[feed].hour != chunk.hour:
            self._seal(feed)
        if feed not in self._open:
            self._open[feed] = OpenFile(self._folder.path, feed, chunk.hour, self._folder.node)
        file = self._open[feed]
        parts = chunk.lines
        if (gap := self._gaps.get(feed)) is not None:
            parts = [gap.line(chunk.at), *parts]
        if not file.size:
            of_node = {"node": self._folder.node} if self._folder.node else {}
            topics = self._header(feed)
            start = lines.own(lines.START, chunk.at, format=lines.FORMAT, feed=feed, **of_node, topics=topics)
            parts = [start, *parts]
        try:
            self.written.bytes[feed] += file.write(b"".join(parts)[1:] + b"\n")
        except OSError as error:
            if file.torn or error.errno not in FULL:  # the file may be gone: the next chunk opens another
                del self._open[feed]
                with suppress(OSError):
                    file.abandon()
            raise
        self.written.newest = file.path.name

    def _header(self, feed: str) -> dict[str, list[str]]:
        """Return the topics of a feed by channel, in order."""
        if feed not in self._headers:
            self._headers[feed] = dict(sorted(run_to_end(by_channel(self._topics[feed]), self._pause).items()))
        return self._headers[feed]

    def _seal(self, feed: str) -> None:
        """Seal the file of a feed, if one is open.

        A failure costs no message: what was written can be read without.
        """
        file = self._open.pop(feed, None)
        try:
            if file is not None:
                file.seal()
        except OSError as error:
            self.written.tidy_problem = _words(error)

    def _tidy(self) -> None:
        """Delete the oldest files, seal those of former hours, measure what is free."""
        now = self._clock()
        if time.monotonic() >= self._clean_at:
            self._clean_at = time.monotonic() + CLEAN_SECONDS
            self._delete(now)
        for feed in [feed for feed, file in self._open.items() if file.hour + HOUR <= now]:
            self._seal(feed)
        self._measure()

    def _delete(self, now: int) -> None:
        """Delete the files that are older than `keep`, and the oldest ones until all are within `max`.

        The age counts up to the newest of these files, so that a clock that was set ahead deletes nothing. In a cluster
        other nodes may write to the folder, and delete from it.
        """
        problem = ""
        try:
            entries = files.entries(self._folder.path, self._pause)
        except OSError:  # `_measure` reports it
            return
        self._pause()
        size = sum(entry.size for entry in entries)
        being_written = {file.path.name for file in self._open.values()}

        def finished(entry: files.Entry) -> bool:
            if entry.unsealed and entry.node != self._folder.node and now < entry.hour + OTHERS_HOURS:
                return False  # another node's, which may be writing to it
            return entry.path.name.removesuffix(files.UNSEALED) not in being_written

        newest = min(now, next((entry.hour + HOUR for entry in reversed(entries) if finished(entry)), now))
        for entry in entries:
            too_old = entry.hour + HOUR + self._folder.keep * 1e9 <= newest
            if not too_old and size <= self._folder.max:
                break
            if not finished(entry):
                continue
            try:
                entry.path.unlink()
            except FileNotFoundError:  # another node has deleted or sealed it a moment ago
                size -= entry.size
            except OSError as error:  # the others can still be deleted
                problem = _words(error)
            else:
                size -= entry.size
                self.written.deleted.append(entry.path.name)
        self.written.tidy_problem = problem


def _words(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
