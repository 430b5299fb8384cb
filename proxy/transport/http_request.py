"""One HTTP request, within limits that gevent's WSGI server lacks.

The head must arrive within HEAD_SECONDS and HEAD_BYTES, a body is not waited for, and the client must read the response
within ANSWER_SECONDS. Every response closes the connection. A socket that breaks in between is not logged as an error.

A refusal (a status of 4xx) is reported to the server, which may delay it: some SDKs ask again as fast as they are
refused. The client that waits holds a socket, and no more of them than the server permits.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

import gevent
from gevent.pywsgi import Input, WSGIHandler

HEAD_SECONDS = 10
HEAD_BYTES = 16 * 1024
ANSWER_SECONDS = 10
DROP_BYTES = 16 * 1024  # of what a client sends while its refusal waits, in each DROP_SECONDS
DROP_SECONDS = 0.1

TLS_HANDSHAKE = b"\x16"  # the first byte of a TLS connection (RFC 8446 §5.1), and of no HTTP request
NO_TLS = "400 This port has no TLS"
NO_PLAIN_HTTP = "400 This port is for TLS only"


def headers_for(
    status: str, content_type: str = "text/plain; charset=utf-8", more: Sequence[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """Return the headers of a response.

    Those of 426 name the upgrade (RFC 9110 §15.5.22, RFC 6455 §4.4).
    """
    headers = [("Content-Type", content_type), ("Connection", "close"), *more]
    if status.startswith("426"):
        headers += [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    return headers


def environ_of(address: tuple[Any, ...]) -> dict[str, str]:
    """Return the environ of a client that has sent no HTTP request: its address."""
    return {"REMOTE_ADDR": address[0], "REMOTE_PORT": str(address[1])}


def hold(sock: Any, seconds: float) -> None:
    """Keep a connection for so many seconds, and drop what the client sends meanwhile.

    Raises ConnectionError as soon as the client has left or the server has shut the socket down, so that a client
    that leaves early takes up no socket. The end is polled: a read that blocks until it would take in a whole upload.
    """
    raw = sock._sock  # gevent's own name for the non-blocking socket under its cooperative one
    while seconds > 0:
        gevent.sleep(min(seconds, DROP_SECONDS))
        seconds -= DROP_SECONDS
        with contextlib.suppress(BlockingIOError):
            if not raw.recv(DROP_BYTES):
                raise ConnectionAbortedError("the client did not wait for its refusal")


class BoundedHandler(WSGIHandler):  # type: ignore[misc]
    """gevent's handler of a request, with these limits.

    Its server has a method `wait_refused(socket, environ, status)`, which is called before a refusal and returns when
    that is due.
    """

    rfile: Any

    def handle_one_request(self) -> Any:
        self._head_timeout = gevent.Timeout.start_new(HEAD_SECONDS)
        try:
            if not self.rfile.closed and self.rfile.peek(1)[:1] == TLS_HANDSHAKE:
                self._head_timeout.close()
                return self._refusal(NO_TLS)
            self.rfile = _BoundedHead(self.rfile)
            return super().handle_one_request()
        except gevent.Timeout as timeout:
            if timeout is not self._head_timeout:
                raise
            return None
        finally:
            self._head_timeout.close()

    def get_environ(self) -> Any:
        self._head_timeout.close()
        self.rfile = self.rfile.inner
        environ = super().get_environ()
        self.server.locate(environ)
        self.wsgi_input = Input(self.rfile, None)  # otherwise it would wait for a body that may never arrive
        return environ

    def start_response(self, status: str, *arguments: Any) -> Any:
        if status.startswith("4"):
            self.server.wait_refused(self.socket, self.environ, status)
        return super().start_response(status, *arguments)

    def _refusal(self, status: str) -> tuple[str, bytes]:
        """Return the response to bytes that are no HTTP request, once it is due."""
        self.server.wait_refused(self.socket, environ_of(self.client_address), status)
        return status, f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()

    def _sendall(self, data: bytes) -> None:
        with gevent.Timeout(ANSWER_SECONDS, TimeoutError(errno.ETIMEDOUT, "the answer was not taken")):
            super()._sendall(data)

    def handle_error(self, kind: Any, error: Any, traceback: Any) -> None:
        """Ignore a socket that breaks; log any other exception as an internal error."""
        if isinstance(error, OSError):
            self.close_connection = True
        elif isinstance(error, Exception):
            self.server.log.error("internal_error")
            self._send_error_response_if_possible(500)
        else:
            super().handle_error(kind, error, traceback)

    def _handle_client_error(self, ex: Exception) -> tuple[str, bytes]:
        """Return a short response to invalid HTTP.

        The library's own method logs the bytes that the client sent, which may hold a secret.
        """
        too_big = isinstance(ex, (_HeadTooBig, HTTPException))  # HTTPException: more than 100 headers
        return self._refusal("431 Request Header Fields Too Large" if too_big else "400 Bad Request")


class _HeadTooBig(ValueError):
    pass


class _BoundedHead:
    """The head of a request, read by lines, within HEAD_BYTES."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._bytes_left = HEAD_BYTES

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self.inner.readline(self._bytes_left + 1 if size < 0 else min(size, self._bytes_left + 1))
        self._bytes_left -= len(line)
        if self._bytes_left < 0:
            raise _HeadTooBig
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
