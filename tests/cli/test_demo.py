"""`demo` on a terminal: the screen of 80 columns and 24 rows, narrower ones, and its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.terminal import Terminal

pytestmark = pytest.mark.slow

TO_PASTE = [
    "from alpaca.data.live import StockDataStream",
    "async def show(trade): print(trade)",
    "",
    'url = "{ws}/v2/iex"',
    'stream = StockDataStream("demo", "demo", url_override=url)',
    'stream.subscribe_trades(show, "AAPL", "TSLA")',
    "stream.run()",
]
REQUESTS = [
    '{"action":"auth","key":"demo","secret":"demo"}',
    '{"action":"subscribe","trades":["AAPL"],"quotes":["*"]}',
]


def counts(demo: Terminal) -> list[int]:
    """The numbers of messages in the status, at the bottom of what is shown."""
    shown = [line for line in demo.lines if line]
    return [int(count) for count in re.findall(r"(\d+) messages", shown[-1])] if shown else []


def wait_for_statuses(demo: Terminal, changes: int) -> None:
    """Wait until the status has changed so often."""
    for _ in range(changes):
        before = counts(demo)
        demo.wait_for(lambda before=before: counts(demo) not in ([], before), "a new status")


def test_80_columns_keep_the_lines_to_paste_and_one_status(tmp_path: Path) -> None:
    with Terminal("demo", folder=tmp_path) as demo:
        wait_for_statuses(demo, 4)
        [websocat] = [line for line in demo.lines if line.startswith("Or with websocat ws://")]
        lines = [line.format(ws=websocat.split()[-1].removesuffix("/v2/iex:")) for line in TO_PASTE]
        at = demo.lines.index(lines[0])
        assert demo.lines[at : at + len(lines)] == lines
        assert [line for line in demo.lines if line in REQUESTS] == REQUESTS
        assert any(re.fullmatch(r"  status page  http://127\.0\.0\.1:\d+/", line) for line in demo.lines)
        assert sum(" messages " in line for line in demo.lines) == 1
        assert demo.lines[0] == "starting a simulated market, the proxy and two algorithms"  # nothing has scrolled away
        demo.process.send_signal(signal.SIGINT)
        assert demo.end() == 0
        assert max(len(line) for line in demo.printed if " warning " not in line) <= 80
        assert set(lines) < set(demo.lines)
        result = " ".join(demo.printed[-2:])
        assert re.search(r"demo ok: momentum \d+ messages, meanrev \d+ messages, 1 upstream +connection per", result)


def test_narrower_terminals_cut_lines(tmp_path: Path) -> None:
    """Also one that becomes narrower, or wider again, while the demo runs."""
    with Terminal("demo", folder=tmp_path, columns=50) as demo:
        wait_for_statuses(demo, 1)
        assert max(map(len, demo.printed)) <= 50
        for columns in (40, 200):
            demo.resize(columns)
            wait_for_statuses(demo, 2)
            assert len(demo.printed[-1]) < columns
        assert re.search(r"\d\d:\d\d:\d\d  momentum .* AAPL [\d.]+ .* live: ", demo.printed[-1])


def test_a_log_line_is_above_the_status(tmp_path: Path) -> None:
    with Terminal("demo", folder=tmp_path) as demo:
        wait_for_statuses(demo, 1)
        demo.process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # a stall, which is logged; it also delays the status
        demo.process.send_signal(signal.SIGCONT)
        demo.wait_for(lambda: "proxy.stalled" in "".join(demo.printed), "logged the stall")
        wait_for_statuses(demo, 1)
        assert re.match(r"\d\d:\d\d:\d\d warning proxy\.stalled seconds=", demo.printed[-2])
        assert sum(" messages " in line for line in demo.printed) == 1


def test_elsewhere_each_status_is_a_whole_line(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "proxy", "demo", "--seconds", "2"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "40"}
    done = subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert not {"\x1b", "\r"} & set(done.stdout)
    *_, status, result = done.stdout.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  momentum .*  \|  meanrev .*  \|  live: .*", status)
    assert re.fullmatch(r"demo ok: .* messages, 1 upstream connection per feed", result)
