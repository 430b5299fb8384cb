"""The WebSocket to Alpaca: websocket-client with a buffered reader.

One recv reads many frames, and whole text and binary frames are cut from the buffer here. The library's own code
handles everything else, reading from the same buffer. Reading never writes to the socket: pongs and close frames are
handed to the connection's one writer.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Mapping
from functools import cache
from http.cookies import CookieError
from typing import Any, cast
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import gevent
import websocket

from proxy.transport import frames
from proxy.transport.errors import ConnectionLost, UpgradeRefused
from proxy.transport.time_slice import YIELD_SECONDS, TimeSlice

if sys.platform != "win32":
    from fcntl import ioctl
    from termios import FIONREAD

UPSTREAM_READ_BYTES = 256 * 1024
UPSTREAM_MESSAGE_BYTES = 16 * 1024 * 1024
UPSTREAM_FRAGMENTS = 4096  # of one message
MERGE_FRAMES = 256  # measured: 2.3 times cheaper than 64 at one message a frame, 100 clients
MERGE_BYTES = 256 * 1024
ANSWER_HEAD_BYTES, ANSWER_BODY_BYTES = 16 * 1024, 64 * 1024  # of the HTTP response to an upgrade
ANSWER_READ_BYTES = 1024  # small: the library reads a head byte by byte, which takes a millisecond for so many
DIAL_STEP_SECONDS = 8
DIAL_SECONDS = 25


class UpstreamConnection(websocket.WebSocket):
    """The WebSocket to Alpaca, with one reading and one writing greenlet.

    One greenlet calls `receive`, one other calls `write`; `shut` wakes both. `enqueue` is called with the (opcode,
    payload) of each pong and close frame that the writer should send.
    """

    def __init__(self, enqueue: Callable[[int, bytes], None]) -> None:
        super().__init__(enable_multithread=False, skip_utf8_validation=True)
        self.enqueue = enqueue
        self._data = b""
        self._at = 0
        self._fragments: list[bytes] = []  # of an incomplete message
        self._fragments_text = False
        self._fragments_bytes = 0
        self._slice = TimeSlice()
        self._fd = -1
        self._readable: Any = None  # the hub's watcher of the socket
        self.reads = 0  # of the socket that returned bytes
        self.close_code: int | None = None  # of the peer's close frame
        self.on_pong: Callable[[bytes], None] | None = None  # called with the payload of each pong

    def begin(self, sock: socket.socket, data: bytes) -> None:
        """Read frames from `sock` from now on, after the upgrade.

        `data` are the bytes that were read beyond the head of the response.
        """
        self.sock = sock
        self._data = data
        self._fd = sock.fileno()
        self._readable = gevent.get_hub().loop.io(self._fd, _READ)
        self.settimeout(None)

    def receive(self) -> list[bytes]:
        """Return the whole messages that have arrived; block until there is one.

        At most MERGE_FRAMES payloads, and no more after MERGE_BYTES. The list is empty for a ping or a pong, which only
        show that the peer is alive. Yields to the hub by time, before it reads: the time slice is that of the caller,
        who handles the messages in it. Raises ConnectionLost if the peer closed, or broke RFC 6455 or a limit; whole
        messages before that are returned first.
        """
        try:
            self._slice.pause()
            if self._at == len(self._data):
                self._fill()
            while not (messages := self._whole_messages()):
                head = self._head()
                if head is None:
                    self._fill()
                elif head[0] in _WHOLE and not self._fragments:
                    self._fill(head[2])
                elif (other := self._other_message()) is not None:
                    return other
                elif self._slice.over():  # fragment after fragment, without a wait
                    self._slice.yield_to_hub()
            return messages
        except (OSError, websocket.WebSocketException) as error:
            if (code := _CODES.get(type(error))) is not None:
                self.send_close(code)
            raise ConnectionLost(str(error) or type(error).__name__) from error

    def write(self, opcode: int, payload: bytes) -> None:
        """Send one masked frame; block until the kernel has taken it.

        Raises ConnectionLost.
        """
        try:
            self.send(payload, opcode)
        except (OSError, websocket.WebSocketException) as error:
            raise ConnectionLost(str(error) or type(error).__name__) from error

    def shut(self) -> None:
        """End both directions at once, without a close frame.

        Greenlets that read or write are woken.
        """
        self.connected = False
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]

    def free(self) -> None:
        """Close the socket, when no greenlet reads it any more."""
        if self._readable is not None:
            self._readable.close()
        self.shutdown()  # type: ignore[no-untyped-call]

    def pong(self, payload: str | bytes = b"") -> None:
        self.enqueue(frames.PONG, payload if isinstance(payload, bytes) else payload.encode())

    def send_close(self, status: int = frames.NORMAL, reason: str | bytes = b"") -> None:
        self.enqueue(frames.CLOSE, struct.pack("!H", status))

    def _whole_messages(self) -> list[bytes]:
        """Return the unfragmented messages that are whole in the buffer; never block."""
        messages: list[bytes] = []
        data, size = self._data, 0
        available = len(data)
        if self._fragments:
            return messages
        try:
            while self._at < available and size < MERGE_BYTES and len(messages) < MERGE_FRAMES:
                head = self._head()
                if head is None:
                    break
                first, start, end = head
                if first not in _WHOLE or end > available:
                    break
                payload = data[start:end]
                if first == _WHOLE_TEXT and not payload.isascii():
                    _check_utf8(payload)
                messages.append(payload)
                size += end - start
                self._at = end
        except websocket.WebSocketException:
            if not messages:
                raise  # otherwise the next call raises it, since the position has not moved
        return messages

    def _other_message(self) -> list[bytes] | None:
        """Read one control frame or fragment; return the message that it completes.

        The list is empty for a control frame; None means that the message is not complete yet. Fragments are collected
        in a list: the library would copy all previous ones with each of them.
        """
        frame = self.recv_frame()
        if frame.opcode == frames.PING:
            self.pong(frame.data)
        if frame.opcode == frames.PONG and self.on_pong is not None:
            self.on_pong(frame.data)
        if frame.opcode in (frames.PING, frames.PONG):
            return []
        if (frame.opcode == _CONTINUATION) is not bool(self._fragments):
            raise websocket.WebSocketProtocolException("a fragment out of place")
        if not self._fragments:
            self._fragments_text = frame.opcode == frames.TEXT
        self._fragments.append(frame.data)
        self._fragments_bytes += len(frame.data)
        if self._fragments_bytes > UPSTREAM_MESSAGE_BYTES:
            raise _TooLarge(f"message over {UPSTREAM_MESSAGE_BYTES} bytes")
        if len(self._fragments) > UPSTREAM_FRAGMENTS:
            raise _TooLarge(f"message of more than {UPSTREAM_FRAGMENTS} fragments")
        if not frame.fin:
            return None
        payload, self._fragments, self._fragments_bytes = b"".join(self._fragments), [], 0
        if self._fragments_text:
            _check_utf8(payload)
        return [payload]

    def recv_frame(self) -> Any:
        """Read one frame by the library's own code, within limits that the library lacks.

        A close frame is answered with its own code (RFC 6455 §5.5.1); the library would always send 1000.
        """
        while (head := self._head()) is None:
            self._fill()
        first, start, end = head
        if first not in _VALID or (first in _CONTROL and end - start > 125):
            raise websocket.WebSocketProtocolException("a frame that RFC 6455 does not allow")
        frame = super().recv_frame()  # type: ignore[no-untyped-call]
        if frame.opcode == frames.CLOSE:
            code = struct.unpack("!H", frame.data[:2])[0] if frame.data else frames.NO_CODE
            reason = _check_utf8(frame.data[2:])
            self.close_code = code
            self.send_close(frames.NORMAL if code == frames.NO_CODE else code)
            raise ConnectionLost(f"closed by the other side with {code} {reason}".strip())
        return frame

    def _head(self) -> _Head | None:
        """Return the first byte of the next frame and the bounds of its payload.

        None if its header is incomplete.
        """
        data, at = self._data, self._at
        if len(data) < at + 2:
            return None
        first, size = data[at], data[at + 1]
        if size & 0x80:
            raise websocket.WebSocketProtocolException("masked frame from the server")
        start = at + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            start += width
            if len(data) < start:
                return None
            size = int.from_bytes(data[start - width : start], "big")
            if size > UPSTREAM_MESSAGE_BYTES:
                raise _TooLarge(f"frame over {UPSTREAM_MESSAGE_BYTES} bytes")
        return first, start, start + size

    def _fill(self, until: int = 0) -> None:
        """Read at least once, and until the buffer reaches the position `until`.

        The position counts from the start of the buffer before the call.
        """
        if self.sock is None:
            raise ConnectionLost("closed here")
        parts = [self._data[self._at :]] if self._at < len(self._data) else []
        missing = until - len(self._data)
        while True:
            chunk = self._read()
            if not chunk:
                raise ConnectionLost("closed by the other side, no close frame" if self.connected else "closed here")
            parts.append(chunk)
            self.reads += 1
            missing -= len(chunk)
            if missing <= 0:
                break
            if self._slice.over():  # `recv` does not yield while there is data
                self._slice.yield_to_hub()
        self._data = b"".join(parts)
        self._at = 0

    def _read(self) -> bytes:
        """Return bytes of the socket; wait for them. Empty at the end of the stream.

        A socket that has nothing is not read: that raises an exception within gevent, which took a tenth of the
        processor time at 2,000 frames a second.
        """
        if not self._has_data():
            gevent.get_hub().wait(self._readable)
            self._slice.begin()
        return cast(socket.socket, self.sock).recv(UPSTREAM_READ_BYTES)

    def _has_data(self) -> bool:
        """Return whether a read finds bytes, or must be tried to find out.

        A TLS socket returns one record a read, at most 16 KiB, and leaves the others in the kernel.
        """
        if sys.platform == "win32" or (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()):
            return True
        return ioctl(self._fd, FIONREAD, _NO_BYTES) != _NO_BYTES

    def _recv(self, bufsize: int) -> bytes:
        """Return bytes from the buffer; the library's own reads come here."""
        if self._at == len(self._data):
            self._fill()
        part = self._data[self._at : self._at + bufsize]
        self._at += len(part)
        return part


class _TooLarge(websocket.WebSocketException):
    """A limit of the proxy itself is exceeded; the text names it."""


# Close codes for a peer that broke the protocol or a limit (RFC 6455 §7.4.1); other errors mean that the peer is gone.
_CODES: dict[type[Exception], int] = {
    websocket.WebSocketProtocolException: frames.PROTOCOL_ERROR,
    websocket.WebSocketPayloadException: frames.NOT_UTF8,
    _TooLarge: frames.TOO_BIG,
}


# A frame's first byte, the start of its payload and its end; a plain tuple, since one is created for every frame.
_Head = tuple[int, int, int]

_READ = 1  # libev's EV_READ
_NO_BYTES = bytes(4)  # a C int
_FIN = 0x80
_CONTINUATION = 0
_WHOLE_TEXT = _FIN | frames.TEXT
_WHOLE = (_WHOLE_TEXT, _FIN | frames.BINARY)
_CONTROL = (_FIN | frames.CLOSE, _FIN | frames.PING, _FIN | frames.PONG)
_VALID = (*_WHOLE, *_CONTROL, frames.TEXT, frames.BINARY, _FIN, 0)


def _check_utf8(payload: bytes) -> str:
    """Return the payload of a text message as text (RFC 6455 §8.1). Raises WebSocketPayloadException.

    The JSON decoder does not check it, since it skips values that it does not need.
    """
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise websocket.WebSocketPayloadException("text that is not UTF-8") from None


class BoundedResponse:
    """A socket that reads an HTTP response within limits, and yields while it reads.

    websocket-client reads a head byte by byte, without a limit, and gevent's `recv` does not yield while there is data.
    `rest` are the bytes that were read beyond the head.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.rest = b""
        self._start = b""
        self._bytes_left = {True: ANSWER_HEAD_BYTES, False: ANSWER_BODY_BYTES}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    @property
    def status(self) -> int | None:
        """The HTTP status of a refusal; None for 101 and before it has arrived."""
        match = _STATUS.match(self._start)
        return int(match[1]) if match and match[1] != b"101" else None

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes: 1 in the head, more in the body.

        Raises _TooLarge if the head or the body is over its limit.
        """
        if not self.rest:
            gevent.sleep(YIELD_SECONDS)
            self.rest = self.socket.recv(ANSWER_READ_BYTES)
            self._start = (self._start + self.rest)[: len(b"HTTP/1.1 101 ")]
        part, self.rest = self.rest[:size], self.rest[size:]
        head = size == 1
        self._bytes_left[head] -= len(part)
        if self._bytes_left[head] < 0:
            raise _TooLarge(f"HTTP response over {ANSWER_HEAD_BYTES if head else ANSWER_BODY_BYTES} bytes")
        return part


_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")


def dial(
    url: str,
    headers: Mapping[str, str],
    enqueue: Callable[[int, bytes], None],
    *,
    tls: ssl.SSLContext | None = None,
    seconds: float | None = None,
    direct: bool = False,
) -> UpstreamConnection:
    """Open a WebSocket to Alpaca, or to another server.

    `tls` is the context of a wss URL in place of the one for Alpaca, `seconds` the time limit in place of DIAL_SECONDS;
    `direct`: never through the HTTP proxy of the environment. Raises UpgradeRefused (an HTTP response) or
    ConnectionLost (everything else). Each address of the host gets DIAL_STEP_SECONDS, so that a dead IPv6 route leaves
    time for IPv4. Redirects are not followed: keys are sent only to the configured host.
    """
    connection = UpstreamConnection(enqueue)
    response: BoundedResponse | None = None
    seconds = DIAL_SECONDS if seconds is None else seconds
    try:
        with gevent.Timeout(seconds, TimeoutError(f"no connection within {seconds} s")):
            response = BoundedResponse(_open_socket(url, tls, direct))
            connection.connect(  # type: ignore[no-untyped-call]
                url,
                timeout=DIAL_STEP_SECONDS,
                socket=response,
                header=[f"{name}: {value}" for name, value in headers.items()],
                suppress_origin=True,
                redirect_limit=0,
            )
    except (OSError, websocket.WebSocketException, ValueError, CookieError) as error:
        if response is not None and (status := connection.getstatus() or response.status):
            raise UpgradeRefused(status) from error
        reason, hint = _reason_and_hint(error)
        raise ConnectionLost(f"{urlsplit(url).netloc}: {reason}", hint) from error
    connection.begin(response.socket, response.rest)
    return connection


def _reason_and_hint(error: Exception) -> tuple[str, str | None]:
    """Return the reason of a failed dial, and what to check; None if nothing is known to help."""
    reason = os.strerror(error.errno) if isinstance(error, ConnectionRefusedError) and error.errno else str(error)
    for kind, hint in _DIAL_HINTS.items():
        if isinstance(error, kind):
            return reason or kind.__name__, hint
    return reason or type(error).__name__, None


# Advice on a failed dial; the first kind that fits.
_DIAL_HINTS: dict[type[Exception], str] = {
    ssl.SSLCertVerificationError: "check this machine's clock and its CA certificates, and the host in the URL",
    ssl.SSLError: "the host does not speak TLS there: check the port, and wss:// or ws:// in the URL",
    socket.gaierror: "check the host in the URL, and this machine's DNS",
    ConnectionRefusedError: "no program listens there: check the host and port in the URL",
    TimeoutError: "check this machine's network and firewall",
}


def _open_socket(url: str, tls: ssl.SSLContext | None = None, direct: bool = False) -> socket.socket:
    """Connect to the first of the host's addresses that accepts.

    The library itself stops at the first address that does not. Connects through the HTTP proxy that the environment
    names, except to this machine and with `direct`.
    """
    target = urlsplit(url)
    host, secure = target.hostname or "", target.scheme == "wss"
    port = target.port or (443 if secure else 80)
    direct = direct or host in LOCAL_HOSTS or bool(proxy_bypass(host))
    proxy = None if direct else getproxies().get("https" if secure else "http")
    sock = socket.create_connection((host, port), DIAL_STEP_SECONDS) if proxy is None else _tunnel(proxy, host, port)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return (tls or tls_context()).wrap_socket(sock, server_hostname=host) if secure else sock


@cache
def tls_context() -> ssl.SSLContext:
    """Return the context of all connections to Alpaca: built once, since that takes 57 ms, which would hold the hub."""
    return ssl.create_default_context()


def _tunnel(proxy: str, host: str, port: int) -> socket.socket:
    """Connect to the host through an HTTP proxy (RFC 9110 §9.3.6).

    Raises OSError or _TooLarge.
    """
    proxy_url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy_url.username:
        credentials = f"{unquote(proxy_url.username)}:{unquote(proxy_url.password or '')}"
        request += f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}\r\n"
    sock = socket.create_connection((proxy_url.hostname or "", proxy_url.port or 80), DIAL_STEP_SECONDS)
    try:
        sock.sendall(f"{request}\r\n".encode())
        response, head = BoundedResponse(sock), bytearray()
        while not head.endswith((b"\n\r\n", b"\n\n")):
            if not (byte := response.recv(1)):
                raise ConnectionResetError("the HTTP proxy closed the connection")
            head += byte
        match = _STATUS.match(head)
        if match is None or match[1] != b"200":
            raise ConnectionRefusedError(f"the HTTP proxy answered {match[1].decode() if match else 'no HTTP'}")
    except BaseException:
        sock.close()
        raise
    return sock


LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
