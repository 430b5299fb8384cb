"""An Alpaca whose messages are numbered: the simulator, with an endless flow of trades.

`i` of the trades counts from 0 for each symbol, whether a connection is subscribed or not. For each of them it is kept
when it was sent and which connection got it, so that a test can tell what a proxy has lost.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import gevent

from proxy.simulator import AccountPlan, Simulator
from proxy.simulator.account_plan import AccountSlots
from proxy.simulator.outcomes import Admitted, Outcome
from proxy.simulator.peer import Peer
from tests.harness import trade
from tests.ports import free_port

FEED = "iex"
SYMBOLS = ("S0", "S1", "S2", "S3")
RATE = 2000  # messages a second, of all symbols
PAUSE_SECONDS = 0.004
MOST = 64  # messages of a frame
NO_PEER = 0  # the number of no connection


class Slots(AccountSlots):
    """Slots of accounts that may have several keys; `refused` counts the log-ins to a slot that was taken."""

    def __init__(self, keys: Mapping[str, str], accounts: Mapping[str, str], plan: AccountPlan) -> None:
        super().__init__(keys, plan, time.monotonic)
        self.refused: Counter[str] = Counter()
        self._accounts = accounts

    def admit(self, feed: str, key: str, secret: str) -> int | None:
        if not self.knows(key, secret):
            return 402
        account = self._accounts.get(key, key)
        refusal = super().admit(feed, account, self.keys[account])
        self.refused[account] += refusal == 406
        return refusal

    def leave(self, feed: str, key: str, *, close_frame: bool) -> None:
        super().leave(feed, self._accounts.get(key, key), close_frame=close_frame)


class Alpaca(Simulator):
    """A simulator that sends RATE trades a second from its start on.

    `accounts` names for a further key the one whose account it belongs to. `most` is the largest number of connections
    that were logged in at once, by account and feed.
    """

    def __init__(
        self,
        keys: Mapping[str, str] | None = None,
        accounts: Mapping[str, str] | None = None,
        connections: int = 1,
        rate: int = RATE,
    ) -> None:
        super().__init__(keys=keys, port=free_port())
        self._accounts = accounts or {}
        plan = AccountPlan(connections=connections)
        self.slots: Slots = Slots({"key": "secret"} if keys is None else keys, self._accounts, plan)
        self.most: Counter[tuple[str, str]] = Counter()
        self.sent = {symbol: array("d") for symbol in SYMBOLS}
        self.taker = {symbol: array("L") for symbol in SYMBOLS}
        self._rate = rate
        self._flow: gevent.Greenlet | None = None

    def start(self) -> None:
        super().start()
        if self._flow is None:
            self._flow = gevent.spawn(self._run)

    def close(self) -> None:
        """Stop the flow, and everything."""
        if self._flow is not None:
            self._flow.kill()
        self.stop()

    def slot_outlives(self, seconds: float) -> None:
        """Keep slots for so long after connections that end without a close frame."""
        self.slots.plan = AccountPlan(connections=self.slots.plan.connections, ghost_seconds=seconds)

    def port_of_connection(self) -> int | None:
        """The client's port of the only connection of the feed; None without one."""
        peers = self.connections(FEED)
        try:
            return int(peers[0]._connection._raw.getpeername()[1]) if len(peers) == 1 else None
        except OSError:  # it has just ended
            return None

    def untaken(self) -> int:
        """The number of messages so far that no connection was subscribed to."""
        return sum(sum(taker == NO_PEER for taker in takers) for takers in self.taker.values())

    def _report(self, peer: Peer, outcome: Outcome) -> None:
        super()._report(peer, outcome)
        if isinstance(outcome, Admitted):
            slot = self._accounts.get(outcome.key, outcome.key), peer.feed
            keys = [each.session.key for each in self._peers.values() if each.feed == peer.feed and _holds(each)]
            count = sum(self._accounts.get(key, key) == slot[0] for key in keys)
            self.most[slot] = max(self.most[slot], count)

    def _run(self) -> None:
        count, began = 0, time.monotonic()
        while True:
            now = time.monotonic()
            due = min(int((now - began) * self._rate) - count, MOST)
            if due > 0:
                self._send([SYMBOLS[(count + at) % len(SYMBOLS)] for at in range(due)], now)
                count += due
            gevent.sleep(0 if due == MOST else PAUSE_SECONDS)

    def _send(self, symbols: list[str], now: float) -> None:
        peers = self.connections(FEED)
        messages: list[dict[str, Any]] = []
        for symbol in symbols:
            message = trade(symbol, len(self.sent[symbol]))
            self.sent[symbol].append(now)
            self.taker[symbol].append(next((peer.number for peer in peers if peer.session.wants(message)), NO_PEER))
            messages.append(message)
        self._deliver(FEED, messages)


def _holds(peer: Peer) -> bool:
    return peer.session.authenticated
