"""A feed that falls silent while its connection answers pings, in real time and at the product's own values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.request import urlopen

import gevent
import pytest

from proxy.simulator import Simulator
from tests.harness import STAMP, Harness, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(420)]

Start = Callable[[], Harness]

CLIENTS = '\n  alpha: {key: alpha, secret: alpha, allow: {iex: "*"}}\n'
BUSY_SECONDS, SILENCE_SECONDS, MARGIN_SECONDS = 65.0, 60.0, 3.0


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a proxy at its default values in front of a simulator."""
    with ExitStack() as stack:

        def start() -> Harness:
            proxy = Harness(CLIENTS, simulator=Simulator())
            stack.callback(proxy.close)
            return proxy

        yield start


def silences(proxy: Harness) -> tuple[int, int, float]:
    """How often the feed has fallen silent: by the log, the snapshot and the metric."""
    snapshot = proxy.gateway.snapshot()
    [feed] = snapshot.feeds
    host, port = proxy.gateway.admin.address[:2]
    with urlopen(f"http://{host}:{port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    [value] = [line.split()[-1] for line in lines if line.startswith("alpaca_proxy_feed_silences_total{")]
    return sum(event.name == "upstream.silent" for event in snapshot.events), feed.silences, float(value)


def test_a_busy_feed_that_falls_silent_is_connected_anew(start: Start) -> None:
    """Twenty trades a second for 65 s, then nothing but pongs: once, 60 s after the last trade."""
    proxy = start()
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    began = time.monotonic()
    count = 0
    while time.monotonic() - began < BUSY_SECONDS:
        count = proxy.publish("iex", "AAPL", 1)
        gevent.sleep(max(0.0, began + count / 20 - time.monotonic()))
    silent = time.monotonic()
    wait_for(lambda: proxy.simulator.opened("iex") == 2, "not connected anew", SILENCE_SECONDS + MARGIN_SECONDS)
    after = time.monotonic() - silent
    print(f"{count} trades in {silent - began:.1f} s; connected anew {after:.2f} s after the last one")
    assert after >= SILENCE_SECONDS - 0.5
    assert silences(proxy) == (1, 1, 1.0)
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}}, "not restored")
    last = proxy.publish("iex", "AAPL", 5)
    assert client.numbers("AAPL", last) == list(range(1, last + 1))
    again = time.monotonic()
    while time.monotonic() - again < SILENCE_SECONDS + MARGIN_SECONDS:
        gevent.sleep(1)
        assert proxy.simulator.opened("iex") == 2
    assert silences(proxy) == (1, 1, 1.0)
    assert client.silent()


def bar(symbol: str, volume: int) -> dict[str, Any]:
    """A minute bar."""
    prices = {"o": 100.0, "h": 101.0, "l": 99.0, "c": 100.5}
    return {"T": "b", "S": symbol, **prices, "v": volume, "t": STAMP, "n": 1, "vw": 100.1}


def test_a_feed_of_minute_bars_is_never_silent(start: Start) -> None:
    """Bars of five symbols come within two seconds of three full minutes, and then for over a minute none."""
    proxy = start()
    client = proxy.client("alpha")
    symbols = ["A", "B", "C", "D", "E"]
    client.subscribe(bars=symbols)
    began = time.monotonic()
    minutes = []
    for minute in range(1, 4):
        boundary = time.time() // 60 * 60 + 60
        while time.time() < boundary:
            gevent.sleep(0.05)
        minutes.append(time.monotonic() - began)
        for symbol in symbols:
            proxy.simulator.publish("iex", [bar(symbol, minute)])
            gevent.sleep(0.4)
    assert len(client.gather(15)) == 15
    last = time.monotonic()
    while time.monotonic() - last < SILENCE_SECONDS + 2 * MARGIN_SECONDS:
        gevent.sleep(1)
        assert proxy.simulator.opened("iex") == 1
    print(
        f"minutes began after {[round(minute, 1) for minute in minutes]} s; observed {time.monotonic() - began:.0f} s"
    )
    assert silences(proxy) == (0, 0, 0.0)
    assert proxy.upstream().connects == 1
    assert client.silent()
