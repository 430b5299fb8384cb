"""The market-data conversation without a socket: every code, every acknowledgement."""

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


def make_desk(**plan: Any) -> AccountSlots:
    return AccountSlots(KEYS, AccountPlan(**plan), Clock())


def begin(
    feed: str = "iex", slots: AccountSlots | None = None, codec: str = "json", log_in: bool = True
) -> MarketSession:
    endpoint = feeds.endpoint(feed)
    assert endpoint is not None
    session = MarketSession(endpoint, codec, slots or make_desk())
    session.open(None)
    if log_in:
        assert ask(session, AUTH) == [{"T": "success", "msg": "authenticated"}]
    return session


def ask(session: MarketSession, request: Any) -> Any:
    """The one reply to a request."""
    payload = json.dumps(request).encode() if session.codec == "json" else msgpack.packb(request)
    return reply(session.receive(payload))


def reply(outcomes: list[Any]) -> Any:
    documents = [outcome.document for outcome in outcomes if isinstance(outcome, Respond)]
    assert len(documents) == 1
    return documents[0]


def error(code: int) -> list[dict[str, Any]]:
    return [{"T": "error", "code": code, "msg": ERRORS[code]}]


def test_greets_and_logs_in() -> None:
    session = begin(log_in=False)
    assert session.open(None) == [Respond([{"T": "success", "msg": "connected"}])]
    assert session.receive(json.dumps(AUTH).encode()) == [
        Received({"action": "auth", "key": "key"}),
        Admitted("key"),
        Respond([{"T": "success", "msg": "authenticated"}]),
    ]
    assert session.authenticated


def test_header_credentials_are_answered_in_a_frame_of_their_own() -> None:
    session = begin(log_in=False)
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
def test_400_for_what_is_no_request(payload: bytes) -> None:
    assert reply(begin().receive(payload)) == error(400)


@pytest.mark.parametrize("symbols", ["AAPL", {"AAPL": 1}, [7], [""], ["A*"], ["A B"], ["A" * 65], [None]])
def test_400_for_what_is_no_list_of_symbols(symbols: Any) -> None:
    session = begin()
    assert ask(session, {"action": "subscribe", "quotes": ["MSFT"], "trades": symbols}) == error(400)
    assert session.held == {}


def test_401_before_the_login() -> None:
    session = begin(log_in=False)
    assert ask(session, {"action": "subscribe", "trades": ["AAPL"]}) == error(401)
    assert ask(session, {"action": "unsubscribe", "trades": ["AAPL"]}) == error(401)


@pytest.mark.parametrize(("key", "secret"), [("key", "wrong"), ("nobody", "secret"), ("", "")])
def test_402_and_another_try(key: str, secret: str) -> None:
    session = begin(log_in=False)
    assert ask(session, {"action": "auth", "key": key, "secret": secret}) == error(402)
    assert ask(session, AUTH | {"paper": True}) == [{"T": "success", "msg": "authenticated"}]


def test_403_for_a_second_login() -> None:
    assert ask(begin(), AUTH) == error(403)


def test_404_when_nobody_logs_in() -> None:
    session = begin(log_in=False)
    assert session.expire() == [Respond(error(404)), Hangup()]


def test_a_refused_one_is_hung_up_on_without_a_word() -> None:
    session = begin(log_in=False)
    ask(session, AUTH | {"secret": "wrong"})
    assert session.expire() == [Hangup()]


def test_a_session_does_not_expire() -> None:
    assert begin().expire() == []


def test_405_rejects_the_whole_request_and_keeps_the_old_set() -> None:
    session = begin(slots=make_desk(symbol_limit=3))
    ask(session, {"action": "subscribe", "trades": ["AAPL"], "quotes": ["AAPL"], "bars": ["*"]})
    assert ask(session, {"action": "subscribe", "trades": ["MSFT", "TSLA"]}) == error(405)
    assert ask(session, {"action": "subscribe", "trades": ["*"]}) == error(405)
    assert session.held == {"trades": {"AAPL"}, "quotes": {"AAPL"}, "bars": {"*"}}
    assert ask(session, {"action": "subscribe", "trades": ["MSFT", "AAPL"]})[0]["trades"] == ["AAPL", "MSFT"]


def test_405_counts_by_feed() -> None:
    slots = make_desk(symbol_limit={"iex": 1})
    assert ask(begin("iex", slots), {"action": "subscribe", "trades": ["AAPL", "MSFT"]}) == error(405)
    assert ask(begin("sip", slots), {"action": "subscribe", "trades": ["AAPL", "MSFT", "*"]})[0]["T"] == "subscription"


def test_symbols_can_be_refused_by_script() -> None:
    slots = make_desk()
    slots.symbol_refusals = {"BAD": 409}
    session = begin(slots=slots)
    assert ask(session, {"action": "subscribe", "trades": ["AAPL", "BAD"]}) == error(409)
    assert session.held == {}


def test_406_until_the_place_is_free() -> None:
    slots = make_desk()
    first, second = begin(slots=slots), begin(slots=slots, log_in=False)
    assert ask(second, AUTH) == error(406)
    assert ask(second, {"action": "subscribe", "trades": ["AAPL"]}) == error(401)
    begin("sip", slots)
    assert ask(second, {"action": "auth", "key": "other", "secret": "word"})[0]["msg"] == "authenticated"
    third = begin(slots=slots, log_in=False)
    assert ask(third, AUTH) == error(406)
    first.end(farewell=True)
    assert ask(third, AUTH)[0]["msg"] == "authenticated"


def test_a_vanished_one_keeps_its_place_for_a_while() -> None:
    clock = Clock()
    slots = AccountSlots(KEYS, AccountPlan(ghost_seconds=90), clock)
    begin(slots=slots).end(farewell=False)
    session = begin(slots=slots, log_in=False)
    assert ask(session, AUTH) == error(406)
    clock.now += 90
    assert ask(session, AUTH)[0]["msg"] == "authenticated"
    session.end(farewell=True)
    begin(slots=slots)


def test_409_for_a_feed_outside_of_the_plan() -> None:
    assert ask(begin("sip", make_desk(feeds=["iex"]), log_in=False), AUTH) == error(409)


@pytest.mark.parametrize(
    ("feed", "channel"),
    [("iex", "orderbooks"), ("iex", "news"), ("crypto", "lulds"), ("opra", "bars"), ("news", "trades")],
)
def test_410_for_a_channel_of_another_feed_unless_it_is_empty(feed: str, channel: str) -> None:
    session = begin(feed, codec="msgpack")
    assert ask(session, {"action": "subscribe", channel: ["AAPL"]}) == error(410)
    assert ask(session, {"action": "subscribe", channel: []})[0]["T"] == "subscription"
    assert ask(session, {"action": "subscribe", channel: None})[0]["T"] == "subscription"


@pytest.mark.parametrize("feed", ["opra", "indicative"])
def test_412_for_options_in_json(feed: str) -> None:
    session = begin(feed, log_in=False)
    assert ask(session, AUTH) == error(412)
    assert not session.authenticated


def test_413_for_all_option_quotes() -> None:
    session = begin("opra", codec="msgpack")
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
def test_an_acknowledgement_has_the_documented_keys_in_their_order(feed: str, keys: list[str]) -> None:
    [ack] = ask(begin(feed, codec="msgpack"), {"action": "subscribe"})
    assert list(ack.items()) == [("T", "subscription"), *((key, []) for key in keys)]


def test_a_channel_outside_of_the_documented_ones_shows_while_it_is_held() -> None:
    session = begin()
    assert ask(session, {"action": "subscribe", "imbalances": ["AAPL"]})[0]["imbalances"] == ["AAPL"]
    assert "imbalances" not in ask(session, {"action": "unsubscribe", "imbalances": ["AAPL"]})[0]


def test_corrections_and_cancel_errors_follow_trades_and_cannot_be_asked_for() -> None:
    session = begin()
    [ack] = ask(session, {"action": "subscribe", "trades": ["AAPL"], "corrections": ["MSFT"], "cancelErrors": ["MSFT"]})
    assert ack["trades"] == ack["corrections"] == ack["cancelErrors"] == ["AAPL"]
    [ack] = ask(session, {"action": "unsubscribe", "trades": ["AAPL"]})
    assert ack["trades"] == ack["corrections"] == ack["cancelErrors"] == []


def test_the_wildcard_is_a_member_like_any_other() -> None:
    session = begin()
    ask(session, {"action": "subscribe", "quotes": ["AAPL"]})
    assert ask(session, {"action": "subscribe", "quotes": ["*"]})[0]["quotes"] == ["AAPL", "*"]
    assert ask(session, {"action": "unsubscribe", "quotes": ["*", "TSLA"]})[0]["quotes"] == ["AAPL"]


def test_only_new_topics_are_joined() -> None:
    session = begin("crypto")
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
def test_data_goes_to_those_who_asked_for_it(held: dict[str, list[str]], message: dict[str, Any], wanted: bool) -> None:
    session = begin()
    ask(session, {"action": "subscribe", **held})
    assert session.wants(message) is wanted


def test_news_goes_by_its_symbols() -> None:
    session = begin("news")
    ask(session, {"action": "subscribe", "news": ["AAPL"]})
    assert session.wants({"T": "n", "symbols": ["MSFT", "AAPL"]})
    assert not session.wants({"T": "n", "symbols": []})
    ask(session, {"action": "subscribe", "news": ["*"]})
    assert session.wants({"T": "n", "symbols": []})


def test_no_secret_is_shown() -> None:
    session = begin(log_in=False)
    shown = repr((session.receive(json.dumps(AUTH).encode()), session, Credentials("key", "secret"), make_desk()))
    assert "'secret'" not in shown
    assert "word" not in shown


SYMBOLS = st.sampled_from(["AAPL", "MSFT", "BRK.B", "*"])
CHANNELS = st.dictionaries(st.sampled_from(["trades", "quotes", "imbalances"]), st.lists(SYMBOLS, max_size=4))


@given(st.lists(st.tuples(st.sampled_from(["subscribe", "unsubscribe"]), CHANNELS), max_size=12))
def test_every_acknowledgement_is_the_whole_state(requests: list[tuple[str, dict[str, list[str]]]]) -> None:
    session = begin(codec="msgpack")
    held: set[tuple[str, str]] = set()
    for action, channels in requests:
        topics = {(channel, symbol) for channel, symbols in channels.items() for symbol in symbols}
        held = held | topics if action == "subscribe" else held - topics
        [ack] = ask(session, {"action": action, **channels})
        del ack["T"], ack["corrections"], ack["cancelErrors"]
        assert {(channel, symbol) for channel, symbols in ack.items() for symbol in symbols} == held
        assert all(len(symbols) == len(set(symbols)) for symbols in ack.values())


@given(st.binary(max_size=60), st.sampled_from(["json", "msgpack"]), st.booleans())
def test_anything_at_all_is_answered(payload: bytes, codec: str, log_in: bool) -> None:
    session = begin(codec=codec, log_in=log_in)
    assert reply(session.receive(payload))[0]["T"] == "error"
