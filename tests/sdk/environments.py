"""The environments that SDKs are installed into.

There is a Python environment or a Node folder for each set of requirements, and a folder in front of a shared one for
each SDK that is installed alone. They are cached in `$ALPACA_PROXY_SDK_CACHE` or `.sdk` at the root of the repository;
each is rebuilt when its requirements or the interpreter have changed.
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
NODE = 20  # the oldest version that the JavaScript SDK 4 runs on


class InstallError(Exception):
    """An SDK could not be installed; the message names it and the reason."""


@dataclass(frozen=True, slots=True)
class Driver:
    """The command that runs an SDK's driver, and additional environment variables."""

    command: Sequence[str]
    variables: dict[str, str] = field(default_factory=dict)


def cache() -> Path:
    """The folder of the cached environments."""
    return Path(os.environ.get(CACHE_VARIABLE) or ROOT / ".sdk")


class Environments:
    """Installs SDKs in the background, AT_ONCE at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        self._folder = folder
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._pending: dict[str, Future[Path]] = {}

    def prepare(self, sdks: Iterable[Sdk]) -> None:
        """Start to install these, in this order.

        Shared environments come first, the rest waits for them.
        """
        sdks = list(sdks)
        for sdk in sdks:
            self._begin(sdk.environment, _install_node if sdk.javascript else _install_python, sdk)
        for sdk in sdks:
            if sdk.alone:
                self._begin(sdk.package, self._install_alone, sdk)

    def driver(self, sdk: Sdk) -> Driver:
        """The command for an SDK, once it is installed. Raises InstallError."""
        self.prepare([sdk])
        folder, program = self._pending[sdk.environment].result(), str(DRIVERS / sdk.driver)
        if sdk.javascript:
            return Driver(["node", program, str(folder)])
        alone = {"PYTHONPATH": str(self._pending[sdk.package].result())} if sdk.alone else {}
        return Driver([str(folder / "bin" / "python"), "-u", program], alone)

    def close(self) -> None:
        """Wait for running installations, so that none is left incomplete."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, name: str, install: Callable[[Sdk, Path], None], sdk: Sdk) -> None:
        if name not in self._pending:
            self._pending[name] = self._pool.submit(_install_unless_cached, sdk, self._folder / name, install)

    def _install_alone(self, sdk: Sdk, folder: Path) -> None:
        environment = self._pending[sdk.environment].result()
        _pip(sdk, environment, "--no-deps", "--target", str(folder), *sdk.alone)


def _install_unless_cached(sdk: Sdk, folder: Path, install: Callable[[Sdk, Path], None]) -> Path:
    """The folder, installed unless the cached one is current."""
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
        raise InstallError(f"{sdk} cannot be installed: it needs Node {NODE}, and this is {node}")
    npm = ["npm", "install", "--prefix", str(folder), "--loglevel=error", "--no-audit", "--no-fund"]
    _run(sdk, [*npm, *sdk.requirements])


def _install_python(sdk: Sdk, folder: Path) -> None:
    _run(sdk, [sys.executable, "-m", "venv", "--without-pip", str(folder)])
    _pip(sdk, folder, *sdk.requirements)
    # pandas is most of what the SDKs import: compile it once here instead of in each of them at the same time.
    _run(
        sdk,
        [
            str(folder / "bin" / "python"),
            "-c",
            "import contextlib\nwith contextlib.suppress(ImportError):\n import pandas",
        ],
    )


def _pip(sdk: Sdk, environment: Path, *arguments: str) -> None:
    """Install into an environment that has no pip.

    Compiling all modules would take longer than installing.
    """
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    _run(sdk, [*pip, "install", "--quiet", "--no-compile", *arguments])


def _run(sdk: Sdk, command: list[str]) -> str:
    """Run a command and return its output.

    Raises InstallError with the reason from its stderr.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{sdk} cannot be installed: {error}") from error
    if done.returncode:
        errors = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()] or ["no reason given"]
        reason = next((line for line in errors if "No matching" in line), errors[-1])
        raise InstallError(f"{sdk} cannot be installed: {reason}")
    return done.stdout
