"""A reload while data flows: whom its plan names notices, and nobody else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.protocol.feed import Phase
from proxy.simulator import Plan, Simulator
from tests.harness import ACCOUNT, CONFIG, Harness, wait_for

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
    """The line of an account elsewhere than the harness's own simulator."""
    return f'  {name}: {{{{key: {key}, secret: {secret}, data_url: "{simulator.url}"}}}}'


def changed(proxy: Harness, old: str, new: str, clients: str = CLIENTS, accounts: str = ACCOUNT) -> Config:
    """The running configuration with one text in place of another."""
    listen, admin = proxy.gateway.config.listen, proxy.gateway.config.admin
    text = CONFIG.format(
        clients=clients.replace(old, new),
        accounts=accounts.format(url=proxy.simulator.url).replace(old, new),
        listen="",
        admin="",
        admin_port=0,
        more="",
    )
    found = configuration.parse(text, "proxy.yaml", os.environ, Path())
    return found.model_copy(update={"listen": listen, "admin": admin})


def test_a_narrowed_allowlist_prunes_and_says_so(start: Start) -> None:
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
    """The old address may never answer; and it must not see the new key."""
    proxy = start(CLIENTS)
    proxy.simulator.stall(step, "iex")
    witness = proxy.client("witness")
    witness.say({"action": "subscribe", "trades": ["AAPL"]})
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


def test_an_outage_lasts_until_the_feed_is_live_again(start: Start) -> None:
    """Whatever is reloaded meanwhile."""
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
    assert 0 < before.away < after.away
    proxy.simulator.accept("iex")
    wait_for(lambda: proxy.upstream().phase is Phase.LIVE)
    away = proxy.upstream().state().away
    assert after.away < away == proxy.upstream().state().away


def test_a_client_that_moves_hears_what_its_new_account_refuses(start: Start) -> None:
    """The error of each refused request, and the state as it then is; what is not refused stays."""
    with Simulator(plan=Plan(symbol_limit=2)) as another:
        accounts = f"{ACCOUNT}\n{account('small', another)}"
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


def test_an_upstream_that_was_stopped_is_not_opened_again(start: Start) -> None:
    """By sessions of an account that is gone, which leave one after the other: nobody would ever end it."""
    proxy = start(CLIENTS)
    for _ in range(2):
        proxy.client("witness").subscribe(trades=["AAPL"])
    upstream = proxy.upstream()
    upstream.stop()
    first = next(iter(proxy.gateway.server.conversations))
    upstream.leave(first.places[0])
    assert not upstream.ledger.idle
    assert upstream._greenlet is None
