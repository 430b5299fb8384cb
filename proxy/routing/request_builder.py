"""One request to Alpaca: a part of the topics to add or remove, bounded in bytes.

Alpaca closes connections that send large messages, so a request has at most REQUEST_BYTES; topics that do not fit are
left for the next request.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import filterfalse, islice

from proxy.alpaca.codec import JSON
from proxy.alpaca.topics import Topic

REQUEST_BYTES = 16 * 1024
BATCH_TOPICS = 256  # measured together

_ENVELOPE = len('{"action":"unsubscribe"}')
_CHANNEL = len(",:[]")
_SYMBOL = len('"",')
_UNESCAPED = re.compile("[A-Z0-9./]+").fullmatch  # JSON encodes these as they are; the match takes half as long


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request to Alpaca that adds or removes these topics."""

    add: bool
    topics: tuple[Topic, ...]


class RequestBuilder:
    """Collects the topics of one request. Sizes are those in JSON, the longer codec."""

    __slots__ = ("_channels", "_room", "full", "topics")

    def __init__(self) -> None:
        self.topics: dict[Topic, None] = {}
        self.full = False
        self._channels: set[str] = set()
        self._room = REQUEST_BYTES - _ENVELOPE

    def __repr__(self) -> str:
        return f"<RequestBuilder {len(self.topics)} topics, room for {self._room} bytes>"

    def fill(self, topics: Iterable[Topic]) -> None:
        """Add the topics that are not included yet, up to the first that does not fit.

        They are measured in batches, since there may be thousands.
        """
        if self.full:
            return
        rest = filterfalse(self.topics.__contains__, topics) if self.topics else iter(topics)
        while batch := dict.fromkeys(islice(rest, BATCH_TOPICS)):
            size, channels = self._measure(batch)
            if size > self._room:
                self._fill_one_by_one(batch)
                return
            self._add(batch, size, channels)

    def _fill_one_by_one(self, topics: Iterable[Topic]) -> None:
        for topic in topics:
            size, channels = self._measure((topic,))
            if size > self._room:
                self.full = True
                return
            self._add({topic: None}, size, channels)

    def _add(self, topics: dict[Topic, None], size: int, channels: set[str]) -> None:
        self._room -= size
        self._channels |= channels
        self.topics |= topics

    def _measure(self, topics: Collection[Topic]) -> tuple[int, set[str]]:
        """Return the bytes that the topics would add, and the channels that are new."""
        text = "".join([symbol for _, symbol in topics])
        # JSON escapes each character on its own, so the joined symbols are as long as the separate ones together.
        size = (len(text) if _UNESCAPED(text) else len(JSON.encode(text)) - 2) + len(topics) * _SYMBOL
        channels = {channel for channel, _ in topics} - self._channels
        return size + sum(len(JSON.encode(channel)) + _CHANNEL for channel in channels), channels
