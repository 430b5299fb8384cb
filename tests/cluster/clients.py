"""Clients of a cluster that keep what they receive, and what can be said about it.

A `Client` speaks Alpaca's dialect on a bare socket. When its connection ends it connects to another node, as an
algorithm behind a load balancer does, and asks for what it wants again.
"""

from __future__ import annotations

import json
import time
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import gevent

from tests.cluster.numbered import SYMBOLS, Alpaca
from tests.harness import CLOSE, PING, PONG, TEXT, Wire, wait_for

OPEN_SECONDS = 3.0  # for which a node may let a client wait for its log-in
AGAIN_SECONDS = 0.02

Address = tuple[str, int]


@dataclass
class Run:
    """The messages of one connection, by symbol: the numbers, and the times at which they came."""

    node: int
    numbers: dict[str, array[int]] = field(default_factory=lambda: defaultdict(lambda: array("L")))
    times: dict[str, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    closed: tuple[int, str] | None = None  # the close frame


@dataclass(frozen=True)
class Account:
    """The faults of a sequence of numbers."""

    twice: int = 0
    out_of_order: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(self.twice + other.twice, self.out_of_order + other.out_of_order)


class Client:
    """A client that starts at node `at` of these; `wanted` and `held` are symbols of its trades.

    `held` is what the last acknowledgement named; `errors` are the codes of errors.
    """

    def __init__(
        self,
        nodes: Sequence[Address],
        at: int,
        symbols: Iterable[str] = SYMBOLS,
        *,
        key: str = "algo",
        secret: str = "algo",
    ) -> None:
        self.node = at
        self.wanted = set(symbols)
        self.held: set[str] = set()
        self.runs: list[Run] = []
        self.errors: list[int] = []
        self.acknowledged = 0
        self._nodes = nodes
        self._login = {"action": "auth", "key": key, "secret": secret}
        self._wire: Wire | None = None
        self._greenlet = gevent.spawn(self._live)

    def __repr__(self) -> str:
        return f"<Client at {self.node} wants {sorted(self.wanted)} holds {sorted(self.held)}>"

    @property
    def connected(self) -> bool:
        return self._wire is not None

    def close(self) -> None:
        self._greenlet.kill()
        self._drop()

    def subscribe(self, *symbols: str) -> None:
        """Ask for these symbols as well; the answer comes later."""
        self.wanted.update(symbols)
        self._ask("subscribe", symbols)

    def unsubscribe(self, *symbols: str) -> None:
        self.wanted.difference_update(symbols)
        self._ask("unsubscribe", symbols)

    def move(self, node: int) -> None:
        """Leave the present node, and connect to this one."""
        self.node = node
        wire = self._wire
        if wire is not None:
            with suppress(OSError):
                wire.send(CLOSE, b"\x03\xe8")
            self._drop()

    def count(self) -> int:
        """How many messages it has received."""
        return sum(len(numbers) for run in self.runs for numbers in run.numbers.values())

    def receives(self, seconds: float = 20.0) -> None:
        """Wait until a new message of every symbol that it wants has come."""
        before = {symbol: self.last(symbol) for symbol in self.wanted}
        wait_for(lambda: all(self.last(symbol) > before[symbol] for symbol in self.wanted), f"{self}: no data", seconds)

    def last(self, symbol: str) -> int:
        """The last number of a symbol that it has received; -1 for none."""
        return next((run.numbers[symbol][-1] for run in reversed(self.runs) if run.numbers.get(symbol)), -1)

    # What can be said about it

    def account(self) -> Account:
        """Judge each connection by itself: every number once, and rising."""
        return sum((judge(numbers) for run in self.runs for numbers in run.numbers.values()), Account())

    def joined_account(self) -> Account:
        """Judge all connections together, as one sequence."""
        return sum((judge(self.sequence(symbol)) for symbol in SYMBOLS), Account())

    def sequence(self, symbol: str) -> array[int]:
        joined: array[int] = array("L")
        for run in self.runs:
            joined.extend(run.numbers.get(symbol, ()))
        return joined

    def times(self, symbol: str) -> array[float]:
        joined: array[float] = array("d")
        for run in self.runs:
            joined.extend(run.times.get(symbol, ()))
        return joined

    def missing(self, symbol: str) -> list[int]:
        """The numbers between the first and the last that it has received that it has not."""
        return _missing(self.sequence(symbol))

    def missed(self, symbol: str, alpaca: Alpaca, since: float) -> list[float]:
        """When the messages were sent, since then, that its present connection has missed."""
        numbers = _missing(self.runs[-1].numbers[symbol])
        return [sent for number in numbers if (sent := alpaca.sent[symbol][number]) >= since]

    def silence(self, since: float) -> float:
        """The longest time without a message of one of its symbols, from then until now."""
        now = time.monotonic()
        return max(_longest(self.times(symbol), since, now) for symbol in self.wanted)

    # Its connection

    def _live(self) -> None:
        while True:
            node = self.node
            try:
                with gevent.Timeout(OPEN_SECONDS, ConnectionError("no answer")):
                    wire = self._open()
                self._read(wire)
            except (OSError, EOFError, AssertionError):
                self._drop()
                if self.node == node:  # it has not been moved meanwhile
                    self.node = (node + 1) % len(self._nodes)
            gevent.sleep(AGAIN_SECONDS)

    def _open(self) -> Wire:
        wire = Wire(self._nodes[self.node])
        try:
            wire.send_json(self._login)
            for expected in (b"connected", b"authenticated"):
                _, payload = wire.receive()
                if expected not in payload:
                    raise ConnectionError(payload.decode())
            self.held = set()
            if self.wanted:
                wire.send_json({"action": "subscribe", "trades": sorted(self.wanted)})
        except BaseException:
            wire.socket.close()
            raise
        wire.socket.settimeout(None)
        self.runs.append(Run(self.node))
        self._wire = wire
        return wire

    def _read(self, wire: Wire) -> None:
        run = self.runs[-1]
        while True:
            opcode, payload = wire.receive()
            if opcode == TEXT:
                now = time.monotonic()
                for message in json.loads(payload):
                    if message["T"] == "t":
                        run.numbers[message["S"]].append(message["i"])
                        run.times[message["S"]].append(now)
                    elif message["T"] == "subscription":
                        self.held = set(message["trades"])
                        self.acknowledged += 1
                    elif message["T"] == "error":
                        self.errors.append(message["code"])
            elif opcode == PING:
                wire.send(PONG, payload)
            elif opcode == CLOSE:
                run.closed = int.from_bytes(payload[:2], "big"), payload[2:].decode()
                wire.send(CLOSE, payload[:2])
                raise EOFError

    def _ask(self, action: str, symbols: Sequence[str]) -> None:
        if self._wire is not None:
            with suppress(OSError):
                self._wire.send_json({"action": action, "trades": [*symbols]})

    def _drop(self) -> None:
        if self._wire is not None:
            wire, self._wire = self._wire, None
            with suppress(OSError):
                wire.socket.shutdown(2)
            wire.socket.close()


def judge(numbers: Sequence[int]) -> Account:
    """Count the numbers that came twice, and those that came after a greater one."""
    if all(map(int.__lt__, numbers, numbers[1:])):
        return Account()
    twice = len(numbers) - len(set(numbers))
    greatest, seen, late = -1, set(), 0
    for number in numbers:
        late += number < greatest and number not in seen
        greatest = max(greatest, number)
        seen.add(number)
    return Account(twice, late)


def _missing(numbers: Sequence[int]) -> list[int]:
    got = set(numbers)
    return [number for number in range(min(got), max(got)) if number not in got] if got else []


def _longest(times: Sequence[float], since: float, until: float) -> float:
    before = since
    longest = 0.0
    for at in times:
        if at >= since:
            longest = max(longest, at - before)
            before = at
    return max(longest, until - before)


def settled(clients: Iterable[Client], seconds: float = 20.0) -> None:
    """Wait until every client holds what it wants, and receives it."""
    clients = [*clients]
    wait_for(lambda: all(client.held == client.wanted for client in clients), f"not acknowledged: {clients}", seconds)
    for client in clients:
        client.receives(seconds)
