"""Answers of the admin port: their headers, who may ask for what, and turns for others while a long one is made."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator, Mapping

import gevent
import pytest

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
    """What an Admin is given: it notes what it was asked."""

    def __init__(self) -> None:
        self.queries: list[Query] = []
        self.pieces: list[bytes] = [b"piece ", b"by ", b"piece"]

    def render(self, snapshot: Snapshot, query: Query) -> Rendering:
        self.queries.append(query)
        return "text/example", self._made()

    def answer(self, query: Query) -> HttpResponse:
        return "200 OK", query.get("symbol", "none")

    def _made(self) -> Iterator[bytes]:
        for piece in self.pieces:
            until = time.perf_counter() + SLICE_SECONDS
            while time.perf_counter() < until:
                pass
            yield piece


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def ask(parts: Parts) -> Iterator[Callable[..., tuple[int, str, Mapping[str, str]]]]:
    pages = Admin(
        ("127.0.0.1", 0),
        snapshot=snapshot,
        page=Home(),
        renderings={"/rendered": parts.render},
        taps=parts,
        token="let-me-in",
        hosts=(),
    )
    pages.start()

    def ask(path: str, token: str | None = "let-me-in", method: str = "GET") -> tuple[int, str, Mapping[str, str]]:
        connection = http.client.HTTPConnection(*pages.address, timeout=5)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode().rstrip("\n")
        connection.close()
        return answer.status, body, dict(answer.getheaders())

    yield ask
    pages.stop()


Ask = Callable[..., tuple[int, str, Mapping[str, str]]]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/rendered", "/tap", "/nothing"])
@pytest.mark.parametrize("token", ["let-me-in", "let-me-out", None])
def test_nothing_is_kept_guessed_or_framed(ask: Ask, path: str, token: str | None) -> None:
    _, _, headers = ask(path, token)
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    expected = Home.policy if path == "/" else EMPTY_POLICY
    assert headers["Content-Security-Policy"] == expected
    assert "Server" not in headers


def test_the_page_itself_needs_no_token_and_says_whether_the_rest_does(ask: Ask) -> None:
    assert ask("/", None)[:2] == (200, "token True")
    for path in ("/healthz", "/readyz", "/rendered", "/tap", "/nothing"):
        status, text, headers = ask(path, None)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "let-me" not in text
        assert ask(path)[0] != 401


def test_a_rendering_is_given_its_query(ask: Ask, parts: Parts) -> None:
    assert ask("/rendered?since=7&x=%26")[:2] == (200, "piece by piece")
    assert parts.queries == [{"since": "7", "x": "&"}]
    assert ask("/tap?symbol=BRK.B")[1] == "BRK.B"


@pytest.mark.parametrize("query", ["&".join(f"a{n}=1" for n in range(100)), "=", "&&&", "%ff=%00", "a=1;b=2"])
def test_a_query_that_is_odd_is_nobodys_error(ask: Ask, query: str) -> None:
    assert ask(f"/rendered?{query}")[0] == 200


def test_head_has_no_body(ask: Ask) -> None:
    status, body, headers = ask("/rendered", method="HEAD")
    assert (status, body) == (200, "")
    assert headers["Content-Type"] == "text/example"
    assert headers["Content-Length"] == ask("/rendered")[2]["Content-Length"] > "0"  # RFC 9110 §8.6


def test_what_there_is_is_told(ask: Ask) -> None:
    status, text, _ = ask("/nothing")
    assert (status, text) == (404, "There is /, /healthz, /readyz, /rendered and /tap.")


def test_others_get_their_turn_while_a_long_answer_is_made(ask: Ask, parts: Parts) -> None:
    """A timer is never kept waiting for much longer than one turn, however many pieces there are."""
    parts.pieces = [b"x"] * 300
    waits: list[float] = []
    over = False

    def wait() -> None:
        while not over:
            began = time.perf_counter()
            gevent.sleep(0.001)
            waits.append(time.perf_counter() - began)

    waiting = gevent.spawn(wait)
    assert ask("/rendered")[0] == 200
    over = True
    waiting.join()
    assert len(waits) > 50  # of about 300 turns; with none of them it would be one
