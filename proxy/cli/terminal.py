"""Output of the verbs: exit codes, messages on standard error, tables.

The result of a verb goes to standard output, remarks and errors to standard error. Both may contain text from Alpaca or
from a peer, so characters that could control a terminal are replaced.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from enum import IntEnum

from proxy.observe.style import Color, Style

DEFAULT_CONFIG = "config/proxy.yaml"
CONFIG_VARIABLE = "ALPACA_PROXY_CONFIG"


class Exit(IntEnum):
    """Exit codes of all verbs."""

    GOOD = 0
    FAILED = 1
    """The check found problems, or a run failed."""
    USAGE = 2
    CANNOT_WORK = 78
    """The configuration of a run is invalid: EX_CONFIG of sysexits.h, so that systemd does not restart it."""


def fail(sentence: str, code: Exit = Exit.FAILED) -> Exit:
    """Print an error and return the exit code."""
    print_err(sentence)
    return code


def print_err(sentence: str) -> None:
    """Print a remark, or the next step if it may take more than a second."""
    print(plain(sentence), file=sys.stderr, flush=True)


def warn(sentence: str) -> None:
    """Print a warning."""
    label = Style.of(sys.stderr, os.environ).paint("warning:", Color.WARNING)
    print(f"{label} {plain(sentence)}", file=sys.stderr, flush=True)


def plain(text: str) -> str:
    """Return text with unprintable characters replaced; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


Cell = str | tuple[str, Color | None]


def table(heading: Sequence[str], rows: Sequence[Sequence[Cell]], style: Style) -> str:
    """Return aligned columns below a heading; a cell is a text, or text and colour."""
    lines: list[list[tuple[str, Color | None]]] = [[(name, Color.HEADING) for name in heading]]
    for row in rows:
        cells = [cell if isinstance(cell, tuple) else (cell, None) for cell in row]
        lines.append([(plain(text).replace("\n", " "), colour) for text, colour in cells])
    widths = [max(len(line[column][0]) for line in lines) for column in range(len(heading) - 1)] + [0]
    return "\n".join(
        "  ".join(
            style.paint(text, colour) + " " * (width - len(text))
            for (text, colour), width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def command(file: str | None = None) -> str:
    """Return the command that starts this program.

    It names the .pyz file, whose path pex sets in `PEX`, or else the module.
    """
    path = os.environ.get("PEX", "") if file is None else file
    if not path.endswith(".pyz"):
        return "python3 -m proxy"
    relative = os.path.relpath(path)
    return f"python3 {shlex.quote(path if relative.startswith(os.pardir) else relative)}"
