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
    SLOT_TAKEN,
    Acknowledged,
    Backoff,
    ClientProtocol,
    Ignored,
    LoggedIn,
    Login,
    Refused,
    Send,
    client_protocol_for,
)
from proxy.alpaca.codec import JSON, MSGPACK, Codec
from proxy.alpaca.endpoints import endpoint
from proxy.alpaca.topics import Topic

LOGIN = Login("main", "wss://127.0.0.1/v2/iex", "AKIA123456", "hush")
CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
TRADES, QUOTES = ("trades", "AAPL"), ("quotes", "*")
ORDERS, ACCOUNT = ("trade_updates", "*"), ("account_updates", "*")
BOTH = {"trade_updates", "account_updates"}


def protocol_of(name: str, codec: Codec, login: Login = LOGIN) -> ClientProtocol:
    feed = endpoint(name)
    assert feed is not None
    return client_protocol_for(feed, codec, login)


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
        (
            {"T": "subscription", "trades": ["AAPL", "SPY"], "quotes": ["*"], "bars": []},
            Acknowledged({("trades", "AAPL"), ("trades", "SPY"), QUOTES}, {"trades", "quotes", "bars"}),
        ),
        (
            {"T": "subscription", "trades": ["AAPL"], "corrections": ["AAPL"], "cancelErrors": ["AAPL"]},
            Acknowledged({TRADES}, {"trades"}),
        ),
        (
            {"T": "subscription", "news": ["*"], "invented": ["A"]},
            Acknowledged({("news", "*"), ("invented", "A")}, {"news", "invented"}),
        ),
        ({"T": "subscription", "trades": None, "quotes": 7, "bars": [7], "id": "x"}, Acknowledged(set(), set())),
        ({"T": "subscription"}, Acknowledged(set(), set())),
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


def test_log_in_with_an_oauth_token() -> None:
    """The trading stream takes the token under a name of its own, market data as any secret."""
    login = Login("main", "wss://127.0.0.1/stream", "oauth", "token")
    [payload] = protocol_of("trading", JSON, login).opening()
    assert json.loads(payload) == {"action": "authenticate", "data": {"oauth_token": "token"}}
    event = protocol_of("iex", JSON, login).receive(b'{"T":"success","msg":"connected"}')
    assert isinstance(event, Send)
    assert json.loads(event.payload) == {"action": "auth", "key": "oauth", "secret": "token"}


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}, LoggedIn()),
        ({"stream": "authorization", "data": {"action": "authenticate", "status": "authorized"}}, LoggedIn()),
        ({"stream": "authorization", "data": {"status": "unauthorized"}}, Refused(402, "unauthorized")),
        ({"stream": "authorization", "data": {"status": "exceeded"}}, Refused(406, "exceeded")),
        ({"stream": "authorization", "data": {}}, Refused(402, "unauthorized")),
        ({"stream": "listening", "data": {"streams": ["trade_updates"]}}, Acknowledged({ORDERS}, BOTH)),
        (
            {"stream": "listening", "data": {"streams": ["a", "trade_updates"], "error": None}},
            Acknowledged({ORDERS, ("a", "*")}, BOTH),
        ),
        ({"stream": "listening", "data": {"streams": []}}, Acknowledged(set(), BOTH)),
        ({"stream": "listening", "data": {"streams": "trade_updates"}}, Acknowledged(set(), set())),
        ({"stream": "listening", "data": {}}, Acknowledged(set(), set())),
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


# States of a subscription


@pytest.mark.parametrize(
    ("topics", "lacking"),
    [
        (set(), set()),
        ({TRADES}, set()),
        ({("trades", "SPY")}, {("trades", "SPY")}),
        ({QUOTES, ("quotes", "SPY")}, set()),
        ({("bars", "*"), ("bars", "SPY")}, {("bars", "*"), ("bars", "SPY")}),
        ({("lulds", "SPY"), TRADES, ("trades", "*")}, {("trades", "*")}),
    ],
)
def test_topics_that_a_state_lacks(topics: set[Topic], lacking: set[Topic]) -> None:
    """Symbols under a wildcard are not lacking, nor is a channel whose key the state does not have."""
    state = Acknowledged({TRADES, QUOTES}, {"trades", "quotes", "bars"})
    assert state.lacks(topics) == lacking


def test_a_stream_that_is_missing_from_listening_is_lacking() -> None:
    state = protocol_of("trading", JSON).receive(b'{"stream":"listening","data":{"streams":["trade_updates"]}}')
    assert isinstance(state, Acknowledged)
    assert state.lacks({ORDERS, ACCOUNT}) == {ACCOUNT}


# Errors in a frame of another codec


FOREIGN = b'[{"T":"error","code":412,"msg":"option messages are only available in MsgPack format"}]'


@CODECS
def test_an_error_in_a_json_frame(codec: Codec) -> None:
    error = protocol_of("iex", codec).foreign_error(FOREIGN)
    assert error == Refused(412, "option messages are only available in MsgPack format")
    assert protocol_of("iex", codec).foreign_error(b'[{"T":"error"}]') == Refused(500, "")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\x91\x81\xa1T\xa5error",
        FOREIGN[1:-1],
        b'[{"T":"t","S":"AAPL"}]',
        b'[{"T":"success","msg":"connected"}]',
        b'[{"T":"subscription","trades":["AAPL"]}]',
        b'[{"T":"error","code":1},{"T":"t"}]',
    ],
)
def test_any_other_frame_of_another_codec_is_no_error(frame: bytes) -> None:
    assert protocol_of("iex", MSGPACK).foreign_error(frame) is None


def test_the_trading_stream_has_one_codec() -> None:
    assert protocol_of("trading", JSON).foreign_error(FOREIGN) is None


@pytest.mark.parametrize("name", ["iex", "trading"])
@given(frame=st.binary(max_size=30))
def test_any_bytes_can_be_a_foreign_frame(name: str, frame: bytes) -> None:
    protocol_of(name, MSGPACK if name == "iex" else JSON).foreign_error(frame)


# Backoff

CODES = st.none() | st.sampled_from([401, 402, 404, 406, 429, 500, 503])


def _expected_waits(failures: list[tuple[int | None, float]]) -> list[float]:
    """The bound is 1, 2, 4 … s: to 5 while the network fails, to 30 while Alpaca refuses.

    402, 406 and 429 raise the bound to at least 2 s, and are followed by a wait of at least 1 s.
    """
    bound, waits = 1.0, []
    for code, drawn in failures:
        taken, most = code in (402, 406, 429), 5.0 if code is None else 30.0
        bound = min(max(bound, 2.0 if taken else 1.0), most)
        waits.append(max(1.0 if taken else 0.0, drawn * bound))
        bound = min(2 * bound, most)
    return waits


@given(st.lists(st.tuples(CODES, st.floats(0, 1)), max_size=12))
def test_backoff_is_full_jitter_under_a_bound_that_doubles(failures: list[tuple[int | None, float]]) -> None:
    drawn = iter([number for _, number in failures])
    backoff = Backoff(lambda: next(drawn))
    assert [backoff.next(code) for code, _ in failures] == _expected_waits(failures)


def test_longest_waits() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.next(None) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert [backoff.next(404) for _ in range(4)] == [5, 10, 20, 30]
    assert [backoff.next(None) for _ in range(2)] == [5, 5]
    for code in (402, 406, 429):
        backoff.reset()
        assert [backoff.next(code) for _ in range(6)] == [2, 4, 8, 16, 30, 30]
    backoff.reset()
    assert [backoff.next(404) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_shortest_waits() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.next(code) for code in (None, 404, None)] == [0, 0, 0]
    assert [backoff.next(code) for code in (402, 406, 429)] == [1, 1, 1]
    assert sorted(SLOT_TAKEN) == [402, 406, 429]
    assert Backoff.NOT_SERVED == 300
