"""A look at one topic as it flows: a bounded sample of its newest messages, for the status page.

A tap hears through the router like a session, so whatever is nobody's tap costs nothing. The ledger does not know it:
it wants nothing of Alpaca and shows only what flows already. It lasts as long as somebody asks for it. Order updates
are their clients' own business and are not shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Set
from typing import Any, Protocol

from proxy.alpaca.codec import JSON, Codec, Malformed
from proxy.alpaca.endpoints import WILDCARD, Dialect, Endpoint
from proxy.alpaca.topics import MAX_SYMBOL, Topic
from proxy.alpaca.transcode import transcode
from proxy.routing.router import Routing
from proxy.transport import frames
from proxy.transport.listener import HttpResponse

KEPT = 20  # messages
SPACING_SECONDS = 0.1  # between two that are kept
IDLE_SECONDS = 5.0  # without anybody asking, then it is over
MOST = 4  # at once
TEXT = 2000  # characters of a message that are shown

_JSON = "application/json; charset=utf-8"


class Tappable(Protocol):
    """A feed that taps may listen to."""

    endpoint: Endpoint
    codec: Codec
    router: Routing

    @property
    def acked(self) -> Set[Topic]:
        """The topics that Alpaca sends."""


class Tap:
    """One topic of one upstream. `seen` counts all its messages, shown or not."""

    def __init__(self, upstream: Tappable, topic: Topic, clock: Callable[[], float]) -> None:
        self.name = ""  # no client
        self.codec = upstream.codec
        self.accepts_unknown = False
        self.outages = 0
        self.upstream = upstream
        self.topic = topic
        self.put: Callable[[bytes, int], None] = self._take
        self.asked_at = clock()
        self.seen = 0
        self.messages: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._clock = clock
        self._open_at = self.asked_at
        upstream.router.set_subscription(self, frozenset([topic]))

    def __repr__(self) -> str:
        return f"<Tap {' '.join(self.topic)} of {self.upstream!r}>"

    def _take(self, frame: bytes, messages: int) -> None:
        """A frame that carries so many messages; its last one is kept, if it is time for another."""
        self.seen += messages
        now = self._clock()
        if now < self._open_at:
            return
        self._open_at = now + SPACING_SECONDS
        try:
            raws, heads = self.codec.split(frames.payload_of(frame))
            text = bytes(transcode(heads[-1].T, raws[-1], self.codec, JSON) or b"").decode()
        except (Malformed, UnicodeDecodeError):
            return
        self.messages.append({"number": self.seen, "text": text if len(text) <= TEXT else f"{text[:TEXT]}…"})

    def flows(self) -> bool:
        """Whether Alpaca sends any of it."""
        channel, symbol = self.topic
        acked = self.upstream.acked
        if symbol == WILDCARD:
            return any(topic[0] == channel for topic in acked)
        return self.topic in acked or (channel, WILDCARD) in acked

    def close(self) -> None:
        self.upstream.router.remove(self)


class Taps:
    """Those that are open. `find` gives an account's upstream of a feed, if there is one."""

    def __init__(self, find: Callable[[str, str], Tappable | None], clock: Callable[[], float]) -> None:
        self._find = find
        self._clock = clock
        self._open: dict[tuple[str, str, Topic], Tap] = {}

    def __repr__(self) -> str:
        return f"<Taps {len(self._open)} open>"

    def answer(self, query: Mapping[str, str]) -> HttpResponse:
        """What `/tap?account=…&feed=…&channel=…&symbol=…` gets; asking opens the tap and keeps it open."""
        account, feed, channel, symbol = (query.get(name, "") for name in ("account", "feed", "channel", "symbol"))
        upstream = self._find(account, feed)
        if upstream is None:
            return "404 Not Found", "No client has asked for this feed yet, so nothing flows."
        if upstream.endpoint.dialect is Dialect.TRADING:
            return "403 Forbidden", "Order updates are shown to their clients alone."
        if channel not in upstream.endpoint.channels or not 0 < len(symbol) <= MAX_SYMBOL:
            return "400 Bad Request", f"A tap has a symbol and one of {', '.join(upstream.endpoint.channels)}."
        place = (account, feed, (channel, symbol))
        tap = self._open.get(place)
        if tap is not None and (tap.upstream is not upstream or tap.codec is not upstream.codec):
            self._close(place)  # the feed has been reconfigured
            tap = None
        if tap is None:
            if len(self._open) >= MOST:
                return "503 Service Unavailable", f"There are {MOST} taps open; one closes when nobody looks at it."
            tap = self._open[place] = Tap(upstream, (channel, symbol), self._clock)
        tap.asked_at = self._clock()
        found = {"version": 1, "flows": tap.flows(), "seen": tap.seen, "messages": [*tap.messages]}
        return "200 OK", JSON.encode(found).decode(), _JSON

    def tick(self, now: float) -> None:
        """Closes those that nobody looks at any more."""
        for place, tap in [*self._open.items()]:
            if now - tap.asked_at >= IDLE_SECONDS:
                self._close(place)

    def _close(self, place: tuple[str, str, Topic]) -> None:
        self._open.pop(place).close()
