"""The event time of frames, in every format."""

from __future__ import annotations

import json
import struct

import pytest

from proxy.alpaca.codec import JSON, MSGPACK
from proxy.alpaca.event_time import event_time

SECONDS = 1680782066.838232225
TEXT = "2023-04-06T11:54:26.838232225Z"
TICK = b"\x91\x83\xa1T\xa1t\xa1S\xa4AAPL\xa1t"  # an array of one trade, up to its time


def in_json(*messages: dict[str, object]) -> bytes:
    return json.dumps(messages).encode()


@pytest.mark.parametrize("kind", ["t", "q", "o"])
def test_the_time_of_a_tick(kind: str) -> None:
    assert event_time(in_json({"T": kind, "S": "AAPL", "t": TEXT}), JSON) == pytest.approx(SECONDS)


@pytest.mark.parametrize(
    ("timestamp", "seconds"),
    [
        (b"\xd6\xff" + struct.pack(">I", 1680782066), 1680782066),
        (b"\xd7\xff" + struct.pack(">Q", 838232225 << 34 | 1680782066), SECONDS),
        (b"\xc7\x0c\xff" + struct.pack(">Iq", 838232225, 1680782066), SECONDS),
    ],
)
def test_msgpack_timestamps_of_every_length(timestamp: bytes, seconds: float) -> None:
    assert event_time(TICK + timestamp, MSGPACK) == pytest.approx(seconds, abs=1e-5)


def test_the_time_of_the_first_tick_is_used() -> None:
    """It has waited longest. Other kinds are skipped: their `t` differs in meaning."""
    bar = {"T": "b", "S": "AAPL", "t": "2020-01-01T00:00:00Z"}
    late = {"T": "t", "S": "MSFT", "t": "2023-04-06T11:54:27Z"}
    frame = in_json(bar, {"T": "q", "S": "AAPL", "t": TEXT}, late)
    assert event_time(frame, JSON) == pytest.approx(SECONDS)


@pytest.mark.parametrize("name", ["timestamp", "at"])
def test_the_time_of_an_order_update(name: str) -> None:
    update = {"stream": "trade_updates", "data": {"event": "fill", name: "2023-04-06T07:54:26.838232225-04:00"}}
    assert event_time(json.dumps(update).encode(), JSON) == pytest.approx(SECONDS)


@pytest.mark.parametrize(
    "frame",
    [
        in_json({"T": "b", "S": "AAPL", "t": TEXT}),
        in_json({"T": "subscription", "trades": []}),
        in_json({"T": "t", "S": "AAPL"}),
        in_json({"T": "t", "S": "AAPL", "t": 7}),
        in_json({"T": "t", "S": "AAPL", "t": "yesterday"}),
        b'{"stream":"listening","data":{"streams":[]}}',
        b'{"stream":"trade_updates","data":[]}',
        b'{"stream":"trade_updates","data":{"timestamp":null}}',
        b"[]",
        b"[1]",
        b"{",
        b"\xff",
        b"",
    ],
)
def test_frames_without_an_event_time(frame: bytes) -> None:
    assert event_time(frame, JSON) is None


@pytest.mark.parametrize("timestamp", [b"\x07", b"\xc7\x03\xffxyz", b"\xd6\x05time", b"\xc0", b""])
def test_msgpack_values_that_are_not_timestamps(timestamp: bytes) -> None:
    assert event_time(TICK + timestamp, MSGPACK) is None
