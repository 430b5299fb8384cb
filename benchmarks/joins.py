"""The cost of a join and a leave, and their effect on other clients.

200 clients hold 8,000 symbols. A newcomer logs in, subscribes to some of them and leaves, many times: first while
nothing else happens, so that the proxy's processor time is due to the newcomer, with the same list each time and then
with a new list in a random order each time; then while data flows, with a stopwatch on the hub.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from contenders import HERE, Bench, BenchError, Running
from measure import Figures, run

TIMES = 12
STEP_SECONDS = 10


@dataclass(frozen=True)
class Joins:
    """The results; times are medians in milliseconds of the proxy's processor time.

    join: from the connection to the acknowledgement.
    leave: after the newcomer has closed its connection.
    new_join, new_leave: with a list that no client has requested before.
    turns: the longest time slices of the hub while data flowed, with what ran in them.
    disturbed, undisturbed: the figures of the other clients with and without joins.
    """

    join: float
    leave: float
    new_join: float
    new_leave: float
    turns: list[tuple[float, str]]
    disturbed: Figures
    undisturbed: Figures


class Newcomer:
    """A minimal client of the market dialect that logs in and subscribes."""

    def __init__(self, port: int, symbols: list[str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=STEP_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        key = "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n"
        head = "GET /v2/iex HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self._socket.sendall(f"{head}{key}\r\n".encode())
        self._wait_for(b'"connected"')
        self._send({"action": "auth", "key": "bench", "secret": "bench"})
        self._wait_for(b'"authenticated"')
        self._send({"action": "subscribe", "trades": symbols})
        self._wait_for(b'"subscription"')

    def leave(self) -> None:
        """Close without a close frame, as a killed program does."""
        self._socket.close()

    def _send(self, request: dict[str, object]) -> None:
        payload = json.dumps(request).encode()
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 1 << 16:
            length = b"\xfe" + size.to_bytes(2, "big")
        else:
            length = b"\xff" + size.to_bytes(8, "big")
        self._socket.sendall(b"\x81" + length + bytes(4) + payload)

    def _wait_for(self, words: bytes) -> None:
        while words not in self._data:
            chunk = self._socket.recv(1 << 20)
            if not chunk:
                raise BenchError("the proxy closed a newcomer's connection")
            self._data = self._data[-64:] + chunk
        self._data = b""


def measure_joins(bench: Bench, seconds: float, held: int, asked: int) -> Joins:
    """Measure joins.

    Of 8,000 symbols, each of 200 clients holds `held` and the newcomer requests `asked`.
    """
    everything = [_symbol(number) for number in range(8000)]
    rng = random.Random(1)
    symbols = everything[:asked]
    joins: list[float] = []
    leaves: list[float] = []

    def without_data(running: Running) -> None:
        same = [symbols] * TIMES
        new = [rng.sample(everything, asked - asked // 100) for _ in range(TIMES)]
        for requested in same + new:
            before = _milliseconds(running.process.pid)
            newcomer = Newcomer(running.port, requested)
            time.sleep(0.05)
            between = _milliseconds(running.process.pid)
            newcomer.leave()
            time.sleep(0.05)
            joins.append(between - before)
            leaves.append(_milliseconds(running.process.pid) - between)

    def with_data(running: Running) -> None:
        time.sleep(0.5)
        os.kill(running.process.pid, signal.SIGUSR1)
        _read_line(running)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            newcomer = Newcomer(running.port, symbols)
            time.sleep(0.1)
            newcomer.leave()
            time.sleep(0.1)
        os.kill(running.process.pid, signal.SIGUSR1)
        turns.extend((took, name) for took, name in json.loads(_read_line(running)))

    turns: list[tuple[float, str]] = []
    load = {"clients": 200, "symbols": 8000, "per_client": held, "batch": 10, "rate": 1000}
    run(bench, "proxy", {**load, "batch": 1, "rate": 0.001}, TIMES * 0.4 + 1, during=without_data)
    undisturbed = run(bench, "proxy", load, seconds)
    disturbed = run(bench, "proxy", load, seconds, launcher=[str(HERE / "watched.py")], during=with_data)
    medians = [statistics.median(times) for times in (joins[2:TIMES], leaves[2:TIMES], joins[TIMES:], leaves[TIMES:])]
    return Joins(*medians, turns, disturbed, undisturbed)


def _read_line(running: Running) -> str:
    assert running.process.stdout is not None
    return running.process.stdout.readline()


def _symbol(number: int) -> str:
    """The name of a symbol, as in load.c."""
    letters = ""
    for _ in range(4):
        letters = chr(65 + number % 26) + letters
        number //= 26
    return letters


def _milliseconds(pid: int) -> float:
    """The processor time of a process so far, in milliseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6
