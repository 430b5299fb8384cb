"""The simulator as a program, which serves until SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Callable, Mapping

import gevent
from gevent.event import Event

from proxy.simulator.account_plan import AccountPlan
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
    tls: ssl.SSLContext | None = None,
    settings: FaultSettings | None = None,
    ready: Callable[[Simulator], None] = lambda simulator: None,
) -> None:
    """Serve a synthetic market until SIGINT or SIGTERM; call `ready` once it listens.

    Raises OSError if the address cannot be bound.
    """
    stopped = Event()
    watchers = [gevent.signal_handler(number, stopped.set) for number in (signal.SIGINT, signal.SIGTERM)]
    simulator = Simulator(host=host, port=port, keys=keys, plan=plan, market=market or Market(), seed=seed, tls=tls)
    try:
        with simulator:
            if settings is not None:
                simulator.rehearse(settings)
            ready(simulator)
            stopped.wait()
    finally:
        for watcher in watchers:
            watcher.cancel()
