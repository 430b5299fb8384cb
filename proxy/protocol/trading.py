"""The trading dialect: what is said on `/stream`, by both sides.

Objects, not arrays; JSON inside binary frames; no greeting and no codes (docs.alpaca.markets, "Websocket Streaming").
`listen` replaces the streams that are heard; streams that one may not have are silently absent from the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from proxy.protocol.feeds import WILDCARD, Endpoint
from proxy.protocol.market import Auth
from proxy.protocol.topics import Subscription, Topic

Frame = dict[str, Any]

AUTHORIZED: Frame = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
UNAUTHORIZED: Frame = {"stream": "authorization", "data": {"status": "unauthorized", "action": "authenticate"}}
NOT_YET: Frame = {"stream": "authorization", "data": {"status": "unauthorized", "action": "listen"}}
INVALID: Frame = {"stream": "listening", "data": {"error": "invalid syntax"}}


def listening(streams: Iterable[str]) -> Frame:
    """The acknowledgement: all the streams that are heard."""
    return {"stream": "listening", "data": {"streams": sorted(streams)}}


@dataclass(frozen=True, slots=True)
class Listen:
    """A `listen` to these streams, or an `unlisten`; the names as they came."""

    streams: tuple[str, ...]
    stop: bool = False


def request(document: Any) -> Auth | Listen | None:
    """What a client asks, None for what is no request. Both forms of logging in are read: `authenticate` of every SDK
    and the flat `auth` of the documentation."""
    if not isinstance(document, dict):
        return None
    action, data = document.get("action"), document.get("data")
    if action == "auth":
        data = {"key_id": document.get("key"), "secret_key": document.get("secret")}
    if not isinstance(data, dict):
        return None
    if action in ("auth", "authenticate"):
        key, secret = data.get("key_id") or "", data.get("secret_key") or ""
        return Auth(key, secret) if isinstance(key, str) and isinstance(secret, str) else None
    streams = data.get("streams")
    if action in ("listen", "unlisten") and (streams is None or isinstance(streams, list)):
        names = tuple(streams or ())
        return Listen(names, action == "unlisten") if all(isinstance(name, str) for name in names) else None
    return None


def topics(streams: Iterable[str], endpoint: Endpoint) -> Subscription:
    """The topics of those streams that this endpoint has; a stream is a channel whose symbol is the wildcard."""
    return frozenset((stream, WILDCARD) for stream in streams if stream in endpoint.channels)


def authenticate(key: str, secret: str) -> Frame:
    """The request that logs in to Alpaca."""
    return {"action": "authenticate", "data": {"key_id": key, "secret_key": secret}}


def listen(held: Iterable[Topic]) -> Frame:
    """The request for all that is wanted."""
    return {"action": "listen", "data": {"streams": sorted({channel for channel, _ in held})}}
