"""The rows of the comparison with peers: load, contenders and targets.

Figures are compared within a round, and the median of the rounds decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PEERS = ("broadcast", "picows", "node")
FLOOR = "gevent"  # a relay in pure Python under gevent, without any feature


class Figure(Enum):
    """The compared figure: processor time for each delivered message, or latency."""

    CPU = "cpu"
    P50 = "p50"
    P99 = "p99"


class Bound(Enum):
    """The kind of comparison.

    LEAST: the peer's figure is at least `limit` times the product's. MOST: the product's is at most `limit` times the
    peer's. ADDED: the product's is at most `limit` microseconds more than the peer's.
    """

    LEAST = "at least"
    MOST = "at most"
    ADDED = "added at most"


@dataclass(frozen=True)
class Target:
    figure: Figure
    peer: str
    bound: Bound
    limit: float


@dataclass(frozen=True)
class Row:
    """One row: `load` holds load.c's options, `codec` is that of the upstream.

    It may have a time of its own, and a least number of rounds. `ours` is the contender that the others are compared
    with.
    """

    name: str
    text: str
    load: dict[str, object]
    peers: tuple[str, ...]
    targets: tuple[Target, ...]
    codec: str = "json"
    ours: str = "proxy"
    rounds: int = 1


def _cheaper(peer: str, times: float) -> Target:
    return Target(Figure.CPU, peer, Bound.LEAST, times)


def _real_day(
    name: str, text: str, load: dict[str, object], peers: tuple[str, ...] = (), targets: tuple[Target, ...] = ()
) -> tuple[Row, Row]:
    """A load of real days, where a relay that does not merge costs least; and the same with msgpack from Alpaca."""
    picows = (
        _cheaper("picows", 1),
        Target(Figure.P50, "picows", Bound.MOST, 1.1),
        Target(Figure.P99, "picows", Bound.MOST, 1),
    )
    return (
        Row(name, text, {**load, "seconds": 3}, (*peers, "naive", FLOOR, *PEERS), (*picows, *targets), rounds=5),
        Row(
            f"{name}-msgpack",
            f"{text}, msgpack from Alpaca, JSON to clients",
            {**load, "upstream": "msgpack"},
            ("naive",),
            (),
            codec="msgpack",
        ),
    )


_LIGHT: dict[str, object] = {"clients": 10, "batch": 1, "rate": 2_000}
_SURGE = {"seconds": 30, "surge": 20, "surge_from": 10, "surge_seconds": 5}
_SHARDED = {"clients": 100, "symbols": 8000, "per_client": 80}

ROWS = (
    Row(
        "wildcard-10",
        "wildcard, 100 clients, 10 messages a frame, saturated",
        {"clients": 100, "batch": 10},
        ("C chunk", "C frame", "naive", *PEERS),
        (_cheaper("naive", 100), _cheaper("C chunk", 0.2)),
    ),
    Row(
        "wildcard-1",
        "wildcard, 100 clients, 1 message a frame, saturated",
        {"clients": 100, "batch": 1},
        ("C chunk", "C frame", "naive", *PEERS),
        (_cheaper("naive", 50), _cheaper("C chunk", 0.15)),
    ),
    *_real_day("light", "wildcard, 10 clients, 1 message a frame, 2,000 messages a second", _LIGHT, ("C frame",)),
    *_real_day(
        "typical",
        "10 clients with 20 of 200 symbols each, 5 messages a frame, 5,000 messages a second",
        {"clients": 10, "symbols": 200, "per_client": 20, "batch": 5, "rate": 5_000},
    ),
    *_real_day(
        "sharded-steady",
        "50 clients with 20 of 1,000 symbols each, 20 messages a frame, 20,000 messages a second",
        {"clients": 50, "symbols": 1000, "per_client": 20, "batch": 20, "rate": 20_000},
    ),
    *_real_day(
        "steady",
        "wildcard, 50 clients, 20 messages a frame, 10,000 messages a second",
        {"clients": 50, "batch": 20, "rate": 10_000},
        ("C frame",),
        (_cheaper("naive", 12), _cheaper("C frame", 1 / 1.15)),
    ),
    Row(
        "open",
        "an opening bell: 10 clients with 100 of 1,000 symbols each, 90 % quotes, 5 messages a frame; 4,000 messages a "
        "second, 80,000 for 5 of 30 seconds",
        {"clients": 10, "symbols": 1000, "per_client": 100, "batch": 5, "quotes": 90, "rate": 4_000, **_SURGE},
        ("picows",),
        (),
    ),
    Row(
        "sharded-10",
        "100 clients with 80 of 8,000 symbols each, 10 messages a frame, saturated",
        {**_SHARDED, "batch": 10},
        ("naive", *PEERS),
        (_cheaper("naive", 8),),
    ),
    Row(
        "sharded-100",
        "100 clients with 80 of 8,000 symbols each, 100 messages a frame, saturated",
        {**_SHARDED, "batch": 100},
        ("naive", *PEERS),
        (_cheaper("naive", 10),),
    ),
    Row(
        "transcoded-10",
        "the same, 10 messages a frame, msgpack from Alpaca, JSON to clients",
        {**_SHARDED, "batch": 10, "upstream": "msgpack"},
        ("naive",),
        (_cheaper("naive", 10),),
        codec="msgpack",
    ),
    Row(
        "transcoded-100",
        "the same, 100 messages a frame, msgpack from Alpaca, JSON to clients",
        {**_SHARDED, "batch": 100, "upstream": "msgpack"},
        ("naive",),
        (_cheaper("naive", 4),),
        codec="msgpack",
    ),
    Row(
        "latency",
        "wildcard, 100 clients, 20 messages a frame, 20,000 messages a second",
        {"clients": 100, "batch": 20, "rate": 20_000},
        ("C frame", *PEERS),
        (Target(Figure.P50, "C frame", Bound.MOST, 1.5), Target(Figure.P99, "C frame", Bound.MOST, 2)),
    ),
    Row(
        "added",
        "wildcard, 10 clients, 1 message a frame, 2,000 messages a second",
        _LIGHT,
        ("direct", "C frame"),
        (Target(Figure.P50, "direct", Bound.ADDED, 500),),
    ),
    Row(
        "receive",
        "upstream receive alone, frames of 1.2 KB, saturated",
        {"clients": 0, "batch": 10},
        ("stock",),
        (_cheaper("stock", 5),),
        ours="receive",
    ),
    Row(
        "tls",
        "wildcard, 100 clients over TLS, frames of 1.2 KB, 5,000 messages a second",
        {"clients": 100, "batch": 10, "rate": 5_000},
        ("proxy",),
        (Target(Figure.CPU, "proxy", Bound.MOST, 1.5),),
        ours="proxy tls",
    ),
)
