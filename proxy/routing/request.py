"""One request to Alpaca: a piece of what is to be asked for or given up, small enough to be taken.

Alpaca closes connections that send large messages, so a request has a bound in bytes; what has no room in it goes with
the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.protocol.codec import JSON
from proxy.protocol.topics import Topic

REQUEST_BYTES = 16 * 1024

_ENVELOPE = len('{"action":"unsubscribe"}')
_CHANNEL = len(",:[]")
_SYMBOL = len(",")
_PLAIN = re.compile("[A-Z0-9./]+").fullmatch  # is encoded as it is, which takes half the time to see


@dataclass(frozen=True, slots=True)
class Request:
    """One piece of the difference between wanted and acked, to be sent upstream."""

    add: bool
    topics: tuple[Topic, ...]


class Piece:
    """The topics of a request in the making; counted in JSON, which is the longer codec."""

    __slots__ = ("_channels", "_room", "full", "topics")

    def __init__(self) -> None:
        self.topics: dict[Topic, None] = {}
        self.full = False
        self._channels: set[str] = set()
        self._room = REQUEST_BYTES - _ENVELOPE

    def __repr__(self) -> str:
        return f"<Piece {len(self.topics)} topics, room for {self._room} bytes>"

    def fill(self, topics: Iterable[Topic]) -> None:
        """Adds those that are not in it yet, while there is room."""
        for topic in topics:
            if topic in self.topics:
                continue
            channel, symbol = topic
            size = (len(symbol) + 2 if _PLAIN(symbol) else len(JSON.encode(symbol))) + _SYMBOL
            if channel not in self._channels:
                size += len(JSON.encode(channel)) + _CHANNEL
            if size > self._room:
                self.full = True
                return
            self._room -= size
            self._channels.add(channel)
            self.topics[topic] = None
