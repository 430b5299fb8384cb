"""What the service manager is told: systemd's protocol, sd_notify(3), in datagrams of NAME=VALUE lines.

A `Notifier` hears at every tick how the proxy is, and passes on what of it is news: READY when it serves, STOPPING when
it drains, a line for `systemctl status`, and in between WATCHDOG, which says that the ticks go on. Where nobody listens
nothing is said. Nobody is waited for either: a manager that does not read must not hold up a message.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Mapping
from typing import Final

NEWS: Final = {"serving": "READY=1", "draining": "STOPPING=1"}


class Notifier:
    """Tells one service manager. `address` is its datagram socket, with @ for an abstract one; empty: there is none.

    `watchdog` is after how many seconds of silence it takes the proxy for dead; 0: never.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval = watchdog / 2
        self._state = ""
        self._status = ""
        self._proved = -math.inf

    def __repr__(self) -> str:
        return f"<Notifier {self._address or 'of nobody'!r} {self._state}>"

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> Notifier:
        """The one that the environment of the process `pid` names; the watchdog of another process is not ours."""
        ours = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        microseconds = environ.get("WATCHDOG_USEC", "") if ours else ""
        return cls(environ.get("NOTIFY_SOCKET", ""), int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0)

    def beat(self, now: float, state: str, status: str) -> None:
        """The proxy turns, at the monotonic time `now`; `state` and `status` are how it is, in a word and in a line."""
        news = []
        if state != self._state:
            self._state = state
            news += [NEWS[state]] if state in NEWS else []
        if status != self._status:
            self._status = status
            news.append("STATUS=" + " ".join(status.split()))
        if self._interval and now - self._proved >= self._interval:
            self._proved = now
            news.append("WATCHDOG=1")
        self._send(news)

    def reloading(self, now: float) -> None:
        """The configuration is being read again; the next beat that is of no reload says that this is over."""
        self._state = ""
        self._send(["RELOADING=1", f"MONOTONIC_USEC={now * 1e6:.0f}"])

    def _send(self, lines: list[str]) -> None:
        if not (lines and self._address):
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)
