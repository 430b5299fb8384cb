"""Current order books, for sessions that join late.

Alpaca sends a pair's book once in full (`r` is true), when the pair is subscribed, and then its differences: a level
replaces the one at its price, a size of 0 removes it. A session that subscribes to a pair that is already subscribed
upstream would receive only differences. So each book is kept, and can be sent in full at any time, in the same form. A
book is removed when a difference cannot be applied, so that no wrong book is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Annotated

import msgspec

from proxy.alpaca.codec import JSON, MSGPACK, Codec, Raw
from proxy.alpaca.topics import Topic, covers
from proxy.routing.route_cache import MAX_NAME

CHANNEL, KIND = "orderbooks", "o"

MAX_BOOKS = 4096
MAX_LEVELS = 10_000  # of one side of one book
MAX_ALL_LEVELS = 250_000  # of all books together, about 150 bytes each
MAX_UPDATE = 512 * 1024  # bytes of one message: a full book of MAX_LEVELS, which takes about 10 ms to apply

# Integers beyond 2**53 are not prices. They could be chosen to collide as keys, since hashes of numbers are not salted.
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
    """One pair's bids and asks, price → size, and the time of its last update.

    The time is kept undecoded.
    """

    __slots__ = ("asks", "bids", "time")

    def __init__(self) -> None:
        self.bids: dict[Number, Number] = {}
        self.asks: dict[Number, Number] = {}
        self.time = b""

    def __repr__(self) -> str:
        return f"<Book {len(self.bids)} bids, {len(self.asks)} asks>"

    @property
    def levels(self) -> int:
        """The number of levels of both sides."""
        return len(self.bids) + len(self.asks)

    def apply(self, update: _Update) -> None:
        """Apply a full book or its differences."""
        self.time = bytes(update.t)
        for side, levels in ((self.bids, update.b), (self.asks, update.a)):
            for level in levels or ():
                if level.s:
                    side[level.p] = level.s
                else:
                    side.pop(level.p, None)


class Books:
    """The books of one feed, whose upstream connection uses `codec`."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._decode = _DECODE[codec]
        self._books: dict[str, Book] = {}
        self._levels = 0  # of all books

    def __repr__(self) -> str:
        return f"<Books of {len(self._books)} pairs, {self._levels} levels>"

    def __len__(self) -> int:
        return len(self._books)

    def apply(self, symbol: str, body: Raw | bytes) -> None:
        """Apply an order book message.

        Differences of a book that is not kept are ignored.
        """
        if len(body) > MAX_UPDATE or len(symbol) > MAX_NAME:
            self._remove(symbol)
            return
        try:
            update = self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._remove(symbol)
            return
        if update.r:
            self._remove(symbol)
            if len(self._books) == MAX_BOOKS:
                return
            self._books[symbol] = Book()
        book = self._books.get(symbol)
        if book is None:
            return
        before = book.levels
        book.apply(update)
        self._levels += book.levels - before
        if max(len(book.bids), len(book.asks)) > MAX_LEVELS or self._levels > MAX_ALL_LEVELS:
            self._remove(symbol)

    def _remove(self, symbol: str) -> None:
        if (book := self._books.pop(symbol, None)) is not None:
            self._levels -= book.levels

    def keep(self, acked: Set[Topic]) -> None:
        """Remove the books of pairs that Alpaca no longer sends."""
        for symbol in [symbol for symbol in self._books if not covers(acked, (CHANNEL, symbol))]:
            self._remove(symbol)

    def gained(self, before: Set[Topic], now: Set[Topic]) -> Iterable[str]:
        """Return the symbols of books that `now` covers and `before` does not."""
        return [
            symbol for symbol in self._books if covers(now, (CHANNEL, symbol)) and not covers(before, (CHANNEL, symbol))
        ]

    def whole(self, symbol: str) -> bytes | None:
        """Return the body of a message with the whole book, best prices first.

        None if the book is not kept.
        """
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
