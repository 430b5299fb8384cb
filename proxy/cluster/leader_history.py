"""The leader's history of order updates, in place of Alpaca's records, on the nodes that follow it.

    leader's OrderHistory ─► OrderReplay ═══► LeaderLink ─► OrderRouter      entries
                                                  └───────► LeaderHistory    that they are complete, or not

`LeaderHistory` also says which of the two an account's router reads: Alpaca's records while this node leads.
"""

from __future__ import annotations

import secrets
import time
from typing import Protocol

import gevent

from proxy.cluster.dialect import CaughtUp
from proxy.routing.order_entries import Claim
from proxy.routing.order_router import OrderRouter, Recovery
from proxy.upstream.order_reader import MAX_LOOKUPS, OrderReader

# For which the rest of an entry is waited for: a live leader sends it within 2 s by its own clock, also when it stands
# still for a while, and another one after its recovery. What comes later is left out.
REST_SECONDS = 12.0
POLL_SECONDS = 0.1  # between two looks whether one is
MAX_REST_SECONDS = 30.0  # in all
TERM_BYTES = 8


class LinkedOrders(Protocol):
    """The part of a `LeaderHistory` that a link to the leader uses."""

    def claim(self) -> Claim:
        """Return what the leader is to be asked for."""

    def caught_up(self, asked: Claim, message: CaughtUp) -> None:
        """Take the leader's word that all entries that were asked for have come, or cannot come; never block."""


class LeaderHistory:
    """A `RecordReader` that waits for what the leader says of its history.

    `records` reads Alpaca's while this node leads.
    """

    def __init__(self, router: OrderRouter, records: OrderReader) -> None:
        self._router = router
        self._records = records
        self._rests: set[gevent.Greenlet] = set()
        self._ending: gevent.Greenlet | None = None

    def __repr__(self) -> str:
        return f"<LeaderHistory {len(self._rests)} rests>"

    def stop(self) -> None:
        """End all waiting."""
        rests, self._rests = self._rests, set()
        gevent.killall([*rests, *([self._ending] if self._ending is not None else [])], block=False)
        self._ending = None

    # The role

    def lead(self) -> None:
        """Have the router read from Alpaca, since this node leads."""
        if self._router.reader is not self._records or not self._router.term:
            self.stop()
            self._router.reader = self._records
            self._router.lead(secrets.token_hex(TERM_BYTES))

    def follow(self) -> None:
        """Have the router read from another node."""
        if self._router.reader is not self:
            self._records.stop()
            self._router.reader = self
            self._router.follow_leader()
            for order_id in self._router.awaited:
                self.look_up(order_id)
        self._router.follow_leader()

    # Calls of the link

    def claim(self) -> Claim:
        return self._router.claim()

    def caught_up(self, asked: Claim, message: CaughtUp) -> None:
        self._router.caught_up(asked, message.term, message.complete_from)
        recovery = self._router.recovery
        # A session may have begun to listen between the request and its answer, without Alpaca.
        was_asked = recovery is None or (asked.since is not None and asked.since <= recovery.since)
        self._end(is_complete=message.complete and was_asked)

    # Calls of the router

    def local_time(self) -> int:
        return time.time_ns()

    def clock_offset(self) -> int:
        return self._records.clock_offset()

    def stream_is_up(self, recovery: Recovery | None) -> None:
        """Do nothing: the leader says when what was missed has come."""

    def abandon(self, reason: str) -> None:
        self._end(is_complete=False)

    def look_up(self, order_id: str) -> bool:
        """Wait for the leader, which looks it up."""
        if len(self._rests) >= MAX_LOOKUPS:
            return False
        self._rests.add(gevent.spawn(self._await_rest, order_id))
        return True

    def _end(self, *, is_complete: bool) -> None:
        """Send what was missed and what has waited."""
        if (recovery := self._router.recovery) is not None:
            if self._ending is not None:
                self._ending.kill(block=False)
            self._ending = gevent.spawn(self._records.end_recovery, recovery, () if is_complete else None)

    def _await_rest(self, order_id: str) -> None:
        """Let the updates go on that wait for the leader's look-up, if it does not end."""
        until = time.monotonic() + MAX_REST_SECONDS
        gevent.sleep(REST_SECONDS)
        while not (self._router.is_up and self._router.recovery is None) and time.monotonic() < until:
            gevent.sleep(POLL_SECONDS)
        self._rests.discard(gevent.getcurrent())
        self._records.send_looked_up(order_id)
