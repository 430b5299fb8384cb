"""Crypto pairs as Alpaca wrote them before 2022: `BTCUSD`, today `BTC/USD`.

SDKs of that time ask `/v1beta1/crypto` and know pairs by the old name alone. On that path both are understood, and
what goes out has the old one; bodies keep all their other bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.alpaca.codec import JSON, MSGPACK, Codec, JsonCodec, MsgPackCodec, Raw
from proxy.alpaca.topics import Subscription, Topic

PATH = "/v1beta1/crypto"
_QUOTED_IN = ("USDT", "USDC", "USD", "BTC")


def to_current(symbol: str) -> str:
    """The pair's name of today."""
    if "/" not in symbol:
        for currency in _QUOTED_IN:
            if symbol.endswith(currency) and symbol != currency:
                return f"{symbol[: -len(currency)]}/{currency}"
    return symbol


def plain(symbol: str) -> str:
    """The pair's name of then."""
    return symbol.replace("/", "")


def to_current_pairs(topics: Iterable[Topic]) -> Subscription:
    """Topics under today's names."""
    return frozenset((channel, to_current(symbol)) for channel, symbol in topics)


def to_plain_pairs(topics: Iterable[Topic]) -> Subscription:
    """Topics under the old names."""
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
        return bytes(body).replace(old[1:], new[1:], 1)  # without the map's own byte: key and value, side by side


PLAIN_PAIRS = {JSON.name: _PlainJson(), MSGPACK.name: _PlainMsgPack()}
