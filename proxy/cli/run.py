"""No verb: run the proxy, from loading the configuration to the end of its drain."""

from __future__ import annotations

import argparse
import os
import time

from proxy.cli.config_file import config_path, report_config_error
from proxy.cli.service_manager import Notifier
from proxy.cli.startup import announce
from proxy.cli.terminal import Exit
from proxy.config import model as configuration
from proxy.config.errors import ConfigError
from proxy.config.model import Config
from proxy.gateway import Gateway, GatewayState
from proxy.observe import logs


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    notifier = Notifier.of(os.environ, os.getpid())

    def reload_config() -> Config:
        notifier.reloading(time.monotonic())
        return configuration.load(path, os.environ)

    def beat() -> None:
        state = gateway.state.value
        status = f"{state}: {len(gateway.server.sessions)} sessions, {len(gateway.upstreams)} feeds"
        reloading = gateway.reloading and gateway.state is GatewayState.SERVING
        notifier.beat(time.monotonic(), "reloading" if reloading else state, status)

    try:
        config = configuration.load(path, os.environ)
    except ConfigError as error:
        return report_config_error(error, path, Exit.CANNOT_WORK)
    logs.set_up(config.log.format, config.log.level)
    gateway = Gateway(config, read=reload_config)
    with gateway.signals():
        gateway.start()
        announce(config, path, listening=gateway.server.address, admin=gateway.admin.address)
        gateway.wait(beat)
    return Exit.GOOD
