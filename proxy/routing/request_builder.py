"""One request to Alpaca: a piece of what is to be asked for or given up, small enough to be taken.

Alpaca closes connections that send large messages, so a request has a bound in bytes; what has no room in it goes with
the next one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import filterfalse, islice

from proxy.alpaca.codec import JSON
from proxy.alpaca.topics import Topic

REQUEST_BYTES = 16 * 1024
RUN = 256  # topics that are measured together

_ENVELOPE = len('{"action":"unsubscribe"}')
_CHANNEL = len(",:[]")
_SYMBOL = len('"",')
_PLAIN = re.compile("[A-Z0-9./]+").fullmatch  # is encoded as it is, which takes half the time to see


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One piece of the difference between wanted and acked, to be sent upstream."""

    add: bool
    topics: tuple[Topic, ...]


class RequestBuilder:
    """The topics of a request in the making; counted in JSON, which is the longer codec."""

    __slots__ = ("_channels", "_room", "full", "topics")

    def __init__(self) -> None:
        self.topics: dict[Topic, None] = {}
        self.full = False
        self._channels: set[str] = set()
        self._room = REQUEST_BYTES - _ENVELOPE

    def __repr__(self) -> str:
        return f"<RequestBuilder {len(self.topics)} topics, room for {self._room} bytes>"

    def fill(self, topics: Iterable[Topic]) -> None:
        """Adds those that are not in it yet, while there is room. It takes them by the run: there may be thousands."""
        if self.full:
            return
        rest = filterfalse(self.topics.__contains__, topics) if self.topics else iter(topics)
        while run := dict.fromkeys(islice(rest, RUN)):
            size, channels = self._measure(run)
            if size > self._room:
                self._fill_up(run)
                return
            self._take(run, size, channels)

    def _fill_up(self, topics: Iterable[Topic]) -> None:
        """Adds them one by one, up to the first that there is no room for."""
        for topic in topics:
            size, channels = self._measure((topic,))
            if size > self._room:
                self.full = True
                return
            self._take({topic: None}, size, channels)

    def _take(self, topics: dict[Topic, None], size: int, channels: set[str]) -> None:
        self._room -= size
        self._channels |= channels
        self.topics |= topics

    def _measure(self, topics: Collection[Topic]) -> tuple[int, set[str]]:
        """How many bytes these would add, and which channels."""
        text = "".join([symbol for _, symbol in topics])
        # JSON escapes each character by itself, so all at once take what they take one by one.
        size = (len(text) if _PLAIN(text) else len(JSON.encode(text)) - 2) + len(topics) * _SYMBOL
        channels = {channel for channel, _ in topics} - self._channels
        return size + sum(len(JSON.encode(channel)) + _CHANNEL for channel in channels), channels
