"""The admin port: health, readiness, the status page and what it shows, each from one snapshot. Nothing shows a secret.

The page itself is the same for everybody and needs no token; whatever it shows it asks for with the token. A long
rendering is made piece by piece, with turns for the market data in between.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol
from urllib.parse import parse_qsl

from proxy.observe.logs import Log
from proxy.observe.snapshot import Snapshot
from proxy.transport.listener import Environ, Header, HttpResponse, Listener
from proxy.transport.origins import may_ask
from proxy.transport.time_slice import TimeSlice

QUERY_FIELDS = 8

Query = Mapping[str, str]
Rendering = tuple[str, Iterable[bytes]]  # its type, and its pieces
Render = Callable[[Snapshot, Query], Rendering]

PLAIN = "text/plain; charset=utf-8"
EMPTY_POLICY = "default-src 'none'; frame-ancestors 'none'"  # a policy for what is no page


class HomePage(Protocol):
    """The status page: its HTML, and the Content-Security-Policy that names its own script and style."""

    policy: str

    def html(self, token_wanted: bool) -> str: ...


class Tapping(Protocol):
    """Answers `/tap`."""

    def answer(self, query: Query) -> HttpResponse: ...


class Admin:
    """Serves pages, by path. `token` is demanded as a bearer token, if there is one; `hosts` are the Host names that
    are accepted besides IP literals and localhost, so that no web page can reach in by rebinding a name of its own.

    Raises OSError from `start` if the address cannot be had.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        snapshot: Callable[[], Snapshot],
        page: HomePage,
        renderings: Mapping[str, Render],
        taps: Tapping,
        token: str | None,
        hosts: Collection[str],
    ) -> None:
        self._snapshot = snapshot
        self._page = page
        self._renderings = renderings
        self._taps = taps
        self.permit(token, hosts)
        nothing: HttpResponse = ("404 Not Found", "No WebSocket here.")
        self._listener = Listener(
            address, serve=lambda *_: None, refuse=lambda _: nothing, answer=self._answer, log=Log("listener")
        )

    def __repr__(self) -> str:
        return f"<Admin {self.address[0]}:{self.address[1]}>"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; the real port, once it has started."""
        host, port = self._listener.address[:2]
        return host, port

    def permit(self, token: str | None, hosts: Collection[str]) -> None:
        """Whom it answers from now on."""
        self._token = None if token is None else token.encode()
        self._hosts = frozenset(hosts)

    def start(self) -> None:
        self._listener.start()

    def stop(self) -> None:
        self._listener.stop(timeout=1)

    def _answer(self, environ: Environ) -> HttpResponse:
        status, body, *more = self._found(environ)
        kind = more[0] if more else PLAIN
        assert isinstance(kind, str)
        return status, body, kind, _headers(status, self._page.policy if kind.startswith("text/html") else EMPTY_POLICY)

    def _found(self, environ: Environ) -> HttpResponse:
        if not may_ask(environ.get("HTTP_HOST", ""), self._hosts):
            return "403 Forbidden", "This host name is not listed in admin.hosts."
        path = environ["PATH_INFO"]
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace").partition(b" ")
        known = self._token is None or (scheme.lower() == b"bearer" and hmac.compare_digest(given, self._token))
        if path != "/" and not known:
            return "401 Unauthorized", "This address wants the admin token, as `Authorization: Bearer …`."
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "Everything here is read with GET."
        match path:
            case "/":
                return "200 OK", self._page.html(self._token is not None), "text/html; charset=utf-8"
            case "/healthz":
                return "200 OK", "ok"
            case "/readyz":
                return readyz(self._snapshot())
            case "/tap":
                return self._taps.answer(_query(environ))
        render = self._renderings.get(path)
        if render is None:
            return "404 Not Found", f"There is /, /healthz, /readyz, {', '.join(self._renderings)} and /tap."
        kind, pieces = render(self._snapshot(), _query(environ))
        return "200 OK", _in_turns(pieces), kind


def readyz(snapshot: Snapshot) -> HttpResponse:
    """Every feed that somebody wants is live; else which is not, and why."""
    if snapshot.ready:
        return "200 OK", "ready"
    waiting = [f"{feed.account}/{feed.feed} {feed.phase} {feed.last_error}".rstrip() for feed in snapshot.unready]
    return "503 Service Unavailable", "\n".join(waiting) if snapshot.state == "serving" else snapshot.state


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
    except ValueError:  # more fields than any page here has
        return {}


def _in_turns(pieces: Iterable[bytes]) -> str:
    """The pieces as one text; whatever else the process has to do gets its turn in between."""
    parts = []
    turn = TimeSlice()
    for piece in pieces:
        parts.append(piece)
        if turn.over():
            turn.yield_to_hub()
    return b"".join(parts).decode()
