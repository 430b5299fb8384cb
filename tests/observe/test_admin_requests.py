"""Answers of the admin port: headers, authorization, and yielding during a long rendering."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gevent
import pytest

from proxy.config import model as configuration
from proxy.observe.admin import EMPTY_POLICY, Admin, Query, Rendering
from proxy.observe.snapshot import Snapshot
from proxy.transport.listener import HttpResponse
from proxy.transport.time_slice import SLICE_SECONDS
from tests.snapshots import snapshot


class Home:
    policy = "script-src 'sha256-example'"

    def html(self, token_wanted: bool) -> str:
        return f"token {token_wanted}"


class Parts:
    """A rendering and a tap for an Admin; records the queries."""

    def __init__(self) -> None:
        self.queries: list[Query] = []
        self.pieces: list[bytes] = [b"piece ", b"by ", b"piece"]

    def render(self, snapshot: Snapshot, query: Query) -> Rendering:
        self.queries.append(query)
        return "text/example", self._render()

    def answer(self, query: Query) -> HttpResponse:
        return "200 OK", query.get("symbol", "none")

    def _render(self) -> Iterator[bytes]:
        for piece in self.pieces:
            until = time.perf_counter() + SLICE_SECONDS
            while time.perf_counter() < until:
                pass
            yield piece


CONFIG = """
admin: {port: 0, token: let-me-in}
accounts: {main: {key: account, secret: "of the account"}}
clients: {alpha: {key: alpha, secret: "of the client"}}
"""


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def fetch(parts: Parts) -> Iterator[Callable[..., tuple[int, str, Mapping[str, str]]]]:
    admin = Admin(
        configuration.parse(CONFIG, "proxy.yaml", {}, Path()),
        snapshot=snapshot,
        page=Home(),
        renderings={"/rendered": parts.render},
        taps=parts,
    )
    admin.start()

    def fetch(path: str, token: str | None = "let-me-in", method: str = "GET") -> tuple[int, str, Mapping[str, str]]:
        connection = http.client.HTTPConnection(*admin.address, timeout=5)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode().rstrip("\n")
        connection.close()
        return answer.status, body, dict(answer.getheaders())

    yield fetch
    admin.stop()


Fetch = Callable[..., tuple[int, str, Mapping[str, str]]]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/rendered", "/tap", "/nothing"])
@pytest.mark.parametrize("token", ["let-me-in", "let-me-out", None])
def test_security_headers(fetch: Fetch, path: str, token: str | None) -> None:
    _, _, headers = fetch(path, token)
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    expected = Home.policy if path == "/" else EMPTY_POLICY
    assert headers["Content-Security-Policy"] == expected
    assert "Server" not in headers


def test_only_the_page_needs_no_token(fetch: Fetch) -> None:
    assert fetch("/", None)[:2] == (200, "token True")
    for path in ("/healthz", "/readyz", "/rendered", "/tap", "/nothing"):
        status, text, headers = fetch(path, None)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "let-me" not in text
        assert fetch(path)[0] != 401


def test_the_query_is_passed_to_renderings_and_taps(fetch: Fetch, parts: Parts) -> None:
    assert fetch("/rendered?since=7&x=%26")[:2] == (200, "piece by piece")
    assert parts.queries == [{"since": "7", "x": "&"}]
    assert fetch("/tap?symbol=BRK.B")[1] == "BRK.B"


@pytest.mark.parametrize("query", ["&".join(f"a{n}=1" for n in range(100)), "=", "&&&", "%ff=%00", "a=1;b=2"])
def test_malformed_queries_are_ignored(fetch: Fetch, query: str) -> None:
    assert fetch(f"/rendered?{query}")[0] == 200


def test_head_has_no_body(fetch: Fetch) -> None:
    status, body, headers = fetch("/rendered", method="HEAD")
    assert (status, body) == (200, "")
    assert headers["Content-Type"] == "text/example"
    assert headers["Content-Length"] == fetch("/rendered")[2]["Content-Length"] > "0"  # RFC 9110 §8.6


def test_an_unknown_path_lists_the_paths(fetch: Fetch) -> None:
    status, text, _ = fetch("/nothing")
    assert (status, text) == (404, "The paths are /, /healthz, /readyz, /rendered and /tap.")


def test_a_long_rendering_yields(fetch: Fetch, parts: Parts) -> None:
    """Another greenlet runs about once per time slice, however many pieces there are."""
    parts.pieces = [b"x"] * 300
    waits: list[float] = []
    over = False

    def wait() -> None:
        while not over:
            began = time.perf_counter()
            gevent.sleep(0.001)
            waits.append(time.perf_counter() - began)

    waiting = gevent.spawn(wait)
    assert fetch("/rendered")[0] == 200
    over = True
    waiting.join()
    assert len(waits) > 50  # of about 300 time slices; without yielding it would be one
