"""Logs: one event a line, with a stable name and named fields; for people on a terminal, JSON for machines.

`Log("upstream", feed="iex").warning("lost", reason=…)` is the event `upstream.lost`. Nothing on the data path logs.
Fields are what an event is about (client, feed, account, reason), never a secret.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO


class Log:
    """Events of one part, with the fields that all of them share. Fields that are None or empty are left out."""

    def __init__(self, part: str, **fields: Any) -> None:
        self._logger = logging.getLogger(f"proxy.{part}")
        self._part = part
        self._fields = fields

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


class _Human(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={_word(value)}" for name, value in getattr(record, "fields", {}).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f" {record.levelname.lower()}"
        text = f"{clock}{level} {record.getMessage()} {fields}".rstrip()
        return text if not record.exc_info else f"{text}\n{self.formatException(record.exc_info)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value)
    return text if text and not any(c.isspace() or c in "\"'" for c in text) else json.dumps(text, ensure_ascii=False)


def set_up(style: str, level: str, stream: TextIO | None = None) -> None:
    """Sends the proxy's events to `stream` (standard error); `style` is human, json, or auto: human on a terminal."""
    out = stream or sys.stderr
    human = style == "human" or (style == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(_Human() if human else _Json())
    root = logging.getLogger("proxy")
    root.handlers = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    logging.raiseExceptions = False  # a closed standard error must not take the proxy along
