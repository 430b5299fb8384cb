"""`keygen`: a new client, with a random secret that is shown this once."""

from __future__ import annotations

import argparse
import hashlib
import secrets
from dataclasses import dataclass, field

from proxy.cli.terminal import Exit

SECRET_BYTES = 32

SHOWN = """\
For the algorithm (the secret is shown this once):
  key     {name}
  secret  {secret}

For the proxy's configuration, under clients:
  {name}:
    key: {name}
    secret: {digest}
    allow:
      iex: {{trades: [AAPL]}}"""


@dataclass(frozen=True, slots=True)
class NewClient:
    """A client that is to be: its name, which is its key as well, and its secret. 256 random bits need no slow hash."""

    name: str
    secret: str = field(repr=False, default_factory=lambda: secrets.token_urlsafe(SECRET_BYTES))

    @property
    def digest(self) -> str:
        """The secret as the configuration holds it: `sha256:HEX`."""
        return f"sha256:{hashlib.sha256(self.secret.encode()).hexdigest()}"


def run(options: argparse.Namespace) -> Exit:
    client = NewClient(options.name)
    print(SHOWN.format(name=client.name, secret=client.secret, digest=client.digest))
    return Exit.GOOD
