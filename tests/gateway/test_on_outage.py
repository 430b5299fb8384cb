"""`on_outage: close`: sessions end with the connection of their feed, as they would at Alpaca."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import gevent
import pytest

from proxy.alpaca.client_protocol import Phase
from proxy.routing import reconciler
from proxy.upstream import silence, supervisor
from tests.gateway.test_reload import changed
from tests.harness import Client, Harness, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  closer: {key: closer, secret: closer, on_outage: close, max_connections: 2, allow: {iex: "*", crypto: "*"}}
  stayer: {key: stayer, secret: stayer, on_outage: stay, allow: {iex: "*"}}
  default: {key: default, secret: default, allow: {iex: "*"}}
"""
ON_STREAM = """
  closer: {key: closer, secret: closer, on_outage: close, allow: {iex: "*", trading: "*"}}
  stayer: {key: stayer, secret: stayer, allow: {iex: "*", trading: "*"}}
"""
LOST = (1012, "the connection to iex was lost")


def subscribed(proxy: Harness, key: str) -> Client:
    client = proxy.client(key)
    assert client.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    return client


def drop(proxy: Harness, feed: str = "iex") -> None:
    """End a connection that is live, and wait until it is live again."""
    connects = proxy.upstream(feed).connects
    proxy.simulator.drop(feed, "fin")
    wait_for(lambda: proxy.upstream(feed).connects == connects + 1)


def logged(proxy: Harness) -> list[Mapping[str, str]]:
    """The fields of the log events of sessions that are over."""
    return [event.fields for event in proxy.gateway.snapshot().events if event.name == "session.closed"]


def test_a_lost_connection_closes_the_sessions_of_the_client(start: Start) -> None:
    """Those without a topic too; what came before is delivered. Other clients and feeds notice nothing."""
    proxy = start(CLIENTS)
    closer, stayer, default = (subscribed(proxy, name) for name in ("closer", "stayer", "default"))
    idle, crypto = proxy.client("closer"), proxy.client("closer", "/v1beta3/crypto/us")
    crypto.subscribe(trades=["BTC/USD"])
    last = proxy.publish("iex", "AAPL", 5)
    stayer.numbers("AAPL", last)
    drop(proxy)
    assert closer.closed() == idle.closed() == LOST
    assert [message["i"] for message in closer.data] == [1, 2, 3, 4, 5]
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    last = proxy.publish("iex", "AAPL", 5)
    for client in (stayer, default):
        assert client.numbers("AAPL", last) == [*range(1, last + 1)]
    with proxy.undisturbed(crypto, feed="crypto", symbol="BTC/USD"):
        pass
    wait_for(lambda: len(logged(proxy)) == 2)
    assert [(fields["client"], fields["reason"]) for fields in logged(proxy)] == [("closer", LOST[1])] * 2


def test_each_loss_closes_a_session_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """During the outage the client may log in again at once, and stays, whatever attempts fail."""
    monkeypatch.setattr(reconciler, "ACK_SECONDS", 0.05)
    proxy = start(CLIENTS)
    first, second = subscribed(proxy, "closer"), subscribed(proxy, "closer")  # as many as the client may have
    wait_for(lambda: proxy.upstream().phase is Phase.LIVE)
    proxy.simulator.refuse_upgrade("iex", 500)
    proxy.simulator.drop("iex", "rst")
    assert first.closed() == second.closed() == LOST
    again = subscribed(proxy, "closer")
    attempts = len(proxy.simulator.attempts("iex"))
    wait_for(lambda: len(proxy.simulator.attempts("iex")) > attempts + 1)
    proxy.simulator.accept("iex")
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    assert again.numbers("AAPL", proxy.publish("iex", "AAPL", 3)) == [1, 2, 3]
    drop(proxy)
    assert again.closed() == LOST


def test_silence_is_a_loss(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "LEAST_OBSERVED_SECONDS", 0.05)
    proxy = start(CLIENTS)
    closer, stayer = subscribed(proxy, "closer"), subscribed(proxy, "stayer")
    for _ in range(10):
        stayer.numbers("AAPL", proxy.publish("iex", "AAPL", 1))
        gevent.sleep(0.02)
    proxy.upstream()._silence.limit = 0.1
    assert closer.closed() == LOST
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    assert stayer.numbers("AAPL", proxy.publish("iex", "AAPL", 1))
    assert proxy.upstream().silences == 1


def test_a_changed_account_is_a_loss(start: Start) -> None:
    proxy = start(CLIENTS, keys={"key": "secret", "key2": "secret2"})
    closer, stayer = subscribed(proxy, "closer"), subscribed(proxy, "stayer")
    proxy.gateway.reload(changed(proxy, "key: key, secret: secret", "key: key2, secret: secret2", clients=CLIENTS))
    assert closer.closed() == LOST
    wait_for(lambda: proxy.upstream().connects == 2 and proxy.simulator.subscribed("iex"))
    assert stayer.numbers("AAPL", proxy.publish("iex", "AAPL", 1)) == [1]


def test_an_idle_close_is_no_loss(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "IDLE_SECONDS", 0.05)
    proxy = start(CLIENTS)
    closer = subscribed(proxy, "closer")
    assert closer.unsubscribe(trades=["AAPL"]) == {}
    wait_for(lambda: proxy.upstream().phase is Phase.IDLE)
    assert closer.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    assert closer.numbers("AAPL", proxy.publish("iex", "AAPL", 1)) == [1]
    drop(proxy)
    assert closer.closed() == LOST


def test_a_connection_that_is_lost_while_nothing_is_wanted(start: Start) -> None:
    """It is kept open for a while then."""
    proxy = start(CLIENTS)
    closer = subscribed(proxy, "closer")
    assert closer.unsubscribe(trades=["AAPL"]) == {}
    wait_for(lambda: not proxy.requests())
    proxy.simulator.drop("iex", "fin")
    assert closer.closed() == LOST


def test_a_session_with_legacy_names_belongs_to_both_feeds(start: Start) -> None:
    proxy = start(ON_STREAM)
    both, orders, names, stayer = (proxy.client(key, "/stream") for key in ("closer", "closer", "closer", "stayer"))
    assert both.listen("T.AAPL", "trade_updates") == {"streams": ["T.AAPL", "trade_updates"]}
    assert orders.listen("trade_updates") == {"streams": ["trade_updates"]}
    assert names.listen("T.AAPL") == {"streams": ["T.AAPL"]}
    assert stayer.listen("T.AAPL", "trade_updates") == {"streams": ["T.AAPL", "trade_updates"]}
    drop(proxy)
    assert both.closed() == names.closed() == LOST
    assert orders.silent()
    names = proxy.client("closer", "/stream")
    assert names.listen("T.AAPL") == {"streams": ["T.AAPL"]}
    drop(proxy, "trading")
    assert orders.closed() == names.closed() == (1012, "the connection to trading was lost")
    assert stayer.silent()


@pytest.mark.parametrize("account", ["key: key2, secret: secret2", "key: key, secret: secret"])
def test_a_reload_applies_it_to_open_sessions(start: Start, account: str) -> None:
    """To a loss that comes with the same reload as well."""
    proxy = start(CLIENTS, keys={"key": "secret", "key2": "secret2"})
    closer, stayer = subscribed(proxy, "closer"), subscribed(proxy, "stayer")
    swapped = CLIENTS.replace("on_outage: close", "on_outage: none").replace("on_outage: stay", "on_outage: close")
    swapped = swapped.replace("on_outage: none", "on_outage: stay")
    plan = proxy.gateway.reload(changed(proxy, "key: key, secret: secret", account, clients=swapped))
    assert plan.changed == ("closer", "stayer")
    if not plan.accounts:
        assert closer.silent()
        assert stayer.silent()
        drop(proxy)
    assert stayer.closed() == LOST
    assert closer.silent()
