"""What the tests of the verbs share: a configuration on disk, and a verb called as `main` calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.cli import main

Write = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class Said:
    """What a verb printed: what it was asked for (`out`), and what it said about it (`err`)."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A configuration of this text, which only its owner can read."""

    def write(text: str) -> Path:
        path = tmp_path / "proxy.yaml"
        path.write_text(text, "utf-8")
        path.chmod(0o600)
        return path

    return write


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `alpaca-proxy …` in this process."""
    monkeypatch.delenv("ALPACA_PROXY_CONFIG", raising=False)

    def call(*arguments: str | Path) -> Said:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # which is how argparse ends
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Said(code, captured.out, captured.err)

    return call
