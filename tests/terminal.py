"""A process of the program on a terminal (pty), and what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pyte

from tests.harness import ROOT, SECONDS

WIDE = 1000  # columns of a second screen, on which no line wraps


class Terminal:
    """`python -m proxy …` on a terminal of its own; standard input and both outputs are the terminal.

    `wide` shows the same output on a screen where no line wraps, with all its rows.
    """

    def __init__(self, *arguments: str, folder: Path, columns: int = 80, rows: int = 24) -> None:
        self._master, slave = pty.openpty()
        self._screen = pyte.Screen(columns, rows)
        self.wide = pyte.Screen(WIDE, 200)
        self._streams = [pyte.ByteStream(self._screen), pyte.ByteStream(self.wide)]
        self._set_size(columns, rows)
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        environ |= {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "proxy", *arguments],
            cwd=folder, env=environ, stdin=slave, stdout=slave, stderr=slave,
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        os.close(self._master)

    @property
    def lines(self) -> list[str]:
        """The rows of the screen, without spaces at their ends."""
        return [row.rstrip() for row in self._screen.display]

    @property
    def printed(self) -> list[str]:
        """The rows of the wide screen that are not empty."""
        return [line for row in self.wide.display if (line := row.rstrip())]

    def write(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, columns: int, rows: int = 24) -> None:
        self._set_size(columns, rows)
        self._screen.resize(rows, columns)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Show output until the condition holds. Fail with `what` after a while, or at the end of the process."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0], self._failure(what)
            assert self._read(), self._failure(what)

    def end(self) -> int:
        """Show the rest of the output, and return the exit code."""
        deadline = time.monotonic() + SECONDS
        while select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0] and self._read():
            pass
        return self.process.wait(SECONDS)

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the process has ended (Linux)
            return False
        for stream in self._streams:
            stream.feed(data)
        return bool(data)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _failure(self, what: str) -> str:
        return "\n".join([f"never {what}; on the screen:", *self.lines])
