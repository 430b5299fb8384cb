"""What a session decides, for the connection and the simulator to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Received:
    """A request was read; this is what it said, without secrets."""

    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Respond:
    """A control message, alone in its frame."""

    document: Any


@dataclass(frozen=True, slots=True)
class Admitted:
    """The session has a place now; `key` says whose."""

    key: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Topics that the session holds from now on and did not before, as (channel, symbol)."""

    topics: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Hangup:
    """The connection ends, as Alpaca ends it: with no close frame."""


Outcome = Received | Respond | Admitted | Joined | Hangup

SECRETS = frozenset(("secret", "secret_key", "oauth_token", "token", "password"))


def without_secrets(request: Mapping[Any, Any]) -> dict[str, Any]:
    """The request as it may be shown."""
    return {
        str(name): without_secrets(value) if isinstance(value, Mapping) else value
        for name, value in request.items()
        if name not in SECRETS
    }
