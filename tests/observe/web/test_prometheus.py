"""A real Prometheus scrapes a running proxy.

It evaluates every expression of the dashboard, and each alert rule fires when its condition occurs, and not before.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gevent
import pytest
import yaml

from proxy.config.errors import ConfigError, Problem
from proxy.config.model import Config
from proxy.observe.snapshot import ClusterState
from proxy.upstream import feed_stats as stats
from tests.harness import Harness, trade, wait_for
from tests.observe.test_metrics import ALERTS, dashboard_expressions
from tests.snapshots import cluster, cluster_feed

pytestmark = [pytest.mark.web, pytest.mark.timeout(120)]

SECONDS = 30.0
PROXIES = 10  # one for each test
CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*"}}
  slow: {key: slow, secret: slow, outbox: 1MiB, allow: {iex: "*"}}
"""

CONFIG = """\
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
  - job_name: alpaca-proxy
    static_configs: [{{targets: {targets}}}]
"""


class Prometheus:
    """A Prometheus server that scrapes each of the given ports five times a second; its own port is read from its log.

    Target discovery takes five seconds, so all tests share one server, with one port for each proxy.
    """

    def __init__(self, folder: Path, ports: Iterable[int]) -> None:
        program = shutil.which("prometheus")
        assert program is not None, "these tests run Prometheus: apt-get install prometheus"
        targets = json.dumps([f"127.0.0.1:{port}" for port in ports])
        (folder / "prometheus.yml").write_text(CONFIG.format(targets=targets))
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ]
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self._ended() or self._listening(), "Prometheus listens nowhere", SECONDS)
        match = self._listening()
        assert match is not None, self._log.read_text()
        self._address = match[1]

    def _listening(self) -> re.Match[str] | None:
        return re.search(r'"Listening on".* address=(\S+)', self._log.read_text())

    def _ended(self) -> bool:
        return self._process.poll() is not None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The current series of an expression. Raises OSError before the server listens."""
        parameters = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{parameters}", timeout=5) as answer:
            series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return series

    def has(self, expression: str) -> bool:
        """Whether an expression has series, none of them NaN."""
        try:
            series = self.query(expression)
        except OSError:
            assert not self._ended(), self._log.read_text()
            return False
        return bool(series) and all(one["value"][1] != "NaN" for one in series)

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Watched:
    """The series of one proxy at Prometheus."""

    server: Prometheus
    port: int

    def has(self, expression: str) -> bool:
        return self.server.has(f'({expression}) and on (instance) up{{instance="127.0.0.1:{self.port}"}}')

    def fires(self, alert: str) -> bool:
        return self.has(expressions()[alert])


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Watched]]:
    """A server, and ports for the proxies. The ports are bound here without listening, which reserves them."""
    with ExitStack() as stack:
        ports = []
        for _ in range(PROXIES):
            bound = stack.enter_context(socket.socket())
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", 0))
            ports.append(bound.getsockname()[1])
        server = Prometheus(tmp_path_factory.mktemp("prometheus"), ports)
        stack.callback(server.close)
        yield (Watched(server, port) for port in ports)


@pytest.fixture
def prometheus(targets: Iterator[Watched]) -> Watched:
    return next(targets)


@pytest.fixture
def proxy(prometheus: Watched, start: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setattr(stats, "SAMPLE_SECONDS", 0.01)
    return start(CLIENTS, config={"admin_port": prometheus.port})


@pytest.fixture
def record(
    prometheus: Watched, start: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], Harness]:
    """Start a proxy that records a symbol; more settings of the recording may be named."""
    monkeypatch.setattr(stats, "SAMPLE_SECONDS", 0.01)

    def started(settings: str = "min_free: 1MB") -> Harness:
        more = f'record: {{folder: "{tmp_path}", topics: {{iex: {{trades: [AAPL]}}}}, {settings}}}'
        return start(CLIENTS, config={"admin_port": prometheus.port, "more": more})

    return started


def expressions() -> dict[str, str]:
    """The alert rules' expressions, without `for`: the tests do not wait for that time."""
    [group] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def settle(prometheus: Watched) -> None:
    """Wait until the server has scraped several times, the last time successfully."""
    wait_for(lambda: prometheus.has("sum_over_time(up[10m]) > 3 and up == 1"), "no scrape", SECONDS)


def join(proxy: Harness, state: ClusterState) -> None:
    """Have the proxy show the state of a cluster."""
    admin: Any = proxy.gateway.admin
    admin._snapshot = lambda: replace(proxy.gateway.snapshot(), cluster=state)


def test_every_expression_of_the_dashboard_has_series(record: Callable[..., Harness], prometheus: Watched) -> None:
    proxy = record()
    join(proxy, cluster())
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    proxy.client("slow").ws.close()  # one that is missing

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
            wait_for(
                lambda expression=expression: prometheus.server.has(expression), f"nothing for {expression}", SECONDS
            )
    finally:
        flowing.kill()


def test_no_alert_fires_in_normal_operation(proxy: Harness, prometheus: Watched) -> None:
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    join(proxy, cluster())
    settle(prometheus)
    wait_for(lambda: not any(prometheus.fires(alert) for alert in expressions()), "an alert fires", SECONDS)


def test_alerts_of_a_feed_that_is_down_or_unstable(proxy: Harness, prometheus: Watched) -> None:
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    settle(prometheus)
    proxy.simulator.refuse_upgrade("iex", 502)
    proxy.simulator.drop("iex")
    wait_for(lambda: prometheus.fires("AlpacaProxyFeedDown"), "no alert", SECONDS)
    proxy.simulator.accept("iex")
    wait_for(lambda: not prometheus.fires("AlpacaProxyFeedDown"), "the alert still fires", SECONDS)
    assert not prometheus.fires("AlpacaProxyFeedUnstable")
    for connects in range(3, 9):
        proxy.simulator.drop("iex")
        wait_for(lambda so_many=connects: proxy.upstream().connects == so_many)
    wait_for(lambda: prometheus.fires("AlpacaProxyFeedUnstable"), "no alert", SECONDS)


def test_alerts_of_a_slow_client(proxy: Harness, prometheus: Watched) -> None:
    proxy.wire(buffer=4096).log_in("slow", trades=["AAPL"])
    [session] = proxy.gateway.server.sessions
    settle(prometheus)
    proxy.fill(session.outbox, 600_000)
    wait_for(lambda: prometheus.fires("AlpacaProxyClientFallingBehind"), "no alert", SECONDS)
    assert not prometheus.fires("AlpacaProxySlowClient")
    proxy.gateway._outboxes.limit = 700_000
    wait_for(lambda: prometheus.fires("AlpacaProxyOutboxesFull"), "no alert", SECONDS)
    while not session.outbox.slow:
        proxy.publish("iex", "AAPL", 200, batch=100)
        gevent.sleep(0)
    wait_for(lambda: prometheus.fires("AlpacaProxySlowClient"), "no alert", SECONDS)


def test_alerts_of_late_and_malformed_messages(proxy: Harness, prometheus: Watched) -> None:
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    settle(prometheus)
    until = time.monotonic() + SECONDS
    while not prometheus.fires("AlpacaProxyLag"):
        assert time.monotonic() < until, "no alert"
        proxy.simulator.publish("iex", [trade("AAPL", 1)])  # its timestamp is of 2023
        gevent.sleep(0.05)
    proxy.simulator.publish_raw("iex", b"\xc1")
    wait_for(lambda: prometheus.fires("AlpacaProxyMalformedFrames"), "no alert", SECONDS)


def test_alerts_of_a_delayed_proxy_and_of_a_stopped_one(proxy: Harness, prometheus: Watched) -> None:
    settle(prometheus)
    began = time.thread_time()
    while time.thread_time() - began < 0.8:
        pass  # blocks the event loop
    wait_for(lambda: prometheus.fires("AlpacaProxyDelayed"), "no alert", SECONDS)
    proxy.gateway.stop(0.5)
    wait_for(lambda: prometheus.fires("AlpacaProxyDown"), "no alert", SECONDS)


def test_alerts_of_a_missing_client_and_of_a_failed_reload(proxy: Harness, prometheus: Watched) -> None:
    client = proxy.client("alpha")
    settle(prometheus)
    assert not prometheus.fires("AlpacaProxyClientMissing")  # `slow` was never here
    client.ws.close()
    wait_for(lambda: prometheus.fires("AlpacaProxyClientMissing"), "no alert", SECONDS)

    def read() -> Config:
        raise ConfigError([Problem("proxy.yaml", 1, 1, "listen", "unknown key")])

    assert not prometheus.fires("AlpacaProxyReloadFailed")
    proxy.gateway._read = read
    proxy.gateway._reload_from_file()
    wait_for(lambda: prometheus.fires("AlpacaProxyReloadFailed"), "no alert", SECONDS)


def test_alerts_of_a_program_that_is_refused_again_and_again(proxy: Harness, prometheus: Watched) -> None:
    settle(prometheus)
    assert not prometheus.fires("AlpacaProxyRefusals")
    for _ in range(70):
        connection = http.client.HTTPConnection(*proxy.address, timeout=5)
        connection.request("GET", "/v2/orders")
        assert connection.getresponse().status == 404
        connection.close()
    wait_for(lambda: prometheus.fires("AlpacaProxyRefusals"), "no alert", SECONDS)


def test_alerts_of_a_recording(record: Callable[..., Harness], prometheus: Watched) -> None:
    proxy = record("min_free: 1000000GB")
    settle(prometheus)
    until = time.monotonic() + SECONDS
    while not all(map(prometheus.fires, ("AlpacaProxyRecordingFailing", "AlpacaProxyRecordingLosses"))):
        assert time.monotonic() < until, "no alert"
        proxy.publish("iex", "AAPL", 1)
        gevent.sleep(0.2)


def test_alerts_of_a_cluster(proxy: Harness, prometheus: Watched) -> None:
    alerts = "AlpacaProxyClusterNoLeader", "AlpacaProxyClusterLinkMute", "AlpacaProxyClusterRedisAway"
    proxy.client("alpha").subscribe(trades=["AAPL"])
    join(proxy, cluster())
    settle(prometheus)
    assert not any(map(prometheus.fires, (*alerts, "AlpacaProxyClusterUnstable")))
    lost = cluster_feed(role="none", leader="", live=False, link="none", round_trip=None)
    join(proxy, cluster(redis_problem="it is away", feeds=(lost, cluster_feed("crypto", link="mute"))))
    for alert in alerts:
        wait_for(lambda alert=alert: prometheus.fires(alert), f"no {alert}", SECONDS)
    join(proxy, cluster(feeds=(cluster_feed(changes=9),)))
    wait_for(lambda: prometheus.fires("AlpacaProxyClusterUnstable"), "no alert", SECONDS)
    wait_for(lambda: not any(map(prometheus.fires, alerts)), "an alert still fires", SECONDS)


def test_every_alert_rule_has_a_test() -> None:
    text = Path(__file__).read_text("utf-8")
    assert [alert for alert in expressions() if f'"{alert}"' not in text] == []
