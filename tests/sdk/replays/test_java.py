"""Java's conversation, byte for byte."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.harness import CLOSE
from tests.sdk.replays.peers import AUTH, CONNECTED, JAVA, LOGIN_SECONDS, Dial, Json, hears_an_order_update
from tests.sdk.stand import Stand

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    ("request_", "code", "msg"),
    [
        (AUTH | {"secret": "wrong"}, 402, "auth failed"),
        ({"action": "subscribe", "trades": ["AAPL"]}, 401, "not authenticated"),
    ],
)
def test_java_knows_refusals_by_their_text(dial: Dial, request_: dict[str, Any], code: int, msg: str) -> None:
    client = Json(dial("/v2/iex", JAVA))
    assert client.read() == CONNECTED
    assert client.ask(request_) == [{"T": "error", "code": code, "msg": msg}]


def test_java_subscribes_what_it_was_told_it_had(dial: Dial) -> None:
    """After a reconnect it sends the acknowledged state back, but for the channels that follow trades."""
    client = Json(dial("/v2/iex", JAVA))
    client.start()
    [ack] = client.ask({"action": "subscribe", "trades": ["MSFT", "AAPL"], "bars": ["*"]})
    again = Json(dial("/v2/iex", JAVA))
    again.start()
    followers = ("T", "corrections", "cancelErrors")
    repeated = {channel: symbols for channel, symbols in ack.items() if symbols and channel not in followers}
    assert again.ask({"action": "subscribe", **repeated}) == [ack]


def test_javas_trading_is_asked_in_text_and_answered_in_binary_frames(stand: Stand, dial: Dial) -> None:
    hears_an_order_update(Json(dial("/stream", JAVA)), stand)


def test_java_is_told_that_its_time_is_over(silent: tuple[float, Json]) -> None:
    began, client = silent
    assert client.read() == CONNECTED
    assert client.read() == [{"T": "error", "code": 404, "msg": "auth timeout"}]
    assert client.receive()[0] == CLOSE
    assert time.monotonic() - began >= LOGIN_SECONDS - 1
