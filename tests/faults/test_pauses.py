"""Algorithms that pause, at the product's own values: for a garbage collection, a long computation, a suspend."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest

from proxy.simulator import Simulator
from tests.harness import CLOSE, PING, TEXT, Process, Wire, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CONFIG = """\
listen: {port: 0}
admin: {port: 0}
accounts: {main: {key: key, secret: secret, data_url: "URL"}}
clients:
  algorithm: {key: algorithm, secret: algorithm, allow: {iex: "*"}}
  one: {key: one, secret: one, max_connections: 1, allow: {iex: "*"}}
"""
PAUSES = (12, 25, 45)
PHASES = (0.0, 3.3, 6.6)  # of the ten seconds between two pings
SPACING_SECONDS = 0.05  # between trades


@pytest.fixture
def alpaca() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def address(alpaca: Simulator, tmp_path: Path) -> Iterator[tuple[str, int]]:
    file = tmp_path / "proxy.yaml"
    file.write_text(CONFIG.replace("URL", alpaca.url))
    with Process("-c", str(file), folder=tmp_path) as process:
        yield process.address()


def test_algorithms_that_pause(alpaca: Simulator, address: tuple[str, int]) -> None:
    """Nine of them answer nothing for 12, 25 and 45 s, at three phases of the pings; none misses a message."""
    publishing = True

    def publish() -> None:
        while publishing:
            alpaca.publish_trades("iex", "AAPL", 1)
            gevent.sleep(SPACING_SECONDS)

    def algorithm(pause: float, phase: float) -> list[int]:
        wire = Wire(address).log_in("algorithm", trades=["AAPL"])
        gevent.sleep(phase)
        gevent.sleep(pause)
        numbers: list[int] = []
        while not numbers or numbers[-1] < last:
            opcode, payload = wire.receive()
            assert opcode in (TEXT, PING)
            numbers += [message["i"] for message in json.loads(payload)] if opcode == TEXT else []
        wire.send_json({"action": "subscribe"})
        while b"subscription" not in payload:  # data and pings may be on their way
            _, payload = wire.receive()
        wire.socket.close()
        return numbers

    last = int(max(PAUSES) / SPACING_SECONDS / 2)
    algorithms = [gevent.spawn(algorithm, pause, phase) for pause in PAUSES for phase in PHASES]
    publisher = gevent.spawn(publish)
    wait_for(lambda: alpaca._trade_counts.get(("iex", "AAPL"), 0) >= last, "not published", 90)
    publishing = False
    publisher.join()
    for numbers in (greenlet.get(timeout=90) for greenlet in algorithms):
        assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_a_dead_session_gives_way_to_a_newcomer(address: tuple[str, int]) -> None:
    """The session that has left a ping unanswered for 20 s, and no other, if its client is at `max_connections`."""
    with ExitStack() as stack:

        def log_in() -> tuple[Wire, bool]:
            wire = Wire(address)
            stack.callback(wire.socket.close)
            wire.receive()
            wire.send_json({"action": "auth", "key": "one", "secret": "one"})
            [reply] = json.loads(wire.receive()[1])
            return wire, reply.get("msg") == "authenticated"

        dead, is_in = log_in()
        assert is_in
        began = time.monotonic()
        _, is_in = log_in()
        assert not is_in
        while not is_in:
            assert time.monotonic() < began + 45, "the dead session keeps its slot"
            gevent.sleep(2)
            _, is_in = log_in()
        assert time.monotonic() - began > 20
        received = [frame for frame in dead.rest() if frame[0] != PING]
        assert received == [(CLOSE, (1008).to_bytes(2, "big") + b"replaced by a newer connection")]
