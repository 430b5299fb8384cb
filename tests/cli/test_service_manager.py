"""What a service manager hears, on a real datagram socket: when the proxy is ready, that it turns, when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.cli.service_manager import Notifier

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent

CONFIG = """\
listen: {port: 0}
admin: {port: 0}
accounts:
  paper: {key: PKEXAMPLE, secret: an-example-only, data_url: "ws://127.0.0.1:9", trading_url: "ws://127.0.0.1:9"}
clients:
  momentum: {key: momentum, secret: an-example-only, allow: {iex: {trades: [AAPL]}}}
"""


class Manager:
    """A service manager: the socket it reads, and what it has heard so far."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def close(self) -> None:
        self._socket.close()

    def hear(self) -> list[str]:
        """The lines that have come since the last time."""
        self._socket.settimeout(0)
        lines: list[str] = []
        while True:
            try:
                lines += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                self.heard += lines
                return lines

    def hear_until(self, line: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while line not in self.heard:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self.heard += self._socket.recv(4096).decode().splitlines()
            except TimeoutError:
                pytest.fail(f"no {line!r} within {seconds} s, but {self.heard}")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@alpaca-proxy-test-{tmp_path}"
    manager = Manager(name)
    yield manager
    manager.close()


def test_it_is_ready_once(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.beat(1.0, "starting", "")
    assert manager.hear() == []
    notifier.beat(2.0, "serving", "2 sessions")
    assert manager.hear() == ["READY=1", "STATUS=2 sessions"]
    notifier.beat(3.0, "serving", "2 sessions")
    assert manager.hear() == []


def test_a_new_status_is_news_and_stays_one_line(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.beat(1.0, "serving", "2 sessions")
    manager.hear()
    notifier.beat(2.0, "serving", "3 sessions\nWATCHDOG=trigger")
    assert manager.hear() == ["STATUS=3 sessions WATCHDOG=trigger"]


def test_the_watchdog_hears_of_it_twice_in_its_interval(manager: Manager) -> None:
    notifier = Notifier(manager.address, watchdog=10.0)
    beats = 0
    for quarter in range(4 * 60):
        notifier.beat(1000.0 + quarter / 4, "serving", "")
        beats += manager.hear().count("WATCHDOG=1")
    assert beats == 12


def test_draining_is_stopping(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.beat(1.0, "serving", "")
    notifier.beat(2.0, "draining", "")
    assert manager.hear() == ["READY=1", "STOPPING=1"]


def test_a_reload_begins_with_the_time_and_ends_with_the_next_beat_that_serves(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.beat(1.0, "serving", "")
    notifier.beat(2.4, "reloading", "")
    notifier.reloading(2.5)
    notifier.beat(2.6, "reloading", "")
    notifier.beat(2.7, "serving", "")
    assert manager.hear() == ["READY=1", "RELOADING=1", "MONOTONIC_USEC=2500000", "READY=1"]


@pytest.mark.parametrize(
    ("environ", "beats"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 3),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "7"}, 3),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "8"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({}, 0),
    ],
)
def test_the_environment_names_the_watchdog(manager: Manager, environ: dict[str, str], beats: int) -> None:
    notifier = Notifier.of({"NOTIFY_SOCKET": manager.address, **environ}, pid=7)
    for second in range(15):
        notifier.beat(100.0 + second, "serving", "")
    assert manager.hear().count("WATCHDOG=1") == beats


def test_nobody_listens_and_nothing_happens(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "gone"), "/" + "far" * 100):
        Notifier(address).beat(1.0, "serving", "all is well")


def test_a_manager_that_does_not_read_holds_up_nothing(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    began = time.monotonic()
    for count in range(2000):  # more than its queue takes
        notifier.beat(float(count), "serving", f"{count} sessions")
    assert time.monotonic() - began < 5
    assert 0 < len(manager.hear()) < 2000


@contextlib.contextmanager
def running(manager: Manager, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The proxy, with a watchdog that is told twice a second."""
    environ = {**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    proxy = subprocess.Popen(
        [sys.executable, "-m", "proxy", "-c", str(config)], cwd=ROOT, env=environ, stderr=subprocess.DEVNULL
    )
    try:
        yield proxy
    finally:
        proxy.kill()
        proxy.wait()


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_the_proxy_tells_its_manager_from_start_to_end(manager: Manager, tmp_path: Path) -> None:
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG, "utf-8")
    config.chmod(0o600)
    with running(manager, config) as proxy:
        manager.hear_until("READY=1")
        assert "WATCHDOG=1" in manager.heard
        assert "STATUS=serving: 0 sessions, 0 feeds" in manager.heard
        manager.heard.clear()
        proxy.send_signal(signal.SIGHUP)
        manager.hear_until("RELOADING=1")
        manager.hear_until("READY=1")
        manager.hear_until("WATCHDOG=1")
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(20) == 0


class Slow:
    """A secret that whoever reads it waits for: a pipe in the place of its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path, 0o600)

    def config(self) -> str:
        return CONFIG.replace("secret: an-example-only", f'secret: "${{file:{self.path}}}"', 1)

    def give(self, line: str) -> None:
        """To the one who waits, or who comes."""
        deadline = time.monotonic() + 20
        while True:
            try:
                with open(
                    self.path, "wb", 0, opener=lambda path, _: os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                ) as pipe:
                    pipe.write(f"{line}\n".encode())
                return
            except OSError:  # nobody reads it yet
                assert time.monotonic() < deadline, "nobody has asked for the secret"
                time.sleep(0.01)


def slow_config(folder: Path) -> tuple[Slow, Path]:
    """A secret that comes when it is given, and the configuration that waits for it."""
    slow, config = Slow(folder / "secret"), folder / "proxy.yaml"
    config.write_text(slow.config(), "utf-8")
    config.chmod(0o600)
    return slow, config


@pytest.mark.parametrize("manager", ["path"], indirect=True)
@pytest.mark.parametrize("secret", ["another", ""], ids=["good", "bad"])
def test_a_reload_that_takes_long_is_neither_over_nor_dead(manager: Manager, tmp_path: Path, secret: str) -> None:
    """While a thread reads, the manager hears that the proxy turns, but not that it is ready; at the end it does."""
    slow, config = slow_config(tmp_path)
    with running(manager, config) as proxy:
        slow.give("first")
        manager.hear_until("READY=1")
        manager.hear()
        manager.heard.clear()
        proxy.send_signal(signal.SIGHUP)
        for _ in range(2):
            manager.hear_until("WATCHDOG=1")
            manager.heard.remove("WATCHDOG=1")
        assert [line.partition("=")[0] for line in manager.heard] == ["RELOADING", "MONOTONIC_USEC"]
        slow.give(secret)
        manager.hear_until("READY=1")
        assert proxy.poll() is None


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_the_end_does_not_wait_for_a_reload(manager: Manager, tmp_path: Path) -> None:
    slow, config = slow_config(tmp_path)
    with running(manager, config) as proxy:
        slow.give("first")
        manager.hear_until("READY=1")
        proxy.send_signal(signal.SIGHUP)
        manager.hear_until("RELOADING=1")
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(20) == 0
