"""The environments that SDKs are installed into: a Python environment or a folder of Node's for each set of
requirements, and in front of a shared one a folder for each SDK that is installed alone.

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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.sdk.sdks import Sdk

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = Path(__file__).resolve().parent / "drivers"
CACHE_VARIABLE = "ALPACA_PROXY_SDK_CACHE"
INSTALL_SECONDS = 240  # for each command
AT_ONCE = 3
NODE = 20  # the oldest that JavaScript's 4 runs on


class InstallError(Exception):
    """An SDK could not be installed; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Driver:
    """What runs an SDK's driver: a command, and variables of its environment."""

    command: Sequence[str]
    variables: dict[str, str] = field(default_factory=dict)


def cache() -> Path:
    """Where environments are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or ROOT / ".sdk")


class Environments:
    """Installs in the background, a few at once; `driver` waits for what it needs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        self._folder = folder
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._pending: dict[str, Future[Path]] = {}

    def prepare(self, sdks: Iterable[Sdk]) -> None:
        """Begins with these, in this order; what is shared comes first, since the rest waits for it."""
        sdks = list(sdks)
        for sdk in sdks:
            self._begin(sdk.environment, _install_node if sdk.javascript else _install_python, sdk)
        for sdk in sdks:
            if sdk.alone:
                self._begin(sdk.package, self._install_alone, sdk)

    def driver(self, sdk: Sdk) -> Driver:
        """Raises InstallError."""
        self.prepare([sdk])
        folder, program = self._pending[sdk.environment].result(), str(DRIVERS / sdk.driver)
        if sdk.javascript:
            return Driver(["node", program, str(folder)])
        alone = {"PYTHONPATH": str(self._pending[sdk.package].result())} if sdk.alone else {}
        return Driver([str(folder / "bin" / "python"), "-u", program], alone)

    def close(self) -> None:
        """Waits for what is being installed, so that nothing is left half made."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, name: str, install: Callable[[Sdk, Path], None], sdk: Sdk) -> None:
        if name not in self._pending:
            self._pending[name] = self._pool.submit(_made, sdk, self._folder / name, install)

    def _install_alone(self, sdk: Sdk, folder: Path) -> None:
        intern_topics = self._pending[sdk.environment].result()
        _pip(sdk, intern_topics, "--no-deps", "--target", str(folder), *sdk.alone)


def _made(sdk: Sdk, folder: Path, install: Callable[[Sdk, Path], None]) -> Path:
    """The folder with its contents, from the cache if they are there."""
    recipe = json.dumps([sys.version, sdk.requirements, sdk.alone if folder.name == sdk.package else []])
    stamp = folder / "made-of"
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        install(sdk, folder)
        stamp.write_text(digest)
    return folder


def _install_node(sdk: Sdk, folder: Path) -> None:
    folder.mkdir()
    node = _run(sdk, ["node", "--version"]).strip()
    if int(node.removeprefix("v").partition(".")[0]) < NODE:
        raise InstallError(f"{sdk} cannot be installed: it wants Node {NODE}, and this is {node}")
    npm = ["npm", "install", "--prefix", str(folder), "--loglevel=error", "--no-audit", "--no-fund"]
    _run(sdk, [*npm, *sdk.requirements])


def _install_python(sdk: Sdk, folder: Path) -> None:
    _run(sdk, [sys.executable, "-m", "venv", "--without-pip", str(folder)])
    _pip(sdk, folder, *sdk.requirements)
    # The most of what they import; compiled once here, and not by each of them at the same time.
    _run(sdk, [str(folder / "bin" / "python"), "-c", "import pandas"])


def _pip(sdk: Sdk, environment: Path, *arguments: str) -> None:
    """Installs into an environment that has no pip of its own. What is imported is compiled when it is; compiling all
    of it takes longer than the rest."""
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    _run(sdk, [*pip, "install", "--quiet", "--no-compile", *arguments])


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
