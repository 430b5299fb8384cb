"""Trading sessions without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import endpoints as feeds
from proxy.simulator.account_plan import AccountPlan, AccountSlots
from proxy.simulator.outcomes import Hangup, Joined, Received, Respond
from proxy.simulator.trading import TradingSession

LOGINS = [
    {"action": "authenticate", "data": {"key_id": "key", "secret_key": "secret"}},
    {"action": "auth", "key": "key", "secret": "secret"},
    {"action": "authenticate", "data": {"oauth_token": "token"}},
]
AUTHORIZED = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}


def open_session(slots: AccountSlots | None = None, log_in: bool = True) -> TradingSession:
    endpoint = feeds.endpoint("trading")
    assert endpoint is not None
    slots = slots or AccountSlots({"key": "secret", "oauth": "token"}, AccountPlan(), lambda: 0.0)
    session = TradingSession(endpoint, slots)
    assert session.open(None) == []
    if log_in:
        assert ask(session, LOGINS[0]) == AUTHORIZED
    return session


def ask(session: TradingSession, request: Any) -> Any:
    [document] = [each.document for each in session.receive(json.dumps(request).encode()) if isinstance(each, Respond)]
    return document


def status(reply: Any) -> tuple[str, str]:
    assert reply["stream"] == "authorization"
    return reply["data"]["status"], reply["data"]["action"]


@pytest.mark.parametrize("login", LOGINS)
def test_all_logins(login: dict[str, Any]) -> None:
    assert ask(open_session(log_in=False), login) == AUTHORIZED


@pytest.mark.parametrize("login", [{"action": "auth", "key": "key", "secret": "no"}, {"action": "auth"}])
def test_a_refused_login_can_be_retried(login: dict[str, Any]) -> None:
    session = open_session(log_in=False)
    assert status(ask(session, login)) == ("unauthorized", "authenticate")
    assert ask(session, LOGINS[0]) == AUTHORIZED


def test_listen_requires_a_login() -> None:
    request = {"action": "listen", "data": {"streams": ["trade_updates"]}}
    assert status(ask(open_session(log_in=False), request)) == ("unauthorized", "listen")


def test_login_without_a_free_slot() -> None:
    first = open_session()
    assert status(ask(open_session(first._slots, log_in=False), LOGINS[0])) == ("exceeded", "authenticate")
    first.end(close_frame=True)
    open_session(first._slots)


def test_a_second_login_is_an_error() -> None:
    assert ask(open_session(), LOGINS[1])["data"] == {"error": "your connection is already authenticated"}


def test_listen_replaces_streams_and_ignores_unknown_ones() -> None:
    session = open_session()
    listen = {"action": "listen", "data": {"streams": ["trade_updates", "nonsense", 7]}}
    assert ask(session, listen) == {"stream": "listening", "data": {"streams": ["trade_updates"]}}
    assert session.wants({"stream": "trade_updates", "data": {}})
    outcomes = session.receive(b'{"action":"listen","data":{"streams":["account_updates"]}}')
    assert Joined((("account_updates", "*"),)) in outcomes
    assert session.held == {"account_updates": {"*"}}
    assert not session.wants({"stream": "trade_updates", "data": {}})
    assert ask(session, {"action": "listen", "data": {"streams": []}})["data"] == {"streams": []}


def test_login_timeout_sends_no_error() -> None:
    assert open_session(log_in=False).expire() == [Hangup()]
    assert open_session().expire() == []


def test_received_requests_have_no_secrets() -> None:
    session = open_session(log_in=False)
    received = [
        each for login in LOGINS for each in session.receive(json.dumps(login).encode()) if isinstance(each, Received)
    ]
    assert received[0] == Received({"action": "authenticate", "data": {"key_id": "key"}})
    assert received[1:] == [
        Received({"action": "auth", "key": "key"}),
        Received({"action": "authenticate", "data": {}}),
    ]


@given(st.binary(max_size=60))
def test_an_undecodable_message_ends_the_connection(payload: bytes) -> None:
    outcomes = open_session().receive(payload)
    assert outcomes[-2:] == [
        Respond({"action": "error", "data": {"error_message": "internal server error"}}),
        Hangup(),
    ]
