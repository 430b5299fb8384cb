"""Frames split and joined, checked against `json` and the msgpack library."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.codec import FRAME_BYTES, JSON, MAX_DOCUMENTS, MSGPACK, Codec, Malformed
from proxy.alpaca.cooperative import run_to_end
from tests.alpaca.bodies import JSON_VALUES, MSGPACK_VALUES, json_bodies, msgpack_bodies

CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)


def plain(codec: Codec, data: bytes) -> Any:
    """Decode with a library that the proxy does not use."""
    if codec is JSON:
        return json.loads(data)
    return msgpack.unpackb(data, strict_map_key=False, timestamp=0)


def requests(codec: Codec, data: bytes) -> list[dict[str, Any]]:
    """Return the objects in one message of a client, decoded."""
    objects = run_to_end(codec.requests(data))
    return [{key: plain(codec, bytes(value)) for key, value in fields.items()} for fields in objects]


def header(codec: Codec, count: int) -> bytes:
    return b"[" if codec is JSON else b"\xdc" + count.to_bytes(2, "big")


def framed(codec: Codec, bodies: list[bytes], space: bytes = b"") -> bytes:
    """A frame with white space wherever JSON allows it.

    In msgpack, the array has the longer form.
    """
    if codec is JSON:
        return space + b"[" + space + (space + b"," + space).join(bodies) + space + b"]" + space
    return header(codec, len(bodies)) + b"".join(bodies)


def head_of(message: Any) -> tuple[str, str]:
    """`T` and `S`; both empty if either is not text."""
    if not isinstance(message, dict):
        return "", ""
    kind, symbol = message.get("T", ""), message.get("S", "")
    return (kind, symbol) if isinstance(kind, str) and isinstance(symbol, str) else ("", "")


BODIES = {JSON: json_bodies() | JSON_VALUES.map(str.encode), MSGPACK: msgpack_bodies() | MSGPACK_VALUES}


@CODECS
@given(data=st.data())
def test_bodies_keep_their_bytes(codec: Codec, data: st.DataObject) -> None:
    """All bodies of a frame, and any subset in their order."""
    bodies = data.draw(st.lists(BODIES[codec], max_size=5))
    frame = framed(codec, bodies, data.draw(st.sampled_from([b"", b" ", b"\r\n\t"])))
    raws, heads = codec.split(frame)
    assert [bytes(raw) for raw in raws] == bodies
    assert [(head.T, head.S) for head in heads] == [head_of(plain(codec, body)) for body in bodies]

    chosen = [raw for raw in raws if data.draw(st.booleans())]
    joined = codec.join(chosen)
    assert [bytes(raw) for raw in codec.split(joined)[0]] == [bytes(raw) for raw in chosen]
    assert repr(plain(codec, joined)) == repr(
        [plain(codec, bytes(raw)) for raw in chosen]
    )  # in repr, nan equals itself


@pytest.mark.parametrize("count", [0, 1, 15, 16, 0xFFFF, 0x10000])
def test_arrays_of_any_length(count: int) -> None:
    assert plain(JSON, JSON.join([b"1"] * count)) == [1] * count
    assert plain(MSGPACK, MSGPACK.join([b"\x01"] * count)) == [1] * count


DECODERS: list[Callable[[Codec, bytes], object]] = [
    Codec.split,
    Codec.head,
    Codec.fields,
    Codec.control,
    Codec.envelope,
    Codec.text_of,
    Codec.texts_of,
    Codec.integer_of,
    Codec.items_of,
    Codec.fields_of,
    Codec.news_symbols,
    lambda codec, data: requests(codec, data),
]


@CODECS
@given(data=st.data())
def test_any_bytes_are_decoded_or_malformed(codec: Codec, data: st.DataObject) -> None:
    frame = data.draw(st.binary(max_size=40) | st.lists(BODIES[codec], max_size=3).map(lambda b: framed(codec, b)))
    at = data.draw(st.integers(0, len(frame)))
    damaged = frame[:at] + data.draw(st.binary(max_size=3)) + frame[at + data.draw(st.integers(0, 3)) :]
    for decoder in DECODERS:
        try:
            decoder(codec, damaged)
        except Malformed:
            continue


@CODECS
@pytest.mark.parametrize("levels", [900, 100_000])
def test_deep_nesting(codec: Codec, levels: int) -> None:
    opening, closing = (b"[", b"]") if codec is JSON else (b"\x91", b"")
    frame = opening * levels + (b"1" if codec is JSON else b"\x01") + closing * levels
    for decoder in DECODERS:
        try:
            decoder(codec, frame)
        except Malformed:
            continue


@CODECS
@pytest.mark.parametrize(
    "value", [None, True, 7, 1.5, "text", {}, {"T": "t", "S": "AAPL"}, {"T": "subscription", "trades": []}]
)
def test_a_data_frame_that_is_not_an_array_is_malformed(codec: Codec, value: Any) -> None:
    with pytest.raises(Malformed):
        codec.split(codec.encode(value))


def test_the_last_of_two_equal_keys_is_used() -> None:
    """As in every SDK's decoder."""
    [head] = JSON.split(b'[{"T":"q","S":"A","T":"t","S":"B"}]')[1]
    assert (head.T, head.S) == ("t", "B")
    [head] = MSGPACK.split(b"\x91\x83\xa1T\xa1q\xa1S\xa1A\xa1T\xa1t")[1]
    assert (head.T, head.S) == ("t", "A")


@CODECS
def test_a_message_with_an_invalid_head_does_not_affect_the_others(codec: Codec) -> None:
    messages = [{"T": "t", "S": "AAPL"}, {"T": 7, "S": "AAPL"}, 7, {"T": "q", "S": None}, {"S": "SPY", "T": "q"}, []]
    raws, heads = codec.split(codec.encode(messages))
    assert [(head.T, head.S) for head in heads] == [("t", "AAPL"), ("", ""), ("", ""), ("", ""), ("q", "SPY"), ("", "")]
    assert [plain(codec, bytes(raw)) for raw in raws] == messages


@CODECS
@pytest.mark.parametrize(
    ("news", "symbols"),
    [
        ({"T": "n", "symbols": ["AAPL", "SPY"]}, ["AAPL", "SPY"]),
        ({"T": "n", "symbols": []}, []),
        ({"T": "n"}, []),
        ({"T": "n", "symbols": None}, []),
        ({"T": "n", "symbols": "AAPL"}, []),
        ({"T": "n", "symbols": ["AAPL", 7]}, []),
        (7, []),
    ],
)
def test_news_symbols(codec: Codec, news: Any, symbols: list[str]) -> None:
    assert list(codec.news_symbols(codec.encode(news))) == symbols


@CODECS
def test_fields_returns_undecoded_values(codec: Codec) -> None:
    fields = codec.fields(codec.encode({"T": "t", "p": 1.5}))
    assert {key: bytes(raw) for key, raw in fields.items()} == {"T": codec.encode("t"), "p": codec.encode(1.5)}
    with pytest.raises(Malformed):
        codec.fields(codec.encode([1]))


@CODECS
@given(sizes=st.lists(st.sampled_from([10, 1000, 200_000, 300_000, FRAME_BYTES + 1]), min_size=1, max_size=8))
def test_batches_have_a_bounded_size(codec: Codec, sizes: list[int]) -> None:
    """Python's SDKs refuse a message over 1 MiB.

    A body that is larger than the bound has a frame of its own.
    """
    bodies = [codec.encode("x" * size) for size in sizes]
    batched = []
    for payload, count in codec.batches(bodies):
        raws, _ = codec.split(payload)
        assert len(raws) == count
        assert count == 1 or len(payload) <= FRAME_BYTES
        batched += [bytes(raw) for raw in raws]
    assert batched == bodies


def test_several_objects_in_one_message() -> None:
    """The C# SDK coalesces rapid calls. White space is allowed between the objects."""
    assert requests(JSON, b'{"a":1}{"b":2}') == [{"a": 1}, {"b": 2}]
    assert requests(JSON, b' {"a":{"x":"}"}} \r\n\t {"b":"\\"}{"}{}') == [{"a": {"x": "}"}}, {"b": '"}{'}, {}]
    assert requests(MSGPACK, b"\x81\xa1a\x01") == [{"a": 1}]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"  ",
        b"{",
        b"}{",
        b"[]",
        b"7",
        b'{"a":1}{',
        b'{"a":1},{"b":2}',
        b'{"a":1}[2]',
        b'{"a":1}"x"',
        b'{"a":NaN}{}',
        b'{"a":"}{}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000 + b"]" * 100_000 + b"{}",
        b'{"a":' * 100_000 + b"{}" + b"}" * 100_000 + b"{}",
        b"1" * 10_000 + b" {}",
    ],
)
def test_invalid_requests(message: bytes) -> None:
    with pytest.raises(Malformed):
        requests(JSON, message)


@pytest.mark.parametrize(
    "message",
    [
        b"{}" * 500_000,
        b'{"a":' + b"{}," * 300_000 + b"{}",
        b'{}{"' + b'\\"' * 500_000,
        b'{}{"' + b"\\" * 999_999,
        b'{"":"' * 200_000,
    ],
)
def test_the_time_to_refuse_a_message_is_linear_in_its_length(message: bytes) -> None:
    """Not quadratic: refusing a megabyte takes far less than the bound here."""
    began = time.process_time()
    with pytest.raises(Malformed):
        requests(JSON, message)
    assert time.process_time() - began < 1.0


def test_one_message_has_a_bounded_number_of_objects() -> None:
    """Since each of them is answered."""
    assert len(requests(JSON, b"{} " * 64)) == 64
    with pytest.raises(Malformed):
        requests(JSON, b"{} " * (MAX_DOCUMENTS + 1))
    with pytest.raises(Malformed):
        requests(MSGPACK, b"\x80\x80")


@CODECS
def test_values_by_their_type(codec: Codec) -> None:
    """A value of another type is not an error: the caller decides."""
    values: list[Any] = [None, True, 7, 1.5, "text", [], ["a", "b"], [1], {}, {"a": 1}]
    encoded = [codec.encode(value) for value in values]
    assert [codec.text_of(value) for value in encoded] == [None] * 4 + ["text"] + [None] * 5
    assert [codec.integer_of(value) for value in encoded] == [None, None, 7] + [None] * 7
    assert [codec.texts_of(value) for value in encoded] == [None] * 5 + [[], ["a", "b"], None, None, None]
    assert [len(codec.items_of(value)) for value in encoded] == [0, 0, 0, 0, 0, 0, 2, 1, 0, 0]
    assert [codec.fields_of(value) is not None for value in encoded] == [False] * 8 + [True, True]
    assert [codec.is_array(value) for value in encoded] == [False] * 5 + [True] * 3 + [False, False]
    assert [codec.is_null(value) for value in encoded] == [True] + [False] * 9
    assert codec.text_of(None) is codec.text_of(b"") is codec.fields_of(None) is None


def test_reprs_and_content_types() -> None:
    assert [repr(codec) for codec in (JSON, MSGPACK)] == ["<Codec json>", "<Codec msgpack>"]
    assert [(codec.text, codec.content_type) for codec in (JSON, MSGPACK)] == [
        (True, "application/json"),
        (False, "application/msgpack"),
    ]
