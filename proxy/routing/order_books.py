"""Order books as they stand, so that whoever joins late begins with a whole one.

Alpaca tells a pair's book once in full (`r` is true), when the pair is subscribed, and from then on by differences: a
level replaces the one at its price, a size of 0 takes it away. Who subscribes through the proxy to a pair that flows
already would hear differences alone. So each book that flows is kept, and can be told in full at any time, in the same
form. A book that cannot be followed is forgotten rather than told wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Annotated

import msgspec

from proxy.alpaca.codec import JSON, MSGPACK, Codec, Raw
from proxy.alpaca.topics import Topic, covers

CHANNEL, KIND = "orderbooks", "o"

MAX_BOOKS = 4096
MAX_LEVELS = 10_000  # of one side of one book

# Whole numbers beyond 2**53 are no prices, and could be chosen so that they collide as keys: the hashes of numbers are
# not salted.
Number = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)] | float


class _Level(msgspec.Struct, gc=False):
    p: Number
    s: Number


class _Update(msgspec.Struct, gc=False):
    t: Raw = Raw()
    b: list[_Level] | None = None
    a: list[_Level] | None = None
    r: bool = False


_DECODE = {
    JSON: msgspec.json.Decoder(_Update).decode,
    MSGPACK: msgspec.msgpack.Decoder(_Update).decode,
}


class Book:
    """One pair's bids and asks, price → size, and the time of its last update as it was written."""

    __slots__ = ("asks", "bids", "time")

    def __init__(self) -> None:
        self.bids: dict[Number, Number] = {}
        self.asks: dict[Number, Number] = {}
        self.time = b""

    def __repr__(self) -> str:
        return f"<Book {len(self.bids)} bids, {len(self.asks)} asks>"

    def apply(self, update: _Update) -> None:
        """Takes an update in."""
        self.time = bytes(update.t)
        for side, levels in ((self.bids, update.b), (self.asks, update.a)):
            for level in levels or ():
                if level.s:
                    side[level.p] = level.s
                else:
                    side.pop(level.p, None)


class Books:
    """The books of one feed, whose upstream speaks `codec`."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._decode = _DECODE[codec]
        self._books: dict[str, Book] = {}

    def __repr__(self) -> str:
        return f"<Books of {len(self._books)} pairs>"

    def __len__(self) -> int:
        return len(self._books)

    def apply(self, symbol: str, body: Raw | bytes) -> None:
        """An order book message has come. One that only changes a book which nobody knows is nothing to begin with."""
        try:
            update = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._books.pop(symbol, None)
            return
        book = self._books.get(symbol)
        if update.r and (book is not None or len(self._books) < MAX_BOOKS):
            book = self._books[symbol] = Book()
        if book is not None:
            book.apply(update)
            if max(len(book.bids), len(book.asks)) > MAX_LEVELS:
                del self._books[symbol]

    def keep(self, acked: Set[Topic]) -> None:
        """Forgets the books of what Alpaca no longer sends."""
        for symbol in [symbol for symbol in self._books if not covers(acked, (CHANNEL, symbol))]:
            del self._books[symbol]

    def gained(self, before: Set[Topic], now: Set[Topic]) -> Iterable[str]:
        """The symbols whose books who holds `now` hears, and did not with `before`."""
        return [
            symbol for symbol in self._books if covers(now, (CHANNEL, symbol)) and not covers(before, (CHANNEL, symbol))
        ]

    def whole(self, symbol: str) -> bytes | None:
        """The body of a message that tells a book in full, best prices first; None if it is not known."""
        book = self._books.get(symbol)
        if book is None:
            return None
        message = {
            "T": KIND,
            "S": symbol,
            **({"t": Raw(book.time)} if book.time else {}),
            "b": [{"p": price, "s": size} for price, size in sorted(book.bids.items(), reverse=True)],
            "a": [{"p": price, "s": size} for price, size in sorted(book.asks.items())],
            "r": True,
        }
        return self._codec.encode(message)
