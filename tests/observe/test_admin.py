"""The admin port of a running proxy: health, readiness, metrics, tokens and Host names."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import gevent
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.alpaca.client_protocol import Phase
from tests.harness import Harness, trade, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*"}}
  beta: {key: beta, secret: beta, max_connections: 1, allow: {iex: {trades: [AAPL]}}}
"""


class Page(NamedTuple):
    status: int
    text: str
    kind: str


def fetch(proxy: Harness, path: str, method: str = "GET", **headers: str) -> Page:
    connection = http.client.HTTPConnection(*proxy.gateway.admin.address, timeout=5)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    page = Page(response.status, response.read().decode().rstrip("\n"), response.getheader("Content-Type", ""))
    connection.close()
    return page


class Metrics:
    """A scrape, parsed with Prometheus' client library."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def __getitem__(self, key: tuple[str, dict[str, str]]) -> float:
        name, labels = key
        [value] = [s.value for s in self.samples if s.name == f"alpaca_proxy_{name}" and s.labels == labels]
        return float(value)


def scrape(proxy: Harness) -> Metrics:
    return Metrics(fetch(proxy, "/metrics").text)


@pytest.fixture
def proxy(start: Start) -> Iterator[Harness]:
    return start(CLIENTS)


def test_healthz(proxy: Harness) -> None:
    assert fetch(proxy, "/healthz") == (200, "ok", "text/plain; charset=utf-8")
    assert fetch(proxy, "/healthz", "HEAD").text == ""


def test_ready_without_subscriptions(proxy: Harness) -> None:
    assert fetch(proxy, "/readyz")[:2] == (200, "ready")
    proxy.client("alpha")
    assert fetch(proxy, "/readyz").status == 200


def test_not_ready_while_a_wanted_feed_is_down(proxy: Harness) -> None:
    """The answer names the feed and the reason, and not the feeds that are live."""
    client, other = proxy.client("alpha"), proxy.client("alpha", "/v1beta3/crypto/us")
    client.subscribe(trades=["AAPL"])
    other.subscribe(trades=["BTC/USD"])
    assert fetch(proxy, "/readyz").status == 200
    proxy.simulator.refuse_upgrade("iex", 502)
    proxy.simulator.drop("iex")
    wait_for(lambda: proxy.upstream().phase is Phase.WAITING and "502" in proxy.upstream().last_error)
    status, text, _ = fetch(proxy, "/readyz")
    assert status == 503
    [line] = text.splitlines()
    assert line.startswith("main/iex ")
    assert line.endswith("HTTP 502 in answer to the upgrade")
    proxy.simulator.accept("iex")
    wait_for(lambda: fetch(proxy, "/readyz").status == 200)


def test_ready_when_the_feed_that_is_down_is_no_longer_wanted(proxy: Harness) -> None:
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    proxy.simulator.refuse_upgrade("iex", 500)
    proxy.simulator.drop("iex")
    wait_for(lambda: fetch(proxy, "/readyz").status == 503)
    client.unsubscribe(trades=["AAPL"])
    assert fetch(proxy, "/readyz").status == 200


def test_not_ready_while_draining(proxy: Harness) -> None:
    proxy.gateway.state = type(proxy.gateway.state).DRAINING
    assert fetch(proxy, "/readyz")[:2] == (503, "draining")
    assert fetch(proxy, "/healthz").status == 200
    proxy.gateway.state = type(proxy.gateway.state).SERVING


def test_metrics_of_feeds_and_clients(proxy: Harness) -> None:
    alpha, beta = proxy.client("alpha"), proxy.client("beta", codec="msgpack")
    alpha.subscribe(trades=["AAPL", "MSFT"])
    beta.subscribe(trades=["AAPL"])
    proxy.simulator.publish("iex", [trade("AAPL", 1), trade("MSFT", 2)])
    proxy.publish("iex", "AAPL", 10)
    alpha.numbers("AAPL", 10)
    beta.numbers("AAPL", 10)
    metrics = scrape(proxy)
    feed = {"feed": "iex"}
    assert metrics["feed_live", feed] == metrics["feed_needed", feed] == metrics["feed_connects_total", feed] == 1
    assert metrics["feed_wanted_topics", {**feed, "channel": "trades"}] == metrics["feed_acked_topics", feed] == 2
    assert metrics["feed_messages_total", feed] == 12
    for client, messages in (("alpha", 12), ("beta", 11)):
        labels = {"client": client, "feed": "iex"}
        assert metrics["client_messages_total", labels] == messages
        assert metrics["client_sessions", labels] == metrics["client_connects_total", labels] == 1
        assert metrics["client_pending_bytes", labels] == 0
    assert metrics["outbox_bytes", {}] == 0


def test_counters_never_decrease(proxy: Harness) -> None:
    """A client's counters include closed sessions and are the sum over its sessions."""
    first, second = proxy.client("alpha"), proxy.client("alpha")
    for client in (first, second):
        client.subscribe(trades=["AAPL"])
    proxy.publish("iex", "AAPL", 5)
    first.numbers("AAPL", 5)
    second.numbers("AAPL", 5)
    first.ws.close()
    wait_for(lambda: scrape(proxy)["client_sessions", {"client": "alpha", "feed": "iex"}] == 1)
    proxy.publish("iex", "AAPL", 5)
    second.numbers("AAPL", 10)
    metrics = scrape(proxy)
    assert metrics["client_messages_total", {"client": "alpha", "feed": "iex"}] == 15
    assert metrics["client_connects_total", {"client": "alpha", "feed": "iex"}] == 2


def test_metrics_count_unauthenticated_connections(proxy: Harness) -> None:
    unauthenticated = [proxy.wire() for _ in range(3)]
    wait_for(lambda: scrape(proxy)["unauthenticated_connections", {}] == 3)
    for connection in unauthenticated:
        connection.crash()
    wait_for(lambda: scrape(proxy)["unauthenticated_connections", {}] == 0)


def test_which_client_is_missing(proxy: Harness) -> None:
    """A configured client that is not connected is shown, with the end of its last session."""

    def configured() -> dict[str, tuple[int, float | None]]:
        clients = json.loads(fetch(proxy, "/status.json").text)["configured"]
        return {client["client"]: (client["connected"], client["last_seen"]) for client in clients}

    assert configured() == {"alpha": (0, None), "beta": (0, None)}
    began = time.time()
    stocks, crypto = proxy.client("alpha"), proxy.client("alpha", "/v1beta3/crypto/us")
    connected, seen = configured()["alpha"]
    assert connected == 2
    assert seen is not None
    assert began - 1 < seen < time.time() + 1
    assert configured()["beta"] == (0, None)
    stocks.ws.close()
    wait_for(lambda: configured()["alpha"][0] == 1)
    assert scrape(proxy)["client_connected", {"client": "alpha"}] == 1
    crypto.ws.close()
    wait_for(lambda: configured()["alpha"][0] == 0)
    ended = configured()["alpha"][1]
    assert ended == configured()["alpha"][1]
    assert ended is not None
    assert ended >= began - 1
    metrics = scrape(proxy)
    assert metrics["client_connected", {"client": "alpha"}] == metrics["client_connected", {"client": "beta"}] == 0
    assert metrics["client_last_seen_timestamp_seconds", {"client": "alpha"}] == pytest.approx(ended, abs=0.001)


def test_a_stall_is_an_event(proxy: Harness) -> None:
    """Of one second or more by the machine's clock, whatever the clock of the sessions counts."""

    def stalls() -> list[str]:
        events = json.loads(fetch(proxy, "/status.json").text)["events"]
        return [event["fields"]["seconds"] for event in events if event["event"] == "proxy.stalled"]

    real, gap = proxy.gateway._steady, 0.0
    proxy.gateway._steady = lambda: real() + gap
    gevent.sleep(0.05)
    gap += 0.7
    gevent.sleep(0.05)
    assert stalls() == []
    gap += 7.25
    wait_for(stalls)
    assert [float(seconds) for seconds in stalls()] == [pytest.approx(7.2, abs=0.25)]


def test_no_metric_has_symbols_as_labels(proxy: Harness) -> None:
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    proxy.publish("iex", "AAPL", 1)
    client.receive()
    page = fetch(proxy, "/metrics")
    assert page.kind.startswith("text/plain; version=0.0.4")
    assert "AAPL" not in page.text
    samples = [sample for sample in Metrics(page.text).samples if sample.name.startswith("alpaca_proxy_")]
    assert {label for sample in samples for label in sample.labels} <= {
        "feed",
        "channel",
        "client",
        "reason",
        "account",
        "version",
        "le",
    }


def test_the_token_is_required(start: Start) -> None:
    proxy = start(CLIENTS, config={"admin": "token: let-me-in"})
    for path in ("/healthz", "/metrics", "/nothing"):
        assert fetch(proxy, path).status == 401
        assert fetch(proxy, path, Authorization="Bearer let-me-out").status == 401
        assert fetch(proxy, path, Authorization="let-me-in").status == 401
    assert "let-me" not in fetch(proxy, "/metrics").text
    for scheme in ("Bearer", "bearer"):  # RFC 9110 §11.1: schemes have no case
        assert fetch(proxy, "/healthz", Authorization=f"{scheme} let-me-in").status == 200
        assert fetch(proxy, "/healthz", Authorization=f"{scheme} Let-me-in").status == 401


HOSTS = "hosts: [Proxy.example.com, status.example., bücher.example]"


@pytest.mark.parametrize(
    "host",
    [
        "localhost:1",
        "127.0.0.1",
        "[::1]:8766",
        "proxy.example.com:8766",
        "PROXY.example.com.",
        "status.example",
        "xn--bcher-kva.example",
    ],
)
def test_accepted_host_names(start: Start, host: str) -> None:
    assert fetch(start(CLIENTS, config={"admin": HOSTS}), "/healthz", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example.com", "127.0.0.1.evil.com", "proxy.example.com.evil.com", "", "localhost@evil.com", "[::1"],
)
def test_refused_host_names(start: Start, host: str) -> None:
    """DNS rebinding: a web page whose host name resolves to the admin port cannot read it."""
    assert fetch(start(CLIENTS, config={"admin": HOSTS}), "/metrics", Host=host).status == 403


@pytest.mark.parametrize("since", ["x", "-1", "9" * 5000])
def test_invalid_since_is_ignored(proxy: Harness, since: str) -> None:
    assert fetch(proxy, f"/status.json?since={since}").status == 200


def test_unknown_paths_and_methods(proxy: Harness) -> None:
    assert fetch(proxy, "/nothing").status == 404
    for path in ("/healthz", "/readyz", "/metrics"):
        assert path in fetch(proxy, "/nothing").text
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert fetch(proxy, "/healthz", method).status == 405


def test_websocket_upgrades_are_refused(proxy: Harness) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    assert fetch(proxy, "/healthz", **upgrade).status == 404
