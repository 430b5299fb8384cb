"""Snapshots of a small proxy for tests of their renderings.

The proxy has two feeds, two clients and three sessions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proxy.observe.history import Lags
from proxy.observe.snapshot import (
    ClientPresence,
    ClusterFeed,
    ClusterNode,
    ClusterState,
    FeedState,
    RecordingState,
    ReloadState,
    SessionState,
    Snapshot,
    Totals,
)


def feed(name: str = "iex", **more: Any) -> FeedState:
    lags = Lags()
    lags.add(0.003)
    state = FeedState(
        account="main",
        feed=name,
        phase="live",
        state_age=5.0,
        last_error="",
        wanted={"trades": 2, "bars": 1},
        acked=3,
        connects=1,
        received=100,
        unrouted=1,
        irregular={"untranslatable": 2, "oversized": 0},
        malformed=0,
        outages=1,
        outage_seconds=12.5,
        silences=1,
        age=0.25,
        needed=True,
        lag=lags.state(),
    )
    return replace(state, **more)


def session(client: str = "alpha", pending: int = 0) -> SessionState:
    topics = frozenset([("trades", "AAPL")])
    return SessionState(client, "iex", "127.0.0.1:1", "json", 1.0, topics, pending, 1000, 7, 0, 0, False)


def recording(**more: Any) -> RecordingState:
    default = RecordingState(
        folder="recordings",
        feeds=("iex",),
        active=frozenset(["iex"]),
        messages={"iex": 90},
        bytes={"iex": 2_000},
        dropped={("iex", "queue_full"): 3, ("iex", "disk_error"): 0},
        pending=100,
        limit=1000,
        newest="iex-2023-11-14T22Z.jsonl.zst",
        last_at=1_699_999_999.5,
        free=5_000_000_000,
        min_free=2_000_000_000,
        problem="",
    )
    return replace(default, **more)


LEADER, FOLLOWER = "10.0.0.1:8767#a1b2c3", "10.0.0.2:8767#d4e5f6"


def cluster_feed(name: str = "iex", **more: Any) -> ClusterFeed:
    """A feed that the other node leads."""
    default = ClusterFeed(
        account="main",
        feed=name,
        role="following",
        leader=LEADER,
        live=True,
        token=1_700_000_000_000_001,
        link="working",
        round_trip=0.0004,
        links=0,
        changes=2,
    )
    return replace(default, **more)


def cluster(**more: Any) -> ClusterState:
    """One of two nodes: it follows on iex, and leads crypto."""
    leading = cluster_feed("crypto", role="leading", leader=FOLLOWER, link="none", round_trip=None, links=1, changes=0)
    default = ClusterState(
        name=FOLLOWER,
        url="ws://10.0.0.2:8767",
        redis="redis://10.0.0.9:6379/0",
        redis_problem="",
        nodes=(
            ClusterNode(LEADER, "ws://10.0.0.1:8767", "1.0.0", 2),
            ClusterNode(FOLLOWER, "ws://10.0.0.2:8767", "1.0.0", 1),
        ),
        feeds=(cluster_feed(), leading),
        refused=3,
    )
    return replace(default, **more)


def snapshot(**more: Any) -> Snapshot:
    default = Snapshot(
        state="serving",
        time=1_700_000_000.5,
        uptime=60.0,
        accounts=1,
        feeds=(feed(), feed("crypto", phase="waiting", age=None)),
        sessions=(session(), session(pending=250), session("beta", 900)),
        totals={("alpha", "iex"): Totals(3, 70, 2), ("beta", "iex"): Totals(1, 7, 0, {"slow": 5})},
        outboxes=1150,
        outboxes_limit=10_000,
        unauthenticated=2,
        received={},
        delivered={},
        seconds=(),
        events=(),
        configured=(
            ClientPresence("alpha", 2, 1_700_000_000.5),
            ClientPresence("beta", 1, 1_700_000_000.5),
            ClientPresence("gamma", 0, 1_699_999_990.25),
            ClientPresence("delta", 0, None),
        ),
        pid=4711,
        pid_start=123_456,
        reload=ReloadState(0, False, None, True, (), (), 1_699_999_940.5),
        refused={("", "", "unknown_path"): 3, ("alpha", "iex", "wrong_secret"): 1},
        refused_requests={("alpha", "iex", "not_allowed"): 2},
        recording=recording(),
        cluster=cluster(),
    )
    return replace(default, **more)
