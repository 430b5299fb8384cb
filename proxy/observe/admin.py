"""The admin port: health, readiness, metrics, the status page and its data. No answer contains a secret.

Each answer is rendered from one snapshot. The status page itself contains no data and needs no token; its requests for
data carry the token. A long rendering is made in pieces and yields between them, so that it does not delay market data.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol
from urllib.parse import parse_qsl

from proxy.config.model import Config
from proxy.observe.logs import Log
from proxy.observe.snapshot import Snapshot
from proxy.transport.listener import Environ, Header, HttpResponse, Listener
from proxy.transport.origins import may_ask
from proxy.transport.time_slice import TimeSlice

QUERY_FIELDS = 8

Query = Mapping[str, str]
Rendering = tuple[str, Iterable[bytes]]  # content type, and the body in pieces
Render = Callable[[Snapshot, Query], Rendering]

PLAIN = "text/plain; charset=utf-8"
EMPTY_POLICY = "default-src 'none'; frame-ancestors 'none'"  # for answers other than the page


class HomePage(Protocol):
    """The status page: its HTML, and the Content-Security-Policy that allows its own script and style."""

    policy: str

    def html(self, token_wanted: bool) -> str: ...


class Tapping(Protocol):
    """Answers `/tap`."""

    def answer(self, query: Query) -> HttpResponse: ...


class Admin:
    """HTTP server of the admin port.

    A configured token is required as a bearer token. Host names are accepted if they are configured, IP literals or
    localhost; other names are refused as a defence against DNS rebinding by a web page.

    `start` raises OSError if the address cannot be bound.
    """

    def __init__(
        self,
        config: Config,
        *,
        snapshot: Callable[[], Snapshot],
        page: HomePage,
        renderings: Mapping[str, Render],
        taps: Tapping,
    ) -> None:
        self._snapshot = snapshot
        self._page = page
        self._renderings = renderings
        self._taps = taps
        self.configure(config)
        no_websocket: HttpResponse = ("404 Not Found", "The admin port does not serve WebSockets.")
        address = config.admin.host, config.admin.port
        self._listener = Listener(
            address, serve=lambda *_: None, refuse=lambda _: no_websocket, answer=self._answer, log=Log("listener")
        )

    def __repr__(self) -> str:
        return f"<Admin {self.address[0]}:{self.address[1]}>"

    @property
    def address(self) -> tuple[str, int]:
        """The address that it listens on; after `start`, with the actual port."""
        host, port = self._listener.address[:2]
        return host, port

    def configure(self, config: Config) -> None:
        """Apply a configuration, except its address."""
        token = config.admin.token
        self._token = None if token is None else token.reveal().encode()
        self._hosts = frozenset(config.admin.hosts)

    def start(self) -> None:
        self._listener.start()

    def stop(self) -> None:
        self._listener.stop(timeout=1)

    def _answer(self, environ: Environ) -> HttpResponse:
        status, body, *rest = self._route(environ)
        content_type = rest[0] if rest else PLAIN
        assert isinstance(content_type, str)
        policy = self._page.policy if content_type.startswith("text/html") else EMPTY_POLICY
        return status, body, content_type, _headers(status, policy)

    def _route(self, environ: Environ) -> HttpResponse:
        if not may_ask(environ.get("HTTP_HOST", ""), self._hosts):
            return "403 Forbidden", "This host name is not listed in admin.hosts."
        path = environ["PATH_INFO"]
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace").partition(b" ")
        authorized = self._token is None or (scheme.lower() == b"bearer" and hmac.compare_digest(given, self._token))
        if path != "/" and not authorized:
            return "401 Unauthorized", "This address requires the admin token, as `Authorization: Bearer …`."
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "The admin port supports only GET and HEAD."
        match path:
            case "/":
                return "200 OK", self._page.html(self._token is not None), "text/html; charset=utf-8"
            case "/healthz":
                return "200 OK", "ok"
            case "/readyz":
                return readyz(self._snapshot())
            case "/tap" if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
                return "403 Forbidden", "A tap is not opened for a page of another site."
            case "/tap":
                return self._taps.answer(_query(environ))
        render = self._renderings.get(path)
        if render is None:
            return "404 Not Found", f"The paths are /, /healthz, /readyz, {', '.join(self._renderings)} and /tap."
        content_type, pieces = render(self._snapshot(), _query(environ))
        return "200 OK", _joined(pieces), content_type


def readyz(snapshot: Snapshot) -> HttpResponse:
    """200 if the proxy serves and every needed feed is live; otherwise 503 and the feeds that are not."""
    if snapshot.ready:
        return "200 OK", "ready"
    unready = [f"{feed.account}/{feed.feed} {feed.phase} {feed.last_error}".rstrip() for feed in snapshot.unready]
    return "503 Service Unavailable", "\n".join(unready) if snapshot.state == "serving" else snapshot.state


def _headers(status: str, policy: str) -> list[Header]:
    headers = [
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", policy),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return headers if not status.startswith("401") else [*headers, ("WWW-Authenticate", "Bearer")]


def _query(environ: Environ) -> Query:
    try:
        return dict(parse_qsl(environ.get("QUERY_STRING", ""), max_num_fields=QUERY_FIELDS))
    except ValueError:  # more than QUERY_FIELDS fields
        return {}


def _joined(pieces: Iterable[bytes]) -> str:
    """Join the pieces to one text, yielding to the hub whenever the time slice is over."""
    parts = []
    time_slice = TimeSlice()
    for piece in pieces:
        parts.append(piece)
        time_slice.pause()
    return b"".join(parts).decode()
