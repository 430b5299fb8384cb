"""The proxy, with a stopwatch on its hub: `python benchmarks/watched.py -c FILE` instead of `python -m proxy -c FILE`.

Greenlets share one thread, so whoever runs holds up everybody else. Each turn that a greenlet (or a callback of the
hub) takes is timed in processor time, which does not count what other processes took away. SIGUSR1 prints the longest
turns since the last time as one line of JSON, in milliseconds, and forgets them.
"""

# ruff: noqa: E402
# gevent's patch comes before every other import.

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import heapq
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import greenlet

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LONGEST = 5
_clock = time.thread_time_ns


class Stopwatch:
    """The longest turns, and what ran in each. Turns of the hub end where it waits for the kernel."""

    def __init__(self) -> None:
        self._began = _clock()
        self._turns: list[tuple[int, int, str]] = []
        self._number = 0
        self._hub: Any = gevent.get_hub()

    def start(self) -> None:
        greenlet.settrace(self._switched)
        self._hub.loop.prepare(priority=0)
        prepare, check = self._hub.loop.prepare(), self._hub.loop.check()
        prepare.start(self._waits)  # before each wait in the hub's loop, and after it
        check.start(self._woken)
        signal.signal(signal.SIGUSR1, lambda *_: self.report())

    def _switched(self, event: str, between: tuple[Any, Any]) -> None:
        self._turn(between[0])

    def _waits(self) -> None:
        self._turn(self._hub)

    def _woken(self) -> None:
        self._began = _clock()

    def _turn(self, who: Any) -> None:
        now = _clock()
        took = now - self._began
        self._began = now
        if took > 200_000 and (len(self._turns) < LONGEST or took > self._turns[0][0]):
            self._number += 1
            run = getattr(who, "_run", None)
            heapq.heappush(self._turns, (took, self._number, getattr(run, "__qualname__", "hub")))
            if len(self._turns) > LONGEST:
                heapq.heappop(self._turns)

    def report(self) -> None:
        turns = sorted(self._turns, reverse=True)
        self._turns = []
        os.write(1, json.dumps([[round(took / 1e6, 2), name] for took, _, name in turns]).encode() + b"\n")


if __name__ == "__main__":
    watch = Stopwatch()
    watch.start()
    from proxy.cli import main

    sys.exit(main())
