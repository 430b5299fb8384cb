"""Output of the verbs: exit codes, messages on standard error, tables.

The result of a verb goes to standard output, remarks and errors to standard error. Both may contain text from Alpaca or
from a peer, so characters that could control a terminal are replaced.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TextIO

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


def wrapped(text: str, width: int | None, indent: str = "  ") -> str:
    """Return text in lines of at most `width` characters, all but the first one indented; unchanged without a width."""
    if width is None:
        return text
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def fitted(line: str, width: int | None) -> str:
    """Return a line cut to at most `width` characters; unchanged without a width."""
    return line if width is None or len(line) <= width else f"{line[: width - 1]}…"


def columns() -> int:
    """Return the terminal's width (without a terminal 80, unless COLUMNS is set) but for its last column.

    After a character there, the sequence that clears the rest of the line would erase it.
    """
    return shutil.get_terminal_size().columns - 1


class StatusLine:
    """A status that is redrawn in place on the last line of a terminal; elsewhere each one is a line of its own."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._in_place = stream.isatty() and environ.get("TERM") != "dumb"
        self._drawn = False

    @property
    def width(self) -> int | None:
        """The present width of the terminal; None elsewhere."""
        return columns() if self._in_place else None

    def show(self, text: str) -> None:
        """Replace the status."""
        start, end = ("\r\x1b[K", "") if self._in_place else ("", "\n")
        self._drawn = self._in_place
        print(f"{start}{fitted(text, self.width)}", end=end, file=self._stream, flush=True)

    def clear(self) -> None:
        """Make room for another line, such as one of the log."""
        if self._drawn:
            self._drawn = False
            print("\r\x1b[K", end="", file=self._stream, flush=True)

    def end(self) -> None:
        """Keep the last status, and let output go on below it."""
        if self._drawn:
            self._drawn = False
            print(file=self._stream, flush=True)


LEAST_COLUMN = 4  # characters of a column that is cut

Cell = str | tuple[str, Color | None]


def table(
    heading: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    style: Style,
    *,
    width: int | None = None,
    optional: Sequence[str] = (),
) -> str:
    """Return aligned columns below a heading; a cell is a text, or text and colour.

    A table that is wider than `width` loses columns in the order of `optional`, then the ends of its longest cells.
    """
    lines: list[list[tuple[str, Color | None]]] = [[(name, Color.HEADING) for name in heading]]
    for row in rows:
        cells = [cell if isinstance(cell, tuple) else (cell, None) for cell in row]
        lines.append([(plain(text).replace("\n", " "), colour) for text, colour in cells])
    names, widths = [*heading], _widths(lines)
    if width is not None:
        for name in optional:
            if _total(widths) <= width:
                break
            column = names.index(name)
            del names[column]
            lines = [[*line[:column], *line[column + 1 :]] for line in lines]
            widths = _widths(lines)
        while _total(widths) > width and (widest := max(widths)) > LEAST_COLUMN:
            widths[widths.index(widest)] -= 1
    widths[-1:] = [0] if width is None else widths[-1:]
    return "\n".join(
        "  ".join(
            style.paint(shown, colour) + " " * (size - len(shown))
            for (text, colour), size in zip(line, widths, strict=True)
            for shown in [fitted(text, None if width is None else size)]
        ).rstrip()
        for line in lines
    )


def _widths(lines: Sequence[Sequence[tuple[str, Color | None]]]) -> list[int]:
    return [max(len(text) for text, _ in column) for column in zip(*lines, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def command() -> str:
    """Return the command that starts this program.

    It names the .pyz file, whose path pex sets in `PEX`, or else the module.
    """
    path = os.environ.get("PEX", "")
    if not path.endswith(".pyz"):
        return "python3 -m proxy"
    relative = os.path.relpath(path)
    return f"python3 {shlex.quote(path if relative.startswith(os.pardir) else relative)}"
