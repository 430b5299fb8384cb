"""The simulator as a program, which serves until SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Callable, Mapping

import gevent
from gevent.event import Event

from proxy.simulator.account_plan import AccountPlan
from proxy.simulator.exchange import DataSource
from proxy.simulator.fault_settings import FaultSettings
from proxy.simulator.market import Market
from proxy.simulator.server import Simulator


def run(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    keys: Mapping[str, str] | None = None,
    plan: AccountPlan | None = None,
    market: Market | None = None,
    seed: int = 0,
    source: DataSource | None = None,
    tls: ssl.SSLContext | None = None,
    settings: FaultSettings | None = None,
    ready: Callable[[Simulator], None] = lambda simulator: None,
) -> None:
    """Serve a synthetic market, or a source to its end, until SIGINT or SIGTERM; call `ready` once it listens.

    Raises OSError if the address cannot be bound, and the error at which a source has ended: SourceError, usually.
    """
    stopped = Event()
    watchers = [gevent.signal_handler(number, stopped.set) for number in (signal.SIGINT, signal.SIGTERM)]
    if source is None:
        market = market or Market()
    simulator = Simulator(host=host, port=port, keys=keys, plan=plan, market=market, seed=seed, source=source, tls=tls)
    try:
        with simulator:
            if settings is not None:
                simulator.rehearse(settings)
            ready(simulator)
            gevent.wait([stopped, simulator.market_ended], count=1)
            if simulator.market_ended.is_set():
                simulator.finish(stopped)
            if simulator.market_error is not None:
                raise simulator.market_error
    finally:
        for watcher in watchers:
            watcher.cancel()
