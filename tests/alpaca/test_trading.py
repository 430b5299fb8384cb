"""Conversations of the trading dialect, and the names of 2020 in its grammar."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.alpaca.market import ERRORS
from proxy.alpaca.server_protocol import Authenticate, Listen, Unlisten
from tests.alpaca.conversation import MSGPACK, Conversation

NO_TOPICS: frozenset[tuple[str, str]] = frozenset()
UPDATES = frozenset({("trade_updates", "*")})
INVALID = {"stream": "listening", "data": {"error": "invalid syntax"}}


@pytest.mark.parametrize("path", ["/stream", "/stream/"])
@pytest.mark.parametrize("content_type", ["", "application/json", MSGPACK])
def test_from_silence_to_the_first_stream(path: str, content_type: str) -> None:
    """Nobody greets. JSON in binary frames, whatever was asked for."""
    client = Conversation(path, content_type)
    assert client.greeting == []
    assert not client.session.text
    login = {"action": "authenticate", "data": {"key_id": "K", "secret_key": "S"}}
    assert client.says(login) == Authenticate("K", "S")
    authorized = b'{"stream":"authorization","data":{"status":"authorized","action":"authenticate"}}'
    assert client.session.granted() == authorized
    assert client.listens("trade_updates") == Listen(UPDATES, NO_TOPICS)
    assert client.session.acked(UPDATES) == b'{"stream":"listening","data":{"streams":["trade_updates"]}}'
    assert client.reads(authorized) == client.says(login)  # once is enough


@pytest.mark.parametrize(
    ("request_", "key", "secret"),
    [
        ({"action": "auth", "key": "K", "secret": "S"}, "K", "S"),
        ({"action": "authenticate", "data": {"key_id": "K", "secret_key": "S", "more": 1}, "more": 1}, "K", "S"),
        ({"action": "authenticate", "data": {"oauth_token": "T"}}, "", ""),
        ({"action": "authenticate", "data": {"key_id": None, "secret_key": None}}, "", ""),
        ({"action": "auth"}, "", ""),
    ],
)
def test_ways_to_log_in(request_: Any, key: str, secret: str) -> None:
    assert Conversation("/stream").says(request_) == Authenticate(key, secret)


def test_who_is_denied_may_try_again() -> None:
    client = Conversation("/stream")
    for code in (402, 406, 409):
        unauthorized = b'{"stream":"authorization","data":{"status":"unauthorized","action":"authenticate"}}'
        assert client.session.denied(code) == unauthorized
        assert client.listens("trade_updates") == {
            "stream": "authorization",
            "data": {"status": "unauthorized", "action": "listen"},
        }
    assert client.logs_in().listens("trade_updates") == Listen(UPDATES, NO_TOPICS)


@pytest.mark.parametrize(
    "request_",
    [
        None,
        7,
        [],
        {},
        {"action": "listen"},
        {"action": "listen", "data": None},
        {"action": "listen", "data": {"streams": "trade_updates"}},
        {"action": "listen", "data": {"streams": [7]}},
        {"action": "listen", "data": ["trade_updates"]},
        {"action": "authenticate"},
        {"action": "authenticate", "data": "K"},
        {"action": "authenticate", "data": {"key_id": 7, "secret_key": "S"}},
        {"action": "subscribe", "trades": ["AAPL"]},
        {"action": ["listen"], "data": {"streams": []}},
    ],
)
def test_what_is_no_request(request_: Any) -> None:
    assert Conversation("/stream").says(request_) == INVALID
    assert Conversation("/stream").logs_in().says(request_) == INVALID


@pytest.mark.parametrize("frame", [b"", b"\x01", b"{", b"\xff"])
def test_what_is_no_json(frame: bytes) -> None:
    assert Conversation("/stream").sends(frame) == [INVALID]


def test_listen_replaces_and_what_is_unknown_is_absent() -> None:
    client = Conversation("/stream").logs_in()
    both = frozenset({("trade_updates", "*"), ("account_updates", "*")})
    assert client.listens("trade_updates", "account_updates", "nonsense") == Listen(both, NO_TOPICS)
    assert client.listens() == Listen(NO_TOPICS, NO_TOPICS)
    assert client.says({"action": "listen", "data": {}}) == Listen(NO_TOPICS, NO_TOPICS)
    assert client.listens("nonsense") == Listen(None, NO_TOPICS)
    assert client.session.acked(both) == (
        b'{"stream":"listening","data":{"streams":["account_updates","trade_updates"]}}'
    )
    assert client.session.acked(NO_TOPICS) == b'{"stream":"listening","data":{"streams":[]}}'


def test_the_names_of_2020_add_to_what_is_heard() -> None:
    client = Conversation("/stream").logs_in()
    bars = frozenset({("trades", "SPY"), ("quotes", "BRK.B"), ("bars", "*")})
    assert client.listens("T.SPY", "alpacadatav1/Q.BRK.B", "AM.*") == Listen(None, bars)
    assert client.listens("trade_updates", "T.SPY") == Listen(UPDATES, frozenset({("trades", "SPY")}))
    unlisten = {"action": "unlisten", "data": {"streams": ["trade_updates", "alpacadatav1/T.SPY"]}}
    assert client.says(unlisten) == Unlisten(UPDATES, frozenset({("trades", "SPY")}))
    assert client.session.acked(bars | UPDATES) == (
        b'{"stream":"listening","data":{"streams":["AM.*","Q.BRK.B","T.SPY","trade_updates"]}}'
    )


@pytest.mark.parametrize("stream", ["T.", "T", "X.SPY", "T.A*", "AM.**", f"Q.{'x' * 65}", "", ".", "alpacadatav1/"])
def test_what_is_no_stream(stream: str) -> None:
    assert Conversation("/stream").logs_in().listens(stream) == Listen(None, NO_TOPICS)


def test_there_are_no_codes() -> None:
    session = Conversation("/stream").session
    assert session.slow() == session.timed_out() == b""
    refusal = b'{"stream":"listening","data":{"error":"%b"}}'
    assert session.refused(405) == refusal % ERRORS[405].encode()
    assert session.refused(409, "insufficient subscription: T.TSLA") == refusal % b"insufficient subscription: T.TSLA"


def test_several_documents_in_one_message() -> None:
    client = Conversation("/stream").logs_in()
    asks = [client.writes({"action": "listen", "data": {"streams": streams}}) for streams in (["trade_updates"], [])]
    assert client.sends(b"".join(asks)) == [Listen(UPDATES, NO_TOPICS), Listen(NO_TOPICS, NO_TOPICS)]
