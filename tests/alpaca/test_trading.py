"""The server protocol of the trading dialect, with the legacy stream names."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.alpaca.cooperative import run_to_end
from proxy.alpaca.market import ERRORS
from proxy.alpaca.server_protocol import Authenticate, Listen, Unlisten
from tests.alpaca.conversation import MSGPACK, Client

NO_TOPICS: frozenset[tuple[str, str]] = frozenset()
UPDATES = frozenset({("trade_updates", "*")})
INVALID = {"stream": "listening", "data": {"error": "invalid syntax"}}


@pytest.mark.parametrize("path", ["/stream", "/stream/"])
@pytest.mark.parametrize("content_type", ["", "application/json", MSGPACK])
def test_log_in_and_listen(path: str, content_type: str) -> None:
    """There is no greeting, and frames are binary, whatever the Content-Type."""
    client = Client(path, content_type)
    assert client.greeting == []
    assert not client.protocol.text
    login = {"action": "authenticate", "data": {"key_id": "K", "secret_key": "S"}}
    assert client.request(login) == Authenticate("K", "S")
    authorized = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
    assert client.decode(client.protocol.granted()) == authorized
    assert client.listen("trade_updates") == Listen(UPDATES, NO_TOPICS)
    assert client.decode(client.acked(UPDATES)) == {"stream": "listening", "data": {"streams": ["trade_updates"]}}
    assert client.request(login) == authorized  # a second log-in is acknowledged again


def test_replies_in_json_have_alpacas_bytes() -> None:
    protocol = Client("/stream").protocol
    authorized = b'{"stream":"authorization","data":{"status":"authorized","action":"authenticate"}}'
    assert protocol.granted() == authorized
    assert run_to_end(protocol.acked(UPDATES)) == b'{"stream":"listening","data":{"streams":["trade_updates"]}}'


@pytest.mark.parametrize("content_type", ["", MSGPACK])
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
def test_accepted_forms_of_log_in(request_: Any, key: str, secret: str, content_type: str) -> None:
    assert Client("/stream", content_type).request(request_) == Authenticate(key, secret)


def test_a_denied_client_can_log_in_again() -> None:
    client = Client("/stream")
    for code in (402, 406, 409):
        unauthorized = b'{"stream":"authorization","data":{"status":"unauthorized","action":"authenticate"}}'
        assert client.protocol.denied(code) == unauthorized
        assert client.listen("trade_updates") == {
            "stream": "authorization",
            "data": {"status": "unauthorized", "action": "listen"},
        }
    assert client.log_in().listen("trade_updates") == Listen(UPDATES, NO_TOPICS)


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
@pytest.mark.parametrize("content_type", ["", MSGPACK])
def test_invalid_requests(request_: Any, content_type: str) -> None:
    assert Client("/stream", content_type).request(request_) == INVALID
    assert Client("/stream", content_type).log_in().request(request_) == INVALID


@pytest.mark.parametrize("frame", [b"", b"\x01", b"{", b"\xff"])
def test_invalid_json(frame: bytes) -> None:
    assert Client("/stream").send(frame) == [INVALID]


def test_listen_replaces_the_streams_and_leaves_out_unknown_ones() -> None:
    client = Client("/stream").log_in()
    both = frozenset({("trade_updates", "*"), ("account_updates", "*")})
    assert client.listen("trade_updates", "account_updates", "nonsense") == Listen(both, NO_TOPICS)
    assert client.listen() == Listen(NO_TOPICS, NO_TOPICS)
    assert client.request({"action": "listen", "data": {}}) == Listen(NO_TOPICS, NO_TOPICS)
    assert client.listen("nonsense") == Listen(None, NO_TOPICS)
    assert client.acked(both) == (b'{"stream":"listening","data":{"streams":["account_updates","trade_updates"]}}')
    assert client.acked(NO_TOPICS) == b'{"stream":"listening","data":{"streams":[]}}'


def test_listen_adds_legacy_streams() -> None:
    client = Client("/stream").log_in()
    bars = frozenset({("trades", "SPY"), ("quotes", "BRK.B"), ("bars", "*")})
    assert client.listen("T.SPY", "alpacadatav1/Q.BRK.B", "AM.*") == Listen(None, bars)
    assert client.listen("trade_updates", "T.SPY") == Listen(UPDATES, frozenset({("trades", "SPY")}))
    unlisten = {"action": "unlisten", "data": {"streams": ["trade_updates", "alpacadatav1/T.SPY"]}}
    assert client.request(unlisten) == Unlisten(UPDATES, frozenset({("trades", "SPY")}))
    assert client.acked(bars | UPDATES) == (
        b'{"stream":"listening","data":{"streams":["AM.*","Q.BRK.B","T.SPY","trade_updates"]}}'
    )


@pytest.mark.parametrize("stream", ["T.", "T", "X.SPY", "T.A*", "AM.**", f"Q.{'x' * 65}", "", ".", "alpacadatav1/"])
def test_invalid_stream_names(stream: str) -> None:
    assert Client("/stream").log_in().listen(stream) == Listen(None, NO_TOPICS)


def test_refusals_have_texts_and_no_codes() -> None:
    protocol = Client("/stream").protocol
    assert protocol.slow() == protocol.timed_out() == b""
    refusal = b'{"stream":"listening","data":{"error":"%b"}}'
    assert protocol.refused(405) == refusal % ERRORS[405].encode()
    assert protocol.refused(409, "insufficient subscription: T.TSLA") == refusal % b"insufficient subscription: T.TSLA"


def test_several_requests_in_one_message() -> None:
    client = Client("/stream").log_in()
    requests = [
        client.encode({"action": "listen", "data": {"streams": streams}}) for streams in (["trade_updates"], [])
    ]
    assert client.send(b"".join(requests)) == [Listen(UPDATES, NO_TOPICS), Listen(NO_TOPICS, NO_TOPICS)]
