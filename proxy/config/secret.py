"""Secrets, and the decoders of settings that hold one.

A secret can be compared and revealed; its repr never shows it. `literal` records that it is written in the
configuration file itself, which causes a warning. A client's secret is better given as `sha256:HEX`, which need not be
kept secret.
"""

from __future__ import annotations

import re

from proxy.config.values import Fault, Unsuitable, text
from proxy.routing.allowlists import digest

LONGEST = 4096

_DIGEST = "sha256:"


class Secret:
    """A secret whose repr does not show it. `literal`: it is written in the configuration file itself."""

    __slots__ = ("_text", "literal")

    def __init__(self, text: str, *, literal: bool = False) -> None:
        self._text = text
        self.literal = literal

    def reveal(self) -> str:
        """The secret itself, for the code that sends it."""
        return self._text

    def tail(self) -> str:
        """The part of an account's key that may be shown: its last four characters if it has more than eight."""
        return "…" + (self._text[-4:] if len(self._text) > 8 else "")

    def digest(self) -> bytes:
        """The SHA-256 digest of the secret, which the file may give in its place (`sha256:HEX`)."""
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
    """Any secret: printable, without a space at an end, at most 4,096 characters."""
    written = text(value)
    if not written.isprintable() or written != written.strip():
        raise Unsuitable(Fault("contains a line break, a control character, or a space at an end"))
    if len(written) > LONGEST:
        raise Unsuitable(Fault(f"is longer than {LONGEST} characters"))
    return Secret(str(written), literal=getattr(value, "literal", True))


def account_secret(value: object) -> Secret:
    """An account's key or secret. It is sent to Alpaca, so its digest is not enough."""
    decoded = secret(value)
    if decoded.is_digest():
        raise Unsuitable(Fault("is sent to Alpaca, so it must be the text itself and not its digest"))
    return decoded


def client_secret(value: object) -> Secret:
    """A client's secret, or its SHA-256 digest as `sha256:HEX`."""
    decoded = secret(value)
    if decoded.is_digest() and not re.fullmatch(f"{_DIGEST}[0-9a-f]{{64}}", decoded.reveal()):
        raise Unsuitable(Fault(f'should have 64 lower-case hexadecimal digits after "{_DIGEST}"; `keygen` makes one'))
    return decoded


def token(value: object) -> Secret:
    """A secret that is sent in an HTTP header."""
    decoded = secret(value)
    if decoded.is_digest():
        raise Unsuitable(Fault("must be the text itself and not its digest; `status` and `healthcheck` send it"))
    if not re.fullmatch("[!-~]+", decoded.reveal()):
        raise Unsuitable(Fault("should be ASCII without spaces, since it is sent in an HTTP header"))
    return decoded
