"""`schema`: the JSON schema of the configuration for editors, or (`--markdown`) the reference for people."""

from __future__ import annotations

import argparse
import json

from proxy.cli.reference import reference
from proxy.cli.terminal import Exit
from proxy.config import model as config


def run(options: argparse.Namespace) -> Exit:
    schema = config.schema()
    print(reference(schema) if options.markdown else json.dumps(schema, indent=2))
    return Exit.GOOD
