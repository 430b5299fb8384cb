"""A message from one codec into the other, exact to the nanosecond, integers as integers, `T` first.

Only for clients of the other codec than the feed's, and once a message. Each kind that Alpaca documents has a struct
that leaves the timestamp alone, since a general decoder rounds msgpack's timestamps to microseconds. A message with a
key or a type that the struct does not foresee takes the general way, which walks it value by value: slower, as exact.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.protocol import timestamps
from proxy.protocol.codec import JSON, MSGPACK, Codec, Malformed, Raw

_Scalar = int | float | str | bool | None
_Words = list[str] | str | None
_Levels = list[dict[str, int | float]] | None

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


def _structs(time: Any) -> dict[str, Any]:
    """A struct for each kind, whose absent keys stay absent and whose unknown ones are an error."""
    structs = {}
    for kind, fields in _FIELDS.items():
        optional = [
            (_attribute(key), of | msgspec.UnsetType, msgspec.UNSET) for key, of in {"S": str, **fields}.items()
        ]
        structs[kind] = msgspec.defstruct(
            f"Message_{kind}",
            [("T", str), *optional, ("t", time, time())],
            rename={_attribute(key): key for key in fields},
            forbid_unknown_fields=True,
            gc=False,
        )
    return structs


def _attribute(key: str) -> str:
    return "as_" if key == "as" else key


_from_msgpack = {kind: msgspec.msgpack.Decoder(of).decode for kind, of in _structs(Raw).items()}
_from_json = {kind: msgspec.json.Decoder(of).decode for kind, of in _structs(str).items()}
_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode

_EXT_8 = bytes((0xD7, 0xFF))  # msgpack's fixext 8 of type -1, the timestamp that Alpaca sends
_FAULTS = (msgspec.MsgspecError, ValueError, KeyError, OverflowError, RecursionError, Malformed)


def transcode(kind: str, body: Raw | bytes, source: Codec, target: Codec) -> Raw | bytes | None:
    """The body in the target's format and shape; None if the target has no shape for it.

    Raises Malformed when no faithful translation exists.
    """
    try:
        if target.base is not source:
            body = _msgpack_to_json(kind, body) if source is MSGPACK else _json_to_msgpack(kind, body)
        return target.dress(kind, body)
    except Malformed:
        raise
    except _FAULTS as fault:
        raise Malformed(f"a message of kind {kind[:8]!r} that has no equal in the other codec") from fault


def _msgpack_to_json(kind: str, body: Raw | bytes) -> bytes:
    decode = _from_msgpack.get(kind)
    if decode is not None:
        try:
            message = decode(body)
        except msgspec.ValidationError:
            pass
        else:
            time = bytes(message.t)
            if time[:2] == _EXT_8:
                message.t = timestamps.rfc3339(timestamps.of_ext(time[2:]))
                return _to_json(message)
    return _to_json(_plain(body))


def _json_to_msgpack(kind: str, body: Raw | bytes) -> bytes:
    decode = _from_json.get(kind)
    if decode is not None:
        try:
            message = decode(body)
            message.t = msgspec.msgpack.Ext(timestamps.EXT, timestamps.ext(timestamps.nanoseconds(message.t)))
            return _to_msgpack(message)
        except (msgspec.ValidationError, ValueError, TypeError):
            pass
    value = JSON.decode(body)
    if isinstance(value, dict):
        value = {key: _timed(item) if key in _TIMES else item for key, item in value.items()}
    return _to_msgpack(value)


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
_EXTS = {0xD6: 2, 0xD7: 2, 0xC7: 3}  # fixext 4, fixext 8, ext 8: where their data begins


def _plain(body: Raw | bytes) -> Any:
    """A msgpack value in Python's types, timestamps as text, at any depth."""
    raw = bytes(body)
    first = raw[0]
    if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
        return {key: _plain(value) for key, value in _decode_map(raw).items()}
    if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
        return [_plain(value) for value in _decode_list(raw)]
    if (begin := _EXTS.get(first)) is not None and raw[begin - 1] == 0xFF:
        return timestamps.rfc3339(timestamps.of_ext(raw[begin:]))
    return MSGPACK.decode(raw)
