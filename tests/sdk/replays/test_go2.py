"""Replay of the sessions of Go's SDK 2 (and of the data stream of 1.9), byte for byte."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sdk.replays.peers import AUTH, AUTHENTICATED, CONNECTED, GO, Dial, Go
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120)]

HEADERS = GO.replace("APCA-GO/3.9.0", "Go-http-client/1.1")
OF_1_9 = ("trades", "quotes", "bars")
OF_2 = (*OF_1_9, "dailyBars", "statuses", "lulds")


@pytest.mark.parametrize(
    ("path", "keys", "symbol"),
    [
        ("/v2/iex", OF_1_9, "AAPL"),
        ("/iex", OF_2, "AAPL"),  # with DATA_PROXY_WS
        ("//iex", OF_2, "AAPL"),  # with a slash at its end
        ("/v1beta1/crypto?exchanges=CBSE", OF_2, "BTCUSD"),  # with the path in DATA_CRYPTO_PROXY_WS, used as it is
    ],
)
def test_go2_starts_on_every_path_that_it_opens(
    stand: Stand, dial: Dial, path: str, keys: tuple[str, ...], symbol: str
) -> None:
    client = Go(dial(path, HEADERS))
    assert client.answer() == CONNECTED
    assert client.ask(AUTH) == AUTHENTICATED
    request: dict[str, Any] = {key: [symbol] if key == "trades" else None for key in keys}
    [ack] = client.ask(request | {"action": "subscribe"})
    assert ack["trades"] == [symbol]
    stream, feed = ("crypto", "crypto") if symbol == "BTCUSD" else ("stocks", "iex")
    wait_for(lambda: "trades" in stand.simulator.subscribed(feed), "nothing was subscribed")
    stand.simulator.publish(feed, [STREAMS[stream].channels["trades"](11)])
    [trade] = client.read()
    assert (trade["S"], int(trade["p"])) == (symbol, 11)
