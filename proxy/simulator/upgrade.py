"""Parsing of upgrade requests: feed, codec and credentials."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from proxy.alpaca import endpoints as feeds
from proxy.alpaca.endpoints import Dialect, Endpoint
from proxy.simulator import wire
from proxy.simulator.account_plan import AccountSlots
from proxy.simulator.conversation import Credentials, MarketSession
from proxy.simulator.trading import TradingSession

Environ = Mapping[str, Any]


def endpoint(environ: Environ) -> Endpoint | None:
    """Return the endpoint at one of Alpaca's paths, or None.

    The aliases that the proxy adds do not exist at Alpaca.
    """
    path = environ["PATH_INFO"]
    feed = feeds.feed_of_path(path, "")
    endpoint = feeds.endpoint(feed) if feed else None
    return endpoint if endpoint is not None and path in (endpoint.path, "/stream/") else None


def session(environ: Environ, endpoint: Endpoint, slots: AccountSlots) -> MarketSession | TradingSession:
    """Return the session that this request starts."""
    if endpoint.dialect is Dialect.TRADING:
        return TradingSession(endpoint, slots)
    return MarketSession(endpoint, wire.codec(endpoint, environ.get("CONTENT_TYPE") or ""), slots)


def credentials(environ: Environ) -> Credentials | None:
    """Return the headers' credentials, if any: APCA-API-…, Basic or Bearer."""
    key, secret = environ.get("HTTP_APCA_API_KEY_ID"), environ.get("HTTP_APCA_API_SECRET_KEY")
    if key is not None and secret is not None:
        return Credentials(key, secret)
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer":
        return Credentials("oauth", value.strip())
    if scheme.lower() == "basic":
        try:
            key, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return Credentials("", "")
        return Credentials(key, secret)
    return None
