"""What the proxy says once it has started: at most ten lines, of which the last is the address of the status page."""

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
    """Logs the summary. The addresses are those that were really taken."""
    log = Log("proxy")
    log.info("started", version=describe(), config=path)
    found = configuration.warnings(config, path)
    for warning in found[:WARNINGS]:
        log.warning("config", warning=warning)
    if len(found) > WARNINGS:
        log.warning("config", warning=f"{len(found) - WARNINGS} more; the verb `check` has them all")
    scheme = "ws" if config.listen.tls is None else "wss"
    names = {"accounts": _some(list(config.accounts)), "clients": _some(list(config.clients))}
    log.info("listening", at=f"{scheme}://{authority(listening)}", **names)
    log.info("admin", at=f"http://{authority(admin)}/")


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")
