"""The port for nodes: upgrade requests and the links of other nodes.

The path of a request names the feed, its Content-Type the codec, its header `dialect.HEADER` the versions that the node
speaks. Each accepted one becomes a `NodeSession`. It has the limits of the client port for peers that have not logged
in, and outboxes of its own.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Protocol

from proxy.alpaca.codec import CODECS
from proxy.alpaca.endpoints import Endpoint, endpoint, feed_of_path
from proxy.cluster import dialect
from proxy.cluster.node_session import OUTBOX_BYTES, LeadingFeed, NodeSession
from proxy.downstream.auth_throttle import AuthThrottle
from proxy.downstream.hub_budget import HubBudget
from proxy.downstream.outbox import Outboxes
from proxy.observe.logs import Log
from proxy.routing.subscriber import Error
from proxy.transport import frames
from proxy.transport.connection import ClientConnection
from proxy.transport.listener import Environ, HttpResponse, Listener
from proxy.upstream.supervisor import FeedSupervisor

OUTBOXES_BYTES = 16 * OUTBOX_BYTES
UNAUTHENTICATED_SHARE = 1 / 3  # of the hub's time, for all peers together that have not logged in
NODE_SHARE = 1 / 3  # of the hub's time, for all links of one node

_NOT_FOUND = ("404 Not Found", "This port is for the other nodes of the cluster.")
_NO_NODE = ("426 Upgrade Required", "This port is for the other nodes of the cluster.")
_OTHER_VERSION = ("426 Upgrade Required", f"This node speaks the versions {dialect.offered()} of the node dialect.")
_OTHER_CODEC = ("415 Unsupported Media Type", "This feed does not have that codec.")
_DRAINING = ("503 Service Unavailable", "The node is shutting down.")


class NodeHost(Protocol):
    """The node that the port belongs to. `secret` is the cluster's."""

    node: str
    secret: bytes

    def leading(self, account: str, feed: str) -> LeadingFeed | None:
        """Return the feed of an account; None if this node does not lead it."""


class NodeServer:
    """The server of the port for nodes, and the owner of its sessions (`SessionOwner`).

    `start` raises OSError if the address cannot be bound. `tick` is to be called several times a second.
    """

    def __init__(
        self,
        address: tuple[str, int],
        host: NodeHost,
        *,
        clock: Callable[[], float],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.node = host.node
        self.secret = host.secret
        self.outboxes = Outboxes(OUTBOXES_BYTES)
        self.clock = clock
        self.draining = False
        self.refused = 0
        self.sessions: set[NodeSession] = set()
        self._host = host
        self._log = Log("node")
        self._throttle = AuthThrottle()
        self._budgets: dict[str, HubBudget] = {}
        self._environs: dict[NodeSession, Environ] = {}
        self._listener = Listener(
            address,
            serve=self._serve,
            refuse=self._refuse,
            answer=lambda environ: _NO_NODE,
            delay=self._delay,
            log=self._log,
            tls=tls,
        )

    def __repr__(self) -> str:
        return f"<NodeServer {self.address[0]}:{self.address[1]} {len(self.sessions)} sessions>"

    @property
    def address(self) -> tuple[str, int]:
        """The address that it listens on; with the real port once it has started."""
        host, port = self._listener.address[:2]
        return host, port

    @property
    def unauthenticated(self) -> int:
        """The number of sockets whose peer has not logged in."""
        return self._listener.unauthenticated

    def start(self) -> None:
        self._listener.start()

    def drain(self) -> None:
        """Refuse new links and close the present ones with 1001: this node leads no more."""
        self.draining = True
        self._listener.close()
        for session in [*self.sessions]:
            session.go_away("the node is shutting down", leading=False, code=frames.GOING_AWAY)

    def stop(self) -> None:
        """Refuse new links and end the present ones at once."""
        self.draining = True
        self._listener.close()
        for session in [*self.sessions]:
            session.abort()

    def tick(self, now: float) -> None:
        """Enforce the time limits of the sessions, and tell them what the feed waits for."""
        for session in [*self.sessions]:
            try:
                session.tick(now)
                if (supervisor := session.supervisor) is not None and not session.live:
                    session.wait(supervisor.last_error, supervisor.reconciler.refusal)
            except Exception:  # an internal error of one session must not stop the ticks of the others
                self._log.error("internal_error", part=repr(session))
                session.abort()

    # What happens to a feed

    def feed_is_live(self, supervisor: FeedSupervisor) -> None:
        """Let the nodes that wait for the feed send requests."""
        for session in self._sessions_of(supervisor):
            if (feed := self._host.leading(session.account, session.feed)) is not None:
                session.come_live(feed.token)

    def feed_was_lost(self, supervisor: FeedSupervisor, reason: str, refused: Error | None = None) -> None:
        """Close the links of the feed: its connection to Alpaca has ended. This node goes on to lead it."""
        for session in self._sessions_of(supervisor):
            if session.live:
                session.go_away(reason, leading=True, refused=refused, code=frames.SERVICE_RESTART)

    def feed_waits(self, supervisor: FeedSupervisor, reason: str, refused: Error | None = None) -> None:
        """Tell the nodes that wait for the feed why; `refused`: Alpaca does not serve it."""
        for session in self._sessions_of(supervisor):
            session.wait(reason, refused)

    def stop_leading(self, supervisor: FeedSupervisor, reason: str) -> None:
        """Close the links of a feed that this node does not lead any more."""
        for session in self._sessions_of(supervisor):
            session.go_away(reason, leading=False, code=frames.SERVICE_RESTART)

    def recovery_ended(self, supervisor: FeedSupervisor, complete: bool) -> None:
        """Tell the nodes that have asked for order updates that what was missed has been sent, or cannot be read."""
        for session in self._sessions_of(supervisor):
            session.recovery_ended(complete)

    def heard_at(self, supervisor: FeedSupervisor) -> float:
        """Return the time of the last sign of life of a node that reads the feed; minus infinity for none."""
        return max((session.received_at for session in self._sessions_of(supervisor)), default=-inf)

    def links(self, supervisor: FeedSupervisor) -> int:
        """Return the number of nodes that read the feed."""
        return len(self._sessions_of(supervisor))

    def _sessions_of(self, supervisor: FeedSupervisor) -> list[NodeSession]:
        return [session for session in self.sessions if session.supervisor is supervisor]

    # SessionOwner

    def leading(self, account: str, feed: str) -> LeadingFeed | None:
        return None if self.draining else self._host.leading(account, feed)

    def admit(self, session: NodeSession) -> None:
        environ = self._environs[session]
        self._throttle.reset_address(environ["REMOTE_ADDR"])
        self._listener.admit(environ)

    def budget(self, client: str) -> HubBudget:
        budget = self._budgets.get(client)
        if budget is None:
            share = NODE_SHARE if client else UNAUTHENTICATED_SHARE
            budget = self._budgets[client] = HubBudget(share, self.clock)
        return budget

    # Called by the listener

    def _refuse(self, environ: Environ) -> HttpResponse | None:
        if self.draining:
            return _DRAINING
        if dialect.HEADER_NAME not in environ:
            return _NO_NODE
        if (served := _endpoint_of(environ)) is None:
            return _NOT_FOUND
        if dialect.negotiate(environ[dialect.HEADER_NAME]) is None:
            return _OTHER_VERSION
        return None if _codec_of(environ) in served.codecs else _OTHER_CODEC

    def _delay(self, environ: Environ, status: str) -> float:
        """Log a refusal by HTTP; return the seconds that it waits: none for a node, so that it sees the reason."""
        host = environ["REMOTE_ADDR"]
        node = dialect.HEADER_NAME in environ and not status.startswith("404")
        wait = 0.0 if node else self._throttle.refuse(host, self.clock())
        log = self._log.warning if node else self._log.info
        log("refused", code=int(status[:3]), address=f"{host}:{environ['REMOTE_PORT']}", wait=wait)
        return wait

    def _serve(self, connection: ClientConnection, environ: Environ) -> None:
        served = _endpoint_of(environ)
        version = dialect.negotiate(environ[dialect.HEADER_NAME])
        assert served is not None  # `_refuse` refuses others
        assert version is not None
        connection.outlast_cuts()
        session = NodeSession(connection, self, served, CODECS[_codec_of(environ)], version)
        with self._open(session, environ):
            session.run()

    @contextmanager
    def _open(self, session: NodeSession, environ: Environ) -> Iterator[None]:
        """List a session as open within this context."""
        self.sessions.add(session)
        self._environs[session] = environ
        try:
            yield
        finally:
            self.sessions.discard(session)
            del self._environs[session]


def _endpoint_of(environ: Environ) -> Endpoint | None:
    """Return the endpoint whose path, without an alias, is that of the request."""
    served = endpoint(feed_of_path(environ["PATH_INFO"], "") or "")
    return served if served is not None and served.path == environ["PATH_INFO"] else None


def _codec_of(environ: Environ) -> str:
    """Return the name of the codec in the request's Content-Type, empty for none."""
    named = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    return next((codec.name for codec in CODECS.values() if codec.content_type == named), "")
