"""Alpaca's endpoints: which feeds there are, where each lives, and what may be asked of it.

One table. A *feed* is a name in the configuration (`iex`, `crypto`, `trading`); an `Endpoint` is what the protocol
knows of it: path, dialect, channels, codecs. Paths are Alpaca's own (docs.alpaca.markets, "Streaming Market Data");
the aliases are those that SDKs really open when they are pointed at another host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache


class Dialect(Enum):
    """The conventions of a stream: arrays with auth and subscribe, or objects with authenticate and listen."""

    MARKET = "market"
    TRADING = "trading"


WILDCARD = "*"

# Alpaca's codes for the kind of a message (its key `T`), and the channel whose subscription it follows. Corrections and
# cancel errors come with the trades of the symbol and cannot be asked for.
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

    `channels` are those that may be asked for and listed in an allowlist. `shown` are the keys that every
    acknowledgement carries, in Alpaca's documented order (an SDK that misses one throws); a channel outside of `shown`
    is added while it is held. `codecs` are those that its upstream may speak, the default first.
    """

    feed: str
    path: str
    channels: tuple[str, ...]
    shown: tuple[str, ...]
    dialect: Dialect = Dialect.MARKET
    codecs: tuple[str, ...] = ("msgpack", "json")

    @property
    def options(self) -> bool:
        """Options are msgpack without being asked, refuse JSON (412) and a wildcard on quotes (413)."""
        return self.codecs == ("msgpack",)

    def foreign(self, channel: str) -> bool:
        """A channel of Alpaca's that this endpoint does not carry (410)."""
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

# crypto-us-1, crypto-eu-1, …: Alpaca adds locations from time to time.
_CRYPTO_LOCATION = re.compile(r"crypto-([a-z]{2}-[0-9]{1,2})")

_ALIASES = {
    "/stream/": "trading",  # alpaca-trade-api asks with the slash
    "/iex": "iex",  # Go with DATA_PROXY_WS
    "/sip": "sip",
    "/opra": "opra",
    "/indicative": "indicative",
    "/us": "crypto",  # Go with DATA_CRYPTO_PROXY_WS
    "/v1beta2/crypto": "crypto",  # alpaca-trade-api 3
    "/v1beta1/crypto": "crypto",  # alpaca-trade-api 1 and 2, JavaScript 2
}


def feed_names() -> tuple[str, ...]:
    """The names that a configuration may use, besides further crypto locations (`crypto-us-1`)."""
    return tuple(_ENDPOINTS)


@lru_cache(maxsize=256)
def endpoint(feed: str) -> Endpoint | None:
    """The endpoint of a feed's name, or None if there is no such feed."""
    if (known := _ENDPOINTS.get(feed)) is not None:
        return known
    if (match := _CRYPTO_LOCATION.fullmatch(feed)) is not None:
        return _crypto(feed, match[1])
    return None


_FEED_OF_PATH = {known.path: known.feed for known in _ENDPOINTS.values()} | _ALIASES
_CRYPTO_PATH = re.compile(r"/v1beta3/crypto/([a-z]{2}-[0-9]{1,2})")


def feed_of_path(path: str, default_feed: str) -> str | None:
    """The feed that a client means with the path of its request, or None. `/` means the default feed."""
    if path == "/":
        return default_feed
    if (known := _FEED_OF_PATH.get(path)) is not None:
        return known
    if (match := _CRYPTO_PATH.fullmatch(path)) is not None:
        return f"crypto-{match[1]}"
    return None
