"""Growth of the product's cost with clients, symbols, rate and slow clients.

Each table has a figure that should stay flat or grow linearly; its note explains where it does not.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

from contenders import Bench
from measure import Figures, run


@dataclass(frozen=True)
class Column:
    title: str
    show: Callable[[Figures], str]


CPU = Column("processor a delivered message", lambda f: f"{f.cpu:,.0f} ns")
DELIVERED = Column("delivered a second", lambda f: f"{f.delivered:,.0f}")
SHARE = Column("of one core", lambda f: f"{f.share:.0%}")
BATCH = Column("messages a frame", lambda f: f"{f.frame:,.1f}")
MEMORY = Column("memory", lambda f: f"{f.mib:,.0f} MiB")
LATENCY = Column("latency p50 / p99", lambda f: f"{f.p50 / 1000:.2f} / {f.p99 / 1000:.2f} ms")
LOST = Column("lost by the others", lambda f: f"{f.lost}")


@dataclass(frozen=True)
class Growth:
    """One table: `loads` by the value of the varied quantity.

    `note` explains what is neither flat nor linear.
    """

    name: str
    text: str
    varied: str
    loads: dict[str, dict[str, object]]
    columns: tuple[Column, ...]
    note: str
    client: str = ""


def _sharded(symbols: int) -> dict[str, object]:
    warm = 0.5 + symbols / 10_000  # seconds; the first message of each symbol computes its route
    return {"clients": 100, "symbols": symbols, "per_client": max(1, symbols // 10), "batch": 100, "warm": warm}


GROWTHS = (
    Growth(
        "growth-clients",
        "Wildcard, 10 messages a frame, saturated.",
        "clients",
        {str(n): {"clients": n, "batch": 10} for n in (1, 10, 50, 100, 200, 500, 1000)},
        (CPU, DELIVERED, BATCH, MEMORY),
        "The cost of receiving and routing a message is shared by all its recipients, so a delivery costs less the "
        "more clients there are, until only the kernel's copy for each of them is left.",
    ),
    Growth(
        "growth-symbols",
        "100 clients, each with a tenth of the symbols (at least one), 100 messages a frame, saturated.",
        "symbols",
        {f"{n:,}": _sharded(n) for n in (10, 100, 1_000, 10_000, 100_000)},
        (CPU, DELIVERED, BATCH, MEMORY),
        "A message costs one look-up whatever the number of symbols. The route of a symbol is computed at its first "
        "message, by a check of each large subscription; each line is measured when most routes are cached. Memory "
        "grows with the subscribed topics and the cached routes.",
    ),
    Growth(
        "growth-rate",
        "Wildcard, 50 clients, 10 messages a frame.",
        "messages a second",
        {
            (f"{n:,}" if n else "as many as go through"): {"clients": 50, "batch": 10, "rate": n}
            for n in (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 0)
        },
        (SHARE, CPU, BATCH, LATENCY, LOST),
        "Below saturation each frame is sent at once and costs each client one send, so the core's share is linear; "
        "near saturation waiting frames are merged, and a message costs less and less. At saturation the latency is "
        "that of the sender's window.",
    ),
    Growth(
        "growth-slow",
        "Wildcard, 100 clients, 10 messages a frame, 20,000 messages a second, outboxes of 1 MiB; the slow ones read "
        "nothing at all.",
        "slow clients",
        {f"{n} %": {"clients": 100, "batch": 10, "rate": 20_000, "slow": n, "warm": 3} for n in (0, 10, 25, 50)},
        (CPU, SHARE, LATENCY, LOST, MEMORY),
        "A slow client costs until its outbox is full; then it gets 407 and is closed. The others lose nothing.",
        client=", outbox: 1MiB",
    ),
)


def measure_growth(bench: Bench, growth: Growth, rounds: int, seconds: float) -> list[list[str]]:
    """The table's lines: the varied quantity, and the columns of the median round."""
    lines = []
    for label, load in growth.loads.items():
        runs = [run(bench, "proxy", load, seconds, client=growth.client) for _ in range(rounds)]
        median = sorted(runs, key=lambda figures: figures.cpu)[len(runs) // 2]
        line = [label, *(column.show(median) for column in growth.columns)]
        print("  " + "  ".join(line), file=sys.stderr, flush=True)
        lines.append(line)
    return lines


def spread(values: list[float]) -> str:
    """The median of a figure with its minimum and maximum, as text."""
    low, middle, high = min(values), statistics.median(values), max(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
