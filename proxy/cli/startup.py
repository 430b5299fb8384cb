"""Summary that the proxy logs at its start.

It has at most ten lines; the last is the address of the status page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxy.cli.running import authority
from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.observe.logs import Log
from proxy.observe.version import describe

WARNINGS = 5
NAMES = 8


def announce(config: Config, path: Path, *, listening: tuple[str, int], admin: tuple[str, int]) -> None:
    """Log the summary; the addresses are those that the listeners are bound to."""
    log = Log("proxy")
    log.info("started", version=describe(), config=path)
    warnings = configuration.warnings(config, path, disk=False)  # the recorder's thread reports problems of the disk
    for warning in warnings[:WARNINGS]:
        log.warning("config", warning=warning)
    if len(warnings) > WARNINGS:
        log.warning("config", warning=f"{len(warnings) - WARNINGS} more; the verb `check` lists them all")
    scheme = "ws" if config.listen.tls is None else "wss"
    names = {"accounts": _shortened(list(config.accounts)), "clients": _shortened(list(config.clients))}
    log.info("listening", at=f"{scheme}://{authority(listening)}", **names)
    if config.cluster is not None:
        log.info("cluster", name=config.cluster.name, at=config.cluster.url, redis=config.cluster.redis.shown)
    log.info("admin", at=f"http://{authority(admin)}/")


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")
