"""`simulate`: run the simulator alone, to develop against."""

from __future__ import annotations

import argparse

from proxy import simulator
from proxy.cli.terminal import Exit
from proxy.transport.errors import StartError

READY = """\
A simulated Alpaca at {url}, key `key`, secret `secret`. In the proxy's configuration:
  accounts: {{simulated: {{key: key, secret: secret, data_url: "{url}", trading_url: "{url}"}}}}
Ctrl-C ends it."""


def run(options: argparse.Namespace) -> Exit:
    try:
        simulator.run(port=options.port, ready=lambda running: print(READY.format(url=running.url), flush=True))
    except OSError as error:
        raise StartError.cannot_listen(f"port {options.port}", error, "name another with --port") from error
    return Exit.GOOD
