"""The client port: upgrade requests and open sessions.

A request's path names its feed. A request with an unknown path or a foreign Origin is refused before the upgrade. An
accepted one becomes a `ClientSession`, which runs in the greenlet that the listener started for the connection. So does
an `EventStream`, the response to a request for order updates as server-sent events.
"""

from __future__ import annotations

import json
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from proxy.alpaca.endpoints import endpoint, feed_of_path
from proxy.alpaca.order_events import Window, is_order_events
from proxy.alpaca.server_protocol import server_protocol_for
from proxy.alpaca.topics import Topic
from proxy.config.model import Config
from proxy.downstream import event_stream
from proxy.downstream.auth_throttle import AuthThrottle
from proxy.downstream.client_session import ClientSession
from proxy.downstream.credentials import header_credentials
from proxy.downstream.event_stream import EventStream, OpeningRate
from proxy.downstream.hub_budget import HubBudget
from proxy.downstream.outbox import Outboxes
from proxy.downstream.quirks import quirks_of
from proxy.downstream.refusals import Fields, Refusals
from proxy.downstream.session import BaseSession
from proxy.observe.logs import Log
from proxy.observe.snapshot import ClientPresence, SessionState, Totals
from proxy.routing.allowlists import Client
from proxy.routing.order_history import OrderHistory
from proxy.routing.subscriber import Feed
from proxy.transport import forwarded, frames
from proxy.transport.connection import ClientConnection
from proxy.transport.listener import Environ, HttpResponse, Listener, StreamedResponse
from proxy.transport.origins import may_connect

UNAUTHENTICATED_SHARE = 1 / 3  # of the hub's time, for all unauthenticated sessions together
CLIENT_SHARE = 1 / 3  # of the hub's time, for all sessions of one client

# In the form of Alpaca's own REST errors, so that an SDK whose REST calls come here by mistake shows the message.
_NOT_FOUND = (
    "404 Not Found",
    json.dumps(
        {
            "code": 40410000,
            "message": "There is no stream at this path. This proxy serves streams only: send REST calls to Alpaca "
            "directly, with Alpaca's own key.",
        }
    ),
    "application/json",
)
_UPGRADE = ("426 Upgrade Required", "This is a WebSocket stream: point an Alpaca SDK here.")
_ORIGIN = ("403 Forbidden", "This web page's origin is not listed in listen.origins.")
_DRAINING = ("503 Service Unavailable", "The proxy is shutting down.")
# The status that refuses an event stream, by the code of the same refusal on a WebSocket.
_EVENT_REFUSALS = {402: "401 Unauthorized", 409: "403 Forbidden", 406: "429 Too Many Requests"}
_REFUSED_CODE = "proxy.refused_code"  # in a WSGI environ: that code


class SharedPlaces(Protocol):
    """The places of clients (`max_connections`) that the sessions of other proxies take as well."""

    def take(self, client: str, feed: str, limit: int) -> bool:
        """Take a place for a log-in; return False if all are taken. This may wait, for half a second at most.

        The place is this log-in's until another greenlet runs; then it belongs to the sessions that are open.
        """

    def changed(self, client: str, feed: str) -> None:
        """Give a place back, since a session has ended."""

    def elsewhere(self, client: str, feed: str) -> int:
        """Return how many places other proxies held when a log-in was last refused."""


class Server:
    """The server of the client port, and the host of its sessions (`ClientHost`, `EventHost`).

    `find_upstream` returns the connection that serves a client's feed, `find_history` the order updates of its account,
    `conceal` how an account's key or secret may be shown (None for any other text). `places`: those that other proxies
    share. `start` raises OSError if the address cannot be bound.
    """

    def __init__(
        self,
        config: Config,
        *,
        find_upstream: Callable[[Client, str], Feed],
        find_history: Callable[[Client], OrderHistory],
        outboxes: Outboxes,
        conceal: Callable[[str], str | None],
        clock: Callable[[], float],
        tls: ssl.SSLContext | None = None,
        places: SharedPlaces | None = None,
    ) -> None:
        self.outboxes = outboxes
        self.clock = clock
        self.draining = False
        self.sessions: set[BaseSession] = set()
        self.totals: dict[tuple[str, str], Totals] = {}
        self._last_seen: dict[str, float] = {}  # by client: the end of its last session, in seconds since 1970
        self.refusals = Refusals(conceal, clock)
        self._auth_throttle = AuthThrottle()
        self._log = Log("listener")
        self._budgets: dict[str, HubBudget] = {}
        self._find_upstream = find_upstream
        self._places = places
        self.order_history = find_history
        self._opening_rates: defaultdict[str, OpeningRate] = defaultdict(OpeningRate)  # of event streams, by client
        self._environs: dict[BaseSession, Environ] = {}
        self._by_client: defaultdict[tuple[str, str], set[BaseSession]] = defaultdict(set)  # and feed
        self._listener = Listener(
            (config.listen.host, config.listen.port),
            serve=self._serve,
            refuse=self._refuse,
            answer=self._answer,
            delay=self._delay,
            log=self._log,
            tls=tls,
            reuse_port=config.listen.reuse_port,
        )
        self.configure(config)

    def __repr__(self) -> str:
        return f"<Server {self.address[0]}:{self.address[1]} {len(self.sessions)} sessions>"

    @property
    def address(self) -> tuple[str, int]:
        """The address that it listens on; with the real port once it has started."""
        host, port = self._listener.address[:2]
        return host, port

    @property
    def unauthenticated(self) -> int:
        """The number of sockets whose client has not authenticated."""
        return self._listener.unauthenticated

    def start(self) -> None:
        self._listener.start()

    def stop_accepting(self) -> None:
        """Refuse new sessions; the open ones continue."""
        self.draining = True
        self._listener.close()

    def configure(self, config: Config) -> None:
        """Apply a configuration, except its address; sessions are reconfigured one by one."""
        self.directory = config.directory
        self.default_feed = config.default_feed
        self.message_limit = config.limits.message
        self.origins = frozenset(config.listen.origins)
        self._listener.trust(config.listen.trusted)
        for session, environ in self._environs.items():
            self._listener.locate(environ)
            session.show_address(forwarded.shown(environ))

    def states(self) -> list[SessionState]:
        """Return the states of the authenticated sessions."""
        return [session.state() for session in self.sessions if session.client is not None]

    def presence(self, now: float) -> tuple[ClientPresence, ...]:
        """Return which of the configured clients are connected; `now` is in seconds since 1970."""
        sessions = Counter(session.name for session in self.sessions if session.client is not None)
        last_seen = {**self._last_seen, **dict.fromkeys(sessions, now)}
        return tuple(
            ClientPresence(client.name, sessions[client.name], last_seen.get(client.name)) for client in self.directory
        )

    def totals_now(self) -> dict[tuple[str, str], Totals]:
        """Return the totals by client and feed, including the open sessions."""
        now = {key: totals.copy() for key, totals in self.totals.items()}
        for session in self.sessions:
            if session.client is not None:
                session.count(now[session.name, session.feed])
        return now

    def delivered_now(self) -> dict[tuple[str, str], int]:
        """Return the numbers of delivered messages alone, which are sampled every second."""
        now = {key: totals.delivered for key, totals in self.totals.items()}
        for session in self.sessions:
            if session.client is not None:
                now[session.name, session.feed] += session.outbox.delivered
        return now

    def pending_now(self) -> dict[tuple[str, str], int]:
        """Return the bytes in the fullest outbox of each client and feed, which are sampled every second."""
        now: dict[tuple[str, str], int] = {}
        for session in self.sessions:
            if session.client is not None and (pending := session.outbox.pending):
                key = session.name, session.feed
                now[key] = max(pending, now.get(key, 0))
        return now

    def held(self, client: str, feed: str) -> int:
        """Return the number of a client's open sessions on a feed."""
        return len(self._open_sessions(client, feed))

    def held_now(self) -> dict[tuple[str, str], int]:
        """Return the numbers of open sessions by client and feed."""
        return {key: number for key in self._by_client if (number := self.held(*key))}

    def _open_sessions(self, client: str, feed: str) -> list[BaseSession]:
        return [session for session in self._by_client.get((client, feed), ()) if session.outbox.closing is None]

    # ClientHost and EventHost

    def identify(self, session: ClientSession, key: str, secret: str) -> Client | int:
        client = self._admissible(session.feed, session.permits, key, secret, session.waited)
        if not isinstance(client, int):
            self._admit(session, client)
        return client

    def _admissible(
        self,
        feed: str,
        permits: Callable[[Client], bool],
        key: str,
        secret: str,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> Client | int:
        """Return the client that may open one more session, or the code of the refusal.

        At `max_connections`, a session of the client gives way if it has left a ping unanswered for long; only one of
        this proxy, if others share the places. `waited` is told for how long they were asked.
        """
        directory = self.directory
        client = directory.authenticate(key, secret)
        if client is None:
            return 402
        if not permits(client):
            return 409
        limit = client.max_connections
        free = True
        if self._places is not None:
            began = self.clock()
            free = self._places.take(client.name, feed, limit)
            waited(self.clock() - began)
            if self.directory is not directory:  # a reload meanwhile may have changed everything
                return self._admissible(feed, permits, key, secret, waited)
        if not free or len(self._by_client[client.name, feed]) >= limit:
            open_sessions = self._open_sessions(client.name, feed)
            if (not free or len(open_sessions) >= limit) and not self._replace_one(open_sessions):
                return 406
        return client

    def _admit(self, session: BaseSession, client: Client) -> None:
        self._by_client[client.name, session.feed].add(session)
        self.totals.setdefault((client.name, session.feed), Totals()).sessions += 1
        self._auth_throttle.reset_address(self._host(session))
        self._listener.admit(self._environs[session])

    def feed_of(self, session: BaseSession) -> str | None:
        return feed_of_path(self._environs[session]["PATH_INFO"], self.default_feed)

    def _replace_one(self, sessions: list[BaseSession]) -> bool:
        """Close the session that has left a ping unanswered the longest; return False if none has for long."""
        now = self.clock()
        silent = max(sessions, key=lambda session: session.unresponsive(now), default=None)
        if silent is None or not silent.unresponsive(now):
            return False
        silent.close(frames.POLICY, "replaced by a newer connection")
        return True

    def budget(self, client: str) -> HubBudget:
        budget = self._budgets.get(client)
        if budget is None:
            share = CLIENT_SHARE if client else UNAUTHENTICATED_SHARE
            budget = self._budgets[client] = HubBudget(share, self.clock)
        return budget

    def opening_delay(self, client: Client) -> float:
        return self._opening_rates[client.name].delay(self.clock(), client.max_connections)

    def auth_delay(self, session: BaseSession) -> float:
        return self._auth_throttle.refuse(self._host(session), self.clock())

    def _host(self, session: BaseSession) -> str:
        """Return the client's own address, behind a trusted reverse proxy as well."""
        host: str = self._environs[session]["REMOTE_ADDR"]
        return host

    def refused_login(self, session: BaseSession, key: str, code: int) -> Fields:
        return self._refused_login(session.feed, key, code)

    def _refused_login(self, feed: str, key: str, code: int) -> Fields:
        fields = self.refusals.login(self.directory, code, feed=feed, key=key)
        if code == 406 and self._places is not None:
            fields["held_on_other_nodes"] = self._places.elsewhere(fields.get("client", ""), feed) or None
        return fields

    def refused_request(self, session: ClientSession, code: int, feed: str, topics: Collection[Topic]) -> Fields:
        return self.refusals.request(session.client, code, feed=feed, topics=topics)

    def upstream(self, client: Client, feed: str) -> Feed:
        return self._find_upstream(client, feed)

    # Called by the listener

    def _refuse(self, environ: Environ) -> HttpResponse | None:
        if (refusal := self._refuse_any(environ)) is not None:
            return refusal
        return None if feed_of_path(environ["PATH_INFO"], self.default_feed) else _NOT_FOUND

    def _refuse_any(self, environ: Environ) -> HttpResponse | None:
        """Return the refusal of a stream at any path, or None."""
        if self.draining:
            return _DRAINING
        origin = environ.get("HTTP_ORIGIN")
        from_browser = any(name.startswith("HTTP_SEC_FETCH_") for name in environ)
        if origin is not None and not may_connect(origin, environ.get("HTTP_HOST", ""), from_browser, self.origins):
            return _ORIGIN
        return None

    def _answer(self, environ: Environ) -> HttpResponse | StreamedResponse:
        if is_order_events(environ["PATH_INFO"]):
            refused = self._refuse_any(environ)
            return self._answer_events(environ) if refused is None else event_stream.refusal(*refused[:2])
        return _UPGRADE if feed_of_path(environ["PATH_INFO"], self.default_feed) else _NOT_FOUND

    def _answer_events(self, environ: Environ) -> HttpResponse | StreamedResponse:
        """Answer a request for order updates as events: with the stream, or with a refusal in Alpaca's form."""
        if environ["REQUEST_METHOD"] != "GET":
            return event_stream.refusal("405 Method Not Allowed")
        if environ["SERVER_PROTOCOL"] != "HTTP/1.1":  # without chunks, a client takes a cut for the end
            return event_stream.refusal("400 Bad Request", "an event stream needs HTTP/1.1")
        key, secret = header_credentials(environ, bearer=True) or ("", "")
        client = self._admissible(event_stream.FEED, event_stream.permitted, key, secret)
        if isinstance(client, int):
            environ[_REFUSED_CODE] = client
            return event_stream.refusal(_EVENT_REFUSALS[client])
        try:
            window = Window.of_query(environ["QUERY_STRING"])
        except ValueError as error:
            return event_stream.refusal("400 Bad Request", str(error))
        return partial(self._serve_events, environ, client, window)

    def _delay(self, environ: Environ, status: str) -> float:
        """Log and count a refusal by HTTP; return the seconds that it waits.

        It waits as a refused log-in does: some SDKs come back at once, one a thousand times a second.
        """
        path = environ.get("PATH_INFO", "")
        events = is_order_events(path)
        key, _ = header_credentials(environ, bearer=events) or ("", "")
        feed = event_stream.FEED if events else feed_of_path(path, self.default_feed) or ""
        if (code := environ.get(_REFUSED_CODE)) is not None:
            fields = self._refused_login(feed, key, code)
            fields = {**fields, "code": int(status[:3]), "feed": feed, "path": path, "hint": ""}
        else:
            origin = environ.get("HTTP_ORIGIN", "")
            fields = self.refusals.http(self.directory, status, feed=feed, key=key, path=path, origin=origin)
        host = environ["REMOTE_ADDR"]
        wait = self._auth_throttle.refuse(host, self.clock())
        log = self._log.warning if fields["hint"] else self._log.info
        log("refused", wait=wait, address=f"{host}:{environ['REMOTE_PORT']}", **fields)
        return wait

    def _serve(self, connection: ClientConnection, environ: Environ) -> None:
        feed = feed_of_path(environ["PATH_INFO"], self.default_feed)
        served = endpoint(feed or "")
        assert served is not None  # `_refuse` refuses other paths
        protocol = server_protocol_for(served, environ["PATH_INFO"], environ.get("CONTENT_TYPE", ""))
        session = ClientSession(connection, protocol, self, quirks_of(environ.get("HTTP_USER_AGENT", "")))
        with self._open(session, environ):
            session.run(header_credentials(environ))

    def _serve_events(self, environ: Environ, client: Client, window: Window, connection: ClientConnection) -> None:
        stream = EventStream(connection, self, client, window)
        with self._open(stream, environ):
            self._admit(stream, client)
            stream.run()

    @contextmanager
    def _open(self, session: BaseSession, environ: Environ) -> Iterator[None]:
        """List a session as open within this context, and count what it has delivered at its end."""
        self.sessions.add(session)
        self._environs[session] = environ
        try:
            yield
        finally:
            self.sessions.discard(session)
            del self._environs[session]
            if session.client is not None:
                self._last_seen[session.name] = time.time()
                self._by_client[session.name, session.feed].discard(session)
                if self._places is not None:
                    self._places.changed(session.name, session.feed)
                session.count(self.totals[session.name, session.feed])
