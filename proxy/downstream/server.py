"""The client port: who is let in, and the conversations that are held.

A request's path names its feed; its Origin and path may refuse it before it is a WebSocket. What stays is a
`Conversation` in the greenlet that the WSGI server gave it.
"""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import Callable, Collection

from proxy.alpaca.endpoints import Dialect, endpoint, feed_of_path
from proxy.alpaca.server_protocol import server_protocol_for
from proxy.downstream.auth_throttle import AuthThrottle
from proxy.downstream.client_session import ClientSession
from proxy.downstream.credentials import header_credentials
from proxy.downstream.outbox import Outboxes
from proxy.observe.logs import Log
from proxy.observe.snapshot import SessionState, Totals
from proxy.routing.allowlists import Client, Directory
from proxy.routing.feed import Feed
from proxy.transport.connection import ClientConnection
from proxy.transport.listener import Environ, HttpResponse, Listener
from proxy.transport.origins import may_come

_NOT_FOUND = (
    "404 Not Found",
    "This path is no stream, and streams are all that this proxy carries: send REST calls to Alpaca, with its own key.",
)
_UPGRADE = ("426 Upgrade Required", "This is a WebSocket stream: point an Alpaca SDK here.")
_ORIGIN = ("403 Forbidden", "This web page's origin is not listed in listen.origins.")
_DRAINING = ("503 Service Unavailable", "The proxy is shutting down.")


class Server:
    """Serves the algorithms at one address.

    `find_upstream` gives the connection that serves a client's feed. Raises OSError from `start` if the address cannot
    be had.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        directory: Directory,
        find_upstream: Callable[[Client, str], Feed],
        outboxes: Outboxes,
        message_limit: int,
        default_feed: str,
        origins: Collection[str],
        clock: Callable[[], float],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.directory = directory
        self.outboxes = outboxes
        self.message_limit = message_limit
        self.origins = frozenset(origins)
        self.default_feed = default_feed
        self.clock = clock
        self.draining = False
        self.sessions: set[ClientSession] = set()
        self.totals: dict[tuple[str, str], Totals] = {}
        self._auth_throttle = AuthThrottle()
        self._find_upstream = find_upstream
        self._requests: dict[ClientSession, Environ] = {}
        self._of_client: defaultdict[tuple[str, str], set[ClientSession]] = defaultdict(set)
        self._listener = Listener(
            address, serve=self._serve, refuse=self._refuse, answer=self._answer, log=Log("listener"), tls=tls
        )

    def __repr__(self) -> str:
        return f"<Server {self.address[0]}:{self.address[1]} {len(self.sessions)} conversations>"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; the real port, once it has started."""
        host, port = self._listener.address[:2]
        return host, port

    @property
    def unauthenticated(self) -> int:
        """How many sockets' clients are not known yet."""
        return self._listener.unauthenticated

    def start(self) -> None:
        self._listener.start()

    def stop_accepting(self) -> None:
        """No new conversations; those that are held go on."""
        self.draining = True
        self._listener.close()

    def states(self) -> list[SessionState]:
        """The sessions that are held, as far as their clients are known."""
        return [conversation.state() for conversation in self.sessions if conversation.client is not None]

    def totals_now(self) -> dict[tuple[str, str], Totals]:
        """What each client got of each feed, the open sessions included."""
        now = {of: totals.copy() for of, totals in self.totals.items()}
        for conversation in self.sessions:
            if conversation.client is not None:
                conversation.count(now[conversation.name, conversation.session.endpoint.feed])
        return now

    def delivered_now(self) -> dict[tuple[str, str], int]:
        """Of that, the messages delivered, which are looked at every second."""
        now = {of: totals.delivered for of, totals in self.totals.items()}
        for conversation in self.sessions:
            if conversation.client is not None:
                now[conversation.name, conversation.session.endpoint.feed] += conversation.outbox.delivered
        return now

    # What a conversation asks

    def identify(self, conversation: ClientSession, key: str, secret: str) -> Client | int:
        client = self.directory.authenticate(key, secret)
        if client is None:
            return 402
        feed = conversation.session.endpoint.feed
        trading = conversation.session.endpoint.dialect is Dialect.TRADING
        if not (client.allow.names(feed) or (trading and client.allow.names(self.default_feed))):
            return 409
        here = self._of_client[client.name, feed]
        most = client.max_connections
        if len(here) >= most and sum(other.outbox.closing is None for other in here) >= most:
            return 406
        here.add(conversation)
        self.totals.setdefault((client.name, feed), Totals()).sessions += 1
        self._auth_throttle.reset_address(_host(conversation))
        self._listener.admit(self._requests[conversation])
        return client

    def auth_delay(self, conversation: ClientSession) -> float:
        return self._auth_throttle.refuse(_host(conversation), self.clock())

    def upstream(self, client: Client, feed: str) -> Feed:
        return self._find_upstream(client, feed)

    # What a request gets

    def _refuse(self, environ: Environ) -> HttpResponse | None:
        if self.draining:
            return _DRAINING
        origin = environ.get("HTTP_ORIGIN")  # browsers say it, programs do not
        if origin is not None and not may_come(origin, self.origins):
            return _ORIGIN
        return None if feed_of_path(environ["PATH_INFO"], self.default_feed) else _NOT_FOUND

    def _answer(self, environ: Environ) -> HttpResponse:
        return _UPGRADE if feed_of_path(environ["PATH_INFO"], self.default_feed) else _NOT_FOUND

    def _serve(self, connection: ClientConnection, environ: Environ) -> None:
        feed = feed_of_path(environ["PATH_INFO"], self.default_feed)
        found = endpoint(feed or "")
        assert found is not None  # `_refuse` has looked
        session = server_protocol_for(found, environ["PATH_INFO"], environ.get("CONTENT_TYPE", ""))
        conversation = ClientSession(connection, session, self)
        self.sessions.add(conversation)
        self._requests[conversation] = environ
        try:
            conversation.run(header_credentials(environ, session))
        finally:
            self.sessions.discard(conversation)
            del self._requests[conversation]
            if conversation.client is not None:
                self._of_client[conversation.name, found.feed].discard(conversation)
                conversation.count(self.totals[conversation.name, found.feed])


def _host(conversation: ClientSession) -> str:
    return conversation.address.rpartition(":")[0]
