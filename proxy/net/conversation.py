"""One algorithm at work: its greenlet, its connection, its outbox, its place at a feed.

The greenlet reads; frames become messages, the pure `Session` turns them into outcomes, and each outcome is performed
here. Everything that is sent goes through the outbox, whose writer is the only one to write, and which is ended before
the greenlet returns.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import gevent

from proxy.errors import ConnectionLost
from proxy.logs import Log
from proxy.net import frames
from proxy.net.connection import ClientConnection
from proxy.net.outbox import FAREWELL_SECONDS, Outbox, Outboxes
from proxy.net.place import Answers, Due, Place
from proxy.net.turn import NAP_SECONDS
from proxy.net.upstream import Upstream
from proxy.protocol import session as talk
from proxy.protocol.codec import Codec, Raw
from proxy.protocol.feeds import WILDCARD, Dialect
from proxy.protocol.market import is_too_much
from proxy.protocol.session import LONG_MESSAGE, Session, State
from proxy.protocol.topics import NOTHING, Subscription
from proxy.routing.access import Client, WhenSlow
from proxy.routing.ledger import PATIENCE
from proxy.routing.overflow import conflate
from proxy.snapshot import SessionState, Totals

LOGIN_SECONDS = 10.0
PING_SECONDS = 10.0
GONE_SECONDS = 20.0
LINGER_SECONDS = 1.0
# Who sends faster than a message in so many seconds, or a ping, is read more slowly.
MESSAGE_PACE, CONTROL_PACE = 0.001, 0.00005
MOST_DUE, DUE_PACE = 64, 0.01  # answers that a session may wait for; how soon it is looked whether they are fewer
STRANGER_MESSAGE = 64 * 1024
STRANGER_OUTBOX = 256 * 1024


class Desk(Protocol):
    """Whom a conversation asks what it cannot decide."""

    outboxes: Outboxes
    message_limit: int
    default_feed: str

    def identify(self, conversation: Conversation, key: str, secret: str) -> Client | int:
        """The client, now counted as here, or the code that refuses it."""

    def penalty(self, conversation: Conversation) -> float:
        """How many seconds a refusal waits."""

    def upstream(self, client: Client, feed: str) -> Upstream:
        """The connection that serves this client's feed."""

    def clock(self) -> float:
        """Steady time in seconds."""


class Conversation:
    """A session with everything that it needs to be held. `client` is None until it has authenticated."""

    def __init__(self, connection: ClientConnection, session: Session, desk: Desk) -> None:
        self.session = session
        self.codec: Codec = session.codec
        self.client: Client | None = None
        self.name = ""
        self.opened = desk.clock()
        opcode = frames.TEXT if session.text else frames.BINARY
        self.outbox = Outbox(connection, desk.outboxes, opcode=opcode, limit=STRANGER_OUTBOX, slow_words=session.slow())
        self.answers = Answers(
            prepare=session.prepare, acked=self._state, refused=session.refused, send=self.outbox.reply
        )
        self.places: list[Place] = []
        self._market: Place | None = None
        self._trading: Place | None = None
        self.ended = ""  # why, once it is over
        self._connection = connection
        self._desk = desk
        self._inbound = frames.Inbound(STRANGER_MESSAGE)
        self._tried = False
        self._pinged_at = self._ponged_at = self.opened
        self._closing_at = 0.0
        self._log = Log("session", feed=session.endpoint.feed, address=connection.address)

    def __repr__(self) -> str:
        return f"<Conversation {self.name or 'stranger'} {self.session.endpoint.feed} {self._connection.address}>"

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
            self._log.error("bug", client=self.name)
            self.outbox.reply(self.session.refused(500))
            self.close(frames.INTERNAL_ERROR, "internal error")
        finally:
            for place in self.places:
                place.leave()
            self.close(frames.NORMAL, "")
            writer.join(FAREWELL_SECONDS)
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
        self.answers.end()
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
                        self._ponged_at = self._desk.clock()
                    case frames.Closed(code):
                        self.close(frames.NORMAL if code == frames.NO_CODE else code, "client closed")
                        return
            gevent.sleep(pause)
        self.ended = self.ended or "client went away"

    def _message(self, payload: bytes) -> None:
        for outcome in self.session.receive(payload):
            if len(payload) > LONG_MESSAGE:  # to read it has taken a turn, and so will what follows
                gevent.sleep(NAP_SECONDS)
            while len(self.answers) >= MOST_DUE and self.outbox.closing is None:  # who asks faster is read more slowly
                gevent.sleep(DUE_PACE)
            if self.outbox.closing is not None:  # one message may ask for much that waits
                return
            match outcome:
                case talk.Reply(reply):
                    self.answers.say(reply)
                case talk.Authenticate(key, secret):
                    self._authenticate(key, secret)
                case talk.Subscribe(topics):
                    self._subscribe(topics)
                case talk.Unsubscribe(topics):
                    self._ask((self._market, NOTHING, topics))
                case talk.Listen(trading, market):
                    self._listen_to(trading, market)
                case talk.Unlisten(trading, market):
                    self._ask((self._trading, NOTHING, trading), (self._market, NOTHING, market))

    def _authenticate(self, key: str, secret: str) -> None:
        self._tried = True
        found = self.session.barred or self._desk.identify(self, key, secret)
        if isinstance(found, int):
            wait = self._desk.penalty(self)
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
        feed, hears = self.session.endpoint.feed, self.session.hears
        if self.session.endpoint.dialect is Dialect.MARKET:
            self._market = self._market or self._take_place(client, feed, hears)
        else:
            self._trading = self._trading or self._take_place(client, feed, self.codec)
            self._market = self._market or self._take_place(client, self._desk.default_feed, hears)

    def _whole_book(self, symbol: str) -> Raw | bytes | None:
        return None if self._market is None else self._market.whole_book(symbol)

    def _take_place(self, client: Client, feed: str, codec: Codec) -> Place | None:
        """A place at the feed, if the client's allowlist names it; none for who is leaving and would not give it up."""
        if self.outbox.closing is not None or not client.allow.names(feed):
            return None
        place = Place(client, self._desk.upstream(client, feed), codec, self.outbox.put, self.answers)
        self.places.append(place)
        return place

    def _subscribe(self, topics: Subscription) -> None:
        if not self._refuse(self._market, topics):
            self._ask((self._market, topics, NOTHING))

    def _listen_to(self, trading: Subscription | None, market: Subscription) -> None:
        """All or nothing: the trading streams are changed once the market feed, if it is asked too, has agreed."""
        if market and self._refuse(self._market, market):
            return
        place = self._trading
        if trading is None or place is None:
            self._ask((self._market, market, NOTHING))
            return
        allowed = self._allowed_streams(trading)
        if self._market is None or not market:
            self._ask((place, allowed, place.seat.holds - allowed))
            return
        due, began = Due(2), self._desk.clock()
        self.answers.add(due)
        self._market.ask(market, NOTHING, due)
        due.heard.wait(PATIENCE)
        if due.error is None:
            allowed = self._allowed_streams(trading)  # as of now: a reload may have come in between
            place.ask(allowed, place.seat.holds - allowed, due, began)
        else:
            due.hear(None)
            self.answers.advance()

    def _refuse(self, place: Place | None, topics: Subscription) -> bool:
        """Whether the allowlist denies any of these topics, or they are too many; the client is told."""
        assert self.client is not None
        refused = topics if place is None else self.client.allow.refused(place.upstream.endpoint.feed, topics)
        if refused:
            self.answers.say(self.session.insufficient(refused))
        elif place is not None and is_too_much(place.seat.holds, topics):
            self.answers.say(self.session.refused(405))
        else:
            return False
        return True

    def _ask(self, *changes: tuple[Place | None, Subscription, Subscription]) -> None:
        """One request, of as many places as it concerns: what to add and what to give up at each. One answer."""
        concerned = [(place, add, remove) for place, add, remove in changes if place and (add or remove)]
        due = Due(len(concerned))
        self.answers.add(due)
        for place, add, remove in concerned:
            place.ask(add, remove, due)

    def _allowed_streams(self, topics: Subscription) -> Subscription:
        """Those streams of which the client may hear anything; whose updates it hears is decided update by update."""
        assert self.client is not None
        entries = self.client.allow.entries(self.session.endpoint.feed)
        return frozenset(topic for topic in topics if entries.get(topic[0]) or entries.get(WILDCARD))

    def _state(self) -> bytes:
        return self.session.acked(self._held())

    def _held(self) -> Subscription:
        held = [place.held for place in self.places]
        return held[0] if len(held) == 1 else NOTHING.union(*held)

    # What a reload does

    def reconfigure(self, client: Client) -> None:
        """The client's entry has changed: what it may no longer have is taken away, and it is told its new state."""
        self._adopt(client)
        changes = []
        for place in self.places:
            feed = place.upstream.endpoint.feed
            upstream = self._desk.upstream(client, feed)
            if upstream is not place.upstream:
                place.move(upstream)
            held = place.seat.holds
            if place is self._trading:
                pruned = held - self._allowed_streams(held)
            else:
                pruned = frozenset(client.allow.refused(feed, held))
            if pruned:
                changes.append((place, NOTHING, pruned))
            place.look_again(client)
        if changes:
            self._ask(*changes)

    # What time and others do

    def tick(self, now: float) -> None:
        """Whatever is due: a log-in that took too long, a ping, a peer that is gone, a close that is not answered."""
        if self.outbox.closing is not None:
            self._closing_at = self._closing_at or now
            if now - self._closing_at >= FAREWELL_SECONDS:
                self._connection.shut()
            return
        if self.session.state is State.GREETED and now - self.opened >= LOGIN_SECONDS:
            if not self._tried:
                self.outbox.reply(self.session.timed_out())
            self.close(frames.POLICY, "auth timeout")
        elif now - self._ponged_at >= GONE_SECONDS:
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
        outages = sum(place.outages for place in self.places)
        totals.add(outbox.delivered, outbox.conflated, outbox.lost, "slow" if outbox.slow else "closed", outages)

    def close(self, code: int, reason: str) -> None:
        """Flush, say why, and end; the first reason stands."""
        self.ended = self.ended or reason
        self.outbox.close(code, reason)
