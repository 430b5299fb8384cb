"""Ports for servers that must know their port before they listen, or that listen at it again."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path

# Below what Linux (32768 and up) and macOS (49152 and up) give to port 0 and to outgoing connections. A port of that
# range that is free at one moment is another program's at the next.
FIRST, LAST = 20_000, 32_000


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free, and that no other call has returned lately, in any process.

    Raises OSError if there is none.
    """
    with (Path(tempfile.gettempdir()) / f"alpaca-proxy-tests-port-{os.getuid()}").open("a+", encoding="ascii") as last:
        fcntl.flock(last, fcntl.LOCK_EX)
        last.seek(0)
        port = int(last.read() or FIRST)
        for _ in range(LAST - FIRST):
            port = port + 1 if port < LAST else FIRST
            if _is_free(port):
                last.seek(0)
                last.truncate()
                last.write(str(port))
                return port
    raise OSError(f"every port from {FIRST} to {LAST} is in use")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
