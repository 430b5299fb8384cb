"""The newest log events for the status page."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from proxy.observe import logs
from proxy.observe import recent_events as events
from proxy.observe.logs import REPEAT_SECONDS, Log
from proxy.observe.recent_events import RecentEvents


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recent(clock: Clock) -> Iterator[RecentEvents]:
    logger = logging.getLogger("proxy")
    level, handlers, propagate = logger.level, [*logger.handlers], logger.propagate
    recent = RecentEvents(clock)
    recent.open()
    yield recent
    recent.close()
    assert recent not in logger.handlers
    for handler in {*logger.handlers} - {*handlers}:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
    logger.propagate = propagate


def names(recent: RecentEvents) -> list[str]:
    return [event.name for event in recent.events()]


def test_events_have_their_fields_and_come_oldest_first(recent: RecentEvents) -> None:
    log = Log("upstream", feed="iex")
    log.info("live", topics=3)
    log.warning("lost", reason="closed", retry_in=1.25)
    first, second = recent.events()
    assert (first.name, first.level, first.fields) == ("upstream.live", "info", {"feed": "iex", "topics": "3"})
    assert (second.name, second.level) == ("upstream.lost", "warning")
    assert second.fields == {"feed": "iex", "reason": "closed", "retry_in": "1.2"}
    assert first.time <= second.time


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_events_do_not_depend_on_the_level_of_the_log(recent: RecentEvents, level: str) -> None:
    out = io.StringIO()
    logs.set_up("json", level, out)
    log = Log("part")
    log.debug("first")
    log.info("second")
    log.error("third")
    assert names(recent) == ["part.second", "part.third"]
    written = [event for event in ("first", "second", "third") if event in out.getvalue()]
    assert written == {"debug": ["first", "second", "third"], "info": ["second", "third"]}.get(level, ["third"])


def test_repeats_do_not_displace_other_events(recent: RecentEvents, clock: Clock) -> None:
    log = Log("session")
    log.info("rare")
    for _ in range(1000):
        log.info("refused", code=402)
    assert names(recent) == ["session.rare", "session.refused"]
    clock.now += REPEAT_SECONDS
    assert names(recent) == ["session.rare", "session.refused", "session.refused"]
    assert recent.events()[-1].fields == {"code": "402", "repeated": "999"}


def test_events_and_fields_are_bounded(recent: RecentEvents) -> None:
    log = Log("session")
    for number in range(3 * events.KEPT):
        log.info("closed", reason=f"{number} " + "x" * 5000)
    kept = recent.events()
    assert len(kept) == events.KEPT
    assert kept[-1].fields["reason"].startswith(f"{3 * events.KEPT - 1} x")
    assert max(len(event.fields["reason"]) for event in kept) == events.FIELD + 1
