"""`schema`: print the JSON schema of the configuration.

With `--markdown` it prints the reference, docs/configuration.md.
"""

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
