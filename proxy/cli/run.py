"""No verb: the proxy itself, from its configuration to its last farewell."""

from __future__ import annotations

import argparse
import os

from proxy import config as configuration
from proxy import logs
from proxy.cli.settings import complain, config_path
from proxy.cli.startup import announce
from proxy.cli.terminal import Exit
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.gateway import Gateway


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)

    def read() -> Config:
        return configuration.load(path, os.environ)

    try:
        config = read()
    except ConfigError as error:
        return complain(error, path, Exit.CANNOT_WORK)
    logs.set_up(config.log.format, config.log.level)
    gateway = Gateway(config, read=read)
    gateway.start()
    announce(config, path, listening=gateway.server.address, admin=gateway.admin.address)
    gateway.wait()
    return Exit.GOOD
