"""The environments that SDKs are installed into, each with its own interpreter or its own folder of packages.

They are kept from one run to the next, in `$ALPACA_PROXY_SDK_CACHE` or `.sdk` at the root of the repository; each is
made anew when what is installed or the interpreter has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tests.sdk.sdks import Sdk

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = Path(__file__).resolve().parent / "drivers"
CACHE_VARIABLE = "ALPACA_PROXY_SDK_CACHE"
INSTALL_SECONDS = 240
AT_ONCE = 2
NODE = 20  # the oldest that JavaScript's 4 runs on


class InstallError(Exception):
    """An SDK could not be installed; the text says which and why."""


def cache() -> Path:
    """Where environments are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or ROOT / ".sdk")


class Environments:
    """Installs in the background, a few at once; `command` waits for the one that it needs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        self._folder = folder
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._pending: dict[str, Future[Path]] = {}

    def prepare(self, sdks: Iterable[Sdk]) -> None:
        """Begins with these, in this order."""
        for sdk in sdks:
            if sdk.environment not in self._pending:
                self._pending[sdk.environment] = self._pool.submit(_install, sdk, self._folder / sdk.environment)

    def command(self, sdk: Sdk) -> list[str]:
        """What runs this SDK's driver. Raises InstallError."""
        self.prepare([sdk])
        folder = self._pending[sdk.environment].result(INSTALL_SECONDS)
        driver = str(DRIVERS / sdk.driver)
        return ["node", driver, str(folder)] if sdk.javascript else [str(folder / "bin" / "python"), "-u", driver]

    def close(self) -> None:
        """Waits for what is being installed, so that nothing is left half made."""
        self._pool.shutdown(cancel_futures=True)


def _install(sdk: Sdk, folder: Path) -> Path:
    """The environment of an SDK, from the cache if it is there."""
    recipe = json.dumps([sys.version, sdk.requirements, sdk.alone])
    stamp = folder / "made-of"
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    if sdk.javascript:
        folder.mkdir()
        node = _run(sdk, ["node", "--version"]).strip()
        if int(node.removeprefix("v").partition(".")[0]) < NODE:
            raise InstallError(f"{sdk} cannot be installed: it wants Node {NODE}, and this is {node}")
        npm = ["npm", "install", "--prefix", str(folder), "--loglevel=error", "--no-audit", "--no-fund"]
        _run(sdk, [*npm, *sdk.requirements])
    else:
        _run(sdk, [sys.executable, "-m", "venv", str(folder)])
        # What is imported is compiled when it is; compiling all of it first takes longer than the rest.
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
        _run(sdk, [*pip, *sdk.requirements])
        if sdk.alone:
            _run(sdk, [*pip, "--no-deps", sdk.alone])
    stamp.write_text(digest)
    return folder


def _run(sdk: Sdk, command: list[str]) -> str:
    """What a command prints. Raises InstallError with the reason that it gives for its failure."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{sdk} cannot be installed: {error}") from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()] or ["no reason given"]
        why = next((line for line in said if "No matching" in line), said[-1])
        raise InstallError(f"{sdk} cannot be installed: {why}")
    return done.stdout
