"""One request to Alpaca: a part of the topics to add or remove, bounded in bytes.

Alpaca closes connections that send large messages, so a request has at most REQUEST_BYTES; topics that do not fit are
left for the next request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.alpaca.client_protocol import Acknowledged
from proxy.alpaca.codec import JSON
from proxy.alpaca.topics import Topic
from proxy.routing.subscriber import PendingRequest

REQUEST_BYTES = 16 * 1024

_ENVELOPE = len('{"action":"unsubscribe"}')
_CHANNEL = len(",:[]")
_SYMBOL = len('"",')
_UNESCAPED = re.compile("[A-Z0-9./]+").fullmatch  # JSON encodes these as they are; the match takes half as long


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request to Alpaca that adds or removes these topics.

    `sole` is the session's request if it carries that of one session alone.
    """

    add: bool
    topics: tuple[Topic, ...]
    sole: PendingRequest | None = None

    def is_answered_by(self, state: Acknowledged) -> bool:
        """Whether a state shows any effect of the request; if not, it may be no answer to it."""
        if self.add:
            return len(state.lacks(frozenset(self.topics))) < len(self.topics)
        return not state.channels or state.topics.isdisjoint(self.topics)


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
        """Add the topics that are not included yet, up to the first that does not fit."""
        if self.full:
            return
        for topic in topics:
            if topic in self.topics:
                continue
            channel, symbol = topic
            size = _SYMBOL + _length(symbol)
            if channel not in self._channels:
                size += _CHANNEL + len(JSON.encode(channel))
            if size > self._room:
                self.full = True
                return
            self._room -= size
            self._channels.add(channel)
            self.topics[topic] = None


def _length(symbol: str) -> int:
    """Return the length of a symbol in JSON, without its quotes."""
    return len(symbol) if _UNESCAPED(symbol) else len(JSON.encode(symbol)) - 2
