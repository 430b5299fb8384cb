"""One algorithm at work: its greenlet, its connection, its outbox, its place at a feed.

The greenlet reads; frames become messages, the pure `Session` turns them into outcomes, and each outcome is performed
here. Everything that is sent goes through the outbox, whose writer is the only one to write, and which is ended before
the greenlet returns.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import gevent

from proxy.alpaca import server_protocol as talk
from proxy.alpaca.codec import Codec, Raw
from proxy.alpaca.endpoints import WILDCARD, Dialect
from proxy.alpaca.market import is_too_much
from proxy.alpaca.server_protocol import LONG_MESSAGE, LoginState, ServerProtocol
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.downstream.outbox import CLOSE_FLUSH_SECONDS, Outbox, Outboxes
from proxy.downstream.subscriber import PendingReply, ReplyQueue, Subscriber
from proxy.observe.logs import Log
from proxy.observe.snapshot import SessionState, Totals
from proxy.routing.allowlists import Client, WhenSlow
from proxy.routing.conflation import conflate
from proxy.routing.feed import Feed
from proxy.routing.reconciler import ACK_SECONDS
from proxy.transport import frames
from proxy.transport.connection import ClientConnection
from proxy.transport.errors import ConnectionLost
from proxy.transport.time_slice import YIELD_SECONDS

LOGIN_SECONDS = 10.0
PING_SECONDS = 10.0
GONE_SECONDS = 20.0
LINGER_SECONDS = 1.0
# Who sends faster than a message in so many seconds, or a ping, is read more slowly.
MESSAGE_PACE, CONTROL_PACE = 0.001, 0.00005
MAX_PENDING_REPLIES, PENDING_POLL_SECONDS = (
    64,
    0.01,
)  # answers that a session may wait for; how soon it is looked whether they are fewer
UNAUTHENTICATED_MESSAGE_BYTES = 64 * 1024
UNAUTHENTICATED_OUTBOX_BYTES = 256 * 1024


class ClientHost(Protocol):
    """Whom a conversation asks what it cannot decide."""

    outboxes: Outboxes
    message_limit: int
    default_feed: str

    def identify(self, conversation: ClientSession, key: str, secret: str) -> Client | int:
        """The client, now counted as here, or the code that refuses it."""

    def auth_delay(self, conversation: ClientSession) -> float:
        """How many seconds a refusal waits."""

    def upstream(self, client: Client, feed: str) -> Feed:
        """The connection that serves this client's feed."""

    def clock(self) -> float:
        """Steady time in seconds."""


class ClientSession:
    """A session with everything that it needs to be held. `client` is None until it has authenticated."""

    def __init__(self, connection: ClientConnection, session: ServerProtocol, desk: ClientHost) -> None:
        self.session = session
        self.codec: Codec = session.codec
        self.client: Client | None = None
        self.name = ""
        self.opened = desk.clock()
        opcode = frames.TEXT if session.text else frames.BINARY
        self.outbox = Outbox(
            connection, desk.outboxes, opcode=opcode, limit=UNAUTHENTICATED_OUTBOX_BYTES, slow_words=session.slow()
        )
        self.replies = ReplyQueue(
            prepare=session.prepare, acked=self._state, refused=session.refused, send=self.outbox.reply
        )
        self.subscribers: list[Subscriber] = []
        self._market: Subscriber | None = None
        self._trading: Subscriber | None = None
        self.ended = ""  # why, once it is over
        self._connection = connection
        self._desk = desk
        self._inbound = frames.Inbound(UNAUTHENTICATED_MESSAGE_BYTES)
        self._tried = False
        self._pinged_at = self._pong_at = self.opened
        self._closing_at = 0.0
        self._log = Log("session", feed=session.endpoint.feed, address=connection.address)

    def __repr__(self) -> str:
        return f"<ClientSession {self.name or 'stranger'} {self.session.endpoint.feed} {self._connection.address}>"

    @property
    def address(self) -> str:
        """The peer, as host:port."""
        return self._connection.address

    # The greenlet

    def run(self, credentials: tuple[str, str] | None) -> None:
        """The whole conversation. `credentials` are those of the request's headers, if it had any."""
        writer = gevent.spawn(self.outbox.run)
        try:
            for payload in self.session.opening():
                self.outbox.reply(payload)
            if credentials is not None:
                self._authenticate(*credentials)
            self._listen()
        except ConnectionLost as error:
            self.ended = self.ended or str(error)
        except frames.FrameError as fault:
            self.close(fault.code, fault.reason)
        except Exception:
            self._log.error("internal_error", client=self.name)
            self.outbox.reply(self.session.refused(500))
            self.close(frames.INTERNAL_ERROR, "internal error")
        finally:
            for place in self.subscribers:
                place.leave()
            self.close(frames.NORMAL, "")
            writer.join(CLOSE_FLUSH_SECONDS)
            writer.kill()
            self._connection.linger(LINGER_SECONDS)
            self._let_go()
            if self.client is not None:
                outbox = self.outbox
                log = self._log.warning if outbox.slow else self._log.info
                reason = "slow client" if outbox.slow else self.ended
                log("closed", client=self.name, reason=reason, delivered=outbox.delivered, lost=outbox.lost or None)

    def _let_go(self) -> None:
        """Of whatever refers back here. What ends in a circle waits for the collector, which seldom comes this far
        (`gateway.GARBAGE`): a kilobyte of each session would stay."""
        self.replies.end()
        self.outbox.conflate = None

    def _listen(self) -> None:
        while data := self._connection.receive(self._inbound.missing):
            pause = 0.0
            for event in self._inbound.receive(data):
                pause += CONTROL_PACE
                match event:
                    case frames.Message(payload):
                        pause += MESSAGE_PACE
                        self._message(payload)
                    case frames.Ping(payload):
                        self.outbox.pong(payload)
                    case frames.Pong():
                        self._pong_at = self._desk.clock()
                    case frames.Closed(code):
                        self.close(frames.NORMAL if code == frames.NO_CODE else code, "client closed")
                        return
            gevent.sleep(pause)
        self.ended = self.ended or "client went away"

    def _message(self, payload: bytes) -> None:
        for outcome in self.session.receive(payload):
            if len(payload) > LONG_MESSAGE:  # to read it has taken a turn, and so will what follows
                gevent.sleep(YIELD_SECONDS)
            while (
                len(self.replies) >= MAX_PENDING_REPLIES and self.outbox.closing is None
            ):  # who asks faster is read more slowly
                gevent.sleep(PENDING_POLL_SECONDS)
            if self.outbox.closing is not None:  # one message may ask for much that waits
                return
            match outcome:
                case talk.Reply(reply):
                    self.replies.reply(reply)
                case talk.Authenticate(key, secret):
                    self._authenticate(key, secret)
                case talk.Subscribe(topics):
                    self._subscribe(topics)
                case talk.Unsubscribe(topics):
                    self._ask((self._market, NO_TOPICS, topics))
                case talk.Listen(trading, market):
                    self._listen_to(trading, market)
                case talk.Unlisten(trading, market):
                    self._ask((self._trading, NO_TOPICS, trading), (self._market, NO_TOPICS, market))

    def _authenticate(self, key: str, secret: str) -> None:
        self._tried = True
        found = self.session.refused_code or self._desk.identify(self, key, secret)
        if isinstance(found, int):
            wait = self._desk.auth_delay(self)
            self._log.info("refused", code=found, wait=wait)
            gevent.sleep(wait)
            self.outbox.reply(self.session.denied(found))
            return
        self.name = found.name
        self._adopt(found)
        self._inbound.limit = self._desk.message_limit
        self._log.info("authenticated", client=self.name)
        self.outbox.reply(self.session.granted())

    def _adopt(self, client: Client) -> None:
        """The client's own bounds hold from now on, and it has a place at each feed that it may use here."""
        self.client = client
        self.outbox.limit = client.outbox
        conflates = client.when_slow is WhenSlow.CONFLATE
        self.outbox.conflate = partial(conflate, codec=self.codec, whole_book=self._whole_book) if conflates else None
        feed, data_codec = self.session.endpoint.feed, self.session.data_codec
        if self.session.endpoint.dialect is Dialect.MARKET:
            self._market = self._market or self._subscriber_at(client, feed, data_codec)
        else:
            self._trading = self._trading or self._subscriber_at(client, feed, self.codec)
            self._market = self._market or self._subscriber_at(client, self._desk.default_feed, data_codec)

    def _whole_book(self, symbol: str) -> Raw | bytes | None:
        return None if self._market is None else self._market.whole_book(symbol)

    def _subscriber_at(self, client: Client, feed: str, codec: Codec) -> Subscriber | None:
        """A place at the feed, if the client's allowlist names it; none for who is leaving and would not give it up."""
        if self.outbox.closing is not None or not client.allow.names(feed):
            return None
        place = Subscriber(client, self._desk.upstream(client, feed), codec, self.outbox.put, self.replies)
        self.subscribers.append(place)
        return place

    def _subscribe(self, topics: Subscription) -> None:
        if not self._refuse(self._market, topics):
            self._ask((self._market, topics, NO_TOPICS))

    def _listen_to(self, trading: Subscription | None, market: Subscription) -> None:
        """All or nothing: the trading streams are changed once the market feed, if it is asked too, has agreed."""
        if market and self._refuse(self._market, market):
            return
        place = self._trading
        if trading is None or place is None:
            self._ask((self._market, market, NO_TOPICS))
            return
        allowed = self._allowed_streams(trading)
        if self._market is None or not market:
            self._ask((place, allowed, place.requests.holds - allowed))
            return
        due, began = PendingReply(2), self._desk.clock()
        self.replies.add(due)
        self._market.request_change(market, NO_TOPICS, due)
        due.resolved.wait(ACK_SECONDS)
        if due.error is None:
            allowed = self._allowed_streams(trading)  # as of now: a reload may have come in between
            place.request_change(allowed, place.requests.holds - allowed, due, began)
        else:
            due.resolve(None)
            self.replies.advance()

    def _refuse(self, place: Subscriber | None, topics: Subscription) -> bool:
        """Whether the allowlist denies any of these topics, or they are too many; the client is told."""
        assert self.client is not None
        refused = topics if place is None else self.client.allow.refused(place.upstream.endpoint.feed, topics)
        if refused:
            self.replies.reply(self.session.insufficient(refused))
        elif place is not None and is_too_much(place.requests.holds, topics):
            self.replies.reply(self.session.refused(405))
        else:
            return False
        return True

    def _ask(self, *changes: tuple[Subscriber | None, Subscription, Subscription]) -> None:
        """One request, of as many places as it concerns: what to add and what to give up at each. One answer."""
        concerned = [(place, add, remove) for place, add, remove in changes if place and (add or remove)]
        due = PendingReply(len(concerned))
        self.replies.add(due)
        for place, add, remove in concerned:
            place.request_change(add, remove, due)

    def _allowed_streams(self, topics: Subscription) -> Subscription:
        """Those streams of which the client may hear anything; whose updates it hears is decided update by update."""
        assert self.client is not None
        entries = self.client.allow.entries(self.session.endpoint.feed)
        return frozenset(topic for topic in topics if entries.get(topic[0]) or entries.get(WILDCARD))

    def _state(self) -> bytes:
        return self.session.acked(self._held())

    def _held(self) -> Subscription:
        held = [place.held for place in self.subscribers]
        return held[0] if len(held) == 1 else NO_TOPICS.union(*held)

    # What a reload does

    def reconfigure(self, client: Client) -> None:
        """The client's entry has changed: what it may no longer have is taken away, and it is told its new state."""
        self._adopt(client)
        changes = []
        for place in self.subscribers:
            feed = place.upstream.endpoint.feed
            upstream = self._desk.upstream(client, feed)
            if upstream is not place.upstream:
                place.move(upstream)
            held = place.requests.holds
            if place is self._trading:
                pruned = held - self._allowed_streams(held)
            else:
                pruned = frozenset(client.allow.refused(feed, held))
            if pruned:
                changes.append((place, NO_TOPICS, pruned))
            place.refresh_permissions(client)
        if changes:
            self._ask(*changes)

    # What time and others do

    def tick(self, now: float) -> None:
        """Whatever is due: a log-in that took too long, a ping, a peer that is gone, a close that is not answered."""
        if self.outbox.closing is not None:
            self._closing_at = self._closing_at or now
            if now - self._closing_at >= CLOSE_FLUSH_SECONDS:
                self._connection.shut()
            return
        if self.session.state is LoginState.GREETED and now - self.opened >= LOGIN_SECONDS:
            if not self._tried:
                self.outbox.reply(self.session.timed_out())
            self.close(frames.POLICY, "auth timeout")
        elif now - self._pong_at >= GONE_SECONDS:
            self.ended = f"no pong for {GONE_SECONDS:.0f} s"
            self._connection.shut()
        elif now - self._pinged_at >= PING_SECONDS:
            self._pinged_at = now
            self.outbox.ping()

    def state(self) -> SessionState:
        """For the snapshot."""
        outbox = self.outbox
        return SessionState(
            self.name,
            self.session.endpoint.feed,
            self.address,
            self.codec.name,
            self._desk.clock() - self.opened,
            self._held(),
            outbox.pending,
            outbox.limit,
            outbox.delivered,
            outbox.conflated,
            outbox.lost,
            outbox.slow,
        )

    def count(self, totals: Totals) -> None:
        """Adds what this session got to its client's totals."""
        outbox = self.outbox
        outages = sum(place.outages for place in self.subscribers)
        totals.add(outbox.delivered, outbox.conflated, outbox.lost, "slow" if outbox.slow else "closed", outages)

    def close(self, code: int, reason: str) -> None:
        """Flush, say why, and end; the first reason stands."""
        self.ended = self.ended or reason
        self.outbox.close(code, reason)
