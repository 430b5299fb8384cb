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
def test_the_path_of_each_feed(feed: str, path: str) -> None:
    served = endpoint(feed)
    assert served is not None
    assert (served.feed, served.path) == (feed, path)
    assert feed_of_path(path, "iex") == feed


@pytest.mark.parametrize(
    ("path", "feed"),
    [
        ("/", "sip"),
        ("/stream/", "trading"),
        ("/us", "crypto"),  # Go with DATA_CRYPTO_PROXY_WS
        ("/us-1", "crypto-us-1"),
        ("/global", "crypto-perps-global"),
        ("/crypto", "crypto"),
        ("/crypto-eu-1", "crypto-eu-1"),
        ("/v1beta2/crypto", "crypto"),
        ("/v1beta1/crypto", "crypto"),
        ("", None),
        ("/v2", None),
        ("iex", None),
        ("/v2/IEX", None),
        ("/v2/boats", None),
        ("/v1beta3/crypto/", None),
        ("/v2/iex/../sip", None),
        ("/v2/i/ex", None),
        ("/v1beta3/crypto/usa", None),
        ("/v1beta3/crypto/us-1/x", None),
        ("/v2/orders", None),
    ],
)
def test_the_feed_of_a_request_path(path: str, feed: str | None) -> None:
    assert feed_of_path(path, "sip") == feed


@pytest.mark.parametrize("feed", [feed for feed in PATHS if feed != "trading"])
def test_every_bare_feed_name_is_an_alias(feed: str) -> None:
    """Go's SDK opens the last part of the path at the address that its variables name."""
    assert feed_of_path(f"/{feed}", "sip") == feed
    assert feed_of_path(f"/{PATHS[feed].rpartition('/')[2]}", "sip") == feed


@pytest.mark.parametrize("path", [*PATHS.values(), "/us", "/delayed_sip", "/v1beta1/crypto"])
def test_doubled_and_trailing_slashes_are_ignored(path: str) -> None:
    feed = feed_of_path(path, "sip")
    assert feed is not None
    for written in (f"{path}/", f"/{path}", path.replace("/", "//"), f"{path}///"):
        assert feed_of_path(written, "sip") == feed
    assert feed_of_path("//", "sip") == "sip"


@pytest.mark.parametrize("feed", ["", "IEX", "polygon", "crypto-us", "crypto-usa-1", "crypto-us-123", "crypto-us-1 "])
def test_names_that_are_not_feeds(feed: str) -> None:
    assert endpoint(feed) is None


def test_feed_names_of_the_configuration() -> None:
    assert set(feed_names()) == {feed for feed in PATHS if not feed.endswith("-1")}


def test_dialects_codecs_and_options() -> None:
    for name in feed_names():
        listed = endpoint(name)
        assert listed is not None
        assert (listed.dialect is Dialect.TRADING) == (name == "trading")
        assert listed.options == (name in ("indicative", "opra"))
        assert listed.codecs[0] == ("json" if name == "trading" else "msgpack")
        assert ("json" in listed.codecs) != listed.options


def test_the_channel_of_every_kind_is_carried_by_a_feed() -> None:
    carried = {channel for name in feed_names() if (listed := endpoint(name)) for channel in listed.channels}
    assert set(CHANNEL_OF_KIND.values()) == carried - {"trade_updates", "account_updates"}
    assert (CHANNEL_OF_KIND["c"], CHANNEL_OF_KIND["x"]) == ("trades", "trades")
