"""Faults of clocks: the wall clock is set, the machine sleeps.

No session may end because of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from proxy.downstream import client_session
from proxy.upstream import alpaca_connection
from tests.harness import Client, Harness, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  witness: {key: witness, secret: witness, allow: {iex: "*"}}
  other: {key: other, secret: other, allow: {iex: "*"}}
"""


@pytest.fixture
def proxy(start: Start) -> Harness:
    return start(CLIENTS)


@pytest.fixture
def witness(proxy: Harness) -> Iterator[Client]:
    client = proxy.client("witness")
    client.subscribe(trades=["AAPL"])
    with proxy.undisturbed(client):
        yield client
    assert proxy.simulator.opened("iex") == 1


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0, 10 * 365 * 86_400.0])
def test_the_wall_clock_is_set(proxy: Harness, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """No timer depends on it: data flows, and new sessions are served."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + jump) * 1e9))
    proxy.upstream().stats._wall = time.time
    wait_for(lambda: proxy.gateway.snapshot().time == pytest.approx(real() + jump, abs=5))
    other = proxy.client("other")
    assert other.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    gevent.sleep(0.05)
    assert other.gather(5)
    other.ws.close()


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("gap", [30.0, 100_000.0])
def test_the_machine_sleeps(proxy: Harness, gap: float) -> None:
    """After a suspend, every client and Alpaca look silent for longer than allowed.

    None is disconnected.
    """
    assert gap > client_session.UNRESPONSIVE_SECONDS
    assert gap > alpaca_connection.MUTE_SECONDS
    newcomer = proxy.dial()
    newcomer.receive()
    steady = proxy.gateway._clock.steady
    proxy.gateway._clock.steady = lambda: steady() + gap
    gevent.sleep(0.05)  # several ticks
    newcomer.log_in("other").subscribe(trades=["AAPL"])
    assert len(proxy.gateway.server.sessions) == 2
    newcomer.ws.close()
