"""Which alpaca-proxy this is: the version, the commit it was built from and the Python it runs on.

A built alpaca-proxy.pyz carries its commit in `proxy/commit.txt`, stamped there by build_zipapp.py; a
checkout asks git. Neither is needed to run: a commit that nobody can tell is "unknown".

`import proxy` imports this module, before gevent has patched anything; so what brings in threading and selectors
(`subprocess`, and on some Pythons `platform`) is imported where it is used.
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
    if not (root / ".git").exists():  # never the commit of some other repository that happens to enclose this one
        return "unknown"
    import subprocess

    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"
