"""Conflation: what may be left out of a slow client's pending messages without telling it a lie.

Of quotes, updated bars and daily bars only the newest of a symbol counts; the older ones are dropped. An order book's
differences build on each other: of several of a pair, the last gives way to the whole book and the others are dropped.
Trades, bars, corrections, statuses and news are facts of their own: none of them is ever dropped. Control messages stay
where they are. Pure: payloads in, payloads out.
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
    """The frames that say the same in less, in order, and how many messages were left out.

    `whole_book` gives the body that tells a pair's order book as it is after the last of these payloads, or None.
    """
    messages: list[tuple[str, str, Body]] = []
    for payload in payloads:
        try:
            raws, heads = codec.split(payload)
        except Malformed:
            return list(payloads), 0
        messages.extend((head.T, head.S, raw) for head, raw in zip(heads, raws, strict=True))
    newest = {(kind, symbol): at for at, (kind, symbol, _) in enumerate(messages) if kind in CONFLATED}
    for pair, changes in Counter(symbol for kind, symbol, _ in messages if kind == books.KIND).items():
        whole = whole_book(pair) if changes > 1 else None
        if whole is None:  # nothing to gain, or nothing to tell in their place
            del newest[books.KIND, pair]
        else:
            messages[newest[books.KIND, pair]] = (books.KIND, pair, whole)
    kept: list[bytes] = []
    batch: list[Body] = []
    dropped = 0
    for at, (kind, symbol, body) in enumerate(messages):
        if newest.get((kind, symbol), at) != at:
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


def _flush(batch: list[Body], kept: list[bytes], codec: Codec) -> None:
    if batch:
        kept.extend(payload for payload, _ in codec.batches(batch))
        batch.clear()
