"""The system calls of a running proxy for messages that come one by one, counted by strace."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.simulator import Simulator
from tests.absent import absent
from tests.harness import Client, Process, dial

CONFIG = """\
listen: {port: 0}
admin: {port: 0}
accounts: {main: {key: key, secret: secret, data_url: "URL"}}
clients:
  algorithm: {key: algorithm, secret: algorithm, allow: {iex: "*"}}
"""
CLIENTS = 3
FRAMES = 200
SPARE = 20  # of each call: for keep-alives, timers and the reads of clients


def test_system_calls_for_each_frame(tmp_path: Path) -> None:
    """A frame costs one wait, one read and one send for each client; nothing is read or registered in vain."""
    strace = shutil.which("strace") or absent("strace is not installed")
    trace = tmp_path / "trace.txt"
    with Simulator() as alpaca, ExitStack() as stack:
        file = tmp_path / "proxy.yaml"
        file.write_text(CONFIG.replace("URL", alpaca.url))
        process = stack.enter_context(Process("-c", str(file), folder=tmp_path))
        clients = [stack.enter_context(dial(process.address())) for _ in range(CLIENTS)]
        for client in clients:
            client.receive()
            client.log_in("algorithm").subscribe(trades=["A"])
        _deliver(alpaca, clients, 1, 10)
        tracer = subprocess.Popen(
            [strace, "-f", "-p", str(process.popen.pid), "-o", str(trace)], stderr=subprocess.PIPE, text=True
        )
        stack.callback(tracer.kill)
        assert tracer.stderr is not None
        if "attached" not in (said := tracer.stderr.readline()):
            pytest.skip(f"the kernel does not permit it: {said}")
        _deliver(alpaca, clients, 11, FRAMES)
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=30)
    lines = trace.read_text().splitlines()
    calls = Counter(match[1] for line in lines if (match := re.match(r"\d+ +(\w+)\(", line)))
    vain = sum(line.split("(")[0].endswith("recvfrom") and "EAGAIN" in line for line in lines)
    assert FRAMES * CLIENTS <= calls["sendto"] <= FRAMES * CLIENTS + SPARE, calls
    assert FRAMES <= calls["recvfrom"] <= FRAMES + SPARE, calls
    # A system call takes so long under strace that the reader's time slice may be over after a frame. Then it yields,
    # and its watcher is taken out of the loop and put in again.
    yields = calls["epoll_wait"] - FRAMES
    assert yields <= FRAMES + SPARE, calls
    assert calls["epoll_ctl"] <= 2 * yields + SPARE, calls
    assert vain <= SPARE, f"{vain} reads found nothing"


def _deliver(alpaca: Simulator, clients: list[Client], first: int, count: int) -> None:
    """Publish trades one by one; each is received by every client before the next."""
    for number in range(first, first + count):
        alpaca.publish_trades("iex", "A", 1)
        for client in clients:
            client.numbers("A", number)
