"""Alpaca's endpoints: paths, aliases, channels."""

from __future__ import annotations

import pytest

from proxy.alpaca.endpoints import CHANNEL_OF_KIND, Dialect, endpoint, feed_names, feed_of_path

PATHS = {
    "sip": "/v2/sip",
    "iex": "/v2/iex",
    "delayed_sip": "/v2/delayed_sip",
    "otc": "/v2/otc",
    "test": "/v2/test",
    "boats": "/v1beta1/boats",
    "overnight": "/v1beta1/overnight",
    "indicative": "/v1beta1/indicative",
    "opra": "/v1beta1/opra",
    "news": "/v1beta1/news",
    "crypto": "/v1beta3/crypto/us",
    "crypto-us-1": "/v1beta3/crypto/us-1",
    "crypto-eu-1": "/v1beta3/crypto/eu-1",
    "crypto-bs-1": "/v1beta3/crypto/bs-1",
    "crypto-perps-global": "/v1beta1/crypto-perps/global",
    "trading": "/stream",
}


@pytest.mark.parametrize(("feed", "path"), PATHS.items())
def test_a_feed_lives_at_its_path_and_is_served_there(feed: str, path: str) -> None:
    known = endpoint(feed)
    assert known is not None
    assert (known.feed, known.path) == (feed, path)
    assert feed_of_path(path, "iex") == feed


@pytest.mark.parametrize(
    ("path", "feed"),
    [
        ("/", "sip"),
        ("/stream/", "trading"),
        ("/iex", "iex"),
        ("/opra", "opra"),
        ("/us", "crypto"),
        ("/v1beta2/crypto", "crypto"),
        ("/v1beta1/crypto", "crypto"),
        ("", None),
        ("/v2", None),
        ("/v2/iex/", None),
        ("/v2/IEX", None),
        ("/v2/boats", None),
        ("/v1beta3/crypto/", None),
        ("/v1beta3/crypto/usa", None),
        ("/v1beta3/crypto/us-1/x", None),
        ("/v2/orders", None),
    ],
)
def test_what_clients_ask_for(path: str, feed: str | None) -> None:
    assert feed_of_path(path, "sip") == feed


@pytest.mark.parametrize("feed", ["", "IEX", "polygon", "crypto-us", "crypto-usa-1", "crypto-us-123", "crypto-us-1 "])
def test_feeds_that_are_none(feed: str) -> None:
    assert endpoint(feed) is None


def test_names_for_the_configuration() -> None:
    assert set(feed_names()) == {feed for feed in PATHS if not feed.endswith("-1")}


def test_dialects_codecs_and_options() -> None:
    for name in feed_names():
        known = endpoint(name)
        assert known is not None
        assert (known.dialect is Dialect.TRADING) == (name == "trading")
        assert known.options == (name in ("indicative", "opra"))
        assert known.codecs[0] == ("json" if name == "trading" else "msgpack")
        assert ("json" in known.codecs) != known.options


def test_every_kind_has_a_channel_that_some_feed_carries() -> None:
    carried = {channel for name in feed_names() if (known := endpoint(name)) for channel in known.channels}
    assert set(CHANNEL_OF_KIND.values()) == carried - {"trade_updates", "account_updates"}
    assert (CHANNEL_OF_KIND["c"], CHANNEL_OF_KIND["x"]) == ("trades", "trades")
