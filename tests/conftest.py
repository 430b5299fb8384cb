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

if TYPE_CHECKING:
    from tests.harness import Harness
    from tests.single_file import Built, LinuxBuild

# How many examples a property is tried on; `--hypothesis-profile=thorough` is what .ci/run asks for. There they are the
# same each time, so that a change is judged by what it does; elsewhere they are new ones, which find something at last.
PINNED = "CI" in os.environ
settings.register_profile("plain", max_examples=30, deadline=None, derandomize=PINNED)
settings.register_profile("thorough", max_examples=150, deadline=None, derandomize=PINNED)
settings.load_profile("plain")

T = TypeVar("T")

# The proxy as a whole is imported in its fixtures alone, so that tests of a part need that part and no other.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time runs faster where it is not the subject: ticks, reconnects, the wait for a refusal."""
    from proxy import gateway
    from proxy.alpaca.client_protocol import Backoff
    from proxy.downstream import auth_throttle as penalties

    monkeypatch.setattr(gateway, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(Backoff, "LEAST", 0.02)
    monkeypatch.setattr(Backoff, "MOST", 0.1)
    for name in ("FIRST", "STEP", "MOST"):
        monkeypatch.setattr(penalties, name, 0.02)


@pytest.fixture
def start(quick: None) -> Iterator[Callable[..., Harness]]:
    """Starts a proxy in front of a simulator: `start(CLIENTS, plan=…)`; `config` is for `Harness`, the rest for the
    simulator."""
    from proxy.simulator import Simulator
    from tests.harness import Harness

    with ExitStack() as stack:

        def start(clients: str, *, config: dict[str, Any] | None = None, **simulator: Any) -> Harness:
            harness = Harness(clients, simulator=Simulator(**simulator), **(config or {}))
            stack.callback(harness.close)
            return harness

        yield start


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


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The single file for this Python, built from this tree."""
    from tests.single_file import build

    return build(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def linux_build(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxBuild]:
    from tests.single_file import LinuxBuild

    build = LinuxBuild(built, tmp_path_factory.mktemp("linux") / "tree")
    yield build
    build.close()


@pytest.fixture(scope="session", autouse=True)
def early(request: pytest.FixtureRequest) -> None:
    """That longer build goes on while tests of the shorter one are at work, if any test is about it."""
    if any("linux" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("linux_build")


@pytest.fixture(scope="session")
def linux(linux_build: LinuxBuild) -> Built:
    """The single file for every Python on Linux."""
    return linux_build.finished()
