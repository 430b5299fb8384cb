"""A tap between an SDK and the proxy: passes bytes on, and knows how many connections an SDK makes and leaves open."""

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
    """One connection; `closed` is None while it is open. Seconds of time.monotonic()."""

    opened: float
    closed: float | None = None


class Tap:
    """Listens on a port of its own and connects through to the port `target`. A `deaf` one passes a request's head on
    and nothing that follows, so that the client seems never to log in. With `tls` it speaks that to the client, and not
    beyond.
    """

    def __init__(self, target: int, *, deaf: bool = False, tls: ssl.SSLContext | None = None) -> None:
        self.spans: list[Span] = []
        self._target = ("127.0.0.1", target)
        self._deaf = deaf
        options = {} if tls is None else {"ssl_context": tls}
        self._server = StreamServer(("127.0.0.1", 0), self._serve, **options)

    def __enter__(self) -> Tap:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.stop(timeout=0)

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"{'wss' if self._server.ssl_enabled else 'ws'}://127.0.0.1:{self._server.server_port}"

    @property
    def open(self) -> int:
        """How many connections are open now."""
        return sum(span.closed is None for span in self.spans)

    def most_at_once(self) -> int:
        """How many were open at once, at most."""
        changes = [(span.opened, 1) for span in self.spans]
        changes += [(span.closed, -1) for span in self.spans if span.closed is not None]
        now = most = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most

    def most_within(self, seconds: float) -> int:
        """How many were opened within so many seconds, at most."""
        opened = sorted(span.opened for span in self.spans)
        return max((sum(at <= later < at + seconds for later in opened) for at in opened), default=0)

    def _serve(self, client: Any, address: object) -> None:
        span = Span(time.monotonic())
        self.spans.append(span)
        try:
            with contextlib.suppress(OSError):
                proxy = gevent.socket.create_connection(self._target)
                outward = gevent.spawn(self._pass_on, client, proxy, self._deaf)
                inward = gevent.spawn(self._pass_on, proxy, client, False)
                # When one side is over so is the other; what was on its way has been passed on.
                gevent.wait([outward, inward], count=1)
                gevent.killall([outward, inward])
                proxy.close()
        finally:
            span.closed = time.monotonic()

    def _pass_on(self, source: Any, sink: Any, deaf: bool) -> None:
        head = b""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if deaf:
                    if HEAD_END in head:
                        continue
                    head += data
                sink.sendall(data)
