"""`keygen`: a new client, with a random key, and a random secret that is shown this once."""

from __future__ import annotations

import argparse
import hashlib
import secrets
from dataclasses import dataclass, field

from proxy.cli.terminal import Exit

KEY_BYTES, SECRET_BYTES = 4, 32

SHOWN = """\
For the algorithm (the secret is shown this once):
  key     {key}
  secret  {secret}

For the proxy's configuration, under clients:
  {name}:
    key: {key}
    secret: {digest}
    allow:
      iex: {{trades: [AAPL]}}"""


@dataclass(frozen=True, slots=True)
class NewClient:
    """A client that is to be: its name, the key that begins with it, and its secret. 256 random bits need no slow
    hash; a key that nobody guesses keeps guesses of the secret off from the start."""

    name: str
    tail: str = field(default_factory=lambda: secrets.token_hex(KEY_BYTES))
    secret: str = field(repr=False, default_factory=lambda: secrets.token_urlsafe(SECRET_BYTES))

    @property
    def key(self) -> str:
        """What the algorithm passes as its key."""
        return f"{self.name}-{self.tail}"

    @property
    def digest(self) -> str:
        """The secret as the configuration holds it: `sha256:HEX`."""
        return f"sha256:{hashlib.sha256(self.secret.encode()).hexdigest()}"


def run(options: argparse.Namespace) -> Exit:
    client = NewClient(options.name)
    print(SHOWN.format(name=client.name, key=client.key, secret=client.secret, digest=client.digest))
    return Exit.GOOD
