"""Translate messages between the codecs, exact to the nanosecond.

Integers stay integers, and `T` is the first key. This is needed only for clients that use the other codec than their
feed, and happens once a message. Each frequent kind has a struct that leaves the timestamp undecoded, since a general
decoder rounds msgpack's timestamps to microseconds. A message with a key or a type that its struct lacks is converted
value by value: slower, as exact.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from math import isfinite
from sys import float_info
from typing import Annotated, Any

import msgspec

from proxy.alpaca import timestamps
from proxy.alpaca.codec import JSON, MAX_DEPTH, MSGPACK, Codec, Malformed, Raw

# JSON cannot express NaN and infinities, and the encoder would write null. With this bound they fail the struct, and
# the conversion value by value refuses them.
_Finite = Annotated[float, msgspec.Meta(ge=-float_info.max, le=float_info.max)]
_Scalar = int | _Finite | str | bool | None
_Texts = list[str] | str | None
_Levels = list[dict[str, int | _Finite]] | None

# Alpaca's documented keys of the most frequent kinds, in the order of its examples, without `T`, `S` and `t`.
_BAR = dict.fromkeys(("o", "h", "l", "c", "v", "n", "vw"), _Scalar)
_FIELDS: dict[str, dict[str, Any]] = {
    "t": {"i": _Scalar, "x": _Scalar, "p": _Scalar, "s": _Scalar, "c": _Texts, "z": _Scalar, "tks": _Scalar},
    "q": {
        **dict.fromkeys(("bx", "bp", "bs", "ax", "ap", "as"), _Scalar),
        "c": _Texts,
        "z": _Scalar,
    },
    "b": _BAR,
    "u": _BAR,
    "d": _BAR,
    "o": {"b": _Levels, "a": _Levels, "r": _Scalar},
}

# Keys whose text is a timestamp. `r` is the time at which Alpaca received a trade or a quote; in an order book, a flag.
_TIMESTAMP_KEYS = frozenset(("t", "r", "ft", "created_at", "updated_at"))


class InvalidText(Malformed):
    """A text in the message is not UTF-8."""


_NO_TIME = Raw(b"null")  # stands for an absent `t`; not a timestamp in either codec


def _structs() -> dict[str, Any]:
    """Return a struct for each kind; absent keys stay absent, unknown ones fail."""
    structs = {}
    for kind, fields in _FIELDS.items():
        optional = [
            (_attribute(key), type_ | msgspec.UnsetType, msgspec.UNSET) for key, type_ in {"S": str, **fields}.items()
        ]
        structs[kind] = msgspec.defstruct(
            f"Message_{kind}",
            [("T", str), *optional, ("t", Raw, _NO_TIME)],
            rename={_attribute(key): key for key in fields},
            forbid_unknown_fields=True,
            gc=False,
        )
    return structs


def _attribute(key: str) -> str:
    return "as_" if key == "as" else key


_STRUCTS = _structs()
_from_msgpack = {kind: msgspec.msgpack.Decoder(struct_).decode for kind, struct_ in _STRUCTS.items()}
_from_json = {kind: msgspec.json.Decoder(struct_).decode for kind, struct_ in _STRUCTS.items()}
_to_json = msgspec.json.Encoder().encode
_any_json = msgspec.json.Decoder().decode  # untyped is safe in JSON: its keys are text, whose hashes are salted
_json_text = msgspec.json.Decoder(str).decode
_to_msgpack = msgspec.msgpack.Encoder().encode

# TypeError, LookupError: a legacy shape of a message that lacks a key which the shape needs.
_FAULTS = (msgspec.MsgspecError, ValueError, TypeError, LookupError, OverflowError, RecursionError)

# The msgpack timestamp that Alpaca sends: fixext 8 of type -1, 30 bits of nanoseconds and 34 bits of seconds. The
# highest two bits of the seconds are zero until 2106, so it unpacks as type, nanoseconds << 2 and seconds.
_TIMESTAMP = struct.Struct(">HII")
_FIXEXT_8 = 0xD7FF
_SECOND = 1_000_000_000

# The JSON timestamp, by its length with quotes: a struct that splits it into the text before the point, the digits of
# the fraction and the end; and the factor from that fraction to nanoseconds << 2. One unpack, which also checks the
# length, is a quarter cheaper than slices of a string.
_FRACTIONS = {23 + n: (struct.Struct(f"21s{n}s2s").unpack, 10 ** (9 - n) << 2) for n in range(1, 10)}


def transcode(kind: str, body: Raw | bytes, source: Codec, target: Codec) -> Raw | bytes | None:
    """Return the body in the target's format and shape; None if it has none for it.

    Raises Malformed if no exact translation exists, InvalidText if a text is the reason.
    """
    try:
        if source is MSGPACK and target is JSON:
            return _msgpack_to_json(kind, body)
        if source is JSON and target is MSGPACK:
            return _json_to_msgpack(kind, body)
        if target.base is not source:
            body = _msgpack_to_json(kind, body) if source is MSGPACK else _json_to_msgpack(kind, body)
        return target.to_client_body(kind, body)
    except Malformed:
        raise
    except UnicodeDecodeError as fault:
        raise InvalidText("a text that is not UTF-8") from fault
    except _FAULTS as fault:
        raise Malformed("the message has no equivalent in the other codec") from fault


def msgpack_of(body: Raw | bytes) -> bytes:
    """Return a JSON message as msgpack, its timestamps as the texts that they are.

    So the trading stream and the names of 2020 are passed on, whose programs expect texts and numbers in both codecs.
    Raises Malformed if no exact translation exists.
    """
    try:
        return _to_msgpack(_any_json(body))
    except _FAULTS as fault:
        raise Malformed("the message has no equivalent in msgpack") from fault


def with_valid_text(body: Raw | bytes, codec: Codec) -> bytes:
    """Return the body with U+FFFD in place of what is not UTF-8 in its texts; everything else keeps its bytes.

    Raises Malformed for a body that cannot be decoded, and for keys that are not UTF-8.
    """
    if codec is JSON:
        return bytes(body).decode("utf-8", "replace").encode()
    try:
        return _valid_text(bytes(body))
    except _FAULTS as fault:
        raise Malformed("not a msgpack message") from fault


def _valid_text(raw: bytes, depth: int = 0) -> bytes:
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    first = raw[0]
    if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
        return _to_msgpack({key: Raw(_valid_text(bytes(value), depth + 1)) for key, value in _decode_map(raw).items()})
    if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
        return _to_msgpack([Raw(_valid_text(bytes(value), depth + 1)) for value in _decode_list(raw)])
    start = 1 if 0xA0 <= first <= 0xBF else _TEXTS.get(first)
    return raw if start is None else _to_msgpack(raw[start:].decode("utf-8", "replace"))


def _msgpack_to_json(kind: str, body: Raw | bytes) -> bytes:
    decode = _from_msgpack.get(kind)
    if decode is not None:
        try:
            message = decode(body)
            message.t = _rfc3339_of(message.t)
            return _to_json(message)
        except (msgspec.ValidationError, _NotATimestamp):
            pass
    return _to_json(_kind_first(_json_value(body)))


def _json_to_msgpack(kind: str, body: Raw | bytes) -> bytes:
    decode = _from_json.get(kind)
    if decode is not None:
        try:
            message = decode(body)
            message.t = _ext_of(message.t)
            return _to_msgpack(message)
        except (msgspec.ValidationError, ValueError, TypeError):
            pass
    value = _any_json(body)
    if isinstance(value, dict):
        value = {key: _timestamp_or_same(item) if key in _TIMESTAMP_KEYS else item for key, item in value.items()}
    return _to_msgpack(_kind_first(value))


def _kind_first(value: Any) -> Any:
    """Return the message with `T` as its first key.

    Go's SDK drops the rest of a batch at a message that begins with another key.
    """
    return {"T": value["T"], **value} if isinstance(value, dict) and "T" in value else value


class _NotATimestamp(Exception):
    """A value of another type under a timestamp's key."""


def _rfc3339_of(ext: Raw) -> str:
    """Convert msgpack's timestamp to JSON's.

    Raises _NotATimestamp for another type, ValueError for a timestamp that is not valid.
    """
    try:
        header, high, seconds = _TIMESTAMP.unpack(ext)
    except struct.error:
        return _rfc3339_of_any_length(bytes(ext))
    rest = high >> 2
    if header != _FIXEXT_8 or high & 3 or not 0 < rest < _SECOND:
        return _rfc3339_of_any_length(bytes(ext))
    if rest > 99_999_999 and rest % 10:
        return f"{_date(seconds)}.{rest}Z"  # four of five timestamps; a quarter cheaper, as no zero has to be trimmed
    digits = str(_SECOND + rest)[1:].rstrip("0")  # three times as fast as a format of nine digits
    return f"{_date(seconds)}.{digits}Z"


def _rfc3339_of_any_length(ext: bytes) -> str:
    offset = _EXTS.get(ext[0])
    if offset is None or ext[offset - 1] != 0xFF:
        raise _NotATimestamp
    return timestamps.rfc3339(timestamps.of_ext(ext[offset:]))


def _ext_of(text: Raw) -> Any:
    """Convert JSON's timestamp to msgpack's.

    Raises Malformed, ValueError or TypeError.
    """
    if (fraction := _FRACTIONS.get(len(text))) is not None:
        unpack, scale = fraction
        start, digits, end = unpack(text)
        if end == b'Z"' and digits.isdigit() and (rest := int(digits)):
            return Raw(_TIMESTAMP.pack(_FIXEXT_8, rest * scale, _seconds(start)))
    return msgspec.msgpack.Ext(timestamps.EXT, timestamps.ext(timestamps.nanoseconds(_json_text(text))))


@lru_cache(maxsize=64)  # messages of a burst have the same second: one calendar computation for all
def _date(seconds: int) -> str:
    return timestamps.rfc3339(seconds * _SECOND)[:-1]


@lru_cache(maxsize=64)
def _seconds(start: bytes) -> int:
    """Parse an RFC 3339 text up to its point, with the opening quote, into seconds.

    Raises ValueError, also if the seconds need more than 32 bits.
    """
    seconds = timestamps.nanoseconds(start[1:].decode() + "0Z") // _SECOND
    if seconds >> 32:
        raise ValueError("before 1970 or after 2106")
    return seconds


def _timestamp_or_same(value: Any) -> Any:
    """Return a timestamp's text as the extension type, any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.msgpack.Ext(timestamps.EXT, timestamps.ext(timestamps.nanoseconds(value)))
    except ValueError:
        return value


_decode_map = msgspec.msgpack.Decoder(dict[str, Raw]).decode
_decode_list = msgspec.msgpack.Decoder(list[Raw]).decode
_decode_scalar = msgspec.msgpack.Decoder(int | float | str | bool | None).decode
# The offset of the data in fixext 4, fixext 8, ext 8, ext 16 and ext 32, by the first byte.
_EXTS = {0xD6: 2, 0xD7: 2, 0xC7: 3, 0xC8: 4, 0xC9: 6}


# The offset of the bytes in str 8, str 16 and str 32, by the first byte.
_TEXTS = {0xD9: 2, 0xDA: 3, 0xDB: 5}


def _json_value(body: Raw | bytes, depth: int = 0) -> Any:
    """Decode a msgpack value for JSON: timestamps as text, at any depth.

    Raises ValueError for a value that JSON cannot express, and for more than MAX_DEPTH levels: each level reads the
    bytes of all levels inside it again.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    raw = bytes(body)
    first = raw[0]
    if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
        return {key: _json_value(value, depth + 1) for key, value in _decode_map(raw).items()}
    if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
        return [_json_value(value, depth + 1) for value in _decode_list(raw)]
    if (offset := _EXTS.get(first)) is not None and raw[offset - 1] == 0xFF:
        return timestamps.rfc3339(timestamps.of_ext(raw[offset:]))
    value = _decode_scalar(raw)
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("a number that is not finite")
    return value
