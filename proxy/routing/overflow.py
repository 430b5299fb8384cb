"""Conflation: what may be left out of a slow client's pending messages without telling it a lie.

Of quotes, updated bars and daily bars only the newest of a symbol counts; the older ones are dropped. Trades, bars,
corrections, statuses and news are facts of their own, and order books are deltas: none of them is ever dropped.
Control messages stay where they are. Pure: payloads in, payloads out.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.protocol.codec import Codec, Malformed, Raw
from proxy.protocol.market import CONTROL

CONFLATED = frozenset(("q", "u", "d"))
FRAME_MESSAGES = 500


def conflate(payloads: Sequence[bytes], codec: Codec) -> tuple[list[bytes], int]:
    """The frames that say the same in less, in order, and how many messages were left out."""
    messages: list[tuple[str, str, Raw | bytes]] = []
    for payload in payloads:
        try:
            raws, heads = codec.split(payload)
        except Malformed:
            return list(payloads), 0
        messages.extend((head.T, head.S, raw) for head, raw in zip(heads, raws, strict=True))
    newest = {(kind, symbol): at for at, (kind, symbol, _) in enumerate(messages) if kind in CONFLATED}
    kept: list[bytes] = []
    batch: list[Raw | bytes] = []
    dropped = 0
    for at, (kind, symbol, body) in enumerate(messages):
        if kind in CONFLATED and newest[kind, symbol] != at:
            dropped += 1
            continue
        if kind in CONTROL or len(batch) >= FRAME_MESSAGES:
            _flush(batch, kept, codec)
        if kind in CONTROL:
            kept.append(codec.join([body]))
        else:
            batch.append(body)
    _flush(batch, kept, codec)
    return kept, dropped


def _flush(batch: list[Raw | bytes], kept: list[bytes], codec: Codec) -> None:
    if batch:
        kept.append(codec.join(batch))
        batch.clear()
