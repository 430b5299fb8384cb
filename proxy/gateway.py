"""The composition root: builds, starts, reloads, drains and stops every part.

Only this module imports all parts. It has no part in the flow of messages.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

import gevent
import gevent.threadpool  # a reload needs it, perhaps when the unpacked files are gone
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from proxy.alpaca.client_protocol import Login
from proxy.alpaca.codec import CODECS
from proxy.alpaca.endpoints import Dialect, Endpoint, endpoint
from proxy.config.errors import ConfigError
from proxy.config.model import Config
from proxy.config.reload_plan import ReloadPlan, make_plan
from proxy.downstream.outbox import Outboxes
from proxy.downstream.server import Server
from proxy.downstream.session import BaseSession
from proxy.observe import logs, metrics, process, stalls
from proxy.observe import status_document as document
from proxy.observe.admin import Admin, Query, Rendering
from proxy.observe.history import History
from proxy.observe.logs import Log
from proxy.observe.recent_events import RecentEvents
from proxy.observe.snapshot import ReloadState, Snapshot
from proxy.observe.status_page import Page
from proxy.observe.tap import Taps
from proxy.routing.allowlists import RECORDER, Client, digest
from proxy.routing.order_history import OrderHistory
from proxy.routing.order_ownership import Orders
from proxy.routing.order_router import ORDERS_TOPIC, OrderRouter, Recovery
from proxy.routing.router import Router
from proxy.transport import frames
from proxy.transport.clock import Clock
from proxy.transport.errors import StartError
from proxy.transport.time_slice import TimeSlice
from proxy.upstream.alpaca_connection import AlpacaConnection
from proxy.upstream.order_reader import OrderReader
from proxy.upstream.source import FeedSettings, FeedSource
from proxy.upstream.supervisor import FeedSupervisor
from proxy.upstream.websocket import tls_context

if TYPE_CHECKING:
    from proxy.cluster.leader_history import LeaderHistory
    from proxy.cluster.node import Node
    from proxy.recording.recorder import Recorder

TICK_SECONDS = 0.25
HISTORY_SECONDS = 1.0
DRAIN_SECONDS = 5.0
RECORDER_SECONDS = 5.0  # for which a stop waits for the disk
FORMER_RECORDERS_BYTES = 32 * 1024 * 1024  # that may wait for the disk after reloads
# The thread that reads a configuration holds the interpreter for so long at a time; by default it is 5 ms, and the hub
# waits for it several times for one message.
RELOAD_SWITCH_SECONDS = 0.0005
# The garbage collector's thresholds. A large subscription is thousands of objects that stay, and a collection walks
# every set that is held: with Python's own thresholds each large subscribe triggers dozens of collections, and the full
# ones block the hub for more than 100 ms. The first figure is the number of new objects that a small collection walks,
# which takes half a millisecond for each thousand.
GC_THRESHOLDS = (5_000, 200, 100)


class GatewayState(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


class Gateway:
    """The whole proxy in one process.

    Call `start`, then `stop`; or `start` and `wait` within `signals`. `read` reads the configuration again.
    """

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
        self._steady = getattr(clock, "steady", clock)  # without the grace that sessions have after a suspend
        self._started_at = clock()
        self._outboxes = Outboxes(config.limits.outboxes)
        self._order_routers: dict[str, OrderRouter] = {}  # by account; kept when the account is reconfigured
        self._order_readers: dict[str, OrderReader] = {}  # likewise
        self._leader_histories: dict[str, LeaderHistory] = {}  # likewise
        self._tls = _tls(config)
        self._node = self._make_node()
        self.server = Server(
            config,
            find_upstream=self.upstream,
            find_history=lambda client: self._order_router(client.account("trading")).history,
            outboxes=self._outboxes,
            conceal=self._conceal,
            clock=clock,
            tls=self._tls,
            places=None if self._node is None else self._node.places,
        )
        self._history = History(self._started_at)
        self._recent = RecentEvents(clock)
        self._taps = Taps(lambda account, feed: self.upstreams.get((account, feed)), clock)
        self.admin = Admin(
            config,
            snapshot=self.snapshot,
            page=Page(),
            renderings={"/status.json": _status, "/metrics": _metrics},
            taps=self._taps,
        )
        self._recorder: Recorder | None = None
        self._former_recorders: list[Recorder] = []  # of reloads; their last messages may wait for the disk
        self._recorder_failed = False  # to start, in a reload
        self._stopping = Event()
        self._reload_lock = BoundedSemaphore()
        self._pid_start = process.start_ticks(os.getpid())
        self._reload_state = ReloadState(0, False, None, True, (), (), time.time())
        self._ticker: gevent.Greenlet | None = None
        self._log = Log("gateway")

    def __repr__(self) -> str:
        return f"<Gateway {self.state.value} {len(self.upstreams)} feeds, {len(self.server.sessions)} sessions>"

    def start(self) -> None:
        """Open the ports, the admin port first.

        Raises StartError, with everything closed again.
        """
        self._recent.open()
        parts: list[tuple[Admin | Server | Node, str, str]] = [(self.admin, "admin", "admin.host or admin.port")]
        if self._node is not None:
            parts.append((self._node, "cluster.listen", "cluster.listen"))
        parts.append((self.server, "listen", "listen.host or listen.port"))
        for part, name, settings in parts:
            try:
                part.start()
            except OSError as error:
                host, port = part.address
                self.admin.stop()
                if self._node is not None:
                    self._node.stop()
                self._recent.close()
                remedy = f"change {settings}"
                if error.errno == errno.EADDRINUSE:
                    remedy = f"stop what uses it, or change {settings.split(' or ')[-1]}"
                    if name == "listen" and self.config.listen.reuse_port:
                        remedy = f"only processes of the same user that all have listen.reuse_port share it; {remedy}"
                raise StartError.cannot_listen(f"{host}:{port} ({name})", error, remedy) from error
        tls_context()  # so that no dial has to build it
        self._recorder = self._start_recorder()
        self._ticker = gevent.spawn(self._tick)
        self.state = GatewayState.SERVING
        gc.collect()
        gc.freeze()  # the objects that exist now stay, so collections need not walk them
        gc.set_threshold(*GC_THRESHOLDS)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle signals within this context.

        Enter it before `start`: a service manager that sees the ports open may send a signal at once.
        """
        handlers = [gevent.signal_handler(number, self._signal) for number in (signal.SIGTERM, signal.SIGINT)]
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None:
            handlers.append(gevent.signal_handler(hangup, self._reload_from_file))
        else:
            self._log.info("reload", plan="not available: this system has no SIGHUP; restart to apply changes")
        try:
            yield
        finally:
            for handler in handlers:
                handler.cancel()

    def wait(self, beat: Callable[[], None] | None = None) -> None:
        """Serve until a signal arrives.

        The first SIGTERM or SIGINT drains, a second one ends at once. `beat` is called at every tick, to report that
        the proxy is running.
        """
        self._beat = beat
        self._stopping.wait()
        drain = gevent.spawn(self.stop)
        self._stopping.clear()
        while not drain.ready() and not self._stopping.is_set():
            gevent.wait([drain, self._stopping], count=1)

    def stop(self, seconds: float = DRAIN_SECONDS) -> None:
        """Drain, then stop.

        It stops accepting, flushes, closes sessions with 1001, and ends those that are left after `seconds`.
        """
        if self.state is not GatewayState.SERVING:
            return
        self.state = GatewayState.DRAINING
        self._log.info("draining", sessions=len(self.server.sessions))
        self.server.stop_accepting()
        handover = None if self._node is None else gevent.spawn(self._node.drain)
        for session in [*self.server.sessions]:
            session.close(frames.GOING_AWAY, "the proxy is shutting down")
        with gevent.Timeout(seconds, False):
            while self.server.sessions:
                gevent.sleep(0.02)
        for session in [*self.server.sessions]:
            session.abort()
        if handover is not None:
            handover.join()
        for upstream in [*self.upstreams.values()]:
            upstream.stop()
        for reader in self._order_readers.values():
            reader.stop()
        for history in self._leader_histories.values():
            history.stop()
        if self._ticker is not None:
            self._ticker.kill()
        if self._node is not None:
            self._node.stop()
        recorders = [*self._former_recorders]
        if self._recorder is not None:
            self._recorder.stop()
            recorders.append(self._recorder)
        until = self._steady() + RECORDER_SECONDS
        for recorder in recorders:
            recorder.join(max(0.0, until - self._steady()))
        self.admin.stop()
        self.state = GatewayState.STOPPED
        self._log.info("stopped")
        self._recent.close()

    @property
    def reloading(self) -> bool:
        """Whether a reload from the file is under way."""
        return bool(self._reload_lock.locked())

    def reload(self, new: Config) -> ReloadPlan:
        """Apply the changes of the new configuration.

        All of them are applied, or none if one of them needs a restart.
        """
        return self._apply(new, make_plan(self.config, new))

    def _apply(self, new: Config, plan: ReloadPlan) -> ReloadPlan:
        """Hand the new configuration to every part, then to the sessions and the feeds that it concerns."""
        if plan.restart:
            return plan
        old, self.config = self.config, new
        for part in (self.server, self.admin, self._outboxes):
            part.configure(new)
        if self._node is not None:
            self._node.configure(new)
        if self._tls is not None and new.listen.tls is not None:
            self._tls.load_cert_chain(new.listen.tls.cert, new.listen.tls.key)
        if new.log != old.log:
            logs.set_up(new.log.format, new.log.level)
        for_all = (old.default_feed, old.limits) != (new.default_feed, new.limits)
        time_slice = TimeSlice()
        for session in [*self.server.sessions]:
            time_slice.pause()
            client = session.client
            if session not in self.server.sessions:  # it has ended during a pause
                continue
            if client is None:
                if self.server.feed_of(session) != session.feed:
                    session.close(frames.POLICY, "default_feed changed")
                continue
            changed = new.directory.named(client.name)
            if changed is None or client.name in plan.gone:
                session.close(frames.POLICY, f"this client was reconfigured: {plan.gone.get(client.name, 'removed')}")
            elif for_all or client.name in plan.changed:
                try:
                    for _ in session.reconfigure(changed):
                        time_slice.pause()
                except Exception:  # of one session; the others, and the reload, go on
                    self._log.error("internal_error", part=repr(session))
                    session.close(frames.POLICY, "internal error in a reload")
        for (account, feed), upstream in [*self.upstreams.items()]:
            if account not in new.accounts:
                upstream.stop()
                del self.upstreams[account, feed]
            elif account in plan.accounts:
                upstream.reconfigure(self._feed_settings(account, feed), self._router(account, feed))
            else:
                upstream.try_again()
        for account, reader in [*self._order_readers.items()]:
            if account not in new.accounts:
                reader.stop()
                del self._order_readers[account], self._order_routers[account]
                if (history := self._leader_histories.pop(account, None)) is not None:
                    history.stop()
            elif account in plan.accounts:
                reader.configure(self._feed_settings(account, "trading").login)
        if "record" in plan.settings or self._recorder_failed:
            self._replace_recorder()
        return plan

    def _replace_recorder(self) -> None:
        """Start the recorder of the new configuration, then stop the former one, so that no topic is given up."""
        try:
            recorder = self._start_recorder()
        except Exception:  # the former one goes on; the next reload tries again
            self._recorder_failed = True
            self._log.error("internal_error", part="the recorder")
            return
        self._recorder_failed = False
        former = [one for one in self._former_recorders if not one.ended]
        if self._recorder is not None:
            self._recorder.stop()
            former.append(self._recorder)
        self._recorder, self._former_recorders = recorder, former
        for one in former[:-1]:  # the oldest first; a disk that does not answer must not cost a queue for each reload
            if sum(each.pending for each in former) > FORMER_RECORDERS_BYTES:
                one.discard()

    def _start_recorder(self) -> Recorder | None:
        """Start to record what the configuration names."""
        record, client = self.config.record, self.config.recorder
        if record is None or client is None:
            return None
        from proxy.recording.files import node_name
        from proxy.recording.recorder import Recorder  # loads the compression, which a proxy without it does not need
        from proxy.recording.writer import Folder

        folder = Folder(record.folder, record.keep, record.max, record.min_free)
        if self._node is not None:
            folder = replace(folder, node=node_name(self._node.url))
        recorder = Recorder(client, folder, self.upstream, self._node)
        recorder.start()
        return recorder

    def upstream(self, client: Client, feed: str) -> FeedSupervisor:
        """Return the supervisor of this client's feed; create it at first use.

        There is one for each account and feed.
        """
        account = client.account(feed)
        supervisor = self.upstreams.get((account, feed))
        if supervisor is None:
            supervisor = self.upstreams[account, feed] = self._create_supervisor(account, feed)
        return supervisor

    def snapshot(self) -> Snapshot:
        """Return the state of the whole proxy."""
        now = time.time()
        return Snapshot(
            state=self.state.value,
            time=now,
            uptime=self._clock() - self._started_at,
            accounts=len(self.config.accounts),
            feeds=tuple(upstream.state() for upstream in self.upstreams.values()),
            sessions=tuple(self.server.states()),
            totals=self.server.totals_now(),
            outboxes=self._outboxes.pending,
            outboxes_limit=self._outboxes.limit,
            unauthenticated=self.server.unauthenticated,
            refused=dict(self.server.refusals.refused),
            refused_requests=dict(self.server.refusals.refused_requests),
            received=self._history.received,
            delivered=self._history.delivered,
            seconds=tuple(self._history.seconds),
            events=self._recent.events(),
            configured=self.server.presence(now),
            pid=os.getpid(),
            pid_start=self._pid_start,
            reload=replace(self._reload_state, running=self.reloading),
            recording=None if self._recorder is None else self._recorder.state(),
            cluster=None if self._node is None else self._node.state(),
        )

    def _create_supervisor(self, account: str, feed: str) -> FeedSupervisor:
        feed_endpoint = endpoint(feed)
        assert feed_endpoint is not None  # the configuration is checked
        settings, router = self._feed_settings(account, feed), self._router(account, feed)
        return FeedSupervisor(
            feed_endpoint, settings, router, self._make_source, self._clock, self._feed_is_live, self._feed_was_lost
        )

    def _make_node(self) -> Node | None:
        """Return this node of the cluster that the configuration names; None without one."""
        if self.config.cluster is None:
            return None
        from proxy.cluster.node import Node  # loads what a proxy on its own does not need

        return Node(
            self.config.cluster,
            self._clock,
            lambda account, feed: self.upstreams.get((account, feed)),
            self._leader_history,
            lambda: self.server,
        )

    def _leader_history(self, account: str) -> LeaderHistory:
        """Return what an account's router of order updates reads on a node of a cluster, by its role."""
        from proxy.cluster.leader_history import LeaderHistory

        router = self._order_router(account)
        history = self._leader_histories.get(account)
        if history is None:
            history = self._leader_histories[account] = LeaderHistory(router, self._order_readers[account])
        return history

    def _make_source(self, feed_endpoint: Endpoint, settings: FeedSettings) -> FeedSource:
        if self._node is not None:
            return self._node.make_source(feed_endpoint, settings)
        return AlpacaConnection(feed_endpoint, settings, self._clock)

    def _feed_settings(self, account: str, feed: str) -> FeedSettings:
        entry = self.config.accounts[account]
        login = Login(account, entry.url(feed), entry.key.reveal(), entry.secret.reveal())
        return FeedSettings(login, CODECS[entry.speaks(feed)], entry.silence)

    def _router(self, account: str, feed: str) -> Router | OrderRouter:
        feed_endpoint = endpoint(feed)
        assert feed_endpoint is not None
        if feed_endpoint.dialect is Dialect.TRADING:
            return self._order_router(account)
        return Router(feed_endpoint, CODECS[self.config.accounts[account].speaks(feed)])

    def _order_router(self, account: str) -> OrderRouter:
        """Return the router of an account's order updates; create it, with its history and reader, at first use."""
        router = self._order_routers.get(account)
        if router is None:
            feed_endpoint = endpoint("trading")
            assert feed_endpoint is not None
            orders = Orders(lambda: self.config.directory.order_patterns(account), frozenset([RECORDER]))
            history = OrderHistory(lambda update, now: orders.known_receivers(update), time.time_ns)
            router = self._order_routers[account] = OrderRouter(feed_endpoint, orders, self._clock, history)
            login = self._feed_settings(account, "trading").login
            router.reader = self._order_readers[account] = OrderReader(
                router,
                login,
                self._clock,
                lambda: self._send_orders(account),
                self._close_incomplete,
                lambda complete: self._recovery_ended(account, complete),
            )
        return router

    def _send_orders(self, account: str) -> None:
        if (upstream := self.upstreams.get((account, "trading"))) is not None:
            upstream.flush()

    def _recovery_ended(self, account: str, complete: bool) -> None:
        if self._node is not None and (upstream := self.upstreams.get((account, "trading"))) is not None:
            self._node.recovery_ended(upstream, complete)

    def _close_incomplete(self, recovery: Recovery) -> None:
        """Close the sessions that may have missed order updates in an outage."""
        sessions = [
            session
            for session in self.server.sessions
            if any(one in recovery.members and ORDERS_TOPIC in one.held for one in session.subscribers)
        ]
        gevent.spawn(
            self._close_sessions, sessions, frames.SERVICE_RESTART, "order updates may be missing since an outage"
        )

    def _feed_is_live(self, live: FeedSupervisor) -> None:
        """Let feeds that wait for the same host try again; tell the recorder, and the nodes that follow this one."""
        if self._node is not None:
            self._node.feed_is_live(live)
            if self._recorder is not None:
                self._recorder.feed_is_live(live)
        for upstream in self.upstreams.values():
            if upstream.host == live.host:
                upstream.host_is_live()

    def _feed_was_lost(self, upstream: FeedSupervisor) -> None:
        """Close the sessions whose client is configured so, once for this loss.

        The recorder and the nodes that follow this one are told.
        """
        if self._node is not None:
            self._node.feed_was_lost(upstream)
            if self._recorder is not None:
                self._recorder.feed_was_lost(upstream, self._node.silence(upstream))
        reason = f"the connection to {upstream.endpoint.feed} was lost"
        if sessions := [session for session in self.server.sessions if session.ends_with(upstream)]:
            gevent.spawn(self._close_sessions, sessions, frames.SERVICE_RESTART, reason)

    def _close_sessions(self, sessions: list[BaseSession], code: int, reason: str) -> None:
        time_slice = TimeSlice()
        for session in sessions:
            session.close(code, reason)
            time_slice.pause()

    def _conceal(self, text: str) -> str | None:
        """Return how an account's key or secret may be shown; None for any other text."""
        for account in self.config.accounts.values():
            if text == account.key.reveal():
                return account.key.tail()
            if digest(text) == digest(account.secret.reveal()):  # so that the time says nothing of the secret
                return "…"
        return None

    def _tick(self) -> None:
        recorded_at, due = self._clock(), self._steady()
        delay = 0.0
        while True:
            now = self._clock()
            late = self._steady() - due  # the hub was blocked for so long, or the process suspended
            stalls.report(late)
            delay = max(delay, late)
            parts: list[BaseSession | FeedSupervisor | Taps | Node | Recorder] = [
                *self.server.sessions,
                *self.upstreams.values(),
                self._taps,
                *([] if self._node is None else [self._node]),
                *([] if self._recorder is None else [self._recorder]),
            ]
            for part in parts:
                try:
                    part.tick(now)
                except Exception:  # an internal error of one part must not stop the ticks of the others
                    self._log.error("internal_error", part=repr(part))
            if self._beat is not None:
                self._beat()
            if now - recorded_at >= HISTORY_SECONDS:
                try:
                    self._record_history(now, delay)
                except Exception:
                    self._log.error("internal_error", part=repr(self._history))
                recorded_at, delay = now, 0.0
            due = self._steady() + TICK_SECONDS
            gevent.sleep(TICK_SECONDS)

    def _record_history(self, now: float, delay: float) -> None:
        self._history.add(
            now,
            received={key: upstream.router.received for key, upstream in self.upstreams.items()},
            delivered=self.server.delivered_now(),
            pending=self.server.pending_now(),
            lags={key: upstream.stats.lags for key, upstream in self.upstreams.items()},
            delay=delay,
        )

    def _signal(self) -> None:
        self._stopping.set()

    def _reload_from_file(self) -> None:
        """Reload after SIGHUP; a file with problems changes nothing.

        A thread reads and compares the file, so that the hub is not blocked.
        """
        with self._reload_lock:
            number = self._reload_state.count + 1
            log = Log("gateway", number=number)  # the number keeps the repeat filter from merging the lines
            interval = sys.getswitchinterval()
            sys.setswitchinterval(RELOAD_SWITCH_SECONDS)
            lines: list[str] = []
            problems: list[str] = []
            try:
                prepared = gevent.get_hub().threadpool.apply(self._prepare)
                if isinstance(prepared, ConfigError):
                    problems = [str(problem) for problem in prepared.problems]
                    for problem in problems:
                        log.warning("reload", problem=problem, result="nothing was reloaded")
                elif prepared is not None:
                    plan = self._apply(*prepared)
                    for line in plan.lines():
                        (log.warning if plan.restart else log.info)("reload", plan=line)
                    problems = [f"{name} changed: restart to apply it" for name in plan.restart]
                    lines = [] if problems else plan.lines()
                    if self._recorder_failed:
                        problems.append("record: an internal error, the log has its traceback; the rest is applied")
            except Exception:
                log.error("internal_error")
                problems = ["an internal error; the log has its traceback"]
            finally:
                sys.setswitchinterval(interval)
                self._reload_state = self._reload_state.ended(time.time(), tuple(lines), tuple(problems))

    def _prepare(self) -> tuple[Config, ReloadPlan] | ConfigError | None:
        """Return the configuration in the file and its changes, or its problems.

        Runs in a thread.
        """
        try:
            new = None if self._read is None else self._read()
            return None if new is None else (new, make_plan(self.config, new))
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
