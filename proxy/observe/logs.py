"""Logs: one event a line, with a stable name and named fields; for people on a terminal, JSON for machines.

`Log("upstream", feed="iex").warning("lost", reason=…)` is the event `upstream.lost`. Nothing on the data path logs.
Fields are what an event is about (client, feed, account, reason), never a secret.

What happens again and again is folded: the first event is written at once, those like it within FOLD_SECONDS are only
counted, and then the last of them is written with that count, as `repeated`. Like it means the same event with the same
fields; but the port of an address is chance and a fraction is a measure (a wait, say), so neither makes a difference.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from proxy.observe.style import Color, Style

FOLD_SECONDS = 5.0
CHUNK_SIZE = 1024  # characters; at most 4 KiB, which a pipe takes whole if it takes any (POSIX: PIPE_BUF)
REPEATS = 1024  # kinds of events that may be counted at once; more are written as they come

_COLORS = {logging.DEBUG: Color.ASIDE, logging.WARNING: Color.WARNING, logging.ERROR: Color.BAD}


class Log:
    """Events of one part, with the fields that all of them share. Fields that are None or empty are left out."""

    def __init__(self, part: str, **fields: Any) -> None:
        self._logger = logging.getLogger(f"proxy.{part}")
        self._part = part
        self._fields = fields

    def __repr__(self) -> str:
        return f"<Log {self._part}>"

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Within an `except` block the traceback goes along."""
        self._log(logging.ERROR, event, fields, exc_info=sys.exc_info()[0] is not None)

    def _log(self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            known = {name: value for name, value in {**self._fields, **fields}.items() if value not in (None, "")}
            self._logger.log(level, f"{self._part}.{event}", exc_info=exc_info, extra={"fields": known})


class RepeatFilter:
    """Which events are like one that was written just now, and how many of them there were. Time is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: dict[object, _Count] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"<RepeatFilter {len(self)}>"

    def take(self, record: logging.LogRecord) -> bool:
        """Whether the event is to be written; else it is counted, and `due` will tell."""
        key = _likeness(record)
        count = self._counts.get(key)
        if count is not None:
            count.repeated += 1
            count.last = record
            return False
        if len(self._counts) < REPEATS:
            self._counts[key] = _Count(self._clock() + FOLD_SECONDS)
        return True

    def due(self, *, all: bool = False) -> list[logging.LogRecord]:
        """The counts whose time has come (or all there are): the last event of each, with `repeated` among its fields.

        What is counted goes on being counted; what did not happen again is forgotten.
        """
        now = self._clock()
        found = []
        for key, count in [*self._counts.items()]:
            if not all and now < count.until:
                break  # they are in the order of their time
            del self._counts[key]
            if count.last is not None:
                found.append(_repeated(count.last, count.repeated))
                self._counts[key] = _Count(now + FOLD_SECONDS)
        return found


class _Count:
    __slots__ = ("last", "repeated", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.repeated = 0
        self.last: logging.LogRecord | None = None


def _likeness(record: logging.LogRecord) -> object:
    """What two events have in common that are told as one."""
    fields = []
    for name, value in _fields(record).items():
        if isinstance(value, float):
            continue
        fields.append((name, str(value).rpartition(":")[0] if name == "address" else str(value)))
    trace = record.exc_info[2] if record.exc_info else None
    places = []
    while trace is not None:
        places.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    return record.levelno, record.getMessage(), tuple(fields), tuple(places)


def _repeated(record: logging.LogRecord, times: int) -> logging.LogRecord:
    told = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
    told.fields = {**_fields(record), "repeated": times}
    return told


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, "fields", {})
    return found


class _Human(logging.Formatter):
    def __init__(self, ink: Style) -> None:
        super().__init__()
        self._ink = ink

    def format(self, record: logging.LogRecord) -> str:
        paint = self._ink.paint
        words = [paint(time.strftime("%H:%M:%S", time.localtime(record.created)), Color.ASIDE)]
        if record.levelno != logging.INFO:
            words.append(paint(record.levelname.lower(), _COLORS.get(record.levelno)))
        words.append(paint(record.getMessage(), Color.HEADING))
        words += [f"{paint(f'{name}=', Color.ASIDE)}{_word(value)}" for name, value in _fields(record).items()]
        text = " ".join(words)
        return text if not record.exc_info else f"{text}\n{self.formatException(record.exc_info)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _word(value: Any) -> str:
    """A value as a word, in quotes where that helps. Nothing in it reaches the terminal as a command."""
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value)
    if text and text.isprintable() and not any(c in " \"'" for c in text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)


class _Output(logging.Handler):
    """Writes events, folded. The counts come with a timer, which runs while there is something to be counted."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._folds = RepeatFilter(time.monotonic)
        self._timer: threading.Timer | None = None
        self._lost = 0  # events
        self._cut = False  # the last line has no end

    def emit(self, record: logging.LogRecord) -> None:
        if self._folds.take(record):
            self._write(record)
        self._keep_time()

    def close(self) -> None:
        """Tells what was counted so far."""
        self._tell(all=True)
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def _write(self, record: logging.LogRecord) -> None:
        """Writes the event if it can be done at once. Who reads the log may stop reading, and a full pipe would stop
        the proxy with it; so what nobody takes is lost, and counted."""
        try:
            if self._lost and self._say(self.format(_lost(self._lost))):
                self._lost = 0
            self._lost += not self._say(self.format(record))
        except (OSError, ValueError):
            pass  # standard error is closed, which must not take the proxy along

    def _say(self, line: str) -> bool:
        """Whether the whole line could be written without waiting."""
        text = ("\n" if self._cut else "") + line + "\n"
        for start in range(0, len(text), CHUNK_SIZE):
            if not _takes_more(self._stream):
                self._cut = self._cut or start > 0
                return False
            self._stream.write(text[start : start + CHUNK_SIZE])
            self._stream.flush()
        self._cut = False
        return True

    def _keep_time(self) -> None:
        if self._timer is None and len(self._folds):
            self._timer = threading.Timer(FOLD_SECONDS, self._tell)
            self._timer.daemon = True
            self._timer.start()

    def _tell(self, all: bool = False) -> None:
        self.acquire()
        try:
            for record in self._folds.due(all=all):
                self._write(record)
            if not all:
                self._timer = None
                self._keep_time()
        finally:
            self.release()


def _takes_more(stream: TextIO) -> bool:
    """Whether a PIECE can be written now; a stream that is no file always takes it."""
    try:
        return bool(select.select([], [stream.fileno()], [], 0)[1])
    except (OSError, ValueError):
        return True


def _lost(count: int) -> logging.LogRecord:
    fields = {"events": count, "reason": "nobody read the log"}
    level = logging.WARNING
    return logging.makeLogRecord({"levelno": level, "levelname": "WARNING", "msg": "log.lost", "fields": fields})


def set_up(style: str, level: str, stream: TextIO | None = None) -> None:
    """Sends the proxy's events to `stream` (standard error); `style` is human, json, or auto: human on a terminal."""
    out = stream or sys.stderr
    human = style == "human" or (style == "auto" and out.isatty())
    root = logging.getLogger("proxy")
    for handler in [*root.handlers]:
        if isinstance(handler, _Output):
            root.removeHandler(handler)
            handler.close()
    output = _Output(out, _Human(Style.of(out, os.environ)) if human else _Json())
    output.setLevel(level.upper())
    root.addHandler(output)
    root.setLevel(min(output.level, logging.INFO))  # the status page shows infos, whatever is written
    root.propagate = False
