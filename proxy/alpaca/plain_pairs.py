"""Crypto pairs as named before 2022, without a slash: `BTCUSD`, today `BTC/USD`.

SDKs of that time connect to `/v1beta1/crypto` and have no other name for a pair. On that path requests may use either
name, and replies and data have the old one; all other bytes of a body are kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.alpaca.codec import JSON, MSGPACK, Codec, JsonCodec, MsgPackCodec, Raw
from proxy.alpaca.topics import Subscription, Topic

PATH = "/v1beta1/crypto"
_QUOTED_IN = ("USDT", "USDC", "USD", "BTC")


def to_current(symbol: str) -> str:
    """Return today's name of a pair; any other symbol is returned unchanged."""
    if "/" not in symbol:
        for currency in _QUOTED_IN:
            if symbol.endswith(currency) and symbol != currency:
                return f"{symbol[: -len(currency)]}/{currency}"
    return symbol


def plain(symbol: str) -> str:
    """Return the pair's name without the slash."""
    return symbol.replace("/", "")


def to_current_pairs(topics: Iterable[Topic]) -> Subscription:
    """Return the topics under today's names."""
    return frozenset((channel, to_current(symbol)) for channel, symbol in topics)


def to_plain_pairs(topics: Iterable[Topic]) -> Subscription:
    """Return the topics under the old names."""
    return frozenset((channel, plain(symbol)) for channel, symbol in topics)


class _PlainJson(JsonCodec):
    name = "json, plain pairs"

    @property
    def base(self) -> Codec:
        return JSON

    def to_alpaca_symbol(self, symbol: str) -> str:
        return to_current(symbol)

    def to_client_body(self, kind: str, body: Raw | bytes) -> bytes:
        symbol = self.head(body).S
        return bytes(body).replace(b'"S":"%b"' % symbol.encode(), b'"S":"%b"' % plain(symbol).encode(), 1)


class _PlainMsgPack(MsgPackCodec):
    name = "msgpack, plain pairs"

    @property
    def base(self) -> Codec:
        return MSGPACK

    def to_alpaca_symbol(self, symbol: str) -> str:
        return to_current(symbol)

    def to_client_body(self, kind: str, body: Raw | bytes) -> bytes:
        symbol = self.head(body).S
        old, new = self.encode({"S": symbol}), self.encode({"S": plain(symbol)})
        return bytes(body).replace(old[1:], new[1:], 1)  # without the map's header byte: key and value


PLAIN_PAIRS = {JSON.name: _PlainJson(), MSGPACK.name: _PlainMsgPack()}
