"""Account state on Alpaca's side: keys, plan, and connection slots.

A *slot* is the right to one connection: an account has `AccountPlan.connections` of them on each feed. The first
connection keeps its slot; a later one never displaces it. The slot is free again when the connection ends, or
`AccountPlan.ghost_seconds` later when it ended without a close frame (Alpaca takes about 90 s to notice a peer that
vanished).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

EVERY_FEED = "*"  # in place of a feed's name

# Source: docs.alpaca.markets, "Streaming Market Data", table of errors.
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
    """Limits of an account, and timeouts of its connections.

    `feeds` are those that it may log in to (None: all). `symbol_limit` bounds the trades, quotes and order books that
    one connection subscribes to, for all feeds or by feed; bars are not counted, and `*` exceeds every limit.
    `connections` is the number of slots on each feed. `request_bytes` is the largest message that a client may send.
    `rest_requests_per_minute` bounds the REST calls of one key; Alpaca's limit for trading is 200.
    """

    feeds: Collection[str] | None = None
    symbol_limit: int | Mapping[str, int] | None = None
    connections: int = 1
    ghost_seconds: float = 0
    auth_seconds: float = 10
    request_bytes: int = 16 * 1024
    rest_requests_per_minute: int | None = None

    def limit(self, feed: str) -> int | None:
        """Return the symbol limit of one connection to this feed; None: no limit."""
        if isinstance(self.symbol_limit, Mapping):
            return self.symbol_limit.get(feed)
        return self.symbol_limit


@dataclass
class AccountSlots:
    """Checks logins and counts connection slots. `clock` returns seconds.

    `auth_refusals` and `subscribe_refusals` (by feed, or for `EVERY_FEED`) and `symbol_refusals` (by symbol) are
    scripted error codes that take precedence over the plan. The repr contains no secret.
    """

    keys: Mapping[str, str] = field(repr=False)
    plan: AccountPlan
    clock: Callable[[], float]
    auth_refusals: dict[str, int] = field(default_factory=dict)
    subscribe_refusals: dict[str, int] = field(default_factory=dict)
    symbol_refusals: dict[str, int] = field(default_factory=dict)
    _used: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)
    _ghosts: dict[tuple[str, str], list[float]] = field(default_factory=dict, repr=False)

    def admit(self, feed: str, key: str, secret: str) -> int | None:
        """Take a slot for this login and return None, or return the code of the refusal."""
        if (scripted := self.auth_refusals.get(feed, self.auth_refusals.get(EVERY_FEED))) is not None:
            return scripted
        if not self.knows(key, secret):
            return 402
        if self.plan.feeds is not None and feed not in self.plan.feeds:
            return 409
        slot = (feed, key)
        used = self._used.get(slot, 0)
        if used + self._ghost_count(slot) >= self.plan.connections:
            return 406
        self._used[slot] = used + 1
        return None

    def knows(self, key: str, secret: str) -> bool:
        """Return whether this is the key and secret of an account."""
        expected = self.keys.get(key)
        return expected is not None and hmac.compare_digest(expected.encode(), secret.encode())

    def subscribe_refusal(self, feed: str) -> int | None:
        """Return the scripted code that refuses every subscribe, or None."""
        return self.subscribe_refusals.get(feed, self.subscribe_refusals.get(EVERY_FEED))

    def leave(self, feed: str, key: str, *, close_frame: bool) -> None:
        """Free a slot; without a close frame, only after `ghost_seconds`."""
        slot = (feed, key)
        self._used[slot] -= 1
        if not close_frame and self.plan.ghost_seconds > 0:
            self._ghosts.setdefault(slot, []).append(self.clock() + self.plan.ghost_seconds)

    def _ghost_count(self, slot: tuple[str, str]) -> int:
        now = self.clock()
        self._ghosts[slot] = [until for until in self._ghosts.get(slot, ()) if until > now]
        return len(self._ghosts[slot])
