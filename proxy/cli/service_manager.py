"""Notifications to the service manager by systemd's sd_notify(3).

They are datagrams of NAME=VALUE lines. `Notifier.beat` is called at every tick with the proxy's state and sends the
changes: READY when it serves, STOPPING when it drains, and a line for `systemctl status`. WATCHDOG is sent
periodically, as a sign that the ticks go on. Without a service manager nothing is sent. Sends never block: a manager
that does not read must not delay messages.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Mapping
from typing import Final

STATE_LINES: Final = {"serving": "READY=1", "draining": "STOPPING=1"}


class Notifier:
    """Notifications to one service manager.

    `address` is its datagram socket, with @ for an abstract one; empty: there is no manager. `watchdog` is the number
    of seconds without a notification after which the manager restarts the proxy; 0: never.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_interval = watchdog / 2
        self._state = ""
        self._status = ""
        self._last_watchdog = -math.inf

    def __repr__(self) -> str:
        return f"<Notifier {self._address or None!r} {self._state}>"

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> Notifier:
        """Return the notifier that the environment describes.

        A watchdog for a process other than `pid` is ignored.
        """
        for_this_process = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        microseconds = environ.get("WATCHDOG_USEC", "") if for_this_process else ""
        return cls(environ.get("NOTIFY_SOCKET", ""), int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0)

    def beat(self, now: float, state: str, status: str) -> None:
        """Send what changed, and the watchdog if it is due.

        `now` is monotonic seconds, `state` one word and `status` one line.
        """
        lines = []
        if state != self._state:
            self._state = state
            lines += [STATE_LINES[state]] if state in STATE_LINES else []
        if status != self._status:
            self._status = status
            lines.append("STATUS=" + " ".join(status.split()))
        if self._watchdog_interval and now - self._last_watchdog >= self._watchdog_interval:
            self._last_watchdog = now
            lines.append("WATCHDOG=1")
        self._send(lines)

    def reloading(self, now: float) -> None:
        """Send that a reload has started; the next `beat` with another state ends it."""
        self._state = ""
        self._send(["RELOADING=1", f"MONOTONIC_USEC={now * 1e6:.0f}"])

    def _send(self, lines: list[str]) -> None:
        if not (lines and self._address):
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)
