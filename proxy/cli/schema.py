"""`schema`: print the JSON schema of the configuration."""

from __future__ import annotations

import argparse
import json

from proxy.cli.terminal import Exit
from proxy.config import model as config


def run(_: argparse.Namespace) -> Exit:
    print(json.dumps(config.schema(), indent=2))
    return Exit.GOOD
