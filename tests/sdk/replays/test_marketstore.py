"""Replay of marketstore's session on the stream of 2020, byte for byte.

Once it has subscribed it ignores binary frames. It decodes exchanges and conditions as numbers, which today's feeds do
not have: of their messages it takes the minute bars.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness import TEXT
from tests.sdk.replays.peers import Dial, Peer
from tests.sdk.stand import Stand
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120)]

AUTHENTICATE = b'{"action":"authenticate","data":{"key_id":"algo","secret_key":"secret"}}'
LISTEN = b'{"action": "listen","data": {"streams": ["AM.AAPL"]}}'


class Marketstore(Peer):
    def exchange(self, request: bytes, expected: bytes) -> None:
        """Send a request in a text frame; the reply may be of either kind, and must contain a text."""
        self.wire.send(TEXT, request)
        assert expected in self.receive()[1]

    def next(self) -> dict[str, Any]:
        """The data of the next text frame."""
        while (frame := self.receive())[0] != TEXT:
            pass
        data: dict[str, Any] = json.loads(frame[1])["data"]
        return data


def test_marketstore_gets_its_bars(stand: Stand, dial: Dial) -> None:
    client = Marketstore(dial("/stream", ""))
    client.exchange(AUTHENTICATE, b'"authorized"')
    client.exchange(LISTEN, b"streams")
    stand.simulator.publish("iex", [STREAMS["stocks"].channels["bars"](13)])
    bar = client.next()
    assert bar["ev"] == "AM"
    assert (bar["T"], bar["o"], bar["h"], bar["l"], bar["c"]) == ("AAPL", 13.5, 13.75, 13, 13.25)
    assert all(isinstance(bar[field], int) for field in ("v", "s", "e"))
