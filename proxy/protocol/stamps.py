"""When a message was made, as it says itself: what its lag is measured against.

Ticks carry the time of the event in `t`, order updates theirs in `timestamp` or, the newer ones, `at`. Other kinds are
passed over: a bar's `t` is where its span begins, a correction's that of the trade which it corrects.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from proxy.protocol import timestamps
from proxy.protocol.codec import Codec, Malformed

_TICKS = frozenset("tqo")  # trades, quotes, order books


def made_at(frame: bytes, codec: Codec) -> float | None:
    """The time of the first tick or order update in a frame, in seconds since 1970; None if it has none."""
    try:
        if frame.startswith(b"{"):  # the trading stream, which is always JSON; market data comes in arrays
            data = codec.decode(frame).get("data")
            return _seconds(data.get("timestamp") or data.get("at")) if isinstance(data, dict) else None
        raws, heads = codec.split(frame)
        for raw, head in zip(raws, heads, strict=True):
            if head.T in _TICKS:
                return _seconds(codec.decode(raw).get("t"))
    except Malformed:
        pass
    return None


def _seconds(value: Any) -> float | None:
    if isinstance(value, datetime):
        return value.timestamp()
    try:
        return timestamps.nanoseconds(value) / 1e9
    except (TypeError, ValueError):
        return None
