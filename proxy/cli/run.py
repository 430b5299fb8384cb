"""No verb: the proxy itself, from its configuration to its last farewell."""

from __future__ import annotations

import argparse
import os
import time

from proxy import logs
from proxy.cli.settings import complain, config_path
from proxy.cli.startup import announce
from proxy.cli.terminal import Exit
from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.errors import ConfigError
from proxy.gateway import Gateway, State
from proxy.notify import Notifier


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    manager = Notifier.of(os.environ, os.getpid())

    def read_again() -> Config:
        manager.reloading(time.monotonic())
        return configuration.load(path, os.environ)

    def beat() -> None:
        state = gateway.state.value
        status = f"{state}: {len(gateway.server.conversations)} sessions, {len(gateway.upstreams)} feeds"
        reloading = gateway.reloading and gateway.state is State.SERVING
        manager.beat(time.monotonic(), "reloading" if reloading else state, status)

    try:
        config = configuration.load(path, os.environ)
    except ConfigError as error:
        return complain(error, path, Exit.CANNOT_WORK)
    logs.set_up(config.log.format, config.log.level)
    gateway = Gateway(config, read=read_again)
    with gateway.signals():
        gateway.start()
        announce(config, path, listening=gateway.server.address, admin=gateway.admin.address)
        gateway.wait(beat)
    return Exit.GOOD
