"""What a bug of our own costs: the part that has it, for a moment, and nobody else anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxy.alpaca.client_protocol import Phase
from proxy.downstream import client_session as conversation
from proxy.downstream import outbox
from tests.harness import Client, Harness, quote, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  witness: {key: witness, secret: witness, allow: {iex: "*", crypto: "*"}}
  unlucky: {key: unlucky, secret: unlucky, max_connections: 1, allow: {iex: "*"}}
"""


class Bug(Exception):
    """Nobody foresaw it."""


def once(monkeypatch: pytest.MonkeyPatch, part: Any, name: str) -> list[str]:
    """The next call fails, and those after it do not. Says when it has happened."""
    works = getattr(part, name)
    happened: list[str] = []

    def fail(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(part, name, works)
        happened.append(name)
        raise Bug(name)

    monkeypatch.setattr(part, name, fail)
    return happened


@pytest.fixture
def proxy(start: Start) -> Harness:
    return start(CLIENTS)


@pytest.fixture
def witness(proxy: Harness) -> Client:
    client = proxy.client("witness")
    client.subscribe(trades=["AAPL"])
    return client


def session_of(proxy: Harness, name: str) -> Any:
    [found] = [c for c in proxy.gateway.server.sessions if c.name == name]
    return found


def reported(proxy: Harness) -> None:
    """The bug is in the log as an error, once; then the harness need not complain of it."""
    assert len(proxy.bugs) == 1
    proxy.bugs.clear()


def test_in_a_session(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears 500, is closed 1011 and learns nothing of how; the next connection of the client works."""
    unlucky = proxy.client("unlucky")
    with proxy.undisturbed(witness):
        once(monkeypatch, session_of(proxy, "unlucky").session, "receive")
        assert unlucky.subscribe() == {"T": "error", "code": 500, "msg": "internal error"}
        assert unlucky.closed() == (1011, "internal error")
        assert proxy.client("unlucky").subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    reported(proxy)


def test_in_a_writer(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greenlet that sends to a client dies: what cannot be served any more is closed."""
    monkeypatch.setattr(conversation, "CLOSE_FLUSH_SECONDS", 0.1)
    unlucky = proxy.client("unlucky")
    with proxy.undisturbed(witness):
        once(monkeypatch, session_of(proxy, "unlucky").outbox, "_gather")
        unlucky.send_json({"action": "subscribe"})
        unlucky.closed()
        assert proxy.client("unlucky").subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    reported(proxy)


def test_in_the_router(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the feed's connection, which is opened again; other feeds do not notice, and no session ends."""
    other = proxy.client("witness", "/v1beta3/crypto/us")
    other.subscribe(trades=["BTC/USD"])
    with proxy.undisturbed(other, feed="crypto", symbol="BTC/USD"):
        once(monkeypatch, proxy.upstream().router, "take")
        proxy.publish("iex", "AAPL", 1)
        wait_for(lambda: proxy.simulator.opened("iex") == 2)
        wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    last = proxy.publish("iex", "AAPL", 10)
    assert witness.numbers("AAPL", last) == list(range(last - 9, last + 1))
    reported(proxy)


def test_in_an_upstream_greenlet(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies where nothing catches it; as long as somebody wants the feed, there is another at the next tick."""
    once(monkeypatch, proxy.upstream()._backoff, "next")
    proxy.simulator.drop("iex", "rst")
    wait_for(lambda: proxy.upstream().phase is Phase.LIVE and proxy.simulator.opened("iex") == 2)
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    with proxy.undisturbed(witness):
        proxy.client("unlucky").subscribe(trades=["AAPL"])
    reported(proxy)


def test_in_what_is_asked_of_alpaca(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """When somebody has left, or Alpaca has confirmed: it is asked at the next tick."""
    unlucky = proxy.client("unlucky")
    unlucky.subscribe(trades=["AAPL", "TSLA"])
    with proxy.undisturbed(witness):
        happened = once(monkeypatch, proxy.upstream().reconciler, "next_request")
        unlucky.ws.close()
        wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    assert happened
    reported(proxy)


def test_in_the_tick_of_a_session(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the others goes on: whoever does not log in is hung up on."""
    monkeypatch.setattr(conversation, "LOGIN_SECONDS", 0.1)
    unauthenticated = [proxy.dial() for _ in range(8)]
    proxy.client("unlucky")

    def fail(now: float) -> None:
        raise Bug

    monkeypatch.setattr(session_of(proxy, "unlucky"), "tick", fail)
    with proxy.undisturbed(witness):
        for stranger in unauthenticated:
            assert stranger.closed() == (1008, "auth timeout")
    monkeypatch.undo()
    assert proxy.bugs
    proxy.bugs.clear()


def test_in_conflation(proxy: Harness, witness: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out for that client, whose outbox has a bound; nobody else hears less for it."""
    monkeypatch.setattr(outbox, "CONFLATE_BYTES", 1024)
    unlucky = proxy.wire(buffer=4096).log_in("unlucky", quotes=["FAT"])
    box = session_of(proxy, "unlucky").outbox

    def fail(payloads: Any) -> Any:
        raise Bug

    box.conflate = fail
    with proxy.undisturbed(witness):
        for number in range(400):
            proxy.simulator.publish("iex", [quote("FAT", n=number, pad="x" * 20_000)])
        wait_for(lambda: proxy.bugs)
    assert proxy.simulator.opened("iex") == 1
    unlucky.crash()
    wait_for(lambda: len(proxy.gateway.server.sessions) == 1)
    proxy.bugs.clear()
