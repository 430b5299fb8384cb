"""Allowlists against a simple model, and the authentication of clients."""

from __future__ import annotations

import hmac
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing import allowlists
from proxy.routing.allowlists import Allowlist, Client, Directory, OrderPatterns, SymbolPatterns, WhenSlow, digest

FEEDS = st.sampled_from(["iex", "crypto", "trading"])
CHANNELS = st.sampled_from(["trades", "quotes", "corrections", "cancelErrors", "something", "*"])
LISTED = st.sampled_from(["trades", "quotes", "something", "*"])
SYMBOLS = st.one_of(st.just("*"), st.text(alphabet="AB/", min_size=1, max_size=3))
ENTRIES = st.one_of(SYMBOLS, SYMBOLS.filter(lambda symbol: symbol != "*").map(lambda symbol: symbol + "*"))
RULES = st.dictionaries(FEEDS, st.dictionaries(LISTED, st.lists(ENTRIES, max_size=4), max_size=3), max_size=3)

Rules = dict[str, dict[str, list[str]]]


def permitted_by_model(rules: Rules, feed: str, channel: str, symbol: str) -> bool:
    if channel in ("corrections", "cancelErrors"):
        channel = "trades"
    entries = [*rules.get(feed, {}).get(channel, []), *rules.get(feed, {}).get("*", [])]
    if symbol == "*":
        return "*" in entries
    return any(symbol.startswith(entry[:-1]) if entry.endswith("*") else symbol == entry for entry in entries)


def client(name: str = "momentum", key: str = "momentum", secret: str = "hunter2", **more: object) -> Client:
    settings = {"accounts": {"default": "paper"}, "allow": Allowlist({}), **more}
    return Client(name=name, key=key, digest=digest(secret), **settings)  # type: ignore[arg-type]


@given(RULES, FEEDS, CHANNELS, SYMBOLS)
def test_permits_and_explain_agree_with_the_model(rules: Rules, feed: str, channel: str, symbol: str) -> None:
    allow = Allowlist(rules)
    permitted = permitted_by_model(rules, feed, channel, symbol)
    assert allow.permits(feed, channel, symbol) == permitted
    entry = allow.explain(feed, channel, symbol)
    assert (entry is not None) == permitted
    assert entry is None or permitted_by_model({feed: {"*": [entry]}}, feed, channel, symbol)


@given(RULES, FEEDS, st.lists(st.tuples(CHANNELS, SYMBOLS)))
def test_refused_returns_the_topics_that_are_not_permitted(
    rules: Rules, feed: str, topics: list[tuple[str, str]]
) -> None:
    refused = [topic for topic in topics if not permitted_by_model(rules, feed, *topic)]
    assert Allowlist(rules).refused(feed, topics) == refused


def test_topics_that_are_not_listed_are_denied() -> None:
    allow = Allowlist({"iex": {"trades": ["AAPL"]}, "sip": {}})
    assert not Allowlist({}).permits("iex", "trades", "AAPL")
    assert not allow.permits("iex", "quotes", "AAPL")
    assert not allow.permits("crypto", "trades", "AAPL")
    assert not allow.permits("iex", "trades", "aapl")
    assert not allow.permits("iex", "trades", "")
    assert not allow.permits("sip", "trades", "AAPL")


def test_a_prefix_never_permits_the_wildcard() -> None:
    allow = Allowlist({"trading": {"trade_updates": ["momentum-*"]}, "iex": {"trades": ["A*", "B*"]}})
    assert allow.permits("trading", "trade_updates", "momentum-")
    assert allow.permits("trading", "trade_updates", "momentum-17")
    assert not allow.permits("trading", "trade_updates", "momentum")
    assert not allow.permits("trading", "trade_updates", "*")
    assert not allow.permits("iex", "trades", "*")


def test_the_wildcard_permits_all_symbols_and_itself() -> None:
    allow = Allowlist({"iex": {"bars": ["*"]}})
    assert allow.permits("iex", "bars", "*")
    assert allow.permits("iex", "bars", "AAPL")
    assert not allow.accepts_unknown("iex")
    assert not allow.permits("iex", "novelties", "AAPL")


def test_the_channel_wildcard_covers_unknown_channels() -> None:
    allow = Allowlist({"iex": {"*": ["AAPL"], "quotes": ["MSFT"]}})
    assert allow.accepts_unknown("iex") == SymbolPatterns(["AAPL"])
    assert allow.accepts_unknown("sip") is None
    assert allow.permits("iex", "novelties", "AAPL")
    assert allow.permits("iex", "quotes", "AAPL")
    assert allow.permits("iex", "corrections", "AAPL")
    assert not allow.permits("iex", "novelties", "MSFT")


def test_corrections_and_cancel_errors_follow_the_trades() -> None:
    allow = Allowlist({"iex": {"trades": ["AAPL"], "corrections": ["MSFT"]}})
    for channel in ("corrections", "cancelErrors"):
        assert allow.permits("iex", channel, "AAPL")
        assert not allow.permits("iex", channel, "MSFT")


def test_each_crypto_location_is_a_feed_of_its_own() -> None:
    allow = Allowlist({"crypto-us-1": {"*": ["*"]}})
    assert allow.names("crypto-us-1")
    assert not allow.names("crypto")
    assert not allow.permits("crypto", "trades", "BTC/USD")


def test_explain_returns_the_most_exact_entry() -> None:
    allow = Allowlist({"iex": {"trades": ["*", "A*", "AAPL", "AA*"], "*": ["MSFT"]}})
    assert allow.explain("iex", "trades", "AAPL") == "AAPL"
    assert allow.explain("iex", "cancelErrors", "AAP") == "AA*"
    assert allow.explain("iex", "trades", "MSFT") == "MSFT"
    assert allow.explain("iex", "trades", "X") == "*"
    assert allow.explain("iex", "trades", "*") == "*"
    assert allow.explain("iex", "quotes", "AAPL") is None
    assert allow.granted_by("iex", "quotes", "MSFT") == ("*", "MSFT")
    assert allow.granted_by("iex", "cancelErrors", "AAPL") == ("trades", "AAPL")


def test_symbols_of_orders() -> None:
    """Of the trading feed alone; on others, `symbol:` is text like any other."""
    entries = ["momentum-*", "symbol:TSLA", "symbol:BTC/*"]
    allow = Allowlist({"trading": {"trade_updates": entries}, "iex": {"trades": ["symbol:*"]}})
    for symbol in ("symbol:TSLA", "symbol:T/SLA", "symbol:BTCUSD", "symbol:BTC/USD", "momentum-1"):
        assert allow.permits("trading", "trade_updates", symbol)
    for symbol in ("TSLA", "symbol:TSL", "symbol:tsla", "symbol:*", "symbol:", "*", "symbol:momentum-1"):
        assert not allow.permits("trading", "trade_updates", symbol)
    assert allow.explain("trading", "trade_updates", "symbol:BTC/USD") == "symbol:BTC/*"
    assert not allow.permits("iex", "trades", "A")
    assert OrderPatterns(["symbol:*"]).permit("symbol:*")
    assert not OrderPatterns(["symbol:*"]).permit("*")
    assert OrderPatterns(["*"]).permit("symbol:*")
    assert OrderPatterns(["symbol:BTCUSD"]) == OrderPatterns(["symbol:BTC/USD"]) != OrderPatterns(["BTCUSD"])


def test_order_patterns_are_those_of_an_accounts_clients() -> None:
    orders = Allowlist({"trading": {"trade_updates": ["a*"], "*": ["symbol:B"]}})
    one = client("one", "k1", allow=orders)
    other = client("other", "k2", accounts={"default": "data", "trading": "live"}, allow=orders)
    directory = Directory([one, other, client("none", "k3"), client("elsewhere", "k4", accounts={"iex": "paper"})])
    patterns = directory.order_patterns("paper")
    assert patterns == {"one": OrderPatterns(["a*", "symbol:B"])}
    assert directory.order_patterns("paper") is patterns
    assert [*directory.order_patterns("live")] == ["other"]


def test_allowlists_with_the_same_entries_are_equal() -> None:
    assert Allowlist({"iex": {"trades": ["A", "B"]}}) == Allowlist({"iex": {"trades": ("B", "A", "A")}})
    assert Allowlist({"iex": {"trades": ["A"]}}) != Allowlist({"iex": {"trades": ["A", "B"]}})
    assert Allowlist({"iex": {}}) != Allowlist({})
    assert Allowlist({}) != {}
    assert hash(Allowlist({"iex": {"trades": ["A"]}})) == hash(Allowlist({"iex": {"trades": ["A"]}}))


def test_feeds_entries_and_repr_of_an_allowlist() -> None:
    allow = Allowlist({"iex": {"trades": ["B", "A", "B"]}, "crypto": {"*": ["*"]}})
    assert allow.feeds() == ("iex", "crypto")
    assert allow.entries("iex") == {"trades": ("B", "A")}
    assert allow.entries("sip") == {}
    assert repr(allow) == "Allowlist(iex: trades, crypto: *)"
    assert repr(Allowlist({})) == "Allowlist(nothing)"


def test_authentication_needs_the_key_and_its_secret() -> None:
    one, two = client("one", "k1", "s1"), client("two", "k2", "s2")
    directory = Directory([one, two])
    assert directory.authenticate("k1", "s1") is one
    assert directory.authenticate("k2", "s2") is two
    for key, secret in [("k1", "s2"), ("k1", ""), ("", ""), ("k3", "s1"), ("K1", "s1"), ("k1", "s1 "), ("one", "s1")]:
        assert directory.authenticate(key, secret) is None


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text_can_be_a_key_and_a_secret(key: str, secret: str) -> None:
    assert Directory([client(secret="another secret")]).authenticate(key, secret) is None
    configured = client(key=key, secret=secret)
    assert Directory([configured]).authenticate(key, secret) is configured


def test_a_huge_secret_is_refused() -> None:
    assert Directory([client()]).authenticate("momentum", "é" * 10_000_000) is None


@pytest.mark.parametrize("key", ["momentum", "unknown"])
def test_an_unknown_key_takes_the_same_steps_as_a_wrong_secret(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, digested = [], []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    def digest_of(secret: str) -> bytes:
        digested.append(secret)
        return digest(secret)

    directory = Directory([client()])
    monkeypatch.setattr(allowlists, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    monkeypatch.setattr(allowlists, "digest", digest_of)
    assert directory.authenticate(key, "wrong") is None
    assert compared == [(32, 32)]
    assert digested == ["wrong"]


def test_two_clients_cannot_have_the_same_key() -> None:
    with pytest.raises(ValueError, match="the clients one and two share the key 'k'"):
        Directory([client("one", "k"), client("two", "k")])


def test_a_directory_is_a_collection_of_clients() -> None:
    one, two = client("one", "k1"), client("two", "k2")
    directory = Directory([one, two])
    assert list(directory) == [one, two]
    assert len(directory) == 2
    assert directory.named("two") is two
    assert directory.named("k1") is None
    assert repr(directory) == "Directory(one, two)"


def test_the_repr_of_a_client_has_its_key_but_not_its_digest() -> None:
    text = repr(client(when_slow=WhenSlow.CONFLATE))
    assert "momentum" in text
    assert "digest" not in text
    assert digest("hunter2").hex() not in text
    assert str(digest("hunter2")) not in text


def test_clients_are_compared_by_value_and_immutable() -> None:
    assert client() == client()
    assert client() != client(secret="other")
    assert client() != client(allow=Allowlist({"iex": {"trades": ["A"]}}))
    assert len({client(), client()}) == 1
    with pytest.raises(FrozenInstanceError):
        client().name = "other"  # type: ignore[misc]
    assert client(when_slow=WhenSlow.CONFLATE).when_slow == "conflate"


def test_the_account_of_a_feed() -> None:
    split = client(accounts={"default": "data", "trading": "paper"})
    assert (split.account("iex"), split.account("trading")) == ("data", "paper")
    with pytest.raises(LookupError):
        client(accounts={"trading": "paper"}).account("iex")
