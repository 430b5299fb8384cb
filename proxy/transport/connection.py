"""An accepted connection of a client as bytes.

It is a WebSocket, whose frames are in `frames`, or carries a response without an end, in chunks (`chunked`).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any

import gevent

from proxy.transport.errors import ConnectionLost

READ_BYTES = 2 * 1024  # small: even if it is full of the smallest frames, they are parsed within milliseconds
MORE_BYTES = 64 * 1024  # of the rest of one frame, which is parsed quickly

GONE_SECONDS = 90.0  # without a sign of life
# The socket option by which the kernel ends a connection whose peer acknowledges nothing for so long (RFC 5482). Linux
# has it; elsewhere what the peer sends is its only sign of life.
USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)

# The option that bounds the wait between two retransmissions, in milliseconds (Linux 6.15). By default it grows to
# 120 s, so that a connection may stay silent for so long after a cut cable is back. Python has no name for it.
RTO_MAX = 44 if sys.platform == "linux" else None
RTO_MAX_SECONDS = 1.0

# The socket option by which the kernel takes no more bytes that cannot be sent yet than so many, beyond what is under
# way. Linux and macOS have it; elsewhere the kernel's whole send buffer fills.
UNSENT_LIMIT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)


def outlast_cuts(sock: Any) -> None:
    """Have a TCP connection outlast a cut of GONE_SECONDS, and go on within about a second after it.

    As far as the system can. With a short wait between retransmissions, the kernel would give up after some 15 s unless
    it is told for how long to go on.
    """
    with contextlib.suppress(OSError):  # the peer has gone already, or the system lacks the option
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if USER_TIMEOUT is not None:
            sock.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, int(GONE_SECONDS * 1000))
        if RTO_MAX is not None:
            sock.setsockopt(socket.IPPROTO_TCP, RTO_MAX, int(RTO_MAX_SECONDS * 1000))


class ClientConnection:
    """The connection of an algorithm: bytes, one reader and one writer.

    Its methods raise ConnectionLost if the peer is gone. `shut` may be called from any greenlet and wakes both.
    """

    def __init__(self, sock: Any, rfile: Any, address: str) -> None:
        self.address = address
        self.tls = isinstance(sock, ssl.SSLSocket)
        self._socket = sock
        self._raw = sock._sock  # gevent's own name for the non-blocking socket under its cooperative one
        # Writes as many bytes as the kernel takes at once; returns their number. Raises OSError (BlockingIOError for
        # none). The socket's own method, since a method here would be one call more for each frame and client. None for
        # TLS, whose records are written whole.
        self.send_now: Callable[[bytes], int] | None = None if self.tls else self._raw.send
        self._rfile = rfile
        self._is_shut = False
        self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if USER_TIMEOUT is not None:
            self._raw.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, int(GONE_SECONDS * 1000))

    def __repr__(self) -> str:
        return f"<ClientConnection {self.address}{' tls' if self.tls else ''}>"

    def receive(self, missing: int = 0) -> bytes:
        """Return the bytes that have arrived; block until there are some.

        Empty at the end of the stream. At most READ_BYTES, or up to MORE_BYTES if `missing` bytes of a frame are more.
        """
        if self._is_shut:
            return b""  # bytes that the kernel still holds are dropped
        try:
            data: bytes = self._rfile.read1(max(READ_BYTES, min(missing, MORE_BYTES)))
        except (OSError, ValueError) as error:  # ValueError: another greenlet has closed the file
            raise ConnectionLost(str(error)) from error
        return data

    def send(self, data: bytes, seconds: float | None = None) -> bool:
        """Write all of `data`; return False if that takes longer than `seconds`, if they are given.

        Part of a frame may have been sent then, so the connection can only be closed.
        """
        try:
            if self.send_now is not None:
                with contextlib.suppress(BlockingIOError):
                    sent = self.send_now(data)
                    if sent == len(data):
                        return True
                    data = data[sent:]
            with gevent.Timeout(seconds, False):
                self._socket.sendall(data)
                return True
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        return False

    def finish(self) -> None:
        """Send nothing more; the peer reads the end of the stream."""
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_WR)

    def limit_unsent(self, size: int) -> None:
        """Have the kernel take no more than about `size` bytes in advance while the peer does not read.

        0 removes the limit.
        """
        if UNSENT_LIMIT is not None:
            with contextlib.suppress(OSError):  # the peer has gone already
                self._raw.setsockopt(socket.IPPROTO_TCP, UNSENT_LIMIT, size)

    def outlast_cuts(self) -> None:
        """Have the connection go on soon after a cut cable is back."""
        outlast_cuts(self._raw)

    def linger(self, seconds: float) -> None:
        """After the last frame: wait for the peer to close, and drop what it still sends.

        Closing a socket with unread data resets the connection, and the peer could lose the last frame.
        """
        with contextlib.suppress(OSError, ConnectionLost), gevent.Timeout(seconds, False):
            self._raw.shutdown(socket.SHUT_WR)
            while self.receive():
                gevent.sleep(0)

    def shut(self) -> None:
        """End both directions at once; a greenlet that reads or writes is woken."""
        self._is_shut = True
        with contextlib.suppress(OSError):  # the peer has closed already
            self._raw.shutdown(socket.SHUT_RDWR)
