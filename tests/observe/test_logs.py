"""Logs: one event a line, for people or for machines; what repeats itself is folded; nothing steers a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.secret import Secret
from proxy.observe import logs
from proxy.observe.logs import FOLD_SECONDS, REPEATS, Log, RepeatFilter
from tests.harness import wait_for

Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Where the log goes; counts come quickly."""
    monkeypatch.setattr(logs, "FOLD_SECONDS", 0.05)
    stream = io.StringIO()
    logs.set_up("json", "debug", stream)
    yield stream
    logs.set_up("json", "info", io.StringIO())


@pytest.fixture
def events(out: io.StringIO) -> Events:
    return lambda: [json.loads(line) for line in out.getvalue().splitlines()]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(event: str = "upstream.failed", level: int = logging.WARNING, **fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": event, "levelno": level, "levelname": "WARNING", "fields": fields})


# One line


def test_json_is_one_object_a_line(events: Events) -> None:
    Log("upstream", account="main", feed="iex").warning(
        "lost", reason="two\nlines", retry_in=1.5, hint=None, last_error=""
    )
    [event] = events()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event == {
        "level": "warning",
        "event": "upstream.lost",
        "account": "main",
        "feed": "iex",
        "reason": "two\nlines",
        "retry_in": 1.5,
    }


def test_a_line_for_people(out: io.StringIO) -> None:
    logs.set_up("human", "info", out)
    log = Log("session", feed="iex")
    log.info("closed", client="momentum", reason="client went away", delivered=12, wait=0.25)
    log.warning("refused", code=402)
    first, second = out.getvalue().splitlines()
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d session.closed feed=iex client=momentum reason="client went away" delivered=12 wait=0.2', first
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning session.refused feed=iex code=402", second)


def test_colours_are_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for no_color, painted in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        terminal = Terminal()
        logs.set_up("auto", "info", terminal)
        Log("proxy").warning("config", warning="a b")
        plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
        assert re.fullmatch(r'\d\d:\d\d:\d\d warning proxy.config warning="a b"\n', plain)
        assert (plain != terminal.getvalue()) is painted
    logs.set_up("json", "info", io.StringIO())


def test_auto_is_json_where_nobody_looks(out: io.StringIO) -> None:
    logs.set_up("auto", "info", out)
    Log("proxy").info("started")
    assert json.loads(out.getvalue())["event"] == "proxy.started"


@given(st.text())
def test_a_value_is_one_word_that_steers_nothing(text: str) -> None:
    word = logs._word(text)
    assert word.isprintable()
    assert word == text or json.loads(word) == text


def test_the_level_is_the_least_that_is_written(out: io.StringIO) -> None:
    logs.set_up("json", "warning", out)
    log = Log("proxy")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["proxy.c", "proxy.d"]


def test_an_error_brings_its_traceback(events: Events) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        Log("gateway").error("internal_error", part="it")
    [event] = events()
    assert event["traceback"].endswith("ZeroDivisionError")


def test_a_secret_that_strays_into_a_field_is_not_shown(out: io.StringIO) -> None:
    Log("a").info("b", secret=Secret("canary"))
    logs.set_up("human", "info", out)
    Log("a").info("b", secret=Secret("canary"))
    assert "canary" not in out.getvalue()


def test_a_closed_stream_takes_nobody_along(out: io.StringIO) -> None:
    log = Log("a")
    log.info("b")
    out.close()
    log.info("c")


def test_setting_up_again_leaves_other_listeners_alone(out: io.StringIO) -> None:
    """The status page listens too."""
    other = logging.NullHandler()
    logger = logging.getLogger("proxy")
    logger.addHandler(other)
    again = io.StringIO()
    logs.set_up("json", "error", again)
    assert other in logger.handlers
    assert logger.isEnabledFor(logging.INFO)
    Log("a").error("b")
    assert out.getvalue() == ""
    assert again.getvalue().count("\n") == 1
    logger.removeHandler(other)


# Folding


def test_the_first_at_once_then_a_count(events: Events) -> None:
    log = Log("upstream", feed="iex")
    for attempt in range(5):
        log.warning("failed", reason="refused", retry_in=float(attempt))
    assert [event["retry_in"] for event in events()] == [0]
    wait_for(lambda: len(events()) == 2)
    first, counted = events()
    assert "repeated" not in first
    assert counted["repeated"] == 4
    assert counted["retry_in"] == 4  # those of the last one
    assert {**counted, "time": 0, "retry_in": 0} == {**first, "time": 0, "repeated": 4}


def test_a_storm_is_a_line_now_and_then(events: Events) -> None:
    """However long it lasts, and every one of its events is counted."""
    log = Log("session")
    sent = 0
    while len(events()) < 4:
        log.info("refused", code=402, address=f"10.0.0.1:{sent}")
        sent += 1
        gevent.sleep(0.001)
    logs.set_up("json", "info", io.StringIO())  # which tells the rest
    told = events()
    assert len(told) <= 5
    assert len(told) + sum(event.get("repeated", 0) - ("repeated" in event) for event in told) == sent


def test_what_was_counted_is_told_at_the_end(events: Events) -> None:
    Log("a").info("b")
    Log("a").info("b")
    logs.set_up("json", "info", io.StringIO())
    assert [event.get("repeated") for event in events()] == [None, 1]


@pytest.mark.parametrize(
    "other",
    [
        record(reason="another", retry_in=1.0),
        record("upstream.lost", reason="refused"),
        record(reason="refused", feed="sip"),
        record(level=logging.ERROR, reason="refused"),
        record(),
    ],
    ids=["field", "event", "one more field", "level", "one field less"],
)
def test_what_is_different_is_written(other: logging.LogRecord) -> None:
    folds = RepeatFilter(Clock())
    assert folds.take(record(reason="refused"))
    assert folds.take(other)
    assert not folds.take(record(reason="refused", wait=2.0))


def test_the_port_of_an_address_makes_no_difference_its_host_does() -> None:
    folds = RepeatFilter(Clock())
    assert folds.take(record(address="10.0.0.1:5000"))
    assert not folds.take(record(address="10.0.0.1:5001"))
    assert folds.take(record(address="10.0.0.2:5000"))
    assert folds.take(record(address="::1:5000"))
    assert not folds.take(record(address="::1:5001"))


def test_two_bugs_are_two_events() -> None:
    """A bug is the same if it happened at the same place."""

    def bug(text: str) -> logging.LogRecord:
        found = record("gateway.internal_error")
        try:
            int(text) if text else text[0]
        except (ValueError, IndexError):
            found.exc_info = sys.exc_info()
        return found

    def another() -> logging.LogRecord:
        found = record("gateway.internal_error")
        try:
            int("")
        except ValueError:
            found.exc_info = sys.exc_info()
        return found

    folds = RepeatFilter(Clock())
    assert folds.take(bug("one"))
    assert not folds.take(bug("two"))
    assert folds.take(another())


def test_after_a_quiet_while_an_event_is_news_again() -> None:
    clock = Clock()
    folds = RepeatFilter(clock)
    assert folds.take(record())
    clock.now += FOLD_SECONDS
    assert folds.due() == []
    assert folds.take(record())


@given(st.lists(st.one_of(st.sampled_from("abc"), st.floats(0, 3)), max_size=200))
def test_every_event_is_written_or_counted(steps: list[str | float]) -> None:
    """Whatever happens when; and what is due is told in time."""
    clock = Clock()
    folds = RepeatFilter(clock)
    happened = written = counted = 0
    for step in steps:
        if isinstance(step, float):
            clock.now += step
            counted += sum(told.fields["repeated"] for told in folds.due())  # type: ignore[attr-defined]
        else:
            happened += 1
            written += folds.take(record(step))
    counted += sum(told.fields["repeated"] for told in folds.due(all=True))  # type: ignore[attr-defined]
    assert written + counted == happened


def test_what_is_kept_is_bounded() -> None:
    folds = RepeatFilter(Clock())
    for number in range(REPEATS + 50):
        assert folds.take(record(client=f"c{number}"))
    assert len(folds) == REPEATS
    assert folds.take(record(client=f"c{REPEATS + 1}"))


def test_a_full_pipe_loses_events_and_says_how_many() -> None:
    """Whoever reads the log stops for a while: nothing waits for it, and half a line ends before the next begins."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb", buffering=0) as pipe:
        os.set_blocking(reader, False)
        logs.set_up("json", "info", stream)
        for number in range(500):
            Log("session", number=number).info("closed", reason="x" * 2500)
        backlog = b"".join(iter(lambda: pipe.read(1 << 16), None))
        Log("session").info("authenticated")
        said = b"".join(iter(lambda: pipe.read(1 << 16), None))
        logs.set_up("json", "info", io.StringIO())
    whole = [line for line in backlog.splitlines() if line.endswith(b"}")]
    lost, after = [json.loads(line) for line in said.splitlines() if line]
    assert (lost["event"], lost["events"]) == ("log.lost", 500 - len(whole))
    assert after["event"] == "session.authenticated"
