"""Taps: a bounded sample of the newest messages of one topic, for the status page.

A tap subscribes at the router like a session, so topics without a tap cost nothing. It is not registered with the
reconciler: it requests nothing from Alpaca and shows only messages that sessions receive already. A tap is closed when
it is not requested any more. Order updates are not shown, because they are private to their clients.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Set
from typing import Any, Protocol

from proxy.alpaca.codec import JSON, Codec, Malformed
from proxy.alpaca.endpoints import WILDCARD, Dialect, Endpoint
from proxy.alpaca.topics import MAX_SYMBOL, Topic
from proxy.alpaca.transcode import transcode
from proxy.routing.allowlists import SymbolPatterns
from proxy.routing.router import Routing
from proxy.transport import frames
from proxy.transport.listener import HttpResponse

KEPT = 20  # messages
SPACING_SECONDS = 0.1  # between two messages that are kept
IDLE_SECONDS = 5.0  # without a request, after which a tap is closed
MAX_TAPS = 4  # open at the same time
TEXT = 2000  # characters shown of a message

_JSON = "application/json; charset=utf-8"


class Tappable(Protocol):
    """A feed that can be tapped."""

    endpoint: Endpoint
    router: Routing

    @property
    def codec(self) -> Codec:
        """The codec of the connection."""

    @property
    def acked(self) -> Set[Topic]:
        """The topics that Alpaca has confirmed."""


class Tap:
    """A subscriber to one topic of one upstream. `seen` counts all its messages, kept or not."""

    def __init__(self, upstream: Tappable, topic: Topic, clock: Callable[[], float]) -> None:
        self.name = ""  # no client
        self.codec = upstream.codec
        self.accepts_unknown: SymbolPatterns | None = None
        self.outages = 0
        self.upstream = upstream
        self.topic = topic
        self.put: Callable[[bytes, int], None] = self._take
        self.requested_at = clock()
        self.seen = 0
        self.messages: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._clock = clock
        self._keep_from = self.requested_at
        upstream.router.set_subscription(self, frozenset([topic]))

    def __repr__(self) -> str:
        return f"<Tap {' '.join(self.topic)} of {self.upstream!r}>"

    def _take(self, frame: bytes, messages: int) -> None:
        """Count the messages of a frame; keep the last one if SPACING_SECONDS have passed."""
        self.seen += messages
        now = self._clock()
        if now < self._keep_from:
            return
        self._keep_from = now + SPACING_SECONDS
        try:
            bodies, heads = self.codec.split(frames.payload_of(frame))
            text = bytes(transcode(heads[-1].T, bodies[-1], self.codec, JSON) or b"").decode()
        except (Malformed, UnicodeDecodeError):
            return
        self.messages.append({"number": self.seen, "text": text if len(text) <= TEXT else f"{text[:TEXT]}…"})

    def abort(self) -> None:
        """Do nothing: the tap ends when it is not requested any more."""

    def flows(self) -> bool:
        """Whether Alpaca sends any message of the topic."""
        channel, symbol = self.topic
        acked = self.upstream.acked
        if symbol == WILDCARD:
            return any(topic[0] == channel for topic in acked)
        return self.topic in acked or (channel, WILDCARD) in acked

    def close(self) -> None:
        self.upstream.router.remove(self)


class Taps:
    """The open taps. `find(account, feed)` returns the upstream, if there is one."""

    def __init__(self, find: Callable[[str, str], Tappable | None], clock: Callable[[], float]) -> None:
        self._find = find
        self._clock = clock
        self._open: dict[tuple[str, str, Topic], Tap] = {}

    def __repr__(self) -> str:
        return f"<Taps {len(self._open)} open>"

    def answer(self, query: Mapping[str, str]) -> HttpResponse:
        """Answer `/tap?account=…&feed=…&channel=…&symbol=…`; a request opens the tap or keeps it open."""
        account, feed, channel, symbol = (query.get(name, "") for name in ("account", "feed", "channel", "symbol"))
        upstream = self._find(account, feed)
        if upstream is None:
            return "404 Not Found", "No client has subscribed to this feed yet, so there are no messages."
        if upstream.endpoint.dialect is Dialect.TRADING:
            return "403 Forbidden", "Order updates are private to their clients."
        if channel not in upstream.endpoint.channels or not 0 < len(symbol) <= MAX_SYMBOL:
            return "400 Bad Request", f"A tap needs a symbol and one of {', '.join(upstream.endpoint.channels)}."
        key = (account, feed, (channel, symbol))
        tap = self._open.get(key)
        if tap is not None and (tap.upstream is not upstream or tap.codec is not upstream.codec):
            self._close(key)  # the feed has been reconfigured
            tap = None
        if tap is None:
            if len(self._open) >= MAX_TAPS:
                return "503 Service Unavailable", f"All {MAX_TAPS} taps are open; an unused one closes within seconds."
            tap = self._open[key] = Tap(upstream, (channel, symbol), self._clock)
        tap.requested_at = self._clock()
        document = {"version": 1, "flows": tap.flows(), "seen": tap.seen, "messages": [*tap.messages]}
        return "200 OK", JSON.encode(document).decode(), _JSON

    def tick(self, now: float) -> None:
        """Close the taps without a request in the last IDLE_SECONDS."""
        for key, tap in [*self._open.items()]:
            if now - tap.requested_at >= IDLE_SECONDS:
                self._close(key)

    def _close(self, key: tuple[str, str, Topic]) -> None:
        self._open.pop(key).close()
