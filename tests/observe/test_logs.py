"""Logs: one event a line as text or JSON, the repeat filter, and values that cannot control a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.secret import Secret
from proxy.observe import logs
from proxy.observe.logs import MAX_KINDS, REPEAT_SECONDS, Log, RepeatFilter
from tests.harness import ROOT, wait_for

Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The stream of the log; counts of repeats are written after 50 ms."""
    monkeypatch.setattr(logs, "REPEAT_SECONDS", 0.05)
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
    assert event.pop("pid") == os.getpid()
    assert event == {
        "level": "warning",
        "event": "upstream.lost",
        "account": "main",
        "feed": "iex",
        "reason": "two\nlines",
        "retry_in": 1.5,
    }


def test_text_is_one_event_a_line(out: io.StringIO) -> None:
    logs.set_up("human", "info", out)
    log = Log("session", feed="iex")
    log.info("closed", client="momentum", reason="client went away", delivered=12, wait=0.25)
    log.warning("refused", code=402)
    first, second = out.getvalue().splitlines()
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d session.closed feed=iex client=momentum reason="client went away" delivered=12 wait=0.2', first
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning session.refused feed=iex code=402", second)


def test_json_shows_text_as_it_is_but_no_control_characters(out: io.StringIO) -> None:
    """Neither as a JSON line nor as text can a value control the terminal that shows the log."""
    value = "Zürich 東京 🙂 \x1b[2J \x9b2J \u202e \u2028 \ud800 end"
    Log("session").info("closed", reason=value)
    [line] = out.getvalue().splitlines()
    assert json.loads(line)["reason"] == value
    logs.set_up("human", "info", out)
    Log("session").info("closed", reason=value)
    for text in (line, out.getvalue().splitlines()[-1]):
        assert text.isprintable()
        assert "Zürich 東京 🙂 \\u001b[2J \\u009b2J \\u202e \\u2028 \\ud800 end" in text


def test_json_is_ascii_where_the_stream_cannot_hold_more() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "latin-1", errors="replace")
    logs.set_up("json", "info", stream)
    Log("session").info("closed", reason="東京")
    logs.set_up("json", "info", io.StringIO())
    assert json.loads(raw.getvalue())["reason"] == "東京"


@pytest.mark.parametrize("style", ["json", "human"])
def test_a_traceback_cannot_control_the_terminal(out: io.StringIO, style: str) -> None:
    logs.set_up(style, "info", out)
    try:
        raise ValueError("\x1b]0;title\x07")
    except ValueError:
        Log("gateway").error("internal_error")
    assert all(line.isprintable() for line in out.getvalue().split("\n"))
    assert "ValueError: \\u001b]0;title\\u0007" in out.getvalue()


@pytest.mark.parametrize("style", ["json", "human"])
def test_measurements_have_one_decimal(out: io.StringIO, style: str) -> None:
    logs.set_up(style, "info", out)
    Log("upstream").warning("lost", retry_in=3.14159265)
    assert re.search(r"\bretry_in\W{1,3}3\.1\b(?!\d)", out.getvalue())


def test_lines_are_in_the_order_of_their_times(events: Events) -> None:
    """A count of repeats is written after newer events of other kinds."""
    for _ in range(2):
        Log("upstream").warning("failed", reason="refused")
    gevent.sleep(0.02)
    Log("session").info("closed")
    wait_for(lambda: events()[-1].get("repeated") == 1)
    times = [event["time"] for event in events()]
    assert times == sorted(times)


def test_colours_only_on_a_terminal_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_auto_is_json_without_a_terminal(out: io.StringIO) -> None:
    logs.set_up("auto", "info", out)
    Log("proxy").info("started")
    assert json.loads(out.getvalue())["event"] == "proxy.started"


@given(st.text())
def test_a_value_is_one_printable_word(text: str) -> None:
    word = logs._word(text)
    assert word.isprintable()
    assert word == text or json.loads(word) == text


def test_events_below_the_level_are_not_written(out: io.StringIO) -> None:
    logs.set_up("json", "warning", out)
    log = Log("proxy")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["proxy.c", "proxy.d"]


def test_an_error_has_its_traceback(events: Events) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        Log("gateway").error("internal_error", part="it")
    [event] = events()
    assert event["traceback"].endswith("ZeroDivisionError")


def test_a_secret_in_a_field_is_not_shown(out: io.StringIO) -> None:
    Log("a").info("b", secret=Secret("canary"))
    logs.set_up("human", "info", out)
    Log("a").info("b", secret=Secret("canary"))
    assert "canary" not in out.getvalue()


def test_logging_to_a_closed_stream_raises_nothing(out: io.StringIO) -> None:
    log = Log("a")
    log.info("b")
    out.close()
    log.info("c")


def test_setting_up_again_keeps_other_handlers(out: io.StringIO) -> None:
    """RecentEvents is such a handler."""
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


# Repeats


def test_the_first_event_is_written_at_once_and_its_repeats_as_a_count(events: Events) -> None:
    log = Log("upstream", feed="iex")
    for attempt in range(5):
        log.warning("failed", reason="refused", retry_in=float(attempt))
    assert [event["retry_in"] for event in events()] == [0]
    wait_for(lambda: len(events()) == 2)
    first, counted = events()
    assert "repeated" not in first
    assert counted["repeated"] == 4
    assert counted["retry_in"] == 4  # of the last event
    assert {**counted, "time": 0, "retry_in": 0} == {**first, "time": 0, "repeated": 4}


def test_many_repeats_give_few_lines(events: Events) -> None:
    """Few lines are written, and every event is written or counted."""
    log = Log("session")
    sent = 0
    while len(events()) < 4:
        log.info("refused", code=402, address=f"10.0.0.1:{sent}")
        sent += 1
        gevent.sleep(0.001)
    logs.set_up("json", "info", io.StringIO())  # closes the old output, which writes the remaining counts
    written = events()
    assert len(written) <= 5
    assert len(written) + sum(event.get("repeated", 0) - ("repeated" in event) for event in written) == sent


def test_counts_are_written_on_close(events: Events) -> None:
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
def test_different_events_are_written(other: logging.LogRecord) -> None:
    repeats = RepeatFilter(Clock())
    assert repeats.take(record(reason="refused"))
    assert repeats.take(other)
    assert not repeats.take(record(reason="refused", wait=2.0))


def test_similarity_ignores_the_port_of_an_address_but_not_its_host() -> None:
    repeats = RepeatFilter(Clock())
    assert repeats.take(record(address="10.0.0.1:5000"))
    assert not repeats.take(record(address="10.0.0.1:5001"))
    assert repeats.take(record(address="10.0.0.2:5000"))
    assert repeats.take(record(address="::1:5000"))
    assert not repeats.take(record(address="::1:5001"))


def test_internal_errors_at_different_lines_are_different() -> None:
    """Two internal errors are similar if their tracebacks have the same lines."""

    def at_one_line(text: str) -> logging.LogRecord:
        error = record("gateway.internal_error")
        try:
            int(text) if text else text[0]
        except (ValueError, IndexError):
            error.exc_info = sys.exc_info()
        return error

    def at_another_line() -> logging.LogRecord:
        error = record("gateway.internal_error")
        try:
            int("")
        except ValueError:
            error.exc_info = sys.exc_info()
        return error

    repeats = RepeatFilter(Clock())
    assert repeats.take(at_one_line("one"))
    assert not repeats.take(at_one_line("two"))
    assert repeats.take(at_another_line())


def test_an_event_is_written_again_after_fold_seconds() -> None:
    clock = Clock()
    repeats = RepeatFilter(clock)
    assert repeats.take(record())
    clock.now += REPEAT_SECONDS
    assert repeats.due() == []
    assert repeats.take(record())


@given(st.lists(st.one_of(st.sampled_from("abc"), st.floats(0, 3)), max_size=200))
def test_every_event_is_written_or_counted(steps: list[str | float]) -> None:
    """In any order of events, pauses and calls of `due`."""
    clock = Clock()
    repeats = RepeatFilter(clock)
    events = written = counted = 0
    for step in steps:
        if isinstance(step, float):
            clock.now += step
            counted += sum(repeat.fields["repeated"] for repeat in repeats.due())  # type: ignore[attr-defined]
        else:
            events += 1
            written += repeats.take(record(step))
    counted += sum(repeat.fields["repeated"] for repeat in repeats.due(all=True))  # type: ignore[attr-defined]
    assert written + counted == events


def test_the_filter_is_bounded() -> None:
    repeats = RepeatFilter(Clock())
    for number in range(MAX_KINDS + 50):
        assert repeats.take(record(client=f"c{number}"))
    assert len(repeats) == MAX_KINDS
    assert repeats.take(record(client=f"c{MAX_KINDS + 1}"))


def test_events_lost_to_a_full_pipe_are_counted() -> None:
    """Logging does not block while the reader stands still, and a partial line ends before the next one begins."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb", buffering=0) as pipe:
        os.set_blocking(reader, False)
        logs.set_up("json", "info", stream)
        for number in range(500):
            Log("session", number=number).info("closed", reason="x" * 2500)
        backlog = b"".join(iter(lambda: pipe.read(1 << 16), None))
        Log("session").info("authenticated")
        output = b"".join(iter(lambda: pipe.read(1 << 16), None))
        logs.set_up("json", "info", io.StringIO())
    complete = [line for line in backlog.splitlines() if line.endswith(b"}")]
    lost, after = [json.loads(line) for line in output.splitlines() if line]
    assert (lost["event"], lost["events"]) == ("log.lost", 500 - len(complete))
    assert after["event"] == "session.authenticated"


def test_no_other_greenlet_runs_at_a_log_line() -> None:
    """An event may be logged in the middle of the data path. Standard error is a pipe here, as under systemd."""
    program = """
from gevent import monkey; monkey.patch_all()
import gevent
from proxy.observe import logs
logs.set_up("json", "info")
ran = []
gevent.spawn(ran.append, "another greenlet")
for number in range(100):
    logs.Log("upstream", number=number).warning("lost")
print(ran)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30)
    assert done.stdout == "[]\n"
    assert len(done.stderr.splitlines()) == 100


def test_a_thousand_counts_do_not_hold_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are due at the same time; other greenlets run between their lines."""
    monkeypatch.setattr(logs, "REPEAT_SECONDS", 0.2)
    stream = io.StringIO()
    logs.set_up("json", "info", stream)
    for number in [*range(1000)] * 2:
        Log("session").info("request_refused", topics=f"trades S{number}")
    seen: list[int] = []
    deadline = time.monotonic() + 10
    while not seen or seen[-1] < 1000:
        assert time.monotonic() < deadline
        gevent.sleep(0.0001)
        seen.append(stream.getvalue().count('"repeated"'))
    logs.set_up("json", "info", io.StringIO())
    assert len({*seen}) > 15
