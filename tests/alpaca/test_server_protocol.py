"""Conversations of the market dialect, from the greeting to the refusals; what SDKs say, as they say it."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import market
from proxy.alpaca import server_protocol as session
from proxy.alpaca.market import ERRORS
from proxy.alpaca.server_protocol import Authenticate, LoginState, Subscribe, Unsubscribe
from proxy.alpaca.topics import MANY
from tests.alpaca.conversation import MSGPACK, Conversation, error

CODECS = pytest.mark.parametrize("content_type", ["", MSGPACK], ids=["json", "msgpack"])

SYNTAX = error(400, "invalid syntax")
NOT_YET = error(401, "not authenticated")
FOREIGN = error(410, "invalid subscribe action for this feed")
BARS = ("bars", "updatedBars", "dailyBars")
EVERY_CHANNEL = ("trades", "quotes", *BARS, "statuses", "imbalances", "lulds", "orderbooks", "news", "pricing")
NAMES_NOTHING = Subscribe(frozenset())


@CODECS
def test_from_the_greeting_to_the_first_subscription(content_type: str) -> None:
    client = Conversation("/v2/iex", content_type)
    assert client.greeting == [[{"T": "success", "msg": "connected"}]]
    assert client.says({"action": "auth", "key": "K", "secret": "S"}) == Authenticate("K", "S")
    assert client.reads(client.session.granted()) == [{"T": "success", "msg": "authenticated"}]
    topics = frozenset({("trades", "AAPL"), ("quotes", "*")})
    assert client.subscribes(trades=["AAPL"], quotes=["*"]) == Subscribe(topics)
    [ack] = client.reads(client.session.acked(topics))
    assert ack["T"] == "subscription"
    assert (ack["trades"], ack["quotes"], ack["bars"]) == (["AAPL"], ["*"], [])
    assert client.unsubscribes(trades=["AAPL"]) == Unsubscribe(frozenset({("trades", "AAPL")}))


@pytest.mark.parametrize(
    ("path", "content_type", "codec"),
    [
        ("/v2/iex", "", "json"),
        ("/v2/iex", "application/json", "json"),
        ("/v2/iex", "text/plain", "json"),
        ("/v2/iex", "application/msgpack", "msgpack"),
        ("/v2/iex", "Application/MsgPack; charset=x", "msgpack"),
        ("/v1beta1/opra", "", "msgpack"),  # C# sends no header and speaks msgpack
        ("/v1beta1/opra", "text/plain", "msgpack"),
        ("/v1beta1/opra", "application/msgpack", "msgpack"),
        ("/v1beta1/indicative", "application/json; charset=utf-8", "json"),  # to say 412 in
        ("/stream", "application/msgpack", "json"),
    ],
)
def test_the_codec_is_that_of_the_header(path: str, content_type: str, codec: str) -> None:
    session = Conversation(path, content_type).session
    assert session.codec.name == codec
    assert session.text == (codec == "json" and path != "/stream")


# Every refusal, byte for byte


REFUSALS = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
    412: "option messages are only available in MsgPack format",
    413: "star subscription is not allowed for option quotes",
    500: "internal error",
}


@pytest.mark.parametrize(("code", "msg"), REFUSALS.items())
def test_codes_and_texts_are_alpacas(code: int, msg: str) -> None:
    """SDKs match on either: Python on the text of 409, Java on those of 401, 402 and 404, Go and C# on codes."""
    expected = b'[{"T":"error","code":%d,"msg":"%b"}]' % (code, msg.encode())
    session = Conversation().session
    assert session.denied(code) == session.refused(code) == expected
    assert msgpack.unpackb(Conversation("/v2/iex", MSGPACK).session.refused(code)) == error(code, msg)


def test_there_are_no_other_codes() -> None:
    assert ERRORS == REFUSALS


def test_the_last_words_are_refusals_too() -> None:
    session = Conversation().session
    assert session.timed_out() == b'[{"T":"error","code":404,"msg":"auth timeout"}]'
    assert session.slow() == b'[{"T":"error","code":407,"msg":"slow client"}]'
    named = session.refused(409, "insufficient subscription: trades TSLA")
    assert named == b'[{"T":"error","code":409,"msg":"insufficient subscription: trades TSLA"}]'


@CODECS
@pytest.mark.parametrize("code", [402, 406, 409])
def test_who_is_denied_may_try_again(content_type: str, code: int) -> None:
    client = Conversation("/v2/iex", content_type)
    for secret in ("wrong", "wrong again"):
        assert client.says({"action": "auth", "key": "K", "secret": secret}) == Authenticate("K", secret)
        assert client.reads(client.session.denied(code)) == error(code, REFUSALS[code])
        assert client.subscribes(trades=["AAPL"]) == NOT_YET
    assert client.logs_in().subscribes(trades=["AAPL"]) == Subscribe(frozenset({("trades", "AAPL")}))


@CODECS
@pytest.mark.parametrize(
    "channels", [{"trades": ["AAPL"]}, {}, {"news": ["AAPL"]}, {"trades": [7]}, {"quotes": "AAPL"}]
)
def test_nothing_is_subscribed_before_auth(content_type: str, channels: dict[str, Any]) -> None:
    """Whatever else is wrong with the request."""
    client = Conversation("/v2/iex", content_type)
    assert client.subscribes(**channels) == NOT_YET
    assert client.unsubscribes(**channels) == NOT_YET


@CODECS
def test_a_second_auth(content_type: str) -> None:
    client = Conversation("/v2/iex", content_type).logs_in()
    for secret in ("S", "another"):
        assert client.says({"action": "auth", "key": "K", "secret": secret}) == error(403, "already authenticated")
    assert client.session.state is LoginState.AUTHENTICATED


@CODECS
@pytest.mark.parametrize(
    "request_",
    [
        None,
        7,
        "auth",
        [],
        [{"action": "auth", "key": "K", "secret": "S"}],
        {},
        {"action": None},
        {"action": ["subscribe"]},
        {"action": "Subscribe", "trades": ["AAPL"]},
        {"action": "listen", "data": {"streams": ["trade_updates"]}},
        {"trades": ["AAPL"]},
        {"action": "auth", "key": 7, "secret": "S"},
        {"action": "auth", "key": "K", "secret": None},
        {"action": "auth", "key": {"K": 1}, "secret": ["S"]},
    ],
)
def test_what_is_no_request(content_type: str, request_: Any) -> None:
    for client in (Conversation("/v2/iex", content_type), Conversation("/v2/iex", content_type).logs_in()):
        assert client.says(request_) == SYNTAX


@pytest.mark.parametrize("frame", [b"", b"{", b"\xff", b"auth", b'{"action":"auth","key":"\\ud800"}', b"{}" * 1000])
def test_what_is_no_json(frame: bytes) -> None:
    assert Conversation().sends(frame) == [SYNTAX]


@pytest.mark.parametrize("frame", [b"", b"\x81", b"\xc1", b"\x80\x80", b"\x81\xa6action\xa1\xff"])
def test_what_is_no_msgpack(frame: bytes) -> None:
    assert Conversation("/v2/iex", MSGPACK).sends(frame) == [SYNTAX]


# Symbols and channels


@CODECS
@pytest.mark.parametrize("symbol", ["AAPL", "*", "BTC/USD", "BRK.B", "ON", "7203", "aapl", "x" * 64, "é" * 64, "A B"])
def test_symbols(content_type: str, symbol: str) -> None:
    client = Conversation("/v2/iex", content_type).logs_in()
    assert client.subscribes(trades=[symbol, symbol]) == Subscribe(frozenset({("trades", symbol)}))


@CODECS
@pytest.mark.parametrize("symbol", ["", "A*", "*A", "**", "A*B", "x" * 65, 7, 7.5, None, True, ["AAPL"], {"S": "AAPL"}])
def test_what_is_no_symbol(content_type: str, symbol: Any) -> None:
    client = Conversation("/v2/iex", content_type).logs_in()
    assert client.subscribes(trades=["AAPL", symbol]) == SYNTAX
    assert client.unsubscribes(quotes=["AAPL"], trades=[symbol]) == SYNTAX


@pytest.mark.parametrize("value", ["AAPL", 7, True, {}, {"AAPL": 1}])
def test_a_channel_without_a_list(value: Any) -> None:
    client = Conversation().logs_in()
    assert client.subscribes(trades=value) == SYNTAX
    assert client.subscribes(news=value) == SYNTAX


@pytest.mark.parametrize(
    ("path", "foreign"),
    [
        ("/v2/iex", ["orderbooks", "news", "pricing"]),
        ("/v2/test", ["orderbooks", "news", "pricing"]),
        ("/v1beta1/boats", ["orderbooks", "news", "pricing"]),
        ("/v1beta3/crypto/us", ["statuses", "imbalances", "lulds", "news", "pricing"]),
        ("/v1beta1/crypto-perps/global", ["statuses", "imbalances", "lulds", "news"]),
        ("/v1beta1/opra", [channel for channel in EVERY_CHANNEL if channel not in ("trades", "quotes")]),
        ("/v1beta1/news", [channel for channel in EVERY_CHANNEL if channel != "news"]),
    ],
)
def test_channels_of_other_feeds(path: str, foreign: list[str]) -> None:
    """Refused only if they name something: Go sends every key to every feed."""
    client = Conversation(path).logs_in()
    for channel in EVERY_CHANNEL:
        topics = frozenset({(channel, "AAPL")})
        assert client.subscribes(**{channel: ["AAPL"]}) == (FOREIGN if channel in foreign else Subscribe(topics))
        assert client.unsubscribes(**{channel: ["AAPL"]}) == (FOREIGN if channel in foreign else Unsubscribe(topics))
        assert client.subscribes(**{channel: []}) == client.subscribes(**{channel: None}) == NAMES_NOTHING


def test_channels_that_nobody_knows() -> None:
    """They are the allowlist's to decide. What is no list of symbols is some key of the SDK's own."""
    client = Conversation().logs_in()
    assert client.subscribes(auctions=["AAPL"]) == Subscribe(frozenset({("auctions", "AAPL")}))
    for value in (7, "AAPL", True, {"AAPL": 1}):
        assert client.subscribes(request_id=value, trades=["SPY"]) == Subscribe(frozenset({("trades", "SPY")}))
    assert client.subscribes(auctions=["A*"]) == SYNTAX
    assert client.subscribes(**{"x" * 65: ["AAPL"]}) == SYNTAX


def test_a_channel_cannot_take_the_place_of_a_key() -> None:
    """Whoever may ask for channels that nobody knows cannot bend the acknowledgement with them."""
    assert Conversation().logs_in().subscribes(T=["AAPL"]) == NAMES_NOTHING


# Options


def test_options_in_json_are_barred() -> None:
    """The conversation answers any auth with 412, in JSON text."""
    client = Conversation("/v1beta1/opra", "application/json")
    assert client.greeting == [[{"T": "success", "msg": "connected"}]]
    assert client.session.refused_code == 412
    assert client.session.denied(412) == (
        b'[{"T":"error","code":412,"msg":"option messages are only available in MsgPack format"}]'
    )
    assert client.session.text
    assert client.subscribes(trades=["*"]) == NOT_YET
    assert Conversation("/v1beta1/opra").session.refused_code is None
    assert Conversation("/v2/iex").session.refused_code is None


@pytest.mark.parametrize("path", ["/v1beta1/opra", "/v1beta1/indicative", "/opra"])
def test_a_star_on_option_quotes(path: str) -> None:
    client = Conversation(path).logs_in()
    star = error(413, "star subscription is not allowed for option quotes")
    assert client.subscribes(quotes=["*"]) == star
    assert client.subscribes(trades=["*"], quotes=["AAPL240315C00172500", "*"]) == star
    assert client.subscribes(trades=["*"]) == Subscribe(frozenset({("trades", "*")}))
    assert client.unsubscribes(quotes=["*"]) == Unsubscribe(frozenset({("quotes", "*")}))


# What SDKs really say


def test_go_names_every_channel_with_nil() -> None:
    client = Conversation("/v2/iex", MSGPACK).logs_in()
    nothing: dict[str, Any] = dict.fromkeys(EVERY_CHANNEL)
    assert client.subscribes(**nothing) == NAMES_NOTHING
    assert client.subscribes(**nothing | {"bars": ["AAPL"]}) == Subscribe(frozenset({("bars", "AAPL")}))
    assert client.unsubscribes(**nothing | {"bars": ["AAPL"]}) == Unsubscribe(frozenset({("bars", "AAPL")}))
    assert client.subscribes(**nothing | {"bars": ["AAPL"], "news": ["*"]}) == FOREIGN


def test_javascript_names_its_channels_with_empty_lists_and_logs_in_before_it_reads() -> None:
    client = Conversation("/v2/iex", MSGPACK)
    lists: dict[str, list[str]] = {
        channel: [] for channel in ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds")
    }
    assert client.logs_in().subscribes(**lists) == NAMES_NOTHING
    assert client.subscribes(**lists | {"quotes": ["SPY"]}) == Subscribe(frozenset({("quotes", "SPY")}))


def test_python_puts_the_action_last() -> None:
    client = Conversation("/v2/iex", MSGPACK).logs_in()
    request = msgpack.packb({"trades": ["AAPL"], "bars": ("SPY",), "action": "subscribe"})
    assert client.sends(request) == [Subscribe(frozenset({("trades", "AAPL"), ("bars", "SPY")}))]


def test_an_old_python_asks_for_corrections_too() -> None:
    """They come with the trades by themselves: accepted and ignored, whatever stands there."""
    client = Conversation("/v2/iex", MSGPACK).logs_in()
    followers = {"corrections": ["AAPL"], "cancelErrors": ["AAPL", 7]}
    trades = frozenset({("trades", "AAPL")})
    assert client.subscribes(trades=["AAPL"], **followers) == Subscribe(trades)
    assert client.unsubscribes(trades=["AAPL"], **followers) == Unsubscribe(trades)
    assert client.subscribes(**followers) == NAMES_NOTHING
    assert Conversation("/v1beta1/news").logs_in().subscribes(**followers) == NAMES_NOTHING


def test_csharp_puts_two_documents_into_one_message() -> None:
    """Each outcome is performed before the next is asked for, so even auth and subscribe may come together."""
    client = Conversation()
    login = client.writes({"action": "auth", "key": "K", "secret": "S"})
    asks = [client.writes({"action": "subscribe", "trades": [symbol]}) for symbol in ("AAPL", "SPY")]
    outcomes = filter(None, client.session.receive(b"\n".join([login, *asks])))
    assert next(outcomes) == Authenticate("K", "S")
    client.session.granted()
    assert [*outcomes] == [Subscribe(frozenset({("trades", symbol)})) for symbol in ("AAPL", "SPY")]


def test_credentials_with_keys_of_the_sdks_own() -> None:
    """One SDK spreads its whole configuration into the request."""
    client = Conversation()
    auth = {"action": "auth", "key": "K", "secret": "S", "paper": True, "rate_limit": None, "extra": {"deep": [1]}}
    assert client.says(auth) == Authenticate("K", "S")


@pytest.mark.parametrize(("key", "secret"), [("oauth", "token"), ("access_token", "token"), ("", "")])
def test_every_credential_is_somebody_elses_to_judge(key: str, secret: str) -> None:
    assert Conversation().says({"action": "auth", "key": key, "secret": secret}) == Authenticate(key, secret)
    assert Conversation().says({"action": "auth"}) == Authenticate("", "")


# Acknowledgements


STOCKS = ["trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds", "corrections", "cancelErrors"]
CRYPTO = ["trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars"]


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/v2/sip", STOCKS),
        ("/v2/iex", STOCKS),
        ("/v2/delayed_sip", STOCKS),
        ("/v2/otc", STOCKS),
        ("/v2/test", STOCKS),  # all of them: JavaScript 3 throws at a missing one
        ("/v1beta1/boats", STOCKS),
        ("/v1beta1/overnight", STOCKS),
        ("/v1beta3/crypto/us", CRYPTO),
        ("/v1beta3/crypto/eu-1", CRYPTO),
        ("/v1beta1/crypto-perps/global", [*CRYPTO, "pricing"]),
        ("/v1beta1/opra", ["trades", "quotes"]),
        ("/v1beta1/indicative", ["trades", "quotes"]),
        ("/v1beta1/news", ["news"]),
    ],
)
def test_an_ack_has_every_documented_channel_in_its_order(path: str, keys: list[str]) -> None:
    client = Conversation(path)
    [ack] = client.reads(client.session.acked(frozenset()))
    assert list(ack.items()) == [("T", "subscription"), *((key, []) for key in keys)]
    held = frozenset((key, symbol) for key in keys if key not in STOCKS[-2:] for symbol in ("B", "*", "A"))
    [ack] = client.reads(client.session.acked(held))
    assert list(ack.items()) == [("T", "subscription"), *((key, ["*", "A", "B"]) for key in keys)]


def test_an_ack_byte_for_byte() -> None:
    held = frozenset({("trades", "MSFT"), ("trades", "AAPL"), ("bars", "*")})
    assert Conversation().session.acked(held) == (
        b'[{"T":"subscription","trades":["AAPL","MSFT"],"quotes":[],"bars":["*"],"updatedBars":[],"dailyBars":[],'
        b'"statuses":[],"lulds":[],"corrections":["AAPL","MSFT"],"cancelErrors":["AAPL","MSFT"]}]'
    )


def test_imbalances_are_shown_while_they_are_held() -> None:
    """No documentation shows them; who holds them is told. Nor are channels hidden that nobody knows."""
    client = Conversation()
    [ack] = client.reads(client.session.acked(frozenset({("imbalances", "SPY"), ("auctions", "*")})))
    assert list(ack)[:10] == ["T", *STOCKS]
    assert (ack["imbalances"], ack["auctions"], ack["corrections"]) == (["SPY"], ["*"], [])


# Long messages, which are remembered

PADDING = "x" * session.LONG_MESSAGE  # under a key that means nothing
PATHS = st.sampled_from(
    ["/v2/iex", "/v2/sip", "/v1beta3/crypto/us", "/v1beta1/crypto", "/v1beta1/opra", "/v1beta1/news"]
)
SYMBOLS = st.sampled_from(["AAPL", "BTCUSD", "BTC/USD", "*", "A*", "", 7])
REQUESTS = st.fixed_dictionaries(
    {"action": st.sampled_from(["subscribe", "unsubscribe", "auth", "listen"])},
    optional={channel: st.lists(SYMBOLS, max_size=2) for channel in ("trades", "quotes", "news", "key")},
)


@given(st.lists(st.tuples(PATHS, st.sampled_from(["", MSGPACK]), REQUESTS), max_size=12))
def test_a_long_message_means_what_a_short_one_does(said: list[tuple[str, str, dict[str, Any]]]) -> None:
    for path, content_type, request in said:
        client = Conversation(path, content_type).logs_in()
        meant = client.says(request)
        for _ in range(2):
            assert client.says(request | {"note": PADDING}) == meant


def test_two_long_requests_in_one_message() -> None:
    client = Conversation().logs_in()
    asks = [client.writes({"action": "subscribe", "trades": [symbol], "note": PADDING}) for symbol in ("AAPL", "SPY")]
    for _ in range(2):
        assert client.sends(b"".join(asks)) == [
            Subscribe(frozenset({("trades", symbol)})) for symbol in ("AAPL", "SPY")
        ]


@pytest.mark.parametrize("logged_in", [False, True])
def test_no_secret_is_remembered(logged_in: bool) -> None:
    client = Conversation()
    if logged_in:
        client.logs_in()
    session._changes.clear()
    login = client.writes({"action": "auth", "key": "K", "secret": "S", "note": PADDING})
    ask = client.writes({"action": "subscribe", "trades": ["AAPL"], "note": PADDING})
    for message in (login, login + ask, ask + login):
        client.sends(message)
    assert len(session._changes) == 0


def test_what_is_too_much_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "REMEMBERED_TOPICS", 2)
    client = Conversation().logs_in()
    session._changes.clear()
    for symbols, remembered in (["A", "B", "C"], 0), (["A", "B"], 1):
        client.subscribes(trades=symbols, note=PADDING)
        assert len(session._changes) == remembered
    held = frozenset(("trades", f"S{number}") for number in range(MANY))
    session._acknowledgements.clear()
    monkeypatch.setattr(market, "MAX_ACK_BYTES", 100)
    client.session.acked(held)
    assert len(session._acknowledgements) == 0


@CODECS
def test_a_long_ack_is_what_it_was(content_type: str) -> None:
    """Whoever asks, and in whatever codec and feed."""
    held = frozenset(("trades", f"S{number}") for number in range(MANY))
    for path in ("/v2/iex", "/v1beta3/crypto/us", "/v2/iex"):
        client = Conversation(path, content_type)
        [ack] = client.reads(client.session.acked(held))
        assert ack["trades"] == sorted(symbol for _, symbol in held)
        assert ("lulds" in ack) == ("orderbooks" not in ack) == (path == "/v2/iex")


def test_a_session_names_itself() -> None:
    assert repr(Conversation().logs_in().session) == "<ServerProtocol iex json authenticated>"
    assert repr(Conversation("/stream").session) == "<TradingServerProtocol trading json greeted>"


# Crypto pairs under their names of 2021


@CODECS
def test_pairs_without_a_slash(content_type: str) -> None:
    client = Conversation("/v1beta1/crypto", content_type).logs_in()
    today = frozenset({("trades", "BTC/USD"), ("quotes", "ETH/BTC"), ("bars", "*")})
    assert client.subscribes(trades=["BTCUSD"], quotes=["ETH/BTC"], bars=["*"]) == Subscribe(today)
    assert client.unsubscribes(trades=["BTCUSD"]) == Unsubscribe(frozenset({("trades", "BTC/USD")}))
    [ack] = client.reads(client.session.acked(today))
    assert (ack["trades"], ack["quotes"], ack["bars"]) == (["BTCUSD"], ["ETHBTC"], ["*"])
    assert client.subscribes(news=["BTCUSD"]) == FOREIGN
