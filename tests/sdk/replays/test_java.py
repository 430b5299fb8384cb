"""Replay of the Java SDK's sessions, byte for byte."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.sdk.replays.peers import AUTH, CONNECTED, JAVA, LOGIN_SECONDS, Dial, Json, check_trading_stream
from tests.sdk.stand import Stand

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    ("request_", "code", "msg"),
    [
        (AUTH | {"secret": "wrong"}, 402, "auth failed"),
        ({"action": "subscribe", "trades": ["AAPL"]}, 401, "not authenticated"),
    ],
)
def test_java_recognizes_refusals_by_their_text(dial: Dial, request_: dict[str, Any], code: int, msg: str) -> None:
    client = Json(dial("/v2/iex", JAVA))
    assert client.read() == CONNECTED
    assert client.ask(request_) == [{"T": "error", "code": code, "msg": msg}]


def test_java_resubscribes_to_the_acknowledged_topics(dial: Dial) -> None:
    """After a reconnect it requests the acknowledged topics, except implied channels."""
    client = Json(dial("/v2/iex", JAVA))
    client.start()
    [ack] = client.ask({"action": "subscribe", "trades": ["MSFT", "AAPL"], "bars": ["*"]})
    again = Json(dial("/v2/iex", JAVA))
    again.start()
    implied = ("T", "corrections", "cancelErrors")
    repeated = {channel: symbols for channel, symbols in ack.items() if symbols and channel not in implied}
    assert again.ask({"action": "subscribe", **repeated}) == [ack]


def test_javas_trading_has_text_requests_and_binary_replies(stand: Stand, dial: Dial) -> None:
    check_trading_stream(Json(dial("/stream", JAVA)), stand)


def test_java_gets_404_at_the_log_in_deadline(silent: tuple[float, Json]) -> None:
    """And no close frame: OkHttp would wait for its listener to answer that, and not every one does."""
    began, client = silent
    assert client.read() == CONNECTED
    assert client.read() == [{"T": "error", "code": 404, "msg": "auth timeout"}]
    with pytest.raises(EOFError):
        client.receive()
    assert time.monotonic() - began >= LOGIN_SECONDS - 1
