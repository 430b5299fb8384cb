"""The key and secret that a request carries in its headers."""

from __future__ import annotations

import base64
import binascii
from typing import Any


def header_credentials(environ: dict[str, Any], *, bearer: bool = False) -> tuple[str, str] | None:
    """Return the key and secret in the request's headers, or None.

    They are Alpaca's own pair of headers or HTTP Basic. With `bearer`, a Bearer token is read like that of Basic: it is
    what SDKs send whose credentials are an OAuth token.
    """
    key, secret = environ.get("HTTP_APCA_API_KEY_ID"), environ.get("HTTP_APCA_API_SECRET_KEY")
    if key is not None and secret is not None:
        return _utf8(key), _utf8(secret)
    scheme, _, encoded = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "basic" or (bearer and scheme.lower() == "bearer"):
        try:
            user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return "", ""
        return user, password
    return None


def _utf8(header: str) -> str:
    """Decode a header as UTF-8, as clients send it.

    WSGI decodes headers as Latin-1 (PEP 3333).
    """
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header
