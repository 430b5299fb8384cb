"""`simulate`: run the simulator alone, to develop against, with the faults of its options."""

from __future__ import annotations

import argparse
from urllib.parse import urlencode

from proxy import simulator
from proxy.cli.parser import FAULTS
from proxy.cli.terminal import Exit
from proxy.simulator.fault_settings import FaultSettings
from proxy.transport.errors import StartError

READY = """\
A simulated Alpaca at {url}, key `key`, secret `secret`. In the proxy's configuration:
  accounts: {{simulated: {{key: key, secret: secret, data_url: "{url}", trading_url: "{url}"}}}}
Faults: {faults}. Another while it runs:
  curl -X POST "{http}/faults?drop=now"
Ctrl-C ends it."""


def run(options: argparse.Namespace) -> Exit:
    given = {name: getattr(options, name.replace("-", "_")) for name, _, _ in FAULTS}
    texts = {name: text for name, text in given.items() if text is not None}

    def ready(running: simulator.Simulator) -> None:
        faults = urlencode(texts, safe=",").replace("&", " ") or "none"
        print(READY.format(url=running.url, http=running.url.replace("ws", "http", 1), faults=faults), flush=True)

    try:
        simulator.run(port=options.port, settings=FaultSettings().changed(texts), ready=ready)
    except OSError as error:
        raise StartError.cannot_listen(f"port {options.port}", error, "name another with --port") from error
    return Exit.GOOD
