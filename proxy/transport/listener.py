"""A WSGI server with limits for unauthenticated sockets.

Unauthenticated sockets are limited per address and in total. Each has a deadline for its TLS handshake and for the head
of its request, so an incomplete request occupies one of many slots for a short time. `admit` takes a socket out of the
count once its client is authenticated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import gevent
import gevent.socket
from gevent.pywsgi import WSGIServer

from proxy.transport.connection import ClientConnection
from proxy.transport.forwarded import HEADER, PEER, TrustedPeers
from proxy.transport.http_request import HEAD_SECONDS, NO_PLAIN_HTTP, environ_of, headers_for, hold
from proxy.transport.upgrade import CONNECTION, Handler

MAX_UNAUTHENTICATED_PER_ADDRESS = 256
MAX_UNAUTHENTICATED = 1024
MAX_WAITING_PER_ADDRESS = 128  # of these, requests whose refusal is delayed
SPREAD_SECONDS = 0.002  # between those, so that a hundred refusals that are due together do not delay others
PAUSE_SECONDS = 0.1

Environ = dict[str, Any]
Header = tuple[str, str]
# An HTTP status, a body, its content type if it is not plain text, and more headers.
HttpResponse = tuple[str, str] | tuple[str, str, str] | tuple[str, str, str, Sequence[Header]]
# A response that takes over the connection, writes everything itself, and returns when the connection is done with.
StreamedResponse = Callable[[ClientConnection], None]

# gevent-websocket logs each refused handshake through `server.logger`; the proxy has log events of its own.
_silent = logging.getLogger("proxy.handshake")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class EventLog(Protocol):
    """A log of named events with fields; `error` adds the current exception."""

    def warning(self, event: str, **fields: object) -> None: ...
    def error(self, event: str, **fields: object) -> None: ...


class Listener(WSGIServer):  # type: ignore[misc]
    """A server of WebSockets at one address.

    `refuse(environ)` may return a response in place of an upgrade; `serve(connection, environ)` runs a session until it
    ends; `answer(environ)` returns the response to plain HTTP. `delay(environ, status)`, if given, is called for each
    refusal and returns the seconds that it waits; of bytes that are no HTTP request, the environ has only the address.
    With `reuse_port`, several processes can listen on the address, and the kernel spreads new connections over them.
    `start` raises OSError if the address cannot be bound.
    """

    logger = _silent
    max_accept = 16  # in one iteration of the hub's loop; further sockets wait in the kernel for the next

    def __init__(
        self,
        address: tuple[str, int],
        *,
        serve: Callable[[ClientConnection, Environ], None],
        refuse: Callable[[Environ], HttpResponse | None],
        answer: Callable[[Environ], HttpResponse | StreamedResponse],
        log: EventLog,
        delay: Callable[[Environ, str], float] | None = None,
        tls: ssl.SSLContext | None = None,
        reuse_port: bool = False,
    ) -> None:
        options = {} if tls is None else {"ssl_context": tls}
        environ = {"SERVER_NAME": address[0]}  # otherwise gevent looks up the host's name at the start
        super().__init__(address, log=None, error_log=None, handler_class=Handler, environ=environ, **options)
        self.application = self._application
        self.refuse = refuse
        self.log = log
        self._serve = serve
        self._answer = answer
        self._delay = delay
        self._options = [socket.SO_REUSEPORT] if reuse_port else []
        self._unauthenticated: dict[tuple[Any, ...], Any] = {}  # by address, oldest first
        self._by_host: Counter[str] = Counter()
        self._environs: dict[tuple[Any, ...], Environ] = {}  # of those whose request has been read
        self._trusted = TrustedPeers()
        self._waiting: Counter[str] = Counter()  # by address

    @property
    def unauthenticated(self) -> int:
        """The number of sockets whose clients are not authenticated."""
        return len(self._unauthenticated)

    def wait_refused(self, sock: Any, environ: Environ, status: str) -> None:
        """Return when a refusal is due.

        Raises ConnectionError if the client leaves before, or if too many of its address wait already: they would take
        the places of those that are about to log in.
        """
        seconds = 0.0 if self._delay is None else self._delay(environ, status)
        if seconds <= 0:
            return
        host = environ["REMOTE_ADDR"]
        if self._waiting[host] >= MAX_WAITING_PER_ADDRESS:
            raise ConnectionAbortedError("too many refused requests of this address wait")
        seconds += SPREAD_SECONDS * self._waiting[host]
        self._waiting[host] += 1
        try:
            hold(sock, seconds)
        finally:
            self._waiting[host] -= 1
            if not self._waiting[host]:
                del self._waiting[host]

    def admit(self, environ: Environ) -> None:
        """Take the socket of this request out of the unauthenticated ones."""
        self._remove(environ[PEER])

    def trust(self, networks: Iterable[str]) -> None:
        """Believe the header X-Forwarded-For of peers in these networks, and of no others."""
        self._trusted = TrustedPeers(networks)
        for environ in self._environs.values():
            self.locate(environ)

    def locate(self, environ: Environ) -> None:
        """Set REMOTE_ADDR to the address of the client, which differs from the peer's behind a reverse proxy.

        From then on an unauthenticated socket counts for that address.
        """
        peer: tuple[str, int] = environ.setdefault(PEER, (environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"])))
        host = self._trusted.client_of(peer[0], environ.get(HEADER))
        counted = peer in self._unauthenticated
        if counted:
            self._uncount(self._host_of(peer))
            self._by_host[host] += 1
            self._environs[peer] = environ
        environ["REMOTE_ADDR"] = host
        if counted and self._by_host[host] > MAX_UNAUTHENTICATED_PER_ADDRESS:
            self._displace(host)

    def get_listener(self, address: tuple[str, int], backlog: int, family: int) -> Any:
        """Return the socket that listens, with SO_REUSEPORT if the port is shared.

        gevent's own leaves a socket open whose address cannot be bound.
        """
        sock = gevent.socket.socket(family)
        try:
            for option in (*([socket.SO_REUSEADDR] if os.name == "posix" else []), *self._options):
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
            sock.bind(address)
            sock.listen(backlog)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        return sock

    def do_read(self) -> Any:
        """Accept the next socket, or pause if no file descriptor is left.

        Sockets wait in the kernel during the pause.
        """
        try:
            return super().do_read()
        except OSError as error:
            if self.is_fatal_error(error):
                raise
            self.stop_accepting()  # otherwise gevent calls this again at once, in a busy loop
            self._timer = self.loop.timer(PAUSE_SECONDS)
            self._timer.start(self._start_accepting_if_started)
            hint = "raise the limit of open files: ulimit -n, or LimitNOFILE in a systemd unit"
            warn = partial(self.log.warning, port=self.server_port)
            gevent.spawn(warn, "starved", reason=str(error), hint=hint)  # this runs in the hub, which must not block
            return None

    def do_handle(self, sock: Any, address: tuple[Any, ...]) -> None:
        host = address[0]
        self._remove(address[:2])  # a port may be reused before the greenlet of its last socket has ended
        if self._by_host[host] >= MAX_UNAUTHENTICATED_PER_ADDRESS:
            self._displace(host)
        elif len(self._unauthenticated) >= MAX_UNAUTHENTICATED:
            self._displace(max(self._by_host, key=self._by_host.__getitem__))
        self._unauthenticated[address[:2]] = sock
        self._by_host[host] += 1
        super().do_handle(sock, address)

    def _displace(self, host: str) -> None:
        """Close the oldest unauthenticated socket of an address.

        Otherwise idle sockets could lock out new ones of the same address.
        """
        oldest = next(address for address in self._unauthenticated if self._host_of(address) == host)
        sock = self._unauthenticated[oldest]
        self._remove(oldest)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # its greenlet then reads the end and closes it

    def do_close(self, sock: Any, address: tuple[Any, ...]) -> None:
        self._remove(address[:2])
        super().do_close(sock, address)

    def handle(self, sock: Any, address: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):  # a socket that breaks is not an error of the proxy
            super().handle(sock, address)

    def wrap_socket_and_handle(self, client_socket: Any, address: tuple[Any, ...]) -> None:
        """Do the TLS handshake within its deadline, then handle the socket.

        A handshake that fails is not logged, unless the client has sent an HTTP request in plain text.
        """
        wrap = partial(self.wrap_socket, do_handshake_on_connect=False, **self.ssl_args)
        with contextlib.suppress(OSError):
            client_socket.getpeername()  # if the peer is gone already, `wrap` would fail and leak the socket
            with wrap(client_socket) as secured:
                if address[:2] in self._unauthenticated:
                    self._unauthenticated[address[:2]] = secured
                try:
                    with gevent.Timeout(HEAD_SECONDS, TimeoutError):
                        secured.do_handshake()
                except ssl.SSLError as error:
                    if error.reason == "HTTP_REQUEST":
                        self.wait_refused(secured, environ_of(address), NO_PLAIN_HTTP)
                    return
                self.handle(secured, address)

    def _remove(self, address: tuple[Any, ...]) -> None:
        if self._unauthenticated.pop(address, None) is not None:
            self._uncount(self._host_of(address))
            self._environs.pop(address, None)

    def _host_of(self, address: tuple[Any, ...]) -> str:
        """Return the host that a socket counts for: its client's once that is known, before that the peer's."""
        environ = self._environs.get(address)
        host: str = address[0] if environ is None else environ["REMOTE_ADDR"]
        return host

    def _uncount(self, host: str) -> None:
        self._by_host[host] -= 1
        if not self._by_host[host]:
            del self._by_host[host]

    def _application(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        connection = environ.get("wsgi.websocket")
        if connection is not None:
            self._serve(connection, environ)
            return []
        response = self._answer(environ)
        if not isinstance(response, tuple):
            connection = environ[CONNECTION]()
            try:
                response(connection)
            finally:
                connection.shut()
            return []
        status, body, *more = response
        content = f"{body.rstrip()}\n".encode()
        start_response(status, [*headers_for(status, *more), ("Content-Length", str(len(content)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]
