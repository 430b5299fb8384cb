"""Delivery of messages from the simulator through the whole proxy to clients."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgpack
import pytest

from tests.harness import STAMP, Harness, quote, trade, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: {trades: [AAPL], bars: ["*"]}}}
  beta: {key: beta, secret: beta, allow: {iex: {trades: [MSFT, "B*"], quotes: [AAPL]}}}
  all: {key: all, secret: all, allow: {iex: "*", crypto: "*", news: "*", opra: "*"}}
"""


def test_each_client_gets_its_subscription_and_nothing_else(start: Start) -> None:
    proxy = start(CLIENTS)
    alpha, beta = proxy.client("alpha"), proxy.client("beta")
    implied = {"corrections": ["AAPL"], "cancelErrors": ["AAPL"]}
    assert alpha.subscribe(trades=["AAPL"]) == {"trades": ["AAPL"], **implied}
    assert beta.subscribe(quotes=["AAPL"], trades=["MSFT"])["quotes"] == ["AAPL"]
    everything = [trade("AAPL", 1), quote("AAPL"), trade("MSFT", 2), quote("MSFT"), trade("AAPL", 3)]
    proxy.simulator.publish("iex", everything)
    assert alpha.receive() == [everything[0], everything[4]]
    assert beta.receive() == [everything[1], everything[2]]
    assert alpha.silent()
    assert beta.silent()


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_body_reaches_a_client_of_the_same_codec_byte_for_byte(start: Start, codec: str) -> None:
    """Spacing, encodings of numbers, escapes and the order of keys are kept."""
    proxy = start(CLIENTS, config=_with_codec(codec))
    client = proxy.client("all", codec=codec)
    client.subscribe(trades=["AAPL"])
    if codec == "json":
        bodies = [
            b'{"T":"t","S":"AAPL","p":1.50,"s":1e2,"x":"\\u003c","new": [1, {"a":null}],"t":"2023-04-06T11:54:26.1Z"}',
            b'{ "T" : "t", "i":9007199254740993, "S":"AAPL", "p":0.1000 }',
        ]
        frames = [b"[" + b",".join(bodies) + b"]", b"[" + bodies[1] + b"]"]
    else:
        stamp = b"\xa1t\xc7\x0c\xff" + bytes(12)  # a timestamp in its longest form
        bodies = [
            b"\x84\xa1T\xa1t\xa1S\xd9\x04AAPL\xa1i\xd3\x00\x00\x00\x00\x00\x00\x00\x07" + stamp,
            b"\x83\xa1T\xa1t\xa1S\xa4AAPL\xa1p\xca\x3f\xc0\x00\x00",
        ]
        frames = [b"\xdc\x00\x02" + b"".join(bodies), b"\x91" + bodies[1]]
    for frame in frames:
        proxy.simulator.publish_raw("iex", frame)
        client.receive()
        assert client.frames[-1] == frame


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_part_of_a_frame_keeps_its_bytes(start: Start, codec: str) -> None:
    proxy = start(CLIENTS, config=_with_codec(codec))
    client = proxy.client("all", codec=codec)
    client.subscribe(trades=["AAPL"])
    if codec == "json":
        matching, other = b'{ "T":"t", "S" : "AAPL","p":1.10}', b'{"T":"t","S":"MSFT","p":2}'
        frame, expected = b"[" + other + b" , " + matching + b"]", b"[" + matching + b"]"
    else:
        matching, other = b"\x82\xa1T\xa1t\xa1S\xd9\x04AAPL", b"\x82\xa1T\xa1t\xa1S\xa4MSFT"
        frame, expected = b"\x92" + other + matching, b"\x91" + matching
    proxy.simulator.publish_raw("iex", frame)
    client.receive()
    assert client.frames[-1] == expected


def test_a_json_client_of_a_msgpack_feed_gets_nanoseconds(start: Start) -> None:
    proxy = start(CLIENTS)
    client, native = proxy.client("all"), proxy.client("all", codec="msgpack")
    for subscriber in (client, native):
        subscriber.subscribe(trades=["*"], quotes=["*"])
    messages = [trade("AAPL", 9007199254740993), quote("SPY", t="2023-04-06T13:15:42.83540958Z"), quote("SPY", t=STAMP)]
    proxy.simulator.publish("iex", messages)
    assert client.receive() == messages
    assert list(client.data[0])[:2] == ["T", "S"]
    native.receive()
    assert [(m["t"].seconds, m["t"].nanoseconds) for m in native.data][1] == (1680786942, 835409580)


def test_a_msgpack_client_of_a_json_feed_gets_nanoseconds(start: Start) -> None:
    proxy = start(CLIENTS, config=_with_codec("json"))
    client = proxy.client("all", codec="msgpack")
    client.subscribe(trades=["*"])
    proxy.simulator.publish("iex", [trade("AAPL", 9007199254740993, p=3)])
    [message] = client.receive()
    assert message["t"] == msgpack.Timestamp(1680782066, 838232225)
    assert message["i"] == 9007199254740993
    assert isinstance(message["p"], int)
    assert next(iter(message)) == "T"


def test_wildcard_and_exact_get_each_message_once(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("all")
    client.subscribe(trades=["AAPL"])
    assert client.subscribe(trades=["*"])["trades"] == ["*", "AAPL"]
    proxy.simulator.publish("iex", [trade("AAPL", 1), trade("MSFT", 2)])
    assert client.receive() == [trade("AAPL", 1), trade("MSFT", 2)]
    assert client.unsubscribe(trades=["*"])["trades"] == ["AAPL"]
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    proxy.simulator.publish("iex", [trade("AAPL", 3), trade("MSFT", 4)])
    assert client.receive() == [trade("AAPL", 3)]
    assert client.silent()


def test_the_wildcard_of_another_adds_nothing(start: Start) -> None:
    proxy = start(CLIENTS)
    alpha, everyone = proxy.client("alpha"), proxy.client("all")
    alpha.subscribe(trades=["AAPL"])
    everyone.subscribe(trades=["*"])
    proxy.simulator.publish("iex", [trade("MSFT", 1), trade("AAPL", 2)])
    assert alpha.receive() == [trade("AAPL", 2)]
    assert everyone.receive() == [trade("MSFT", 1), trade("AAPL", 2)]


def test_corrections_and_cancel_errors_follow_the_trades(start: Start) -> None:
    proxy = start(CLIENTS)
    alpha, beta = proxy.client("alpha", codec="msgpack"), proxy.client("beta", codec="msgpack")
    alpha.subscribe(trades=["AAPL"])
    beta.subscribe(quotes=["AAPL"])
    correction = {"T": "c", "S": "AAPL", "oi": 1, "ci": 2}
    cancel = {"T": "x", "S": "AAPL", "i": 2, "a": "C"}
    proxy.simulator.publish("iex", [correction, cancel])
    assert alpha.receive() == [correction, cancel]
    assert beta.silent()


def test_an_article_is_delivered_once_by_its_symbols(start: Start) -> None:
    proxy = start(CLIENTS)
    some, everyone = proxy.client("all", "/v1beta1/news"), proxy.client("all", "/v1beta1/news")
    assert some.subscribe(news=["AAPL", "MSFT"]) == {"news": ["AAPL", "MSFT"]}
    assert everyone.subscribe(news=["*", "AAPL"]) == {"news": ["*", "AAPL"]}
    both = {"T": "n", "id": 1, "headline": "h", "created_at": STAMP, "updated_at": STAMP, "symbols": ["MSFT", "AAPL"]}
    other, untagged = both | {"id": 2, "symbols": ["SPY"]}, both | {"id": 3, "symbols": []}
    for article in (both, other, untagged):
        proxy.simulator.publish("news", [article])
    assert everyone.gather(3) == [both, other, untagged]
    assert some.receive() == [both]
    assert some.silent()


def test_options_use_msgpack_and_refuse_json(start: Start) -> None:
    proxy = start(CLIENTS)
    contract = "AAPL240315C00172500"
    default, explicit = proxy.client("all", "/v1beta1/opra"), proxy.client("all", "/v1beta1/opra", "msgpack")
    for client in (default, explicit):
        assert client.subscribe(quotes=[contract]) == {"quotes": [contract]}
    message = {"T": "t", "S": contract, "p": 2.84, "s": 1, "x": "N", "c": "S"}
    default.subscribe(trades=[contract])
    proxy.simulator.publish("opra", [message])
    assert default.receive() == [message]
    assert default.subscribe(quotes=["*"])["code"] == 413
    client = proxy.dial("/v1beta1/opra", "json")
    assert json.loads(client.ws.recv(timeout=5)) == [{"T": "success", "msg": "connected"}]
    [refusal] = client.ask({"action": "auth", "key": "all", "secret": "all"})
    assert (refusal["code"], refusal["msg"]) == (412, "option messages are only available in MsgPack format")


def test_feeds_do_not_mix(start: Start) -> None:
    proxy = start(CLIENTS)
    stocks, crypto = proxy.client("all"), proxy.client("all", "/v1beta3/crypto/us")
    stocks.subscribe(trades=["*"])
    crypto.subscribe(trades=["*"])
    proxy.simulator.publish("iex", [trade("AAPL", 1)])
    proxy.simulator.publish("crypto", [trade("BTC/USD", 1)])
    assert stocks.receive() == [trade("AAPL", 1)]
    assert crypto.receive() == [trade("BTC/USD", 1)]
    assert stocks.silent()
    assert crypto.silent()


@pytest.mark.parametrize(
    ("path", "feed"), [("/", "iex"), ("/iex", "iex"), ("/us", "crypto"), ("/v1beta2/crypto", "crypto")]
)
def test_the_paths_that_sdks_open(start: Start, path: str, feed: str) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("all", path + "?exchanges=CBSE")
    client.subscribe(trades=["AAPL"])
    assert proxy.simulator.subscribed(feed) == {"trades": {"AAPL"}}


def test_two_accounts_have_a_connection_each(start: Start) -> None:
    accounts = """\
  one: {{key: k1, secret: s1, data_url: "{url}", trading_url: "{url}"}}
  two: {{key: k2, secret: s2, data_url: "{url}", trading_url: "{url}", codec: {{iex: json}}}}"""
    clients = """
  alpha: {key: alpha, secret: alpha, account: one, allow: {iex: "*", trading: "*"}}
  beta: {key: beta, secret: beta, account: {default: two, trading: one}, allow: {iex: "*", trading: "*"}}
"""
    proxy = start(clients, config={"accounts": accounts}, keys={"k1": "s1", "k2": "s2"})
    alpha, beta = proxy.client("alpha"), proxy.client("beta")
    alpha.subscribe(trades=["AAPL"])
    beta.subscribe(trades=["MSFT"])
    assert sorted(peer.session.held["trades"].pop() for peer in proxy.simulator.connections("iex")) == ["AAPL", "MSFT"]
    proxy.simulator.publish("iex", [trade("AAPL", 1), trade("MSFT", 2)])
    assert alpha.receive() == [trade("AAPL", 1)]
    assert beta.receive() == [trade("MSFT", 2)]
    for key in ("alpha", "beta"):
        proxy.client(key, "/stream").listen("trade_updates")
    assert {account for account, feed in proxy.gateway.upstreams if feed == "trading"} == {"one"}
    assert proxy.simulator.peak("trading") == 1


def _with_codec(codec: str) -> dict[str, str]:
    return {"accounts": f'  main: {{{{key: key, secret: secret, data_url: "{{url}}", codec: {{{{iex: {codec}}}}}}}}}'}


def test_an_unknown_channel(start: Start) -> None:
    """A client that may have everything can subscribe to channels that Alpaca adds."""
    proxy = start(CLIENTS)
    everything, strict = proxy.client("all"), proxy.client("alpha")
    assert everything.subscribe(auctions=["AAPL"]) == {"auctions": ["AAPL"]}
    requests = [request for request in proxy.simulator.requests("iex") if request.get("action") == "subscribe"]
    assert [request["auctions"] for request in requests] == [["AAPL"]]
    refused = {"T": "error", "code": 409, "msg": "insufficient subscription: auctions AAPL"}
    assert strict.subscribe(auctions=["AAPL"]) == refused
    proxy.simulator.publish_raw("iex", msgpack.packb([{"T": "zz", "S": "AAPL", "new": 1}]))
    assert everything.receive() == [{"T": "zz", "S": "AAPL", "new": 1}]
    assert strict.silent()
