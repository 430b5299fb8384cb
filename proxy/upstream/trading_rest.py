"""Alpaca's trading REST API, read only: single GET requests on behalf of one account.

Nothing is retried, and no redirect is followed, since the account's key is sent to the configured host alone.
Certificates are verified. Every answer is bounded in bytes, and every request in time.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import gevent
import urllib3

from proxy.alpaca.client_protocol import Login
from proxy.alpaca.trading import OAUTH
from proxy.transport.errors import ProxyError
from proxy.transport.time_slice import TimeSlice
from proxy.upstream.websocket import LOCAL_HOSTS, tls_context

CONNECT_SECONDS = READ_SECONDS = 5.0
ANSWER_SECONDS = 8.0  # for a whole answer
ANSWER_BYTES = 16 * 1024 * 1024  # 500 orders with their legs have about 2 MB
CHUNK_BYTES = 64 * 1024
# Answers that Alpaca does not give to these requests: another program listens there, perhaps another proxy.
NOT_SERVED = (404, 405, 410, 426, 501)


class RestError(ProxyError):
    """A request got no usable answer. The text says why and names the host, without a key."""


class NotFound(RestError):
    """The answer was 404, or another one that says that the path is not served."""


class TradingRest:
    """The trading API of an account: `login.url` is that of its stream, on the same host and port."""

    def __init__(self, login: Login) -> None:
        url = urlsplit(login.url)
        scheme = "https" if url.scheme == "wss" else "http"
        self.host = url.netloc
        self.clock_offset = 0  # nanoseconds by which Alpaca's clock is ahead of this machine's
        self._base = f"{scheme}://{url.netloc}"
        key = {"Authorization": f"Bearer {login.secret}"}
        if login.key != OAUTH:
            key = {"APCA-API-KEY-ID": login.key, "APCA-API-SECRET-KEY": login.secret}
        self._headers = {**key, "Accept": "application/json", "User-Agent": "alpaca-proxy", "Connection": "close"}
        host = url.hostname or ""
        proxy = None if host in LOCAL_HOSTS or proxy_bypass(host) else getproxies().get(scheme)
        tls = tls_context()
        self._pool = urllib3.ProxyManager(proxy, ssl_context=tls) if proxy else urllib3.PoolManager(ssl_context=tls)

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
                kind = NotFound if answer.status in NOT_SERVED else RestError
                raise kind(f"{self.host} answered with the HTTP status {answer.status}")
            self._note_clock(answer.headers.get("Date"))
            body, time_slice = bytearray(), TimeSlice()
            for chunk in answer.stream(CHUNK_BYTES, decode_content=False):
                body += chunk
                if len(body) > ANSWER_BYTES:
                    raise RestError(f"{self.host} answered with more than {ANSWER_BYTES} bytes")
                time_slice.pause()
            return bytes(body)
        finally:
            answer.close()

    def alpaca_time(self) -> int:
        """Return the time by Alpaca's clock, in nanoseconds since 1970, as far as its answers have told it."""
        return time.time_ns() + self.clock_offset

    def _note_clock(self, date: str | None) -> None:
        """Take over Alpaca's clock from an answer, if it differs by more than the second to which it is told."""
        try:
            told = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return
        ahead = told - time.time()
        self.clock_offset = 0 if -2 < ahead < 1 else int((ahead + 0.5) * 10**9)


def _reason(error: Exception) -> str:
    """Return the reason of a failure, without urllib3's wrapping, which quotes the request's path."""
    while isinstance(error, urllib3.exceptions.HTTPError) and isinstance(
        error.__cause__ or error.__context__, Exception
    ):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error) if isinstance(error, OSError) and str(error) else type(error).__name__
