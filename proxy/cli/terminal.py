"""How the verbs speak: exit codes, sentences on standard error, tables, and the command that the user would type.

What a verb was asked for goes to standard output; what is said about it, to standard error. Words of others (Alpaca's,
a peer's) may be in it, so nothing that could steer a terminal gets out.
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
    """The exit codes, and all of them."""

    GOOD = 0
    FAILED = 1
    """The check found problems, or a run failed."""
    USAGE = 2
    CANNOT_WORK = 78
    """The configuration of a run cannot work; EX_CONFIG of sysexits.h, after which nobody need try again."""


def fail(sentence: str, code: Exit = Exit.FAILED) -> Exit:
    """Says why there is no more, and gives the exit code back."""
    say(sentence)
    return code


def say(sentence: str) -> None:
    """What a verb is about to do, when that may take more than a second; or a remark."""
    print(plain(sentence), file=sys.stderr, flush=True)


def warn(sentence: str) -> None:
    """What is no reason to stop, but to think."""
    label = Style.of(sys.stderr, os.environ).paint("warning:", Color.WARNING)
    print(f"{label} {plain(sentence)}", file=sys.stderr, flush=True)


def plain(text: str) -> str:
    """A text of which every character is seen; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


Cell = str | tuple[str, Color | None]


def table(heading: Sequence[str], rows: Sequence[Sequence[Cell]], ink: Style) -> str:
    """Rows in aligned columns below their heading. A cell is a text, or a text and its colour."""
    lines: list[list[tuple[str, Color | None]]] = [[(name, Color.HEADING) for name in heading]]
    for row in rows:
        cells = [cell if isinstance(cell, tuple) else (cell, None) for cell in row]
        lines.append([(plain(text).replace("\n", " "), colour) for text, colour in cells])
    widths = [max(len(line[column][0]) for line in lines) for column in range(len(heading) - 1)] + [0]
    return "\n".join(
        "  ".join(
            ink.paint(text, colour) + " " * (width - len(text))
            for (text, colour), width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def command(file: str | None = None) -> str:
    """How to call this program again: the single file by its path, of which pex tells in `PEX`, else the module."""
    path = os.environ.get("PEX", "") if file is None else file
    if not path.endswith(".pyz"):
        return "python3 -m proxy"
    near = os.path.relpath(path)
    return f"python3 {shlex.quote(path if near.startswith(os.pardir) else near)}"
