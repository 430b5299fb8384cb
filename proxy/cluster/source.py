"""The sources of a feed on a node of a cluster: its own connection to Alpaca, or a link to the leader.

A source lasts as long as that connection. It asks its owner, the member, for one; when the role changes, it ends, and
the supervisor opens the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import gevent

from proxy.alpaca.client_protocol import FeedEvent, Ignored, Phase, Refused
from proxy.alpaca.codec import Raw
from proxy.alpaca.topics import Topic
from proxy.cluster.election import RETRY_SECONDS
from proxy.cluster.leader_link import Gone, LeaderGone, LeaderLink
from proxy.routing.request_builder import UpstreamRequest
from proxy.transport.errors import ConnectionLost
from proxy.upstream.alpaca_connection import AlpacaConnection

SLOT_TAKEN = 406
DENIED = (Gone.REFUSED, Gone.NOT_LEADING)  # ends of a link after which its leader does not lead


class Owner(Protocol):
    """The part of a `member.Member` that its sources use."""

    def next_connection(self, source: ClusterSource) -> LeaderLink | AlpacaConnection:
        """Return the connection that the role asks for, not opened or live; block until there is a role.

        Raises ConnectionLost if the source is ended meanwhile.
        """

    def unreachable(self, error: LeaderGone) -> None:
        """Record that the leader could not be reached, does not lead or is about to end."""

    def keeps_trying(self) -> bool:
        """Return whether a taken slot is tried again at once."""

    def slot_is_taken(self) -> None:
        """Record that Alpaca has refused the log-in since the account's slot is taken."""

    def changed(self) -> None:
        """Wake a source that waits for a role."""

    def closed(self, source: ClusterSource) -> None:
        """Record that a source is closed."""


class ClusterSource:
    """A `FeedSource` of a node: its own connection to Alpaca or a link to the leader, as its member's role says.

    `inner` is that connection once there is one, `cause` the reason for the end of the source, `unopened`: Alpaca could
    not be reached.
    """

    def __init__(self, owner: Owner, clock: Callable[[], float]) -> None:
        self.inner: AlpacaConnection | LeaderLink | None = None
        self.cause = ""
        self.deliberate = False
        self.unopened = False
        self._owner = owner
        self._redirected = False
        self._received_at = clock()

    def __repr__(self) -> str:
        return f"<ClusterSource {self.inner}>"

    @property
    def phase(self) -> Phase:
        return Phase.CONNECTING if self.inner is None else self.inner.phase

    @property
    def request(self) -> UpstreamRequest | None:
        return None if self.inner is None else self.inner.request

    @property
    def received_at(self) -> float:
        return self._received_at if self.inner is None else self.inner.received_at

    @property
    def heard_at(self) -> float:
        """The time of the other side's last sign of life."""
        return self.inner.heard_at if isinstance(self.inner, LeaderLink) else self.received_at

    @property
    def retry_at_once(self) -> bool:
        """True after a link: the next source waits for a role itself."""
        return isinstance(self.inner, LeaderLink)

    @property
    def others_confirmed(self) -> bool:
        return self.inner is not None and self.inner.others_confirmed

    @property
    def finds_silence(self) -> bool:
        return self.inner is not None and self.inner.finds_silence

    @property
    def ended(self) -> bool:
        return bool(self.cause) or (self.inner is not None and self.inner.ended)

    @property
    def live(self) -> bool:
        return not self.cause and self.inner is not None and self.inner.live

    def open(self) -> None:
        """Wait for the node's role, and connect; a leader that cannot be reached is left for the next one."""
        while True:
            inner = self.inner = self._owner.next_connection(self)
            if inner.live:
                return
            try:
                inner.open()
                return
            except LeaderGone as error:
                inner.close()
                self.inner = None
                if not self.cause:
                    self._owner.unreachable(error)
                elif self._redirected:
                    self._redirected, self.deliberate, self.cause = False, False, ""  # it goes on with the new role
                else:
                    raise
            except ConnectionLost:
                self.unopened = not self.cause
                raise

    def receive(self) -> list[bytes]:
        assert self.inner is not None
        try:
            return self.inner.receive()
        except LeaderGone as error:
            if error.cause in DENIED and not self.cause:  # otherwise it was left for another leader
                self._owner.unreachable(error)
            raise

    def handle(self, body: Raw | bytes) -> FeedEvent:
        assert self.inner is not None
        event = self.inner.handle(body)
        return self._patient(event) if isinstance(event, Refused) else event

    def foreign_error(self, payload: bytes) -> FeedEvent | None:
        error = None if self.inner is None else self.inner.foreign_error(payload)
        return None if error is None else self._patient(error)

    def _patient(self, error: Refused) -> FeedEvent:
        """Return an error; or, if it says that the slot is taken, log in again for a while."""
        if error.code != SLOT_TAKEN or self.phase is Phase.LIVE:
            return error
        if isinstance(self.inner, AlpacaConnection) and self._owner.keeps_trying():
            gevent.spawn_later(RETRY_SECONDS, self.inner.log_in_again)
            return Ignored()
        self._owner.slot_is_taken()
        return error

    def send_request(self, request: UpstreamRequest, acked: Iterable[Topic]) -> None:
        assert self.inner is not None
        self.inner.send_request(request, acked)

    def take_request(self) -> UpstreamRequest | None:
        return None if self.inner is None else self.inner.take_request()

    def tick(self, now: float) -> None:
        if self.inner is not None:
            self.inner.tick(now)

    def redirect(self, reason: str) -> None:
        """End what it reads from, since the role has changed."""
        if self.inner is not None and not self.cause:
            self._redirected = self.deliberate = True
            self.cause = reason
            self.inner.end(reason, deliberate=True)

    def end(self, reason: str, deliberate: bool = False) -> None:
        self._redirected = False  # it does not go on with another role
        self.cause = self.cause or reason
        self.deliberate = self.deliberate or deliberate
        if self.inner is not None:
            self.inner.end(reason, deliberate)
        self._owner.changed()

    def close(self) -> None:
        self.cause = self.cause or "closed here"
        if self.inner is not None:
            self.inner.close()
        self._owner.closed(self)
