"""A message from one codec into the other, exact to the nanosecond, integers as integers, `T` first.

Only for clients of the other codec than the feed's, and once a message. Each kind that Alpaca documents has a struct
that leaves the timestamp alone, since a general decoder rounds msgpack's timestamps to microseconds. A message with a
key or a type that the struct does not foresee takes the general way, which walks it value by value: slower, as exact.
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

# JSON has no number for what is not finite, and the encoder would write null: the general way refuses such a message.
_Finite = Annotated[float, msgspec.Meta(ge=-float_info.max, le=float_info.max)]
_Scalar = int | _Finite | str | bool | None
_Words = list[str] | str | None
_Levels = list[dict[str, int | _Finite]] | None

# Alpaca's documented keys of the kinds that come often, in the order of its examples; `t` apart.
_BAR = dict.fromkeys(("o", "h", "l", "c", "v", "n", "vw"), _Scalar)
_FIELDS: dict[str, dict[str, Any]] = {
    "t": {"i": _Scalar, "x": _Scalar, "p": _Scalar, "s": _Scalar, "c": _Words, "z": _Scalar, "tks": _Scalar},
    "q": {
        **dict.fromkeys(("bx", "bp", "bs", "ax", "ap", "as"), _Scalar),
        "c": _Words,
        "z": _Scalar,
    },
    "b": _BAR,
    "u": _BAR,
    "d": _BAR,
    "o": {"b": _Levels, "a": _Levels, "r": _Scalar},
}

# Keys whose text is a timestamp; `r` is when Alpaca received a trade or a quote (a flag in an order book).
_TIMES = frozenset(("t", "r", "ft", "created_at", "updated_at"))


_NO_TIME = Raw(b"null")  # where `t` is absent; no timestamp in either codec


def _structs() -> dict[str, Any]:
    """A struct for each kind, whose absent keys stay absent and whose unknown ones are an error."""
    structs = {}
    for kind, fields in _FIELDS.items():
        optional = [
            (_attribute(key), of | msgspec.UnsetType, msgspec.UNSET) for key, of in {"S": str, **fields}.items()
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
_from_msgpack = {kind: msgspec.msgpack.Decoder(of).decode for kind, of in _STRUCTS.items()}
_from_json = {kind: msgspec.json.Decoder(of).decode for kind, of in _STRUCTS.items()}
_to_json = msgspec.json.Encoder().encode
_any_json = msgspec.json.Decoder().decode  # of any type: JSON's keys are text, whose hashes are salted
_json_text = msgspec.json.Decoder(str).decode
_to_msgpack = msgspec.msgpack.Encoder().encode

# TypeError, LookupError: a shape of 2020 asked of a message that lacks what it needs.
_FAULTS = (msgspec.MsgspecError, ValueError, TypeError, LookupError, OverflowError, RecursionError)

# The timestamp that Alpaca sends: fixext 8 of type -1, that is 30 bits of nanoseconds and 34 of seconds, whose highest
# two are zero until 2106.
_TIMESTAMP = struct.Struct(">HII")
_FIXEXT_8 = 0xD7FF
_SECOND = 1_000_000_000

# The same in JSON, by its length, quotes and all: what cuts it into the text up to the point, the digits of the
# fraction, and the end; and what makes such a fraction the first of the two numbers above. One cut that also holds the
# length is a quarter cheaper than slices of a text.
_FRACTIONS = {23 + n: (struct.Struct(f"21s{n}s2s").unpack, 10 ** (9 - n) << 2) for n in range(1, 10)}


def transcode(kind: str, body: Raw | bytes, source: Codec, target: Codec) -> Raw | bytes | None:
    """The body in the target's format and shape; None if the target has no shape for it.

    Raises Malformed when no faithful translation exists.
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
    except _FAULTS as fault:
        raise Malformed("a message that has no equal in the other codec") from fault


def _msgpack_to_json(kind: str, body: Raw | bytes) -> bytes:
    decode = _from_msgpack.get(kind)
    if decode is not None:
        try:
            message = decode(body)
            message.t = _text(message.t)
            return _to_json(message)
        except (msgspec.ValidationError, _Odd):
            pass
    return _to_json(_kind_first(_plain(body)))


def _json_to_msgpack(kind: str, body: Raw | bytes) -> bytes:
    decode = _from_json.get(kind)
    if decode is not None:
        try:
            message = decode(body)
            message.t = _ext(message.t)
            return _to_msgpack(message)
        except (msgspec.ValidationError, ValueError, TypeError):
            pass
    value = _any_json(body)
    if isinstance(value, dict):
        value = {key: _timed(item) if key in _TIMES else item for key, item in value.items()}
    return _to_msgpack(_kind_first(value))


def _kind_first(value: Any) -> Any:
    """Go's SDK drops the rest of a batch at a message that does not begin with `T`."""
    return {"T": value["T"], **value} if isinstance(value, dict) and "T" in value else value


class _Odd(Exception):
    """No timestamp where one belongs."""


def _text(ext: Raw) -> str:
    """msgpack's timestamp in JSON's spelling. Raises _Odd; ValueError, if it is one that nobody can read."""
    try:
        mark, high, seconds = _TIMESTAMP.unpack(ext)
    except struct.error:
        return _unusual_text(bytes(ext))
    rest = high >> 2
    if mark != _FIXEXT_8 or high & 3 or not 0 < rest < _SECOND:
        return _unusual_text(bytes(ext))
    if rest > 99_999_999 and rest % 10:
        return f"{_date(seconds)}.{rest}Z"  # four of five; without a look at zeros a quarter cheaper
    digits = str(_SECOND + rest)[1:].rstrip("0")  # three times as fast as a format of nine digits
    return f"{_date(seconds)}.{digits}Z"


def _unusual_text(ext: bytes) -> str:
    begin = _EXTS.get(ext[0])
    if begin is None or ext[begin - 1] != 0xFF:
        raise _Odd
    return timestamps.rfc3339(timestamps.of_ext(ext[begin:]))


def _ext(text: Raw) -> Any:
    """JSON's timestamp in msgpack's spelling. Raises Malformed, ValueError or TypeError."""
    if (fraction := _FRACTIONS.get(len(text))) is not None:
        cut, scale = fraction
        start, digits, end = cut(text)
        if end == b'Z"' and digits.isdigit() and (rest := int(digits)):
            return Raw(_TIMESTAMP.pack(_FIXEXT_8, rest * scale, _seconds(start)))
    return msgspec.msgpack.Ext(timestamps.EXT, timestamps.ext(timestamps.nanoseconds(_json_text(text))))


@lru_cache(maxsize=64)  # a burst shares its second: the calendar is computed once, not once a message
def _date(seconds: int) -> str:
    return timestamps.rfc3339(seconds * _SECOND)[:-1]


@lru_cache(maxsize=64)
def _seconds(start: bytes) -> int:
    """Of a quoted text up to the point in it. Raises ValueError; also where they need more than 32 bits."""
    seconds = timestamps.nanoseconds(start[1:].decode() + "0Z") // _SECOND
    if seconds >> 32:
        raise ValueError("before 1970 or after 2106")
    return seconds


def _timed(value: Any) -> Any:
    """A timestamp's text as the extension type; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.msgpack.Ext(timestamps.EXT, timestamps.ext(timestamps.nanoseconds(value)))
    except ValueError:
        return value


_decode_map = msgspec.msgpack.Decoder(dict[str, Raw]).decode
_decode_list = msgspec.msgpack.Decoder(list[Raw]).decode
_decode_scalar = msgspec.msgpack.Decoder(int | float | str | bool | None).decode
# fixext 4, fixext 8, ext 8, ext 16, ext 32: where their data begins
_EXTS = {0xD6: 2, 0xD7: 2, 0xC7: 3, 0xC8: 4, 0xC9: 6}


def _plain(body: Raw | bytes, depth: int = 0) -> Any:
    """A msgpack value in Python's types, timestamps as text, at any depth. Raises ValueError for what JSON lacks.

    Each level is read once more by the one around it, so levels are bounded.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    raw = bytes(body)
    first = raw[0]
    if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
        return {key: _plain(value, depth + 1) for key, value in _decode_map(raw).items()}
    if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
        return [_plain(value, depth + 1) for value in _decode_list(raw)]
    if (begin := _EXTS.get(first)) is not None and raw[begin - 1] == 0xFF:
        return timestamps.rfc3339(timestamps.of_ext(raw[begin:]))
    value = _decode_scalar(raw)
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("a number that is not finite")
    return value
