"""The tap of a proxy at work: what flows, a bounded sample of it, and no trace of it elsewhere."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from proxy.observe import tap
from tests.harness import Harness, quote, trade, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", news: "*", trading: {trade_updates: ["*"]}}}
"""
MAIN = "  main: {{key: key, secret: secret, codec: {{iex: %s}}, data_url: '{url}', trading_url: '{url}'}}"


def look(proxy: Harness, channel: str = "trades", symbol: str = "AAPL", feed: str = "iex") -> tuple[int, Any]:
    """The status, and what the tap says."""
    query = urlencode({"account": "main", "feed": feed, "channel": channel, "symbol": symbol})
    connection = http.client.HTTPConnection(*proxy.gateway.admin.address, timeout=5)
    connection.request("GET", f"/tap?{query}")
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, json.loads(body) if answer.status == 200 else body.strip()


def shown(proxy: Harness, **of: str) -> list[Any]:
    return [json.loads(message["text"]) for message in look(proxy, **of)[1]["messages"]]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message is due."""
    monkeypatch.setattr(tap, "SPACING_SECONDS", 0.0)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_it_shows_what_flows_as_json(start: Start, eager: None, codec: str) -> None:
    proxy = start(CLIENTS, config={"accounts": MAIN % codec})
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL", "MSFT"], quotes=["AAPL"])
    assert look(proxy) == (200, {"version": 1, "flows": True, "seen": 0, "messages": []})
    proxy.simulator.publish("iex", [trade("AAPL", 1), trade("MSFT", 2), quote("AAPL")])
    client.gather(3)
    assert shown(proxy) == [trade("AAPL", 1)]
    assert look(proxy)[1]["seen"] == 1


def test_all_symbols_of_a_channel(start: Start, eager: None) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL", "MSFT"])
    look(proxy, symbol="*")
    for number, symbol in enumerate(("AAPL", "MSFT")):
        proxy.simulator.publish("iex", [trade(symbol, number)])
        client.gather(number + 1)
    assert shown(proxy, symbol="*") == [trade("AAPL", 0), trade("MSFT", 1)]


def test_it_asks_alpaca_for_nothing_and_is_nobodys_subscription(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    assert look(proxy, symbol="MSFT")[1]["flows"] is False
    assert look(proxy, channel="quotes", symbol="*")[1]["flows"] is False
    assert look(proxy, symbol="*")[1]["flows"] is True
    upstream = proxy.upstream()
    assert upstream.reconciler.wanted == upstream.reconciler.acked == {("trades", "AAPL")}
    client.unsubscribe(trades=["AAPL"])
    assert upstream.reconciler.idle
    assert look(proxy)[1]["flows"] is False


def test_a_sample_is_bounded_in_time_number_and_size(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    look(proxy)
    for number in range(50):
        proxy.simulator.publish("iex", [trade("AAPL", number)])
    client.gather(50)
    found = look(proxy)[1]
    assert found["seen"] == 50
    assert 1 <= len(found["messages"]) < 50
    monkeypatch.setattr(tap, "SPACING_SECONDS", 0.0)
    wait_for(lambda: len(client.data) == 50)
    while look(proxy)[1]["seen"] < 200:
        proxy.simulator.publish("iex", [trade("AAPL", 1, c=["x" * 5000])])
        client.gather(len(client.data) + 1)
    found = look(proxy)[1]
    assert len(found["messages"]) == tap.KEPT
    assert {len(message["text"]) for message in found["messages"]} == {tap.TEXT + 1}
    assert [message["number"] for message in found["messages"]] == list(range(181, 201))


def test_it_closes_when_nobody_looks(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "IDLE_SECONDS", 0.1)
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    router = proxy.upstream().router
    before = router.subscriptions()
    look(proxy)
    assert len(router.subscriptions()) == len(before) + 1
    wait_for(lambda: router.subscriptions() == before)
    proxy.publish("iex", "AAPL", 3)
    client.gather(3)
    assert look(proxy)[1]["seen"] == 0


def test_there_are_only_so_many(start: Start) -> None:
    proxy = start(CLIENTS)
    proxy.client("alpha").subscribe(trades=["AAPL"])
    for number in range(tap.MOST):
        assert look(proxy, symbol=f"S{number}")[0] == 200
    status, text = look(proxy, symbol="ONE-MORE")
    assert (status, text.split(";")[0]) == (503, f"There are {tap.MOST} taps open")
    assert look(proxy, symbol="S0")[0] == 200  # one that is open stays so


def test_what_cannot_be_tapped(start: Start) -> None:
    proxy = start(CLIENTS)
    assert look(proxy)[0] == 404  # nobody has asked for this feed
    proxy.client("alpha").subscribe(trades=["AAPL"])
    proxy.client("alpha", "/stream").listen("trade_updates")
    assert look(proxy, feed="trading", channel="trade_updates", symbol="*") == (
        403,
        "Order updates are shown to their clients alone.",
    )
    for channel, symbol in (("", "AAPL"), ("news", "AAPL"), ("trades", ""), ("trades", "A" * 65)):
        status, text = look(proxy, channel=channel, symbol=symbol)
        assert (status, "trades, quotes, bars" in text) == (400, True)


def test_a_feed_that_is_reconfigured_goes_on_in_the_other_codec(start: Start, eager: None) -> None:
    proxy = start(CLIENTS, config={"accounts": MAIN % "json"})
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    look(proxy)
    upstream = proxy.upstream()
    entry = proxy.gateway.config.accounts["main"]
    changed = entry.model_copy(update={"codec": {"iex": "msgpack"}})
    proxy.gateway.reload(proxy.gateway.config.model_copy(update={"accounts": {"main": changed}}))
    wait_for(lambda: upstream.connects == 2 and ("trades", "AAPL") in upstream.reconciler.acked)
    assert upstream.codec.name == "msgpack"
    proxy.simulator.publish("iex", [trade("AAPL", 7)])
    client.gather(1)
    assert look(proxy)[0] == 200
    proxy.simulator.publish("iex", [trade("AAPL", 8)])
    client.gather(2)
    assert trade("AAPL", 8) in shown(proxy)
    assert len(upstream.router.subscriptions()) == 2  # the client, and one tap
