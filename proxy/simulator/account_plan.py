"""What Alpaca knows of an account: its keys, what it has paid for, and the places that it holds.

A *place* is the right to one connection: an account has `Plan.connections` of them on each feed. The first to come
keeps its place and nobody displaces it; it is free again when its connection ends, or `Plan.ghost_seconds` later when
the connection ended without a word (Alpaca takes about 90 s to notice a peer that vanished).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

# docs.alpaca.markets, "Streaming Market Data", the table of errors.
ERRORS: Mapping[int, str] = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    408: "v2 not enabled",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
    411: "insufficient scope",
    412: "option messages are only available in MsgPack format",
    413: "star subscription is not allowed for option quotes",
    500: "internal error",
}


@dataclass(frozen=True, slots=True)
class AccountPlan:
    """What an account may do, and how Alpaca treats its connections.

    `feeds` are those that it may log in to (None: all). `symbol_limit` bounds the trades, quotes and order books that
    one connection holds, for all feeds or by feed; bars are free, and `*` is over every limit. `connections` is the
    number of places on each feed. `request_bytes` is the largest message that a client may send.
    """

    feeds: Collection[str] | None = None
    symbol_limit: int | Mapping[str, int] | None = None
    connections: int = 1
    ghost_seconds: float = 0
    auth_seconds: float = 10
    request_bytes: int = 16 * 1024

    def limit(self, feed: str) -> int | None:
        """How many trades, quotes and order books a connection to this feed may hold; None: any number."""
        if isinstance(self.symbol_limit, Mapping):
            return self.symbol_limit.get(feed)
        return self.symbol_limit


@dataclass
class AccountSlots:
    """Decides who gets in. `clock` counts seconds.

    `auth_refusals` (by feed) and `symbol_refusals` (by symbol) are scripted: codes that are answered whatever the plan
    says. No secret is ever shown.
    """

    keys: Mapping[str, str] = field(repr=False)
    plan: AccountPlan
    clock: Callable[[], float]
    auth_refusals: dict[str, int] = field(default_factory=dict)
    symbol_refusals: dict[str, int] = field(default_factory=dict)
    _places: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)
    _ghosts: dict[tuple[str, str], list[float]] = field(default_factory=dict, repr=False)

    def admit(self, feed: str, key: str, secret: str) -> int | None:
        """Takes a place for this login, or says by its code why not."""
        if (scripted := self.auth_refusals.get(feed)) is not None:
            return scripted
        known = self.keys.get(key)
        if known is None or not hmac.compare_digest(known.encode(), secret.encode()):
            return 402
        if self.plan.feeds is not None and feed not in self.plan.feeds:
            return 409
        place = (feed, key)
        held = self._places.get(place, 0)
        if held + self._haunted(place) >= self.plan.connections:
            return 406
        self._places[place] = held + 1
        return None

    def leave(self, feed: str, key: str, *, farewell: bool) -> None:
        """Gives a place back; without a `farewell` (a close frame from the client) its ghost may stay for a while."""
        place = (feed, key)
        self._places[place] -= 1
        if not farewell and self.plan.ghost_seconds > 0:
            self._ghosts.setdefault(place, []).append(self.clock() + self.plan.ghost_seconds)

    def _haunted(self, place: tuple[str, str]) -> int:
        now = self.clock()
        self._ghosts[place] = [until for until in self._ghosts.get(place, ()) if until > now]
        return len(self._ghosts[place])
