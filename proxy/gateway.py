"""The composition root: builds every part from the configuration, starts them, drains and stops them.

The only module that knows everyone. It decides nothing about messages.
"""

from __future__ import annotations

import gc
import signal
import ssl
import time
from collections.abc import Callable
from enum import Enum

import gevent
from gevent.event import Event

from proxy import metrics
from proxy.config import Config
from proxy.errors import StartError
from proxy.logs import Log
from proxy.net import frames
from proxy.net.admin import Admin
from proxy.net.outbox import Outboxes
from proxy.net.server import Server
from proxy.net.upstream import Upstream
from proxy.protocol.codec import CODECS
from proxy.protocol.feed import Login
from proxy.protocol.feeds import Dialect, endpoint
from proxy.routing.access import Client
from proxy.routing.orders import OrderRouter, Orders
from proxy.routing.router import Router
from proxy.snapshot import Snapshot

TICK_SECONDS = 0.25
DRAIN_SECONDS = 5.0


class State(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


class Gateway:
    """The whole proxy in one process. `start`, then `wait` or `stop`."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.state = State.STARTING
        self.upstreams: dict[tuple[str, str], Upstream] = {}
        self._clock = clock
        self._began = clock()
        self._outboxes = Outboxes(config.limits.outboxes)
        self._directory = config.directory()
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
            tls=_tls(config),
        )
        self.admin = Admin(
            (admin.host, admin.port),
            snapshot=self.snapshot,
            pages={"/metrics": lambda s: ("200 OK", metrics.render(s).decode(), metrics.CONTENT_TYPE)},
            token=None if admin.token is None else admin.token.reveal(),
            hosts=admin.hosts,
        )
        self._stopping = Event()
        self._ticker: gevent.Greenlet | None = None
        self._log = Log("gateway")

    def __repr__(self) -> str:
        return f"<Gateway {self.state.value} {len(self.upstreams)} feeds, {len(self.server.conversations)} sessions>"

    def start(self) -> None:
        """Listens, the admin port first. Raises StartError, with everything closed again."""
        for part, name in ((self.admin, "admin"), (self.server, "listen")):
            try:
                part.start()
            except OSError as error:
                host, port = part.address
                self.admin.stop()
                raise StartError(
                    f"cannot listen on {host}:{port} ({name}): {error.strerror or error}; "
                    f"stop what uses it, or change {name}.port"
                ) from error
        self._ticker = gevent.spawn(self._tick)
        self.state = State.SERVING
        gc.collect()
        gc.freeze()  # what the start has built stays; collections need not walk it

    def wait(self) -> None:
        """Serves until a signal: the first SIGTERM or SIGINT drains, a second one ends at once."""
        handlers = [gevent.signal_handler(number, self._signal) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            self._stopping.wait()
            drain = gevent.spawn(self.stop)
            self._stopping.clear()
            while not drain.ready() and not self._stopping.is_set():
                gevent.wait([drain, self._stopping], count=1)
        finally:
            for handler in handlers:
                handler.cancel()

    def stop(self, seconds: float = DRAIN_SECONDS) -> None:
        """Drains: accepts nobody, flushes, closes with 1001, and after `seconds` ends what is left."""
        if self.state is not State.SERVING:
            return
        self.state = State.DRAINING
        self._log.info("draining", sessions=len(self.server.conversations))
        self.server.stop_accepting()
        for conversation in [*self.server.conversations]:
            conversation.close(frames.GOING_AWAY, "the proxy is shutting down")
        with gevent.Timeout(seconds, False):
            while self.server.conversations:
                gevent.sleep(0.02)
        for upstream in self.upstreams.values():
            upstream.stop()
        if self._ticker is not None:
            self._ticker.kill()
        self.admin.stop()
        self.state = State.STOPPED
        self._log.info("stopped")

    def upstream(self, client: Client, feed: str) -> Upstream:
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
            uptime=self._clock() - self._began,
            feeds=tuple(upstream.state() for upstream in self.upstreams.values()),
            sessions=tuple(self.server.states()),
            totals=self.server.totals_now(),
            outboxes=self._outboxes.pending,
            strangers=self.server.strangers,
        )

    def _open(self, account: str, feed: str) -> Upstream:
        known = endpoint(feed)
        assert known is not None  # the configuration names no other
        entry = self.config.accounts[account]
        codec = CODECS[entry.speaks(feed)]
        router = (
            OrderRouter(known, Orders(self._order_owners), self._clock)
            if known.dialect is Dialect.TRADING
            else Router(known, codec)
        )
        login = Login(account, entry.url(feed), entry.key.reveal(), entry.secret.reveal())
        return Upstream(known, login, codec, router, self._clock)

    def _order_owners(self, client_order_id: str) -> list[str]:
        return [c.name for c in self._directory if c.allow.permits("trading", "trade_updates", client_order_id)]

    def _tick(self) -> None:
        while True:
            now = self._clock()
            parts: list[Server | Upstream] = [self.server, *self.upstreams.values()]
            for part in parts:
                try:
                    part.tick(now)
                except Exception:  # a bug in one part must not stop the clock of the others
                    self._log.error("bug", part=repr(part))
            gevent.sleep(TICK_SECONDS)

    def _signal(self) -> None:
        self._stopping.set()


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.listen.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.listen.tls.cert, config.listen.tls.key)
    return context
