"""Sessions that share one upstream connection.

The tests cover joins, leaves, acknowledgements, refusals and outages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import gevent
import pytest

from proxy import gateway
from proxy.alpaca.client_protocol import Phase
from proxy.routing import reconciler
from proxy.simulator import AccountPlan
from proxy.upstream import supervisor
from tests.harness import Harness, trade, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: {trades: "*", quotes: "*", bars: "*"}}}
  beta: {key: beta, secret: beta, allow: {iex: {trades: "*", quotes: "*", bars: "*"}}}
  gamma: {key: gamma, secret: gamma, max_connections: 100, allow: {iex: {trades: "*", quotes: "*", bars: "*"}}}
"""
LIMIT = {"T": "error", "code": 405, "msg": "symbol limit exceeded"}


def test_one_connection_while_sessions_join_and_leave(start: Start) -> None:
    """Thirty sessions join and leave while another misses no message."""
    proxy = start(CLIENTS)
    witness = proxy.client("alpha")
    witness.subscribe(trades=["AAPL"])
    with proxy.undisturbed(witness):
        for round_ in range(10):
            joined = [proxy.client("gamma", codec=codec) for codec in ("json", "msgpack", "json")]
            for client, symbol in zip(joined, ("AAPL", "MSFT", "*"), strict=True):
                client.subscribe(trades=[symbol], quotes=[f"S{round_}"])
            joined[0].unsubscribe(trades=["AAPL"])
            for client in joined:
                client.ws.close()
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    assert proxy.simulator.opened("iex") == 1
    assert proxy.simulator.peak("iex") == 1


def test_a_new_session_gets_every_message_after_its_acknowledgement(start: Start) -> None:
    proxy = start(CLIENTS)
    witness = proxy.client("alpha")
    witness.subscribe(trades=["AAPL"])
    with proxy.undisturbed(witness):
        for codec in ("json", "msgpack"):
            joiner = proxy.client("gamma", codec=codec)
            assert joiner.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
            assert joiner.data == []
            trades = joiner.gather(50)
            assert [b["i"] - a["i"] for a, b in itertools.pairwise(trades)] == [1] * (len(trades) - 1)


def test_an_acknowledgement_is_immediate_when_alpaca_has_confirmed_already(start: Start) -> None:
    proxy = start(CLIENTS)
    proxy.client("alpha").subscribe(trades=["AAPL"])
    proxy.simulator.stall("subscribe", "iex")
    beta = proxy.client("beta")
    assert beta.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    assert len(proxy.simulator.requests("iex")) == 2  # one login, one subscribe
    assert beta.subscribe() == {"trades": ["AAPL"], "corrections": ["AAPL"], "cancelErrors": ["AAPL"]}


def test_an_acknowledgement_waits_for_alpaca(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    proxy.simulator.slow_acks(0.3)
    began = proxy.gateway._clock()
    assert client.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    assert 0.3 <= proxy.gateway._clock() - began < 1
    assert proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}}


def test_an_acknowledgement_waits_for_a_bounded_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent without Alpaca's confirmation, and data follows once there is one."""
    monkeypatch.setattr(reconciler, "ACK_SECONDS", 0.1)
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    proxy.simulator.stall("subscribe", "iex")
    assert client.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    assert proxy.simulator.subscribed("iex") == {}
    proxy.simulator.accept("iex")
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    proxy.simulator.publish("iex", [trade("AAPL", 1)])
    assert client.receive() == [trade("AAPL", 1)]
    assert client.silent()


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_no_data_before_the_acknowledgement(start: Start, codec: str) -> None:
    """Go's SDK takes the next message for the reply.

    Alpaca may send the reply and the first data together.
    """
    proxy = start(CLIENTS)
    client = proxy.client("alpha", codec=codec)
    client.subscribe(quotes=["SPY"])
    for symbol in ("A", "B", "C"):
        proxy.simulator.stall("subscribe", "iex")
        client.send_json({"action": "subscribe", "trades": [symbol]})
        [peer] = proxy.simulator.connections("iex")
        wait_for(lambda peer=peer: peer._held)
        proxy.simulator.accept("iex")
        proxy.simulator.publish("iex", [trade(symbol, 1), trade(symbol, 2)], together=False)
        assert client.receive()[0]["T"] == "subscription"
        assert [message["i"] for message in client.gather(len(client.data) + 2)[-2:]] == [1, 2]


def test_acknowledgements_wait_for_less_than_two_seconds() -> None:
    """This includes the time until the next tick, which checks the deadline.

    Go's SDK gives up after three seconds.
    """
    assert 1.5 < reconciler.ACK_SECONDS + gateway.TICK_SECONDS < 2


def test_an_acknowledgement_has_every_documented_channel(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    nine = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds", "corrections", "cancelErrors")
    [ack] = client.ask({"action": "subscribe", "trades": ["MSFT", "AAPL"], "bars": None, "news": []})
    assert list(ack) == ["T", *nine]
    assert ack["trades"] == ack["corrections"] == ack["cancelErrors"] == ["AAPL", "MSFT"]
    assert ack["lulds"] == []


def test_unsubscribing_from_topics_that_are_not_subscribed_is_acknowledged(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    assert client.unsubscribe(trades=["AAPL"]) == {}
    client.subscribe(quotes=["SPY"])
    assert client.unsubscribe(trades=["AAPL"]) == {"quotes": ["SPY"]}


def test_a_topic_is_unsubscribed_with_its_last_session(start: Start) -> None:
    proxy = start(CLIENTS)
    alpha, beta = proxy.client("alpha"), proxy.client("beta")
    alpha.subscribe(trades=["AAPL", "MSFT"])
    beta.subscribe(trades=["AAPL"], quotes=["SPY"])
    alpha.unsubscribe(trades=["AAPL"])
    beta.ws.close()
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"MSFT"}})


def test_subscribe_goes_before_unsubscribe(start: Start) -> None:
    """Replacing a topic by another never leaves the feed without topics."""
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    proxy.simulator.slow_acks(0.1)
    client.send_json({"action": "unsubscribe", "trades": ["AAPL"]})
    client.send_json({"action": "subscribe", "trades": ["*"]})
    client.answer()
    client.answer()
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"*"}})
    assert proxy.simulator.peak("iex") == 1


def test_a_refusal_goes_to_its_session_alone(start: Start) -> None:
    proxy = start(CLIENTS)
    proxy.simulator.refuse_symbols(["BAD"], 405)
    alpha, beta = proxy.client("alpha"), proxy.client("beta")
    alpha.subscribe(trades=["AAPL"])
    beta.subscribe(trades=["MSFT"])
    with proxy.undisturbed(alpha):
        assert beta.subscribe(trades=["BAD", "GOOD"]) == LIMIT
        assert beta.subscribe()["trades"] == ["MSFT"]
    assert proxy.simulator.subscribed("iex") == {"trades": {"AAPL", "MSFT"}}
    before = len(proxy.simulator.requests("iex"))
    assert beta.subscribe(quotes=["SPY"])["trades"] == ["MSFT"]
    assert len(proxy.simulator.requests("iex")) == before + 1  # the refused request is not repeated
    assert alpha.silent()


def test_a_refused_merged_request_is_retried_one_by_one(start: Start) -> None:
    """Two requests that wait for a third are merged and refused together.

    Only one of them is at fault.
    """
    proxy = start(CLIENTS)
    proxy.simulator.refuse_symbols(["BAD"], 409)
    alpha, beta, gamma = (proxy.client(name) for name in ("alpha", "beta", "gamma"))
    alpha.subscribe(quotes=["SPY"])
    proxy.simulator.slow_acks(0.15)
    alpha.send_json({"action": "subscribe", "trades": ["AAPL"]})
    wait_for(proxy.requests)
    beta.send_json({"action": "subscribe", "trades": ["BAD", "MSFT"]})
    wait_for(lambda: ("trades", "BAD") in proxy.upstream().reconciler.wanted)
    gamma.send_json({"action": "subscribe", "trades": ["SPY", "MSFT"]})
    assert alpha.answer()[0]["trades"] == ["AAPL"]
    assert beta.answer()[0]["code"] == 409
    assert gamma.answer()[0]["trades"] == ["MSFT", "SPY"]
    requested = [request["trades"] for request in proxy.simulator.requests("iex") if "trades" in request]
    assert sorted(requested[1]) == ["BAD", "MSFT", "SPY"]
    assert [sorted(trades) for trades in requested[2:]] == [["BAD", "MSFT"], ["MSFT", "SPY"]]


def test_a_refusal_after_a_reconnect_goes_to_its_session_alone(start: Start) -> None:
    """Only the session of the refused topic gets the error and its subscription."""
    proxy = start(CLIENTS)
    alpha, beta = proxy.client("alpha"), proxy.client("beta")
    alpha.subscribe(trades=["AAPL"])
    beta.subscribe(quotes=["SPY"])
    beta.subscribe(trades=["BAD"])
    proxy.simulator.refuse_symbols(["BAD"], 405)
    proxy.simulator.drop("iex", "fin")
    assert beta.answer() == [LIMIT]
    [state] = beta.answer()
    assert state["trades"] == []
    assert state["quotes"] == ["SPY"]
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}, "quotes": {"SPY"}})
    assert alpha.silent()


def test_at_the_symbol_limit_unsubscribe_goes_first(start: Start) -> None:
    """Alpaca's limit also counts the topics that are about to be unsubscribed."""
    proxy = start(CLIENTS, plan=AccountPlan(symbol_limit=2))
    client = proxy.client("alpha")
    client.subscribe(trades=["A", "B"])
    proxy.simulator.slow_acks(0.05)
    client.send_json({"action": "unsubscribe", "trades": ["A", "B"]})
    client.send_json({"action": "subscribe", "trades": ["C", "D"]})
    client.answer()
    assert client.answer()[0]["trades"] == ["C", "D"]
    assert client.subscribe(trades=["E"]) == LIMIT


def test_sessions_are_served_during_an_outage(start: Start) -> None:
    proxy = start(CLIENTS)
    alpha, beta = proxy.client("alpha"), proxy.client("beta", codec="msgpack")
    alpha.subscribe(trades=["AAPL"], quotes=["SPY"])
    beta.subscribe(trades=["AAPL"])
    proxy.simulator.refuse_upgrade("iex", 502)
    proxy.simulator.drop("iex", "rst")
    wait_for(lambda: proxy.upstream().phase is Phase.WAITING)
    newcomer = proxy.client("gamma")  # the upgrade and the login are answered as ever
    newcomer.send_json({"action": "subscribe", "bars": ["*"]})
    proxy.simulator.accept("iex")
    assert newcomer.answer()[0]["bars"] == ["*"]
    wanted = {"trades": {"AAPL"}, "quotes": {"SPY"}, "bars": {"*"}}
    wait_for(lambda: proxy.simulator.subscribed("iex") == wanted)
    proxy.simulator.publish("iex", [trade("AAPL", 1)])
    assert alpha.receive() == [trade("AAPL", 1)]
    assert len(beta.receive()) == 1
    assert proxy.simulator.peak("iex") == 1


def test_requests_during_an_outage_are_acknowledged_and_sent_later(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "ACK_SECONDS", 0.05)
    proxy = start(CLIENTS)
    proxy.simulator.refuse_upgrade("iex", 503)
    client = proxy.client("alpha")
    assert client.subscribe(trades=["AAPL", "MSFT"])["trades"] == ["AAPL", "MSFT"]
    assert client.unsubscribe(trades=["MSFT"])["trades"] == ["AAPL"]
    proxy.simulator.accept("iex")
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})


def test_an_idle_upstream_is_closed_and_reopened(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed with a close frame and reopened on demand.

    Alpaca frees a connection at once after a close frame.
    """
    monkeypatch.setattr(supervisor, "IDLE_SECONDS", 0.3)
    proxy = start(CLIENTS, plan=AccountPlan(ghost_seconds=90))
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    client.unsubscribe(trades=["AAPL"])
    gevent.sleep(0.1)
    assert proxy.simulator.connections("iex")
    client.subscribe(trades=["AAPL"])
    gevent.sleep(0.4)
    assert proxy.simulator.opened("iex") == 1
    client.ws.close()
    wait_for(lambda: not proxy.simulator.connections("iex"))
    wait_for(lambda: proxy.upstream().phase is Phase.IDLE)
    again = proxy.client("alpha")
    assert again.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    assert proxy.simulator.opened("iex") == 2
    assert proxy.simulator.attempts("iex")[1:] == proxy.simulator.attempts("iex")[-1:]


def test_an_idle_upstream_is_kept_for_ten_seconds() -> None:
    assert supervisor.IDLE_SECONDS == 10


def test_a_session_that_only_logs_in_opens_nothing(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    assert client.subscribe() == {}
    assert proxy.simulator.attempts("iex") == []
