"""Replay of the C# SDK's sessions, byte for byte."""

from __future__ import annotations

import pytest

from tests.harness import PONG
from tests.sdk.replays.peers import (
    AUTH,
    AUTHENTICATED,
    CONNECTED,
    CSHARP,
    STOCK_KEYS,
    CSharp,
    Dial,
    Go,
    check_trading_stream,
)
from tests.sdk.stand import Stand
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120)]


def test_csharp_subscribes_in_chunks(dial: Dial) -> None:
    """It sends a hundred symbols in each message, without waiting for replies."""
    client = CSharp(dial("/v2/iex", CSHARP))
    client.start()
    symbols = [f"C{number:03}" for number in range(500)]
    for start in range(0, 500, 100):
        client.send_json({"action": "subscribe", "trades": symbols[start : start + 100]})
    acks = [client.read() for _ in range(5)]
    assert all(len(ack) == 1 and set(ack[0]) == {"T", *STOCK_KEYS} for ack in acks)
    assert acks[-1][0]["trades"] == acks[-1][0]["corrections"] == symbols


def test_csharp_sends_large_requests_in_fragments(dial: Dial) -> None:
    client = CSharp(dial("/v2/iex", CSHARP))
    client.start()
    symbols = [f"{'LONG' * 12}{number:03}" for number in range(100)]
    assert client.ask({"action": "subscribe", "quotes": symbols})[0]["quotes"] == symbols


def test_csharp_may_put_two_requests_into_one_message(dial: Dial) -> None:
    client = CSharp(dial("/v2/iex", CSHARP))
    client.start()
    client.send_json({"action": "subscribe", "quotes": ["AAPL"]}, {"action": "subscribe", "trades": ["MSFT"]})
    assert client.read()[0]["quotes"] == ["AAPL"]
    [ack] = client.read()
    assert (ack["quotes"], ack["trades"]) == (["AAPL"], ["MSFT"])


def test_csharp_logs_in_again_after_401(dial: Dial) -> None:
    client = CSharp(dial("/v2/iex", CSHARP))
    assert client.read() == CONNECTED
    assert client.ask({"action": "subscribe", "trades": ["AAPL"]})[0]["code"] == 401
    assert client.ask(AUTH) == AUTHENTICATED
    assert client.ask(AUTH)[0]["code"] == 403


def test_csharps_unsolicited_pongs_are_ignored(dial: Dial) -> None:
    client = CSharp(dial("/v1beta3/crypto/us?exchanges=CBSE,FTXU", CSHARP))
    client.start()
    client.wire.send(PONG, b"")
    assert client.ask({"action": "subscribe", "quotes": ["BTC/USD"]})[0]["quotes"] == ["BTC/USD"]


def test_csharp_gets_options_in_msgpack_by_default(stand: Stand, dial: Dial) -> None:
    client = Go(dial("/v1beta1/indicative", CSHARP))
    assert client.answer() == CONNECTED
    assert client.ask(AUTH) == AUTHENTICATED
    symbol = STREAMS["options"].symbol
    assert client.ask({"action": "subscribe", "quotes": [symbol]})[0]["quotes"] == [symbol]
    stand.simulator.publish("indicative", [STREAMS["options"].channels["quotes"](3)])
    assert client.read()[0]["bp"] == 3.46


def test_csharps_trading_is_json_in_binary_frames(stand: Stand, dial: Dial) -> None:
    check_trading_stream(CSharp(dial("/stream", CSHARP)), stand)
