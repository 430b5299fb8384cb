"""Alpaca's endpoints: feeds, paths, dialects, channels and codecs in one table.

A *feed* is a name in the configuration (`iex`, `crypto`, `trading`); an `Endpoint` describes it for the protocol: path,
dialect, channels, codecs. Paths are Alpaca's own (docs.alpaca.markets, "Streaming Market Data"); the aliases are the
paths that SDKs really open when they are pointed at another host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache


class Dialect(Enum):
    """The conventions of a stream.

    MARKET has arrays, `auth` and `subscribe`; TRADING has objects, `authenticate` and `listen`.
    """

    MARKET = "market"
    TRADING = "trading"


WILDCARD = "*"

# The channel whose subscription covers each kind of message (its key `T`). Corrections and cancel errors come with the
# trades of their symbol and have no subscription of their own.
CHANNEL_OF_KIND = {
    "t": "trades",
    "q": "quotes",
    "b": "bars",
    "u": "updatedBars",
    "d": "dailyBars",
    "s": "statuses",
    "l": "lulds",
    "i": "imbalances",
    "c": "trades",
    "x": "trades",
    "o": "orderbooks",
    "n": "news",
    "p": "pricing",
}
FOLLOWERS = ("corrections", "cancelErrors")

_STOCKS = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds", "imbalances")
_CRYPTO = ("trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars")
_MARKET_CHANNELS = frozenset((*CHANNEL_OF_KIND.values(), *FOLLOWERS))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One Alpaca source.

    `channels` can be subscribed to and listed in an allowlist. `shown` are the keys of every acknowledgement, in
    Alpaca's documented order (some SDKs throw if one is missing); a channel outside of `shown` is added while a session
    holds a topic of it. `codecs` are those that the upstream connection may use, the default first.
    """

    feed: str
    path: str
    channels: tuple[str, ...]
    shown: tuple[str, ...]
    dialect: Dialect = Dialect.MARKET
    codecs: tuple[str, ...] = ("msgpack", "json")

    @property
    def options(self) -> bool:
        """Whether this is an options endpoint.

        Its default codec is msgpack; JSON is refused (412), and so is a wildcard on quotes (413).
        """
        return self.codecs == ("msgpack",)

    def foreign(self, channel: str) -> bool:
        """Whether Alpaca has this channel, but not on this endpoint (410)."""
        return channel in _MARKET_CHANNELS and channel not in self.channels and channel not in self.shown


def _stocks(feed: str, version: str) -> Endpoint:
    shown = (*_STOCKS[:-1], *FOLLOWERS)
    return Endpoint(feed, f"/{version}/{feed}", _STOCKS, shown)


def _options(feed: str) -> Endpoint:
    return Endpoint(feed, f"/v1beta1/{feed}", ("trades", "quotes"), ("trades", "quotes"), codecs=("msgpack",))


def _crypto(feed: str, location: str) -> Endpoint:
    return Endpoint(feed, f"/v1beta3/crypto/{location}", _CRYPTO, _CRYPTO)


_PERPS = (*_CRYPTO, "pricing")
_TRADING = ("trade_updates", "account_updates")

_ENDPOINTS = {
    endpoint.feed: endpoint
    for endpoint in (
        *(_stocks(feed, "v2") for feed in ("sip", "iex", "delayed_sip", "otc", "test")),
        *(_stocks(feed, "v1beta1") for feed in ("boats", "overnight")),
        *(_options(feed) for feed in ("indicative", "opra")),
        Endpoint("news", "/v1beta1/news", ("news",), ("news",)),
        _crypto("crypto", "us"),
        Endpoint("crypto-perps-global", "/v1beta1/crypto-perps/global", _PERPS, _PERPS),
        Endpoint("trading", "/stream", _TRADING, (), Dialect.TRADING, ("json",)),
    )
}

# crypto-us-1, crypto-eu-1, …: a pattern, since Alpaca adds locations from time to time.
_CRYPTO_LOCATION = re.compile(r"crypto-([a-z]{2}-[0-9]{1,2})")

_OLD_PATHS = {
    "/v1beta2/crypto": "crypto",  # alpaca-trade-api 3
    "/v1beta1/crypto": "crypto",  # alpaca-trade-api 1 and 2, JavaScript 2
}


def feed_names() -> tuple[str, ...]:
    """The feed names of the configuration, except crypto locations (`crypto-us-1`)."""
    return tuple(_ENDPOINTS)


@lru_cache(maxsize=256)
def endpoint(feed: str) -> Endpoint | None:
    """Return the endpoint of a feed, or None if there is no such feed."""
    if (listed := _ENDPOINTS.get(feed)) is not None:
        return listed
    if (match := _CRYPTO_LOCATION.fullmatch(feed)) is not None:
        return _crypto(feed, match[1])
    return None


def _bare_names() -> dict[str, str]:
    """Return the feeds by paths of a single name: `/iex`, `/us`, `/crypto`.

    Go's SDK appends only the last part of Alpaca's path to the address in DATA_PROXY_WS or DATA_CRYPTO_PROXY_WS.
    """
    names = {f"/{feed}": feed for feed in _ENDPOINTS}
    return names | {f"/{listed.path.rpartition('/')[2]}": listed.feed for listed in _ENDPOINTS.values()}


_FEED_OF_PATH = _bare_names() | {listed.path: listed.feed for listed in _ENDPOINTS.values()} | _OLD_PATHS
_CRYPTO_PATH = re.compile(r"/(?:v1beta3/crypto/|crypto-)?([a-z]{2}-[0-9]{1,2})")
_SLASHES = re.compile("/{2,}")


def without_extra_slashes(path: str) -> str:
    """Return a path without doubled and trailing slashes, which programs that join addresses leave behind."""
    return _SLASHES.sub("/", path).rstrip("/") or path[:1]


def feed_of_path(path: str, default_feed: str) -> str | None:
    """Return the feed of a request path, or None; `/` is the default feed."""
    path = without_extra_slashes(path)
    if path == "/":
        return default_feed
    if (feed := _FEED_OF_PATH.get(path)) is not None:
        return feed
    if (match := _CRYPTO_PATH.fullmatch(path)) is not None:
        return f"crypto-{match[1]}"
    return None
