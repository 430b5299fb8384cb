"""What the tests of the connections share: a certificate for this machine, and a way to wait."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that nobody vouches for, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "server.crt", folder / "server.key"
    command = "openssl req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=127.0.0.1"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=20)
    return cert, key


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Waits until something is so, and returns it: `wait_until(lambda: listener.strangers == 0)`."""

    def wait_until(so: Callable[[], T], seconds: float = 5) -> T:
        deadline = time.monotonic() + seconds
        while not (found := so()):
            assert time.monotonic() < deadline, "it did not come about in time"
            time.sleep(0.002)
        return found

    return wait_until
