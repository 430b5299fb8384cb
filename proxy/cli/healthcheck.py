"""`healthcheck`: the exit status of the running proxy's /readyz, for containers, which have no curl."""

from __future__ import annotations

import argparse
import os

from proxy.cli.config_file import complain, config_path
from proxy.cli.running import NotRunning, running
from proxy.cli.terminal import Exit, fail
from proxy.config.errors import ConfigError


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    try:
        status, body = running(path, os.environ).ask("/readyz")
    except ConfigError as error:
        return complain(error, path)
    except NotRunning as error:
        return fail(str(error))
    print(body.rstrip())
    return Exit.GOOD if status == 200 else Exit.FAILED
