"""The client protocol: events from Alpaca, requests to it, and the backoff."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.client_protocol import (
    OF_THE_CONNECTION,
    Backoff,
    ClientProtocol,
    Confirmed,
    Ignored,
    LoggedIn,
    Login,
    Refused,
    Send,
    client_protocol_for,
)
from proxy.alpaca.codec import JSON, MSGPACK, Codec
from proxy.alpaca.endpoints import endpoint

LOGIN = Login("main", "wss://127.0.0.1/v2/iex", "AKIA123456", "hush")
CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
TRADES, QUOTES = ("trades", "AAPL"), ("quotes", "*")
ORDERS, ACCOUNT = ("trade_updates", "*"), ("account_updates", "*")


def protocol_of(name: str, codec: Codec) -> ClientProtocol:
    feed = endpoint(name)
    assert feed is not None
    return client_protocol_for(feed, codec, LOGIN)


def decode(codec: Codec, payload: bytes) -> Any:
    return json.loads(payload) if codec is JSON else msgpack.unpackb(payload)


@CODECS
def test_log_in_to_market_data(codec: Codec) -> None:
    """Alpaca sends the first message."""
    feed = protocol_of("iex", codec)
    assert feed.opening() == []
    assert feed.text == (codec is JSON)
    event = feed.receive(codec.encode({"T": "success", "msg": "connected"}))
    assert isinstance(event, Send)
    assert decode(codec, event.payload) == {"action": "auth", "key": "AKIA123456", "secret": "hush"}
    assert feed.receive(codec.encode({"T": "success", "msg": "authenticated"})) == LoggedIn()


@CODECS
@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"T": "subscription", "trades": ["AAPL"]}, Confirmed()),
        ({"T": "subscription"}, Confirmed()),
        ({"T": "error", "code": 405, "msg": "symbol limit exceeded"}, Refused(405, "symbol limit exceeded")),
        ({"T": "error", "code": 406, "msg": None}, Refused(406, "")),
        ({"T": "error", "code": "405"}, Refused(500, "")),
        ({"T": "error"}, Refused(500, "")),
        ({"T": "success", "msg": "something new"}, Ignored()),
        ({"T": "success"}, Ignored()),
        ({"T": "t", "S": "AAPL"}, Ignored()),
        ({}, Ignored()),
        ([], Ignored()),
        (7, Ignored()),
        (None, Ignored()),
    ],
)
def test_events_of_market_data(codec: Codec, message: Any, event: object) -> None:
    assert protocol_of("iex", codec).receive(codec.encode(message)) == event


@CODECS
def test_requests_to_market_data(codec: Codec) -> None:
    feed = protocol_of("iex", codec)
    request = decode(codec, feed.request(True, (TRADES, ("trades", "A"), QUOTES), {("bars", "SPY")}))
    assert request == {"action": "subscribe", "trades": ["A", "AAPL"], "quotes": ["*"]}
    request = decode(codec, feed.request(False, (TRADES,), {TRADES, QUOTES}))
    assert request == {"action": "unsubscribe", "trades": ["AAPL"]}


def test_log_in_to_the_trading_stream() -> None:
    """The proxy sends the first message, in a text frame."""
    feed = protocol_of("trading", JSON)
    login = {"action": "authenticate", "data": {"key_id": "AKIA123456", "secret_key": "hush"}}
    assert [json.loads(payload) for payload in feed.opening()] == [login]
    assert feed.text


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}, LoggedIn()),
        ({"stream": "authorization", "data": {"action": "authenticate", "status": "authorized"}}, LoggedIn()),
        ({"stream": "authorization", "data": {"status": "unauthorized"}}, Refused(402, "unauthorized")),
        ({"stream": "authorization", "data": {"status": "exceeded"}}, Refused(406, "exceeded")),
        ({"stream": "authorization", "data": {}}, Refused(402, "unauthorized")),
        ({"stream": "listening", "data": {"streams": ["trade_updates"]}}, Confirmed()),
        ({"stream": "listening", "data": {"streams": []}}, Confirmed()),
        ({"stream": "listening", "data": {"error": "no"}}, Refused(409, "no")),
        (
            {"action": "error", "data": {"error_message": "internal server error"}},
            Refused(500, "internal server error"),
        ),
        ({"action": "error", "data": {}}, Refused(500, "")),
        ({"stream": "trade_updates", "data": {"event": "new"}}, Ignored()),
        ({"stream": "authorization", "data": None}, Ignored()),
        ({"stream": "authorization"}, Ignored()),
        ({"stream": ["listening"], "data": {}}, Ignored()),
        ([{"T": "success", "msg": "connected"}], Ignored()),
        (7, Ignored()),
    ],
)
def test_events_of_the_trading_stream(message: Any, event: object) -> None:
    assert protocol_of("trading", JSON).receive(json.dumps(message).encode()) == event


def test_requests_to_the_trading_stream() -> None:
    """`listen` always names all streams that are wanted."""
    feed = protocol_of("trading", JSON)

    def streams(payload: bytes) -> list[str]:
        request = json.loads(payload)
        assert request["action"] == "listen"
        return list(request["data"]["streams"])

    assert streams(feed.request(True, (ORDERS,), set())) == ["trade_updates"]
    assert streams(feed.request(True, (ACCOUNT,), {ORDERS})) == ["account_updates", "trade_updates"]
    assert streams(feed.request(False, (ORDERS,), {ORDERS, ACCOUNT})) == ["account_updates"]
    assert streams(feed.request(False, (ORDERS,), {ORDERS})) == []


@pytest.mark.parametrize(("name", "codec"), [("iex", JSON), ("iex", MSGPACK), ("trading", JSON)])
@given(body=st.binary(max_size=30))
def test_any_bytes_can_be_received(name: str, codec: Codec, body: bytes) -> None:
    protocol_of(name, codec).receive(body)


def test_codes_that_refuse_the_connection_and_not_a_request() -> None:
    assert sorted(OF_THE_CONNECTION) == [401, 402, 403, 404, 406, 407]


def test_the_repr_of_a_login_has_no_secret() -> None:
    text = repr(LOGIN)
    assert text == "<Login main …3456 at wss://127.0.0.1/v2/iex>"
    assert "hush" not in text


# Backoff


def _expected_waits(failures: list[tuple[bool, float]]) -> list[float]:
    """The bound is 1, 2, 4 … 30 s.

    A refusal raises the bound to at least 2 s, and is itself followed by a wait of at least 1 s.
    """
    bound, waits = 1.0, []
    for refused, drawn in failures:
        if refused:
            bound = max(bound, 2.0)
        waits.append(max(1.0 if refused else 0.0, drawn * bound))
        bound = min(2 * bound, 30.0)
    return waits


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=12))
def test_backoff_is_full_jitter_under_a_bound_that_doubles(failures: list[tuple[bool, float]]) -> None:
    drawn = iter([number for _, number in failures])
    backoff = Backoff(lambda: next(drawn))
    assert [backoff.next(refused=refused) for refused, _ in failures] == _expected_waits(failures)


def test_longest_waits() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next(refused=False) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    backoff.reset()
    assert [backoff.next(refused=True) for _ in range(6)] == [2, 4, 8, 16, 30, 30]


def test_shortest_waits() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.next(refused=False) for _ in range(3)] == [0, 0, 0]
    assert [backoff.next(refused=True) for _ in range(3)] == [1, 1, 1]
    assert Backoff.REFUSED == 300
