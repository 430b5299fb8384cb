"""Formatted numbers, and the marks of slow clients."""

from __future__ import annotations

import pytest

from proxy.cli.overview import milliseconds, overview, size, span
from proxy.observe.style import Style


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (11520, "3 h 12 min"),
     (86399, "23 h 59 min"), (86400, "1 d 0 h"), (5 * 86400 + 3 * 3600, "5 d 3 h")],
)  # fmt: skip
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1 << 20, "1.0 MiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_an_unknown_lag_is_a_dash() -> None:
    assert (milliseconds(None), milliseconds(0.01234)) == ("-", "12.3 ms")


SESSION = {"pending": 0, "limit": 1000, "slow": False, "topics": 1}
CLIENT = {"client": "a", "feed": "iex", "rate": 1.0, "delivered": 1, "conflated": 0, "lost": {}}
HEAD = {"proxy": "1", "state": "serving", "ready": True, "uptime": 1, "outboxes": {"pending": 0, "limit": 1}}
HEAD |= {
    "time": 100_000.0,
    "configured": [],
    "feeds": [],
    "clients": [],
    "events": [],
    "reload": {"ok": True, "time": None},
}


@pytest.mark.parametrize(
    ("session", "slow"), [({}, False), ({"pending": 500}, False), ({"pending": 501}, True), ({"slow": True}, True)]
)
def test_slow_clients_are_marked(session: dict[str, object], slow: bool) -> None:
    """One slow session of several is enough."""
    clients = [{**CLIENT, "sessions": [SESSION, {**SESSION, **session}], "lost": {"slow": 1200} if slow else {}}]
    document = {**HEAD, "clients": clients}
    painted = overview(document, Style(on=True))
    assert (" slow\x1b[0m" in painted) is slow
    assert ("\x1b[33m1,200 slow\x1b[0m" in painted) is slow
    assert "\x1b" not in overview(document, Style(on=False))


def test_a_failed_reload_is_shown() -> None:
    assert "reload" not in overview(HEAD, Style(on=False))
    failed = overview({**HEAD, "reload": {"ok": False, "time": 0.0}}, Style(on=False))
    assert " changed nothing, because of problems; `reload` shows them." in failed


def test_configured_clients_that_are_not_connected_are_named() -> None:
    configured = [
        {"client": "here", "connected": 2, "last_seen": 100_000.0},
        {"client": "momentum", "connected": 0, "last_seen": 100_000.0 - 11_520},
        {"client": "mean-rev", "connected": 0, "last_seen": None},
    ]
    shown = overview({**HEAD, "configured": configured}, Style(on=False))
    assert shown.endswith("Not connected: momentum (last here 3 h 12 min ago), mean-rev (never since the\n  start)")
    many = [{"client": f"c{number}", "connected": 0, "last_seen": None} for number in range(1020)]
    lines = overview({**HEAD, "configured": many}, Style(on=False)).splitlines()
    assert lines[-1].endswith("and 1,000 more")
    assert max(map(len, lines)) < 80
    assert "Not connected" not in overview({**HEAD, "configured": configured[:1]}, Style(on=False))
