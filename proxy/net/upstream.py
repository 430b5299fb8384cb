"""One feed of one account at work: the greenlet that holds its connection to Alpaca, and everyone who hears it.

    frame = connection.receive() ─► codec.split ─► router.take / flush ─► member.put
                                        └─ a control message ─► feed.hear ─► ledger ─► answers ─► members

The connection is opened when somebody wants something and closed when nobody has wanted anything for a while. What is
to be sent goes through `_say` to the connection's one writer. Sessions never see a reconnect: the ledger forgets what
was acked, and the difference is asked for again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from math import inf

import gevent
from gevent.event import Event

from proxy.errors import ConnectionLost, LoginRefused, UpgradeRefused
from proxy.logs import Log
from proxy.net import frames
from proxy.net.line import Line
from proxy.net.teller import Audience, Teller
from proxy.net.turn import TURN_SECONDS, Turn
from proxy.net.watch import Watch
from proxy.net.websocket import Frame
from proxy.protocol import feed as talk
from proxy.protocol.codec import Codec, Malformed
from proxy.protocol.feed import Login, Phase
from proxy.protocol.feeds import Endpoint
from proxy.protocol.market import ERRORS
from proxy.protocol.topics import MANY, NOTHING, Subscription
from proxy.routing.claims import Answer
from proxy.routing.ledger import Ledger
from proxy.routing.router import Delivery, Routing
from proxy.snapshot import FeedState

STEP_SECONDS = 10.0  # for Alpaca to answer a log-in
# For a request. It is not repeated: of two answers to one request, the second would be taken for the next one's.
REQUEST_SECONDS = 30.0
IDLE_SECONDS = STABLE_SECONDS = 10.0


class Upstream:
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
        self.ledger = Ledger()
        self.phase = Phase.IDLE
        self.since = clock()  # when the phase began
        self.connects = 0
        self.malformed = 0  # frames
        self.trouble = ""  # the last one, in words
        self.watch = Watch(clock)
        self._clock = clock
        self._feed = talk.open_feed(endpoint, codec, login)
        self._backoff = talk.Backoff(random.random)
        self._line: Line | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._wake = Event()
        self._asked_at = self._wanted_at = self.since
        self._refused_at = 0.0
        self._stopped = False
        self._log = Log("upstream", account=login.account, feed=endpoint.feed)
        self._teller = Teller(self._tell, self._log)

    def __repr__(self) -> str:
        return f"<Upstream {self.login.account}/{self.endpoint.feed} {self.phase.value}>"

    # What sessions do

    def change(self, member: Audience, add: Subscription, remove: Subscription = NOTHING, since: float = inf) -> None:
        """The member asks for `add` and gives up `remove`, now or `since` before; it is told when so, or why not."""
        self._teller.take(self.ledger.change(member.seat, add, remove, min(since, self._clock())))
        if len(add) + len(remove) < MANY:
            self._reconcile()
        else:
            gevent.spawn(self._soon)

    def adopt(self, member: Audience, requests: list[Subscription]) -> None:
        """The member comes from another account with what it has asked for there and was told that it holds."""
        self._teller.take(self.ledger.adopt(member.seat, requests))
        self._reconcile()

    def leave(self, member: Audience) -> None:
        """The member is gone."""
        self.router.drop(member)
        self.ledger.leave(member.seat)
        gevent.spawn(self._soon)

    # What time does

    def tick(self, now: float) -> None:
        """Whatever is due: late acknowledgements, pings, a peer that has gone mute, a connection nobody wants."""
        self._teller.take(self.ledger.overdue(now))
        self.watch.tick(self.router.received, now)
        if self._greenlet is None and self.ledger.closed and now - self._refused_at >= talk.Backoff.REFUSED:
            self.ledger.open()  # the next who asks finds out
        if not self.ledger.idle:
            self._wanted_at = now
            self._reconcile()  # which is due already, unless the greenlet has died of a bug
        elif now - self._wanted_at >= IDLE_SECONDS and self._greenlet is not None:
            self._end("nobody wants it any more")
        if self._line is not None:
            self._line.tick(now)
            if self.phase is Phase.AUTHENTICATING and now - self.since >= STEP_SECONDS:
                self._end(f"no answer to the log-in within {STEP_SECONDS:.0f} s")
            elif self.ledger.request is not None and now - self._asked_at >= REQUEST_SECONDS:
                self._end(f"no answer to a request within {REQUEST_SECONDS:.0f} s")

    def state(self) -> FeedState:
        """For the snapshot."""
        now = self._clock()
        return FeedState(
            account=self.login.account,
            feed=self.endpoint.feed,
            phase=self.phase.value,
            since=now - self.since,
            trouble=self.trouble,
            wanted=+self.ledger.channels,
            acked=len(self.ledger.acked),
            connects=self.connects,
            received=self.router.received,
            unheard=self.router.unheard,
            malformed=self.malformed,
            age=self.watch.age(now),
            outages=self.watch.outages,
            away=self.watch.away(),
            needed=not self.ledger.idle,
            lag=self.watch.lags.state(),
        )

    def reconfigure(self, login: Login, codec: Codec, router: Routing) -> None:
        """The account has changed: a new connection, log-in and `router`. Sessions and what they hold stay."""
        self.login, self.codec = login, codec
        self._feed = talk.open_feed(self.endpoint, codec, login)
        for member, held in self.router.holdings():
            router.hold(member, held)
        self.router = router
        self.ledger.open()
        self._backoff.reset()
        if self._line is not None:
            self._end("the account's configuration changed")
        else:  # at most it dials what the account was, or waits to
            self._abandon()
            self._reconcile()

    def try_again(self) -> None:
        """If Alpaca refuses this feed, ask again now: the plan may have been changed."""
        if self.ledger.closed:
            self._wake.set()
            if self._greenlet is None:
                self.ledger.open()

    def stop(self) -> None:
        """Ends the connection and its greenlet for good, whoever still wants something, and waits for that."""
        self._stopped = True
        self._abandon()

    # The greenlet

    def _run(self) -> None:
        try:
            while not self._expired():
                wait = self._try()
                self._wake.clear()
                self._wake.wait(wait)
        finally:
            self._greenlet = None
            if self.ledger.idle:
                self.watch.found()
            self._enter(Phase.IDLE)

    def _expired(self) -> bool:
        return self.ledger.idle and self._clock() - self._wanted_at >= IDLE_SECONDS

    def _try(self) -> float:
        """One connection, from its opening to its end; then how long to wait before the next, in seconds."""
        refusal: int | None = None
        unserved = False
        self._enter(Phase.CONNECTING)
        try:
            self._converse()
        except UpgradeRefused as error:
            refusal, trouble = error.status, str(error)
        except LoginRefused as error:
            refusal, trouble = error.code, str(error)
            unserved = refusal == 409  # by Alpaca's own word: an HTTP status may be anybody's between here and there
        except ConnectionLost as error:
            trouble = str(error)
        except Exception as error:  # a bug costs the connection, not the feed
            trouble = f"a bug: {type(error).__name__}"
            self._log.error("bug")
        finally:
            was_live, lasted = self.phase is Phase.LIVE, self._clock() - self.since
            if was_live and not self.ledger.idle:
                self._missed()
            self.ledger.lost()
            self.router.forget(self.ledger.acked)
        if was_live and lasted >= STABLE_SECONDS:
            self._backoff.reset()
        self.trouble = trouble
        if self._expired():
            self._log.info("closed", reason=trouble)
            return 0.0
        if unserved:
            self._enter(Phase.REFUSED)
            self._refused_at = self.since
            self._teller.take(self.ledger.close(409, "insufficient subscription"))
            wait = talk.Backoff.REFUSED
        else:
            self._enter(Phase.WAITING)
            wait = self._backoff.next(refused=refusal is not None and refusal < 500)
        event = "lost" if was_live else "failed"
        self._log.warning(event, reason=trouble, hint=talk.HINTS.get(refusal or 0), retry_in=wait)
        return wait

    def _missed(self) -> None:
        """Whatever Alpaca sends from now on, until the feed is live again, nobody hears."""
        self.watch.lost()
        for member, _ in self.router.holdings():
            member.outages += 1

    def _converse(self) -> None:
        line = self._line = Line(self.login.url, self.codec.content_type, self._clock)
        try:
            self._enter(Phase.AUTHENTICATING)
            for payload in self._feed.opening():
                self._say(payload)
            self._listen(line)
        finally:
            self._line = None
            line.close()

    def _listen(self, line: Line) -> None:
        """Until the connection is lost. A reader whose data is always ready would never let anybody else run."""
        turn, done = Turn(self._clock), self._clock()
        while True:
            arrived = line.receive()
            if line.heard_at - done >= TURN_SECONDS:
                turn.begin(line.heard_at)  # it waited
            self._take(arrived)
            if turn.over():
                turn.pass_on()
            done = self._clock()
            if done >= self.watch.due and arrived:
                self.watch.sample(arrived[0].payload, self.codec, line.heard_at)

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
                self._heard(self._feed.hear(control))
        self._deliver(router.flush())

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for members, text, payload, messages in deliveries:
            frame = frames.encode(frames.TEXT if text else frames.BINARY, payload)
            for member in members:
                member.put(frame, messages)

    def _heard(self, heard: talk.Heard) -> None:
        """What Alpaca said to us."""
        match heard:
            case talk.Say(payload):
                self._say(payload)
            case talk.Authenticated():
                self.connects += 1
                self.watch.found()
                self._enter(Phase.LIVE)
                self._log.info("live", topics=len(self.ledger.wanted))
                self.ledger.open()
                self._reconcile()
            case talk.Confirmed():
                answers = self.ledger.confirmed()
                self.router.forget(self.ledger.acked)
                self._teller.take(answers)
                gevent.spawn(self._soon)
            case talk.Refused(code, msg) if self.phase is not Phase.LIVE:
                raise LoginRefused(code, msg)
            case talk.Refused(code, msg):
                self._log.warning("refused", code=code, reason=msg, hint=talk.HINTS.get(code))
                if code not in talk.OF_THE_CONNECTION:
                    self._teller.take(self.ledger.refused(code, msg or ERRORS.get(code, ERRORS[500])))
                    self._reconcile()
            case talk.Nothing():
                pass

    def _tell(self, answer: Answer) -> Iterator[None]:
        """Tells a session what it waits for: the answer, then the order books that are known, before any other data."""
        yield from answer.seat.member.prepare(answer)
        if (member := answer.seat.member) is not None:  # it has not left meanwhile
            member.answered(answer)
            if answer.state is not None:
                self._deliver(self.router.hold(member, answer.state))

    def _reconcile(self) -> None:
        """Sends the next piece of the difference between wanted and acked, if the turn is ours."""
        if self._greenlet is None and not self.ledger.idle and not self._stopped:
            self._wanted_at = self._clock()
            self._greenlet = gevent.spawn(self._run)
        elif self.phase is Phase.LIVE and (request := self.ledger.next_request()) is not None:
            self._asked_at = self._clock()
            self._say(self._feed.request(request.add, request.topics, self.ledger.acked))

    def _soon(self) -> None:
        """Reconciles in a turn of its own, since what it follows has had thousands of topics to look at, perhaps."""
        try:
            self._reconcile()
        except Exception:  # a bug; the tick tries again, or gives up what was about to be asked
            self._log.error("bug")

    def _say(self, payload: bytes) -> None:
        if self._line is not None:
            self._line.say(frames.TEXT if self._feed.text else frames.BINARY, payload)

    def _abandon(self) -> None:
        if (greenlet := self._greenlet) is not None:
            greenlet.kill()  # waits; somebody may want something meanwhile, and another one be under way
            if self._greenlet is greenlet:
                self._greenlet = None  # one that had not begun has not done this itself

    def _end(self, reason: str) -> None:
        """Gives the connection up, or the wait for the next one."""
        self._wake.set()
        if self._line is not None:
            self._line.end(reason)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since = self._clock()
