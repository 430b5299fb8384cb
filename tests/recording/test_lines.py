"""Lines: a body is had back byte for byte, whatever it holds; a line stays one line."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.codec import JSON, MSGPACK, Codec, JsonCodec
from proxy.alpaca.endpoints import endpoint
from proxy.alpaca.topics import Subscription
from proxy.recording import lines
from proxy.recording.lines import LINES
from proxy.recording.timeline import recorded
from proxy.routing.allowlists import SymbolPatterns
from proxy.routing.router import Router
from proxy.simulator import wire
from tests.recording.recordings import MORNING

IEX = endpoint("iex")
CHANNELS = ("trades", "quotes", "bars", "statuses")
EVERYTHING = SymbolPatterns(["*"])

# JSON values as text: with every escape, numbers of any size, nanoseconds, texts that are not UTF-8, deep ones.
TEXTS = st.one_of(
    st.text(max_size=8).map(lambda text: json.dumps(text).encode()),
    st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b'"\xff\xfe"', b'"\\u0000\\ud83d\\ude00"', b'"{\\"at\\":1,"', b'"\\n{"', b'"2023-04-06T13:15:42.83540958Z"']
    ),
)
NUMBERS = st.sampled_from(
    [
        b"0",
        b"-0",
        b"1e400",
        b"1E+2",
        b"1.10",
        b"123456789012345678901234567890",
        b"9007199254740993",
        b"1764340200123456789",
    ]
)
VALUES = st.recursive(
    st.one_of(TEXTS, NUMBERS, st.sampled_from([b"true", b"null", b"[ ]", b"{}"])),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: b"[" + b" , ".join(items) + b"]"),
    max_leaves=4,
)
KEYS = st.sampled_from([b'"p"', b'"t"', b'"at"', b'"recording"', b'"T2"', b'"\\u0054x"', b'"c"'])
KINDS = st.sampled_from([b'"t"', b'"q"', b'"b"', b'"zz"', b'"T"', b'"\\u0074"', b'"gap"'])
SYMBOLS = st.sampled_from([b'"AAPL"', b'"A B"', b'"\\u0041"', b'"BRK.B"'])


@st.composite
def odd_bodies(draw: st.DrawFn) -> bytes:
    """A message with a kind and a symbol, and anything else, in any order and with blanks that JSON allows."""
    pairs = [(b'"T"', draw(KINDS)), (b'"S"', draw(SYMBOLS)), *draw(st.lists(st.tuples(KEYS, VALUES), max_size=4))]
    blank = draw(st.sampled_from([b"", b" ", b"\t"]))
    inside = (blank + b",").join(blank + key + b":" + value for key, value in draw(st.permutations(pairs)))
    return b"{" + inside + blank + b"}"


class Receiver:
    """A member of the router."""

    def __init__(self, codec: Codec) -> None:
        self.name = codec.name
        self.codec = codec
        self.accepts_unknown = EVERYTHING
        self.outages = 0
        self.payloads: list[bytes] = []

    def put(self, payload: bytes, messages: int) -> None:
        self.payloads.append(payload)

    def abort(self) -> None:
        raise AssertionError


def routed(source: Codec, frame: bytes, *codecs: Codec) -> list[list[bytes]]:
    """What members with these codecs, which hold everything, get of a frame."""
    assert IEX is not None
    router = Router(IEX, source)
    held: Subscription = frozenset((channel, "*") for channel in CHANNELS)
    members = [Receiver(codec) for codec in codecs]
    for member in members:
        router.set_subscription(member, held)
    router.take(frame)
    for delivery in router.flush():
        for member in delivery.members:
            member.put(delivery.payload, delivery.messages)
    return [member.payloads for member in members]


def through_a_file(payloads: list[bytes]) -> list[wire.Recorded]:
    """The messages that a replay has of what the recorder was given."""
    text = b"".join(lines.stamped(payload, MORNING) for payload in payloads)[1:] + b"\n"
    assert all(line.startswith(b'{"at":') for line in text.splitlines() if b"\r" not in text and b"\x0b" not in text)
    return [recorded("iex", line.body) for line in lines.read(text)]


@given(st.lists(odd_bodies(), min_size=1, max_size=5))
def test_json_to_json_is_byte_for_byte(given_bodies: list[bytes]) -> None:
    live, written = routed(JSON, JSON.join(given_bodies), JSON, LINES)
    replayed = wire.encode_data(through_a_file(written), "json")
    assert JSON.split(replayed)[0] == JSON.split(b"".join(live))[0]
    assert [bytes(raw) for raw in JSON.split(replayed)[0]] == given_bodies


@given(st.lists(odd_bodies(), min_size=1, max_size=5))
def test_json_to_msgpack_is_what_the_proxy_makes_of_it(given_bodies: list[bytes]) -> None:
    live, written = routed(JSON, JSON.join(given_bodies), MSGPACK, LINES)
    replayed = wire.encode_data(through_a_file(written), "msgpack")
    assert replayed == (b"".join(live) or b"\x90")


PLAIN = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=9),
    st.booleans(),
)
STAMPS = st.integers(0, 2**33).flatmap(lambda s: st.integers(0, 10**9 - 1).map(lambda n: msgpack.Timestamp(s, n)))


@given(
    st.dictionaries(st.sampled_from(["p", "s", "x", "c", "extra"]), st.one_of(PLAIN, st.lists(PLAIN, max_size=3))),
    STAMPS,
    st.sampled_from(["t", "q", "zz"]),
)
def test_msgpack_keeps_values_integers_and_nanoseconds(more: dict[str, Any], at: msgpack.Timestamp, kind: str) -> None:
    message = {"T": kind, "S": "AAPL", **more, "t": at}
    frame = msgpack.packb([message])
    [live_json], [live], written = routed(MSGPACK, frame, JSON, MSGPACK, LINES)
    messages = through_a_file(written)
    assert wire.encode_data(messages, "json") == live_json
    [replayed] = msgpack.unpackb(wire.encode_data(messages, "msgpack"))
    assert replayed == msgpack.unpackb(live)[0] == message
    assert {key: type(value) for key, value in replayed.items()} == {key: type(value) for key, value in message.items()}


def test_a_body_with_line_breaks_becomes_one_line() -> None:
    pretty = json.dumps({"T": "t", "S": "AAPL", "c": [{"x": 1}]}, indent=1).encode()
    text = lines.stamped(LINES.join([pretty, b'{"T":"q"}']), MORNING)
    assert text.count(b"\n") == 2
    assert [json.loads(line.body) for line in lines.read(text)] == [json.loads(pretty), {"T": "q"}]


@pytest.mark.parametrize("body", [b"1", b'"x"', b"{}", b"{ }", b"[]"])
def test_what_is_no_message_has_no_line(body: bytes) -> None:
    assert LINES.join([body]) == b""
    assert LINES.join([b'{"T":"t"}', body, b'{"T":"q"}']) == b'\n{"T":"t"}\n{"T":"q"}'


def test_own_lines_are_no_messages() -> None:
    text = lines.own(lines.GAP, MORNING, since=MORNING, messages=3, reason="disk_error")
    text += lines.stamped(LINES.join([b'{"recording":"gap","at":1}']), MORNING)
    text += lines.books(LINES.join([b'{"T":"o","S":"BTC/USD"}']), MORNING)
    assert lines.message_count(text) == 1
    message, book = lines.read(text)
    assert (message.body, message.is_message) == (b'{"recording":"gap","at":1}', True)
    assert (book.at, book.body, book.is_message) == (MORNING, b'{"T":"o","S":"BTC/USD"}', False)
    assert issubclass(lines.LineCodec, JsonCodec)
    assert msgspec.json.decode(text.splitlines()[1]) == {
        "recording": "gap", "at": MORNING, "since": MORNING, "messages": 3, "reason": "disk_error",
    }  # fmt: skip
