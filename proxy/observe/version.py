"""The version of the program, the commit that it was built from, and the Python that it runs on.

build_zipapp.py writes the commit to `proxy/commit.txt` in alpaca-proxy.pyz; in a checkout it comes from git. If neither
is available, the commit is "unknown".

`import proxy` imports this module before gevent patches the standard library, so modules that import threading or
selectors (`subprocess`, and on some Pythons `platform`) are imported where they are used.
"""

from __future__ import annotations

from pathlib import Path

__version__ = "1.0.0"

COMMIT_FILE = "commit.txt"  # in the package `proxy` of a built file only

_PACKAGE = Path(__file__).parent.parent
_GIT_SECONDS = 5.0


def describe() -> str:
    """One line for `--version`, a log or a bug report: `alpaca-proxy 1.0.0 (commit abc1234, CPython 3.11.7)`."""
    import platform

    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"alpaca-proxy {__version__} (commit {commit()}, {python})"


def commit(package: Path = _PACKAGE) -> str:
    """The short commit of the `proxy` package at `package`, with `-dirty` if files were changed since, or "unknown"."""
    try:
        return (package / COMMIT_FILE).read_text("ascii").strip() or "unknown"
    except (OSError, ValueError):
        return _checked_out_commit(package.parent)


def _checked_out_commit(root: Path) -> str:
    if not (root / ".git").exists():  # else git may answer for another repository that contains this folder
        return "unknown"
    import subprocess

    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip() or "unknown"
