"""An internal error affects one part of the proxy briefly, and no other session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxy.alpaca.client_protocol import Phase
from proxy.downstream import client_session
from proxy.downstream import session as session_module
from proxy.routing.conflation import Backlog
from tests.harness import Client, Harness, quote, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  witness: {key: witness, secret: witness, allow: {iex: "*", crypto: "*"}}
  unlucky: {key: unlucky, secret: unlucky, max_connections: 1, when_slow: conflate, allow: {iex: "*"}}
"""


class InjectedError(Exception):
    """An exception that the proxy has no handler for."""


def fail_once(monkeypatch: pytest.MonkeyPatch, part: Any, name: str) -> list[str]:
    """Make the next call of a method raise, and only that one.

    The list is not empty afterwards.
    """
    original = getattr(part, name)
    calls: list[str] = []

    def fail(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(part, name, original)
        calls.append(name)
        raise InjectedError(name)

    monkeypatch.setattr(part, name, fail)
    return calls


@pytest.fixture
def proxy(start: Start) -> Harness:
    return start(CLIENTS)


@pytest.fixture
def witness(proxy: Harness) -> Client:
    client = proxy.client("witness")
    client.subscribe(trades=["AAPL"])
    return client


def session_of(proxy: Harness, name: str) -> Any:
    [session] = [c for c in proxy.gateway.server.sessions if c.name == name]
    return session


def assert_logged_once(proxy: Harness) -> None:
    """The error is in the log exactly once.

    Clear it, so that the harness does not fail on it.
    """
    assert len(proxy.bugs) == 1
    proxy.bugs.clear()


def test_in_a_session(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session gets 500 without details and is closed with 1011.

    The client can connect again.
    """
    unlucky = proxy.client("unlucky")
    with proxy.undisturbed(witness):
        fail_once(monkeypatch, session_of(proxy, "unlucky").protocol, "receive")
        assert unlucky.subscribe() == {"T": "error", "code": 500, "msg": "internal error"}
        assert unlucky.closed() == (1011, "internal error")
        assert proxy.client("unlucky").subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    assert_logged_once(proxy)


def test_in_a_writer(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greenlet that sends to a client dies: the session is closed."""
    monkeypatch.setattr(session_module, "CLOSE_FLUSH_SECONDS", 0.1)
    unlucky = proxy.client("unlucky")
    with proxy.undisturbed(witness):
        fail_once(monkeypatch, session_of(proxy, "unlucky").outbox, "_gather")
        unlucky.send_json({"action": "subscribe"})
        unlucky.closed()
        assert proxy.client("unlucky").subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    assert_logged_once(proxy)


def test_in_the_router(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed's connection is replaced.

    Other feeds are not affected, and no session ends.
    """
    other = proxy.client("witness", "/v1beta3/crypto/us")
    other.subscribe(trades=["BTC/USD"])
    with proxy.undisturbed(other, feed="crypto", symbol="BTC/USD"):
        fail_once(monkeypatch, proxy.upstream().router, "take")
        proxy.publish("iex", "AAPL", 1)
        wait_for(lambda: proxy.simulator.opened("iex") == 2)
        wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    last = proxy.publish("iex", "AAPL", 10)
    assert witness.numbers("AAPL", last) == list(range(last - 9, last + 1))
    assert_logged_once(proxy)


def test_in_an_upstream_greenlet(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greenlet dies; the next tick starts another if a session needs the feed."""
    fail_once(monkeypatch, proxy.upstream()._backoff, "next")
    proxy.simulator.drop("iex", "rst")
    wait_for(lambda: proxy.upstream().phase is Phase.LIVE and proxy.simulator.opened("iex") == 2)
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    with proxy.undisturbed(witness):
        proxy.client("unlucky").subscribe(trades=["AAPL"])
    assert_logged_once(proxy)


def test_in_the_reconciler(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request that fails after a session has left is sent at the next tick."""
    unlucky = proxy.client("unlucky")
    unlucky.subscribe(trades=["AAPL", "TSLA"])
    with proxy.undisturbed(witness):
        calls = fail_once(monkeypatch, proxy.upstream().reconciler, "next_request")
        unlucky.ws.close()
        wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    assert calls
    assert_logged_once(proxy)


def test_in_the_tick_of_a_session(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ticks of other sessions go on: clients that do not log in are disconnected."""
    monkeypatch.setattr(client_session, "LOGIN_SECONDS", 0.1)
    unauthenticated = [proxy.dial() for _ in range(8)]
    proxy.client("unlucky")

    def fail(now: float) -> None:
        raise InjectedError

    monkeypatch.setattr(session_of(proxy, "unlucky"), "tick", fail)
    with proxy.undisturbed(witness):
        for client in unauthenticated:
            assert client.closed() == (1008, "auth timeout")
    monkeypatch.undo()
    assert proxy.bugs
    proxy.bugs.clear()


def test_in_conflation(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is conflated for that client, whose outbox is bounded.

    Others receive every message.
    """
    unlucky = proxy.wire(buffer=4096).log_in("unlucky", quotes=["FAT"])

    def fail(backlog: Backlog, payload: bytes) -> int:
        raise InjectedError

    monkeypatch.setattr(Backlog, "add", fail)
    with proxy.undisturbed(witness):
        for number in range(400):
            proxy.simulator.publish("iex", [quote("FAT", n=number, pad="x" * 20_000)])
        wait_for(lambda: proxy.bugs)
    assert proxy.simulator.opened("iex") == 1
    unlucky.crash()
    wait_for(lambda: len(proxy.gateway.server.sessions) == 1)
    proxy.bugs.clear()
