"""The time limits of docs/faults.md and docs/security.md, at the product's own values, on a real process."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest

from proxy.simulator import Simulator
from tests.harness import CLOSE, Process, Wire, dial, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CONFIG = """\
listen: {port: 0}
admin: {port: 0}
accounts: {main: {key: key, secret: secret, data_url: "URL"}}
clients:
  algorithm: {key: algorithm, secret: algorithm, allow: {iex: "*", sip: "*", crypto: "*", otc: "*", boats: "*"}}
"""
MARGIN_SECONDS = 5.0  # the first wait between two attempts (1 s at most), a tick, and other programs of this machine


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


def test_clients_that_do_not_log_in(address: tuple[str, int]) -> None:
    """10 s for the head of a request, and 10 s to log in."""

    def half_a_head() -> float:
        began = time.monotonic()
        with socket.create_connection(address, 60) as sock:
            sock.sendall(b"GET /v2/iex HTTP/1.1\r\nHost: ")
            while sock.recv(4096):
                pass
        return time.monotonic() - began

    def no_log_in() -> float:
        began = time.monotonic()
        wire = Wire(address)
        with wire.socket:
            wire.socket.settimeout(60)
            while wire.receive()[0] != CLOSE:
                pass
        return time.monotonic() - began

    for greenlet in [gevent.spawn(half_a_head), gevent.spawn(no_log_in)]:
        assert 9.5 <= greenlet.get(timeout=90) <= 10 + MARGIN_SECONDS


@pytest.mark.parametrize(
    ("path", "feed", "step", "seconds"),
    [
        pytest.param("/v2/sip", "sip", "upgrade", 8, id="upgrade"),
        pytest.param("/v1beta3/crypto/us", "crypto", "greeting", 10, id="greeting"),
        pytest.param("/v2/otc", "otc", "auth", 10, id="log-in"),
        pytest.param("/v1beta1/boats", "boats", "subscribe", 30, id="subscribe"),
        pytest.param("/v2/iex", "iex", "connection", 20, id="half open"),
    ],
)
def test_an_alpaca_that_stalls(
    alpaca: Simulator, address: tuple[str, int], path: str, feed: str, step: str, seconds: float
) -> None:
    """Another connection is made after these seconds, and not before."""
    with ExitStack() as stack:
        if step != "connection":
            alpaca.stall(step, feed)
        client = stack.enter_context(dial(address, path))
        client.receive()
        client.log_in("algorithm").subscribe(trades=["A"])
        wait_for(lambda: alpaca.attempts(feed))
        began = alpaca.attempts(feed)[0]
        if step == "connection":
            wait_for(lambda: alpaca.subscribed(feed))
            alpaca.publish_trades(feed, "A", 1)
            assert client.numbers("A", 1) == [1]
            began = time.monotonic()
            alpaca.stall(step, feed)
        wait_for(lambda: len(alpaca.attempts(feed)) == 2, "no other connection", seconds + MARGIN_SECONDS)
        assert alpaca.attempts(feed)[1] - began >= seconds - 0.5
