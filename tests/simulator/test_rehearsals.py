"""Rehearsals: the settings of faults over HTTP, and what a client sees of each."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from proxy.simulator import AccountPlan, Market, Simulator
from proxy.simulator.fault_settings import FaultSettings
from proxy.simulator.faults import Step

AUTH = {"action": "auth", "key": "key", "secret": "secret"}
TRADE = {"T": "t", "S": "AAPL", "i": 1, "x": "V", "p": 1.5, "s": 1, "c": [], "z": "C", "t": "2023-04-06T11:54:26Z"}
MOMENT = 0.1  # long enough for a sent message to arrive

Dial = Callable[..., Any]
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def ask(simulator: Simulator) -> Ask:
    """Return a function that sends an HTTP request: `ask("POST", "?drop=now")`; a dict is from JSON."""
    host, port = simulator.url.removeprefix("ws://").split(":")

    def ask(method: str, query: str = "", path: str = "/faults", **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        try:
            connection.request(method, path + query, headers=headers)
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            connection.close()
        return response.status, json.loads(body) if body.startswith("{") else body

    return ask


def test_the_settings_are_shown_changed_and_ended(ask: Ask) -> None:
    nothing = FaultSettings().document()
    assert ask("GET") == (200, nothing)
    assert ask("POST", "?drop=60&refuse=406&feeds=iex") == (
        200,
        {**nothing, "drop": 60, "refuse": 406, "feeds": ["iex"]},
    )
    assert ask("POST", "?refuse=off") == (200, {**nothing, "drop": 60, "feeds": ["iex"]})
    assert ask("DELETE") == ask("GET") == (200, nothing)


def test_an_invalid_request_changes_nothing(ask: Ask) -> None:
    assert ask("POST", "?silence=on&stall=lunch") == (
        400,
        'stall should be upgrade, greeting, auth, subscribe or connection, not "lunch".\n',
    )
    assert ask("PUT", "?silence=on")[0] == 405
    assert ask("GET", "?silence=on")[0] == 200
    assert ask("POST", "?silence=on", path="/other")[0] == 426
    assert ask("GET") == (200, FaultSettings().document())


@pytest.mark.parametrize("headers", [{"Origin": "http://127.0.0.1"}, {"Sec-Fetch-Site": "none"}])
def test_web_pages_may_not_set_faults(ask: Ask, headers: dict[str, str]) -> None:
    assert ask("POST", "?silence=on", **headers) == (403, "Web pages may not set faults.\n")
    assert ask("GET")[1]["silence"] is False


def test_drop_now(simulator: Simulator, dial: Dial, ask: Ask) -> None:
    iex, orders = dial(simulator, "/v2/iex").log_in(), dial(simulator, "/stream")
    assert ask("POST", "?drop=now&feeds=iex")[1]["drop"] is None
    with pytest.raises(ConnectionClosedError) as closed:
        iex.receive()
    assert closed.value.rcvd is None  # no close frame, as at Alpaca
    assert orders.ask(AUTH)["data"]["status"] == "authorized"


def test_drop_again_and_again(simulator: Simulator, dial: Dial, ask: Ask) -> None:
    ask("POST", "?drop=0.1")
    for _ in range(2):
        ask("POST", "?rate=1")  # another setting does not end the drops
        with pytest.raises(ConnectionClosedError):
            dial(simulator, "/v2/iex").log_in().receive()
    ask("POST", "?drop=off")
    client = dial(simulator, "/v2/iex").log_in()
    time.sleep(2 * MOMENT)
    assert client.subscribe(trades=["AAPL"])[0]["T"] == "subscription"


def test_refused_upgrades(simulator: Simulator, dial: Dial, ask: Ask) -> None:
    ask("POST", "?refuse=503")
    with pytest.raises(InvalidStatus) as refused:
        dial(simulator, "/v1beta3/crypto/eu-1")
    assert refused.value.response.status_code == 503
    ask("POST", "?feeds=sip")
    dial(simulator, "/v1beta3/crypto/eu-1").log_in()


def test_refused_log_ins(simulator: Simulator, dial: Dial, ask: Ask) -> None:
    ask("POST", "?refuse=409")
    client = dial(simulator, "/v2/iex")
    client.receive()
    assert client.ask(AUTH)[0] == {"T": "error", "code": 409, "msg": "insufficient subscription"}
    assert dial(simulator, "/stream").ask(AUTH)["data"]["status"] == "unauthorized"
    ask("DELETE")
    assert client.ask(AUTH)[0]["msg"] == "authenticated"


def test_refused_subscriptions(simulator: Simulator, dial: Dial, ask: Ask) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    client.subscribe(trades=["AAPL"])
    ask("POST", "?refuse=405")
    assert client.subscribe(trades=["MSFT"])[0]["code"] == 405
    assert client.ask({"action": "unsubscribe", "trades": ["AAPL"]})[0]["trades"] == []
    ask("POST", "?refuse=off")
    assert client.subscribe(trades=["MSFT"])[0]["trades"] == ["MSFT"]


def test_a_stalled_step_goes_on_when_the_stall_ends_and_not_before(simulator: Simulator, dial: Dial, ask: Ask) -> None:
    ask("POST", "?stall=auth")
    client = dial(simulator, "/v2/iex")
    client.receive()
    client.send_json(AUTH)
    ask("POST", "?rate=1")  # another setting does not end the stall
    with pytest.raises(TimeoutError):
        client.receive(MOMENT)
    ask("POST", "?stall=off")
    assert client.receive()[0]["msg"] == "authenticated"


def test_a_stalled_connection_is_half_open(simulator: Simulator, dial: Dial, ask: Ask) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    client.subscribe(trades=["AAPL"])
    ask("POST", "?stall=connection&feeds=iex")
    later = dial(simulator, "/v2/iex")
    assert dial(simulator, "/v2/sip").receive()[0]["msg"] == "connected"
    simulator.publish("iex", [TRADE])
    pong = client.ws.ping()
    for each in (client, later):
        with pytest.raises(TimeoutError):
            each.receive(MOMENT)
    assert not pong.is_set()
    ask("POST", "?stall=off")
    assert client.receive() == [TRADE]
    assert pong.wait(5)
    assert later.receive()[0]["msg"] == "connected"


def test_silence_answers_requests_and_pings(simulator: Simulator, dial: Dial, ask: Ask) -> None:
    ask("POST", "?silence=on&feeds=iex,crypto")
    client = dial(simulator, "/v2/iex").log_in()
    other = dial(simulator, "/v2/sip").log_in()
    for each in (client, other):
        assert each.subscribe(trades=["AAPL"])[0]["trades"] == ["AAPL"]
    for feed in ("iex", "sip"):
        simulator.publish(feed, [TRADE])
    assert other.receive() == [TRADE]
    assert client.ws.ping().wait(5)
    with pytest.raises(TimeoutError):
        client.receive(MOMENT)
    ask("POST", "?silence=off")
    simulator.publish("iex", [TRADE | {"i": 2}])
    assert client.receive() == [TRADE | {"i": 2}]  # what was silent is lost, not delayed


def test_the_symbol_limit(simulator: Simulator, dial: Dial, ask: Ask) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    ask("POST", "?symbol-limit=1")
    assert client.subscribe(trades=["AAPL", "MSFT"])[0]["code"] == 405
    assert client.subscribe(trades=["AAPL"])[0]["trades"] == ["AAPL"]
    ask("POST", "?symbol-limit=off")
    assert client.subscribe(trades=["MSFT"])[0]["trades"] == ["AAPL", "MSFT"]


def test_the_rate_changes_while_the_market_runs(dial: Dial) -> None:
    with Simulator(market=Market(rate=0)) as simulator:
        client = dial(simulator, "/v2/iex").log_in()
        client.subscribe(quotes=["*"])
        with pytest.raises(TimeoutError):
            client.receive(MOMENT)
        simulator.rehearse(simulator.settings.changed({"rate": "500"}))
        quotes, deadline = 0, time.monotonic() + 5
        while quotes < 100:
            quotes += len(client.receive(deadline - time.monotonic()))
        late = dial(simulator, "/v2/sip").log_in()  # a feed that starts with the new rate
        late.subscribe(quotes=["*"])
        assert late.receive()


def test_drops_go_on_after_a_restart(dial: Dial) -> None:
    simulator = Simulator()
    simulator.rehearse(FaultSettings(drop=0.1))
    for _ in range(2):
        with simulator, pytest.raises(ConnectionClosedError):
            dial(simulator, "/v2/iex").log_in().receive()


def test_a_stalled_connection_has_no_login_timeout(dial: Dial) -> None:
    """A half-open connection sends nothing, no 404 either."""
    with Simulator(plan=AccountPlan(auth_seconds=0.05)) as simulator:
        simulator.rehearse(FaultSettings(stall=Step.CONNECTION))
        client = dial(simulator, "/v2/iex")
        with pytest.raises(TimeoutError):
            client.receive(2 * MOMENT)
        simulator.rehearse(FaultSettings())
        assert client.receive()[0]["msg"] == "connected"
