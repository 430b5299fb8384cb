"""The entries of the leader's history that another node has asked for, on the leader's end of a link.

Older entries are read little by little, as fast as the node takes them. Those that are added meanwhile are in the
history as well, so the link switches to new ones when everything has been read. When the node has all, which may have
to be read from Alpaca's records first, it is told so.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent

from proxy.cluster import dialect
from proxy.downstream.outbox import Outbox
from proxy.routing.order_entries import Claim
from proxy.routing.order_history import Forgotten
from proxy.routing.order_router import OrderRouter
from proxy.routing.subscriber import Subscriber
from proxy.transport import frames
from proxy.transport.time_slice import TimeSlice

PENDING_BYTES = 1024 * 1024  # with more in the outbox, no older entries are added
POLL_SECONDS = 0.01


class OrderReplay:
    """The request of one node. `tell` is called once, when the node has it or cannot have it."""

    def __init__(
        self,
        router: OrderRouter,
        subscriber: Subscriber,
        outbox: Outbox,
        claim: Claim,
        tell: Callable[[dialect.CaughtUp], None],
    ) -> None:
        self._router = router
        self._subscriber = subscriber
        self._outbox = outbox
        self._claim = claim
        self._tell = tell
        self._is_complete = router.add_follower(subscriber, claim)
        self._is_sent = self._is_told = False
        self._greenlet: gevent.Greenlet | None = None

    def begin(self) -> None:
        """Send the entries, now that the subscription is confirmed."""
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._send)

    def stop(self) -> None:
        """Send nothing more."""
        self._is_told = True
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def recovery_ended(self, complete: bool) -> None:
        """Record that the leader has read Alpaca's records, or could not read them."""
        self._is_complete = self._is_complete and complete
        self._end()

    def _send(self) -> None:
        router, time_slice = self._router, TimeSlice()
        position = router.begin_of(self._claim)
        try:
            while position < router.history.end:
                entries, position = router.replay(position, self._claim)
                for entry in entries:
                    self._outbox.put(frames.encode(frames.BINARY, entry), 1)
                while self._outbox.pending > PENDING_BYTES and self._outbox.closing is None:
                    gevent.sleep(POLL_SECONDS)
                time_slice.pause()
        except Forgotten:  # the node takes older entries more slowly than new ones arrive
            self._is_complete = False
        router.serve_live(self._subscriber)
        self._is_sent = True
        self._end()

    def _end(self) -> None:
        """Tell the node, unless entries or records are still to come."""
        router = self._router
        if self._is_sent and not self._is_told and router.recovery is None:
            self._is_told = True
            self._tell(dialect.CaughtUp(router.term, router.complete_from or 0, self._is_complete))
