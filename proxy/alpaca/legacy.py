"""The legacy dialect: Alpaca's data stream of 2020, served on `/stream`.

Programs of that time (StreamConn) listen to `T.SPY`, `Q.SPY`, `AM.SPY` and `AM.*`, with or without the prefix
`alpacadatav1/`. These are mapped to trades, quotes and bars of the default feed, and their messages are converted to
the shape of that time, one object a frame (alpacahq/user-docs, "Streaming", 2020). The frames are text frames, unlike
those of the trading stream: a program of that time (marketstore) ignores data in binary ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from proxy.alpaca import timestamps
from proxy.alpaca.codec import JSON, MSGPACK, Codec, Head, JsonCodec, Malformed, Raw
from proxy.alpaca.endpoints import CHANNEL_OF_KIND
from proxy.alpaca.topics import MAX_SYMBOL, Topic
from proxy.alpaca.transcode import msgpack_of

PREFIX = "alpacadatav1/"
_CHANNELS = {"T": "trades", "Q": "quotes", "AM": "bars"}
_EVENTS = {channel: event for event, channel in _CHANNELS.items()}
_MILLISECOND = 1_000_000
_MINUTE = 60_000  # milliseconds

Fields = dict[str, Raw]


def topic(stream: str) -> Topic | None:
    """Return the topic of a legacy stream name, or None if it is not one."""
    event, dot, symbol = stream.removeprefix(PREFIX).partition(".")
    channel = _CHANNELS.get(event)
    if channel is None or not dot or not 0 < len(symbol) <= MAX_SYMBOL or ("*" in symbol and symbol != "*"):
        return None
    return channel, symbol


def stream(of: Topic) -> str:
    """Return the legacy stream name of a topic of trades, quotes or bars.

    It has no prefix, as in Alpaca's replies. Raises KeyError for other channels.
    """
    return f"{_EVENTS[of[0]]}.{of[1]}"


def is_legacy(of: Topic) -> bool:
    """Whether a topic has a legacy stream name."""
    return of[0] in _EVENTS


class _Legacy(JsonCodec):
    """Market data in the legacy shapes: one JSON message in each text frame."""

    name = "legacy"

    @property
    def base(self) -> Codec:
        return JSON

    def to_client_body(self, kind: str, body: Raw | bytes) -> bytes | None:
        shape = _SHAPES.get(kind)
        if shape is None:
            return None  # corrections and cancel errors did not exist in this stream
        message = JSON.fields(body)
        data = shape(message)
        return self.encode({"stream": stream((CHANNEL_OF_KIND[kind], JSON.head(body).S)), "data": data})

    def split(self, frame: bytes) -> tuple[list[Raw], list[Head]]:
        """Return the one message of a frame. Raises Malformed if it is not market data of this stream."""
        of = topic(self.text_of(self.envelope(frame).stream) or "")
        if of is None:
            raise Malformed("not market data of the legacy stream")
        return [Raw(frame)], [Head(_KINDS[of[0]], of[1])]

    def batches(self, bodies: Sequence[Raw | bytes]) -> Iterator[tuple[bytes, int]]:
        for body in bodies:
            yield bytes(body), 1


def _trade(m: Fields) -> dict[str, Any]:
    return {"ev": "T", "T": m["S"], **_present(m, "x", "p", "s", "c", "i", "z"), "t": _nanoseconds(m)}


def _quote(m: Fields) -> dict[str, Any]:
    names = {"x": "bx", "p": "bp", "s": "bs", "X": "ax", "P": "ap", "S": "as", "c": "c"}
    return {
        "ev": "Q",
        "T": m["S"],
        **{name: m[key] for name, key in names.items() if key in m},
        "t": _nanoseconds(m),
    }


def _bar(m: Fields) -> dict[str, Any]:
    start = _nanoseconds(m) // _MILLISECOND
    return {
        "ev": "AM",
        "T": m["S"],
        **_present(m, "v", "o", "h", "l", "c", "vw", "n"),
        "s": start,
        "e": start + _MINUTE,
    }


_SHAPES = {"t": _trade, "q": _quote, "b": _bar}
_KINDS = {CHANNEL_OF_KIND[kind]: kind for kind in _SHAPES}


def _present(message: Fields, *keys: str) -> Fields:
    return {key: message[key] for key in keys if key in message}


def _nanoseconds(message: Fields) -> int:
    return timestamps.nanoseconds(JSON.text_of(message["t"]) or "") if "t" in message else 0


def topics(streams: Iterable[str]) -> frozenset[Topic]:
    """Return the topics of the legacy stream names among these."""
    return frozenset(named for name in streams if (named := topic(name)) is not None)


class _LegacyMsgPack(_Legacy):
    """The same as msgpack, in binary frames."""

    name = "legacy, msgpack"
    text = False

    def to_client_body(self, kind: str, body: Raw | bytes) -> bytes | None:
        converted = super().to_client_body(kind, body)
        return None if converted is None else msgpack_of(converted)


LEGACY: dict[str, Codec] = {JSON.name: _Legacy(), MSGPACK.name: _LegacyMsgPack()}
