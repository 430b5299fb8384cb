"""The key and secret that an upgrade request carries in its headers."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from proxy.alpaca.server_protocol import ServerProtocol, TradingServerProtocol


def header_credentials(environ: dict[str, Any], session: ServerProtocol) -> tuple[str, str] | None:
    """The key and secret of the request's headers: Alpaca's own pair, or HTTP's Basic. The trading stream has none."""
    if isinstance(session, TradingServerProtocol):
        return None
    key, secret = environ.get("HTTP_APCA_API_KEY_ID"), environ.get("HTTP_APCA_API_SECRET_KEY")
    if key is not None and secret is not None:
        return _utf8(key), _utf8(secret)
    scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(given.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return "", ""
        return user, password
    return None


def _utf8(header: str) -> str:
    """A header's text: WSGI shows bytes as Latin-1 (PEP 3333), while programs mean UTF-8, as in a message."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header
