"""Where a verb finds its configuration, and what it says of one that cannot work."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from proxy.cli.terminal import CONFIG_VARIABLE, DEFAULT_CONFIG, Exit, command, fail
from proxy.config.errors import ConfigError


def config_path(options: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """`-c FILE`, else the variable, else the default."""
    given: Path | None = getattr(options, "config", None)
    return given or Path(environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)


def complain(error: ConfigError, path: Path, code: Exit = Exit.FAILED) -> Exit:
    """Says all that is wrong with a configuration, and what to do when there is none."""
    lines = [str(error)]
    if len(error.problems) > 1:
        lines.append(f"{len(error.problems)} problems")
    if not path.exists():
        lines.append(f"name another with -c FILE, write one with `{command()} init`, or try `demo`, which needs none")
    return fail("\n".join(lines), code)
