"""The WebSocket to Alpaca: websocket-client's, with a buffered reader in front of it.

Many frames come with one recv, and whole frames are cut in user space. Everything but whole text and binary frames is
the library's own code, fed from the same buffer. It never writes by itself: pongs and closes are handed to the
connection's one writer.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from http.cookies import CookieError
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import gevent
import websocket

from proxy.transport import frames
from proxy.transport.errors import ConnectionLost, UpgradeRefused
from proxy.transport.time_slice import YIELD_SECONDS

UPSTREAM_READ_BYTES = 256 * 1024
UPSTREAM_MESSAGE_BYTES = 16 * 1024 * 1024
MERGE_FRAMES = 256  # measured: 2.3 times cheaper than 64 at one message a frame, 100 clients
MERGE_BYTES = 256 * 1024
ANSWER_HEAD_BYTES, ANSWER_BODY_BYTES = 16 * 1024, 64 * 1024  # of the HTTP answer to an upgrade
ANSWER_READ_BYTES = 1024  # so little that the library's byte-by-byte reading of it takes a millisecond
DIAL_STEP_SECONDS = 8
DIAL_SECONDS = 25


class Frame(NamedTuple):  # made for every message, for which a frozen dataclass takes three times as long
    """A whole message from Alpaca."""

    text: bool
    payload: bytes


class UpstreamConnection(websocket.WebSocket):
    """The WebSocket to Alpaca: one greenlet calls `receive`, one other calls `write`; `shut` wakes both.

    Control frames that want an answer are put to `answer` as (opcode, payload), for the one that writes.
    """

    def __init__(self, answer: Callable[[int, bytes], None]) -> None:
        super().__init__(enable_multithread=False, skip_utf8_validation=True)
        self.answer = answer
        self._data = b""
        self._at = 0
        self._fragmented = 0  # bytes of a message that is not whole yet

    def begin(self, sock: socket.socket, data: bytes) -> None:
        """The upgrade is done: frames travel on `sock` from now on, and their first bytes have been read."""
        self.sock = sock
        self._data = data
        self.settimeout(None)

    def receive(self) -> list[Frame]:
        """The whole messages that are there, at most MERGE_FRAMES or MERGE_BYTES of them; waits for the first.

        Empty when what came was a sign of life and no more: a ping or a pong. Raises ConnectionLost: the peer closed,
        or broke RFC 6455 or a bound; what came whole before that is returned first.
        """
        try:
            while not (messages := self._plain_messages()):
                head = self._head()
                if head is None:
                    self._fill()
                elif head[0] in _PLAIN and not self.cont_frame.recving_frames:
                    self._fill(head[2])
                else:
                    return self._other_message()
            return messages
        except (OSError, websocket.WebSocketException) as error:
            if (code := _CODES.get(type(error))) is not None:
                self.send_close(code)
            raise ConnectionLost(str(error) or type(error).__name__) from error

    def write(self, opcode: int, payload: bytes) -> None:
        """Sends one frame, masked; waits for the kernel. Raises ConnectionLost."""
        try:
            self.send(payload, opcode)
        except (OSError, websocket.WebSocketException) as error:
            raise ConnectionLost(str(error) or type(error).__name__) from error

    def shut(self) -> None:
        """Ends both directions at once; greenlets that read or write are woken. Nothing more is said."""
        self.connected = False
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]

    def free(self) -> None:
        """Closes the socket."""
        self.shutdown()  # type: ignore[no-untyped-call]

    def pong(self, payload: str | bytes = b"") -> None:
        self.answer(frames.PONG, payload if isinstance(payload, bytes) else payload.encode())

    def send_close(self, status: int = frames.NORMAL, reason: str | bytes = b"") -> None:
        self.answer(frames.CLOSE, struct.pack("!H", status))

    def _plain_messages(self) -> list[Frame]:
        """The unfragmented text and binary messages that lie whole in the buffer; never waits."""
        messages: list[Frame] = []
        size = 0
        if self.cont_frame.recving_frames:
            return messages
        try:
            while size < MERGE_BYTES and len(messages) < MERGE_FRAMES:
                head = self._head()
                if head is None:
                    break
                first, start, end = head
                if first not in _PLAIN or end > len(self._data):
                    break
                messages.append(_checked(first == _PLAIN_TEXT, self._data[start:end]))
                size += end - start
                self._at = end
        except websocket.WebSocketException:
            if not messages:
                raise  # else at the next call: it lies where it lay
        return messages

    def _other_message(self) -> list[Frame]:
        """What begins with a control frame or a fragment is the library's own business."""
        opcode, frame = self.recv_data_frame(control_frame=True)
        if opcode in (frames.TEXT, frames.BINARY):
            return [_checked(opcode == frames.TEXT, frame.data)]
        return []

    def recv_frame(self) -> Any:
        """One frame by the library's own code, within the bounds that it does not know. A close frame is answered with
        its own code (RFC 6455 §5.5.1); the library would always say 1000."""
        while (head := self._head()) is None:
            self._fill()
        first, start, end = head
        if first not in _KNOWN or (first in _CONTROL and end - start > 125):
            raise websocket.WebSocketProtocolException("a frame that RFC 6455 does not allow")
        if first not in _CONTROL:
            self._fragmented += end - start
            if self._fragmented > UPSTREAM_MESSAGE_BYTES:
                raise _TooLarge("message", UPSTREAM_MESSAGE_BYTES)
            if first & _FIN:
                self._fragmented = 0
        frame = super().recv_frame()  # type: ignore[no-untyped-call]
        if frame.opcode == frames.CLOSE:
            code = struct.unpack("!H", frame.data[:2])[0] if frame.data else frames.NO_CODE
            reason = _checked(True, frame.data[2:]).payload.decode()
            self.send_close(frames.NORMAL if code == frames.NO_CODE else code)
            raise ConnectionLost(f"closed by the other side with {code} {reason}".strip())
        return frame

    def _head(self) -> _Head | None:
        """Where the next frame begins and ends, if that much is there."""
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
                raise _TooLarge("frame", UPSTREAM_MESSAGE_BYTES)
        return first, start, start + size

    def _fill(self, until: int = 0) -> None:
        """Reads at least once, and until the buffer reaches `until`, a position of now."""
        if self.sock is None:
            raise ConnectionLost("closed here")
        parts = [self._data[self._at :]]
        missing = until - len(self._data)
        while True:
            chunk = self.sock.recv(UPSTREAM_READ_BYTES)
            if not chunk:
                raise ConnectionLost("closed by the other side without a word" if self.connected else "closed here")
            parts.append(chunk)
            missing -= len(chunk)
            if missing <= 0:
                break
        self._data = b"".join(parts)
        self._at = 0

    def _recv(self, bufsize: int) -> bytes:
        """The library's reads are served from the buffer."""
        if self._at == len(self._data):
            self._fill()
        part = self._data[self._at : self._at + bufsize]
        self._at += len(part)
        return part


class _TooLarge(websocket.WebSocketException):
    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} over {limit} bytes")


# What is said to a peer that broke the protocol or a bound (RFC 6455 §7.4.1); nothing to one that is gone.
_CODES = {
    websocket.WebSocketProtocolException: frames.PROTOCOL_ERROR,
    websocket.WebSocketPayloadException: frames.NOT_UTF8,
    _TooLarge: frames.TOO_BIG,
}


# A frame's first byte, where its payload starts and where it ends; plain, since one is made for every frame.
_Head = tuple[int, int, int]

_FIN = 0x80
_PLAIN_TEXT = _FIN | frames.TEXT
_PLAIN = (_PLAIN_TEXT, _FIN | frames.BINARY)
_CONTROL = (_FIN | frames.CLOSE, _FIN | frames.PING, _FIN | frames.PONG)
_KNOWN = (*_PLAIN, *_CONTROL, frames.TEXT, frames.BINARY, _FIN, 0)


def _checked(text: bool, payload: bytes) -> Frame:
    """A message whose text is UTF-8 (RFC 6455 §8.1): the JSON decoder skips over what it need not read."""
    if text and not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise websocket.WebSocketPayloadException("text that is not UTF-8") from None
    return Frame(text, payload)


class _BoundedResponse:
    """A socket whose peer answers an HTTP request: head and body within bounds, and others run while it is read.

    websocket-client reads a head byte by byte, with no bound, and gevent's `recv` does not yield while there is data.
    `rest` is what has been read beyond the head.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.rest = b""
        self._start = b""
        self._left = {True: ANSWER_HEAD_BYTES, False: ANSWER_BODY_BYTES}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    @property
    def status(self) -> int | None:
        """The status, if it has come and refuses the upgrade."""
        match = _STATUS.match(self._start)
        return int(match[1]) if match and match[1] != b"101" else None

    def recv(self, size: int) -> bytes:
        """At most `size` bytes: 1 in the head, more in the body. Raises _TooBig when either is over its bound."""
        if not self.rest:
            gevent.sleep(YIELD_SECONDS)
            self.rest = self.socket.recv(ANSWER_READ_BYTES)
            self._start = (self._start + self.rest)[: len(b"HTTP/1.1 101 ")]
        part, self.rest = self.rest[:size], self.rest[size:]
        head = size == 1
        self._left[head] -= len(part)
        if self._left[head] < 0:
            raise _TooLarge("HTTP answer", ANSWER_HEAD_BYTES if head else ANSWER_BODY_BYTES)
        return part


_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")


def dial(url: str, headers: Mapping[str, str], answer: Callable[[int, bytes], None]) -> UpstreamConnection:
    """Opens a WebSocket to Alpaca. Raises UpgradeRefused (an HTTP answer) or ConnectionLost (everything else).

    Each address of the host gets DIAL_STEP_SECONDS, so that a dead IPv6 route leaves time for IPv4. Redirects are not
    followed: keys go only where the configuration says.
    """
    connection = UpstreamConnection(answer)
    reply: _BoundedResponse | None = None
    try:
        with gevent.Timeout(DIAL_SECONDS, TimeoutError(f"no connection within {DIAL_SECONDS} s")):
            reply = _BoundedResponse(_reach(url))
            connection.connect(  # type: ignore[no-untyped-call]
                url,
                timeout=DIAL_STEP_SECONDS,
                socket=reply,
                header=[f"{name}: {value}" for name, value in headers.items()],
                suppress_origin=True,
                redirect_limit=0,
            )
    except (OSError, websocket.WebSocketException, ValueError, CookieError) as error:
        if reply is not None and (status := connection.getstatus() or reply.status):
            raise UpgradeRefused(status) from error
        raise ConnectionLost(str(error) or type(error).__name__) from error
    connection.begin(reply.socket, reply.rest)
    return connection


def _reach(url: str) -> socket.socket:
    """A socket to the first of the host's addresses that answers; the library gives up at the first that does not.

    By way of the HTTP proxy that the environment names, which is never asked for this machine.
    """
    place = urlsplit(url)
    host, secure = place.hostname or "", place.scheme == "wss"
    port = place.port or (443 if secure else 80)
    way = None if host in _HERE or proxy_bypass(host) else getproxies().get("https" if secure else "http")
    sock = socket.create_connection((host, port), DIAL_STEP_SECONDS) if way is None else _tunnel(way, host, port)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ssl.create_default_context().wrap_socket(sock, server_hostname=host) if secure else sock


def _tunnel(proxy: str, host: str, port: int) -> socket.socket:
    """A socket to the host through an HTTP proxy (RFC 9110 §9.3.6). Raises OSError or _TooBig."""
    place = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if place.username:
        credentials = f"{unquote(place.username)}:{unquote(place.password or '')}"
        request += f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}\r\n"
    sock = socket.create_connection((place.hostname or "", place.port or 80), DIAL_STEP_SECONDS)
    try:
        sock.sendall(f"{request}\r\n".encode())
        reply, head = _BoundedResponse(sock), bytearray()
        while not head.endswith((b"\n\r\n", b"\n\n")):
            if not (byte := reply.recv(1)):
                raise ConnectionResetError("the HTTP proxy closed the connection")
            head += byte
        match = _STATUS.match(head)
        if match is None or match[1] != b"200":
            raise ConnectionRefusedError(f"the HTTP proxy answered {match[1].decode() if match else 'no HTTP'}")
    except BaseException:
        sock.close()
        raise
    return sock


_HERE = ("127.0.0.1", "::1", "localhost")
