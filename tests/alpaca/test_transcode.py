"""Transcoded messages, compared by `json` and the msgpack library with types."""

from __future__ import annotations

import json
import math
import struct
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import timestamps
from proxy.alpaca.codec import JSON, MSGPACK, Codec, Malformed
from proxy.alpaca.legacy import LEGACY
from proxy.alpaca.plain_pairs import PLAIN_PAIRS
from proxy.alpaca.transcode import InvalidText, transcode, with_valid_text
from tests.alpaca.bodies import JSON_VALUES, MSGPACK_VALUES, TEXTS, json_bodies, msgpack_bodies

FIRST, LAST = -62_135_596_800_000_000_000, 253_402_300_799_999_999_999  # of the years 1 to 9999
TIME_KEYS = ("t", "r", "ft", "created_at", "updated_at")

INTS = st.integers(-(2**63), 2**64 - 1)
PRICES = INTS | st.floats(allow_nan=False, allow_infinity=False)
SYMBOLS = st.sampled_from(["AAPL", "BTC/USD", "AAPL240315C00172500"])
WORDS = st.lists(st.sampled_from(["@", "F", " "]), max_size=3)
LEVELS = st.lists(st.fixed_dictionaries({"p": PRICES, "s": PRICES}), max_size=3)
TIMES = st.integers(FIRST, LAST).map(timestamps.rfc3339)


BAR = {**dict.fromkeys(("o", "h", "l", "c", "vw"), PRICES), "v": PRICES, "n": INTS}
TRADE = {"i": INTS, "x": TEXTS, "c": WORDS | TEXTS, "z": TEXTS, "tks": TEXTS, "r": TIMES}
QUOTE = {"bx": TEXTS, "ax": TEXTS, "c": WORDS | TEXTS, "z": TEXTS, "r": TIMES}
STORY = dict.fromkeys(("headline", "summary", "author", "content", "url", "source"), TEXTS)

# Alpaca's documented kinds: the keys of each besides `T`, `S` and `t`, and those that only some endpoints send.
DOCUMENTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "t": ({"p": PRICES, "s": PRICES}, TRADE),
    "q": (dict.fromkeys(("bp", "bs", "ap", "as"), PRICES), QUOTE),
    "b": (BAR, {}),
    "d": (BAR, {}),
    "u": (BAR, {}),
    "s": (dict.fromkeys(("sc", "sm", "rc", "rm", "z"), TEXTS), {}),
    "l": ({"u": PRICES, "d": PRICES, "i": TEXTS, "z": TEXTS}, {}),
    "i": ({"p": PRICES, "z": TEXTS}, {}),
    "c": (dict.fromkeys(("oi", "op", "os", "ci", "cp", "cs"), PRICES) | {"oc": WORDS, "cc": WORDS, "z": TEXTS}, {}),
    "x": ({"i": INTS, "x": TEXTS, "p": PRICES, "s": INTS, "a": TEXTS, "z": TEXTS}, {}),
    "o": ({"b": LEVELS, "a": LEVELS}, {"r": st.booleans()}),
    "p": (dict.fromkeys(("ip", "mp", "fr", "oi"), PRICES) | {"x": TEXTS, "ft": TIMES}, {}),
}
NEWS = st.fixed_dictionaries(
    {"T": st.just("n"), "id": INTS, **STORY, "created_at": TIMES, "updated_at": TIMES, "symbols": st.lists(SYMBOLS)}
)
# Keys that Alpaca may add one day, with nested values.
UNKNOWN = st.dictionaries(
    TEXTS.filter(lambda key: key not in (*TIME_KEYS, "T")),
    st.recursive(
        st.none() | st.booleans() | PRICES | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def documented(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    required, optional = DOCUMENTED[kind]
    return st.fixed_dictionaries({"T": st.just(kind), "S": SYMBOLS, **required, "t": TIMES}, optional=optional)


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """A documented message, one with further keys, or one of an unknown kind."""
    message: dict[str, Any] = draw(NEWS | st.sampled_from(sorted(DOCUMENTED)).flatmap(documented))
    if draw(st.booleans()):
        message |= draw(UNKNOWN)
    if draw(st.booleans()):
        message["T"] = draw(st.sampled_from(["z", "tt", "q", "o"]))
    return message


def packed(message: dict[str, Any]) -> bytes:
    """The message as Alpaca sends it in msgpack, timestamps as the extension type."""
    packed: bytes = msgpack.packb(
        {
            key: msgpack.Timestamp.from_unix_nano(timestamps.nanoseconds(value))
            if key in TIME_KEYS and isinstance(value, str)
            else value
            for key, value in message.items()
        }
    )
    return packed


def exactly(value: Any) -> str:
    """A text that distinguishes 1, 1.0 and true."""
    return json.dumps(value, sort_keys=True)


@given(messages())
def test_from_json_and_back(message: dict[str, Any]) -> None:
    transcoded = transcode(message["T"], json.dumps(message).encode(), JSON, MSGPACK)
    assert transcoded is not None
    assert exactly_packed(transcoded) == exactly_packed(packed(message))
    assert next(iter(msgpack.unpackb(transcoded))) == "T"
    back = transcode(message["T"], transcoded, MSGPACK, JSON)
    assert back is not None
    assert exactly(json.loads(back)) == exactly(message)
    assert next(iter(json.loads(back))) == "T"


@given(messages())
def test_from_msgpack_and_back(message: dict[str, Any]) -> None:
    transcoded = transcode(message["T"], packed(message), MSGPACK, JSON)
    assert transcoded is not None
    assert exactly(json.loads(transcoded)) == exactly(message)
    back = transcode(message["T"], transcoded, JSON, MSGPACK)
    assert back is not None
    assert exactly_packed(back) == exactly_packed(packed(message))


def exactly_packed(body: bytes) -> str:
    return repr(sorted(msgpack.unpackb(body).items()))


SECOND = 10**9
FRACTIONS = (0, 10, 99_999_990, 99_999_999, 100_000_000, 100_000_001, 838_232_225, 999_999_990)
EDGES = (FIRST, -1, 0, 1, 2**32 * SECOND, 2**32 * SECOND + 1, 2**34 * SECOND, LAST)
MOMENTS = [*EDGES, *(1680782066 * SECOND + rest for rest in FRACTIONS)]


@pytest.mark.parametrize("kind", [*DOCUMENTED, "n", "z"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_nanoseconds_survive(kind: str, moment: int) -> None:
    """In timestamps of 4, 8 and 12 bytes, in any kind of message."""
    text = timestamps.rfc3339(moment)
    body = msgpack.packb({"T": kind, "S": "AAPL", "t": msgpack.Timestamp.from_unix_nano(moment)})
    assert transcode(kind, body, MSGPACK, JSON) == b'{"T":"%b","S":"AAPL","t":"%b"}' % (kind.encode(), text.encode())
    assert transcode(kind, b'{"T":"%b","S":"AAPL","t":"%b"}' % (kind.encode(), text.encode()), JSON, MSGPACK) == body


@pytest.mark.parametrize("kind", ["t", "o", "z"])
def test_a_timestamp_in_a_longer_form_than_it_needs(kind: str) -> None:
    """In extensions with a length of 8, 16 and 32 bits."""
    data = msgpack.Timestamp.from_unix_nano(1680782066838232225).to_bytes()
    for head in (b"\xd7\xff", b"\xc7\x08\xff", b"\xc8\x00\x08\xff", b"\xc9\x00\x00\x00\x08\xff"):
        body = b"\x82\xa1T\xa1%b\xa1t%b%b" % (kind.encode(), head, data)
        text = transcode(kind, body, MSGPACK, JSON)
        assert text == b'{"T":"%b","t":"2023-04-06T11:54:26.838232225Z"}' % kind.encode()


@pytest.mark.parametrize("kind", ["t", "o", "z"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\xd7\xff" + struct.pack(">Q", 1680782066), b'"2023-04-06T11:54:26Z"'),
        (b"\xd7\xff" + struct.pack(">Q", 10**9 << 34 | 1680782066), None),
        (b"\xd7\x01" + struct.pack(">Q", 1 << 34 | 1680782066), None),
        (b"\xa9yesterday", b'"yesterday"'),
        (b"\xc0", b"null"),
    ],
)
def test_values_that_look_like_a_timestamp(kind: str, value: bytes, text: bytes | None) -> None:
    """Malformed without an equivalent, such as a full second of nanoseconds."""
    body = b"\x82\xa1T\xa1%b\xa1t%b" % (kind.encode(), value)
    if text is None:
        with pytest.raises(Malformed):
            transcode(kind, body, MSGPACK, JSON)
    else:
        assert transcode(kind, body, MSGPACK, JSON) == b'{"T":"%b","t":%b}' % (kind.encode(), text)


@pytest.mark.parametrize("kind", ["t", "o", "z"])
def test_a_message_without_a_timestamp(kind: str) -> None:
    text, packed = b'{"T":"%b","S":"AAPL"}' % kind.encode(), msgpack.packb({"T": kind, "S": "AAPL"})
    assert transcode(kind, text, JSON, MSGPACK) == packed
    assert transcode(kind, packed, MSGPACK, JSON) == text


@pytest.mark.parametrize("number", ["0", "100", "-7", "1.0", "100.0", "0.1", "1e3", "9007199254740993", "5e-324"])
def test_integers_stay_integers_and_floats_stay_floats(number: str) -> None:
    """Go's SDK decodes sizes, counts and ids as integers; a float loses the batch."""
    for kind in ("t", "z"):
        body = b'{"T":"%b","S":"AAPL","s":%b,"t":"2023-04-06T11:54:26Z"}' % (kind.encode(), number.encode())
        transcoded = transcode(kind, body, JSON, MSGPACK)
        assert transcoded is not None
        assert repr(msgpack.unpackb(transcoded)["s"]) == repr(json.loads(number))


@pytest.mark.parametrize("kind", ["t", "q", "n", "z"])
def test_the_kind_becomes_the_first_key(kind: str) -> None:
    """Go's SDK drops the rest of a batch whose message does not begin with `T`."""
    body = b'{"S":"AAPL","new":1,"T":"%b"}' % kind.encode()
    transcoded = transcode(kind, body, JSON, MSGPACK)
    assert transcoded is not None
    assert next(iter(msgpack.unpackb(transcoded))) == "T"


def test_text_that_is_not_a_timestamp_stays_text() -> None:
    for text in ("yesterday", "", "2023-02-30T00:00:00Z"):
        transcoded = transcode("t", json.dumps({"T": "t", "t": text, "r": text}).encode(), JSON, MSGPACK)
        assert transcoded is not None
        assert msgpack.unpackb(transcoded) == {"T": "t", "t": text, "r": text}


TIMESTAMP = "2023-04-06T13:15:42.835409581Z"


def _altered(text: str, at: int, removed: int, inserted: str) -> str:
    return text[:at] + inserted + text[at + removed :]


ALTERED_TIMESTAMPS = st.builds(
    _altered,
    st.integers(0, 9).map(lambda digits: TIMESTAMP[: 20 + digits] + "Z"),
    st.integers(0, 30),
    st.integers(0, 2),
    st.sampled_from(
        ["", "0", "00", "9", "-", "+", "_", " ", ".", ",", "Z", "z", "t", "+01:00", "\u0663", "\u00b2", '"', "\\"]
    ),
)


@pytest.mark.parametrize("kind", ["t", "o", "z"])
@given(text=ALTERED_TIMESTAMPS, ascii=st.booleans())
def test_altered_timestamps(kind: str, text: str, ascii: bool) -> None:
    """Digits that only Python accepts, fractions of any length, other zones, escapes."""
    body = json.dumps({"T": kind, "t": text}, ensure_ascii=ascii).encode()
    transcoded = transcode(kind, body, JSON, MSGPACK)
    assert transcoded is not None
    assert transcoded == msgpack.packb({"T": kind, "t": timed(text)})


@pytest.mark.parametrize("kind", ["t", "o", "z"])
@pytest.mark.parametrize(
    "text",
    [
        '"2023-04-06T13:15:42Z"',
        '"2023-04-06T13:15:42.000000000Z"',
        '"2023-04-06T13:15:42.0Z"',
        '"2023-04-06T13:15:42.1000Z"',
        '"2023-04-06T13:15:42.000000001Z"',
        '"2023-04-06T13:15:42.0000000001Z"',
        '"2023-04-06T13:15:42.83540958+00:00"',
        '"2023-04-06t13:15:42.83540958z"',
        '"2023-04-06T13:15:42.8354_958Z"',
        '"2023-04-06T13:15:42.+83540958Z"',
        '"2023-04-06T13:15:42. 83540958Z"',
        '"2023-04-06T13:15:42,83540958Z"',
        '"2023-04-06T13:15:42.83540958z"',
        '"2023-04-06T13:15:60.83540958Z"',
        '"1969-12-31T23:59:59.999999999Z"',
        '"1970-01-01T00:00:00.000000001Z"',
        '"2106-02-07T06:28:15.999999999Z"',
        '"2106-02-07T06:28:16.000000001Z"',
        '"2023-04-06T13:15:42\\u002e12345Z"',
        '"2023-04-06T13:15:4\\u00321234Z"',
        '"2023-04-06T13:15:42.12345\\u005a"',
        "1680782066838232225",
        "[1,2,3]",
        "null",
        '""',
    ],
)
def test_formats_of_timestamps(kind: str, text: str) -> None:
    """At the limits of msgpack's shorter forms, and forms that Alpaca does not send."""
    transcoded = transcode(kind, b'{"T":"%b","t": %b }' % (kind.encode(), text.encode()), JSON, MSGPACK)
    assert transcoded is not None
    assert transcoded == msgpack.packb({"T": kind, "t": timed(json.loads(text))})


class NoEquivalent(Exception):
    """The value has no equivalent in the other codec."""


def in_json(value: Any) -> Any:
    """Return the expected JSON value of a msgpack value as decoded by the library."""
    match value:
        case msgpack.Timestamp():
            try:
                return timestamps.rfc3339(value.to_unix_nano())
            except (ValueError, OverflowError):
                raise NoEquivalent from None
        case dict() if all(isinstance(key, str) for key in value):
            return {key: in_json(item) for key, item in value.items()}
        case list():
            return [in_json(item) for item in value]
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
    raise NoEquivalent


def in_msgpack(value: Any) -> Any:
    """Return the expected msgpack value of a JSON value.

    A message's timestamps are the extension type.
    """
    if isinstance(value, dict):
        return {key: timed(item) if key in TIME_KEYS else item for key, item in value.items()}
    return value


def timed(value: Any) -> Any:
    try:
        return msgpack.Timestamp.from_unix_nano(timestamps.nanoseconds(value))
    except (TypeError, ValueError):
        return value


@given(st.data())
def test_any_msgpack_is_transcoded_exactly_or_malformed(data: st.DataObject) -> None:
    body = data.draw(msgpack_bodies() | MSGPACK_VALUES)
    value = msgpack.unpackb(body, strict_map_key=False)
    kind = value.get("T") if isinstance(value, dict) else ""
    try:
        expected = exactly(in_json(value))
    except NoEquivalent:
        with pytest.raises(Malformed):
            transcode(str(kind), body, MSGPACK, JSON)
    else:
        transcoded = transcode(str(kind), body, MSGPACK, JSON)
        assert transcoded is not None
        assert exactly(json.loads(transcoded)) == expected


@given(st.data())
def test_any_json_is_transcoded_exactly_or_malformed(data: st.DataObject) -> None:
    body = data.draw(json_bodies() | JSON_VALUES.map(str.encode))
    value = json.loads(body)
    kind = value.get("T") if isinstance(value, dict) else ""
    try:
        expected = msgpack.packb(in_msgpack(value))
    except OverflowError:  # an integer of more than 64 bits
        with pytest.raises(Malformed):
            transcode(str(kind), body, JSON, MSGPACK)
    else:
        transcoded = transcode(str(kind), body, JSON, MSGPACK)
        assert transcoded is not None
        assert msgpack.unpackb(transcoded) == msgpack.unpackb(expected)
        assert exactly_sorted(msgpack.unpackb(transcoded)) == exactly_sorted(msgpack.unpackb(expected))


def exactly_sorted(value: Any) -> str:
    """As `exactly`, for values that JSON cannot express."""
    if isinstance(value, dict):
        return repr({key: exactly_sorted(value[key]) for key in sorted(value)})
    return repr([exactly_sorted(item) for item in value] if isinstance(value, list) else value)


TARGETS = [JSON, MSGPACK, *LEGACY.values(), *PLAIN_PAIRS.values()]
FROM_TO = pytest.mark.parametrize(("source", "target"), [(s, t) for s in (JSON, MSGPACK) for t in TARGETS], ids=repr)


@FROM_TO
@given(data=st.data())
def test_any_bytes_are_transcoded_or_malformed(source: Codec, target: Codec, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["t", "q", "b", "o", "n", "z", ""]))
    bodies = json_bodies() | JSON_VALUES.map(str.encode) if source is JSON else msgpack_bodies() | MSGPACK_VALUES
    body = data.draw(bodies | st.binary(max_size=30))
    try:
        transcode(kind, body, source, target)
    except Malformed:
        return


@FROM_TO
@pytest.mark.parametrize("levels", [30, 900, 100_000])
def test_deep_nesting(source: Codec, target: Codec, levels: int) -> None:
    opening, closing = (b"[", b"]") if source is JSON else (b"\x91", b"")
    head = b'{"T":"z","x":' if source is JSON else b"\x82\xa1T\xa1z\xa1x"
    body = head + opening * levels + (b"1" if source is JSON else b"\x01") + closing * levels
    try:
        transcode("z", body + (b"}" if source is JSON else b""), source, target)
    except Malformed:
        assert levels > 30 or target in LEGACY.values()


def test_the_same_codec_returns_the_same_bytes() -> None:
    body = b'{ "T":"t" , "p":1.50 }'
    assert transcode("t", body, JSON, JSON) is body


# Texts that are not UTF-8

INVALID = st.sampled_from([b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"a\xc3", b"\xf0\x9f\x98 b"])
ANY_TEXT = INVALID | TEXTS.map(str.encode) | st.binary(max_size=300)
BYTE_TREES = st.recursive(
    ANY_TEXT | st.none() | st.booleans() | PRICES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def packed_raw(value: Any) -> bytes:
    """Encode with the old library's raw strings: bytes become texts, valid or not."""
    data: bytes = msgpack.packb(value, use_bin_type=False)
    return data


def replaced(value: Any) -> Any:
    """The value with U+FFFD for what is not UTF-8."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [replaced(item) for item in value]
    return {key: replaced(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(headline=INVALID, kind=st.sampled_from(["n", "z"]), symbols=st.lists(SYMBOLS, max_size=2))
def test_an_article_with_invalid_text_from_msgpack(headline: bytes, kind: str, symbols: list[str]) -> None:
    time = msgpack.Timestamp.from_unix_nano(1680782066838232225)
    article = {"T": kind, "id": 7, "headline": headline, "author": "é", "symbols": symbols, "updated_at": time}
    with pytest.raises(InvalidText):
        transcode(kind, packed_raw(article), MSGPACK, JSON)
    body = transcode(kind, with_valid_text(packed_raw(article), MSGPACK), MSGPACK, JSON)
    assert body is not None
    expected = {**replaced(article), "updated_at": "2023-04-06T11:54:26.838232225Z"}
    assert json.loads(bytes(body)) == expected


@given(headline=INVALID, kind=st.sampled_from(["n", "z", "t"]))
def test_a_body_with_invalid_text_from_json(headline: bytes, kind: str) -> None:
    body = b'{"T":"%b","p":1.50,"x":"%b","t":"2023-04-06T11:54:26.838232225Z"}' % (kind.encode(), headline)
    with pytest.raises(InvalidText):
        transcode(kind, body, JSON, MSGPACK)
    translated = transcode(kind, with_valid_text(body, JSON), JSON, MSGPACK)
    assert translated is not None
    message = msgpack.unpackb(bytes(translated))
    assert (message["x"], message["p"]) == (headline.decode("utf-8", "replace"), 1.5)
    assert message["t"] == msgpack.Timestamp.from_unix_nano(1680782066838232225)


@given(st.dictionaries(TEXTS, BYTE_TREES, max_size=4))
def test_valid_text_in_msgpack_keeps_everything_else(value: dict[str, Any]) -> None:
    body = with_valid_text(packed_raw(value), MSGPACK)
    assert exactly_sorted(msgpack.unpackb(body)) == exactly_sorted(replaced(value))


@given(msgpack_bodies())
def test_valid_msgpack_stays_the_same_value(body: bytes) -> None:
    try:
        expected = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        return
    try:
        again = with_valid_text(body, MSGPACK)
    except Malformed:
        return
    assert repr(msgpack.unpackb(again, strict_map_key=False)) == repr(expected)


@given(json_bodies())
def test_valid_json_keeps_its_bytes(body: bytes) -> None:
    assert with_valid_text(body, JSON) == body


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
@given(body=st.binary(max_size=40))
def test_any_bytes_get_valid_text_or_are_malformed(codec: Codec, body: bytes) -> None:
    with suppress(Malformed):
        with_valid_text(body, codec)


@pytest.mark.parametrize("key", [b"\xa1\xff", b"\x07"])
def test_a_key_that_is_not_text_is_malformed(key: bytes) -> None:
    with pytest.raises(Malformed):
        with_valid_text(b"\x81" + key + b"\xa1x", MSGPACK)


@pytest.mark.parametrize("levels", [30, 5000])
def test_valid_text_in_deep_nesting(levels: int) -> None:
    body = b"\x81\xa1a" * levels + b"\xa1\xff"
    if levels < 100:
        assert msgpack.unpackb(with_valid_text(body, MSGPACK)) is not None
    else:
        with pytest.raises(Malformed):
            with_valid_text(body, MSGPACK)
