"""Secrets: how they are held, and the settings that hold one.

A secret can be compared and revealed; its repr never shows it. It remembers whether it stands in the configuration file
itself, since that deserves a warning. Clients' secrets are better given as `sha256:HEX`, which needs no hiding.
"""

from __future__ import annotations

import re

from proxy.config.values import Fault, Unsuitable, text
from proxy.routing.allowlists import digest

LONGEST = 4096

_DIGEST = "sha256:"


class Secret:
    """A secret: compared and revealed, never shown. `literal` tells that it stands in the file itself."""

    __slots__ = ("_text", "literal")

    def __init__(self, text: str, *, literal: bool = False) -> None:
        self._text = text
        self.literal = literal

    def reveal(self) -> str:
        """The secret itself, for the one place that sends it."""
        return self._text

    def tail(self) -> str:
        """As much of an account's key as may be shown: its last four characters, unless that were half of it."""
        return "…" + (self._text[-4:] if len(self._text) > 8 else "")

    def digest(self) -> bytes:
        """The SHA-256 digest of the secret, which a client's may be given as (`sha256:HEX`) in its place."""
        return bytes.fromhex(self._text[len(_DIGEST) :]) if self.is_digest() else digest(self._text)

    def is_digest(self) -> bool:
        """Whether the file holds `sha256:HEX` rather than the secret."""
        return self._text.startswith(_DIGEST)

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(…)"


def secret(value: object) -> Secret:
    """A secret, and whether it stands in the file in plain text."""
    written = text(value)
    if not written.isprintable() or written != written.strip():
        raise Unsuitable(Fault("holds a line break, a control character, or a space at an end"))
    if len(written) > LONGEST:
        raise Unsuitable(Fault(f"is longer than {LONGEST} characters"))
    return Secret(str(written), literal=getattr(value, "literal", True))


def account_secret(value: object) -> Secret:
    """An account's key or secret, which is needed itself since it is sent to Alpaca."""
    held = secret(value)
    if held.is_digest():
        raise Unsuitable(Fault("is sent to Alpaca, so it must be the text itself and not its digest"))
    return held


def client_secret(value: object) -> Secret:
    """A client's secret, or its SHA-256 digest as `sha256:HEX`."""
    held = secret(value)
    if held.is_digest() and not re.fullmatch(f"{_DIGEST}[0-9a-f]{{64}}", held.reveal()):
        raise Unsuitable(Fault(f'should have 64 lower-case hexadecimal digits after "{_DIGEST}"; `keygen` makes one'))
    return held


def token(value: object) -> Secret:
    """A secret that travels in an HTTP header."""
    held = secret(value)
    if held.is_digest():
        raise Unsuitable(
            Fault("must be the text itself and not its digest; the verbs `status` and `healthcheck` send it")
        )
    if not re.fullmatch("[!-~]+", held.reveal()):
        raise Unsuitable(Fault("should be ASCII without spaces, since it travels in an HTTP header"))
    return held
