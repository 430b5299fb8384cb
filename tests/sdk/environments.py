"""The SDKs that the suite runs, and the environment that each is installed into.

An `Sdk` is one published version, its requirements as they install today, and what it can stream. Environments are kept
from one run to the next, in `$ALPACA_PROXY_SDK_CACHE` or `.sdk` at the root of the repository; each is made anew when
its requirements or the interpreter have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = Path(__file__).resolve().parent / "drivers"
CACHE_VARIABLE = "ALPACA_PROXY_SDK_CACHE"
INSTALL_SECONDS = 240
AT_ONCE = 2

PRICES = ("trades", "quotes", "bars", "updatedBars", "dailyBars")
FOLLOWERS = ("corrections", "cancelErrors")
ALL_STOCKS = (*PRICES, "statuses", *FOLLOWERS)


@dataclass(frozen=True, slots=True)
class Sdk:
    """One version of one SDK. `streams` says which channels it knows of each stream; `retries` whether it comes back by
    itself after its connection was refused once, as when the proxy is not there for a moment."""

    name: str
    version: str
    driver: str
    requirements: tuple[str, ...]
    streams: Mapping[str, tuple[str, ...]] = field(hash=False)
    without_dependencies: bool = False

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"


ALPACA_PY = {
    "stocks": ALL_STOCKS,
    "crypto": (*PRICES, "orderbooks"),
    "options": ("trades", "quotes"),
    "news": ("news",),
    "trading": ("trade_updates",),
}

SDKS = (
    Sdk("alpaca-py", "0.44.0", "alpaca_py.py", ("alpaca-py==0.44.0",), ALPACA_PY),
)


class InstallError(Exception):
    """An SDK could not be installed; the text says which and why."""


def cache() -> Path:
    """Where environments are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or ROOT / ".sdk")


class Environments:
    """Installs in the background, a few at once; `command` waits for the one that it needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._pending: dict[Sdk, Future[Path]] = {}

    def prepare(self, sdks: Iterable[Sdk]) -> None:
        """Begins with these, in this order."""
        for sdk in sdks:
            if sdk not in self._pending:
                self._pending[sdk] = self._pool.submit(_install, sdk, self._folder / str(sdk))

    def command(self, sdk: Sdk) -> list[str]:
        """What runs this SDK's driver. Raises InstallError."""
        self.prepare([sdk])
        folder = self._pending[sdk].result(INSTALL_SECONDS)
        return [str(folder / "bin" / "python"), "-u", str(DRIVERS / sdk.driver)]

    def close(self) -> None:
        """Waits for what is being installed, so that nothing is left half made."""
        self._pool.shutdown(cancel_futures=True)


def _install(sdk: Sdk, folder: Path) -> Path:
    """The environment of an SDK, from the cache if it is there."""
    recipe = json.dumps([sys.version, sdk.requirements, sdk.without_dependencies])
    stamp = folder / "made-of"
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    _run(sdk, [sys.executable, "-m", "venv", str(folder)])
    options = ["--no-deps"] if sdk.without_dependencies else []
    # What is imported is compiled when it is; compiling all of it first takes longer than the rest.
    _run(sdk, [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *options, *sdk.requirements])
    stamp.write_text(digest)
    return folder


def _run(sdk: Sdk, command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{sdk} cannot be installed: {error}") from error
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line] or ["no reason given"]
        raise InstallError(f"{sdk} cannot be installed: {said[-1].strip()}")
