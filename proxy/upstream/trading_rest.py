"""Alpaca's trading REST API, read only: single GET requests on behalf of one account.

Nothing is retried, and no redirect is followed, since the account's key is sent to the configured host alone.
Certificates are verified. Every answer is bounded in bytes, and every request in time.
"""

from __future__ import annotations

import io
import socket
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import gevent
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from proxy.alpaca.client_protocol import Login
from proxy.alpaca.trading import OAUTH
from proxy.transport.errors import ProxyError
from proxy.transport.time_slice import YIELD_SECONDS
from proxy.upstream.websocket import LOCAL_HOSTS, tls_context

CONNECT_SECONDS = READ_SECONDS = 5.0
ANSWER_SECONDS = 8.0  # for a whole answer
ANSWER_BYTES = 4 * 1024 * 1024  # with its head; 500 orders with two legs each have about 2 MB
READ_BYTES = 8 * 1024  # between two pauses; in chunks of one byte they take 7 ms
MAX_CLOCK_OFFSET = 24 * 3600  # seconds; a larger one is an error of the other side
NOT_FOUND = 404


class RestError(ProxyError):
    """A request got no usable answer. The text says why and names the host, without a key.

    `status` is the HTTP status of the answer, if there was one.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class TradingRest:
    """The trading API of an account: `login.url` is that of its stream, on the same host and port.

    `clock_offset`: the nanoseconds by which Alpaca's clock is ahead of this machine's, as its answers have shown.
    """

    def __init__(self, login: Login, clock_offset: int = 0) -> None:
        url = urlsplit(login.url)
        scheme = "https" if url.scheme == "wss" else "http"
        self.host = url.netloc
        self.clock_offset = clock_offset
        self._base = f"{scheme}://{url.netloc}"
        key = {"Authorization": f"Bearer {login.secret}"}
        if login.key != OAUTH:
            key = {"APCA-API-KEY-ID": login.key, "APCA-API-SECRET-KEY": login.secret}
        self._headers = {**key, "Accept": "application/json", "User-Agent": "alpaca-proxy", "Connection": "close"}
        host = url.hostname or ""
        proxy = None if host in LOCAL_HOSTS or proxy_bypass(host) else getproxies().get(scheme)
        tls = tls_context()
        self._pool = urllib3.ProxyManager(proxy, ssl_context=tls) if proxy else urllib3.PoolManager(ssl_context=tls)
        self._pool.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def __repr__(self) -> str:
        return f"<TradingRest {self.host}>"

    def get(self, path: str) -> bytes:
        """Return the body of the answer, which has the status 200. Raises RestError."""
        try:
            with gevent.Timeout(ANSWER_SECONDS, TimeoutError(f"no answer within {ANSWER_SECONDS:.0f} s")):
                return self._get(path)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise RestError(f"{self.host}: {_reason(error)}") from error

    def _get(self, path: str) -> bytes:
        asked_at = time.time()
        answer = self._pool.request(
            "GET",
            self._base + path,
            headers=self._headers,
            retries=False,
            redirect=False,
            timeout=urllib3.Timeout(CONNECT_SECONDS, READ_SECONDS),
            preload_content=False,
            decode_content=False,
        )
        try:
            if answer.status != 200:
                raise RestError(f"{self.host} answered with the HTTP status {answer.status}", answer.status)
            self._note_clock(answer.headers.get("Date"), asked_at)
            return answer.read(decode_content=False)
        finally:
            answer.close()

    def _note_clock(self, date: str | None, asked_at: float) -> None:
        """Take over Alpaca's clock from an answer, if it differs by more than the second to which it is known.

        Its time is some moment between the question and the answer, which may have been read late.
        """
        try:
            stated = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, OverflowError):
            return
        least, most = stated - time.time(), stated + 1 - asked_at
        if abs(least) < MAX_CLOCK_OFFSET:
            self.clock_offset = 0 if least < 1 and most > -1 else int((least + most) / 2 * 10**9)


class _PacedReader(io.RawIOBase):
    """The unbuffered file of a socket; yields to the hub before each read, and is bounded in bytes.

    gevent's `recv` does not yield while there is data, and http.client skips heads and trailers without end.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = ANSWER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        gevent.sleep(YIELD_SECONDS)
        count: int = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise OSError(f"an answer of more than {ANSWER_BYTES} bytes")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _PacedSocket:
    """A connected socket whose file for reading is a `_PacedReader`."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_PacedReader(self._sock.makefile("rb", buffering=0)), READ_BYTES)


def _connected(host: str, port: int, timeout: Any) -> socket.socket:
    """Connect to the first of the host's addresses that accepts; a socket is closed also if the greenlet is killed."""
    last = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
    raise last


class _PacedHTTPConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self._dns_host, self.port, self.timeout)

    def connect(self) -> None:
        super().connect()
        self.sock = _PacedSocket(self.sock)


class _PacedHTTPSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self._dns_host, self.port, self.timeout)

    def connect(self) -> None:
        super().connect()
        self.sock = _PacedSocket(self.sock)


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PacedHTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PacedHTTPSConnection


def _reason(error: Exception) -> str:
    """Return the reason of a failure, without urllib3's wrapping, which quotes the request's path."""
    while isinstance(error, urllib3.exceptions.HTTPError):
        cause = error.__cause__ or error.__context__
        if not isinstance(cause, Exception):
            break
        error = cause
    return str(error) if isinstance(error, OSError) and str(error) else type(error).__name__
