"""`python -m proxy`, with gevent's own monitor on its hub: `python tests/faults/monitored.py VERB …`.

The monitor is a thread that looks every ten milliseconds whether the hub has switched since it last looked. If it has
not for HELD_SECONDS of the processor's time (that in which the machine let others work does not count), a line of JSON
says for how many milliseconds, and where. SIGUSR1 is answered by another line as soon as everything before it has been
looked at; it says, as `slow`, how many times slower than usual the machine is at the moment.
"""

# ruff: noqa: E402
# gevent's settings and its patch come before every other import.

from __future__ import annotations

from gevent import config, monkey

LOOK_SECONDS = 0.010
HELD_SECONDS = 0.025
USUAL_SECONDS = 0.006

config.monitor_thread = True
config.max_blocking_time = LOOK_SECONDS
config.print_blocking_reports = False
monkey.patch_all()

import json
import os
import signal
import sys
import time
import traceback
from typing import Any

import gevent
from gevent.events import EventLoopBlocked, subscribers


class Monitor:
    """What held the hub."""

    def __init__(self) -> None:
        hub: Any = gevent.get_hub()
        self._thread = hub.thread_ident
        self._clock = time.pthread_getcpuclockid(self._thread)
        self._looked = time.clock_gettime(self._clock)
        self._asked = 0
        self._held = 0.0
        self._blocked = False
        subscribers.append(self._notified)
        gevent.signal_handler(signal.SIGUSR1, self._ask)
        gevent.sleep(0)  # of a hub that has never run, the monitor thinks that it is gone
        hub.start_periodic_monitoring_thread().add_monitoring_function(self._look, LOOK_SECONDS)

    def _look(self, hub: Any) -> None:
        self._looked = time.clock_gettime(self._clock)
        if not self._blocked:
            self._held = 0.0
        self._blocked = False
        self._asked -= self._asked > 0
        if self._asked == 1:
            tell({"event": "looked", "slow": round(time_taken() / USUAL_SECONDS, 2)})

    def _ask(self) -> None:
        self._asked = 3  # looks, of which the last two enclose whatever was done before

    def _notified(self, event: object) -> None:
        if not isinstance(event, EventLoopBlocked):
            return
        self._blocked = True
        self._held += time.clock_gettime(self._clock) - self._looked
        if self._held >= HELD_SECONDS:
            stack = traceback.extract_stack(sys._current_frames()[self._thread])[-6:]
            where = " < ".join(f"{os.path.basename(at.filename)}:{at.lineno} {at.name}" for at in reversed(stack))
            tell({"event": "held", "ms": round(self._held * 1000), "where": where})


def time_taken() -> float:
    """Processor time for some work of the kind that subscriptions are."""
    topics = [("trades", f"S{number}") for number in range(50_000)]
    began = time.thread_time()
    frozenset(topics)
    return time.thread_time() - began


def tell(event: dict[str, Any]) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    monitor = Monitor()
    from proxy.cli import main

    sys.exit(main())
