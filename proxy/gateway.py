"""The composition root: builds every part from the configuration, starts them, drains and stops them.

The only module that knows everyone. It decides nothing about messages.
"""

from __future__ import annotations

import errno
import gc
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from proxy.alpaca.client_protocol import Login
from proxy.alpaca.codec import CODECS, Codec
from proxy.alpaca.endpoints import Dialect, endpoint
from proxy.config.errors import ConfigError
from proxy.config.model import Config
from proxy.config.reload_plan import ReloadPlan, make_plan
from proxy.downstream.client_session import ClientSession
from proxy.downstream.outbox import Outboxes
from proxy.downstream.server import Server
from proxy.observe import logs, metrics
from proxy.observe import status_document as document
from proxy.observe.admin import Admin, Query, Rendering
from proxy.observe.history import History
from proxy.observe.logs import Log
from proxy.observe.recent_events import RecentEvents
from proxy.observe.snapshot import Snapshot
from proxy.observe.status_page import Page
from proxy.observe.tap import Taps
from proxy.routing.allowlists import Client
from proxy.routing.order_ownership import OrderRouter, Orders
from proxy.routing.router import Router
from proxy.transport import frames
from proxy.transport.clock import Clock
from proxy.transport.errors import StartError
from proxy.upstream.supervisor import FeedSupervisor

TICK_SECONDS = 0.25
HISTORY_SECONDS = 1.0
DRAIN_SECONDS = 5.0
# A large subscription is thousands of objects that stay, and a collection walks every set that is held: with Python's
# own thresholds each join sets off dozens of them, and the full ones hold the hub for more than 100 ms. The first
# figure is how many new objects the small ones walk, which takes half a millisecond for each thousand.
GARBAGE = (5_000, 200, 100)


class GatewayState(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


class Gateway:
    """The whole proxy in one process. `start`, then `stop`, or within `signals` `wait`. `read` reads the configuration
    again."""

    def __init__(
        self, config: Config, *, read: Callable[[], Config] | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        clock = clock or Clock()
        self.config = config
        self._read = read
        self._beat: Callable[[], None] | None = None
        self.state = GatewayState.STARTING
        self.upstreams: dict[tuple[str, str], FeedSupervisor] = {}
        self._clock = clock
        self._began = clock()
        self._outboxes = Outboxes(config.limits.outboxes)
        self._directory = config.directory()
        self._orders: dict[str, Orders] = {}  # by account: what is learned outlives a change of it
        self._tls = _tls(config)
        listen, admin = config.listen, config.admin
        self.server = Server(
            (listen.host, listen.port),
            directory=self._directory,
            find_upstream=self.upstream,
            outboxes=self._outboxes,
            message_limit=config.limits.message,
            default_feed=config.default_feed,
            origins=listen.origins,
            clock=clock,
            tls=self._tls,
        )
        self._history = History(self._began)
        self._recent = RecentEvents(clock)
        self._taps = Taps(lambda account, feed: self.upstreams.get((account, feed)), clock)
        self.admin = Admin(
            (admin.host, admin.port),
            snapshot=self.snapshot,
            page=Page(),
            renderings={"/status.json": _status, "/metrics": _metrics},
            taps=self._taps,
            token=None if admin.token is None else admin.token.reveal(),
            hosts=admin.hosts,
        )
        self._stopping = Event()
        self._reading = BoundedSemaphore()
        self._reloads = 0
        self._ticker: gevent.Greenlet | None = None
        self._log = Log("gateway")

    def __repr__(self) -> str:
        return f"<Gateway {self.state.value} {len(self.upstreams)} feeds, {len(self.server.sessions)} sessions>"

    def start(self) -> None:
        """Listens, the admin port first. Raises StartError, with everything closed again."""
        self._recent.open()
        for part, name in ((self.admin, "admin"), (self.server, "listen")):
            try:
                part.start()
            except OSError as error:
                host, port = part.address
                self.admin.stop()
                self._recent.close()
                remedy = f"stop what uses it, or change {name}.port"
                if error.errno != errno.EADDRINUSE:
                    remedy = f"change {name}.host or {name}.port"
                raise StartError.cannot_listen(f"{host}:{port} ({name})", error, remedy) from error
        self._ticker = gevent.spawn(self._tick)
        self.state = GatewayState.SERVING
        gc.collect()
        gc.freeze()  # what the start has built stays; collections need not walk it
        gc.set_threshold(*GARBAGE)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Signals are heard meanwhile. Before `start`, since whoever finds the ports open may send one."""
        handlers = [gevent.signal_handler(number, self._signal) for number in (signal.SIGTERM, signal.SIGINT)]
        handlers.append(gevent.signal_handler(signal.SIGHUP, self._reload_from_file))
        try:
            yield
        finally:
            for handler in handlers:
                handler.cancel()

    def wait(self, beat: Callable[[], None] | None = None) -> None:
        """Serves until a signal: the first SIGTERM or SIGINT drains, a second one ends at once.

        From now on `beat` is called at every tick, to tell others that the proxy turns.
        """
        self._beat = beat
        self._stopping.wait()
        drain = gevent.spawn(self.stop)
        self._stopping.clear()
        while not drain.ready() and not self._stopping.is_set():
            gevent.wait([drain, self._stopping], count=1)

    def stop(self, seconds: float = DRAIN_SECONDS) -> None:
        """Drains: accepts nobody, flushes, closes with 1001, and after `seconds` ends what is left."""
        if self.state is not GatewayState.SERVING:
            return
        self.state = GatewayState.DRAINING
        self._log.info("draining", sessions=len(self.server.sessions))
        self.server.stop_accepting()
        for conversation in [*self.server.sessions]:
            conversation.close(frames.GOING_AWAY, "the proxy is shutting down")
        with gevent.Timeout(seconds, False):
            while self.server.sessions:
                gevent.sleep(0.02)
        for upstream in self.upstreams.values():
            upstream.stop()
        if self._ticker is not None:
            self._ticker.kill()
        self.admin.stop()
        self.state = GatewayState.STOPPED
        self._log.info("stopped")
        self._recent.close()

    @property
    def reloading(self) -> bool:
        """Whether the configuration is being read again."""
        return bool(self._reading.locked())

    def reload(self, new: Config) -> ReloadPlan:
        """Carries out what the new configuration changes, all of it or (an address would move) nothing."""
        steps = make_plan(self.config, new)
        if steps.restart:
            return steps
        old, self.config = self.config, new
        self._directory = self.server.directory = new.directory()
        self.server.default_feed = new.default_feed
        self.server.origins = frozenset(new.listen.origins)
        self.server.message_limit = new.limits.message
        self._outboxes.limit = new.limits.outboxes
        self.admin.permit(None if new.admin.token is None else new.admin.token.reveal(), new.admin.hosts)
        if self._tls is not None and new.listen.tls is not None:
            self._tls.load_cert_chain(new.listen.tls.cert, new.listen.tls.key)
        if new.log != old.log:
            logs.set_up(new.log.format, new.log.level)
        for conversation in [*self.server.sessions]:
            client = conversation.client
            if client is None:
                continue
            if client.name in steps.gone:
                conversation.close(frames.POLICY, f"this client was reconfigured: {steps.gone[client.name]}")
            elif (changed := self._directory.named(client.name)) is not None and client.name in steps.changed:
                conversation.reconfigure(changed)
        for (account, feed), upstream in [*self.upstreams.items()]:
            if account not in new.accounts:
                upstream.stop()
                del self.upstreams[account, feed]
            elif account in steps.accounts:
                upstream.reconfigure(*self._connection_settings(account, feed))
            else:
                upstream.try_again()
        return steps

    def upstream(self, client: Client, feed: str) -> FeedSupervisor:
        """The connection that serves this client's feed; there is one for each account and feed."""
        name = client.account(feed)
        found = self.upstreams.get((name, feed))
        if found is None:
            found = self.upstreams[name, feed] = self._open(name, feed)
        return found

    def snapshot(self) -> Snapshot:
        """What there is to know now."""
        return Snapshot(
            state=self.state.value,
            time=time.time(),
            uptime=self._clock() - self._began,
            accounts=len(self.config.accounts),
            feeds=tuple(upstream.state() for upstream in self.upstreams.values()),
            sessions=tuple(self.server.states()),
            totals=self.server.totals_now(),
            outboxes=self._outboxes.pending,
            outboxes_limit=self._outboxes.limit,
            unauthenticated=self.server.unauthenticated,
            received=self._history.received,
            delivered=self._history.delivered,
            seconds=tuple(self._history.seconds),
            events=self._recent.events(),
        )

    def _open(self, account: str, feed: str) -> FeedSupervisor:
        known = endpoint(feed)
        assert known is not None  # the configuration names no other
        login, codec, router = self._connection_settings(account, feed)
        return FeedSupervisor(known, login, codec, router, self._clock)

    def _connection_settings(self, account: str, feed: str) -> tuple[Login, Codec, Router | OrderRouter]:
        """How an account's feed is reached, spoken and routed."""
        known = endpoint(feed)
        assert known is not None
        entry = self.config.accounts[account]
        login = Login(account, entry.url(feed), entry.key.reveal(), entry.secret.reveal())
        codec = CODECS[entry.speaks(feed)]
        if known.dialect is Dialect.TRADING:
            orders = self._orders.setdefault(account, Orders(self._order_owners))
            return login, codec, OrderRouter(known, orders, self._clock)
        return login, codec, Router(known, codec)

    def _order_owners(self, client_order_id: str) -> list[str]:
        return [c.name for c in self._directory if c.allow.permits("trading", "trade_updates", client_order_id)]

    def _tick(self) -> None:
        due = remembered = self._clock()
        delay = 0.0
        while True:
            now = self._clock()
            delay = max(delay, now - due)  # whoever else was due then had to wait as long
            parts: list[ClientSession | FeedSupervisor | Taps] = [
                *self.server.sessions,
                *self.upstreams.values(),
                self._taps,
            ]
            for part in parts:
                try:
                    part.tick(now)
                except Exception:  # a bug in one part must not stop the clock of the others
                    self._log.error("internal_error", part=repr(part))
            if self._beat is not None:
                self._beat()
            if now - remembered >= HISTORY_SECONDS:
                try:
                    self._remember(now, delay)
                except Exception:  # nor may one in this
                    self._log.error("internal_error", part=repr(self._history))
                remembered, delay = now, 0.0
            due = self._clock() + TICK_SECONDS
            gevent.sleep(TICK_SECONDS)

    def _remember(self, now: float, delay: float) -> None:
        self._history.add(
            now,
            received={of: upstream.router.received for of, upstream in self.upstreams.items()},
            delivered=self.server.delivered_now(),
            lags={of: upstream.stats.lags for of, upstream in self.upstreams.items()},
            delay=delay,
        )

    def _signal(self) -> None:
        self._stopping.set()

    def _reload_from_file(self) -> None:
        """SIGHUP. A file that is wrong changes nothing. A thread reads it: a long one would hold the hub up."""
        with self._reading:
            self._reloads += 1
            log = Log("gateway", number=self._reloads)  # somebody waits for it: no fold of the last one's lines
            found = gevent.get_hub().threadpool.apply(self._found)
            if isinstance(found, Config):
                steps = self.reload(found)
                for line in steps.lines():
                    (log.warning if steps.restart else log.info)("reload", plan=line)
            elif found is not None:
                for problem in found.problems:
                    log.warning("reload", problem=problem, result="nothing was reloaded")

    def _found(self) -> Config | ConfigError | None:
        """The configuration as it now is, or what is wrong with it: the thread's own hub would print an exception."""
        try:
            return self._read and self._read()
        except ConfigError as error:
            return error


def _status(snapshot: Snapshot, query: Query) -> Rendering:
    since = query.get("since", "")
    return document.CONTENT_TYPE, document.render(snapshot, int(since) if since.isdecimal() and len(since) < 20 else 0)


def _metrics(snapshot: Snapshot, query: Query) -> Rendering:
    return metrics.CONTENT_TYPE, metrics.render(snapshot)


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.listen.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.listen.tls.cert, config.listen.tls.key)
    return context
