"""Run the proxy with gevent's monitor thread: `python tests/faults/monitored.py VERB …`.

Every ten milliseconds the monitor checks whether the hub has switched greenlets since the last check. If it has not for
HELD_SECONDS of processor time, which excludes the time of other processes, it prints a line of JSON with the
milliseconds and the stack. After SIGUSR1 it prints another line once everything before the signal has been checked;
its `slow` is how many times slower than usual the machine is at the moment.
"""

# ruff: noqa: E402
# gevent's settings and monkey patch must come before every other import.

from __future__ import annotations

from gevent import config, monkey

CHECK_SECONDS = 0.010
HELD_SECONDS = 0.025
USUAL_SECONDS = 0.006

config.monitor_thread = True
config.max_blocking_time = CHECK_SECONDS
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
    """Reports greenlets that held the hub for too long."""

    def __init__(self) -> None:
        hub: Any = gevent.get_hub()
        self._thread = hub.thread_ident
        self._clock = time.pthread_getcpuclockid(self._thread)
        self._checked_at = time.clock_gettime(self._clock)
        self._checks_left = 0
        self._held_seconds = 0.0
        self._blocked = False
        subscribers.append(self._notified)
        gevent.signal_handler(signal.SIGUSR1, self._report_soon)
        gevent.sleep(0)  # the monitor takes a hub that has never run for a dead one
        hub.start_periodic_monitoring_thread().add_monitoring_function(self._check, CHECK_SECONDS)

    def _check(self, hub: Any) -> None:
        self._checked_at = time.clock_gettime(self._clock)
        if not self._blocked:
            self._held_seconds = 0.0
        self._blocked = False
        self._checks_left -= self._checks_left > 0
        if self._checks_left == 1:
            write({"event": "looked", "slow": round(calibrate() / USUAL_SECONDS, 2)})

    def _report_soon(self) -> None:
        self._checks_left = 3  # the last two checks enclose everything done before the signal

    def _notified(self, event: object) -> None:
        if not isinstance(event, EventLoopBlocked):
            return
        self._blocked = True
        self._held_seconds += time.clock_gettime(self._clock) - self._checked_at
        if self._held_seconds >= HELD_SECONDS:
            stack = traceback.extract_stack(sys._current_frames()[self._thread])[-6:]
            where = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in reversed(stack))
            write({"event": "held", "ms": round(self._held_seconds * 1000), "where": where})


def calibrate() -> float:
    """Seconds of processor time that a sample of the work for subscriptions takes now."""
    topics = [("trades", f"S{number}") for number in range(50_000)]
    began = time.thread_time()
    frozenset(topics)
    return time.thread_time() - began


def write(event: dict[str, Any]) -> None:
    """Print the event as one line of JSON."""
    os.write(1, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    monitor = Monitor()
    from proxy.cli import main

    sys.exit(main())
