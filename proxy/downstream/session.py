"""The base of the sessions: those of clients, on a WebSocket or an event stream, and of other nodes.

A session has one greenlet, which reads; everything is sent through its outbox, whose writer greenlet alone writes to
the connection and is ended before the session's greenlet returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import gevent

from proxy.alpaca.codec import Codec
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.downstream.hub_budget import HubBudget
from proxy.downstream.outbox import CLOSE_FLUSH_SECONDS, Outbox, Outboxes
from proxy.observe.logs import Log
from proxy.observe.snapshot import SessionState, Totals
from proxy.routing.allowlists import Client, OnOutage
from proxy.routing.subscriber import Error, Feed, Queue, Subscriber
from proxy.transport.connection import ClientConnection

LINGER_SECONDS = 1.0


class SessionHost(Protocol):
    """The part of a server that every session uses."""

    outboxes: Outboxes

    def budget(self, client: str) -> HubBudget:
        """Return the hub budget of a client.

        The empty name has the budget of all unauthenticated sessions together.
        """

    def clock(self) -> float:
        """Return monotonic time in seconds."""


class FeedHost(SessionHost, Protocol):
    """The part of `server.Server` that the sessions of clients use."""

    def upstream(self, client: Client, feed: str) -> Feed:
        """Return the upstream connection that serves this feed to the client."""


class BaseSession(ABC):
    """A connection of a client, its outbox and its subscribers.

    `feed` is the one that it counts for, `client` is None until it has authenticated, `ended` is the reason for the end
    once there is one.
    """

    def __init__(
        self, connection: ClientConnection, host: SessionHost, outbox: Outbox, *, feed: str, codec: Codec
    ) -> None:
        self.feed = feed
        self.codec = codec
        self.client: Client | None = None
        self.name = ""
        self.opened = host.clock()
        self.outbox = outbox
        self.requests: Queue = deque()
        self.subscribers: list[Subscriber] = []
        self.ended = ""
        self._connection = connection
        self._clock = host.clock
        self._outages = 0  # of the feeds that it has left
        self._closing_since = 0.0
        self._log = Log("session", feed=feed, address=connection.address)

    def __repr__(self) -> str:
        name = self.name or "unauthenticated"
        return f"<{type(self).__name__} {name} {self.feed} {self._connection.address}>"

    @property
    def address(self) -> str:
        """The peer's address, as host:port; behind a trusted reverse proxy also the client's."""
        return self._connection.address

    @abstractmethod
    def permits(self, client: Client) -> bool:
        """Return whether the client's allowlist lets it have such a session."""

    @abstractmethod
    def unresponsive(self, now: float) -> float:
        """Return for how many seconds the client has given no sign of life, if that is long; else 0."""

    def _held(self) -> Subscription:
        held = [subscriber.held for subscriber in self.subscribers]
        return held[0] if len(held) == 1 else NO_TOPICS.union(*held)

    # The end of the greenlet

    def _leave_feeds(self) -> None:
        """Leave all feeds.

        Nothing refers back to the session afterwards, so that reference counting frees it: the garbage collector seldom
        visits old objects (`gateway.GC_THRESHOLDS`).
        """
        for subscriber in self.subscribers:
            self._leave(subscriber)
        self._outages += sum(subscriber.outages for subscriber in self.subscribers)
        self.requests.clear()
        self.subscribers.clear()

    def _leave(self, subscriber: Subscriber) -> None:
        subscriber.left = True
        subscriber.feed.leave(subscriber)

    def _finish(self, writer: gevent.Greenlet) -> None:
        """Wait until the writer has sent what is pending, end it, and log the end of the session.

        The outbox must be closing.
        """
        writer.join(CLOSE_FLUSH_SECONDS)
        writer.kill()
        self._connection.linger(LINGER_SECONDS)
        if self.client is not None:
            outbox = self.outbox
            log = self._log.warning if outbox.slow else self._log.info
            reason = "slow client" if outbox.slow else self.ended
            log("closed", client=self.name, reason=reason, delivered=outbox.delivered, lost=outbox.lost or None)

    # Called by the feeds

    @abstractmethod
    def answer(self) -> None: ...

    @abstractmethod
    def report(self, error: Error | None) -> None: ...

    # Called by the server and the gateway

    @abstractmethod
    def reconfigure(self, client: Client) -> Iterator[None]:
        """Apply the client's changed configuration, yielding between chunks of work."""

    @abstractmethod
    def tick(self, now: float) -> None:
        """Do what is due: pings and time limits."""

    def _is_closing(self, now: float) -> bool:
        """Return whether the session is closing; end its connection when the time for that is over."""
        if self.outbox.closing is None:
            return False
        self._closing_since = self._closing_since or now
        if now - self._closing_since >= CLOSE_FLUSH_SECONDS:
            self._connection.shut()
        return True

    def ends_with(self, feed: Feed) -> bool:
        """Return whether the session ends when the connection of this feed is lost, as its client is configured.

        A session on `/stream` belongs to the default feed as well while it wants topics of it.
        """
        if self.client is None or self.client.on_outage is not OnOutage.CLOSE:
            return False
        return any(
            subscriber.feed is feed and (feed.endpoint.feed == self.feed or bool(subscriber.wanted))
            for subscriber in self.subscribers
        )

    def show_address(self, address: str) -> None:
        """Show the peer at another address, since a reload has changed which reverse proxies are trusted."""
        if address != self.address:
            self._connection.address = address
            self._log = Log("session", feed=self.feed, address=address)

    def state(self) -> SessionState:
        """Return the session's state for the snapshot."""
        outbox = self.outbox
        return SessionState(
            self.name,
            self.feed,
            self.address,
            self.codec.name,
            self._clock() - self.opened,
            self._held(),
            outbox.pending,
            outbox.limit,
            outbox.delivered,
            outbox.conflated,
            outbox.lost,
            outbox.slow,
            self.client.account(self.feed) if self.client is not None and self.client.allow.names(self.feed) else "",
        )

    def count(self, totals: Totals) -> None:
        """Add this session's counts to its client's totals."""
        outbox = self.outbox
        outages = self._outages + sum(subscriber.outages for subscriber in self.subscribers)
        totals.add(outbox.delivered, outbox.conflated, outbox.lost, "slow" if outbox.slow else "closed", outages)

    def close(self, code: int, reason: str) -> None:
        """Flush the outbox, send a close frame (on a WebSocket) and end.

        Of several reasons the first is kept.
        """
        self.ended = self.ended or reason
        self.outbox.close(code, reason)

    def abort(self) -> None:
        """End the connection at once."""
        self._connection.shut()
