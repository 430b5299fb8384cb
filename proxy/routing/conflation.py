"""Conflation: what is pending for a client that has fallen behind, without the messages that newer ones replace.

Of quotes, updated bars and daily bars only the newest of each symbol stays pending. Updates of an order book build on
each other: once a pair's pending updates outweigh the book, the whole book takes their place. Nothing else is ever
dropped, and what remains keeps its order.

A message is conflated when it joins the backlog, which costs one look-up. Pure: payloads in, frames out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from proxy.alpaca.codec import Codec, Raw
from proxy.alpaca.cooperative import Deferred
from proxy.alpaca.topics import Topic
from proxy.routing import order_books as books

NEWEST = frozenset(("q", "u", "d"))  # kinds of which a later message replaces an earlier one of the same symbol
MESSAGE_BYTES = 100  # a message counts for no less: about this much memory is needed to hold one, beside its body
BOOK_BYTES = 4 * 1024  # of a pair's updates that may be pending before a look at its book, which takes long to encode

Body = Raw | bytes
WholeBook = Callable[[str], Body | None]


@dataclass(slots=True)
class _Whole:
    """A frame that is sent as it is: a reply, or data that cannot be split."""

    frame: bytes | Deferred
    messages: int


@dataclass(slots=True)
class _BookUpdates:
    """A pair's pending updates.

    `keys` are theirs in the backlog, after that of the whole book, if one is pending. `size` are the bytes of the
    updates after it; at `due` bytes the whole book replaces them all.
    """

    keys: list[int] = field(default_factory=list)
    size: int = 0
    due: int = BOOK_BYTES


class Backlog:
    """The pending messages of one client, in the order in which they came.

    `codec` is that of the data, `whole_book` returns the body of a pair's order book as it is after everything that has
    been added (None: no book is kept, and updates are not replaced), and `encode` makes a frame of a payload of data.
    `size` is in bytes, at least MESSAGE_BYTES a message, and `messages` is their number.

    When messages are taken, all that are pending at that moment are taken before any later one, and are not replaced
    any more. Otherwise a symbol with frequent quotes would always be at the end, and never be sent.
    """

    def __init__(self, codec: Codec, whole_book: WholeBook, encode: Callable[[bytes], bytes]) -> None:
        self.size = self.messages = 0
        self._codec = codec
        self._whole_book = whole_book
        self._encode = encode
        # By topic, or by a number of its own if no other message replaces it.
        self._pending: dict[Topic | int, bytes | _Whole] = {}
        self._taken: deque[bytes | _Whole] = deque()
        self._book_updates: dict[str, _BookUpdates] = {}
        self._last_key = 0

    def __repr__(self) -> str:
        return f"<Backlog of {self.messages} messages, {self.size} bytes>"

    def __bool__(self) -> bool:
        return bool(self._pending or self._taken)

    def add(self, payload: bytes) -> int:
        """Add the messages of a data frame's payload; return the number of messages that were dropped for newer ones.

        Raises Malformed if it is no array of messages. Nothing has been added if it raises.
        """
        raws, heads = self._codec.split(payload)
        pending, updated = self._pending, set()
        size = dropped = 0
        for raw, head in zip(raws, heads, strict=True):
            body = bytes(raw)  # a slice would keep the whole frame in memory
            kind = head.T
            if kind in NEWEST:
                key: Topic | int = (kind, head.S)
                if (replaced := pending.pop(key, None)) is not None:
                    size -= _size(replaced)
                    dropped += 1
            else:
                self._last_key = key = self._last_key + 1
                if kind == books.KIND:
                    self._add_update(head.S, key, len(body))
                    updated.add(head.S)
            pending[key] = body
            size += _size(body)
        self.size += size
        dropped += sum(map(self._replace_updates, updated))  # only now: the books contain all updates of the frame
        self.messages += len(raws) - dropped
        return dropped

    def add_whole(self, frame: bytes | Deferred, messages: int) -> None:
        """Add an encoded frame, which nothing replaces."""
        self._last_key += 1
        self._pending[self._last_key] = whole = _Whole(frame, messages)
        self.size += _size(whole)
        self.messages += messages

    def take(self, size: int) -> Iterator[tuple[bytes | Deferred, int]]:
        """Remove the oldest messages, about `size` bytes; yield them as frames, with the number of messages in each."""
        if not self._taken:
            self._taken.extend(self._pending.values())
            self._pending = {}
            self._book_updates = {}
        until = self.size - size
        batch: list[bytes] = []
        while self._taken and self.size > until:
            message = self._taken.popleft()
            self.size -= _size(message)
            if isinstance(message, bytes):
                batch.append(message)
            else:
                yield from self._frames(batch)
                batch = []
                self.messages -= message.messages
                yield message.frame, message.messages
        yield from self._frames(batch)

    def clear(self) -> None:
        """Remove everything."""
        self._pending, self._book_updates = {}, {}
        self._taken.clear()
        self.size = self.messages = 0

    def _add_update(self, pair: str, key: int, size: int) -> None:
        updates = self._book_updates.get(pair)
        if updates is None:
            updates = self._book_updates[pair] = _BookUpdates()
        updates.keys.append(key)
        updates.size += size

    def _replace_updates(self, pair: str) -> int:
        """Replace a pair's updates with its whole book if that is due; return the number of messages dropped."""
        updates = self._book_updates[pair]
        if updates.size < updates.due or len(updates.keys) == 1:
            return 0
        whole = self._whole_book(pair)
        if whole is None:
            updates.due = 2 * updates.size  # there may be a book again later
            return 0
        body = bytes(whole)
        for key in updates.keys:
            self.size -= _size(self._pending.pop(key))
        self._last_key += 1
        self._pending[self._last_key] = body
        self.size += _size(body)
        dropped = len(updates.keys) - 1  # the whole book counts for the last of them
        self._book_updates[pair] = _BookUpdates([self._last_key], 0, max(BOOK_BYTES, len(body)))
        return dropped

    def _frames(self, batch: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
        if batch:
            self.messages -= len(batch)
            for payload, messages in self._codec.batches(batch):
                yield self._encode(payload), messages


def _size(message: bytes | _Whole) -> int:
    size = len(message) if isinstance(message, bytes) else len(message.frame)
    return size if size > MESSAGE_BYTES else MESSAGE_BYTES
