"""Replay of the sessions of Go's SDK 1, byte for byte: order updates, and the stream names of 2020.

With DATA_PROXY_WS, its data stream opens `/stream` there too, and listens to one name in each request.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness import BINARY, TEXT
from tests.sdk.replays.peers import Dial, Json
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120)]

AUTHENTICATE = {"action": "authenticate", "data": {"key_id": "algo", "secret_key": "secret"}}


class Go1(Json):
    """It reads an object from each frame, text or binary."""

    def read(self) -> Any:
        opcode, payload = self.receive()
        assert opcode in (TEXT, BINARY)
        return json.loads(payload)

    def begin(self, *streams: str) -> None:
        """Authenticate, then listen to each stream without waiting for an acknowledgement."""
        assert self.ask(AUTHENTICATE)["data"]["status"] == "authorized"
        for stream in streams:
            self.send_json({"action": "listen", "data": {"streams": [stream]}})

    def next(self, stream: str) -> Any:
        """The data of the next message of a stream; others have no handler."""
        while (message := self.read())["stream"] != stream:
            pass
        return message["data"]


def test_go1_gets_its_order_updates(stand: Stand, dial: Dial) -> None:
    client = Go1(dial("/stream", ""))
    client.begin("trade_updates")
    assert client.next("listening") == {"streams": ["trade_updates"]}
    wait_for(lambda: "trade_updates" in stand.simulator.subscribed("trading"), "nothing was subscribed")
    update = STREAMS["trading"].channels["trade_updates"](7)
    stand.simulator.publish("trading", [update])
    assert client.next("trade_updates") == update["data"]


def test_go1_gets_its_market_data(stand: Stand, dial: Dial) -> None:
    client = Go1(dial("/stream", ""))
    client.begin("T.AAPL", "Q.AAPL", "AM.AAPL")
    while client.next("listening")["streams"] != ["AM.AAPL", "Q.AAPL", "T.AAPL"]:
        pass
    for channel, stream, price in (("trades", "T.AAPL", "p"), ("quotes", "Q.AAPL", "P"), ("bars", "AM.AAPL", "c")):
        stand.simulator.publish("iex", [STREAMS["stocks"].channels[channel](9)])
        data = client.next(stream)
        assert (data["T"], int(data[price])) == ("AAPL", 9)
        assert isinstance(data["s" if channel == "bars" else "t"], int)
    client.send_json({"action": "unlisten", "data": {"streams": ["T.AAPL"]}})
    assert client.next("listening") == {"streams": ["AM.AAPL", "Q.AAPL"]}
