"""The newest events for the status page: what the log says from info upwards, whatever level the log itself has.

What happens again and again is folded as in the log, so that a storm of one kind leaves the others in sight.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from proxy.observe.logs import RepeatFilter
from proxy.observe.snapshot import LogEvent

KEPT = 100
FIELD = 200  # characters that are kept of a field


class RecentEvents(logging.Handler):
    """The ring of them. It listens between `open` and `close`; `clock` is in steady seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(logging.INFO)
        self._folds = RepeatFilter(clock)
        self._events: deque[LogEvent] = deque(maxlen=KEPT)

    def __repr__(self) -> str:
        return f"<Recent {len(self._events)} events>"

    def open(self) -> None:
        logger = logging.getLogger("proxy")
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def close(self) -> None:
        logging.getLogger("proxy").removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        self._unfold()  # here too: nobody may ever look
        if self._folds.take(record):
            self._events.append(_event(record))

    def events(self) -> tuple[LogEvent, ...]:
        """Oldest first."""
        self._unfold()
        return tuple(sorted(self._events, key=lambda event: event.time))

    def _unfold(self) -> None:
        self._events.extend(_event(record) for record in self._folds.due())


def _event(record: logging.LogRecord) -> LogEvent:
    fields = {name: _short(value) for name, value in getattr(record, "fields", {}).items()}
    return LogEvent(record.created, record.levelname.lower(), record.getMessage(), fields)


def _short(value: Any) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return text if len(text) <= FIELD else f"{text[:FIELD]}…"
