"""Outcomes of a session, which the connection and the server perform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Received:
    """A request was received; `request` has no secrets."""

    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Respond:
    """Send a control message in a frame of its own."""

    document: Any


@dataclass(frozen=True, slots=True)
class Admitted:
    """The session has logged in with `key` and has a connection slot."""

    key: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Topics that were added to the subscriptions, as (channel, symbol)."""

    topics: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Hangup:
    """End the connection as Alpaca does: without a close frame."""


Outcome = Received | Respond | Admitted | Joined | Hangup

SECRETS = frozenset(("secret", "secret_key", "oauth_token", "token", "password"))


def without_secrets(request: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the request without its secrets."""
    return {
        str(name): without_secrets(value) if isinstance(value, Mapping) else value
        for name, value in request.items()
        if name not in SECRETS
    }
