"""The lease of one feed of one account: which node may try to lead it.

In Redis it is a signed text, so that an attacker who can write to Redis cannot send nodes to another server.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

MAX_TEXT = 2048  # characters of a lease


@dataclass(frozen=True, slots=True)
class Lease:
    """A node's permission to lead a feed.

    `owner` is the node, `url` where other nodes reach it, `live` whether its connection to Alpaca is live. A later
    lease has a greater `token`.
    """

    owner: str
    url: str
    live: bool
    token: int

    def encode(self, secret: bytes, slot: str) -> str:
        """Return the signed text of a lease of this slot."""
        text = json.dumps(asdict(self), separators=(",", ":"))
        return f"{_signature(secret, slot, text)} {text}"

    @classmethod
    def decode(cls, secret: bytes, slot: str, text: str) -> Lease | None:
        """Return the lease in a text, or None if a node of this cluster has not signed it for this slot."""
        signature, _, body = text[:MAX_TEXT].partition(" ")
        if not hmac.compare_digest(_bytes(signature), _bytes(_signature(secret, slot, body))):
            return None
        try:
            values: dict[str, Any] = json.loads(body)
            lease = cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError):  # of a node of another version
            return None
        types = (str, str, bool, int)
        return lease if tuple(map(type, (lease.owner, lease.url, lease.live, lease.token))) == types else None


def slot_of(account: str, feed: str) -> str:
    """Return the name under which the lease of an account (its hash) and feed is kept."""
    return f"{account}:{feed}"


def account_hash(secret: bytes, key: str, account_secret: str) -> str:
    """Return the name of an account in the cluster: the same on every node, and no help in guessing its secret."""
    return hmac.digest(secret, f"account\0{key}\0{account_secret}".encode(), "sha256").hex()[:32]


def _signature(secret: bytes, slot: str, text: str) -> str:
    return hmac.digest(secret, _bytes(f"lease\0{slot}\0{text}"), "sha256").hex()


def _bytes(text: str) -> bytes:
    """Return the bytes of a text from Redis, which need not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")
