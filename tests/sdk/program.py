"""A program as a separate process; `output` has the lines that it printed, to stdout and to stderr."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType

import gevent


class Program:
    """A running program. The developer's own Alpaca account and the settings of this Python do not reach it."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("APCA_", "PYTHON"))}
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**kept, **variables},
        )
        self.output: list[str] = []
        self._reader = gevent.spawn(self._read)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.output.append(line)

    def story(self) -> str:
        return f"it has printed only {self.output[-20:]}"

    def has_printed(self, *words: str) -> bool:
        """Whether a line contains all of these."""
        return any(all(word in line for word in words) for line in self.output)

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._reader.join()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()
