"""A client's session on a WebSocket: its greenlet, connection, outbox and subscribers.

The greenlet reads frames and joins them to messages; the pure `ServerProtocol` turns each message into outcomes, which
are performed here. Everything is sent through the outbox: its writer greenlet alone writes to the connection, and it is
ended before the session's greenlet returns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import gevent

from proxy.alpaca import server_protocol
from proxy.alpaca.codec import Codec, Raw
from proxy.alpaca.cooperative import Steps, chunks, run_to_end
from proxy.alpaca.endpoints import WILDCARD, Dialect
from proxy.alpaca.market import is_too_much
from proxy.alpaca.server_protocol import LoginState, ServerProtocol
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic
from proxy.downstream.hub_budget import SLICE_SECONDS
from proxy.downstream.outbox import Outbox
from proxy.downstream.quirks import NO_QUIRKS, Quirks
from proxy.downstream.request_log import log_answer, log_request
from proxy.downstream.session import BaseSession, FeedHost
from proxy.routing.allowlists import Client, WhenSlow
from proxy.routing.reconciler import ACK_SECONDS
from proxy.routing.subscriber import Error, Feed, PendingRequest, RequestState, Subscriber
from proxy.transport import frames
from proxy.transport.connection import GONE_SECONDS, USER_TIMEOUT, ClientConnection
from proxy.transport.errors import ConnectionLost

LOGIN_SECONDS = 10.0
PING_SECONDS = 10.0
UNRESPONSIVE_SECONDS = 20.0  # with a ping unanswered: the session may give way to a newer one
MAX_PENDING_REQUESTS = 64  # of one session; at this number it reads no further request
MAX_PENDING_STATES = 4  # acknowledgements that are not computed yet, likewise
PENDING_POLL_SECONDS = 0.01  # the interval at which such a session checks the numbers again
LARGE_STATE = 2000  # topics, from which on the writer computes an acknowledgement, which takes milliseconds
UNAUTHENTICATED_MESSAGE_BYTES = 64 * 1024
UNAUTHENTICATED_OUTBOX_BYTES = 256 * 1024


class ClientHost(FeedHost, Protocol):
    """The part of `server.Server` that a session uses."""

    message_limit: int
    default_feed: str

    def identify(self, session: ClientSession, key: str, secret: str) -> Client | int:
        """Return the client, or the code of the refusal.

        A session whose client is returned counts as one of the client's.
        """

    def feed_of(self, session: BaseSession) -> str | None:
        """Return the feed that the path of the session names; None if it names none any more."""

    def auth_delay(self, session: ClientSession) -> float:
        """Return the seconds to wait before a refusal is sent."""

    def refused_login(self, session: ClientSession, key: str, code: int) -> dict[str, Any]:
        """Count the refusal of a log-in; return the fields of its log event."""

    def refused_request(
        self, session: ClientSession, code: int, feed: str, topics: Collection[Topic]
    ) -> dict[str, Any]:
        """Count the refusal of a request; return the fields of its log event."""


class ClientSession(BaseSession):
    """A client's WebSocket connection and the state of its session."""

    def __init__(
        self, connection: ClientConnection, protocol: ServerProtocol, host: ClientHost, quirks: Quirks = NO_QUIRKS
    ) -> None:
        opcode = frames.TEXT if protocol.text else frames.BINARY
        outbox = Outbox(
            connection, host.outboxes, opcode=opcode, limit=UNAUTHENTICATED_OUTBOX_BYTES, slow_words=protocol.slow()
        )
        outbox.close_frame = quirks.close_frame
        super().__init__(connection, host, outbox, feed=protocol.endpoint.feed, codec=protocol.codec)
        self.protocol = protocol
        self._market: Subscriber | None = None
        self._trading: Subscriber | None = None
        self._silent: list[tuple[Subscriber, Subscription]] = []  # applied, and not acknowledged yet; what it brought
        self._host = host
        self._inbound = frames.Inbound(UNAUTHENTICATED_MESSAGE_BYTES, any_bytes=not protocol.codec.text)
        self._budget = host.budget("")
        self._slice_began = self.opened
        self._auth_tried = False
        self._received_at = self._pinged_at = self.opened
        self._unanswered_since: float | None = None  # the oldest ping since the last sign of life

    def permits(self, client: Client) -> bool:
        """Return whether the client's allowlist names the feed of the session, or one that it serves besides."""
        return client.allow.names(self.feed) or (self._trading_dialect and client.allow.names(self._host.default_feed))

    def unresponsive(self, now: float) -> float:
        """Return for how many seconds a ping has been unanswered; 0 under UNRESPONSIVE_SECONDS."""
        if self._unanswered_since is None or now - self._unanswered_since < UNRESPONSIVE_SECONDS:
            return 0.0
        return now - self._unanswered_since

    # The greenlet

    def run(self, credentials: tuple[str, str] | None) -> None:
        """Serve the session until it ends.

        `credentials` are those in the headers of the upgrade request, if it had any.
        """
        writer = gevent.spawn(self.outbox.run)
        try:
            for payload in self.protocol.opening():
                self._send(payload)
            if credentials is not None:
                log_request(self._log, "", server_protocol.Authenticate(*credentials))
                self._authenticate(*credentials)
            self._read()
        except ConnectionLost as error:
            self.ended = self.ended or str(error)
        except frames.FrameError as error:
            self.close(error.code, error.reason)
        except Exception:
            self._log.error("internal_error", client=self.name)
            self._send(self.protocol.refused(500))
            self.close(frames.INTERNAL_ERROR, "internal error")
        finally:
            self._leave_feeds()
            self.close(frames.NORMAL, "")
            self._finish(writer)

    def _leave_feeds(self) -> None:
        super()._leave_feeds()
        self._silent.clear()
        self._market = self._trading = None
        self.outbox.stop_conflation()

    def _read(self) -> None:
        """Handle what the client sends, within the hub budget, until it closes."""
        while data := self._connection.receive(self._inbound.missing):
            self._received_at, self._unanswered_since = self._host.clock(), None
            self._slice_began = self._budget.reserve()
            for event in self._inbound.receive(data):
                match event:
                    case frames.Message(payload):
                        self._message(payload)
                    case frames.Ping(payload):
                        self.outbox.pong(payload)
                    case frames.Pong():
                        pass  # any byte is a sign of life
                    case frames.Closed(code):
                        self.outbox.close_frame = True  # a close of the client's is answered, whatever the client
                        self.close(frames.NORMAL if code == frames.NO_CODE else code, "client closed")
                        return
                self._pace()
            self._budget.charge(self._slice_began)
        self.ended = self.ended or "client went away"

    def _pace(self) -> None:
        """Wait for the budget if the current slice of the hub's time is used up."""
        if self._host.clock() - self._slice_began >= SLICE_SECONDS:
            self._budget.charge(self._slice_began)
            self._slice_began = self._budget.reserve()

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Do not charge the time of a wait to the budget."""
        self._budget.charge(self._slice_began)
        yield
        self._slice_began = self._budget.reserve()

    def waited(self, seconds: float) -> None:
        """Do not charge the time of a wait of the host to the budget."""
        self._slice_began += seconds

    def _message(self, payload: bytes) -> None:
        for outcome in self.protocol.receive(payload):
            self._pace()
            # Throttle a client that sends requests faster than they are answered.
            while self._is_behind() and self.outbox.closing is None:
                with self._idle():
                    gevent.sleep(PENDING_POLL_SECONDS)
            if self.outbox.closing is not None:  # the rest of a message with many requests is dropped
                return
            log_request(self._log, self.name, outcome)
            match outcome:
                case server_protocol.Reply(reply, code, topics):
                    if code:
                        self._log_refused(code, topics)
                    self._reply(reply)
                case server_protocol.Authenticate(key, secret):
                    self._authenticate(key, secret)
                case server_protocol.Subscribe(topics):
                    self._subscribe(topics)
                case server_protocol.Unsubscribe(topics):
                    self._request((self._market, NO_TOPICS, topics))
                case server_protocol.Listen(trading, market):
                    self._listen(trading, market)
                case server_protocol.Unlisten(trading, market):
                    self._request((self._trading, NO_TOPICS, trading), (self._market, NO_TOPICS, market))

    def _is_behind(self) -> bool:
        return len(self.requests) >= MAX_PENDING_REQUESTS or self.outbox.deferred >= MAX_PENDING_STATES

    def _send(self, payload: bytes) -> None:
        """Send a control message."""
        log_answer(self._log, self.name, self.codec, payload)
        self.outbox.reply(payload)

    def _authenticate(self, key: str, secret: str) -> None:
        self._auth_tried = True
        client_or_code = self.protocol.refused_code or self._host.identify(self, key, secret)
        if isinstance(client_or_code, int):
            wait = self._host.auth_delay(self)
            self._log.info("refused", wait=wait, **self._host.refused_login(self, key, client_or_code))
            with self._idle():
                gevent.sleep(wait)
            self._send(self.protocol.denied(client_or_code))
            return
        self.name = client_or_code.name
        self._apply_settings(client_or_code)
        self._budget = self._host.budget(self.name)
        self._log.info("authenticated", client=self.name)
        self._send(self.protocol.granted())

    def _apply_settings(self, client: Client) -> None:
        """Apply the client's settings, and add a subscriber at each feed it may use."""
        self.client = client
        self.outbox.limit = client.outbox
        self._inbound.limit = self._host.message_limit
        if client.when_slow is WhenSlow.CONFLATE:
            self.outbox.start_conflation(self.protocol.data_codec, self._whole_book)
        else:
            self.outbox.stop_conflation()
        feed, data_codec = self.protocol.endpoint.feed, self.protocol.data_codec
        if self.protocol.endpoint.dialect is Dialect.MARKET:
            self._market = self._market or self._subscriber_at(client, feed, data_codec)
        else:
            self._trading = self._trading or self._subscriber_at(client, feed, self.codec)
            self._market = self._market or self._subscriber_at(client, self._host.default_feed, data_codec)

    def _whole_book(self, symbol: str) -> Raw | bytes | None:
        """Return a pair's whole order book in this session's codec; `symbol` is the codec's own name of the pair."""
        market = self._market
        return None if market is None else market.feed.book(market.codec.to_alpaca_symbol(symbol), market.codec)

    def _subscriber_at(self, client: Client, feed: str, codec: Codec) -> Subscriber | None:
        """Add a subscriber at the feed, if the client's allowlist names it.

        None for a session that is closing: it would never remove the subscriber again.
        """
        if self.outbox.closing is not None or not client.allow.names(feed):
            return None
        subscriber = Subscriber(
            self,
            self._host.upstream(client, feed),
            self.requests,
            name=client.name,
            codec=codec,
            put=self.outbox.put,
            accepts_unknown=client.allow.accepts_unknown(feed),
        )
        self.subscribers.append(subscriber)
        return subscriber

    def _subscribe(self, topics: Subscription) -> None:
        if not self._refuse(self._market, topics):
            self._request((self._market, topics, NO_TOPICS))

    def _listen(self, trading: Subscription | None, market: Subscription) -> None:
        """Change both feeds or neither.

        The trading streams are changed after the market feed has accepted its part.
        """
        if market and self._refuse(self._market, market):
            return
        subscriber = self._trading
        if denied := (trading or NO_TOPICS) - self._allowed_streams(trading or NO_TOPICS):
            self._log_refused(409, denied)
        if trading is None or subscriber is None:
            self._request((self._market, market, NO_TOPICS))
            return
        if self._market is not None and market:
            began = self._host.clock()
            first = PendingRequest(self._market, market, NO_TOPICS, began, silent=True)
            self._send_request(first)
            with self._idle():
                while not first.resolved and self.outbox.closing is None and self._host.clock() - began < ACK_SECONDS:
                    gevent.sleep(PENDING_POLL_SECONDS)
            if first.state is RequestState.REFUSED:
                return
            if (subscriber := self._trading) is None:  # a reload has taken the trading feed away meanwhile
                self._reply(None)
                return
        else:
            began = self._host.clock()
        allowed = self._allowed_streams(trading)  # a reload may have changed the allowlist meanwhile
        self._send_request(PendingRequest(subscriber, allowed, subscriber.wanted - allowed, began))

    def _refuse(self, subscriber: Subscriber | None, topics: Subscription) -> bool:
        """Reply with an error if the topics are not permitted or too many.

        Return whether it did.
        """
        assert self.client is not None
        refused = topics if subscriber is None else self._not_permitted(subscriber, topics)
        if refused:
            self._log_refused(409, refused, subscriber)
            self._reply(self.protocol.insufficient(refused))
        elif subscriber is not None and is_too_much(subscriber.wanted, topics):
            self._log_refused(405, topics, subscriber)
            self._reply(self.protocol.refused(405))
        else:
            return False
        return True

    def _log_refused(self, code: int, topics: Collection[Topic] = (), at: Subscriber | None = None) -> None:
        """Log and count the refusal of a request at the feed of a subscriber, by default the session's own."""
        feed = self.protocol.endpoint.feed if at is None else at.feed.endpoint.feed
        self._log.info("request_refused", **self._host.refused_request(self, code, feed, topics))

    def _not_permitted(self, subscriber: Subscriber, topics: Subscription) -> list[Topic]:
        """Return the topics that the allowlist denies, pausing between chunks."""
        while (client := self.client) is not None and not subscriber.left:
            feed = subscriber.feed.endpoint.feed
            denied: list[Topic] = []
            for chunk in chunks(topics):
                denied += client.allow.refused(feed, chunk)
                self._pace()
            if client is self.client:  # else a reload during a pause has replaced the allowlist: start again
                return denied
        return [*topics]  # a reload during a pause has taken the feed away

    def _request(self, *changes: tuple[Subscriber | None, Subscription, Subscription]) -> None:
        """Request what to add and to remove at each subscriber.

        One acknowledgement follows when all have answered.
        """
        requested = [(subscriber, add, remove) for subscriber, add, remove in changes if subscriber and (add or remove)]
        if not requested:
            self._reply(None)
        now = self._host.clock()
        for number, (subscriber, add, remove) in enumerate(requested, 1):
            self._send_request(PendingRequest(subscriber, add, remove, now, silent=number < len(requested)))

    def _send_request(self, request: PendingRequest) -> None:
        self.requests.append(request)
        for _ in request.subscriber.feed.request(request):
            self._pace()
        self._pace()
        self.answer()

    def _reply(self, payload: bytes | None) -> None:
        """Queue a reply that is ready, or (None) an acknowledgement, behind the requests without an answer."""
        self.requests.append(payload)
        self.answer()

    def _allowed_streams(self, topics: Subscription) -> Subscription:
        """Return the streams for which the allowlist has any entry.

        Whether the client receives an update is decided for each update (`routing.order_ownership`).
        """
        assert self.client is not None
        entries = self.client.allow.entries(self.protocol.endpoint.feed)
        return frozenset(topic for topic in topics if entries.get(topic[0]) or entries.get(WILDCARD))

    # Called by the feeds

    def answer(self) -> None:
        """Answer the requests at the front of the queue that are resolved."""
        requests = self.requests
        while requests:
            first = requests[0]
            if isinstance(first, PendingRequest) and not first.resolved:
                return
            requests.popleft()
            if first is None:
                self._send_state()
            elif isinstance(first, bytes):
                self._send(first)
            elif first.state is RequestState.REFUSED:
                self._send(self.protocol.refused(*(first.error or (500, None))))
                self._give_back_silent()
            elif first.silent:
                self._silent.append((first.subscriber, first.topics))
                first.subscriber.feed.apply(first)
            else:
                first.subscriber.feed.apply(first)
                self._send_state()
                for subscriber in dict.fromkeys([*(one for one, _ in self._silent), first.subscriber]):
                    for frame, messages in subscriber.feed.install(subscriber):
                        self.outbox.put(frame, messages)
                self._silent.clear()

    def _give_back_silent(self) -> None:
        """Give back what the first half of a request has brought, since the second was refused."""
        for subscriber, topics in self._silent:
            subscriber.feed.revoke(subscriber, topics)
        self._silent.clear()

    def report(self, error: Error | None) -> None:
        """Send the state, which has changed without a request; before it the error, if that is the cause."""
        if error is not None:
            self._send(self.protocol.refused(*error))
        self._send_state()
        self.answer()

    def _send_state(self) -> None:
        held = self._held()
        if len(held) < LARGE_STATE:
            self._send(run_to_end(self.protocol.acked(held)))
        else:
            self.outbox.reply_in_steps(self._logged(self.protocol.acked(held)))

    def _logged(self, answer: Steps[bytes]) -> Steps[bytes]:
        payload = yield from answer
        log_answer(self._log, self.name, self.codec, payload)
        return payload

    # Reload

    def reconfigure(self, client: Client) -> Iterator[None]:
        """Apply the client's changed configuration, yielding between chunks of topics.

        Topics that are no longer permitted are revoked, and the client is sent its new state.
        """
        if not self.permits(client):
            self.close(frames.POLICY, f"this client may no longer use {self.protocol.endpoint.feed}")
            return
        if self._host.feed_of(self) != self.protocol.endpoint.feed:
            self.close(frames.POLICY, "default_feed changed")
            return
        self._apply_settings(client)
        revoked = False
        for subscriber in [*self.subscribers]:
            if subscriber.left:  # the session has ended during a pause
                return
            feed = subscriber.feed.endpoint.feed
            if subscriber is self._market and self._trading_dialect:
                feed = self._host.default_feed
            if not client.allow.names(feed):
                revoked = revoked or bool(subscriber.wanted)
                self._drop(subscriber)
                continue
            denied = checked = NO_TOPICS
            while unchecked := subscriber.wanted - checked:  # a request may come during a pause
                checked |= unchecked
                if subscriber is self._trading:
                    denied |= unchecked - self._allowed_streams(unchecked)
                    continue
                for chunk in chunks(unchecked):
                    yield
                    denied |= frozenset(client.allow.refused(feed, chunk))
            if subscriber.left:
                return
            subscriber.accepts_unknown = client.allow.accepts_unknown(feed)
            if denied:
                subscriber.feed.revoke(subscriber, denied)
                revoked = True
            # Only now, so that the new account is not asked for what is not permitted any more.
            if (upstream := self._host.upstream(client, feed)) is not subscriber.feed:
                self._move(subscriber, upstream)
            elif not denied:
                subscriber.feed.install(subscriber)  # the patterns for unknown kinds may have changed
        if revoked:
            self._reply(None)

    def _drop(self, subscriber: Subscriber) -> None:
        """Remove the subscriber at a feed that the client may no longer use; the session has another one."""
        subscriber.left = True
        subscriber.feed.leave(subscriber)
        self.subscribers.remove(subscriber)
        self._outages += subscriber.outages
        if subscriber is self._market:
            self._market = None
        else:
            self._trading = None
        self.answer()

    @property
    def _trading_dialect(self) -> bool:
        return self.protocol.endpoint.dialect is Dialect.TRADING

    def _move(self, subscriber: Subscriber, feed: Feed) -> None:
        """Move a subscriber to another account's feed, with all topics that it wants.

        If the new account refuses any, the client is sent the error.
        """
        wanted = subscriber.wanted
        subscriber.feed.leave(subscriber)
        subscriber.feed = feed
        books = feed.adopt(subscriber, wanted)
        self.answer()
        for frame, messages in books:
            self.outbox.put(frame, messages)

    # Called by the server and the gateway

    def tick(self, now: float) -> None:
        """Send a ping when due; enforce the time limits of log-in, pong and close."""
        if self._is_closing(now):
            return
        if self.protocol.state is LoginState.GREETED and now - self.opened >= LOGIN_SECONDS:
            if not self._auth_tried:
                self._log.info("refused", **self._host.refused_login(self, "", 404))
                self._send(self.protocol.timed_out())
            self.close(frames.POLICY, "auth timeout")
        elif USER_TIMEOUT is None and now - self._received_at >= GONE_SECONDS:  # else the kernel ends the connection
            self.ended = f"no sign of life for {GONE_SECONDS:.0f} s"
            self._connection.shut()
        elif now - self._pinged_at >= PING_SECONDS:
            self._pinged_at = now
            if self._unanswered_since is None:
                self._unanswered_since = now
            self.outbox.ping()
