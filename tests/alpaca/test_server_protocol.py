"""The server protocol of the market dialect, with requests as SDKs send them."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from proxy.alpaca import cooperative
from proxy.alpaca.market import ERRORS
from proxy.alpaca.server_protocol import Authenticate, LoginState, Subscribe, Unsubscribe
from tests.alpaca.conversation import MSGPACK, Client, error

CODECS = pytest.mark.parametrize("content_type", ["", MSGPACK], ids=["json", "msgpack"])

SYNTAX = error(400, "invalid syntax")
NOT_YET = error(401, "not authenticated")
FOREIGN = error(410, "invalid subscribe action for this feed")
BARS = ("bars", "updatedBars", "dailyBars")
EVERY_CHANNEL = ("trades", "quotes", *BARS, "statuses", "imbalances", "lulds", "orderbooks", "news", "pricing")
EMPTY_SUBSCRIBE = Subscribe(frozenset())


@CODECS
def test_log_in_and_subscribe(content_type: str) -> None:
    client = Client("/v2/iex", content_type)
    assert client.greeting == [[{"T": "success", "msg": "connected"}]]
    assert client.request({"action": "auth", "key": "K", "secret": "S"}) == Authenticate("K", "S")
    assert client.decode(client.protocol.granted()) == [{"T": "success", "msg": "authenticated"}]
    topics = frozenset({("trades", "AAPL"), ("quotes", "*")})
    assert client.subscribe(trades=["AAPL"], quotes=["*"]) == Subscribe(topics)
    [ack] = client.decode(client.acked(topics))
    assert ack["T"] == "subscription"
    assert (ack["trades"], ack["quotes"], ack["bars"]) == (["AAPL"], ["*"], [])
    assert client.unsubscribe(trades=["AAPL"]) == Unsubscribe(frozenset({("trades", "AAPL")}))


@pytest.mark.parametrize(
    ("path", "content_type", "codec"),
    [
        ("/v2/iex", "", "json"),
        ("/v2/iex", "application/json", "json"),
        ("/v2/iex", "text/plain", "json"),
        ("/v2/iex", "application/msgpack", "msgpack"),
        ("/v2/iex", "Application/MsgPack; charset=x", "msgpack"),
        ("/v1beta1/opra", "", "msgpack"),  # C# sends no header and uses msgpack
        ("/v1beta1/opra", "text/plain", "msgpack"),
        ("/v1beta1/opra", "application/msgpack", "msgpack"),
        ("/v1beta1/indicative", "application/json; charset=utf-8", "json"),  # for the reply 412
        ("/stream", "", "json"),
        ("/stream", "application/msgpack", "msgpack"),
    ],
)
def test_the_content_type_header_selects_the_codec(path: str, content_type: str, codec: str) -> None:
    protocol = Client(path, content_type).protocol
    assert protocol.codec.name == codec
    assert protocol.text == (codec == "json" and path != "/stream")


# Refusals, byte for byte


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
def test_refusals_have_alpacas_codes_and_texts(code: int, msg: str) -> None:
    """SDKs match on either.

    Python on the text of 409, Java on those of 401, 402 and 404, Go and C# on codes.
    """
    expected = b'[{"T":"error","code":%d,"msg":"%b"}]' % (code, msg.encode())
    protocol = Client().protocol
    assert protocol.denied(code) == protocol.refused(code) == expected
    assert msgpack.unpackb(Client("/v2/iex", MSGPACK).protocol.refused(code)) == error(code, msg)


def test_all_codes_are_covered() -> None:
    assert ERRORS == REFUSALS


def test_refusals_before_a_close_and_with_topics() -> None:
    protocol = Client().protocol
    assert protocol.timed_out() == b'[{"T":"error","code":404,"msg":"auth timeout"}]'
    assert protocol.slow() == b'[{"T":"error","code":407,"msg":"slow client"}]'
    named = protocol.refused(409, "insufficient subscription: trades TSLA")
    assert named == b'[{"T":"error","code":409,"msg":"insufficient subscription: trades TSLA"}]'


@CODECS
@pytest.mark.parametrize("code", [402, 406, 409])
def test_a_denied_client_can_log_in_again(content_type: str, code: int) -> None:
    client = Client("/v2/iex", content_type)
    for secret in ("wrong", "wrong again"):
        assert client.request({"action": "auth", "key": "K", "secret": secret}) == Authenticate("K", secret)
        assert client.decode(client.protocol.denied(code)) == error(code, REFUSALS[code])
        assert client.subscribe(trades=["AAPL"]) == NOT_YET
    assert client.log_in().subscribe(trades=["AAPL"]) == Subscribe(frozenset({("trades", "AAPL")}))


@CODECS
@pytest.mark.parametrize(
    "channels", [{"trades": ["AAPL"]}, {}, {"news": ["AAPL"]}, {"trades": [7]}, {"quotes": "AAPL"}]
)
def test_subscribe_before_auth_is_refused(content_type: str, channels: dict[str, Any]) -> None:
    """With 401, whatever else is wrong with the request."""
    client = Client("/v2/iex", content_type)
    assert client.subscribe(**channels) == NOT_YET
    assert client.unsubscribe(**channels) == NOT_YET


@CODECS
def test_a_second_auth_is_refused(content_type: str) -> None:
    client = Client("/v2/iex", content_type).log_in()
    for secret in ("S", "another"):
        assert client.request({"action": "auth", "key": "K", "secret": secret}) == error(403, "already authenticated")
    assert client.protocol.state is LoginState.AUTHENTICATED


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
def test_invalid_requests(content_type: str, request_: Any) -> None:
    for client in (Client("/v2/iex", content_type), Client("/v2/iex", content_type).log_in()):
        assert client.request(request_) == SYNTAX


@pytest.mark.parametrize("frame", [b"", b"{", b"\xff", b"auth", b'{"action":"auth","key":"\\ud800"}', b"{}" * 1000])
def test_invalid_json(frame: bytes) -> None:
    assert Client().send(frame) == [SYNTAX]


@pytest.mark.parametrize("frame", [b"", b"\x81", b"\xc1", b"\x80\x80", b"\x81\xa6action\xa1\xff"])
def test_invalid_msgpack(frame: bytes) -> None:
    assert Client("/v2/iex", MSGPACK).send(frame) == [SYNTAX]


# Symbols and channels


@CODECS
@pytest.mark.parametrize("symbol", ["AAPL", "*", "BTC/USD", "BRK.B", "ON", "7203", "aapl", "x" * 64, "é" * 64, "A B"])
def test_valid_symbols(content_type: str, symbol: str) -> None:
    client = Client("/v2/iex", content_type).log_in()
    assert client.subscribe(trades=[symbol, symbol]) == Subscribe(frozenset({("trades", symbol)}))


@CODECS
@pytest.mark.parametrize("symbol", ["", "A*", "*A", "**", "A*B", "x" * 65, 7, 7.5, None, True, ["AAPL"], {"S": "AAPL"}])
def test_invalid_symbols(content_type: str, symbol: Any) -> None:
    client = Client("/v2/iex", content_type).log_in()
    assert client.subscribe(trades=["AAPL", symbol]) == SYNTAX
    assert client.unsubscribe(quotes=["AAPL"], trades=[symbol]) == SYNTAX


@pytest.mark.parametrize("value", ["AAPL", 7, True, {}, {"AAPL": 1}])
def test_a_channel_whose_value_is_not_a_list(value: Any) -> None:
    client = Client().log_in()
    assert client.subscribe(trades=value) == SYNTAX
    assert client.subscribe(news=value) == SYNTAX


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
    """They are refused only with a symbol: Go's SDK sends all keys to every feed."""
    client = Client(path).log_in()
    for channel in EVERY_CHANNEL:
        topics = frozenset({(channel, "AAPL")})
        assert client.subscribe(**{channel: ["AAPL"]}) == (FOREIGN if channel in foreign else Subscribe(topics))
        assert client.unsubscribe(**{channel: ["AAPL"]}) == (FOREIGN if channel in foreign else Unsubscribe(topics))
        assert client.subscribe(**{channel: []}) == client.subscribe(**{channel: None}) == EMPTY_SUBSCRIBE


def test_unknown_channels() -> None:
    """They are passed on for the allowlist to decide.

    A value that is not a list is some field of the SDK's own.
    """
    client = Client().log_in()
    assert client.subscribe(auctions=["AAPL"]) == Subscribe(frozenset({("auctions", "AAPL")}))
    for value in (7, "AAPL", True, {"AAPL": 1}):
        assert client.subscribe(request_id=value, trades=["SPY"]) == Subscribe(frozenset({("trades", "SPY")}))
    assert client.subscribe(auctions=["A*"]) == SYNTAX
    assert client.subscribe(**{"x" * 65: ["AAPL"]}) == SYNTAX


def test_a_channel_cannot_overwrite_a_key_of_the_acknowledgement() -> None:
    """Not even if the allowlist permits unknown channels."""
    assert Client().log_in().subscribe(T=["AAPL"]) == EMPTY_SUBSCRIBE


# Options


def test_options_in_json_are_refused() -> None:
    """Any auth is answered with 412, in a JSON text frame."""
    client = Client("/v1beta1/opra", "application/json")
    assert client.greeting == [[{"T": "success", "msg": "connected"}]]
    assert client.protocol.refused_code == 412
    assert client.protocol.denied(412) == (
        b'[{"T":"error","code":412,"msg":"option messages are only available in MsgPack format"}]'
    )
    assert client.protocol.text
    assert client.subscribe(trades=["*"]) == NOT_YET
    assert Client("/v1beta1/opra").protocol.refused_code is None
    assert Client("/v2/iex").protocol.refused_code is None


@pytest.mark.parametrize("path", ["/v1beta1/opra", "/v1beta1/indicative", "/opra"])
def test_a_wildcard_on_option_quotes_is_refused(path: str) -> None:
    client = Client(path).log_in()
    star = error(413, "star subscription is not allowed for option quotes")
    assert client.subscribe(quotes=["*"]) == star
    assert client.subscribe(trades=["*"], quotes=["AAPL240315C00172500", "*"]) == star
    assert client.subscribe(trades=["*"]) == Subscribe(frozenset({("trades", "*")}))
    assert client.unsubscribe(quotes=["*"]) == Unsubscribe(frozenset({("quotes", "*")}))


# Requests as the SDKs send them


def test_go_sends_every_channel_with_nil() -> None:
    client = Client("/v2/iex", MSGPACK).log_in()
    nothing: dict[str, Any] = dict.fromkeys(EVERY_CHANNEL)
    assert client.subscribe(**nothing) == EMPTY_SUBSCRIBE
    assert client.subscribe(**nothing | {"bars": ["AAPL"]}) == Subscribe(frozenset({("bars", "AAPL")}))
    assert client.unsubscribe(**nothing | {"bars": ["AAPL"]}) == Unsubscribe(frozenset({("bars", "AAPL")}))
    assert client.subscribe(**nothing | {"bars": ["AAPL"], "news": ["*"]}) == FOREIGN


def test_javascript_sends_channels_with_empty_lists_and_logs_in_before_it_reads() -> None:
    client = Client("/v2/iex", MSGPACK)
    lists: dict[str, list[str]] = {
        channel: [] for channel in ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds")
    }
    assert client.log_in().subscribe(**lists) == EMPTY_SUBSCRIBE
    assert client.subscribe(**lists | {"quotes": ["SPY"]}) == Subscribe(frozenset({("quotes", "SPY")}))


def test_python_sends_the_action_last() -> None:
    client = Client("/v2/iex", MSGPACK).log_in()
    request = msgpack.packb({"trades": ["AAPL"], "bars": ("SPY",), "action": "subscribe"})
    assert client.send(request) == [Subscribe(frozenset({("trades", "AAPL"), ("bars", "SPY")}))]


def test_an_old_python_sdk_also_subscribes_to_corrections() -> None:
    """Corrections come with the trades, so the keys are ignored, with any value."""
    client = Client("/v2/iex", MSGPACK).log_in()
    followers = {"corrections": ["AAPL"], "cancelErrors": ["AAPL", 7]}
    trades = frozenset({("trades", "AAPL")})
    assert client.subscribe(trades=["AAPL"], **followers) == Subscribe(trades)
    assert client.unsubscribe(trades=["AAPL"], **followers) == Unsubscribe(trades)
    assert client.subscribe(**followers) == EMPTY_SUBSCRIBE
    assert Client("/v1beta1/news").log_in().subscribe(**followers) == EMPTY_SUBSCRIBE


def test_csharp_sends_two_requests_in_one_message() -> None:
    """Each outcome is performed before the next is computed.

    So even auth and subscribe may be in one message.
    """
    client = Client()
    login = client.encode({"action": "auth", "key": "K", "secret": "S"})
    requests = [client.encode({"action": "subscribe", "trades": [symbol]}) for symbol in ("AAPL", "SPY")]
    outcomes = filter(None, client.protocol.receive(b"\n".join([login, *requests])))
    assert next(outcomes) == Authenticate("K", "S")
    client.protocol.granted()
    assert [*outcomes] == [Subscribe(frozenset({("trades", symbol)})) for symbol in ("AAPL", "SPY")]


def test_auth_with_fields_of_the_sdks_own() -> None:
    """One SDK copies its whole configuration into the request."""
    client = Client()
    auth = {"action": "auth", "key": "K", "secret": "S", "paper": True, "rate_limit": None, "extra": {"deep": [1]}}
    assert client.request(auth) == Authenticate("K", "S")


@pytest.mark.parametrize(("key", "secret"), [("oauth", "token"), ("access_token", "token"), ("", "")])
def test_credentials_are_passed_on_unchecked(key: str, secret: str) -> None:
    assert Client().request({"action": "auth", "key": key, "secret": secret}) == Authenticate(key, secret)
    assert Client().request({"action": "auth"}) == Authenticate("", "")


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
        ("/v2/test", STOCKS),  # all keys: JavaScript 3 throws if one is missing
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
def test_an_ack_has_every_documented_channel_in_documented_order(path: str, keys: list[str]) -> None:
    client = Client(path)
    [ack] = client.decode(client.acked(frozenset()))
    assert list(ack.items()) == [("T", "subscription"), *((key, []) for key in keys)]
    held = frozenset((key, symbol) for key in keys if key not in STOCKS[-2:] for symbol in ("B", "*", "A"))
    [ack] = client.decode(client.acked(held))
    assert list(ack.items()) == [("T", "subscription"), *((key, ["*", "A", "B"]) for key in keys)]


def test_an_ack_byte_for_byte() -> None:
    held = frozenset({("trades", "MSFT"), ("trades", "AAPL"), ("bars", "*")})
    assert Client().acked(held) == (
        b'[{"T":"subscription","trades":["AAPL","MSFT"],"quotes":[],"bars":["*"],"updatedBars":[],"dailyBars":[],'
        b'"statuses":[],"lulds":[],"corrections":["AAPL","MSFT"],"cancelErrors":["AAPL","MSFT"]}]'
    )


def test_an_ack_has_undocumented_channels_while_they_are_held() -> None:
    """Such as `imbalances`, and channels that the proxy has no name for."""
    client = Client()
    [ack] = client.decode(client.acked(frozenset({("imbalances", "SPY"), ("auctions", "*")})))
    assert list(ack)[:10] == ["T", *STOCKS]
    assert (ack["imbalances"], ack["auctions"], ack["corrections"]) == (["SPY"], ["*"], [])


@CODECS
def test_a_long_ack_is_computed_in_steps(content_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes do not depend on the steps, and it has the channels of its feed."""
    monkeypatch.setattr(cooperative, "CHUNK_SIZE", 100)
    held = frozenset(("trades", f"S{number}") for number in range(1000))
    for path in ("/v2/iex", "/v1beta3/crypto/us", "/v1beta1/crypto"):
        client = Client(path, content_type)
        [ack] = client.decode(client.acked(held))
        assert ack["trades"] == sorted(symbol for _, symbol in held)
        assert ("lulds" in ack) == ("orderbooks" not in ack) == (path == "/v2/iex")
        assert sum(1 for _ in client.protocol.acked(held)) >= 10, "it yields after each chunk"


def test_a_long_request_is_parsed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooperative, "CHUNK_SIZE", 100)
    client = Client().log_in()
    symbols = [f"S{number}" for number in range(1000)]
    outcomes = [*client.protocol.receive(client.encode({"action": "subscribe", "trades": symbols}))]
    assert outcomes[-1] == Subscribe(frozenset(("trades", symbol) for symbol in symbols))
    assert set(outcomes[:-1]) == {None}
    assert len(outcomes) > 10


def test_reprs() -> None:
    assert repr(Client().log_in().protocol) == "<ServerProtocol iex json authenticated>"
    assert repr(Client("/stream").protocol) == "<TradingServerProtocol trading json greeted>"


# Crypto pairs without a slash


@CODECS
def test_pairs_without_a_slash(content_type: str) -> None:
    client = Client("/v1beta1/crypto", content_type).log_in()
    today = frozenset({("trades", "BTC/USD"), ("quotes", "ETH/BTC"), ("bars", "*")})
    assert client.subscribe(trades=["BTCUSD"], quotes=["ETH/BTC"], bars=["*"]) == Subscribe(today)
    assert client.unsubscribe(trades=["BTCUSD"]) == Unsubscribe(frozenset({("trades", "BTC/USD")}))
    [ack] = client.decode(client.acked(today))
    assert (ack["trades"], ack["quotes"], ack["bars"]) == (["BTCUSD"], ["ETHBTC"], ["*"])
    assert client.subscribe(news=["BTCUSD"]) == FOREIGN
