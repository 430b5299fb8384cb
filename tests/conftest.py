from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any, TypeVar  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.ports import free_port  # noqa: E402

if TYPE_CHECKING:
    from tests.harness import Harness
    from tests.single_file import Built, LinuxBuild

# The number of examples for each property test; .ci/run uses `--hypothesis-profile=thorough`. In CI the examples are
# the same in each run, so that a failure is due to the change; elsewhere they are random and find more over time.
PINNED = "CI" in os.environ
settings.register_profile("plain", max_examples=30, deadline=None, derandomize=PINNED)
settings.register_profile("thorough", max_examples=75, deadline=None, derandomize=PINNED)
settings.load_profile("plain")

T = TypeVar("T")

# Only the fixtures import the whole proxy, so that tests of one part import only that part.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the proxy's ticks, reconnect waits and delays of refusals."""
    from proxy import gateway
    from proxy.alpaca.client_protocol import Backoff
    from proxy.downstream import auth_throttle as auth_throttle

    monkeypatch.setattr(gateway, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(Backoff, "LEAST", 0.02)
    monkeypatch.setattr(Backoff, "NETWORK_MOST", 0.1)
    monkeypatch.setattr(Backoff, "REFUSED_MOST", 0.1)
    for name in ("FIRST", "STEP", "MOST"):
        monkeypatch.setattr(auth_throttle, name, 0.02)


@pytest.fixture
def start(quick: None) -> Iterator[Callable[..., Harness]]:
    """Start a proxy in front of a simulator: `start(CLIENTS, plan=…)`.

    `config` goes to `Harness`, the other arguments to the simulator.
    """
    from proxy.simulator import Simulator
    from tests.harness import Harness

    with ExitStack() as stack:

        def start(clients: str, *, config: dict[str, Any] | None = None, **simulator: Any) -> Harness:
            harness = Harness(clients, simulator=Simulator(**{"port": free_port(), **simulator}), **(config or {}))
            stack.callback(harness.close)
            return harness

        yield start


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "server.crt", folder / "server.key"
    command = "openssl req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=127.0.0.1"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=20)
    return cert, key


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Wait for a condition; return its value: `wait_until(lambda: not server.sessions)`."""

    def wait_until(condition: Callable[[], T], seconds: float = 5) -> T:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "condition not met in time"
            time.sleep(0.002)
        return value

    return wait_until


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The single file for this Python, built from this tree."""
    from tests.single_file import build

    return build(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def linux_build(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxBuild]:
    """The running build of the single file for every Python on Linux."""
    from tests.single_file import LinuxBuild

    build = LinuxBuild(built, tmp_path_factory.mktemp("linux") / "tree")
    yield build
    build.close()


@pytest.fixture(scope="session", autouse=True)
def start_linux_build_early(request: pytest.FixtureRequest) -> None:
    """Start the longer build at once if needed, so that it runs beside other tests."""
    if any("linux" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("linux_build")


@pytest.fixture(scope="session")
def linux(linux_build: LinuxBuild) -> Built:
    """The single file for every Python on Linux."""
    return linux_build.finished()
