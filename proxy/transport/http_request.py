"""One HTTP request of a stranger, bounded: what gevent's WSGI server leaves open.

The head must come within HEAD_SECONDS and HEAD_BYTES, a body is not waited for, and the answer must be taken within
ANSWER_SECONDS. Every answer closes the connection. A socket that breaks on the way is nobody's error, and nothing that
was sent is ever logged.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

import gevent
from gevent.pywsgi import Input, WSGIHandler

HEAD_SECONDS = 10
HEAD_BYTES = 16 * 1024
ANSWER_SECONDS = 10


def headers_for(
    status: str, content_type: str = "text/plain; charset=utf-8", more: Sequence[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """The headers of an answer; 426 says to what to upgrade (RFC 9110 §15.5.22, RFC 6455 §4.4)."""
    headers = [("Content-Type", content_type), ("Connection", "close"), *more]
    if status.startswith("426"):
        headers += [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    return headers


class BoundedHandler(WSGIHandler):  # type: ignore[misc]
    """gevent's handler of a request, within those bounds."""

    rfile: Any

    def handle_one_request(self) -> Any:
        self._head_timeout = gevent.Timeout.start_new(HEAD_SECONDS)
        self.rfile = _BoundedHead(self.rfile)
        try:
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
        self.wsgi_input = Input(self.rfile, None)  # else a body that never comes would be waited for
        return environ

    def _sendall(self, data: bytes) -> None:
        with gevent.Timeout(ANSWER_SECONDS, TimeoutError(errno.ETIMEDOUT, "the answer was not taken")):
            super()._sendall(data)

    def handle_error(self, kind: Any, error: Any, traceback: Any) -> None:
        """A socket that breaks is nobody's error; any other exception is a bug, and logged as one."""
        if isinstance(error, OSError):
            self.close_connection = True
        elif isinstance(error, Exception):
            self.server.log.error("internal_error")
            self._send_error_response_if_possible(500)
        else:
            super().handle_error(kind, error, traceback)

    def _handle_client_error(self, ex: Exception) -> tuple[str, bytes]:
        """Answers what is not HTTP in short, where the library would log what the client sent."""
        too_big = isinstance(ex, (_HeadTooBig, HTTPException))  # the latter means more than a hundred headers
        status = "431 Request Header Fields Too Large" if too_big else "400 Bad Request"
        return status, f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()


class _HeadTooBig(ValueError):
    pass


class _BoundedHead:
    """The request's head, line by line, within HEAD_BYTES."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._left = HEAD_BYTES

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self.inner.readline(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise _HeadTooBig
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
