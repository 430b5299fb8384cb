"""The leader's end of a link: a session of another node at one feed.

It has the outbox of a client's session and one subscriber, which is patient: the edge is told only what Alpaca has
said. It has one request at a time; what belongs to the link ends with the leader's connection to Alpaca.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Protocol

import gevent

from proxy.alpaca import market
from proxy.alpaca.codec import Codec, Malformed
from proxy.alpaca.cooperative import Steps, run_to_end
from proxy.alpaca.endpoints import WILDCARD, Endpoint
from proxy.alpaca.market import ERRORS, ControlFrame
from proxy.alpaca.topics import NO_TOPICS, channel_of
from proxy.cluster import dialect
from proxy.cluster.order_replay import OrderReplay
from proxy.downstream.client_session import LARGE_STATE, UNAUTHENTICATED_OUTBOX_BYTES
from proxy.downstream.hub_budget import SLICE_SECONDS
from proxy.downstream.outbox import Outbox
from proxy.downstream.session import BaseSession, SessionHost
from proxy.observe.logs import Log
from proxy.routing.allowlists import Client, SymbolPatterns
from proxy.routing.order_entries import Claim
from proxy.routing.order_router import ORDERS_TOPIC, OrderRouter
from proxy.routing.subscriber import Error, PendingRequest, RequestState, Subscriber
from proxy.transport import frames
from proxy.transport.connection import GONE_SECONDS, ClientConnection
from proxy.transport.errors import ConnectionLost
from proxy.upstream.supervisor import FeedSupervisor

LOGIN_SECONDS = 5.0
MAX_CHANNELS = 64  # that a state lists although nothing of them is held
OUTBOX_BYTES = 64 * 1024 * 1024
# Less than a refused client waits: the edge gives up its log-in after a second, and should see why it failed.
REFUSAL_SECONDS = 0.5

_EVERYTHING = SymbolPatterns([WILDCARD])


class LeadingFeed(Protocol):
    """A feed that this node leads; `token` is that of its lease, `live`: it is connected to Alpaca itself."""

    @property
    def supervisor(self) -> FeedSupervisor: ...
    @property
    def live(self) -> bool: ...
    @property
    def token(self) -> int: ...


class SessionOwner(SessionHost, Protocol):
    """The part of `node_server.NodeServer` that a session uses."""

    node: str
    secret: bytes
    refused: int  # log-ins with a wrong proof

    def leading(self, account: str, feed: str) -> LeadingFeed | None:
        """Return the feed of an account; None if this node does not lead it."""

    def admit(self, session: NodeSession) -> None:
        """Take the session out of the unauthenticated ones."""


class NodeSession(BaseSession):
    """A link of another node, which reads a feed that this node leads.

    `supervisor` is the feed's and `account` the hash of its account once the node has logged in; `live`: requests may
    be sent. `received_at` is the time of the last bytes.
    """

    def __init__(
        self, connection: ClientConnection, host: SessionOwner, endpoint: Endpoint, codec: Codec, version: int
    ) -> None:
        slow = codec.encode(dialect.away(dialect.Away("this node reads too slowly")))
        opcode = frames.TEXT if codec.text else frames.BINARY
        outbox = Outbox(connection, host.outboxes, opcode=opcode, limit=UNAUTHENTICATED_OUTBOX_BYTES, slow_words=slow)
        super().__init__(connection, host, outbox, feed=endpoint.feed, codec=codec)
        self.supervisor: FeedSupervisor | None = None
        self.live = False
        self._endpoint = endpoint
        self._host = host
        self._version = version
        self.account = ""
        self._challenge = secrets.token_hex(dialect.CHALLENGE_BYTES)
        self._inbound = frames.Inbound(dialect.EDGE_BYTES, any_bytes=not codec.text)
        self._budget = host.budget("")
        self._slice_began = self.received_at = self.opened
        self._subscriber: Subscriber | None = None
        self._request_id = 0
        self._replay: OrderReplay | None = None
        self._channels = dict.fromkeys(endpoint.channels)  # that each state has, also without a topic
        self._told: tuple[str, Error | None] | None = None  # what it was told last to be waiting for
        self._log = Log("node", feed=self.feed, address=connection.address)

    def permits(self, client: Client) -> bool:
        """Return True: a node has no allowlist."""
        return True

    def unresponsive(self, now: float) -> float:
        """Return 0: a link never gives way to another one."""
        return 0.0

    # The greenlet

    def run(self) -> None:
        """Serve the link until it ends."""
        writer = gevent.spawn(self.outbox.run)
        try:
            self._send(dialect.connected(self._version, self._host.node, self._challenge))
            self._read()
        except ConnectionLost as error:
            self.ended = self.ended or str(error)
        except frames.FrameError as error:
            self.close(error.code, error.reason)
        except Malformed as error:
            self.close(frames.POLICY, f"not the dialect of nodes: {error}")
        except Exception:
            self._log.error("internal_error", node=self.name)
            self.close(frames.INTERNAL_ERROR, "internal error")
        finally:
            self._leave_feeds()
            if self.supervisor is not None:
                self.supervisor.let_go(self)
            self.close(frames.NORMAL, "")
            self._finish(writer)
            if self.name:
                outbox = self.outbox
                log = self._log.warning if outbox.slow else self._log.info
                reason = "slow node" if outbox.slow else self.ended
                log("unlinked", node=self.name, reason=reason, delivered=outbox.delivered, lost=outbox.lost or None)

    def _read(self) -> None:
        while data := self._connection.receive(self._inbound.missing):
            self.received_at = self._clock()
            self._slice_began = self._budget.reserve()
            for event in self._inbound.receive(data):
                match event:
                    case frames.Message(payload) if self.outbox.closing is None:
                        self._take(dialect.edge_message(self.codec, payload))
                    case frames.Ping(payload):
                        self.outbox.pong(payload)
                    case frames.Closed(code):
                        self.close(frames.NORMAL if code == frames.NO_CODE else code, "closed by the node")
                        return
                self._pace()
            self._budget.charge(self._slice_began)
        self.ended = self.ended or "the node went away"

    def _pace(self) -> None:
        """Wait for the budget if the current slice of the hub's time is used up."""
        if self._clock() - self._slice_began >= SLICE_SECONDS:
            self._budget.charge(self._slice_began)
            self._slice_began = self._budget.reserve()

    def _take(self, message: dialect.EdgeMessage) -> None:
        match message:
            case dialect.Auth() if self.supervisor is None:
                self._log_in(message)
            case dialect.Request() if self.live:
                self._request(message)
            case _:
                raise Malformed("a message out of order")

    # The log-in

    def _log_in(self, auth: dialect.Auth) -> None:
        edge, leader = (
            dialect.proof(
                self._host.secret,
                role,
                version=self._version,
                challenge=self._challenge,
                nonce=auth.nonce,
                account=auth.account,
                path=self._endpoint.path,
            )
            for role in (dialect.EDGE, dialect.LEADER)
        )
        if auth.version != self._version or not dialect.same(auth.proof, edge):
            self._host.refused += 1
            gevent.sleep(REFUSAL_SECONDS)
            self._refuse_login(dialect.AUTH_FAILED, ERRORS[402])
            return
        feed = self._host.leading(auth.account, self.feed)
        if feed is None:
            self._refuse_login(dialect.NOT_LEADING, "not leading")
            return
        if feed.supervisor.codec is not self.codec:
            self._refuse_login(dialect.OTHER_CODEC, f"this account's codec is {feed.supervisor.codec.name}")
            return
        self.name, self.account, self.supervisor = auth.node, auth.account, feed.supervisor
        self.outbox.limit = OUTBOX_BYTES
        self._budget = self._host.budget(self.name)
        self._host.admit(self)
        self._log.info("linked", node=self.name)
        self._send(dialect.authenticated(leader))
        feed.supervisor.hold(self, remote=True)
        if feed.live:
            self.come_live(feed.token)
        else:
            self.wait(feed.supervisor.last_error, feed.supervisor.reconciler.refusal)

    def _refuse_login(self, code: int, msg: str) -> None:
        self._log.info("refused", code=code, reason=msg)
        self._send(dialect.failure(code, msg))
        self.close(frames.POLICY, msg)

    # The feed's state

    def come_live(self, token: int) -> None:
        """Let the node send requests."""
        supervisor = self.supervisor
        if supervisor is None or self.live or self.outbox.closing is not None:
            return
        if supervisor.codec is not self.codec:  # a reload has changed it while the node waited
            self.go_away("the account's codec has changed", leading=True, code=frames.SERVICE_RESTART)
            return
        self.live = True
        supervisor.let_go(self)  # from now on, its topics keep the feed connected
        self._subscriber = Subscriber(
            self,
            supervisor,
            self.requests,
            name=f"node:{self.name}",
            codec=supervisor.codec,
            put=self.outbox.put,
            accepts_unknown=_EVERYTHING,
            patient=True,
        )
        self.subscribers.append(self._subscriber)
        self._send(dialect.live(token))

    def wait(self, reason: str, refused: Error | None = None) -> None:
        """Tell the node what this one waits for, if that has changed; `refused`: Alpaca does not serve the feed."""
        if self.supervisor is not None and not self.live and self._told != (reason, refused):
            self._told = reason, refused
            self._send(dialect.waiting(reason, refused))

    def go_away(self, reason: str, *, leading: bool, refused: Error | None = None, code: int) -> None:
        """End the link, and give up its topics at once: the node asks for them again in its next link."""
        if self.outbox.closing is not None:
            return
        blamed = [request for request in self.requests if isinstance(request, PendingRequest) and request.blamed]
        others = any(request.others_confirmed for request in blamed)
        ids = (self._request_id,) if blamed else ()  # there is one request at a time
        self._send(dialect.away(dialect.Away(reason, leading, refused, ids, others)))
        self.close(code, reason)
        self._leave_feeds()

    # Requests

    def _request(self, message: dialect.Request) -> None:
        if self.requests:
            raise Malformed("a request before the answer to the last one")
        began, self._request_id = self._clock(), message.id
        steps = market.request(message.fields, self.codec, self._endpoint)
        request = run_to_end(steps, self._pace)
        subscriber = self._subscriber
        if subscriber is None:  # the feed was lost during a pause
            return
        if not isinstance(request, market.ChangeRequest):
            code = request.code if isinstance(request, market.InvalidRequest) else 400
            self._send(dialect.failure(code, ERRORS[code], message.id))
            return
        if request.add and dialect.is_too_much(subscriber.wanted, request.topics):
            self._send(dialect.failure(405, ERRORS[405], message.id))
            return
        self._channels |= dict.fromkeys(map(channel_of, request.topics))
        if len(self._channels) > MAX_CHANNELS:  # of most of them, nothing is held any more
            topics = subscriber.held | request.topics
            self._channels = dict.fromkeys([*self._endpoint.channels, *map(channel_of, topics)])
        add, remove = (request.topics, NO_TOPICS) if request.add else (NO_TOPICS, request.topics)
        pending = PendingRequest(subscriber, add, remove, began, alone=message.alone)
        self.requests.append(pending)
        if message.claim is not None and ORDERS_TOPIC in add:
            self._claim(subscriber, message.claim)
        for _ in subscriber.feed.request(pending):
            self._pace()
        self.answer()

    def answer(self) -> None:
        """Answer the request if it is resolved."""
        while self.requests:
            first = self.requests[0]
            assert isinstance(first, PendingRequest)
            if not first.resolved:
                return
            self.requests.popleft()
            if first.state is RequestState.REFUSED:
                code, msg = first.error or (500, ERRORS[500])
                self._send(dialect.failure(code, msg, self._request_id))
                continue
            first.subscriber.feed.apply(first)
            self._send_state(self._request_id)
            for frame, messages in first.subscriber.feed.install(first.subscriber):
                self.outbox.put(frame, messages)
            if self._replay is not None and ORDERS_TOPIC in first.subscriber.held:
                self._replay.begin()

    def report(self, error: Error | None) -> None:
        self._send_state(None, error)
        self.answer()

    def _claim(self, subscriber: Subscriber, claim: Claim) -> None:
        """Let the node have the history of order updates, once it is subscribed to them."""
        router = None if self.supervisor is None else self.supervisor.router
        if isinstance(router, OrderRouter):
            if self._replay is not None:
                self._replay.stop()
            self._replay = OrderReplay(
                router, subscriber, self.outbox, claim, lambda caught_up: self._send(dialect.caught_up(caught_up))
            )

    def recovery_ended(self, complete: bool) -> None:
        """Record that a recovery of order updates has ended."""
        if self._replay is not None:
            self._replay.recovery_ended(complete)

    def _send_state(self, request: int | None, error: Error | None = None) -> None:
        held = self._held()
        state = dialect.state(self._channels, held, request, error)
        if len(held) < LARGE_STATE:
            self._send(run_to_end(state))
        else:
            self.outbox.reply_in_steps(self._encoded(state))

    def _encoded(self, state: Steps[ControlFrame]) -> Steps[bytes]:
        return self.codec.encode((yield from state))

    def _send(self, message: ControlFrame) -> None:
        self.outbox.reply(self.codec.encode(message))

    def _leave_feeds(self) -> None:
        if self._replay is not None:
            self._replay.stop()
            self._replay = None
        super()._leave_feeds()
        self._subscriber = None

    # Called by the server

    def reconfigure(self, client: Client) -> Iterator[None]:
        """Do nothing: a node is no client."""
        yield from ()

    def tick(self, now: float) -> None:
        """Enforce the time limits of the log-in, of silence and of the close.

        The node sends a ping every half a second; it may be stopped for a while.
        """
        if self._is_closing(now):
            return
        if self.supervisor is None and now - self.opened >= LOGIN_SECONDS:
            self.close(frames.POLICY, "auth timeout")
        elif now - self.received_at >= GONE_SECONDS:
            self.ended = f"no sign of life for {GONE_SECONDS:.0f} s"
            self._connection.shut()
