"""Formatted numbers, and the marks of slow clients."""

from __future__ import annotations

import json
import re

import pytest

from proxy.cli.overview import CLIENT as CLIENT_COLUMNS
from proxy.cli.overview import CLUSTER as CLUSTER_COLUMNS
from proxy.cli.overview import FEED as FEED_COLUMNS
from proxy.cli.overview import milliseconds, overview, size, span
from proxy.observe import status_document as document
from proxy.observe.style import Style
from tests.snapshots import FOLLOWER, LEADER, snapshot


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
    assert " found problems and changed nothing; `reload` shows them." in failed


def test_configured_clients_that_are_not_connected_are_named() -> None:
    configured = [
        {"client": "here", "connected": 2, "last_seen": 100_000.0},
        {"client": "momentum", "connected": 0, "last_seen": 100_000.0 - 11_520},
        {"client": "mean-rev", "connected": 0, "last_seen": None},
    ]
    shown = overview({**HEAD, "configured": configured}, Style(on=False), 79)
    assert shown.endswith("Not connected: momentum (last here 3 h 12 min ago), mean-rev (never since the\n  start)")
    many = [{"client": f"c{number}", "connected": 0, "last_seen": None} for number in range(1020)]
    lines = overview({**HEAD, "configured": many}, Style(on=False), 79).splitlines()
    assert lines[-1].endswith("and 1,000 more")
    assert max(map(len, lines)) < 80
    assert "Not connected" not in overview({**HEAD, "configured": configured[:1]}, Style(on=False))


FEED = {
    "account": "paper",
    "feed": "crypto-us-1",
    "phase": "authenticating",
    "since": 40_000,
    "rate": 12_345.6,
    "received": 123_456_789,
    "lag": {"p50": 1.2345, "p99": 12.3456},
    "age": 40_000.0,
    "acked": 1200,
    "wanted": 30_000,
    "connects": 1000,
    "needed": True,
    "trouble": "Alpaca says 406 connection limit exceeded: another program holds this account's connection",
}
BUSY = {
    **HEAD,
    "proxy": "1.0.0",
    "ready": False,
    "uptime": 40_000,
    "outboxes": {"pending": 200 << 20, "limit": 256 << 20},
    "reload": {"ok": False, "time": 0.0},
    "feeds": [FEED, {**FEED, "account": "a" * 64, "phase": "live"}],
    "clients": [
        {
            **CLIENT,
            "client": "momentum-of-the-morning",
            "feed": "crypto-us-1",
            "rate": 123_456.7,
            "delivered": 123_456_789,
            "conflated": 123_456,
            "lost": {"slow": 123_456, "closed": 1_234},
            "sessions": [{**SESSION, "pending": 8 << 20, "limit": 8 << 20, "slow": True, "topics": 50_000}] * 16,
        }
    ],
    "cluster": {
        "name": "node-of-the-machine-room.example.internal:8767#a1b2c3",
        "redis": "redis+sentinel://" + ",".join(f"10.0.0.{number}:26379" for number in range(5)) + "/alpaca/0",
        "redis_problem": "Redis at 10.0.0.9:6379 cannot be reached: Connection refused; check that it runs",
        "refused": 1234,
        "nodes": [{"name": f"10.0.0.{number}:8767#d4e5f6", "version": "1.0.0"} for number in range(30)],
        "feeds": [
            {
                "account": "paper",
                "feed": "crypto-us-1",
                "role": "following",
                "leader": f"{'n' * 64}:8767#d4e5f6",
                "live": True,
                "link": "mute",
                "round_trip": 0.0123,
                "links": 12,
                "changes": 1234,
            },
        ],
    },
    "events": [
        {"time": 0.0, "level": "warning", "event": "upstream.lost", "fields": {"reason": "x " * 100, "hint": "y" * 200}}
    ],
}


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_everything_fits_the_terminal(width: int, on: bool) -> None:
    shown = re.sub(r"\x1b\[[0-9;]*m", "", overview(BUSY, Style(on), width))
    assert max(map(len, shown.splitlines())) <= width
    for text in (
        "FEED",
        "STATE",
        "TOPICS",
        "CLIENT",
        "PENDING",
        "LOST",
        "not ready",
        "upstream.lost",
        "LEADER",
        "mute",
    ):
        assert text in shown
    assert "another program holds this account's connection" in re.sub(r"\n +", " ", shown)
    assert shown == overview(BUSY, Style(on=False), width)


def test_without_a_width_nothing_is_left_out() -> None:
    shown = overview(BUSY, Style(on=False))
    for text in (*FEED_COLUMNS, *CLIENT_COLUMNS, *CLUSTER_COLUMNS, "a" * 64, "n" * 64, "y" * 200, "123,456 slow"):
        assert text in shown


def test_a_usual_proxy_shows_its_lag_in_80_columns() -> None:
    usual = {**FEED, "feed": "iex", "phase": "live", "rate": 250.0, "lag": {"p50": 0.012, "p99": 0.1}, "age": 1.0}
    heading = overview({**HEAD, "feeds": [{**usual, "wanted": 30, "acked": 30}]}, Style(on=False), 80).splitlines()[2]
    assert heading.split() == ["FEED", "STATE", "FOR", "MSG/S", "LAG", "P50", "P99", "LAST", "TOPICS"]


def test_the_recording_is_a_line_and_its_problem_is_painted() -> None:
    feeds = [{"feed": "iex", "messages": 1234, "bytes": 2048, "dropped": {}}]
    state = {"folder": "recordings", "free": 5 << 30, "problem": "", "feeds": feeds}
    good = overview({**HEAD, "recording": state}, Style(on=True))
    assert good.endswith("Recording iex: 1,234 messages, 2.0 KiB in recordings, 5.0 GiB free")
    feeds[0]["dropped"] = {"queue_full": 2}
    assert "\x1b[33mRecording iex" in overview({**HEAD, "recording": state}, Style(on=True))
    failing = overview({**HEAD, "recording": {**state, "problem": "the disk is full"}}, Style(on=True))
    assert "\x1b[31mRecording iex" in failing
    assert "2 messages dropped; it cannot write: the disk is full" in failing
    assert "Recording" not in overview({**HEAD, "recording": None}, Style(on=False))


def test_the_cluster_tells_who_leads_and_what_to_do_about_redis() -> None:
    """Read from a document of /status.json, so that the names are those of the format."""
    state = json.loads(b"".join(document.render(snapshot())))["cluster"] | {"refused": 0}
    shown = overview({**HEAD, "cluster": state}, Style(on=False))
    assert f"Cluster: this node is {FOLLOWER}, Redis is redis://10.0.0.9:6379/0\n" in shown
    assert f"  Nodes: {LEADER} (1.0.0), {FOLLOWER} (1.0.0)\n" in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("main/")]
    assert rows == [
        ["main/iex", LEADER, "working", "0.4", "ms", "0", "2"],
        ["main/crypto", "this", "node", "-", "-", "1", "0"],
    ]
    assert "Redis cannot be used" not in shown
    assert "refused" not in shown
    assert "Cluster" not in overview({**HEAD, "cluster": None}, Style(on=False))
    state |= {"refused": 2, "redis_problem": "Redis at 10.0.0.9:6379 does not answer in time; check that it runs"}
    iex, crypto = state["feeds"]
    iex["link"], crypto["leader"], crypto["role"] = "mute", "", "none"
    painted = overview({**HEAD, "cluster": state}, Style(on=True))
    assert (
        "\x1b[33m  Redis cannot be used: Redis at 10.0.0.9:6379 does not answer in time; check that it runs. "
        in painted
    )
    assert "without Redis, nodes cannot agree on a new leader." in painted
    assert "refused: 2. Is `cluster.secret` the same on every node?" in painted
    assert "\x1b[31m  main/iex: nothing comes through the link to the leader; another node takes over" in painted
    assert "main/crypto  not known" in painted
    iex["role"] = "leading"
    assert "leader; this node takes over" in overview({**HEAD, "cluster": state}, Style(on=False))
