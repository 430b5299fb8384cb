"""An algorithm's connection as bytes: what the frames of `frames.py` travel on."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

import gevent

from proxy.transport.errors import ConnectionLost

READ_BYTES = 2 * 1024  # so little that even the smallest frames in it are read within milliseconds
MORE_BYTES = 64 * 1024  # of one frame, which is read in a moment


class ClientConnection:
    """An algorithm's WebSocket: bytes, one reader and one writer.

    Raises ConnectionLost when the peer is gone. `shut` may be called from any greenlet and wakes both.
    """

    def __init__(self, sock: Any, rfile: Any, address: str) -> None:
        self.address = address
        self.tls = isinstance(sock, ssl.SSLSocket)
        self._socket = sock
        self._raw = sock._sock  # gevent's own name for the non-blocking socket under its cooperative one
        self._rfile = rfile
        self._over = False
        self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __repr__(self) -> str:
        return f"<ClientConnection {self.address}{' tls' if self.tls else ''}>"

    def receive(self, missing: int = 0) -> bytes:
        """What has come, at most READ_BYTES, or MORE_BYTES of a frame of which so much is `missing`; waits for some.
        Empty at the end."""
        if self._over:
            return b""  # whatever the kernel still holds of a flood
        try:
            data: bytes = self._rfile.read1(max(READ_BYTES, min(missing, MORE_BYTES)))
        except (OSError, ValueError) as error:  # ValueError: the file was closed under us
            raise ConnectionLost(str(error)) from error
        return data

    def try_send(self, data: bytes) -> int:
        """Writes what the kernel takes now and says how much; never waits. Not for TLS."""
        try:
            sent: int = self._raw.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        return sent

    def send(self, data: bytes, seconds: float) -> bool:
        """Writes all of it; False if it did not get through in `seconds`, and then the connection is of no more use."""
        try:
            if not self.tls:
                sent = self.try_send(data)
                if sent == len(data):
                    return True
                data = data[sent:]
            with gevent.Timeout(seconds, False):
                self._socket.sendall(data)
                return True
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        return False

    def linger(self, seconds: float) -> None:
        """After our last words: waits for the peer to hang up, and drops what it still says. A socket that is closed
        with unread data resets the connection, and the last words would be lost."""
        with contextlib.suppress(OSError, ConnectionLost), gevent.Timeout(seconds, False):
            self._raw.shutdown(socket.SHUT_WR)
            while self.receive():
                gevent.sleep(0)

    def shut(self) -> None:
        """Ends both directions at once; a greenlet that reads or writes is woken."""
        self._over = True
        with contextlib.suppress(OSError):  # the peer was first
            self._raw.shutdown(socket.SHUT_RDWR)
