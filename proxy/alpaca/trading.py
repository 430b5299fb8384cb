"""The trading dialect: what is said on `/stream`, by both sides.

Objects, not arrays; JSON inside binary frames; no greeting and no codes (docs.alpaca.markets, "Websocket Streaming").
`listen` replaces the streams that are heard; streams that one may not have are silently absent from the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.alpaca.codec import JSON, Raw
from proxy.alpaca.endpoints import WILDCARD, Endpoint
from proxy.alpaca.market import AuthRequest
from proxy.alpaca.topics import Subscription, Topic

TradingMessage = dict[str, Any]

AUTHORIZED: TradingMessage = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
UNAUTHORIZED: TradingMessage = {"stream": "authorization", "data": {"status": "unauthorized", "action": "authenticate"}}
NOT_YET: TradingMessage = {"stream": "authorization", "data": {"status": "unauthorized", "action": "listen"}}
INVALID: TradingMessage = {"stream": "listening", "data": {"error": "invalid syntax"}}


def listening(streams: Iterable[str]) -> TradingMessage:
    """The acknowledgement: all the streams that are heard."""
    return {"stream": "listening", "data": {"streams": sorted(streams)}}


@dataclass(frozen=True, slots=True)
class ListenRequest:
    """A `listen` to these streams, or an `unlisten`; the names as they came."""

    streams: tuple[str, ...]
    stop: bool = False


def request(message: Mapping[str, Raw]) -> AuthRequest | ListenRequest | None:
    """What a client asks, None for what is no request. Both forms of logging in are read: `authenticate` of every SDK
    and the flat `auth` of the documentation."""
    action = JSON.text_of(message.get("action"))
    if action == "auth":
        return _auth(message, "key", "secret")
    data = JSON.fields_of(message.get("data"))
    if data is None:
        return None
    if action == "authenticate":
        return _auth(data, "key_id", "secret_key")
    if action not in ("listen", "unlisten"):
        return None
    names = JSON.texts_of(data["streams"]) if _has(data, "streams") else []
    return None if names is None else ListenRequest(tuple(names), action == "unlisten")


def _auth(data: Mapping[str, Raw], key_name: str, secret_name: str) -> AuthRequest | None:
    key, secret = (JSON.text_of(data[name]) if _has(data, name) else "" for name in (key_name, secret_name))
    return None if key is None or secret is None else AuthRequest(key, secret)


def _has(data: Mapping[str, Raw], name: str) -> bool:
    return name in data and not JSON.is_null(data[name])


def topics(streams: Iterable[str], endpoint: Endpoint) -> Subscription:
    """The topics of those streams that this endpoint has; a stream is a channel whose symbol is the wildcard."""
    return frozenset((stream, WILDCARD) for stream in streams if stream in endpoint.channels)


def authenticate(key: str, secret: str) -> TradingMessage:
    """The request that logs in to Alpaca."""
    return {"action": "authenticate", "data": {"key_id": key, "secret_key": secret}}


def listen(held: Iterable[Topic]) -> TradingMessage:
    """The request for all that is wanted."""
    return {"action": "listen", "data": {"streams": sorted({channel for channel, _ in held})}}
