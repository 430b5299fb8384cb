"""Names and messages of programs of 2020.

They use alpacadatav1's stream names and messages on `/stream`, and crypto pairs without a slash.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from proxy.routing import reconciler
from tests.harness import BINARY, TEXT, Client, Harness, quote, trade, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  old: {key: old, secret: old, allow: {iex: {trades: [AAPL], quotes: ["*"], bars: ["*"]}}}
  pairs: {key: pairs, secret: pairs, allow: {crypto: {trades: [BTC/USD, ETH/USD]}}}
  both: {key: both, secret: both, allow: {iex: {trades: [AAPL]}, trading: "*"}}
  orders: {key: orders, secret: orders, allow: {trading: "*"}}
  newest: {key: newest, secret: newest, outbox: 256KiB, when_slow: conflate, allow: {iex: "*", trading: "*"}}
"""
TIME = "2026-01-02T15:04:05.123456789Z"
NANOSECONDS = 1767366245123456789
BAR = {
    "T": "b",
    "S": "SPY",
    "o": 1,
    "h": 2,
    "l": 0.5,
    "c": 1.5,
    "v": 7,
    "n": 3,
    "vw": 1.25,
    "t": "2026-01-02T15:04:00Z",
}


@pytest.fixture
def proxy(start: Start) -> Harness:
    return start(CLIENTS)


def streams(client: Client, action: str, *names: str) -> Any:
    return client.ask({"action": action, "data": {"streams": list(names)}})["data"]


def test_old_names_deliver_old_messages(proxy: Harness) -> None:
    client = proxy.client("old", "/stream")
    assert streams(client, "listen", "T.AAPL", "alpacadatav1/Q.SPY", "AM.*") == {"streams": ["AM.*", "Q.SPY", "T.AAPL"]}
    proxy.simulator.publish("iex", [trade("AAPL", 5, t=TIME), quote("SPY", t=TIME), BAR, trade("MSFT", 6)])
    (sale, quote_, bar) = (client.receive() for _ in range(3))
    assert sale["stream"] == "T.AAPL"
    assert sale["data"]["ev"] == "T"
    assert sale["data"]["T"] == "AAPL"
    assert sale["data"]["t"] == NANOSECONDS
    assert quote_["stream"] == "Q.SPY"
    assert {"x", "p", "s", "X", "P", "S", "c", "t"} <= set(quote_["data"])
    start = 1767366240000
    assert bar == {
        "stream": "AM.SPY",
        "data": {"ev": "AM", "T": "SPY", "s": start, "e": start + 60_000}
        | {key: BAR[key] for key in ("v", "o", "h", "l", "c", "vw", "n")},
    }
    assert client.ask({"action": "nothing"})["data"] == {"error": "invalid syntax"}  # and no MSFT before it


def test_data_of_old_names_comes_in_text_frames(proxy: Harness) -> None:
    """Replies and order updates on the same session stay in binary ones: marketstore ignores binary data."""
    wire = proxy.wire(path="/stream")
    login = {"action": "authenticate", "data": {"key_id": "both", "secret_key": "both"}}
    for request in (login, {"action": "listen", "data": {"streams": ["T.AAPL", "trade_updates"]}}):
        wire.send_json(request)
        assert wire.receive()[0] == BINARY
    proxy.simulator.publish("iex", [trade("AAPL", 5)])
    opcode, payload = wire.receive()
    assert (opcode, json.loads(payload)["stream"]) == (TEXT, "T.AAPL")
    proxy.simulator.publish_order({"event": "new", "order": {"id": "1", "client_order_id": "any"}})
    opcode, payload = wire.receive()
    assert (opcode, json.loads(payload)["stream"]) == (BINARY, "trade_updates")


def test_old_names_in_msgpack(proxy: Harness) -> None:
    """All frames are msgpack then, with the same structures."""
    client, other = proxy.client("both", "/stream", "msgpack"), proxy.client("both", "/stream")
    for each in (client, other):
        assert streams(each, "listen", "T.AAPL") == {"streams": ["T.AAPL"]}
    proxy.simulator.publish("iex", [trade("AAPL", 5, t=TIME)])
    message = client.receive()
    assert message == other.receive()
    assert (message["stream"], message["data"]["t"]) == ("T.AAPL", NANOSECONDS)


def test_listen_adds_old_names_and_unlisten_removes_them(proxy: Harness) -> None:
    client = proxy.client("both", "/stream")
    assert streams(client, "listen", "trade_updates") == {"streams": ["trade_updates"]}
    assert streams(client, "listen", "T.AAPL") == {"streams": ["T.AAPL", "trade_updates"]}
    assert streams(client, "unlisten", "T.AAPL") == {"streams": ["trade_updates"]}
    assert streams(client, "listen") == {"streams": []}


def test_old_names_are_refused_all_or_nothing(proxy: Harness) -> None:
    client = proxy.client("old", "/stream")
    refusal = streams(client, "listen", "T.AAPL", "T.TSLA")
    assert refusal["error"].startswith("insufficient subscription: ")
    assert "TSLA" in refusal["error"]
    assert streams(client, "listen", "Q.SPY") == {"streams": ["Q.SPY"]}
    other = proxy.client("orders", "/stream")
    assert streams(other, "listen", "T.AAPL")["error"].startswith("insufficient subscription: ")


def test_a_listen_that_alpaca_refuses_changes_nothing(start: Start) -> None:
    """Neither the old names nor the trading streams change."""
    proxy = start(CLIENTS)
    client = proxy.client("both", "/stream")
    assert streams(client, "listen", "trade_updates") == {"streams": ["trade_updates"]}
    proxy.simulator.refuse_symbols(["AAPL"])
    assert streams(client, "listen", "account_updates", "T.AAPL") == {"error": "symbol limit exceeded"}
    proxy.simulator.publish_order({"event": "new", "order": {"id": "1", "client_order_id": "any"}})
    assert client.receive()["stream"] == "trade_updates"
    proxy.simulator.refuse_symbols([])
    assert streams(client, "listen", "account_updates", "T.AAPL") == {"streams": ["T.AAPL", "account_updates"]}
    proxy.simulator.publish("iex", [trade("AAPL", 1)])
    assert client.receive()["stream"] == "T.AAPL"


def test_a_listen_on_two_silent_feeds_waits_once(proxy: Harness) -> None:
    """A request for orders and old names takes no longer than one for one feed."""
    client = proxy.client("both", "/stream")
    for feed in ("trading", "iex"):
        proxy.simulator.stall("subscribe", feed)
    began = time.monotonic()
    assert streams(client, "listen", "account_updates", "T.AAPL") == {"streams": ["T.AAPL", "account_updates"]}
    assert reconciler.ACK_SECONDS < time.monotonic() - began < 2.5


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("path", ["/v1beta1/crypto?exchanges=", "//v1beta1/crypto/"])
def test_pairs_without_a_slash(proxy: Harness, path: str, codec: str) -> None:
    client = proxy.client("pairs", path, codec)
    ack = client.subscribe(trades=["BTCUSD", "ETH/USD"])
    assert ack["trades"] == ["BTCUSD", "ETHUSD"]
    assert proxy.simulator.subscribed("crypto")["trades"] == {"BTC/USD", "ETH/USD"}
    proxy.simulator.publish("crypto", [trade("BTC/USD", 1), trade("ETH/USD", 2)])
    assert [message["S"] for message in client.gather(2)] == ["BTCUSD", "ETHUSD"]
    assert client.unsubscribe(trades=["BTC/USD"])["trades"] == ["ETHUSD"]
    assert client.subscribe(trades=["SOLUSD"])["msg"] == "insufficient subscription: trades SOLUSD"


def test_a_slow_client_that_conflates_gets_the_newest_quotes(proxy: Harness) -> None:
    """Of each symbol, one message a frame. No trade and no order update is left out, and all are in order."""
    witness = proxy.client("old", "/stream")
    streams(witness, "listen", "Q.SPY")
    wire = proxy.wire(path="/stream", buffer=4096)
    wire.send_json({"action": "authenticate", "data": {"key_id": "newest", "secret_key": "newest"}})
    wire.receive()
    for names in (["trade_updates"], ["Q.SPY", "T.SPY"]):
        wire.send_json({"action": "listen", "data": {"streams": names}})
        wire.receive()
    [session] = [one for one in proxy.gateway.server.sessions if one.name == "newest"]
    for number in range(1, 401):
        proxy.simulator.publish("iex", [quote("SPY", bs=number, c=["x" * 20_000])])
        if number % 100 == 0:
            proxy.simulator.publish("iex", [trade("SPY", number)])
            proxy.simulator.publish_order({"event": "new", "order": {"id": str(number)}})
        witness.receive()
    wait_for(lambda: session.outbox.conflated > 0)
    received: list[dict[str, Any]] = []
    while sum(message["stream"] != "Q.SPY" for message in received) < 8:
        received.append(json.loads(wire.receive()[1]))
    quotes = [message["data"]["s"] for message in received if message["stream"] == "Q.SPY"]
    assert quotes == sorted(set(quotes))
    assert quotes[-1] == 400
    assert len(quotes) < 400
    assert [message["data"]["i"] for message in received if message["stream"] == "T.SPY"] == [100, 200, 300, 400]
    orders = [message["data"]["order"]["id"] for message in received if message["stream"] == "trade_updates"]
    assert orders == ["100", "200", "300", "400"]
    assert session.outbox.closing is None
    wire.socket.close()
