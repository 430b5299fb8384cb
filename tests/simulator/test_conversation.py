"""Market-data sessions without a socket: every error code, every acknowledgement."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import endpoints as feeds
from proxy.simulator.account_plan import ERRORS, AccountPlan, AccountSlots
from proxy.simulator.conversation import Credentials, MarketSession
from proxy.simulator.outcomes import Admitted, Hangup, Joined, Received, Respond

KEYS = {"key": "secret", "other": "word"}
AUTH = {"action": "auth", "key": "key", "secret": "secret"}
STOCK_KEYS = [
    "trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds", "corrections", "cancelErrors",
]  # fmt: skip
CRYPTO_KEYS = ["trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars"]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make_slots(**plan: Any) -> AccountSlots:
    return AccountSlots(KEYS, AccountPlan(**plan), Clock())


def open_session(
    feed: str = "iex", slots: AccountSlots | None = None, codec: str = "json", log_in: bool = True
) -> MarketSession:
    endpoint = feeds.endpoint(feed)
    assert endpoint is not None
    session = MarketSession(endpoint, codec, slots or make_slots())
    session.open(None)
    if log_in:
        assert ask(session, AUTH) == [{"T": "success", "msg": "authenticated"}]
    return session


def ask(session: MarketSession, request: Any) -> Any:
    """Return the single reply to a request."""
    payload = json.dumps(request).encode() if session.codec == "json" else msgpack.packb(request)
    return reply(session.receive(payload))


def reply(outcomes: list[Any]) -> Any:
    documents = [outcome.document for outcome in outcomes if isinstance(outcome, Respond)]
    assert len(documents) == 1
    return documents[0]


def error(code: int) -> list[dict[str, Any]]:
    return [{"T": "error", "code": code, "msg": ERRORS[code]}]


def test_greeting_and_login() -> None:
    session = open_session(log_in=False)
    assert session.open(None) == [Respond([{"T": "success", "msg": "connected"}])]
    assert session.receive(json.dumps(AUTH).encode()) == [
        Received({"action": "auth", "key": "key"}),
        Admitted("key"),
        Respond([{"T": "success", "msg": "authenticated"}]),
    ]
    assert session.authenticated


def test_header_credentials_are_answered_in_a_separate_frame() -> None:
    session = open_session(log_in=False)
    assert [
        outcome.document for outcome in session.open(Credentials("key", "secret")) if isinstance(outcome, Respond)
    ] == [
        [{"T": "success", "msg": "connected"}],
        [{"T": "success", "msg": "authenticated"}],
    ]


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"7", b'{"action":"auth"}{"action":"auth"}', b"\xff", b'{"action":"listen"}', b"{}"],
)
def test_400_for_an_invalid_request(payload: bytes) -> None:
    assert reply(open_session().receive(payload)) == error(400)


@pytest.mark.parametrize("symbols", ["AAPL", {"AAPL": 1}, [7], [""], ["A*"], ["A B"], ["A" * 65], [None]])
def test_400_for_an_invalid_list_of_symbols(symbols: Any) -> None:
    session = open_session()
    assert ask(session, {"action": "subscribe", "quotes": ["MSFT"], "trades": symbols}) == error(400)
    assert session.held == {}


def test_401_before_the_login() -> None:
    session = open_session(log_in=False)
    assert ask(session, {"action": "subscribe", "trades": ["AAPL"]}) == error(401)
    assert ask(session, {"action": "unsubscribe", "trades": ["AAPL"]}) == error(401)


@pytest.mark.parametrize(("key", "secret"), [("key", "wrong"), ("nobody", "secret"), ("", "")])
def test_402_allows_another_login(key: str, secret: str) -> None:
    session = open_session(log_in=False)
    assert ask(session, {"action": "auth", "key": key, "secret": secret}) == error(402)
    assert ask(session, AUTH | {"paper": True}) == [{"T": "success", "msg": "authenticated"}]


def test_403_for_a_second_login() -> None:
    assert ask(open_session(), AUTH) == error(403)


def test_404_without_a_login() -> None:
    session = open_session(log_in=False)
    assert session.expire() == [Respond(error(404)), Hangup()]


def test_timeout_after_a_refused_login_sends_no_error() -> None:
    session = open_session(log_in=False)
    ask(session, AUTH | {"secret": "wrong"})
    assert session.expire() == [Hangup()]


def test_an_authenticated_session_does_not_time_out() -> None:
    assert open_session().expire() == []


def test_405_rejects_the_whole_request() -> None:
    session = open_session(slots=make_slots(symbol_limit=3))
    ask(session, {"action": "subscribe", "trades": ["AAPL"], "quotes": ["AAPL"], "bars": ["*"]})
    assert ask(session, {"action": "subscribe", "trades": ["MSFT", "TSLA"]}) == error(405)
    assert ask(session, {"action": "subscribe", "trades": ["*"]}) == error(405)
    assert session.held == {"trades": {"AAPL"}, "quotes": {"AAPL"}, "bars": {"*"}}
    assert ask(session, {"action": "subscribe", "trades": ["MSFT", "AAPL"]})[0]["trades"] == ["AAPL", "MSFT"]


def test_405_limits_by_feed() -> None:
    slots = make_slots(symbol_limit={"iex": 1})
    assert ask(open_session("iex", slots), {"action": "subscribe", "trades": ["AAPL", "MSFT"]}) == error(405)
    assert (
        ask(open_session("sip", slots), {"action": "subscribe", "trades": ["AAPL", "MSFT", "*"]})[0]["T"]
        == "subscription"
    )


def test_scripted_refusal_of_symbols() -> None:
    slots = make_slots()
    slots.symbol_refusals = {"BAD": 409}
    session = open_session(slots=slots)
    assert ask(session, {"action": "subscribe", "trades": ["AAPL", "BAD"]}) == error(409)
    assert session.held == {}


def test_406_until_the_slot_is_free() -> None:
    slots = make_slots()
    first, second = open_session(slots=slots), open_session(slots=slots, log_in=False)
    assert ask(second, AUTH) == error(406)
    assert ask(second, {"action": "subscribe", "trades": ["AAPL"]}) == error(401)
    open_session("sip", slots)
    assert ask(second, {"action": "auth", "key": "other", "secret": "word"})[0]["msg"] == "authenticated"
    third = open_session(slots=slots, log_in=False)
    assert ask(third, AUTH) == error(406)
    first.end(close_frame=True)
    assert ask(third, AUTH)[0]["msg"] == "authenticated"


def test_a_lost_connection_keeps_its_slot_for_ghost_seconds() -> None:
    clock = Clock()
    slots = AccountSlots(KEYS, AccountPlan(ghost_seconds=90), clock)
    open_session(slots=slots).end(close_frame=False)
    session = open_session(slots=slots, log_in=False)
    assert ask(session, AUTH) == error(406)
    clock.now += 90
    assert ask(session, AUTH)[0]["msg"] == "authenticated"
    session.end(close_frame=True)
    open_session(slots=slots)


def test_409_for_a_feed_outside_the_plan() -> None:
    assert ask(open_session("sip", make_slots(feeds=["iex"]), log_in=False), AUTH) == error(409)


@pytest.mark.parametrize(
    ("feed", "channel"),
    [("iex", "orderbooks"), ("iex", "news"), ("crypto", "lulds"), ("opra", "bars"), ("news", "trades")],
)
def test_410_for_a_channel_of_another_feed_unless_it_is_empty(feed: str, channel: str) -> None:
    session = open_session(feed, codec="msgpack")
    assert ask(session, {"action": "subscribe", channel: ["AAPL"]}) == error(410)
    assert ask(session, {"action": "subscribe", channel: []})[0]["T"] == "subscription"
    assert ask(session, {"action": "subscribe", channel: None})[0]["T"] == "subscription"


@pytest.mark.parametrize("feed", ["opra", "indicative"])
def test_412_for_options_in_json(feed: str) -> None:
    session = open_session(feed, log_in=False)
    assert ask(session, AUTH) == error(412)
    assert not session.authenticated


def test_413_for_the_wildcard_on_option_quotes() -> None:
    session = open_session("opra", codec="msgpack")
    assert ask(session, {"action": "subscribe", "quotes": ["*"]}) == error(413)
    assert ask(session, {"action": "subscribe", "trades": ["*"]})[0]["trades"] == ["*"]


@pytest.mark.parametrize(
    ("feed", "keys"),
    [
        ("iex", STOCK_KEYS),
        ("sip", STOCK_KEYS),
        ("boats", STOCK_KEYS),
        ("test", ["trades", "quotes", "bars"]),
        ("crypto", CRYPTO_KEYS),
        ("crypto-eu-1", CRYPTO_KEYS),
        ("crypto-perps-global", [*CRYPTO_KEYS, "pricing"]),
        ("opra", ["trades", "quotes"]),
        ("news", ["news"]),
    ],
)
def test_acknowledgement_has_the_documented_keys_in_order(feed: str, keys: list[str]) -> None:
    [ack] = ask(open_session(feed, codec="msgpack"), {"action": "subscribe"})
    assert list(ack.items()) == [("T", "subscription"), *((key, []) for key in keys)]


def test_an_undocumented_channel_is_listed_while_subscribed() -> None:
    session = open_session()
    assert ask(session, {"action": "subscribe", "imbalances": ["AAPL"]})[0]["imbalances"] == ["AAPL"]
    assert "imbalances" not in ask(session, {"action": "unsubscribe", "imbalances": ["AAPL"]})[0]


def test_corrections_and_cancel_errors_follow_trades_only() -> None:
    session = open_session()
    [ack] = ask(session, {"action": "subscribe", "trades": ["AAPL"], "corrections": ["MSFT"], "cancelErrors": ["MSFT"]})
    assert ack["trades"] == ack["corrections"] == ack["cancelErrors"] == ["AAPL"]
    [ack] = ask(session, {"action": "unsubscribe", "trades": ["AAPL"]})
    assert ack["trades"] == ack["corrections"] == ack["cancelErrors"] == []


def test_the_wildcard_is_listed_like_any_symbol() -> None:
    session = open_session()
    ask(session, {"action": "subscribe", "quotes": ["AAPL"]})
    assert ask(session, {"action": "subscribe", "quotes": ["*"]})[0]["quotes"] == ["AAPL", "*"]
    assert ask(session, {"action": "unsubscribe", "quotes": ["*", "TSLA"]})[0]["quotes"] == ["AAPL"]


def test_joined_has_only_new_topics() -> None:
    session = open_session("crypto")
    ask(session, {"action": "subscribe", "orderbooks": ["BTC/USD"]})
    outcomes = session.receive(b'{"action":"subscribe","orderbooks":["BTC/USD","ETH/USD","ETH/USD"]}')
    assert isinstance(outcomes[1], Respond)
    assert outcomes[2:] == [Joined((("orderbooks", "ETH/USD"),))]


@pytest.mark.parametrize(
    ("held", "message", "wanted"),
    [
        ({"trades": ["AAPL"]}, {"T": "t", "S": "AAPL"}, True),
        ({"trades": ["AAPL"]}, {"T": "t", "S": "MSFT"}, False),
        ({"trades": ["AAPL"]}, {"T": "c", "S": "AAPL"}, True),
        ({"trades": ["*"]}, {"T": "x", "S": "AAPL"}, True),
        ({"quotes": ["AAPL"]}, {"T": "x", "S": "AAPL"}, False),
        ({"bars": ["AAPL"]}, {"T": "b", "S": "AAPL"}, True),
        ({"bars": ["AAPL"]}, {"T": "u", "S": "AAPL"}, False),
        ({"bars": ["*"]}, {"T": "zz", "S": "AAPL"}, False),
    ],
)
def test_wants_only_subscribed_data(held: dict[str, list[str]], message: dict[str, Any], wanted: bool) -> None:
    session = open_session()
    ask(session, {"action": "subscribe", **held})
    assert session.wants(message) is wanted


def test_news_is_matched_by_its_symbols() -> None:
    session = open_session("news")
    ask(session, {"action": "subscribe", "news": ["AAPL"]})
    assert session.wants({"T": "n", "symbols": ["MSFT", "AAPL"]})
    assert not session.wants({"T": "n", "symbols": []})
    ask(session, {"action": "subscribe", "news": ["*"]})
    assert session.wants({"T": "n", "symbols": []})


def test_reprs_have_no_secrets() -> None:
    session = open_session(log_in=False)
    shown = repr((session.receive(json.dumps(AUTH).encode()), session, Credentials("key", "secret"), make_slots()))
    assert "'secret'" not in shown
    assert "word" not in shown


SYMBOLS = st.sampled_from(["AAPL", "MSFT", "BRK.B", "*"])
CHANNELS = st.dictionaries(st.sampled_from(["trades", "quotes", "imbalances"]), st.lists(SYMBOLS, max_size=4))


@given(st.lists(st.tuples(st.sampled_from(["subscribe", "unsubscribe"]), CHANNELS), max_size=12))
def test_every_acknowledgement_has_all_subscriptions(requests: list[tuple[str, dict[str, list[str]]]]) -> None:
    session = open_session(codec="msgpack")
    held: set[tuple[str, str]] = set()
    for action, channels in requests:
        topics = {(channel, symbol) for channel, symbols in channels.items() for symbol in symbols}
        held = held | topics if action == "subscribe" else held - topics
        [ack] = ask(session, {"action": action, **channels})
        del ack["T"], ack["corrections"], ack["cancelErrors"]
        assert {(channel, symbol) for channel, symbols in ack.items() for symbol in symbols} == held
        assert all(len(symbols) == len(set(symbols)) for symbols in ack.values())


@given(st.binary(max_size=60), st.sampled_from(["json", "msgpack"]), st.booleans())
def test_any_payload_gets_an_error(payload: bytes, codec: str, log_in: bool) -> None:
    session = open_session(codec=codec, log_in=log_in)
    assert reply(session.receive(payload))[0]["T"] == "error"
