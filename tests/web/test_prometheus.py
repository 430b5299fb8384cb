"""Prometheus itself over a proxy at work: it scrapes the metrics, answers what the dashboard asks, and every alert rule
fires when what it is for has happened, and not before."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import yaml

from proxy.net import watch
from tests.harness import Harness, trade, wait_for
from tests.test_metrics import ALERTS, dashboard_expressions

pytestmark = [pytest.mark.web, pytest.mark.timeout(120)]

SECONDS = 30.0
CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*"}}
  slow: {key: slow, secret: slow, outbox: 1MiB, allow: {iex: "*"}}
"""

CONFIG = """\
global: {{scrape_interval: 500ms, scrape_timeout: 400ms, evaluation_interval: 500ms}}
scrape_configs:
  - job_name: alpaca-proxy
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """A server that scrapes one proxy twice a second."""

    def __init__(self, folder: Path, target: str) -> None:
        program = shutil.which("prometheus")
        assert program is not None, "these tests run Prometheus: apt-get install prometheus"
        (folder / "prometheus.yml").write_text(CONFIG.format(target=target))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self._address}",
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now. Raises OSError before the server is there."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{query}", timeout=5) as answer:
            series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return series

    def knows(self, expression: str) -> bool:
        """Whether there are any, none of them NaN."""
        try:
            series = self.ask(expression)
        except OSError:
            return False
        return bool(series) and all(one["value"][1] != "NaN" for one in series)

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def proxy(start: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setattr(watch, "SAMPLE_SECONDS", 0.01)
    return start(CLIENTS)


@pytest.fixture
def prometheus(proxy: Harness, tmp_path: Path) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path, "{}:{}".format(*proxy.gateway.admin.address))
    yield server
    server.close()


def fires(prometheus: Prometheus, alert: str) -> bool:
    return prometheus.knows(expressions()[alert])


def expressions() -> dict[str, str]:
    """The alert rules' expressions. Their `for` is left out: it is Prometheus' own to wait."""
    [group] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def settle(prometheus: Prometheus) -> None:
    """The server is there and has scraped a few times."""
    wait_for(lambda: prometheus.knows("count_over_time(up[10m]) > 3"), "no scrape", SECONDS)
    assert prometheus.knows("up == 1")


def test_it_answers_all_that_the_dashboard_asks(proxy: Harness, prometheus: Prometheus) -> None:
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])

    def flow() -> None:
        while True:
            proxy.publish("iex", "AAPL", 3)
            gevent.sleep(0.05)

    flowing = gevent.spawn(flow)
    try:
        settle(prometheus)
        for expression in dashboard_expressions():
            for variable, text in (
                ("$__rate_interval", "10s"),
                ("$__range", "10m"),
                ("$account", ".*"),
                ("$feed", ".*"),
                ("$client", ".*"),
            ):
                expression = expression.replace(variable, text)
            assert "$" not in expression
            wait_for(lambda asked=expression: prometheus.knows(asked), f"nothing for {expression}", SECONDS)
    finally:
        flowing.kill()


def test_nothing_fires_while_all_is_well(proxy: Harness, prometheus: Prometheus) -> None:
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    settle(prometheus)
    assert [alert for alert in expressions() if fires(prometheus, alert)] == []


def test_a_feed_that_is_down_and_one_that_comes_and_goes(proxy: Harness, prometheus: Prometheus) -> None:
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    settle(prometheus)
    proxy.simulator.refuse_upgrade("iex", 502)
    proxy.simulator.drop("iex")
    wait_for(lambda: fires(prometheus, "AlpacaProxyFeedDown"), "no alarm", SECONDS)
    proxy.simulator.accept("iex")
    wait_for(lambda: not fires(prometheus, "AlpacaProxyFeedDown"), "the alarm went on", SECONDS)
    assert not fires(prometheus, "AlpacaProxyFeedUnstable")
    for connects in range(3, 9):
        proxy.simulator.drop("iex")
        wait_for(lambda so_many=connects: proxy.upstream().connects == so_many)
    wait_for(lambda: fires(prometheus, "AlpacaProxyFeedUnstable"), "no alarm", SECONDS)


def test_a_slow_client(proxy: Harness, prometheus: Prometheus) -> None:
    proxy.wire(buffer=4096).log_in("slow", trades=["AAPL"])
    [conversation] = proxy.gateway.server.conversations
    settle(prometheus)
    while conversation.outbox.pending < 600_000:
        proxy.publish("iex", "AAPL", 200, batch=100)
        gevent.sleep(0)
    wait_for(lambda: fires(prometheus, "AlpacaProxyClientFallingBehind"), "no alarm", SECONDS)
    assert not fires(prometheus, "AlpacaProxySlowClient")
    proxy.gateway._outboxes.limit = 700_000
    wait_for(lambda: fires(prometheus, "AlpacaProxyOutboxesFull"), "no alarm", SECONDS)
    while not conversation.outbox.slow:
        proxy.publish("iex", "AAPL", 200, batch=100)
        gevent.sleep(0)
    wait_for(lambda: fires(prometheus, "AlpacaProxySlowClient"), "no alarm", SECONDS)


def test_messages_that_are_late_or_cannot_be_read(proxy: Harness, prometheus: Prometheus) -> None:
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    settle(prometheus)
    until = time.monotonic() + SECONDS
    while not fires(prometheus, "AlpacaProxyLag"):
        assert time.monotonic() < until, "no alarm"
        proxy.simulator.publish("iex", [trade("AAPL", 1)])  # of 2023
        gevent.sleep(0.05)
    proxy.simulator.publish_raw("iex", b"\xc1")
    wait_for(lambda: fires(prometheus, "AlpacaProxyMalformedFrames"), "no alarm", SECONDS)


def test_a_proxy_that_is_out_of_breath_and_then_gone(proxy: Harness, prometheus: Prometheus) -> None:
    settle(prometheus)
    began = time.thread_time()
    while time.thread_time() - began < 0.8:
        pass  # nobody else runs meanwhile
    wait_for(lambda: fires(prometheus, "AlpacaProxyDelayed"), "no alarm", SECONDS)
    proxy.gateway.stop(0.5)
    wait_for(lambda: fires(prometheus, "AlpacaProxyDown"), "no alarm", SECONDS)


def test_every_rule_has_fired_above() -> None:
    text = Path(__file__).read_text("utf-8")
    assert [alert for alert in expressions() if f'"{alert}"' not in text] == []
