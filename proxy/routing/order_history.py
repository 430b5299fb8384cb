"""The order updates that an account has received, for event streams that ask for what they have missed.

Every update gets a time `at` that is later than all before it, so that a client can ask for all updates after one that
it has (`alpaca.order_events`). Ownership is checked when an update is read, by the same rule as when it arrives: an
allowlist may have changed meanwhile, or an owner become known.

The history is kept for KEEP_SECONDS, and bounded by the number of updates and by their bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from enum import Enum
from itertools import islice
from typing import NamedTuple

from proxy.alpaca import order_events
from proxy.alpaca.codec import Raw

KEEP_SECONDS = 24 * 3600.0
KEEP_UPDATES = 10_000
KEEP_BYTES = 16 * 1024 * 1024
UPDATE_BYTES = 200  # of the objects that hold one update, besides its body
READ_UPDATES = 16  # that one call of `read` looks at
READ_BYTES = 64 * 1024  # after which it looks at no further one
NO_CLIENTS: frozenset[str] = frozenset()


class Part(Enum):
    """The receivers of an update at the moment at which it is recorded.

    While the owner of its order is looked up, those that are permitted every update are the FIRST; the REST receives it
    when the look-up has ended. A REPEAT was recovered before, and concerns those alone that have not received that.
    """

    WHOLE = ""
    FIRST = "first"
    REST = "rest"
    REPEAT = "repeat"


class Update(NamedTuple):
    """An update: its `at` in nanoseconds since 1970, its body, and when it was recorded in monotonic seconds.

    `only`: the clients that received it at that moment, None for all; `without`: those that received it before.
    `stamped`: the `at` in the body is not Alpaca's.
    """

    at: int
    body: bytes
    recorded_at: float
    only: frozenset[str] | None
    without: frozenset[str]
    stamped: bool
    part: Part

    @property
    def data(self) -> bytes:
        """The update without an `at` that is not Alpaca's."""
        return order_events.without_time(self.body, self.at) if self.stamped else self.body


class Forgotten(Exception):
    """The updates at a position are not kept any more."""


class OrderHistory:
    """The updates of one account, oldest first.

    A position is the number of updates recorded before, since the start. `owners(update, now)` returns the names of the
    clients that may receive an update, `wall_clock` nanoseconds since 1970; `now` is always monotonic, in seconds.
    `last_at` is the `at` of the newest update, `forgotten_at` that of the newest one that is not kept any more, 0 for
    none. `is_behind`: older updates than the newest are still to come, from another node.
    """

    def __init__(self, owners: Callable[[bytes, float], Collection[str]], wall_clock: Callable[[], int]) -> None:
        self.end = 0  # the position after the newest update
        self.size = 0  # bytes
        self._owners = owners
        self._wall_clock = wall_clock
        self.last_at = self.forgotten_at = 0
        self.is_behind = False
        self._updates: deque[Update] = deque()

    def __repr__(self) -> str:
        return f"<OrderHistory {len(self._updates)} updates, {self.size} bytes>"

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def begin(self) -> int:
        """The position of the oldest update that is kept."""
        return self.end - len(self._updates)

    def record(
        self,
        update: Raw | bytes,
        now: float,
        only: frozenset[str] | None = None,
        without: frozenset[str] = NO_CLIENTS,
        *,
        part: Part = Part.WHOLE,
        at: int | None = None,
    ) -> bytes | None:
        """Add an update, the `data` of a message; return its body for event streams, which has an `at`.

        It is for all clients that may receive it, or for those in `only`, or those that are not in `without`. Its time
        is `at` if another node has named it, unless that is not later than all before. None for one that is not an
        object, which is not kept.
        """
        earliest = self.last_at + 1
        if at is None:
            stamped = order_events.stamped(update, self._wall_clock(), earliest)
        else:
            stamped = order_events.stamped(update, at, max(at, earliest))
        if stamped is None:
            return None
        self.last_at, body, added = stamped
        self._updates.append(Update(self.last_at, body, now, only, without, added, part))
        self.end += 1
        self.size += len(body) + UPDATE_BYTES
        self._prune(now)
        return body

    def position(self, since: int) -> int:
        """Return the position of the first update that is kept and whose `at` is not before `since`."""
        newer = 0
        for update in reversed(self._updates):  # a client that comes back asks for the newest ones
            if update.at < since:
                break
            newer += 1
        return self.end - newer

    def read(self, client: str, position: int, now: float) -> tuple[list[Update], int]:
        """Return those of the next few updates that the client may receive, and the position after them.

        Raises Forgotten.
        """
        updates = self.read_all(position, now)
        mine = [
            update
            for update in updates
            if client not in update.without
            and (update.only is None or client in update.only)
            and client in self._owners(update.body, now)
        ]
        return mine, position + len(updates)

    def read_all(self, position: int, now: float) -> list[Update]:
        """Return the next few updates of all clients. Raises Forgotten."""
        self._prune(now)
        if position < self.begin:
            raise Forgotten
        updates: list[Update] = []
        size = 0
        start = position - self.begin
        for update in islice(self._updates, start, start + READ_UPDATES):
            updates.append(update)
            size += len(update.body)
            if size >= READ_BYTES:
                break
        return updates

    def _prune(self, now: float) -> None:
        updates = self._updates
        while updates and (
            len(updates) > KEEP_UPDATES or self.size > KEEP_BYTES or now - updates[0].recorded_at >= KEEP_SECONDS
        ):
            forgotten = updates.popleft()
            self.forgotten_at = forgotten.at
            self.size -= len(forgotten.body) + UPDATE_BYTES
