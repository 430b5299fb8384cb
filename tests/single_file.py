"""Helpers for tests of the single file: builds, and fresh machines to run them on.

The file is built from a copy of the files that git would keep of this tree, committed there, so that its commit is
known.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: its source tree, the tree's commit, and the build's output."""

    tree: Path
    commit: str
    printed: str

    @property
    def file(self) -> Path:
        return self.tree / "alpaca-proxy.pyz"

    def clone(self, tree: Path, *cached: str) -> Path:
        """Clone the sources to another tree, with these caches (patterns below `build/`)."""
        git("clone", "--quiet", str(self.tree), str(tree), cwd=self.tree)
        for pattern in cached:
            self.give(tree, pattern)
        return tree

    def give(self, tree: Path, pattern: str) -> None:
        """Copy the matching files and folders below `build/` to another tree."""
        (tree / "build").mkdir(exist_ok=True)
        for path in (self.tree / "build").glob(pattern):
            if path.is_dir():
                shutil.copytree(path, tree / "build" / path.name, symlinks=True)
            else:
                shutil.copy(path, tree / "build")

    @property
    def wheels(self) -> dict[str, str]:
        """The names of the wheels inside, with their SHA-256."""
        with zipfile.ZipFile(self.file) as packed:
            wheels = [name for name in packed.namelist() if name.endswith(".whl")]
            return {name.rpartition("/")[2]: hashlib.sha256(packed.read(name)).hexdigest() for name in wheels}


@dataclass(frozen=True, slots=True)
class Machine:
    """A fresh machine: an empty home, an empty cache, a separate working folder."""

    built: Built
    folder: Path
    python: str = sys.executable

    def run(
        self, *arguments: str | Path, within: tuple[str, ...] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the file with these arguments; `within` is a wrapper command."""
        return subprocess.run(
            [*within, *self.command(*arguments)],
            cwd=self.folder,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: str | Path) -> list[str]:
        return [self.python, str(self.built.file), *map(str, arguments)]

    def environment(self, **variables: str) -> dict[str, str]:
        home = str(self.folder / "home")
        return {**environment(), "HOME": home, "EXAMPLE_SECRET": "an-example-only", **variables}

    @property
    def unpacked(self) -> list[Path]:
        """The folders below the home that hold unpacked files."""
        return sorted((self.folder / "home" / ".cache" / "alpaca-proxy").glob("*"))

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, "utf-8")
        path.chmod(0o600)
        return path


def environment() -> dict[str, str]:
    """This process's environment without variables for git, pex and caches."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GIT_", "PEX", "XDG_", "ALPACA_", "APCA_"))
    }


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**environment(), **variables}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def git(*arguments: str, cwd: Path) -> str:
    options = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    done = run("git", *options, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pythons() -> list[tuple[tuple[int, int], str]]:
    """Each CPython here with its version: this one, those on PATH, those of pyenv."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if "shims" not in folder]
    folders += sorted(Path("~/.pyenv/versions").expanduser().glob("*/bin"))
    candidates = [
        (re.fullmatch(r"python([23])\.(\d+)", path.name), path) for folder in folders for path in folder.glob("p*")
    ]
    others = [((int(match[1]), int(match[2])), str(path)) for match, path in candidates if match]
    return [(sys.version_info[:2], sys.executable), *others]


FIT: dict[tuple[int, int], str] = {}
UNFIT: dict[tuple[int, int], str] = {}
for version, python in pythons():
    (FIT if (3, 10) <= version <= (3, 14) else UNFIT).setdefault(version, python)


def unprivileged() -> tuple[str, int | None]:
    """A Python and the user to run it as.

    As root: the system's Python and the user nobody. Otherwise: this Python and None, the current user.
    """
    if os.geteuid() != 0:
        return sys.executable, None
    system_pythons = [python for version, python in pythons() if version in FIT and python.startswith("/usr/")]
    assert system_pythons, "no Python in /usr that any user could run"
    return system_pythons[0], 65534


def build(tree: Path) -> Built:
    """Copy this tree's files, except ignored ones, to `tree`, commit and build there."""
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / name)
    git("init", "--quiet", cwd=tree)
    git("add", "--all", cwd=tree)
    git("commit", "--quiet", "--no-verify", "--message=test", cwd=tree)
    done = run(sys.executable, "build_zipapp.py", cwd=tree)
    assert done.returncode == 0, done.stderr
    return Built(tree, git("rev-parse", "--short=7", "HEAD", cwd=tree), done.stdout)


class LinuxBuild:
    """A build for every Python on Linux, in the background."""

    def __init__(self, built: Built, tree: Path) -> None:
        self._built = Built(built.clone(tree, "tools-*"), built.commit, "")
        command = [sys.executable, "build_zipapp.py", "--targets", "linux"]
        self._process = subprocess.Popen(
            command,
            cwd=tree,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finished(self) -> Built:
        printed, stderr = self._process.communicate(timeout=240)
        assert self._process.returncode == 0, stderr
        return replace(self._built, printed=printed)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
