"""Taps of a running proxy: their messages, their bounds, and that they do not change subscriptions at Alpaca."""

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


def fetch(proxy: Harness, channel: str = "trades", symbol: str = "AAPL", feed: str = "iex") -> tuple[int, Any]:
    """The status and the body of a request for a tap."""
    query = urlencode({"account": "main", "feed": feed, "channel": channel, "symbol": symbol})
    connection = http.client.HTTPConnection(*proxy.gateway.admin.address, timeout=5)
    connection.request("GET", f"/tap?{query}")
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, json.loads(body) if answer.status == 200 else body.strip()


def messages(proxy: Harness, **of: str) -> list[Any]:
    return [json.loads(message["text"]) for message in fetch(proxy, **of)[1]["messages"]]


@pytest.fixture
def every_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every message, however short the time between two."""
    monkeypatch.setattr(tap, "SPACING_SECONDS", 0.0)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_messages_are_shown_as_json(start: Start, every_message: None, codec: str) -> None:
    proxy = start(CLIENTS, config={"accounts": MAIN % codec})
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL", "MSFT"], quotes=["AAPL"])
    assert fetch(proxy) == (200, {"version": 1, "flows": True, "seen": 0, "messages": []})
    proxy.simulator.publish("iex", [trade("AAPL", 1), trade("MSFT", 2), quote("AAPL")])
    client.gather(3)
    assert messages(proxy) == [trade("AAPL", 1)]
    assert fetch(proxy)[1]["seen"] == 1


def test_all_symbols_of_a_channel(start: Start, every_message: None) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL", "MSFT"])
    fetch(proxy, symbol="*")
    for number, symbol in enumerate(("AAPL", "MSFT")):
        proxy.simulator.publish("iex", [trade(symbol, number)])
        client.gather(number + 1)
    assert messages(proxy, symbol="*") == [trade("AAPL", 0), trade("MSFT", 1)]


def test_a_tap_does_not_change_subscriptions_at_alpaca(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    assert fetch(proxy, symbol="MSFT")[1]["flows"] is False
    assert fetch(proxy, channel="quotes", symbol="*")[1]["flows"] is False
    assert fetch(proxy, symbol="*")[1]["flows"] is True
    upstream = proxy.upstream()
    assert upstream.reconciler.wanted == upstream.reconciler.acked == {("trades", "AAPL")}
    client.unsubscribe(trades=["AAPL"])
    assert upstream.reconciler.idle
    assert fetch(proxy)[1]["flows"] is False


def test_a_sample_is_bounded_in_rate_number_and_size(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    fetch(proxy)
    for number in range(50):
        proxy.simulator.publish("iex", [trade("AAPL", number)])
    client.gather(50)
    found = fetch(proxy)[1]
    assert found["seen"] == 50
    assert 1 <= len(found["messages"]) < 50
    monkeypatch.setattr(tap, "SPACING_SECONDS", 0.0)
    wait_for(lambda: len(client.data) == 50)
    while fetch(proxy)[1]["seen"] < 200:
        proxy.simulator.publish("iex", [trade("AAPL", 1, c=["x" * 5000])])
        client.gather(len(client.data) + 1)
    found = fetch(proxy)[1]
    assert len(found["messages"]) == tap.KEPT
    assert {len(message["text"]) for message in found["messages"]} == {tap.TEXT + 1}
    assert [message["number"] for message in found["messages"]] == list(range(181, 201))


def test_an_unused_tap_closes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "IDLE_SECONDS", 0.1)
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    router = proxy.upstream().router
    before = router.subscriptions()
    fetch(proxy)
    assert len(router.subscriptions()) == len(before) + 1
    wait_for(lambda: router.subscriptions() == before)
    proxy.publish("iex", "AAPL", 3)
    client.gather(3)
    assert fetch(proxy)[1]["seen"] == 0


def test_the_number_of_taps_is_bounded(start: Start) -> None:
    proxy = start(CLIENTS)
    proxy.client("alpha").subscribe(trades=["AAPL"])
    for number in range(tap.MAX_TAPS):
        assert fetch(proxy, symbol=f"S{number}")[0] == 200
    status, text = fetch(proxy, symbol="ONE-MORE")
    assert (status, text.split(";")[0]) == (503, f"All {tap.MAX_TAPS} taps are open")
    assert fetch(proxy, symbol="S0")[0] == 200  # a tap that is open stays open


def test_requests_that_are_refused(start: Start) -> None:
    proxy = start(CLIENTS)
    assert fetch(proxy)[0] == 404  # no session has subscribed to this feed
    proxy.client("alpha").subscribe(trades=["AAPL"])
    proxy.client("alpha", "/stream").listen("trade_updates")
    assert fetch(proxy, feed="trading", channel="trade_updates", symbol="*") == (
        403,
        "Order updates are private to their clients.",
    )
    for channel, symbol in (("", "AAPL"), ("news", "AAPL"), ("trades", ""), ("trades", "A" * 65)):
        status, text = fetch(proxy, channel=channel, symbol=symbol)
        assert (status, "trades, quotes, bars" in text) == (400, True)


def test_a_tap_continues_when_the_codec_of_its_feed_changes(start: Start, every_message: None) -> None:
    proxy = start(CLIENTS, config={"accounts": MAIN % "json"})
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    fetch(proxy)
    upstream = proxy.upstream()
    entry = proxy.gateway.config.accounts["main"]
    changed = entry.model_copy(update={"codec": {"iex": "msgpack"}})
    proxy.gateway.reload(proxy.gateway.config.model_copy(update={"accounts": {"main": changed}}))
    wait_for(lambda: upstream.connects == 2 and ("trades", "AAPL") in upstream.reconciler.acked)
    assert upstream.codec.name == "msgpack"
    proxy.simulator.publish("iex", [trade("AAPL", 7)])
    client.gather(1)
    assert fetch(proxy)[0] == 200
    proxy.simulator.publish("iex", [trade("AAPL", 8)])
    client.gather(2)
    assert trade("AAPL", 8) in messages(proxy)
    assert len(upstream.router.subscriptions()) == 2  # the client, and one tap
