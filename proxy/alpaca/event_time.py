"""The event time in a message, from which its lag is measured.

Ticks carry it in `t`, order updates in `timestamp` or, the newer ones, in `at`. Other kinds are skipped: a bar's `t` is
the start of its interval, a correction's that of the trade which it corrects.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from proxy.alpaca.codec import JSON, MSGPACK, Codec, Malformed, Raw

_TICKS = frozenset("tqo")  # trades, quotes, order books


class _Tick(msgspec.Struct, gc=False):
    t: datetime | None = None


class _Update(msgspec.Struct, gc=False):
    timestamp: datetime | None = None
    at: datetime | None = None


_update = msgspec.json.Decoder(_Update)
_ticks = {JSON: msgspec.json.Decoder(_Tick), MSGPACK: msgspec.msgpack.Decoder(_Tick)}


def event_time(frame: bytes, codec: Codec) -> float | None:
    """Return the time of a frame's first tick or order update, or None.

    In seconds since 1970.
    """
    try:
        if frame.startswith(b"{"):  # the trading stream, which is always JSON; market data is in arrays
            update = _decoded(_update, codec.envelope(frame).data)
            return None if update is None else _seconds(update.timestamp or update.at)
        raws, heads = codec.split(frame)
    except Malformed:
        return None
    for raw, head in zip(raws, heads, strict=True):
        if head.T in _TICKS:
            tick = _decoded(_ticks[codec], raw)
            return None if tick is None else _seconds(tick.t)
    return None


def _decoded(decoder: Any, body: Raw) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError):
        return None


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
