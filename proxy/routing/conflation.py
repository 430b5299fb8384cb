"""Conflation: drop the outdated ones of a slow client's pending messages.

Of quotes, updated bars and daily bars only the newest of each symbol is kept. Updates of an order book build on each
other: if several of a pair are pending, the last is replaced by the whole book and the others are dropped. Trades,
bars, corrections, statuses and news are never dropped, since a later one does not replace them. Control messages keep
their position. Pure: payloads in, payloads out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from proxy.alpaca.codec import Codec, Malformed, Raw
from proxy.alpaca.market import CONTROL
from proxy.routing import order_books as books

CONFLATED = frozenset(("q", "u", "d", books.KIND))
FRAME_MESSAGES = 500

Body = Raw | bytes
WholeBook = Callable[[str], Body | None]


def conflate(payloads: Sequence[bytes], codec: Codec, whole_book: WholeBook) -> tuple[list[bytes], int]:
    """Return the conflated frames, in order, and the number of messages dropped.

    `whole_book` returns the body of a pair's order book as it is after the last of these payloads, or None. If a
    payload cannot be split into messages, all payloads are returned unchanged.
    """
    messages: list[tuple[str, str, Body]] = []
    for payload in payloads:
        try:
            raws, heads = codec.split(payload)
        except Malformed:
            return list(payloads), 0
        messages.extend((head.T, head.S, raw) for head, raw in zip(heads, raws, strict=True))
    newest = {(kind, symbol): at for at, (kind, symbol, _) in enumerate(messages) if kind in CONFLATED}
    for pair, updates in Counter(symbol for kind, symbol, _ in messages if kind == books.KIND).items():
        whole = whole_book(pair) if updates > 1 else None
        if whole is None:  # a single update, or there is no book to replace the updates with
            del newest[books.KIND, pair]
        else:
            messages[newest[books.KIND, pair]] = (books.KIND, pair, whole)
    frames: list[bytes] = []
    batch: list[Body] = []
    dropped = 0
    for at, (kind, symbol, body) in enumerate(messages):
        if newest.get((kind, symbol), at) != at:
            dropped += 1
            continue
        if kind in CONTROL or len(batch) >= FRAME_MESSAGES:
            _flush(batch, frames, codec)
        if kind in CONTROL:
            frames.append(codec.join([body]))
        else:
            batch.append(body)
    _flush(batch, frames, codec)
    return frames, dropped


def _flush(batch: list[Body], frames: list[bytes], codec: Codec) -> None:
    if batch:
        frames.extend(payload for payload, _ in codec.batches(batch))
        batch.clear()
