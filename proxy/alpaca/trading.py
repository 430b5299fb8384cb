"""The trading dialect: requests and replies of `/stream`.

Objects, not arrays; binary frames, in JSON too; no greeting and no codes (docs.alpaca.markets, "Websocket Streaming").
`listen` replaces the set of streams; streams that the client is not allowed are silently absent from the reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.alpaca.codec import Codec, Raw
from proxy.alpaca.endpoints import WILDCARD, Endpoint
from proxy.alpaca.market import AuthRequest
from proxy.alpaca.topics import Subscription, Topic

OAUTH = "oauth"  # the key of an account whose secret is an OAuth token

TradingMessage = dict[str, Any]

AUTHORIZED: TradingMessage = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
UNAUTHORIZED: TradingMessage = {"stream": "authorization", "data": {"status": "unauthorized", "action": "authenticate"}}
NOT_YET: TradingMessage = {"stream": "authorization", "data": {"status": "unauthorized", "action": "listen"}}
INVALID: TradingMessage = {"stream": "listening", "data": {"error": "invalid syntax"}}


def listening(streams: list[str]) -> TradingMessage:
    """Return the acknowledgement, which names all streams of the session, sorted."""
    return {"stream": "listening", "data": {"streams": streams}}


@dataclass(frozen=True, slots=True)
class ListenRequest:
    """A `listen` to these streams, or (`stop`) an `unlisten`; names as received."""

    streams: tuple[str, ...]
    stop: bool = False


def request(message: Mapping[str, Raw], codec: Codec) -> AuthRequest | ListenRequest | None:
    """Parse a client's request; None if it is not one.

    Both forms of log-in are accepted: `authenticate`, which every SDK sends, and the flat `auth` of the documentation.
    """
    action = codec.text_of(message.get("action"))
    if action == "auth":
        return _auth(message, "key", "secret", codec)
    data = codec.fields_of(message.get("data"))
    if data is None:
        return None
    if action == "authenticate":
        return _auth(data, "key_id", "secret_key", codec)
    if action not in ("listen", "unlisten"):
        return None
    names = codec.texts_of(data["streams"]) if _has(data, "streams", codec) else []
    return None if names is None else ListenRequest(tuple(names), action == "unlisten")


def _auth(data: Mapping[str, Raw], key_name: str, secret_name: str, codec: Codec) -> AuthRequest | None:
    key, secret = (codec.text_of(data[name]) if _has(data, name, codec) else "" for name in (key_name, secret_name))
    return None if key is None or secret is None else AuthRequest(key, secret)


def _has(data: Mapping[str, Raw], name: str, codec: Codec) -> bool:
    return name in data and not codec.is_null(data[name])


def topics(streams: Iterable[str], endpoint: Endpoint) -> Subscription:
    """Return the topics of the streams that this endpoint has, without the others.

    A stream is a channel whose only symbol is the wildcard.
    """
    return frozenset((stream, WILDCARD) for stream in streams if stream in endpoint.channels)


def authenticate(key: str, secret: str) -> TradingMessage:
    """Return the request that logs in to Alpaca.

    With the key `oauth`, the secret is the token of an OAuth application, which this dialect sends under another name
    than the market dialect (alpacahq/alpaca-trade-api-csharp, OAuthKey).
    """
    if key == OAUTH:
        return {"action": "authenticate", "data": {"oauth_token": secret}}
    return {"action": "authenticate", "data": {"key_id": key, "secret_key": secret}}


def listen(held: Iterable[Topic]) -> TradingMessage:
    """Return the request to Alpaca for exactly these topics."""
    return {"action": "listen", "data": {"streams": sorted({channel for channel, _ in held})}}
