"""The supervisor of one feed of one account: its connection and its sessions.

    connection.receive() ─► router.take / flush ─► member.put
                                └─ control message ─► protocol.receive ─► reconciler ─► ack dispatcher ─► members

The connection is opened when a session wants a topic, and closed when none has wanted one for IDLE_SECONDS. Payloads
to send go through `_send` to the connection's one writer. Sessions never see a reconnect: the reconciler clears its
acked topics, so the whole difference is requested again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from math import inf

import gevent
from gevent.event import Event

from proxy.alpaca.client_protocol import (
    HINTS,
    OF_THE_CONNECTION,
    Backoff,
    Confirmed,
    FeedEvent,
    Ignored,
    LoggedIn,
    Login,
    Phase,
    Refused,
    Send,
    client_protocol_for,
)
from proxy.alpaca.codec import Codec, Malformed
from proxy.alpaca.endpoints import Endpoint
from proxy.alpaca.large_frames import LARGE_FRAME_BYTES
from proxy.alpaca.market import ERRORS
from proxy.alpaca.topics import MANY, NO_TOPICS, Subscription, Topic
from proxy.observe.logs import Log
from proxy.observe.snapshot import FeedState
from proxy.routing.pending_requests import RequestOutcome
from proxy.routing.reconciler import SubscriptionReconciler
from proxy.routing.router import Delivery, Routing
from proxy.transport import frames
from proxy.transport.errors import ConnectionLost, ProxyError, UpgradeRefused
from proxy.transport.time_slice import SLICE_SECONDS, TimeSlice
from proxy.upstream.ack_dispatcher import AckDispatcher, AckReceiver
from proxy.upstream.alpaca_connection import AlpacaConnection
from proxy.upstream.feed_stats import FeedStats
from proxy.upstream.websocket import Frame

STEP_SECONDS = 10.0  # for Alpaca's reply to a log-in
# For Alpaca's reply to a request. A request is not repeated: a second reply would be taken for that to the next one.
REQUEST_SECONDS = 30.0
IDLE_SECONDS = STABLE_SECONDS = 10.0


class LoginRefused(ProxyError):
    """Alpaca refused the log-in; `code` is Alpaca's."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(f"Alpaca says {code} {msg}")
        self.code = code


class FeedSupervisor:
    """The connection of one account to one feed.

    It is kept as long as a session wants a topic of the feed. `clock` is monotonic time in seconds; call `tick` several
    times a second.
    """

    def __init__(
        self, endpoint: Endpoint, login: Login, codec: Codec, router: Routing, clock: Callable[[], float]
    ) -> None:
        self.endpoint = endpoint
        self.login = login
        self.codec = codec
        self.router = router
        self.reconciler = SubscriptionReconciler()
        self.phase = Phase.IDLE
        self._phase_began = clock()
        self.connects = 0
        self.malformed = 0  # frames
        self.last_error = ""
        self.stats = FeedStats(clock)
        self._clock = clock
        self._protocol = client_protocol_for(endpoint, codec, login)
        self._backoff = Backoff(random.random)
        self._connection: AlpacaConnection | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._wake = Event()
        self._requested_at = self._wanted_at = self._phase_began
        self._refused_at = 0.0
        self._stopped = False
        self._log = Log("upstream", account=login.account, feed=endpoint.feed)
        self._ack_dispatcher = AckDispatcher(self._deliver_outcome, self._log)

    def __repr__(self) -> str:
        return f"<FeedSupervisor {self.login.account}/{self.endpoint.feed} {self.phase.value}>"

    @property
    def acked(self) -> Set[Topic]:
        """The topics that Alpaca has confirmed."""
        return self.reconciler.acked

    # Calls on behalf of sessions

    def change(
        self, member: AckReceiver, add: Subscription, remove: Subscription = NO_TOPICS, since: float = inf
    ) -> None:
        """Subscribe the member to `add` and unsubscribe it from `remove`, as one request.

        The member gets one outcome, with the state or an error. `since` is the clock at the request, if that is earlier
        than now.
        """
        self._ack_dispatcher.take(self.reconciler.change(member.requests, add, remove, min(since, self._clock())))
        if len(add) + len(remove) < MANY:
            self._reconcile()
        else:
            gevent.spawn(self._reconcile_later)

    def revoke(self, member: AckReceiver, topics: Subscription) -> None:
        """Take topics away from the member.

        It receives no message of them from now on; the outcomes that follow come in their order.
        """
        self.router.revoke(member, topics)
        self._ack_dispatcher.take(self.reconciler.revoke(member.requests, topics, self._clock()))
        gevent.spawn(self._reconcile_later)

    def adopt(self, member: AckReceiver, requests: list[Subscription]) -> None:
        """Take over a member from another account.

        `requests` were acknowledged there.
        """
        self._ack_dispatcher.take(self.reconciler.adopt(member.requests, requests))
        self._reconcile()

    def leave(self, member: AckReceiver) -> None:
        """Remove a member that has left."""
        self.router.remove(member)
        self.reconciler.leave(member.requests)
        gevent.spawn(self._reconcile_later)

    # Calls of the gateway

    def tick(self, now: float) -> None:
        """Do what is due: provisional acknowledgements, pings, timeouts."""
        self._ack_dispatcher.take(self.reconciler.overdue(now))
        self.stats.tick(self.router.received, now)
        if self._greenlet is None and self.reconciler.closed and now - self._refused_at >= Backoff.REFUSED:
            self.reconciler.open()  # the next subscribe dials again
        if not self.reconciler.idle:
            self._wanted_at = now
            self._reconcile()  # has no effect, unless an internal error has ended the greenlet
        elif now - self._wanted_at >= IDLE_SECONDS and self._greenlet is not None:
            self._end("no session subscribes to it any more")
        if self._connection is not None:
            self._connection.tick(now)
            if self.phase is Phase.AUTHENTICATING and now - self._phase_began >= STEP_SECONDS:
                self._end(f"no answer to the log-in within {STEP_SECONDS:.0f} s")
            elif self.reconciler.request is not None and now - self._requested_at >= REQUEST_SECONDS:
                self._end(f"no answer to a request within {REQUEST_SECONDS:.0f} s")

    def state(self) -> FeedState:
        """Return the feed's part of the snapshot."""
        now = self._clock()
        return FeedState(
            account=self.login.account,
            feed=self.endpoint.feed,
            phase=self.phase.value,
            state_age=now - self._phase_began,
            last_error=self.last_error,
            wanted=+self.reconciler.channels,
            acked=len(self.reconciler.acked),
            connects=self.connects,
            received=self.router.received,
            unrouted=self.router.unrouted,
            malformed=self.malformed,
            irregular=self.router.irregular,
            age=self.stats.age(now),
            outages=self.stats.outages,
            outage_seconds=self.stats.outage_seconds(),
            needed=not self.reconciler.idle,
            lag=self.stats.lags.state(),
        )

    def reconfigure(self, login: Login, codec: Codec, router: Routing) -> None:
        """Reconnect with the settings of a changed account.

        Sessions keep their subscriptions, which are copied to the new `router`.
        """
        self.login, self.codec = login, codec
        self._protocol = client_protocol_for(self.endpoint, codec, login)
        for member, subscription in self.router.subscriptions():
            router.set_subscription(member, subscription)
        self.router = router
        self.reconciler.open()
        self._backoff.reset()
        if self._connection is not None:
            self._end("the account's configuration changed")
        else:  # the greenlet, if there is one, dials with the old settings or waits to do so
            self._kill_greenlet()
            self._reconcile()

    def try_again(self) -> None:
        """Dial again now if Alpaca has refused this feed.

        The account's plan may have been changed.
        """
        if self.reconciler.closed:
            self._wake.set()
            if self._greenlet is None:
                self.reconciler.open()

    def stop(self) -> None:
        """End the connection and its greenlet for good; block until that is done.

        It does so even if sessions still want topics.
        """
        self._stopped = True
        self._kill_greenlet()

    # The greenlet

    def _run(self) -> None:
        try:
            while not self._expired():
                wait = self._connect_once()
                self._wake.clear()
                self._wake.wait(wait)
        finally:
            self._greenlet = None
            if self.reconciler.idle:
                self.stats.end_outage()
            self._set_phase(Phase.IDLE)

    def _expired(self) -> bool:
        return self.reconciler.idle and self._clock() - self._wanted_at >= IDLE_SECONDS

    def _connect_once(self) -> float:
        """Run one connection to its end; return the seconds to wait before the next."""
        refusal: int | None = None
        not_in_plan = False
        self._set_phase(Phase.CONNECTING)
        try:
            self._run_connection()
        except UpgradeRefused as error:
            refusal, last_error = error.status, str(error)
        except LoginRefused as error:
            refusal, last_error = error.code, str(error)
            not_in_plan = refusal == 409  # only from Alpaca: an HTTP status may come from a proxy in between
        except ConnectionLost as error:
            last_error = str(error)
        except Exception as error:  # an internal error costs the connection, not the feed
            last_error = f"an internal error: {type(error).__name__}"
            self._log.error("internal_error")
        finally:
            was_live, lasted = self.phase is Phase.LIVE, self._clock() - self._phase_began
            if was_live and not self.reconciler.idle:
                self._count_outage()
            self.reconciler.lost()
            self.router.prune_books(self.reconciler.acked)
        if was_live and lasted >= STABLE_SECONDS:
            self._backoff.reset()
        self.last_error = last_error
        if self._expired():
            self._log.info("closed", reason=last_error)
            return 0.0
        if not_in_plan:
            self._set_phase(Phase.REFUSED)
            self._refused_at = self._phase_began
            self._ack_dispatcher.take(self.reconciler.close(409, "insufficient subscription"))
            wait = Backoff.REFUSED
        else:
            self._set_phase(Phase.WAITING)
            wait = self._backoff.next(refused=refusal is not None and refusal < 500)
        event = "lost" if was_live else "failed"
        self._log.warning(event, reason=last_error, hint=HINTS.get(refusal or 0), retry_in=wait)
        return wait

    def _count_outage(self) -> None:
        """Count an outage for the feed and each of its members.

        They miss messages until the feed is live again.
        """
        self.stats.begin_outage()
        for member, _ in self.router.subscriptions():
            member.outages += 1

    def _run_connection(self) -> None:
        connection = self._connection = AlpacaConnection(self.login.url, self.codec.content_type, self._clock)
        try:
            self._set_phase(Phase.AUTHENTICATING)
            for payload in self._protocol.opening():
                self._send(payload)
            self._read_frames(connection)
        finally:
            self._connection = None
            connection.close()

    def _read_frames(self, connection: AlpacaConnection) -> None:
        """Read until the connection is lost.

        It yields by time, since `receive` does not block while data is ready.
        """
        time_slice, done = TimeSlice(self._clock), self._clock()
        while True:
            received = connection.receive()
            if connection.received_at - done >= SLICE_SECONDS:
                time_slice.begin(connection.received_at)  # `receive` has blocked
            if received and len(received[-1].payload) > LARGE_FRAME_BYTES:  # a large frame is always the last one
                self._take(received[:-1])
                self._take_large(received[-1].payload, time_slice)
            else:
                self._take(received)
            if time_slice.over():
                time_slice.yield_to_hub()
            done = self._clock()
            if done >= self.stats.due and received and len(received[0].payload) <= LARGE_FRAME_BYTES:
                self.stats.sample(received[0].payload, self.codec, connection.received_at)

    def _take(self, received: list[Frame]) -> None:
        """The data path, from frames to outboxes; never blocks.

        It does not stop in between when its time slice is over, since each flush costs one send to each client. The
        frames of one call are bounded (`websocket.MERGE_BYTES`).
        """
        router = self.router
        for frame in received:
            try:
                control = router.take(frame.payload)
            except Malformed:
                self.malformed += 1
                continue
            if control is not None:
                self._deliver(router.flush())
                self._handle(self._protocol.receive(control))
        self._deliver(router.flush())

    def _take_large(self, payload: bytes, time_slice: TimeSlice) -> None:
        """Deliver a large frame in pieces, and yield by time between them."""
        try:
            for piece in self.router.pieces(payload):
                if piece is not None:
                    self._take([Frame(self._protocol.text, piece)])
                if time_slice.over():
                    time_slice.yield_to_hub()
        except Malformed:
            self.malformed += 1

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for members, text, payload, messages in deliveries:
            frame = frames.encode(frames.TEXT if text else frames.BINARY, payload)
            for member in members:
                member.put(frame, messages)

    def _handle(self, event: FeedEvent) -> None:
        """Act on a control message of Alpaca."""
        match event:
            case Send(payload):
                self._send(payload)
            case LoggedIn():
                self.connects += 1
                self.stats.end_outage()
                self._set_phase(Phase.LIVE)
                self._log.info("live", topics=len(self.reconciler.wanted))
                self.reconciler.open()
                self._reconcile()
            case Confirmed():
                self._log.debug("confirmed")
                outcomes = self.reconciler.confirmed()
                self.router.prune_books(self.reconciler.acked)
                self._ack_dispatcher.take(outcomes)
                gevent.spawn(self._reconcile_later)
            case Refused(code, msg) if self.phase is not Phase.LIVE:
                raise LoginRefused(code, msg)
            case Refused(code, msg):
                self._log.warning("refused", code=code, reason=msg, hint=HINTS.get(code))
                if code not in OF_THE_CONNECTION:
                    self._ack_dispatcher.take(self.reconciler.refused(code, msg or ERRORS.get(code, ERRORS[500])))
                    self._reconcile()
            case Ignored():
                pass

    def _deliver_outcome(self, outcome: RequestOutcome) -> Iterator[None]:
        """Deliver an outcome to its session, then the cached order books.

        No other data of the new topics comes before them.
        """
        yield from outcome.requests.member.prepare(outcome)
        if (member := outcome.requests.member) is not None:  # the session has not left meanwhile
            if outcome.state is None:
                member.answered(outcome)
            else:  # topics may have been revoked since the outcome was computed
                state = outcome.state - member.requests.revoked
                member.answered(replace(outcome, state=state))
                self._deliver(self.router.set_subscription(member, state))

    def _reconcile(self) -> None:
        """Start the greenlet if it is needed, or send the next request if it is due.

        The next request is due when none is under way and wanted and acked topics differ.
        """
        if self._greenlet is None and not self.reconciler.idle and not self._stopped:
            self._wanted_at = self._clock()
            self._greenlet = gevent.spawn(self._run)
        elif self.phase is Phase.LIVE and (request := self.reconciler.next_request()) is not None:
            self._requested_at = self._clock()
            if self._log.debugging:
                self._log.debug("request", action="add" if request.add else "remove", topics=len(request.topics))
            self._send(self._protocol.request(request.add, request.topics, self.reconciler.acked))

    def _reconcile_later(self) -> None:
        """Reconcile in a greenlet of its own.

        The caller may have processed thousands of topics already.
        """
        try:
            self._reconcile()
        except Exception:  # an internal error; the tick tries again, or ends the connection after REQUEST_SECONDS
            self._log.error("internal_error")

    def _send(self, payload: bytes) -> None:
        if self._connection is not None:
            self._connection.send(frames.TEXT if self._protocol.text else frames.BINARY, payload)

    def _kill_greenlet(self) -> None:
        if (greenlet := self._greenlet) is not None:
            greenlet.kill()  # blocks; meanwhile a session may subscribe and start another greenlet
            if self._greenlet is greenlet:
                self._greenlet = None  # a greenlet that was killed before it began has not done this itself

    def _end(self, reason: str) -> None:
        """Begin to close the connection, or end the wait for the next one."""
        self._wake.set()
        if self._connection is not None:
            self._connection.end(reason)

    def _set_phase(self, phase: Phase) -> None:
        self.phase = phase
        self._phase_began = self._clock()
