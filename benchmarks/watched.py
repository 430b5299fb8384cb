"""The proxy with a stopwatch on its hub.

`python benchmarks/watched.py -c FILE` replaces `python -m proxy -c FILE`.

Greenlets share one thread, so a running greenlet delays all others. Each time slice of a greenlet or of the hub's
callbacks is measured in processor time, which excludes other processes. SIGUSR1 prints the longest slice of each kind
of greenlet since the last SIGUSR1 as one line of JSON, in milliseconds, and resets them.
"""

# ruff: noqa: E402
# gevent's monkey patch must come before every other import.

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

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

_clock = time.thread_time_ns


class Stopwatch:
    """The longest time slice of each function that greenlets run, and of the hub.

    A slice of the hub ends when it waits for the kernel.
    """

    def __init__(self) -> None:
        self._began = _clock()
        self._longest: dict[str, int] = {}
        self._hub: Any = gevent.get_hub()

    def start(self) -> None:
        greenlet.settrace(self._switched)
        self._hub.loop.prepare(priority=0)
        prepare, check = self._hub.loop.prepare(), self._hub.loop.check()
        prepare.start(self._before_wait)  # before each wait in the hub's loop, and after it
        check.start(self._after_wait)
        signal.signal(signal.SIGUSR1, lambda *_: self.report())

    def _switched(self, event: str, between: tuple[Any, Any]) -> None:
        self._end_slice(between[0])

    def _before_wait(self) -> None:
        self._end_slice(self._hub)

    def _after_wait(self) -> None:
        self._began = _clock()

    def _end_slice(self, runner: Any) -> None:
        now = _clock()
        took = now - self._began
        self._began = now
        if took > 200_000:
            name = getattr(getattr(runner, "_run", None), "__qualname__", "hub")
            self._longest[name] = max(took, self._longest.get(name, 0))

    def report(self) -> None:
        longest, self._longest = self._longest, {}
        os.write(1, json.dumps([[round(took / 1e6, 2), name] for name, took in longest.items()]).encode() + b"\n")


if __name__ == "__main__":
    watch = Stopwatch()
    watch.start()
    from proxy.cli import main

    sys.exit(main())
