"""A TCP relay between an SDK and the proxy, which records its connections."""

from __future__ import annotations

import contextlib
import ssl
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import gevent
import gevent.socket
from gevent.server import StreamServer

HEAD_END = b"\r\n\r\n"


@dataclass(slots=True)
class Span:
    """The lifetime of one connection in seconds of time.monotonic().

    `closed` is None while it is open.
    """

    opened: float
    closed: float | None = None


class Tap:
    """Listens on a free port and relays to the port `target`.

    With `head_only` it forwards a request's head and drops everything after it, so that the client never seems to log
    in. `tls` applies to the client's side only.
    """

    def __init__(self, target: int, *, head_only: bool = False, tls: ssl.SSLContext | None = None) -> None:
        self.spans: list[Span] = []
        self._target = ("127.0.0.1", target)
        self._head_only = head_only
        options = {} if tls is None else {"ssl_context": tls}
        self._server = StreamServer(("127.0.0.1", 0), self._serve, **options)

    def __enter__(self) -> Tap:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.stop(timeout=0)

    @property
    def url(self) -> str:
        """The URL that it listens at, without a path."""
        return f"{'wss' if self._server.ssl_enabled else 'ws'}://127.0.0.1:{self._server.server_port}"

    @property
    def open(self) -> int:
        """The number of open connections."""
        return sum(span.closed is None for span in self.spans)

    def most_at_once(self) -> int:
        """The maximum number of connections that were open at once."""
        changes = [(span.opened, 1) for span in self.spans]
        changes += [(span.closed, -1) for span in self.spans if span.closed is not None]
        now = most = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most

    def most_within(self, seconds: float) -> int:
        """The maximum number of connections opened within any period of `seconds`."""
        opened = sorted(span.opened for span in self.spans)
        return max((sum(at <= later < at + seconds for later in opened) for at in opened), default=0)

    def _serve(self, client: Any, address: object) -> None:
        span = Span(time.monotonic())
        self.spans.append(span)
        try:
            with contextlib.suppress(OSError):
                proxy = gevent.socket.create_connection(self._target)
                outward = gevent.spawn(self._relay, client, proxy, self._head_only)
                inward = gevent.spawn(self._relay, proxy, client, False)
                # When one direction ends, so does the connection; its data has been relayed by then.
                gevent.wait([outward, inward], count=1)
                gevent.killall([outward, inward])
                proxy.close()
        finally:
            span.closed = time.monotonic()

    def _relay(self, source: Any, sink: Any, head_only: bool) -> None:
        head = b""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if head_only:
                    if HEAD_END in head:
                        continue
                    head += data
                sink.sendall(data)
