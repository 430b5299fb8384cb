"""The supervisor of one feed of one account: its connection and its sessions.

    source.receive() ─► router.take / flush ─► member.put
                            └─ control message ─► source.handle ─► reconciler ─► sessions

The connection is opened when a session wants a topic, and closed when none has wanted one for IDLE_SECONDS. Sessions
never see a reconnect: the reconciler clears its acked topics, so the whole difference is requested again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from urllib.parse import urlsplit

import gevent
from gevent.event import Event

from proxy.alpaca.client_protocol import (
    HINTS,
    OF_THE_CONNECTION,
    SLOT_TAKEN,
    Acknowledged,
    Backoff,
    FeedEvent,
    LoggedIn,
    Phase,
    Refused,
)
from proxy.alpaca.codec import Codec, Malformed, Raw
from proxy.alpaca.endpoints import Endpoint
from proxy.alpaca.large_frames import LARGE_FRAME_BYTES
from proxy.alpaca.market import ERRORS
from proxy.alpaca.topics import Subscription, Topic
from proxy.observe.logs import Log
from proxy.observe.snapshot import FeedState
from proxy.routing.reconciler import SubscriptionReconciler
from proxy.routing.request_builder import UpstreamRequest
from proxy.routing.router import Delivery, Routing
from proxy.routing.subscriber import Error, PendingRequest, RequestOutcome, Subscriber
from proxy.transport import frames
from proxy.transport.errors import ConnectionLost, UpgradeRefused
from proxy.transport.time_slice import YIELD_SECONDS, TimeSlice
from proxy.upstream.feed_stats import FeedStats
from proxy.upstream.silence import SilenceDetector
from proxy.upstream.source import FeedSettings, FeedSource, LoginRefused, MakeSource

IDLE_SECONDS = STABLE_SECONDS = 10.0
# For which a state that changes nothing is not taken for the answer to the request under way: another proxy also sends
# states that are none. One that changes something else is none at all.
DOUBT_SECONDS = 1.0
# For which an error waits for a state: another proxy that refuses a request late sends both, Alpaca the error alone.
EXPLANATION_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _UnexplainedError:
    """An error of Alpaca's, and the request that was under way when it came; a state may follow that explains it."""

    error: Error
    request: UpstreamRequest | None


class FeedSupervisor:
    """The connection of one account to one feed.

    It is kept as long as a session wants a topic of the feed. `make_source` makes each connection. `clock` is monotonic
    time in seconds; call `tick` several times a second. `came_live` is called when the feed is live; `was_lost` when
    its live connection has ended, unless it was closed since nothing was wanted. Neither may block.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: FeedSettings,
        router: Routing,
        make_source: MakeSource,
        clock: Callable[[], float],
        came_live: Callable[[FeedSupervisor], None],
        was_lost: Callable[[FeedSupervisor], None],
    ) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.router = router
        self.reconciler = SubscriptionReconciler()
        self.connects = 0
        self.malformed = 0  # frames
        self.silences = 0
        self.last_error = ""
        self.stats = FeedStats(clock)
        self._make_source = make_source
        self._clock = clock
        self._came_live = came_live
        self._was_lost = was_lost
        self._source: FeedSource | None = None
        self._idle_source: FeedSource | None = None  # the one that was closed since nothing was wanted
        self._resting = Phase.IDLE  # the phase while there is no source
        self._phase_began = clock()
        self._silence = SilenceDetector(settings.silence)
        self._backoff = Backoff(random.random)
        self._greenlet: gevent.Greenlet | None = None
        self._next: tuple[FeedSettings, Routing] | None = None  # of a reload, for the next connection
        self._wake = Event()
        self._next_attempt_at: float | None = None
        self._wakes_with_host = False  # the current wait ends when another feed of the host is live
        self._wanted_at = self._phase_began
        self._holders: dict[object, bool] = {}  # each with whether it is of another node
        self._refused_at = 0.0
        self._stopped = False
        self._error: _UnexplainedError | None = None
        self._doubtful: tuple[Acknowledged, float] | None = None  # a state that may be no answer, and its time
        self._untold: deque[RequestOutcome] = deque()
        self._teller: gevent.Greenlet | None = None
        self._releaser: gevent.Greenlet | None = None
        self._log = Log("upstream", account=settings.login.account, feed=endpoint.feed)

    def __repr__(self) -> str:
        return f"<FeedSupervisor {self.settings.login.account}/{self.endpoint.feed} {self.phase.value}>"

    @property
    def phase(self) -> Phase:
        """The phase of the connection or, without one, what the supervisor waits for."""
        return self._resting if self._source is None else self._source.phase

    @property
    def live(self) -> bool:
        """Whether the connection is live."""
        return self.phase is Phase.LIVE

    @property
    def codec(self) -> Codec:
        """The codec of the connection."""
        return self.settings.codec

    @property
    def acked(self) -> Set[Topic]:
        """The topics that Alpaca has confirmed."""
        return self.reconciler.acked

    @property
    def host(self) -> str:
        """The host and port that serve the feed."""
        return urlsplit(self.settings.login.url).netloc

    # Calls of sessions (routing.subscriber.Feed)

    def request(self, request: PendingRequest) -> Iterator[None]:
        yield from self.reconciler.request(request)
        self._reconcile()

    def apply(self, request: PendingRequest) -> None:
        self.reconciler.apply(request)
        self._release()
        self._reconcile()

    def install(self, subscriber: Subscriber) -> list[tuple[bytes, int]]:
        books = self.router.set_subscription(subscriber, subscriber.held)
        if not subscriber.remembered and not subscriber.withheld:
            subscriber.confirmed = self.router.subscription_of(subscriber)  # equal sets are kept once
        return [*_in_frames(books)]

    def revoke(self, subscriber: Subscriber, topics: Subscription) -> None:
        self.router.revoke(subscriber, topics)
        self.reconciler.revoke(subscriber, topics)
        self._release()
        self._reconcile()

    def adopt(self, subscriber: Subscriber, topics: Subscription) -> list[tuple[bytes, int]]:
        self._tell(self.reconciler.adopt(subscriber, topics))
        self._reconcile()
        return self.install(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        self.router.remove(subscriber)
        self.reconciler.leave(subscriber)
        self._release()
        self._reconcile()

    def book(self, symbol: str, codec: Codec) -> Raw | bytes | None:
        return self.router.book(symbol, codec)

    def books(self, subscriber: Subscriber) -> Iterator[tuple[bytes, int]]:
        """Yield the order book of each pair that the subscriber receives, in a frame, as it is at that moment."""
        return _in_frames(self.router.books(subscriber))

    # Calls of the gateway

    def hold(self, holder: object, *, remote: bool = False) -> None:
        """Keep the feed connected until `let_go`, although the holder wants topics only once it is live.

        `remote`: it is another node.
        """
        self._holders[holder] = remote
        self._reconcile()

    def let_go(self, holder: object) -> None:
        self._holders.pop(holder, None)

    @property
    def needed(self) -> bool:
        """Whether a session wants a topic of the feed, or a holder may."""
        return not self.reconciler.idle or bool(self._holders)

    @property
    def needed_here(self) -> bool:
        """Whether this node needs the feed itself, and not only other nodes."""
        return self.reconciler.has_clients or not all(self._holders.values())

    def tick(self, now: float) -> None:
        """Do what is due: provisional acknowledgements, pings, time limits, silence."""
        self._tell(self.reconciler.overdue(now))
        self._release()
        self.stats.tick(self.router.received, now)
        if self._greenlet is None and self.reconciler.closed and now - self._refused_at >= Backoff.NOT_SERVED:
            self.reconciler.open()  # the next subscribe dials again
        if self.needed:
            self._wanted_at = now
        elif now - self._wanted_at >= IDLE_SECONDS and self._greenlet is not None:
            if self._source is not None and not self._source.ended:
                self._idle_source = self._source
            self._end("no session subscribes to it any more")
        if (source := self._source) is not None:
            source.tick(now)
            if self._doubtful is not None and now - self._doubtful[1] >= DOUBT_SECONDS:
                self._answer(self._doubtful[0])
            if source.live and not source.finds_silence and self._silence.tick(self.router.received, now):
                self.silences += 1
                self._log.warning("silent", seconds=self.settings.silence, result="connecting anew")
                source.end(f"no message for {self.settings.silence:.0f} s on a feed that was busy")
        self._reconcile()

    def state(self) -> FeedState:
        """Return the feed's part of the snapshot."""
        now = self._clock()
        return FeedState(
            account=self.settings.login.account,
            feed=self.endpoint.feed,
            phase=self.phase.value,
            state_age=now - self._phase_began,
            last_error=self.last_error,
            wanted=+self.reconciler.channels,
            acked=len(self.reconciler.acked),
            connects=self.connects,
            received=self.router.received,
            unrouted=self.router.unrouted,
            unowned=self.router.unowned,
            recovered=self.router.recovered,
            malformed=self.malformed,
            irregular=self.router.irregular,
            age=self.stats.age(now),
            outages=self.stats.outages,
            outage_seconds=self.stats.outage_seconds(),
            next_attempt=None if self._next_attempt_at is None else max(0.0, self._next_attempt_at - now),
            silences=self.silences,
            needed=self.needed,
            lag=self.stats.lags.state(),
        )

    def flush(self) -> None:
        """Send what the router has gathered without a frame of Alpaca's."""
        self._deliver(self.router.flush())

    def reconfigure(self, settings: FeedSettings, router: Routing) -> None:
        """Reconnect with the settings of a changed account.

        Sessions keep their subscriptions, which are copied to the new `router` before the next connection: the current
        one may speak another codec until it is closed.
        """
        self._next = settings, router
        self.reconciler.open()
        self._backoff.reset()
        source = self._source
        if source is not None and source.phase is not Phase.CONNECTING and not source.ended:
            self._end("the account's configuration changed")
        else:  # the greenlet, if there is one, dials with the old settings or waits to do so
            self._kill_greenlet()
            self._change_settings()
            self._reconcile()

    def try_again(self) -> None:
        """Dial again now if Alpaca has refused this feed.

        The account's plan may have been changed.
        """
        if self.reconciler.closed:
            self._wake.set()
            if self._greenlet is None:
                self.reconciler.open()

    def host_is_live(self) -> None:
        """Dial again now, unless Alpaca asked to wait: another feed of the host is live."""
        if self._wakes_with_host:
            self._wake.set()

    def dial_now(self) -> None:
        """Dial again now, whatever the wait is for: the next connection is not to Alpaca."""
        self._wake.set()

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
                self._next_attempt_at = self._clock() + wait
                self._wake.clear()
                self._wake.wait(wait)
        finally:
            self._next_attempt_at, self._wakes_with_host = None, False
            self._greenlet = None
            if self.reconciler.idle:
                self.stats.end_outage()
            self._rest(Phase.IDLE)

    def _expired(self) -> bool:
        return not self.needed and self._clock() - self._wanted_at >= IDLE_SECONDS

    def _change_settings(self) -> None:
        """Apply the settings and the router of a reload, if there was one since the last connection."""
        if self._next is None:
            return
        (self.settings, router), self._next = self._next, None
        self._silence.limit = self.settings.silence
        for member, subscription in self.router.subscriptions():  # that of the order updates stays
            router.set_subscription(member, subscription)
        self.router = router

    def _connect_once(self) -> float:
        """Run one connection to its end; return the seconds to wait before the next."""
        self._change_settings()
        refusal: int | None = None
        not_in_plan = False
        last_error = ""
        hint: str | None = None
        source = self._source = self._make_source(self.endpoint, self.settings)
        self._phase_began, self._next_attempt_at, self._wakes_with_host = self._clock(), None, False
        try:
            self._run_source(source)
        except UpgradeRefused as error:
            refusal, last_error = error.status, str(error)
        except LoginRefused as error:
            refusal, last_error = error.code, str(error)
            not_in_plan = refusal == 409  # only from Alpaca: an HTTP status may come from a proxy in between
        except ConnectionLost as error:
            last_error, hint = str(error), error.hint
        except Exception as error:  # an internal error costs the connection, not the feed
            last_error = f"an internal error: {type(error).__name__}"
            self._log.error("internal_error")
        finally:
            was_live, lasted = source.phase is Phase.LIVE, self._clock() - self._phase_began
            self.last_error = last_error or self.last_error  # it stays if the greenlet is killed
            self._lose(source)
        if was_live and lasted >= STABLE_SECONDS:
            self._backoff.reset()
        if self._expired() or source.deliberate:
            self._rest(Phase.WAITING)
            self._log.info("closed", reason=last_error)
            return 0.0
        if not_in_plan:
            self._rest(Phase.REFUSED)
            self._refused_at = self._phase_began
            self._tell(self.reconciler.close(409, "insufficient subscription"))
            wait = Backoff.NOT_SERVED
        elif source.retry_at_once:
            self._rest(Phase.WAITING)
            wait = 0.0
        else:
            self._rest(Phase.WAITING)
            wait = self._backoff.next(None if refusal is None or 500 <= refusal < 600 else refusal)
            self._wakes_with_host = refusal not in SLOT_TAKEN
        hint = HINTS.get(refusal or 0, hint)
        self._log.warning("lost" if was_live else "failed", reason=last_error, hint=hint, retry_in=wait)
        return wait

    def _lose(self, source: FeedSource) -> None:
        """Count everything as missing that the connection had confirmed."""
        if self._error is not None:
            self._refuse(self._error)
        if source.phase is Phase.LIVE and not self.reconciler.idle:
            self._count_outage()
        self._source, self._doubtful, self._error = None, None, None
        if (request := source.take_request()) is not None and not source.deliberate:
            others = source.others_confirmed
            self._tell(self.reconciler.failed(request, self._clock(), closed=True, others_confirmed=others))
        self.reconciler.lost()
        self.router.acked_changed(self.reconciler.acked)
        if source.phase is Phase.LIVE and source is not self._idle_source and not self._stopped:
            self._was_lost(self)
        self._idle_source = None

    def _count_outage(self) -> None:
        """Count an outage for the feed and each of its members.

        They miss messages until the feed is live again.
        """
        self.stats.begin_outage()
        for member, _ in self.router.subscriptions():
            member.outages += 1

    def _run_source(self, source: FeedSource) -> None:
        try:
            source.open()
            self._phase_began = self._clock()
            if source.live:
                self._handle(source, LoggedIn())
            self._read_frames(source)
        finally:
            source.close()

    def _read_frames(self, source: FeedSource) -> None:
        """Read until the connection is lost. `receive` yields by time."""
        while True:
            received = source.receive()
            if received and len(received[-1]) > LARGE_FRAME_BYTES:  # a large frame is always the last one
                self._take(source, received[:-1])
                self._take_large(source, received[-1])
            else:
                self._take(source, received)
            if source.received_at >= self.stats.due and received and len(received[0]) <= LARGE_FRAME_BYTES:
                self.stats.sample(received[0], self.codec, source.received_at)

    def _take(self, source: FeedSource, received: list[bytes]) -> None:
        """The data path, from frames to outboxes; never blocks for data.

        It does not stop in between when its time slice is over, since each flush costs one send to each client. The
        frames of one call are bounded (`websocket.MERGE_BYTES`). After an answer it yields once if sessions wait to be
        told: a turn of the hub of its own for their joins, before more data is routed.
        """
        router = self.router
        for frame in received:
            rest: bytes | None = frame
            while rest is not None:
                try:
                    control, rest = router.take(rest)
                except Malformed:
                    if (error := source.foreign_error(frame)) is None:
                        self.malformed += 1
                    else:
                        self._handle(source, error)
                    break
                if control is not None:
                    self._deliver(router.flush())
                    self._handle(source, source.handle(control))
                    if self._teller is not None:  # sessions of this answer receive what follows it
                        gevent.sleep(YIELD_SECONDS)
        self._deliver(router.flush())

    def _take_large(self, source: FeedSource, frame: bytes) -> None:
        """Deliver a large frame in pieces, and yield by time between them."""
        time_slice = TimeSlice(self._clock)
        try:
            for piece in self.router.pieces(frame):
                if piece is not None:
                    self._take(source, [piece])
                time_slice.pause()
        except Malformed:
            self.malformed += 1

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for members, text, payload, messages in deliveries:
            frame = frames.encode(frames.TEXT if text else frames.BINARY, payload)
            for member in members:
                try:
                    member.put(frame, messages)
                except Exception:  # an internal error of one outbox costs that session alone
                    self._log.error("internal_error", part=repr(member))
                    member.abort()

    def _handle(self, source: FeedSource, event: FeedEvent) -> None:
        """Act on a control message of Alpaca."""
        # Another proxy's late refusal is an error followed by a state that lacks acked topics. Before any other event,
        # the error answered the request that was under way.
        error = None
        if self._error is not None:
            if isinstance(event, Acknowledged) and event.lacks(self.reconciler.acked):
                error, self._error = self._error.error, None
            else:
                self._refuse(self._error)
        match event:
            case LoggedIn():
                self.connects += 1
                self._phase_began = self._clock()
                self._silence.restart()
                self.stats.end_outage()
                self._log.info("live", topics=len(self.reconciler.wanted))
                self.reconciler.open()
                self._reconcile()
                self._came_live(self)
            case Acknowledged(answers=True):
                self._answer(event)
            case Acknowledged(answers=False):
                self._after_answer(self.reconciler.reported(event, event.error, self._clock(), source.request))
            case Acknowledged() if source.request is not None and source.request.is_answered_by(event):
                self._answer(event)
            case Acknowledged():
                doubtful = source.request is not None and self._changes_nothing(event, source.request)
                self._doubtful = (event, self._clock()) if doubtful else None
                self._after_answer(self.reconciler.reported(event, error, self._clock(), source.request))
            case Refused(code, msg) if source.phase is not Phase.LIVE:
                raise LoginRefused(code, msg)
            case Refused(code, msg, answers=True):
                self._log.warning("refused", code=code, reason=msg, hint=HINTS.get(code))
                self._error = refusal = _UnexplainedError((code, msg or ERRORS.get(code, ERRORS[500])), source.request)
                self._refuse(refusal)
            case Refused(code, msg):
                self._log.warning("refused", code=code, reason=msg, hint=HINTS.get(code))
                if code not in OF_THE_CONNECTION:
                    words = msg or ERRORS.get(code, ERRORS[500])
                    self._error = unexplained = _UnexplainedError((code, words), source.request)
                    gevent.spawn_later(EXPLANATION_SECONDS if self.reconciler.acked else 0, self._refuse, unexplained)

    def _changes_nothing(self, state: Acknowledged, request: UpstreamRequest) -> bool:
        acked = self.reconciler.acked
        return not state.lacks(acked) and state.topics <= acked.union(request.topics)

    def _answer(self, state: Acknowledged) -> None:
        """Take a state for the answer to the request under way."""
        self._doubtful = None
        request = None if self._source is None else self._source.take_request()
        if request is not None:
            self._log.debug("confirmed")
            self._after_answer(self.reconciler.answered(request, state, self._clock()))

    def _refuse(self, unexplained: _UnexplainedError) -> None:
        """Take an error for the answer to the request that was under way when it came, unless a state has come."""
        if self._error is not unexplained:
            return
        self._error = None
        source, request, outcomes = self._source, unexplained.request, list[RequestOutcome]()
        if request is not None and source is not None and source.request is request:
            source.take_request()
            self._doubtful = None
            outcomes = self.reconciler.refused(request, unexplained.error, self._clock())
        self._after_answer(outcomes)

    def _after_answer(self, outcomes: Iterable[RequestOutcome]) -> None:
        self.router.acked_changed(self.reconciler.acked)  # before sessions begin to listen
        self._tell(outcomes, self._clock() if self._source is None else self._source.received_at)
        self._release()
        self._reconcile()

    # Sessions

    def _tell(self, outcomes: Iterable[RequestOutcome], since: float | None = None) -> None:
        """Tell sessions their outcomes: at once in the time slice that began at `since`, the rest in a greenlet.

        One answer of Alpaca may resolve requests of hundreds of sessions, or have taken long to read.
        """
        self._untold.extend(outcomes)
        if self._untold and self._teller is None:
            time_slice = TimeSlice(self._clock)
            if since is not None:
                time_slice.begin(since)
            while self._untold and not time_slice.over():
                self._tell_one(self._untold.popleft())
            if self._untold:
                self._teller = gevent.spawn(self._tell_rest)

    def _tell_rest(self) -> None:
        time_slice = TimeSlice()
        while self._untold:
            self._tell_one(self._untold.popleft())
            time_slice.pause()
        self._teller = None

    def _tell_one(self, outcome: RequestOutcome) -> None:
        subscriber = outcome.subscriber
        if subscriber.left or subscriber.feed is not self:
            return
        try:
            self.reconciler.merge(subscriber)
            if outcome.unasked:
                books = self.install(subscriber)
                subscriber.session.report(outcome.error)
                for frame, messages in books:
                    subscriber.put(frame, messages)
            else:
                subscriber.session.answer()
        except Exception:  # an internal error costs this session, not the others
            self._log.error("internal_error", part=repr(subscriber))
            subscriber.abort()

    def _release(self) -> None:
        """Count off the references to thousands of topics in a greenlet."""
        if self._releaser is None and self.reconciler.release():
            self._releaser = gevent.spawn(self._release_rest)

    def _release_rest(self) -> None:
        time_slice = TimeSlice()
        while self.reconciler.release():
            time_slice.pause()
        self._releaser = None
        self._reconcile()

    def _reconcile(self) -> None:
        """Start the greenlet if it is needed, or send the next request if one can be sent.

        An internal error is left to the next tick, which tries again.
        """
        try:
            if self._greenlet is None and self.needed and not self._stopped:
                self._wanted_at = self._clock()
                self._greenlet = gevent.spawn(self._run)
            elif (
                (source := self._source) is not None and source.live and source.request is None and self._error is None
            ):
                request = self.reconciler.next_request(self._clock())
                if request is not None:
                    if not request.add:
                        self._silence.restart()
                    if self._log.debugging:
                        self._log.debug(
                            "request", action="add" if request.add else "remove", topics=len(request.topics)
                        )
                    source.send_request(request, self.reconciler.acked)
        except Exception:
            self._log.error("internal_error")

    def _kill_greenlet(self) -> None:
        if (greenlet := self._greenlet) is not None:
            greenlet.kill()  # blocks; meanwhile a session may subscribe and start another greenlet
            if self._greenlet is greenlet:
                self._greenlet = None  # a greenlet that was killed before it began has not done this itself

    def _end(self, reason: str) -> None:
        """Begin to close the connection, or end the wait for the next one."""
        self._wake.set()
        if self._source is not None:
            self._source.end(reason, deliberate=True)

    def _rest(self, phase: Phase) -> None:
        self._resting = phase
        self._phase_began = self._clock()


def _in_frames(deliveries: Iterable[Delivery]) -> Iterator[tuple[bytes, int]]:
    """Yield data frames, each with its number of messages."""
    for _, text, payload, messages in deliveries:
        yield frames.encode(frames.TEXT if text else frames.BINARY, payload), messages
