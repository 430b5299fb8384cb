"""Conversations with Alpaca about one feed: what is heard of its messages, what is said, how long is waited."""

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


def feed_of(name: str, codec: Codec) -> ClientProtocol:
    known = endpoint(name)
    assert known is not None
    return client_protocol_for(known, codec, LOGIN)


def reads(codec: Codec, payload: bytes) -> Any:
    return json.loads(payload) if codec is JSON else msgpack.unpackb(payload)


@CODECS
def test_logging_in_to_market_data(codec: Codec) -> None:
    """Alpaca speaks first."""
    feed = feed_of("iex", codec)
    assert feed.opening() == []
    assert feed.text == (codec is JSON)
    said = feed.receive(codec.encode({"T": "success", "msg": "connected"}))
    assert isinstance(said, Send)
    assert reads(codec, said.payload) == {"action": "auth", "key": "AKIA123456", "secret": "hush"}
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
def test_what_is_heard_of_market_data(codec: Codec, message: Any, event: object) -> None:
    assert feed_of("iex", codec).receive(codec.encode(message)) == event


@CODECS
def test_what_is_asked_of_market_data(codec: Codec) -> None:
    feed = feed_of("iex", codec)
    asked = reads(codec, feed.request(True, (TRADES, ("trades", "A"), QUOTES), {("bars", "SPY")}))
    assert asked == {"action": "subscribe", "trades": ["A", "AAPL"], "quotes": ["*"]}
    asked = reads(codec, feed.request(False, (TRADES,), {TRADES, QUOTES}))
    assert asked == {"action": "unsubscribe", "trades": ["AAPL"]}


def test_logging_in_to_the_trading_stream() -> None:
    """We speak first, in text."""
    feed = feed_of("trading", JSON)
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
def test_what_is_heard_of_the_trading_stream(message: Any, event: object) -> None:
    assert feed_of("trading", JSON).receive(json.dumps(message).encode()) == event


def test_what_is_asked_of_the_trading_stream() -> None:
    """`listen` names all that is wanted, every time."""
    feed = feed_of("trading", JSON)

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
def test_any_bytes_are_heard(name: str, codec: Codec, body: bytes) -> None:
    feed_of(name, codec).receive(body)


def test_some_refusals_are_of_the_connection_and_not_of_a_request() -> None:
    assert sorted(OF_THE_CONNECTION) == [401, 402, 403, 404, 406, 407]


def test_a_login_shows_no_secret() -> None:
    shown = repr(LOGIN)
    assert shown == "<Login main …3456 at wss://127.0.0.1/v2/iex>"
    assert "hush" not in shown


# How long to wait


def _in_plain_words(failures: list[tuple[bool, float]]) -> list[float]:
    """The bound is 1, 2, 4 … 30 s; a refusal makes it 2 s at least, and itself waits 1 s at least."""
    bound, waits = 1.0, []
    for refused, drawn in failures:
        if refused:
            bound = max(bound, 2.0)
        waits.append(max(1.0 if refused else 0.0, drawn * bound))
        bound = min(2 * bound, 30.0)
    return waits


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=12))
def test_full_jitter_under_a_bound_that_doubles(failures: list[tuple[bool, float]]) -> None:
    drawn = iter([number for _, number in failures])
    backoff = Backoff(lambda: next(drawn))
    assert [backoff.next(refused=refused) for refused, _ in failures] == _in_plain_words(failures)


def test_waits_at_their_longest() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next(refused=False) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    backoff.reset()
    assert [backoff.next(refused=True) for _ in range(6)] == [2, 4, 8, 16, 30, 30]


def test_waits_at_their_shortest() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.next(refused=False) for _ in range(3)] == [0, 0, 0]
    assert [backoff.next(refused=True) for _ in range(3)] == [1, 1, 1]
    assert Backoff.REFUSED == 300
