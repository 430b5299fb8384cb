"""A reload while data flows affects only the clients and accounts of its plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from proxy.alpaca.client_protocol import Phase
from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.simulator import AccountPlan, Simulator
from proxy.upstream.alpaca_connection import AlpacaConnection
from tests.harness import ACCOUNT, CLOSE, CONFIG, CONNECTED, SECONDS, STAMP, Harness, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  witness: {key: witness, secret: witness, allow: {iex: "*"}}
  narrowed: {key: narrowed, secret: narrowed, allow: {iex: {trades: [AAPL, MSFT]}}}
  removed: {key: removed, secret: removed, allow: {iex: "*"}}
"""


MOVING = """
  witness: {account: main, key: witness, secret: witness, allow: {iex: "*"}}
  mover: {account: main, secret: mover, key: mover, allow: {iex: "*"}}
"""


def account(name: str, simulator: Simulator, key: str = "key", secret: str = "secret") -> str:
    """The YAML line of an account that connects to another simulator."""
    return f'  {name}: {{{{key: {key}, secret: {secret}, data_url: "{simulator.url}"}}}}'


TWO = ACCOUNT + '\n  other: {{key: key2, secret: secret2, data_url: "{url}", trading_url: "{url}"}}'
OF_TWO = CLIENTS.replace("{key: ", "{account: main, key: ")
KEYS = {"key": "secret", "key2": "secret2"}


def changed(proxy: Harness, old: str, new: str, clients: str = CLIENTS, accounts: str = ACCOUNT) -> Config:
    """The running configuration with `old` replaced by `new` in clients and accounts."""
    listen, admin = proxy.gateway.config.listen, proxy.gateway.config.admin
    text = CONFIG.format(
        clients=clients.replace(old, new),
        accounts=accounts.format(url=proxy.simulator.url).replace(old, new),
        listen="",
        admin="",
        admin_port=0,
        more="",
    )
    config = configuration.parse(text, "proxy.yaml", os.environ, Path())
    return config.model_copy(update={"listen": listen, "admin": admin})


def test_a_narrowed_allowlist_prunes_the_subscription_and_sends_it(start: Start) -> None:
    proxy = start(CLIENTS)
    witness, narrowed = proxy.client("witness"), proxy.client("narrowed")
    witness.subscribe(trades=["AAPL", "MSFT"])
    narrowed.subscribe(trades=["AAPL", "MSFT"])
    with proxy.undisturbed(witness):
        steps = proxy.gateway.reload(changed(proxy, "[AAPL, MSFT]", "[MSFT]"))
        assert steps.changed == ("narrowed",)
        assert narrowed.answer()[0]["trades"] == ["MSFT"]
    assert proxy.simulator.subscribed("iex")["trades"] == {"AAPL", "MSFT"}
    assert proxy.simulator.opened("iex") == 1


def test_a_removed_client_is_closed_with_a_reason(start: Start) -> None:
    proxy = start(CLIENTS)
    witness, removed = proxy.client("witness"), proxy.client("removed")
    witness.subscribe(trades=["AAPL"])
    removed.subscribe(trades=["AAPL"])
    with proxy.undisturbed(witness):
        proxy.gateway.reload(changed(proxy, '\n  removed: {key: removed, secret: removed, allow: {iex: "*"}}', ""))
        code, reason = removed.closed()
        assert code == 1008
        assert "removed" in reason


SPLIT = """
  witness: {account: main, key: witness, secret: witness, allow: {iex: "*"}}
  narrowed: {account: main, key: narrowed, secret: narrowed, allow: {iex: {trades: [AAPL, MSFT]}}}
  split: {account: {iex: main, crypto: other}, key: split, secret: split, allow: {iex: "*", crypto: "*"}}
"""


def test_a_feed_that_is_taken_away_closes_its_sessions(start: Start) -> None:
    """The client has no account for that feed any more; what else the file changes takes effect as well."""
    proxy = start(SPLIT, config={"accounts": TWO}, keys=KEYS)
    witness, narrowed = proxy.client("witness"), proxy.client("narrowed")
    stocks, crypto = proxy.client("split"), proxy.client("split", "/v1beta3/crypto/us")
    for client in (witness, stocks):
        client.subscribe(trades=["AAPL"])
    narrowed.subscribe(trades=["AAPL", "MSFT"])
    crypto.subscribe(trades=["BTC/USD"])
    clients = SPLIT.replace("{iex: main, crypto: other}", "{iex: main}").replace(', crypto: "*"', "")
    with proxy.undisturbed(witness):
        proxy.gateway.reload(changed(proxy, "[AAPL, MSFT]", "[AAPL]", clients=clients, accounts=TWO))
        assert crypto.closed() == (1008, "this client may no longer use crypto")
        assert narrowed.answer()[0]["trades"] == ["AAPL"]
        assert stocks.subscribe()["trades"] == ["AAPL"]


def test_an_internal_error_in_a_reload_costs_one_session(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = start(CLIENTS)
    witness, removed, narrowed = (proxy.client(name) for name in ("witness", "removed", "narrowed"))
    witness.subscribe(trades=["AAPL"])
    narrowed.subscribe(trades=["AAPL", "MSFT"])
    [broken] = [session for session in proxy.gateway.server.sessions if session.name == "removed"]
    monkeypatch.setattr(broken, "_apply_settings", lambda client: 1 / 0)
    everything = changed(proxy, 'secret: removed, allow: {iex: "*"}', "secret: removed, allow: {iex: {bars: []}}")
    with proxy.undisturbed(witness):
        proxy.gateway.reload(everything)
        assert removed.closed() == (1008, "internal error in a reload")
        assert narrowed.subscribe()["trades"] == ["AAPL", "MSFT"]
    assert [line.splitlines()[0] for line in proxy.bugs] == ["gateway.internal_error"]
    proxy.bugs.clear()


def test_a_changed_account_reconnects_its_feeds_alone(start: Start) -> None:
    proxy = start(CLIENTS)
    witness = proxy.client("witness")
    witness.subscribe(trades=["AAPL"])
    steps = proxy.gateway.reload(changed(proxy, "{key: key,", "{codec: {iex: json}, key: key,"))
    assert steps.accounts == ("main",)
    wait_for(lambda: proxy.simulator.opened("iex") == 2 and proxy.simulator.subscribed("iex").get("trades") == {"AAPL"})
    proxy.publish("iex", "AAPL", 3)
    assert witness.numbers("AAPL", 3) == [1, 2, 3]


@pytest.mark.parametrize("step", ["upgrade", "greeting"])
def test_an_account_that_changes_while_it_is_dialled(start: Start, step: str) -> None:
    """The attempt at the old address is abandoned; it must not receive the new key."""
    proxy = start(CLIENTS)
    proxy.simulator.stall(step, "iex")
    witness = proxy.client("witness")
    witness.send_json({"action": "subscribe", "trades": ["AAPL"]})
    wait_for(lambda: proxy.simulator.attempts("iex"))
    with Simulator(keys={"new": "fresh"}) as another:
        proxy.gateway.reload(changed(proxy, "", "", accounts=account("main", another, "new", "fresh")))
        wait_for(lambda: another.subscribed("iex") == {"trades": {"AAPL"}}, seconds=5)
        assert witness.answer()[0]["trades"] == ["AAPL"]
        proxy.simulator.accept("iex")
        another.publish_trades("iex", "AAPL", 3)
        assert witness.numbers("AAPL", 3) == [1, 2, 3]
        assert another.opened("iex") == 1
        assert proxy.simulator.requests("iex") == []


def test_an_account_that_changes_during_a_request(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request right after the end of the old connection starts exactly one new one."""
    proxy = start(CLIENTS)
    witness = proxy.client("witness")
    witness.subscribe(trades=["AAPL"])
    upstream = proxy.upstream()

    closing = Event()

    def close(self: AlpacaConnection) -> None:
        """Take a while, then send a request before the waiting greenlet is resumed."""
        assert self._writer is not None
        assert self._connection is not None
        closing.set()
        try:
            gevent.sleep(0.3)
        finally:
            self._writer.kill()
            self._connection.free()
            gevent.spawn(upstream._reconcile)

    with monkeypatch.context() as patches, Simulator(keys={"new": "fresh"}, plan=AccountPlan(connections=5)) as another:
        patches.setattr(AlpacaConnection, "close", close)
        proxy.simulator.drop("iex", "fin")
        assert closing.wait(SECONDS)
        patches.undo()
        proxy.gateway.reload(changed(proxy, "", "", accounts=account("main", another, "new", "fresh")))
        wait_for(lambda: another.subscribed("iex") == {"trades": {"AAPL"}})
        another.publish_trades("iex", "AAPL", 3)
        assert witness.numbers("AAPL", 3) == [1, 2, 3]
        assert len(another.attempts("iex")) == 1


def test_an_outage_lasts_until_the_feed_is_live_again(start: Start) -> None:
    """A reload meanwhile neither ends it nor counts another."""
    proxy = start(CLIENTS)
    proxy.client("witness").subscribe(trades=["AAPL"])
    proxy.simulator.refuse_upgrade("iex", 503)
    proxy.simulator.drop("iex", "fin")
    wait_for(lambda: proxy.upstream().phase is Phase.WAITING)
    before = proxy.upstream().state()
    proxy.gateway.reload(changed(proxy, "{key: key,", "{codec: {iex: json}, key: key,"))
    attempts = len(proxy.simulator.attempts("iex"))
    wait_for(lambda: len(proxy.simulator.attempts("iex")) > attempts)
    after = proxy.upstream().state()
    assert before.outages == after.outages == 1
    assert 0 < before.outage_seconds < after.outage_seconds
    proxy.simulator.accept("iex")
    wait_for(lambda: proxy.upstream().phase is Phase.LIVE)
    outage_seconds = proxy.upstream().state().outage_seconds
    assert after.outage_seconds < outage_seconds == proxy.upstream().state().outage_seconds


def test_a_client_that_moves_gets_the_refusals_of_its_new_account(start: Start) -> None:
    """It gets the error of each refused request, then its subscription.

    Topics that are not refused stay.
    """
    with Simulator(plan=AccountPlan(symbol_limit=2), keys=KEYS) as another:
        accounts = f"{ACCOUNT}\n{account('small', another, 'key2', 'secret2')}"
        proxy = start(MOVING, config={"accounts": accounts})
        mover, witness = proxy.client("mover"), proxy.client("witness")
        witness.subscribe(trades=["AAPL"])
        mover.subscribe(trades=["AAPL", "MSFT"])
        mover.subscribe(trades=["SPY"])
        with proxy.undisturbed(witness):
            steps = proxy.gateway.reload(
                changed(proxy, "main, secret: mover", "small, secret: mover", MOVING, accounts)
            )
            assert steps.changed == ("mover",)
            assert mover.answer()[0]["code"] == 405
            assert mover.answer()[0]["trades"] == ["AAPL", "MSFT"]
        assert another.subscribed("iex") == {"trades": {"AAPL", "MSFT"}}
        another.publish_trades("iex", "MSFT", 2)
        assert mover.numbers("MSFT", 2) == [1, 2]


@pytest.mark.parametrize(
    ("old", "new"),
    [("[AAPL, MSFT]", "[AAPL, MSFT, SPY]"), ("main, key: narrowed", "other, key: narrowed")],
    ids=["its allowlist", "its account"],
)
def test_a_session_that_is_closing_is_not_restored(start: Start, old: str, new: str) -> None:
    """Its close frame has come and its outbox is being flushed.

    A restored subscription would never be removed.
    """
    proxy = start(OF_TWO, config={"accounts": TWO}, keys=KEYS)
    witness = proxy.client("witness")
    witness.subscribe(trades=["AAPL"])
    leaving = proxy.wire(buffer=4096).log_in("narrowed", trades=["AAPL"])
    [session] = [c for c in proxy.gateway.server.sessions if c.name == "narrowed"]
    proxy.fill(session.outbox, 100_000)
    [subscriber] = session.subscribers
    leaving.send(CLOSE, b"\x03\xe8")
    wait_for(lambda: subscriber.left)
    proxy.gateway.reload(changed(proxy, old, new, clients=OF_TWO, accounts=TWO))
    assert session in proxy.gateway.server.sessions  # it is closing and not closed yet
    names = [
        member.name for upstream in proxy.gateway.upstreams.values() for member, _ in upstream.router.subscriptions()
    ]
    assert names == ["witness"]
    assert subscriber.left
    leaving.crash()
    wait_for(lambda: session not in proxy.gateway.server.sessions)
    assert proxy.upstream().reconciler.wanted == {("trades", "AAPL")}


def test_a_new_key_of_the_account_keeps_the_owners_of_orders(start: Start) -> None:
    """The owner of a derived order is known only from earlier updates."""
    clients = """
  momentum: {key: momentum, secret: momentum, allow: {trading: {trade_updates: ["momentum-*"]}}}
  desk: {key: desk, secret: desk, allow: {trading: "*"}}
"""
    proxy = start(clients, keys=KEYS)
    momentum, desk = (proxy.client(name, "/stream") for name in ("momentum", "desk"))
    for client in (momentum, desk):
        client.listen("trade_updates")
    original = {"id": "a", "client_order_id": "momentum-1"}
    replacement = {"id": "b", "client_order_id": "invented", "replaces": "a"}
    for event, order in (("new", original), ("replaced", original | {"replaced_by": "b"}), ("new", replacement)):
        proxy.simulator.publish_order({"event": event, "order": order})
    assert [update["data"]["order"]["id"] for update in momentum.gather(3)] == ["a", "a", "b"]

    steps = proxy.gateway.reload(
        changed(proxy, "key: key, secret: secret", "key: key2, secret: secret2", clients=clients)
    )
    assert steps.accounts == ("main",)
    wait_for(lambda: proxy.simulator.opened("trading") == 2 and proxy.simulator.subscribed("trading"))
    proxy.recovered()
    for event, order in (
        ("fill", replacement),
        ("new", {"id": "c", "client_order_id": "invented too", "replaces": "b"}),
        ("new", {"id": "z", "client_order_id": "unowned"}),
    ):
        proxy.simulator.publish_order({"event": event, "order": order})
    assert [update["data"]["order"]["id"] for update in desk.gather(6)[3:]] == ["b", "c", "z"]
    assert [update["data"]["order"]["id"] for update in momentum.gather(5)[3:]] == ["b", "c"]
    assert momentum.silent()


def test_a_narrowed_allowlist_keeps_the_orders_that_its_other_entries_own(start: Start) -> None:
    """Those that it inherited while it could see everything, too."""
    clients = """
  momentum: {key: momentum, secret: momentum, allow: {trading: {trade_updates: ["*", "momentum-*"]}}}
  desk: {key: desk, secret: desk, allow: {trading: "*"}}
"""
    proxy = start(clients)
    momentum, desk = (proxy.client(name, "/stream") for name in ("momentum", "desk"))
    for client in (momentum, desk):
        client.listen("trade_updates")
    for order in ({"id": "a", "client_order_id": "momentum-1", "replaced_by": "b"}, {"id": "z"}):
        proxy.simulator.publish_order({"event": "new", "order": order})
    assert len(momentum.gather(2)) == 2
    proxy.gateway.reload(changed(proxy, '["*", "momentum-*"]', '["momentum-*"]', clients=clients))
    for order in ({"id": "z"}, {"id": "b", "client_order_id": "invented"}):
        proxy.simulator.publish_order({"event": "new", "order": order})
    assert [update["data"]["order"]["id"] for update in momentum.gather(3)[2:]] == ["b"]
    assert [update["data"]["order"]["id"] for update in desk.gather(4)[2:]] == ["z", "b"]


def test_a_stopped_upstream_is_not_reopened(start: Start) -> None:
    """Sessions of a removed account leave one by one.

    A connection opened then would never be closed.
    """
    proxy = start(CLIENTS)
    for _ in range(2):
        proxy.client("witness").subscribe(trades=["AAPL"])
    upstream = proxy.upstream()
    upstream.stop()
    first = next(iter(proxy.gateway.server.sessions))
    upstream.leave(first.subscribers[0])
    assert not upstream.reconciler.idle
    assert upstream._greenlet is None


OLD = """
  old: {key: old, secret: old, allow: {trading: "*", iex: {trades: [AAPL, MSFT]}}}
  orders: {key: orders, secret: orders, allow: {trading: {trade_updates: ["*"]}}}
"""


def test_a_session_of_two_feeds_gets_its_subscription_once(start: Start) -> None:
    """On `/stream`, one reload may narrow both the orders and the market data."""
    proxy = start(OLD)
    old = proxy.client("old", "/stream")
    old.listen("trade_updates", "account_updates", "T.AAPL", "T.MSFT")
    narrowed = 'trading: {account_updates: "*"}, iex: {trades: [MSFT]}'
    proxy.gateway.reload(changed(proxy, 'trading: "*", iex: {trades: [AAPL, MSFT]}', narrowed, clients=OLD))
    assert old.answer()["data"] == {"streams": ["T.MSFT", "account_updates"]}
    assert old.listen("account_updates") == {"streams": ["T.MSFT", "account_updates"]}
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"MSFT"}})


def test_an_open_session_may_use_a_feed_that_its_client_is_given(start: Start) -> None:
    """On `/stream`, a client with one feed at its log-in may be given the other."""
    proxy = start(OLD)
    orders = proxy.client("orders", "/stream")
    assert orders.listen("trade_updates", "T.AAPL") == {"error": "insufficient subscription: trades AAPL"}
    proxy.gateway.reload(changed(proxy, '{trade_updates: ["*"]}', '"*", iex: "*"', clients=OLD))
    assert orders.listen("trade_updates", "T.AAPL") == {"streams": ["T.AAPL", "trade_updates"]}
    proxy.publish("iex", "AAPL", 1)
    assert orders.receive()["stream"] == "T.AAPL"


def test_a_pending_request_gets_no_topics_that_a_reload_has_disallowed(start: Start) -> None:
    """Orders are requested after the reply for market data; a reload comes between."""
    proxy = start(OLD)
    old = proxy.client("old", "/stream")
    proxy.simulator.stall("subscribe", "iex")
    old.send_json({"action": "listen", "data": {"streams": ["account_updates", "trade_updates", "T.AAPL"]}})
    wait_for(proxy.requests)
    proxy.gateway.reload(changed(proxy, 'trading: "*"', 'trading: {trade_updates: "*"}', clients=OLD))
    proxy.simulator.accept("iex")
    assert old.answer()["data"] == {"streams": ["T.AAPL", "trade_updates"]}


def test_a_session_that_has_not_logged_in_follows_the_default_feed(start: Start) -> None:
    """It is closed, as others at this path: the path means another feed now."""
    proxy = start(CLIENTS)
    witness = proxy.client("witness")
    waiting, named = proxy.dial("/"), proxy.dial("/v2/iex")
    assert waiting.receive() == named.receive() == CONNECTED
    proxy.gateway.reload(changed(proxy, "", "").model_copy(update={"default_feed": "sip"}))
    assert waiting.closed() == (1008, "default_feed changed")
    named.log_in("witness")
    assert witness.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]


def test_old_names_mean_the_new_default_feed(start: Start) -> None:
    """A client that may not use it loses what it held by these names, and gets nothing by them."""
    clients = OLD.replace("{trades: [AAPL, MSFT]}", '"*"')
    proxy = start(clients)
    old = proxy.client("old", "/stream")
    old.listen("trade_updates", "T.AAPL")
    config = changed(proxy, "", "", clients=clients)
    proxy.gateway.reload(config.model_copy(update={"default_feed": "sip"}))
    assert old.answer()["data"] == {"streams": ["trade_updates"]}
    assert old.listen("T.AAPL") == {"error": "insufficient subscription: trades AAPL"}
    wait_for(lambda: proxy.simulator.subscribed("iex") == {})
    proxy.gateway.reload(config)
    assert old.listen("T.AAPL") == {"streams": ["T.AAPL", "trade_updates"]}


def test_orders_that_are_taken_away_during_a_request(start: Start) -> None:
    """The request asks for orders as well; it is answered with what is left."""
    proxy = start(OLD)
    old = proxy.client("old", "/stream")
    proxy.simulator.stall("subscribe", "iex")
    old.send_json({"action": "listen", "data": {"streams": ["trade_updates", "T.AAPL"]}})
    wait_for(proxy.requests)
    proxy.gateway.reload(changed(proxy, 'trading: "*", ', "", clients=OLD))
    proxy.simulator.accept("iex")
    assert old.answer()["data"] == {"streams": ["T.AAPL"]}
    assert old.listen("trade_updates") == {"streams": ["T.AAPL"]}


def test_a_new_account_is_asked_only_for_what_is_left(start: Start) -> None:
    """A reload moves a client to another account and narrows its allowlist."""
    clients = MOVING.replace('iex: "*"', 'crypto: "*"').replace("main, key: witness", "other, key: witness")
    proxy = start(clients, config={"accounts": TWO}, keys=KEYS)
    pairs = ["BTC/USD", "ETH/USD"]
    mover, witness = (proxy.client(name, "/v1beta3/crypto/us") for name in ("mover", "witness"))
    mover.subscribe(orderbooks=pairs)
    witness.subscribe(orderbooks=pairs)
    proxy.simulator.publish(
        "crypto", [{"T": "o", "S": pair, "r": True, "b": [{"p": 1, "s": 1}], "a": [], "t": STAMP} for pair in pairs]
    )
    mover.gather(2)
    witness.gather(2)
    requests = len(proxy.simulator.requests("crypto"))
    narrowed = clients.replace(
        'key: mover, allow: {crypto: "*"}', "key: mover, allow: {crypto: {orderbooks: [BTC/USD]}}"
    )
    proxy.gateway.reload(changed(proxy, "main, secret: mover", "other, secret: mover", narrowed, TWO))
    assert mover.answer()[0]["orderbooks"] == ["BTC/USD"]
    assert mover.silent()
    assert [book["S"] for book in mover.data[2:]] == ["BTC/USD"]
    assert "subscribe" not in [request["action"] for request in proxy.simulator.requests("crypto")[requests:]]


def test_the_status_of_a_session_without_an_account_for_orders(start: Start) -> None:
    """On `/stream` a client needs only the default feed."""
    clients = '\n  old: {account: {iex: main}, key: old, secret: old, allow: {iex: "*"}}\n'
    proxy = start(clients, config={"accounts": TWO}, keys=KEYS)
    old = proxy.client("old", "/stream")
    old.listen("T.AAPL")
    [state] = proxy.gateway.snapshot().sessions
    assert (state.client, state.held) == ("old", {("trades", "AAPL")})
