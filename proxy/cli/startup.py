"""What the proxy says once it has started: at most ten lines, of which the last is the address of the status page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxy import config as configuration
from proxy.config import Config, settings
from proxy.logs import Log
from proxy.version import describe

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


def authority(address: tuple[str, int]) -> str:
    """Where an address is reached from this machine, as a URL has it."""
    host, port = near(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def near(host: str) -> str:
    """The host by which this machine reaches what listens there: every address includes its own."""
    known = settings.ip_address(host)
    if known is None or not known.is_unspecified:
        return host
    return settings.LOOPBACK if known.version == 4 else "::1"


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")
