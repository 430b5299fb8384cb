"""The results of a run, printed as they come and written to RESULTS.md at the end."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import rates
from contenders import ROOT, Bench
from growth import Growth

_HEAD = """\
# Benchmarks

Written by `python benchmarks/run.py --write`. Ratios are of the proxy's processor time for each delivered message
unless they name something else: the median of the rounds, and in brackets the least and the most. Every round ran every
contender, one after the other, on this machine:

{machine}

{rounds} rounds, {seconds:g} s measured in each run; 5 rounds of 3 s for `light`, `typical`, `sharded-steady` and
`steady`. The proxy ran as the product it is, with authentication, bounds, metrics and logs, alone on its core; the
stand-in for Alpaca and the clients, one C program, on the other. `C frame` is a relay that sends each frame to each
client, `C chunk` one that sends whatever it has read (up to 256 KiB), both without looking at the data; `gevent` is the
least that such a relay costs in Python under gevent, without any feature; `naive` is asyncio, `websockets` and json;
`broadcast` that library's broadcast with orjson; `picows` runs on uvloop; `node` is `ws`. In saturation the sender is
never more than 256 KiB ahead of what the clients have read, so that no message is lost and queues stay short.
[SOAK.md](SOAK.md) has the results of a long run.
"""

_CHART = """\
<picture>
  <source media="(prefers-color-scheme: dark)" srcset="rates-dark.svg">
  <img alt="Processor time for each delivered message against messages a second" src="rates-light.svg">
</picture>
"""


@dataclass(frozen=True)
class Line:
    """One finding of a row."""

    row: str
    text: str
    finding: str

    @property
    def missed(self) -> bool:
        return self.finding.endswith("MISSED")


@dataclass
class Report:
    """All findings so far."""

    rounds: int
    seconds: float
    machine: str = ""
    lines: list[Line] = field(default_factory=list)
    growths: list[tuple[Growth, list[list[str]]]] = field(default_factory=list)
    series: rates.Series = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether no target was missed."""
        return not any(line.missed for line in self.lines)

    def add(self, lines: list[Line]) -> None:
        title = ""
        for line in lines:
            if line.text != title:
                title = line.text
                print(f"{line.row}: {line.text}", flush=True)
            print(f"  {line.finding}", flush=True)
        self.lines.extend(lines)

    def add_growth(self, growth: Growth, rows: list[list[str]]) -> None:
        print(_table(growth, rows), flush=True)
        self.growths.append((growth, rows))

    def add_rates(self, series: rates.Series) -> None:
        print(_table_of(rates.table(series)), flush=True)
        self.series = series

    def write(self, path: Path) -> None:
        """Write the results, and the charts beside them."""
        parts = [_HEAD.format(machine=self.machine, rounds=self.rounds, seconds=self.seconds)]
        if self.series:
            rates.write_charts(self.series, path.parent)
            parts.append(
                f"\n## rates\n\n{_CHART}\n{rates.TEXT}\n\n{_table_of(rates.table(self.series))}\n\n{rates.NOTE}\n"
            )
        title = ""
        for line in self.lines:
            if line.text != title:
                title = line.text
                parts.append(f"\n## {line.row}\n\n{line.text[0].upper()}{line.text[1:]}.\n\n")
            parts.append(f"- {line.finding}\n")
        for growth, rows in self.growths:
            parts.append(f"\n## {growth.name}\n\n{growth.text}\n\n{_table(growth, rows)}\n\n{growth.note}\n")
        path.write_text("".join(parts))


def _table(growth: Growth, rows: list[list[str]]) -> str:
    return _table_of([[growth.varied, *(column.title for column in growth.columns)], *rows])


def _table_of(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---:"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(bench: Bench) -> str:
    """The machine, versions and commit that figures depend on, as a Markdown list."""
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    listed = "import importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in %r), sep=', ')"
    packages = ["gevent", "wsproto", "websocket-client", "msgspec", "websockets", "picows", "uvloop"]
    versions = _output([bench.python, "-c", listed % packages])
    facts = [
        f"{model}, {os.cpu_count()} cores, {memory // 1024 // 1024} GiB, Linux {platform.release()}",
        f"{_output([bench.python, '--version'])}; {versions}",
        f"{_output(['cc', '--version']).splitlines()[0]}; Node {_output(['node', '--version']) or 'absent'}",
        f"commit {_output(['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']) or 'unknown'}, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}",
    ]
    if not bench.pinned:
        facts.append("one core only: the proxy and the load shared it")
    facts += [f"left out: {name} ({why})" for name, why in bench.missing.items()]
    return "\n".join(f"- {fact}" for fact in facts)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
