"""Logs: one event a line, with a stable name and named fields; text on a terminal, JSON elsewhere.

`Log("upstream", feed="iex").warning("lost", reason=…)` is the event `upstream.lost`. Code on the data path does not
log. Fields describe an event (client, feed, account, reason); none contains a secret.

Repeats are filtered: the first event is written at once, similar ones within REPEAT_SECONDS are only counted, and then
the last of them is written with that count, as `repeated`. Two events are similar if their name and fields are equal.
The port of an address and fields with fractions (measurements, such as a wait) are not compared. The time of the line
with the count is that at which it is written, so the lines of a log are in the order of their times.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TextIO

import gevent
from gevent.monkey import get_original

from proxy.observe.style import Color, Style
from proxy.transport.time_slice import TimeSlice

REPEAT_SECONDS = 5.0
CHUNK_SIZE = 1024  # characters; at most 4 KiB, which a pipe takes whole or not at all (POSIX: PIPE_BUF)
MAX_KINDS = 1024  # kinds of events that are counted at the same time; events of further kinds are all written

# gevent's own `select` runs other greenlets. A log line must not: it may be written in the middle of the data path.
_select = get_original("select", "select")

_COLORS = {logging.DEBUG: Color.ASIDE, logging.WARNING: Color.WARNING, logging.ERROR: Color.BAD}


class Log:
    """Logger of one part, with fields for all its events. Fields that are None or empty are left out."""

    def __init__(self, part: str, **fields: Any) -> None:
        self._logger = logging.getLogger(f"proxy.{part}")
        self._part = part
        self._fields = fields

    def __repr__(self) -> str:
        return f"<Log {self._part}>"

    @property
    def debugging(self) -> bool:
        """Whether the level is debug, for what would take long to describe in vain."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log an error; within an `except` block, with its traceback."""
        self._log(logging.ERROR, event, fields, exc_info=sys.exc_info()[0] is not None)

    def _log(self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            given = {name: value for name, value in {**self._fields, **fields}.items() if value not in (None, "")}
            self._logger.log(level, f"{self._part}.{event}", exc_info=exc_info, extra={"fields": given})


class RepeatFilter:
    """Counts events that are similar to a recent one, instead of passing them on. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: dict[object, _Count] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"<RepeatFilter {len(self)}>"

    def take(self, record: logging.LogRecord) -> bool:
        """Whether to write the event; otherwise it is counted, and `due` returns the count later."""
        key = _similarity_key(record)
        count = self._counts.get(key)
        if count is not None:
            count.repeated += 1
            count.last = record
            return False
        if len(self._counts) < MAX_KINDS:
            self._counts[key] = _Count(self._clock() + REPEAT_SECONDS)
        return True

    def due(self, *, all: bool = False, most: int = MAX_KINDS) -> list[logging.LogRecord]:
        """The events to write now: the last of each kind whose REPEAT_SECONDS are over, with its count as `repeated`.

        A kind that was repeated is counted for another REPEAT_SECONDS; one that was not is removed. `all` returns every
        count, whatever its time. At most `most` events are returned.
        """
        now = self._clock()
        repeats: list[logging.LogRecord] = []
        for key, count in [*self._counts.items()]:
            if len(repeats) == most or (not all and now < count.until):
                break  # the rest is later still: the dict is ordered by `until`
            del self._counts[key]
            if count.last is not None:
                repeats.append(_repeated(count.last, count.repeated))
                self._counts[key] = _Count(now + REPEAT_SECONDS)
        return repeats


class _Count:
    __slots__ = ("last", "repeated", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.repeated = 0
        self.last: logging.LogRecord | None = None


def _similarity_key(record: logging.LogRecord) -> object:
    """A key that is equal for similar events: level, name, compared fields, and the lines of the traceback."""
    fields = []
    for name, value in _fields(record).items():
        if isinstance(value, float):
            continue
        fields.append((name, str(value).rpartition(":")[0] if name == "address" else str(value)))
    traceback = record.exc_info[2] if record.exc_info else None
    code_lines = []
    while traceback is not None:
        code_lines.append((traceback.tb_frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    return record.levelno, record.getMessage(), tuple(fields), tuple(code_lines)


def _repeated(record: logging.LogRecord, times: int) -> logging.LogRecord:
    copy = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
    copy.fields = {**_fields(record), "repeated": times}
    return copy


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


class _Human(logging.Formatter):
    def __init__(self, style: Style) -> None:
        super().__init__()
        self._paint = style.paint

    def format(self, record: logging.LogRecord) -> str:
        paint = self._paint
        words = [paint(time.strftime("%H:%M:%S", time.localtime(record.created)), Color.ASIDE)]
        if record.levelno != logging.INFO:
            words.append(paint(record.levelname.lower(), _COLORS.get(record.levelno)))
        words.append(paint(record.getMessage(), Color.HEADING))
        words += [f"{paint(f'{name}=', Color.ASIDE)}{_word(value)}" for name, value in _fields(record).items()]
        text = " ".join(words)
        if not record.exc_info:
            return text
        traceback = self.formatException(record.exc_info)
        return "\n".join([text, *map(_printable, traceback.split("\n"))])


class _Json(logging.Formatter):
    def __init__(self, ascii_only: bool) -> None:
        super().__init__()
        self._ascii_only = ascii_only

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "pid": record.process,
            **{name: round(value, 1) if isinstance(value, float) else value for name, value in _fields(record).items()},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _printable(json.dumps(line, default=str, ensure_ascii=self._ascii_only))


def _word(value: Any) -> str:
    """Format a value as one word, quoted if needed. Unprintable characters are escaped: no terminal commands."""
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value)
    if text and text.isprintable() and not any(c in " \"'" for c in text):
        return text
    return _printable(json.dumps(text, ensure_ascii=False))


def _printable(text: str) -> str:
    """Escape unprintable characters as JSON does, so that no text controls a terminal or changes its direction."""
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


class _Output(logging.Handler):
    """Writes events through a RepeatFilter. A timer writes the counts; it runs while the filter holds any."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter, before_line: Callable[[], object]) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._before_line = before_line
        self._repeats = RepeatFilter(time.monotonic)
        self._timer: gevent.Greenlet | None = None
        self._lost = 0  # events
        self._unfinished = False  # the last line was not written to its end

    def emit(self, record: logging.LogRecord) -> None:
        if self._repeats.take(record):
            self._write(record)
        self._start_timer()

    def close(self) -> None:
        """Write all remaining counts."""
        for record in self._repeats.due(all=True):
            self._write_repeat(record)
        if self._timer is not None:
            self._timer.kill(block=False)
        super().close()

    def _write(self, record: logging.LogRecord) -> None:
        """Write the event if that does not block; else it is lost, and counted.

        If the log's reader stops, a write to the full pipe would block the whole proxy.
        """
        try:
            if self._lost and self._write_line(self.format(_lost(self._lost))):
                self._lost = 0
            self._lost += not self._write_line(self.format(record))
        except (OSError, ValueError):
            pass  # standard error is closed; the proxy goes on without a log

    def _write_line(self, line: str) -> bool:
        """Whether the whole line could be written without blocking."""
        self._before_line()
        text = ("\n" if self._unfinished else "") + line + "\n"
        for start in range(0, len(text), CHUNK_SIZE):
            if not _writable(self._stream):
                self._unfinished = self._unfinished or start > 0
                return False
            self._stream.write(text[start : start + CHUNK_SIZE])
            self._stream.flush()
        self._unfinished = False
        return True

    def _start_timer(self) -> None:
        if self._timer is None and len(self._repeats):
            self._timer = gevent.spawn_later(REPEAT_SECONDS, self._write_due)  # a thread's start would wait

    def _write_due(self) -> None:
        """Write the counts that are due, and yield by time: there may be a thousand."""
        time_slice = TimeSlice()
        while records := self._repeats.due(most=1):
            self._write_repeat(records[0])
            time_slice.pause()
        self._timer = None
        self._start_timer()

    def _write_repeat(self, record: logging.LogRecord) -> None:
        record.created = now = time.time()  # of this line, so that the lines are in the order of their times
        record.msecs = now % 1 * 1000
        with self.lock or nullcontext():
            self._write(record)


def _writable(stream: TextIO) -> bool:
    """Whether CHUNK_SIZE characters can be written without blocking; always for a stream without a file descriptor."""
    try:
        return bool(_select([], [stream.fileno()], [], 0)[1])
    except (OSError, ValueError):
        return True


def _lost(count: int) -> logging.LogRecord:
    fields = {"events": count, "reason": "the log was not read fast enough"}
    level = logging.WARNING
    return logging.makeLogRecord({"levelno": level, "levelname": "WARNING", "msg": "log.lost", "fields": fields})


def set_up(
    style: str, level: str, stream: TextIO | None = None, before_line: Callable[[], object] = lambda: None
) -> None:
    """Send the proxy's events to `stream` (default: standard error).

    `style` is human, json, or auto: human on a terminal, otherwise json. `before_line` is called before each line.
    """
    out = stream or sys.stderr
    human = style == "human" or (style == "auto" and out.isatty())
    root = logging.getLogger("proxy")
    for handler in [*root.handlers]:
        if isinstance(handler, _Output):
            root.removeHandler(handler)
            handler.close()
    ascii_only = (getattr(out, "encoding", None) or "utf-8").lower().replace("-", "") != "utf8"
    output = _Output(out, _Human(Style.of(out, os.environ)) if human else _Json(ascii_only), before_line)
    output.setLevel(level.upper())
    root.addHandler(output)
    # The status page shows events from level info up, whatever the level of the log.
    root.setLevel(min(output.level, logging.INFO))
    root.propagate = False
