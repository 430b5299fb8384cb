"""/status.json: the document of a snapshot, and that its pieces form one document."""

from __future__ import annotations

import json
from typing import Any

from proxy.observe import status_document as document
from proxy.observe.history import History, Lags
from proxy.observe.snapshot import ClientPresence, LogEvent, Second, SessionState, Totals
from tests.snapshots import FOLLOWER, LEADER, cluster, feed, session, snapshot


def seconds(count: int) -> tuple[Second, ...]:
    history, lags = History(0.0), Lags()
    for now in range(1, count + 1):
        lags.add(now / 1000)
        history.add(
            float(now),
            received={("main", "iex"): now * 5},
            delivered={("alpha", "iex"): now * 2},
            lags={("main", "iex"): lags},
            delay=0,
            pending={("alpha", "iex"): now * 100},
        )
    return tuple(history.seconds)


def rendered(since: int = 0, **more: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(b"".join(document.render(snapshot(**more), since)))
    return parsed


def test_whole_document() -> None:
    rates = {("main", "iex"): 12.5}
    status = rendered(
        received=rates, delivered={("alpha", "iex"): 7.25}, events=(LogEvent(5.0, "info", "a.b", {"c": "d"}),)
    )
    assert (status["version"], status["state"], status["ready"], status["uptime"]) == (1, "serving", False, 60.0)
    assert status["started"] == 1_699_999_940.5
    assert status["outboxes"] == {"pending": 1150, "limit": 10_000}
    iex, crypto = status["feeds"]
    assert (iex["wanted"], iex["acked"], iex["topics"]) == (3, 3, {"trades": 2, "bars": 1})
    assert (iex["rate"], iex["age"], crypto["age"], crypto["phase"]) == (12.5, 0.25, None, "waiting")
    alpha, beta = status["clients"]
    assert (alpha["client"], alpha["rate"], len(alpha["sessions"]), alpha["lost"]) == ("alpha", 7.25, 2, {})
    assert (beta["lost"], beta["sessions"][0]["pending"], beta["sessions"][0]["limit"]) == ({"slow": 5}, 900, 1000)
    assert beta["sessions"][0]["holds"] == "trades AAPL"
    assert status["events"] == [{"time": 5.0, "level": "info", "event": "a.b", "fields": {"c": "d"}}]


def test_a_client_without_sessions_is_included() -> None:
    [client] = rendered(sessions=(), totals={("gone", "iex"): Totals(1, 5)})["clients"]
    assert (client["client"], client["delivered"], client["sessions"]) == ("gone", 5, [])


def test_without_clients() -> None:
    assert rendered(sessions=(), totals={}, feeds=())["clients"] == []


def test_many_sessions_are_rendered_in_many_pieces() -> None:
    sessions = tuple(session(pending=number) for number in range(101))
    pieces = list(document.render(snapshot(sessions=sessions, totals={("alpha", "iex"): Totals()})))
    [client] = json.loads(b"".join(pieces))["clients"]
    assert [one["pending"] for one in client["sessions"]] == list(range(101))
    assert len(pieces) > 5


def test_many_topics_are_shortened() -> None:
    held = frozenset(("trades", f"S{number}") for number in range(5000))
    many = SessionState("alpha", "iex", "127.0.0.1:1", "json", 1.0, held, 0, 1000, 0, 0, 0, False)
    [client] = rendered(sessions=(many,), totals={("alpha", "iex"): Totals()})["clients"]
    [one] = client["sessions"]
    assert one["topics"] == 5000
    assert one["holds"].endswith(" and 4,988 more")
    assert len(one["holds"].split()) == 1 + document.SHOWN_TOPICS + 3


def test_next_attempt_is_null_unless_one_is_due() -> None:
    feeds = (feed(), feed("crypto", phase="waiting", next_attempt=7.96))
    assert [one["next_attempt"] for one in rendered(feeds=feeds)["feeds"]] == [None, 8.0]


def test_topics_of_a_session_by_channel() -> None:
    held = frozenset([("trades", "MSFT"), ("trades", "AAPL"), ("bars", "*")])
    one = session()._replace(held=held, account="main")
    [client] = rendered(sessions=(one,), totals={("alpha", "iex"): Totals()})["clients"]
    assert client["sessions"][0]["shown"] == {"bars": ["*"], "trades": ["AAPL", "MSFT"]}
    assert client["sessions"][0]["account"] == "main"


def test_history_of_clients() -> None:
    alpha, beta = rendered(seconds=seconds(3))["history"]["clients"]
    assert alpha == {"client": "alpha", "feed": "iex", "delivered": [2.0, 2.0, 2.0], "pending": [100, 200, 300]}
    assert beta == {"client": "beta", "feed": "iex", "delivered": [0.0] * 3, "pending": [0] * 3}
    assert rendered(2, seconds=seconds(3))["history"]["clients"][0]["pending"] == [300]


def test_history_since_a_second() -> None:
    whole = rendered(seconds=seconds(10))["history"]
    assert (whole["first"], len(whole["delivered"])) == (1, 10)
    iex, crypto = whole["feeds"]
    assert iex["received"] == [5.0] * 10
    assert iex["p50"] == [now / 1000 for now in range(1, 11)]
    assert crypto["received"] == [0.0] * 10
    newer = rendered(8, seconds=seconds(10))["history"]
    assert (newer["first"], newer["feeds"][0]["p99"]) == (9, [0.009, 0.01])
    none = rendered(10, seconds=seconds(10))["history"]
    assert (none["first"], none["delivered"], none["feeds"][0]["received"]) == (11, [], [])


def test_the_last_reload() -> None:
    never = rendered()
    assert (never["pid"], never["pid_start"]) == (4711, 123_456)
    assert never["reload"] == {"count": 0, "running": False, "time": None, "ok": True, "plan": [], "problems": []}
    problems = tuple(f"proxy.yaml:{line}:1: " + "x" * 1000 for line in range(150))
    state = snapshot().reload.ended(1_700_000_000.1234, (), problems)
    shown = rendered(reload=state)["reload"]
    assert (shown["count"], shown["time"], shown["ok"]) == (1, 1_700_000_000.123, False)
    assert len(shown["problems"]) == 101
    assert shown["problems"][-1] == "and 50 more, which are in the log"
    assert max(map(len, shown["problems"])) == document.RELOAD_LINE + 1


def test_configured_clients_connected_or_not() -> None:
    assert rendered()["configured"] == [
        {"client": "alpha", "connected": 2, "last_seen": 1_700_000_000.5},
        {"client": "beta", "connected": 1, "last_seen": 1_700_000_000.5},
        {"client": "gamma", "connected": 0, "last_seen": 1_699_999_990.25},
        {"client": "delta", "connected": 0, "last_seen": None},
    ]
    many = tuple(ClientPresence(f"c{number}", 0, None) for number in range(1000))
    pieces = list(document.render(snapshot(configured=many)))
    assert len(json.loads(b"".join(pieces))["configured"]) == 1000
    assert max(map(len, pieces)) < 16_000


def test_the_recording_by_feed_or_null() -> None:
    state = rendered()["recording"]
    assert (state["newest"], state["free"], state["problem"]) == ("iex-2023-11-14T22Z.jsonl.zst", 5_000_000_000, "")
    assert state["feeds"] == [
        {"feed": "iex", "active": True, "messages": 90, "bytes": 2000, "dropped": {"queue_full": 3}}
    ]
    assert rendered(recording=None)["recording"] is None


def test_the_cluster_or_null() -> None:
    state = rendered()["cluster"]
    assert (state["name"], state["redis"], state["redis_problem"]) == (FOLLOWER, "redis://10.0.0.9:6379/0", "")
    assert state["refused"] == 3
    assert state["nodes"][0] == {"name": LEADER, "url": "ws://10.0.0.1:8767", "version": "1.0.0", "feeds": 2}
    follows, leads = state["feeds"]
    assert (follows["role"], follows["leader"], follows["live"], follows["link"]) == (
        "following",
        LEADER,
        True,
        "working",
    )
    assert (follows["round_trip"], follows["changes"], follows["token"]) == (0.0004, 2, 1_700_000_000_000_001)
    assert (leads["role"], leads["link"], leads["round_trip"], leads["links"]) == ("leading", "none", None, 1)
    problem = "Redis at 10.0.0.9:6379 does not answer in time; check that it runs, and the network to it"
    assert rendered(cluster=cluster(redis_problem=problem))["cluster"]["redis_problem"] == problem
    assert rendered(cluster=None)["cluster"] is None
