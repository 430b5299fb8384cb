"""One feed of one account at work: the greenlet that holds its connection to Alpaca, and everyone who hears it.

    frame = connection.receive() ─► codec.split ─► router.take / flush ─► member.put
                                        └─ a control message ─► feed.hear ─► ledger ─► answers ─► members

The connection is opened when somebody wants something and closed when nobody has wanted anything for a while. What is
to be sent goes through `_say` to the connection's one writer. Sessions never see a reconnect: the ledger forgets what
was acked, and the difference is asked for again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Set
from math import inf

import gevent
from gevent.event import Event

from proxy.alpaca import client_protocol as talk
from proxy.alpaca.client_protocol import Login, Phase
from proxy.alpaca.codec import Codec, Malformed
from proxy.alpaca.endpoints import Endpoint
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

STEP_SECONDS = 10.0  # for Alpaca to answer a log-in
# For a request. It is not repeated: of two answers to one request, the second would be taken for the next one's.
REQUEST_SECONDS = 30.0
IDLE_SECONDS = STABLE_SECONDS = 10.0


class LoginRefused(ProxyError):
    """Alpaca's answer to a log-in; `code` is one of its own."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(f"Alpaca says {code} {msg}")
        self.code = code


class FeedSupervisor:
    """The connection of one account to one feed, kept as long as somebody wants something of it.

    `clock` is steady time in seconds; `tick` is to be called several times a second.
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
        self._phase_began = clock()  # when the phase began
        self.connects = 0
        self.malformed = 0  # frames
        self.last_error = ""  # the last one, in words
        self.stats = FeedStats(clock)
        self._clock = clock
        self._protocol = talk.client_protocol_for(endpoint, codec, login)
        self._backoff = talk.Backoff(random.random)
        self._connection: AlpacaConnection | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._wake = Event()
        self._asked_at = self._wanted_at = self._phase_began
        self._refused_at = 0.0
        self._stopped = False
        self._log = Log("upstream", account=login.account, feed=endpoint.feed)
        self._ack_dispatcher = AckDispatcher(self._tell, self._log)

    def __repr__(self) -> str:
        return f"<FeedSupervisor {self.login.account}/{self.endpoint.feed} {self.phase.value}>"

    @property
    def acked(self) -> Set[Topic]:
        """The topics that Alpaca has confirmed."""
        return self.reconciler.acked

    # What sessions do

    def change(
        self, member: AckReceiver, add: Subscription, remove: Subscription = NO_TOPICS, since: float = inf
    ) -> None:
        """The member asks for `add` and gives up `remove`, now or `since` before; it is told when so, or why not."""
        self._ack_dispatcher.take(self.reconciler.change(member.requests, add, remove, min(since, self._clock())))
        if len(add) + len(remove) < MANY:
            self._reconcile()
        else:
            gevent.spawn(self._reconcile_later)

    def adopt(self, member: AckReceiver, requests: list[Subscription]) -> None:
        """The member comes from another account with what it has asked for there and was told that it holds."""
        self._ack_dispatcher.take(self.reconciler.adopt(member.requests, requests))
        self._reconcile()

    def leave(self, member: AckReceiver) -> None:
        """The member is gone."""
        self.router.remove(member)
        self.reconciler.leave(member.requests)
        gevent.spawn(self._reconcile_later)

    # What time does

    def tick(self, now: float) -> None:
        """Whatever is due: late acknowledgements, pings, a peer that has gone mute, a connection nobody wants."""
        self._ack_dispatcher.take(self.reconciler.overdue(now))
        self.stats.tick(self.router.received, now)
        if self._greenlet is None and self.reconciler.closed and now - self._refused_at >= talk.Backoff.REFUSED:
            self.reconciler.open()  # the next who asks finds out
        if not self.reconciler.idle:
            self._wanted_at = now
            self._reconcile()  # which is due already, unless the greenlet has died of a bug
        elif now - self._wanted_at >= IDLE_SECONDS and self._greenlet is not None:
            self._end("nobody wants it any more")
        if self._connection is not None:
            self._connection.tick(now)
            if self.phase is Phase.AUTHENTICATING and now - self._phase_began >= STEP_SECONDS:
                self._end(f"no answer to the log-in within {STEP_SECONDS:.0f} s")
            elif self.reconciler.request is not None and now - self._asked_at >= REQUEST_SECONDS:
                self._end(f"no answer to a request within {REQUEST_SECONDS:.0f} s")

    def state(self) -> FeedState:
        """For the snapshot."""
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
            age=self.stats.age(now),
            outages=self.stats.outages,
            outage_seconds=self.stats.outage_seconds(),
            needed=not self.reconciler.idle,
            lag=self.stats.lags.state(),
        )

    def reconfigure(self, login: Login, codec: Codec, router: Routing) -> None:
        """The account has changed: a new connection, log-in and `router`. Sessions and what they hold stay."""
        self.login, self.codec = login, codec
        self._protocol = talk.client_protocol_for(self.endpoint, codec, login)
        for member, held in self.router.subscriptions():
            router.set_subscription(member, held)
        self.router = router
        self.reconciler.open()
        self._backoff.reset()
        if self._connection is not None:
            self._end("the account's configuration changed")
        else:  # at most it dials what the account was, or waits to
            self._kill_greenlet()
            self._reconcile()

    def try_again(self) -> None:
        """If Alpaca refuses this feed, ask again now: the plan may have been changed."""
        if self.reconciler.closed:
            self._wake.set()
            if self._greenlet is None:
                self.reconciler.open()

    def stop(self) -> None:
        """Ends the connection and its greenlet for good, whoever still wants something, and waits for that."""
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
                self.stats.found()
            self._set_phase(Phase.IDLE)

    def _expired(self) -> bool:
        return self.reconciler.idle and self._clock() - self._wanted_at >= IDLE_SECONDS

    def _connect_once(self) -> float:
        """One connection, from its opening to its end; then how long to wait before the next, in seconds."""
        refusal: int | None = None
        unserved = False
        self._set_phase(Phase.CONNECTING)
        try:
            self._run_connection()
        except UpgradeRefused as error:
            refusal, last_error = error.status, str(error)
        except LoginRefused as error:
            refusal, last_error = error.code, str(error)
            unserved = refusal == 409  # by Alpaca's own word: an HTTP status may be anybody's between here and there
        except ConnectionLost as error:
            last_error = str(error)
        except Exception as error:  # a bug costs the connection, not the feed
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
        if unserved:
            self._set_phase(Phase.REFUSED)
            self._refused_at = self._phase_began
            self._ack_dispatcher.take(self.reconciler.close(409, "insufficient subscription"))
            wait = talk.Backoff.REFUSED
        else:
            self._set_phase(Phase.WAITING)
            wait = self._backoff.next(refused=refusal is not None and refusal < 500)
        event = "lost" if was_live else "failed"
        self._log.warning(event, reason=last_error, hint=talk.HINTS.get(refusal or 0), retry_in=wait)
        return wait

    def _count_outage(self) -> None:
        """Whatever Alpaca sends from now on, until the feed is live again, nobody hears."""
        self.stats.lost()
        for member, _ in self.router.subscriptions():
            member.outages += 1

    def _run_connection(self) -> None:
        line = self._connection = AlpacaConnection(self.login.url, self.codec.content_type, self._clock)
        try:
            self._set_phase(Phase.AUTHENTICATING)
            for payload in self._protocol.opening():
                self._send(payload)
            self._listen(line)
        finally:
            self._connection = None
            line.close()

    def _listen(self, line: AlpacaConnection) -> None:
        """Until the connection is lost. A reader whose data is always ready would never let anybody else run."""
        turn, done = TimeSlice(self._clock), self._clock()
        while True:
            arrived = line.receive()
            if line.received_at - done >= SLICE_SECONDS:
                turn.begin(line.received_at)  # it waited
            self._take(arrived)
            if turn.over():
                turn.yield_to_hub()
            done = self._clock()
            if done >= self.stats.due and arrived:
                self.stats.sample(arrived[0].payload, self.codec, line.received_at)

    def _take(self, arrived: list[Frame]) -> None:
        """The data path, from frames to outboxes; nothing in here waits. Not cut short by time, since each flush is a
        send to each client: what arrives together is bounded (`websocket.MERGE_BYTES`)."""
        router = self.router
        for frame in arrived:
            try:
                control = router.take(frame.payload)
            except Malformed:
                self.malformed += 1
                continue
            if control is not None:
                self._deliver(router.flush())
                self._handle(self._protocol.receive(control))
        self._deliver(router.flush())

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for members, text, payload, messages in deliveries:
            frame = frames.encode(frames.TEXT if text else frames.BINARY, payload)
            for member in members:
                member.put(frame, messages)

    def _handle(self, event: talk.FeedEvent) -> None:
        """What Alpaca said to us."""
        match event:
            case talk.Send(payload):
                self._send(payload)
            case talk.LoggedIn():
                self.connects += 1
                self.stats.found()
                self._set_phase(Phase.LIVE)
                self._log.info("live", topics=len(self.reconciler.wanted))
                self.reconciler.open()
                self._reconcile()
            case talk.Confirmed():
                answers = self.reconciler.confirmed()
                self.router.prune_books(self.reconciler.acked)
                self._ack_dispatcher.take(answers)
                gevent.spawn(self._reconcile_later)
            case talk.Refused(code, msg) if self.phase is not Phase.LIVE:
                raise LoginRefused(code, msg)
            case talk.Refused(code, msg):
                self._log.warning("refused", code=code, reason=msg, hint=talk.HINTS.get(code))
                if code not in talk.OF_THE_CONNECTION:
                    self._ack_dispatcher.take(self.reconciler.refused(code, msg or ERRORS.get(code, ERRORS[500])))
                    self._reconcile()
            case talk.Ignored():
                pass

    def _tell(self, answer: RequestOutcome) -> Iterator[None]:
        """Tells a session what it waits for: the answer, then the order books that are known, before any other data."""
        yield from answer.requests.member.prepare(answer)
        if (member := answer.requests.member) is not None:  # it has not left meanwhile
            member.answered(answer)
            if answer.state is not None:
                self._deliver(self.router.set_subscription(member, answer.state))

    def _reconcile(self) -> None:
        """Sends the next piece of the difference between wanted and acked, if the turn is ours."""
        if self._greenlet is None and not self.reconciler.idle and not self._stopped:
            self._wanted_at = self._clock()
            self._greenlet = gevent.spawn(self._run)
        elif self.phase is Phase.LIVE and (request := self.reconciler.next_request()) is not None:
            self._asked_at = self._clock()
            self._send(self._protocol.request(request.add, request.topics, self.reconciler.acked))

    def _reconcile_later(self) -> None:
        """Reconciles in a turn of its own, since what it follows has had thousands of topics to look at, perhaps."""
        try:
            self._reconcile()
        except Exception:  # a bug; the tick tries again, or gives up what was about to be asked
            self._log.error("internal_error")

    def _send(self, payload: bytes) -> None:
        if self._connection is not None:
            self._connection.send(frames.TEXT if self._protocol.text else frames.BINARY, payload)

    def _kill_greenlet(self) -> None:
        if (greenlet := self._greenlet) is not None:
            greenlet.kill()  # waits; somebody may want something meanwhile, and another one be under way
            if self._greenlet is greenlet:
                self._greenlet = None  # one that had not begun has not done this itself

    def _end(self, reason: str) -> None:
        """Gives the connection up, or the wait for the next one."""
        self._wake.set()
        if self._connection is not None:
            self._connection.end(reason)

    def _set_phase(self, phase: Phase) -> None:
        self.phase = phase
        self._phase_began = self._clock()
