"""Hypothesis strategies for the bytes of messages.

They do not use the proxy's encoders, and cover what the formats allow and encoders seldom write: unusual numbers, white
space, escapes, msgpack's longer forms of short values. A decoder must read all of it, and the proxy must pass it on
unchanged.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress

from hypothesis import strategies as st

# The values of `T` and `S` in one message: none, one, two, or one that is not text.
KINDS = st.lists(st.sampled_from(["t", "q", "o", "n", "z", "success", "", "é"]), max_size=2) | st.just([7])
SYMBOLS = st.lists(st.sampled_from(["AAPL", "BTC/USD", "*", "", "é☃"]), max_size=2) | st.just([7])


def other(key: str) -> bool:
    """Whether the key is not one of a head.

    Decoders disagree on an object with two `T`, one of which is not text.
    """
    return key not in ("T", "S")


# JSON, as text

_SPACE = st.sampled_from(["", "", " ", "\n\t"])
_NUMBERS = st.sampled_from(
    ["0", "-0", "1.50", "0.1000", "1e2", "1E+05", "-0.0", "5e-324", "9007199254740993", "18446744073709551616", "-7"]
) | st.integers().map(str)
_ESCAPED = st.sampled_from(['"\\u003c\\/\\""', '"\\ud83d\\ude00"', '"\\u0000"', '"é☃"', '"]},["'])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)


def _quoted(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return texts.map(json.dumps) | texts.map(lambda text: json.dumps(text, ensure_ascii=False))


_NAMES, _QUOTED = _quoted(TEXTS.filter(other)), _quoted(TEXTS)
_SCALARS = st.sampled_from(["null", "true", "false"]) | _NUMBERS | _ESCAPED | _QUOTED


def _json_array(items: list[str], space: str) -> str:
    return f"[{space}{f'{space},'.join(items)}{space}]"


def _json_object(pairs: list[tuple[str, str]], space: str) -> str:
    items = [f"{space}{key}{space}:{space}{value}" for key, value in pairs]
    return f"{{{f'{space},'.join(items)}}}"


JSON_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.builds(_json_array, st.lists(inner, max_size=3), _SPACE)
        | st.builds(_json_object, st.lists(st.tuples(_NAMES, inner), max_size=3), _SPACE)
    ),
    max_leaves=6,
)


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    """An object with `T` and `S` or without, at any position, once or twice."""
    pairs = draw(st.lists(st.tuples(_NAMES, JSON_VALUES), max_size=4))
    for key, values in (('"T"', KINDS), ('"S"', SYMBOLS)):
        for value in draw(values):
            pairs.insert(draw(st.integers(0, len(pairs))), (key, json.dumps(value)))
    return _json_object(pairs, draw(_SPACE)).encode()


# msgpack, as bytes


def _int(value: int) -> st.SearchStrategy[bytes]:
    """The integer in every form that can hold it.

    0xCC to 0xCF are unsigned, 0xD0 to 0xD3 signed, of 1, 2, 4 and 8 bytes.
    """
    forms = [struct.pack(">b", value)] if -32 <= value < 128 else []
    for first, form in enumerate("BHIQbhiq", start=0xCC):
        with suppress(struct.error):
            forms.append(struct.pack(">B" + form, first, value))
    return st.sampled_from(forms)


def _text(value: str) -> st.SearchStrategy[bytes]:
    data = value.encode()
    size = len(data)
    heads = [b"\xd9%c" % size, b"\xda" + struct.pack(">H", size), b"\xdb" + struct.pack(">I", size)]
    if size < 32:
        heads.append(bytes((0xA0 | size,)))
    return st.sampled_from([head + data for head in heads])


def _counted(fix: int, first: int) -> Callable[[list[bytes]], st.SearchStrategy[bytes]]:
    """A function that builds an array or a map in each of its three forms."""

    def build(items: list[bytes]) -> st.SearchStrategy[bytes]:
        count = len(items)
        heads = [
            bytes((fix | count,)),
            bytes((first,)) + struct.pack(">H", count),
            bytes((first + 1,)) + struct.pack(">I", count),
        ]
        return st.sampled_from([head + b"".join(items) for head in heads])

    return build


_array = _counted(0x90, 0xDC)
_map = _counted(0x80, 0xDE)
_KEYS = TEXTS.filter(other).flatmap(_text)
_LEAVES = (
    st.sampled_from([b"\xc0", b"\xc2", b"\xc3", b"\xc4\x01x", b"\xd4\x05x", b"\xc7\x00\x07"])
    | st.integers(-(2**63), 2**64 - 1).flatmap(_int)
    | st.floats(width=32).map(lambda value: b"\xca" + struct.pack(">f", value))
    | st.floats().map(lambda value: b"\xcb" + struct.pack(">d", value))
    | st.integers(0, 2**32 - 1).map(lambda seconds: b"\xd6\xff" + struct.pack(">I", seconds))
    | TEXTS.flatmap(_text)
)


def _pairs(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.builds(bytes.__add__, _KEYS, inner), max_size=3)


MSGPACK_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3).flatmap(_array) | _pairs(inner).flatmap(_map), max_leaves=6
)


@st.composite
def msgpack_bodies(draw: st.DrawFn) -> bytes:
    """A map with `T` and `S` or without, at any position, once or twice."""
    pairs = draw(_pairs(MSGPACK_VALUES))
    for key, values in (("T", KINDS), ("S", SYMBOLS)):
        for value in draw(values):
            at = draw(st.integers(0, len(pairs)))
            pairs.insert(at, draw(_text(key)) + (draw(_text(value)) if isinstance(value, str) else draw(_int(value))))
    return draw(_map(pairs))
