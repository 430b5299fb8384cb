"""Conflation drops outdated messages only, and keeps the order of the rest."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.codec import FRAME_BYTES, JSON, MSGPACK, Codec
from proxy.routing.conflation import FRAME_MESSAGES, conflate

SYMBOLS = st.sampled_from(("A", "B"))
MESSAGES = st.one_of(
    st.fixed_dictionaries({"T": st.sampled_from("tqbudsliczxo"), "S": SYMBOLS}),
    st.fixed_dictionaries({"T": st.just("n"), "symbols": st.lists(SYMBOLS, max_size=2)}),
)
FRAMES = st.lists(st.one_of(st.lists(MESSAGES, min_size=1, max_size=5), st.just([{"T": "subscription"}])), max_size=8)


def numbered(frames: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Add its position to each message, so that no two are equal."""
    count = iter(range(10_000))
    return [[message | {"i": next(count)} for message in frame] for frame in frames]


def decode(codec: Codec, frame: bytes) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = json.loads(frame) if codec is JSON else msgpack.unpackb(frame)
    return messages


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
@given(FRAMES, st.booleans())
def test_only_outdated_messages_are_dropped(codec: Codec, drawn: list[list[dict[str, Any]]], has_book: bool) -> None:
    frames = numbered(drawn)

    def whole_book(pair: str) -> bytes | None:
        return codec.encode({"T": "o", "S": pair, "r": True}) if has_book else None

    kept, dropped = conflate([codec.encode(frame) for frame in frames], codec, whole_book)
    before = [message for frame in frames for message in frame]
    after = [message for frame in kept for message in decode(codec, frame)]
    expected = []
    for at, message in enumerate(before):
        kind, later = (
            message["T"],
            [m for m in before[at + 1 :] if (m["T"], m.get("S")) == (message["T"], message.get("S"))],
        )
        if kind in ("q", "u", "d") and later:
            continue
        if kind == "o" and has_book and len([m for m in before if (m["T"], m.get("S")) == ("o", message["S"])]) > 1:
            if not later:
                expected.append({"T": "o", "S": message["S"], "r": True})
            continue
        expected.append(message)
    assert after == expected
    assert dropped == len(before) - len(after)
    for frame in kept:
        kinds = [message["T"] for message in decode(codec, frame)]
        assert kinds == ["subscription"] or "subscription" not in kinds


def test_frames_have_a_bounded_number_of_messages() -> None:
    many = [JSON.encode([{"T": "t", "S": "A", "i": number}]) for number in range(3 * FRAME_MESSAGES)]
    kept, dropped = conflate(many, JSON, lambda pair: None)
    assert ([len(json.loads(frame)) for frame in kept], dropped) == ([FRAME_MESSAGES] * 3, 0)


def test_payloads_that_are_not_arrays_are_returned_unchanged() -> None:
    """Such as the trading stream's objects."""
    payloads = [JSON.encode([{"T": "q", "S": "A"}]), b'{"stream":"trade_updates"}', JSON.encode([{"T": "q", "S": "A"}])]
    assert conflate(payloads, JSON, lambda pair: None) == (payloads, 0)


def test_frames_are_smaller_than_the_limit_of_the_sdks() -> None:
    """Python's SDKs close the connection at a message over 1 MiB."""
    news = [JSON.encode([{"T": "n", "id": number, "content": "x" * 20_000}]) for number in range(200)]
    kept, dropped = conflate(news, JSON, lambda pair: None)
    assert max(map(len, kept)) <= FRAME_BYTES
    assert ([message["id"] for frame in kept for message in json.loads(frame)], dropped) == ([*range(200)], 0)
