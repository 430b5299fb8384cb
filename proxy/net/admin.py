"""The admin port: health, readiness and metrics, each rendered from one snapshot. No page shows a secret."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection

from proxy.net.listener import Answer, Environ, Listener, is_local_name
from proxy.snapshot import Snapshot

Page = Callable[[Snapshot], Answer]


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
        pages: dict[str, Page],
        token: str | None,
        hosts: Collection[str],
    ) -> None:
        self._snapshot = snapshot
        self._pages = {"/healthz": healthz, "/readyz": readyz, **pages}
        self.permit(token, hosts)
        nothing: Answer = ("404 Not Found", "No WebSocket here.")
        self._listener = Listener(address, serve=lambda *_: None, refuse=lambda _: nothing, answer=self._answer)

    def __repr__(self) -> str:
        return f"<Admin {self.address[0]}:{self.address[1]}>"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; the real port, once it has started."""
        host, port = self._listener.address[:2]
        return host, port

    def permit(self, token: str | None, hosts: Collection[str]) -> None:
        """Whom it answers from now on."""
        self._bearer = None if token is None else f"Bearer {token}".encode()
        self._hosts = frozenset(hosts)

    def start(self) -> None:
        self._listener.start()

    def stop(self) -> None:
        self._listener.stop(timeout=1)

    def _answer(self, environ: Environ) -> Answer:
        if not is_local_name(environ.get("HTTP_HOST", ""), self._hosts):
            return "403 Forbidden", "This host name is not listed in admin.hosts."
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        if self._bearer is not None and not hmac.compare_digest(given, self._bearer):
            return "401 Unauthorized", "This address wants the admin token, as `Authorization: Bearer …`."
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "Everything here is read with GET."
        page = self._pages.get(environ["PATH_INFO"])
        if page is None:
            return "404 Not Found", f"There is {', '.join(self._pages)}."
        return page(self._snapshot())


def healthz(snapshot: Snapshot) -> Answer:
    """The process is alive."""
    return "200 OK", "ok"


def readyz(snapshot: Snapshot) -> Answer:
    """Every feed that somebody wants is live; else which is not, and why."""
    if snapshot.state != "serving":
        return "503 Service Unavailable", snapshot.state
    waiting = [f"{feed.account}/{feed.feed} {feed.phase} {feed.trouble}".rstrip() for feed in snapshot.unready]
    return ("503 Service Unavailable", "\n".join(waiting)) if waiting else ("200 OK", "ready")
