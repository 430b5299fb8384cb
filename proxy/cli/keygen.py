"""`keygen`: key and secret of a new client, both random.

The secret is printed once; the configuration stores its digest.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
from dataclasses import dataclass, field

from proxy.cli.terminal import Exit

KEY_BYTES, SECRET_BYTES = 4, 32

OUTPUT = """\
For the algorithm (the secret is not shown again):
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
    """A new client: its name, its key (which starts with the name) and its secret.

    A secret of 256 random bits needs no slow hash. The key is random too, so that the secret of a client cannot be
    guessed at by its name alone.
    """

    name: str
    tail: str = field(default_factory=lambda: secrets.token_hex(KEY_BYTES))
    secret: str = field(repr=False, default_factory=lambda: secrets.token_urlsafe(SECRET_BYTES))

    @property
    def key(self) -> str:
        """The key that the algorithm sends."""
        return f"{self.name}-{self.tail}"

    @property
    def digest(self) -> str:
        """The secret as the configuration stores it: `sha256:HEX`."""
        return f"sha256:{hashlib.sha256(self.secret.encode()).hexdigest()}"


def run(options: argparse.Namespace) -> Exit:
    client = NewClient(options.name)
    print(OUTPUT.format(name=client.name, key=client.key, secret=client.secret, digest=client.digest))
    return Exit.GOOD
