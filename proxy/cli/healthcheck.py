"""`healthcheck`: the running proxy's /readyz, or with `--live` its /healthz, as an exit status.

For containers, which often have no curl. `--live` is the one that may restart a container: a proxy is not ready during
an outage of Alpaca, but a restart would end its sessions and bring no data.
"""

from __future__ import annotations

import argparse
import os

from proxy.cli.config_file import config_path, report_config_error
from proxy.cli.running import NotRunning, running
from proxy.cli.terminal import Exit, fail
from proxy.config.errors import ConfigError


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    try:
        status, body = running(path, os.environ).get("/healthz" if options.live else "/readyz")
    except ConfigError as error:
        return report_config_error(error, path)
    except NotRunning as error:
        return fail(str(error))
    print(body.rstrip())
    return Exit.GOOD if status == 200 else Exit.FAILED
