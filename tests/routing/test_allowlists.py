"""Who may see what, against a model so simple that it must be right; and who is who."""

from __future__ import annotations

import hmac
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing import allowlists as access
from proxy.routing.allowlists import Allowlist, Client, Directory, WhenSlow, digest

FEEDS = st.sampled_from(["iex", "crypto", "trading"])
CHANNELS = st.sampled_from(["trades", "quotes", "corrections", "cancelErrors", "something", "*"])
LISTED = st.sampled_from(["trades", "quotes", "something", "*"])
SYMBOLS = st.one_of(st.just("*"), st.text(alphabet="AB/", min_size=1, max_size=3))
ENTRIES = st.one_of(SYMBOLS, SYMBOLS.filter(lambda symbol: symbol != "*").map(lambda symbol: symbol + "*"))
RULES = st.dictionaries(FEEDS, st.dictionaries(LISTED, st.lists(ENTRIES, max_size=4), max_size=3), max_size=3)

Rules = dict[str, dict[str, list[str]]]


def plainly_permitted(rules: Rules, feed: str, channel: str, symbol: str) -> bool:
    if channel in ("corrections", "cancelErrors"):
        channel = "trades"
    entries = [*rules.get(feed, {}).get(channel, []), *rules.get(feed, {}).get("*", [])]
    if symbol == "*":
        return "*" in entries
    return any(symbol.startswith(entry[:-1]) if entry.endswith("*") else symbol == entry for entry in entries)


def client(name: str = "momentum", key: str = "momentum", secret: str = "hunter2", **more: object) -> Client:
    given = {"accounts": {"default": "paper"}, "allow": Allowlist({}), **more}
    return Client(name=name, key=key, digest=digest(secret), **given)  # type: ignore[arg-type]


@given(RULES, FEEDS, CHANNELS, SYMBOLS)
def test_permits_is_what_the_rules_plainly_say(rules: Rules, feed: str, channel: str, symbol: str) -> None:
    allow = Allowlist(rules)
    permitted = plainly_permitted(rules, feed, channel, symbol)
    assert allow.permits(feed, channel, symbol) == permitted
    entry = allow.explain(feed, channel, symbol)
    assert (entry is not None) == permitted
    assert entry is None or plainly_permitted({feed: {"*": [entry]}}, feed, channel, symbol)


@given(RULES, FEEDS, st.lists(st.tuples(CHANNELS, SYMBOLS)))
def test_refused_are_those_that_are_not_permitted(rules: Rules, feed: str, topics: list[tuple[str, str]]) -> None:
    refused = [topic for topic in topics if not plainly_permitted(rules, feed, *topic)]
    assert Allowlist(rules).refused(feed, topics) == refused


def test_what_is_not_listed_is_denied() -> None:
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


def test_the_wildcard_permits_all_and_itself() -> None:
    allow = Allowlist({"iex": {"bars": ["*"]}})
    assert allow.permits("iex", "bars", "*")
    assert allow.permits("iex", "bars", "AAPL")
    assert not allow.accepts_unknown("iex")
    assert not allow.permits("iex", "novelties", "AAPL")


def test_the_channel_wildcard_covers_channels_that_nobody_knows() -> None:
    allow = Allowlist({"iex": {"*": ["AAPL"], "quotes": ["MSFT"]}})
    assert allow.accepts_unknown("iex")
    assert not allow.accepts_unknown("sip")
    assert allow.permits("iex", "novelties", "AAPL")
    assert allow.permits("iex", "quotes", "AAPL")
    assert allow.permits("iex", "corrections", "AAPL")
    assert not allow.permits("iex", "novelties", "MSFT")


def test_corrections_and_cancel_errors_follow_the_trades() -> None:
    allow = Allowlist({"iex": {"trades": ["AAPL"], "corrections": ["MSFT"]}})
    for channel in ("corrections", "cancelErrors"):
        assert allow.permits("iex", channel, "AAPL")
        assert not allow.permits("iex", channel, "MSFT")


def test_locations_of_crypto_are_feeds_of_their_own() -> None:
    allow = Allowlist({"crypto-us-1": {"*": ["*"]}})
    assert allow.names("crypto-us-1")
    assert not allow.names("crypto")
    assert not allow.permits("crypto", "trades", "BTC/USD")


def test_the_entry_that_permits_is_the_most_exact_one() -> None:
    allow = Allowlist({"iex": {"trades": ["*", "A*", "AAPL", "AA*"], "*": ["MSFT"]}})
    assert allow.explain("iex", "trades", "AAPL") == "AAPL"
    assert allow.explain("iex", "cancelErrors", "AAP") == "AA*"
    assert allow.explain("iex", "trades", "MSFT") == "MSFT"
    assert allow.explain("iex", "trades", "X") == "*"
    assert allow.explain("iex", "trades", "*") == "*"
    assert allow.explain("iex", "quotes", "AAPL") is None
    assert allow.granted_by("iex", "quotes", "MSFT") == ("*", "MSFT")
    assert allow.granted_by("iex", "cancelErrors", "AAPL") == ("trades", "AAPL")


def test_allowlists_are_equal_by_what_they_list() -> None:
    assert Allowlist({"iex": {"trades": ["A", "B"]}}) == Allowlist({"iex": {"trades": ("B", "A", "A")}})
    assert Allowlist({"iex": {"trades": ["A"]}}) != Allowlist({"iex": {"trades": ["A", "B"]}})
    assert Allowlist({"iex": {}}) != Allowlist({})
    assert Allowlist({}) != {}
    assert hash(Allowlist({"iex": {"trades": ["A"]}})) == hash(Allowlist({"iex": {"trades": ["A"]}}))


def test_an_allowlist_shows_its_feeds_and_entries() -> None:
    allow = Allowlist({"iex": {"trades": ["B", "A", "B"]}, "crypto": {"*": ["*"]}})
    assert allow.feeds() == ("iex", "crypto")
    assert allow.entries("iex") == {"trades": ("B", "A")}
    assert allow.entries("sip") == {}
    assert repr(allow) == "Allowlist(iex: trades, crypto: *)"
    assert repr(Allowlist({})) == "Allowlist(nothing)"


def test_a_client_proves_itself_with_key_and_secret() -> None:
    one, two = client("one", "k1", "s1"), client("two", "k2", "s2")
    directory = Directory([one, two])
    assert directory.authenticate("k1", "s1") is one
    assert directory.authenticate("k2", "s2") is two
    for key, secret in [("k1", "s2"), ("k1", ""), ("", ""), ("k3", "s1"), ("K1", "s1"), ("k1", "s1 "), ("one", "s1")]:
        assert directory.authenticate(key, secret) is None


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text_may_be_tried(key: str, secret: str) -> None:
    assert Directory([client(secret="a secret that is not tried")]).authenticate(key, secret) is None
    mine = client(key=key, secret=secret)
    assert Directory([mine]).authenticate(key, secret) is mine


def test_a_huge_secret_is_only_wrong() -> None:
    assert Directory([client()]).authenticate("momentum", "é" * 10_000_000) is None


@pytest.mark.parametrize("key", ["momentum", "nobody"])
def test_an_unknown_key_takes_the_steps_of_a_wrong_secret(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, digested = [], []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    def digest_of(secret: str) -> bytes:
        digested.append(secret)
        return digest(secret)

    directory = Directory([client()])
    monkeypatch.setattr(access, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    monkeypatch.setattr(access, "digest", digest_of)
    assert directory.authenticate(key, "wrong") is None
    assert compared == [(32, 32)]
    assert digested == ["wrong"]


def test_a_key_belongs_to_one_client() -> None:
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


def test_a_client_shows_its_key_and_never_its_digest() -> None:
    shown = repr(client(when_slow=WhenSlow.CONFLATE))
    assert "momentum" in shown
    assert "digest" not in shown
    assert digest("hunter2").hex() not in shown
    assert str(digest("hunter2")) not in shown


def test_a_client_is_a_value() -> None:
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
