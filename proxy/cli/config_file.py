"""Path of the configuration, and output of its errors."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from proxy.cli.terminal import CONFIG_VARIABLE, DEFAULT_CONFIG, Exit, command, fail
from proxy.config.errors import ConfigError


def config_path(options: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """Return `-c FILE`, else the path in the environment variable, else the default."""
    given: Path | None = getattr(options, "config", None)
    return given or Path(environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)


def report_config_error(error: ConfigError, path: Path, code: Exit = Exit.FAILED) -> Exit:
    """Print all errors of a configuration, and what to do if the file does not exist."""
    lines = [str(error)]
    if len(error.problems) > 1:
        lines.append(f"{len(error.problems)} problems")
    if not path.exists():
        lines.append(
            f"name another file with -c FILE, write one with `{command()} init`, or try `demo`, which needs none"
        )
    return fail("\n".join(lines), code)
