"""A link to the node that leads a feed: the source of the feed on every other node.

It takes the place of a connection to Alpaca, and speaks `dialect`. It waits in `open` until the leader has a connection
to Alpaca, and lasts as long as that one.
"""

from __future__ import annotations

import secrets
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum

import gevent

from proxy.alpaca.client_protocol import FeedEvent, Ignored, Phase, Refused
from proxy.alpaca.codec import Malformed, Raw
from proxy.alpaca.endpoints import Endpoint
from proxy.alpaca.topics import Topic
from proxy.cluster import dialect
from proxy.cluster.leader_history import LinkedOrders
from proxy.routing.order_entries import Claim
from proxy.routing.order_router import ORDERS_TOPIC
from proxy.routing.request_builder import UpstreamRequest
from proxy.transport import frames
from proxy.transport.connection import outlast_cuts
from proxy.transport.errors import ConnectionLost, UpgradeRefused
from proxy.upstream.connection import SourceConnection
from proxy.upstream.source import FeedSettings, LoginRefused
from proxy.upstream.websocket import dial

DIAL_SECONDS = 1.0
LOGIN_SECONDS = 1.0
PING_SECONDS = 0.5
MUTE_SECONDS = 1.5
STALL_SECONDS = 0.75  # between two ticks, which should be 0.25 s: this process stood still
PINGS = 8  # whose pongs are waited for

_NOT_LEADING_STATUS = (421, 503)  # 503: it is shutting down


class Gone(Enum):
    """The reason for the end of a link, as far as it concerns the leader."""

    REFUSED = "refused"  # nothing listens at its address
    NOT_LEADING = "not leading"  # it runs, and does not lead the feed, or is shutting down
    REJECTED = "rejected"  # it has another secret, codec or version, or is no node
    AWAY = "away"  # it has lost Alpaca, and leads the feed as before
    LOST = "lost"  # anything else: nothing is known of it


class LeaderGone(ConnectionLost):
    """The link has ended, or could not be made; `cause` is what that says about the leader."""

    def __init__(self, cause: Gone, reason: str, hint: str | None = None) -> None:
        super().__init__(reason, hint)
        self.cause = cause


class _TooSlow(Exception):
    """The log-in has taken too long."""


class LeaderLink(SourceConnection):
    """A `FeedSource` that reads from the node that leads the feed.

    `node` is the name of this node, `account` the hash of the account, `url` the leader's, `orders` the history of
    order updates on the trading feed. `on_state` is called when the phase or the reason has changed; it may not block.
    `reason` is what the leader waits for while the phase is AUTHENTICATING, `token` that of its lease once it is LIVE;
    `gone` is set when the link has ended, and `round_trip` the seconds from the last ping to its pong.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: FeedSettings,
        clock: Callable[[], float],
        *,
        node: str,
        secret: bytes,
        account: str,
        url: str,
        tls: ssl.SSLContext | None,
        on_state: Callable[[], None],
        orders: LinkedOrders | None = None,
    ) -> None:
        super().__init__(clock)
        self.finds_silence = True  # a mute link is kept, also when it is mute for longer
        self.url = url
        self.leader = ""  # the name of its node
        self.reason = ""
        self.token = 0
        self.gone: Gone | None = None
        self.round_trip: float | None = None
        self._codec = settings.codec
        self._opcode = frames.TEXT if settings.codec.text else frames.BINARY
        self._path = endpoint.path
        self._node = node
        self._secret = secret
        self._account = account
        self._tls = tls
        self._on_state = on_state
        self._orders = orders
        self._claim: Claim | None = None
        self._unread: deque[bytes] = deque()  # received while it was not live
        self._id = 0  # of the last request
        self._blamed: tuple[int, ...] = ()
        self._pings: dict[bytes, float] = {}
        self._pings_sent = self._reads = 0
        self._heard_at = self._ticked_at = self._pinged_at = self.received_at

    def open(self) -> None:
        """Connect, log in, and wait until the leader is live.

        Raises LeaderGone, or LoginRefused if Alpaca does not serve the feed.
        """
        try:
            self._dial()
            with gevent.Timeout(LOGIN_SECONDS, _TooSlow):
                self._log_in()
            self._wait_until_live()
        except _TooSlow as error:
            raise self._ended(Gone.LOST, f"no answer to the log-in within {LOGIN_SECONDS} s") from error
        except Malformed as error:
            raise self._ended(Gone.REJECTED, f"not the dialect of nodes: {error}") from error
        self._on_state()

    def receive(self) -> list[bytes]:
        """Return the messages that have arrived; block until there is one. Raises LeaderGone."""
        if self._unread:
            received = [*self._unread]
            self._unread.clear()
            return received
        if self.gone is not None:
            raise LeaderGone(self.gone, self.cause)
        try:
            return super().receive()
        except ConnectionLost as error:
            assert self._connection is not None
            draining = self._connection.close_code == frames.GOING_AWAY
            raise self._ended(Gone.NOT_LEADING if draining else Gone.LOST, str(error)) from error

    def handle(self, body: Raw | bytes) -> FeedEvent:
        try:
            message = dialect.leader_message(self._codec, body)
        except Malformed as error:
            self._ended(Gone.LOST, f"not the dialect of nodes: {error}")  # its answer would be waited for in vain
            return Ignored()
        match message:
            case dialect.State(None, stated, refusal):
                return replace(stated, answers=False, error=refusal)
            case dialect.State(number, stated) if self.request is not None and number == self._id:
                return replace(stated, answers=True)
            case dialect.Failure(number, code, msg) if self.request is not None and number == self._id:
                return Refused(code, msg, answers=True)
            case dialect.CaughtUp() if self._orders is not None and self._claim is not None:
                self._orders.caught_up(self._claim, message)
            case dialect.Away():
                self._leave(message)
        return Ignored()

    def foreign_error(self, payload: bytes) -> Refused | None:
        """Return None: the leader has one codec."""

    def send_request(self, request: UpstreamRequest, acked: Iterable[Topic]) -> None:
        self.request = request
        self._id += 1
        claim: Claim | None = None
        if self._orders is not None and request.add and ORDERS_TOPIC in request.topics:
            claim = self._claim = self._orders.claim()
        alone = request.sole is not None
        message = dialect.request(self._id, request.add, request.topics, alone=alone, claim=claim)
        self._queue(self._opcode, self._codec.encode(message))

    def take_request(self) -> UpstreamRequest | None:
        """Return the request under way, which ends with that.

        None after the end of the link, unless the leader has blamed the request for it.
        """
        request = super().take_request()
        return request if not self.cause or self._id in self._blamed else None

    def tick(self, now: float) -> None:
        """Send pings. A link has no time limit: the leader may be stopped, or a cable cut, for a while."""
        stalled, self._ticked_at = now - self._ticked_at >= STALL_SECONDS, now
        connection = self._connection
        if connection is None or self._cut_off(now):
            return
        if stalled or connection.reads != self._reads:
            self._reads, self._heard_at = connection.reads, now
        if now - self._pinged_at >= PING_SECONDS:
            self._pinged_at = now
            self._pings_sent += 1
            payload = b"%d" % self._pings_sent
            self._pings[payload] = self._clock()
            if len(self._pings) > PINGS:
                del self._pings[next(iter(self._pings))]
            self._queue(frames.PING, payload)

    def mute(self, now: float) -> bool:
        """Return whether nothing has arrived for MUTE_SECONDS, although pings were sent and this process ran."""
        if self._connection is None or self.cause or now - self._ticked_at >= STALL_SECONDS:
            return False
        return now - self.heard_at >= MUTE_SECONDS

    @property
    def heard_at(self) -> float:
        """The time of the leader's last sign of life, a pong for one."""
        return max(self._heard_at, self.received_at)

    # The log-in

    def _dial(self) -> None:
        headers = {
            dialect.HEADER: dialect.offered(),
            "Content-Type": self._codec.content_type,
            "User-Agent": "alpaca-proxy",
        }
        url = self.url.rstrip("/") + self._path
        try:
            connection = dial(url, headers, self._queue, tls=self._tls, seconds=DIAL_SECONDS, direct=True)
            connection.on_pong = self._take_pong
            outlast_cuts(connection.sock)
            self._begin(connection)
        except UpgradeRefused as error:
            not_leading = error.status in _NOT_LEADING_STATUS
            raise self._ended(Gone.NOT_LEADING if not_leading else Gone.REJECTED, str(error)) from error
        except ConnectionLost as error:
            refused = isinstance(error.__cause__, ConnectionRefusedError)
            raise self._ended(Gone.REFUSED if refused else Gone.LOST, str(error), error.hint) from error
        self._heard_at = self._pinged_at = self._ticked_at = self.received_at
        self._on_state()

    def _log_in(self) -> None:
        greeting = self._next_message()
        if not isinstance(greeting, dialect.Connected):
            raise Malformed("no greeting")
        if greeting.version not in dialect.VERSIONS:
            raise self._ended(Gone.REJECTED, f"it speaks version {greeting.version}, which this node does not")
        self.leader = greeting.node
        nonce = secrets.token_hex(dialect.CHALLENGE_BYTES)
        own, expected = (
            dialect.proof(
                self._secret,
                role,
                version=greeting.version,
                challenge=greeting.challenge,
                nonce=nonce,
                account=self._account,
                path=self._path,
            )
            for role in (dialect.EDGE, dialect.LEADER)
        )
        auth = dialect.Auth(greeting.version, self._node, self._account, nonce, own)
        self._queue(self._opcode, self._codec.encode(dialect.auth(auth)))
        match self._next_message():
            case dialect.Authenticated(proof):
                if not dialect.same(proof, expected):
                    raise self._ended(Gone.REJECTED, "the other side does not know the cluster's secret")
            case dialect.Failure(None, code, msg):
                cause = Gone.NOT_LEADING if code == dialect.NOT_LEADING else Gone.REJECTED
                raise self._ended(cause, f"the node says {code} {msg}")
            case dialect.Away() as away:
                raise self._leave(away)
            case _:
                raise Malformed("no answer to the log-in")

    def _wait_until_live(self) -> None:
        """Take what the leader says while it has no connection to Alpaca."""
        while True:
            match self._next_message():
                case dialect.Live(token):
                    self.token, self.reason = token, ""
                    self._enter(Phase.LIVE)
                    return
                case dialect.Waiting(reason, refused):
                    if refused is not None:
                        raise LoginRefused(*refused)
                    if reason != self.reason:
                        self.reason = reason
                        self._on_state()
                case dialect.Away() as away:
                    gone = self._leave(away)
                    if away.refused is not None:
                        raise LoginRefused(*away.refused)
                    raise gone
                case dialect.Unknown():
                    pass
                case _:
                    raise Malformed("a message before the leader is live")

    def _next_message(self) -> dialect.LeaderMessage:
        """Return the leader's next message before it is live. Raises LeaderGone or Malformed."""
        while not self._unread:
            self._unread.extend(self.receive())
        frame = self._unread.popleft()
        if len(frame) > dialect.LOGIN_BYTES:
            raise Malformed("too large a message")
        bodies = self._codec.items_of(frame)
        if len(bodies) != 1:
            raise Malformed("not one message")
        return dialect.leader_message(self._codec, bodies[0])

    # The end

    def _leave(self, away: dialect.Away) -> LeaderGone:
        """End the link as the leader says, and return the reason."""
        self._blamed, self.others_confirmed = away.blamed, away.others
        self.retry_at_once = away.leading and self.phase is Phase.LIVE
        return self._ended(Gone.AWAY if away.leading else Gone.NOT_LEADING, away.reason)

    def _ended(self, gone: Gone, reason: str, hint: str | None = None) -> LeaderGone:
        """End the link for this reason, unless it has ended for another one; return the reason as an exception."""
        self.gone = self.gone or gone
        self.end(reason or gone.value)
        return LeaderGone(self.gone, self.cause, hint)

    def _take_pong(self, payload: bytes) -> None:
        if (sent_at := self._pings.pop(payload, None)) is not None:
            self.round_trip = self._clock() - sent_at
