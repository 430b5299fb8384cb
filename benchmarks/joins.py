"""What a join and a leave cost, and whether anybody else notices.

200 clients hold 8,000 symbols. A newcomer logs in, subscribes to some of them and leaves again, many times: first while
nothing else happens, so that the processor time of the proxy is the newcomer's own, with the same list each time and
then with ever another one, in an order of its own; then while data flows, with a stopwatch on the hub.
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
    """Milliseconds of the proxy's processor time for a join (from the connection to the acknowledgement) and a leave,
    medians, and for both with a list that nobody has asked for before; the longest turns while data flowed; the
    clients' latencies then, and without joins."""

    join: float
    leave: float
    new_join: float
    new_leave: float
    turns: list[tuple[float, str]]
    disturbed: Figures
    undisturbed: Figures


class Newcomer:
    """A client of the market dialect, as little of one as will do."""

    def __init__(self, port: int, symbols: list[str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=STEP_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = b""
        key = "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n"
        head = "GET /v2/iex HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self._socket.sendall(f"{head}{key}\r\n".encode())
        self._await(b'"connected"')
        self._say({"action": "auth", "key": "bench", "secret": "bench"})
        self._await(b'"authenticated"')
        self._say({"action": "subscribe", "trades": symbols})
        self._await(b'"subscription"')

    def leave(self) -> None:
        """Goes without a word, as a program that is killed does."""
        self._socket.close()

    def _say(self, request: dict[str, object]) -> None:
        payload = json.dumps(request).encode()
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 1 << 16:
            length = b"\xfe" + size.to_bytes(2, "big")
        else:
            length = b"\xff" + size.to_bytes(8, "big")
        self._socket.sendall(b"\x81" + length + bytes(4) + payload)

    def _await(self, words: bytes) -> None:
        while words not in self._heard:
            chunk = self._socket.recv(1 << 20)
            if not chunk:
                raise BenchError("the proxy closed a newcomer's connection")
            self._heard = self._heard[-64:] + chunk
        self._heard = b""


def measure_joins(bench: Bench, seconds: float, held: int, asked: int) -> Joins:
    """`held`: how many symbols each of the 200 clients holds, of 8,000; `asked`: how many the newcomer asks for."""
    everything = [_symbol(number) for number in range(8000)]
    lot = random.Random(1)
    symbols = everything[:asked]
    joins: list[float] = []
    leaves: list[float] = []

    def quietly(running: Running) -> None:
        same = [symbols] * TIMES
        new = [lot.sample(everything, asked - asked // 100) for _ in range(TIMES)]
        for some in same + new:
            before = _milliseconds(running.process.pid)
            newcomer = Newcomer(running.port, some)
            time.sleep(0.05)
            between = _milliseconds(running.process.pid)
            newcomer.leave()
            time.sleep(0.05)
            joins.append(between - before)
            leaves.append(_milliseconds(running.process.pid) - between)

    def busily(running: Running) -> None:
        time.sleep(0.5)
        os.kill(running.process.pid, signal.SIGUSR1)
        _connection_(running)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            newcomer = Newcomer(running.port, symbols)
            time.sleep(0.1)
            newcomer.leave()
            time.sleep(0.1)
        os.kill(running.process.pid, signal.SIGUSR1)
        turns.extend((took, name) for took, name in json.loads(_connection_(running)))

    turns: list[tuple[float, str]] = []
    load = {"clients": 200, "symbols": 8000, "per_client": held, "batch": 10, "rate": 1000}
    run(bench, "proxy", {**load, "batch": 1, "rate": 0.001}, TIMES * 0.4 + 1, during=quietly)
    undisturbed = run(bench, "proxy", load, seconds)
    disturbed = run(bench, "proxy", load, seconds, launcher=[str(HERE / "watched.py")], during=busily)
    medians = [statistics.median(some) for some in (joins[2:TIMES], leaves[2:TIMES], joins[TIMES:], leaves[TIMES:])]
    return Joins(*medians, turns, disturbed, undisturbed)


def _connection_(running: Running) -> str:
    assert running.process.stdout is not None
    return running.process.stdout.readline()


def _symbol(number: int) -> str:
    """As load.c names it."""
    letters = ""
    for _ in range(4):
        letters = chr(65 + number % 26) + letters
        number //= 26
    return letters


def _milliseconds(pid: int) -> float:
    """Processor time so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6
