"""The door: accepts sockets, bounds what strangers may take, and hands each request to its handler.

A *stranger* is a socket whose client is not known yet. Strangers are bounded per address and in all, and each has a
deadline for its TLS handshake and for its request's head, so that half a request costs one place of many for a while.
`admit` takes a connection out of the count once it has proved who it is.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import gevent
from gevent.pywsgi import WSGIServer

from proxy.transport.connection import ClientConnection
from proxy.transport.http_request import HEAD_SECONDS, headers_for
from proxy.transport.upgrade import Handler

MAX_UNAUTHENTICATED_PER_ADDRESS = 256
MAX_UNAUTHENTICATED = 1024
PAUSE_SECONDS = 0.1

Environ = dict[str, Any]
Header = tuple[str, str]
# An HTTP status, a text, its type if it is not plain, and further headers.
HttpResponse = tuple[str, str] | tuple[str, str, str] | tuple[str, str, str, Sequence[Header]]

# gevent-websocket logs each refused handshake through `server.logger`; what matters is logged by name elsewhere.
_silent = logging.getLogger("proxy.handshake")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class EventLog(Protocol):
    """Where events are logged by name, with fields; `error` adds the exception that is being handled."""

    def warning(self, event: str, **fields: object) -> None: ...
    def error(self, event: str, **fields: object) -> None: ...


class Listener(WSGIServer):  # type: ignore[misc]
    """Accepts WebSockets at one address.

    `refuse(environ)` may answer a request instead of its upgrade; `serve(connection, environ)` holds the conversation
    and returns when it is over; `answer(environ)` replies to plain HTTP. Raises OSError from `start` when the address
    cannot be had.
    """

    logger = _silent
    max_accept = 16  # in one turn of the hub; the others wait in the kernel for the next

    def __init__(
        self,
        address: tuple[str, int],
        *,
        serve: Callable[[ClientConnection, Environ], None],
        refuse: Callable[[Environ], HttpResponse | None],
        answer: Callable[[Environ], HttpResponse],
        log: EventLog,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        options = {} if tls is None else {"ssl_context": tls}
        environ = {"SERVER_NAME": address[0]}  # given, so that no name look-up happens at the start
        super().__init__(address, log=None, error_log=None, handler_class=Handler, environ=environ, **options)
        self.application = self._application
        self.refuse = refuse
        self.log = log
        self._serve = serve
        self._answer = answer
        self._unauthenticated: dict[tuple[Any, ...], str] = {}
        self._by_host: Counter[str] = Counter()

    @property
    def unauthenticated(self) -> int:
        """How many sockets' clients are not known yet."""
        return len(self._unauthenticated)

    def admit(self, environ: Environ) -> None:
        """The client behind this request is known now: it no longer takes a stranger's place."""
        self._forget((environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"])))

    def do_read(self) -> Any:
        """The next socket. While there is no descriptor left for one, they wait in the kernel."""
        try:
            return super().do_read()
        except OSError as error:
            if self.is_fatal_error(error):
                raise
            self.stop_accepting()  # it would be called again at once, for ever
            self._timer = self.loop.timer(PAUSE_SECONDS)
            self._timer.start(self._start_accepting_if_started)
            hint = "raise the limit of open files: ulimit -n, or LimitNOFILE in a systemd unit"
            warn = partial(self.log.warning, port=self.server_port)
            gevent.spawn(warn, "starved", reason=str(error), hint=hint)  # this is the hub, which must not wait
            return None

    def do_handle(self, sock: Any, address: tuple[Any, ...]) -> None:
        host = address[0]
        self._forget(address[:2])  # a port comes back when its last socket is dead, perhaps before that one's greenlet
        if len(self._unauthenticated) >= MAX_UNAUTHENTICATED or self._by_host[host] >= MAX_UNAUTHENTICATED_PER_ADDRESS:
            sock.close()
            return
        self._unauthenticated[address[:2]] = host
        self._by_host[host] += 1
        super().do_handle(sock, address)

    def do_close(self, sock: Any, address: tuple[Any, ...]) -> None:
        self._forget(address[:2])
        super().do_close(sock, address)

    def handle(self, sock: Any, address: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):  # a socket that breaks is nobody's error
            super().handle(sock, address)

    def wrap_socket_and_handle(self, client_socket: Any, address: tuple[Any, ...]) -> None:
        """The TLS handshake, within its deadline; one that fails is nobody's error but the stranger's."""
        wrap = partial(self.wrap_socket, do_handshake_on_connect=False, **self.ssl_args)
        with contextlib.suppress(OSError):
            client_socket.getpeername()  # if it is gone already, the wrapping would fail and leak it
            with wrap(client_socket) as secured:
                with gevent.Timeout(HEAD_SECONDS, TimeoutError):
                    secured.do_handshake()
                self.handle(secured, address)

    def _forget(self, address: tuple[Any, ...]) -> None:
        host = self._unauthenticated.pop(address, None)
        if host is not None:
            self._by_host[host] -= 1
            if not self._by_host[host]:
                del self._by_host[host]

    def _application(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        connection = environ.get("wsgi.websocket")
        if connection is not None:
            self._serve(connection, environ)
            return []
        status, body, *more = self._answer(environ)
        content = f"{body.rstrip()}\n".encode()
        start_response(status, [*headers_for(status, *more), ("Content-Length", str(len(content)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]
