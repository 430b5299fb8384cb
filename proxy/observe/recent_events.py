"""The newest log events for the status page, from level info up, whatever the level of the log itself.

Repeats are filtered as in the log, so that many events of one kind do not displace the others.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from proxy.observe.logs import RepeatFilter
from proxy.observe.snapshot import LogEvent

KEPT = 100
FIELD = 200  # characters kept of a field


class RecentEvents(logging.Handler):
    """A ring buffer of the newest events, filled between `open` and `close`. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(logging.INFO)
        self._repeats = RepeatFilter(clock)
        self._events: deque[LogEvent] = deque(maxlen=KEPT)

    def __repr__(self) -> str:
        return f"<RecentEvents {len(self._events)}>"

    def open(self) -> None:
        logger = logging.getLogger("proxy")
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def close(self) -> None:
        logging.getLogger("proxy").removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        self._add_repeats()  # here as well as in `events`, which may never be called
        if self._repeats.take(record):
            self._events.append(_event(record))

    def events(self) -> tuple[LogEvent, ...]:
        """The events, oldest first."""
        self._add_repeats()
        return tuple(sorted(self._events, key=lambda event: event.time))

    def _add_repeats(self) -> None:
        self._events.extend(_event(record) for record in self._repeats.due())


def _event(record: logging.LogRecord) -> LogEvent:
    fields = {name: _short(value) for name, value in getattr(record, "fields", {}).items()}
    return LogEvent(record.created, record.levelname.lower(), record.getMessage(), fields)


def _short(value: Any) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return text if len(text) <= FIELD else f"{text[:FIELD]}…"
