"""Fixtures for the verbs: a configuration file, and a call of `main`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.cli import main

Write = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class Result:
    """Exit code and output of a verb."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writer of a configuration file that only its owner can read."""

    def write(text: str) -> Path:
        path = tmp_path / "proxy.yaml"
        path.write_text(text, "utf-8")
        path.chmod(0o600)
        return path

    return write


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Function that runs `alpaca-proxy …` in this process."""
    monkeypatch.delenv("ALPACA_PROXY_CONFIG", raising=False)

    def call(*arguments: str | Path) -> Result:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # raised by argparse
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call
