"""Notifications to a service manager, on a real datagram socket."""

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
ROOT = Path(__file__).resolve().parents[2]

CONFIG = """\
listen: {port: 0}
admin: {port: 0}
accounts:
  paper: {key: PKEXAMPLE, secret: an-example-only, data_url: "ws://127.0.0.1:9", trading_url: "ws://127.0.0.1:9"}
clients:
  momentum: {key: momentum, secret: an-example-only, allow: {iex: {trades: [AAPL]}}}
"""


class Manager:
    """A service manager: its socket, and the lines received so far."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.received: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> list[str]:
        """Return the lines since the last call."""
        self._socket.settimeout(0)
        lines: list[str] = []
        while True:
            try:
                lines += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                self.received += lines
                return lines

    def receive_until(self, line: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while line not in self.received:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self.received += self._socket.recv(4096).decode().splitlines()
            except TimeoutError:
                pytest.fail(f"no {line!r} within {seconds} s, but {self.received}")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@alpaca-proxy-test-{tmp_path}"
    manager = Manager(name)
    yield manager
    manager.close()


def test_ready_is_sent_once(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.beat(1.0, "starting", "")
    assert manager.receive() == []
    notifier.beat(2.0, "serving", "2 sessions")
    assert manager.receive() == ["READY=1", "STATUS=2 sessions"]
    notifier.beat(3.0, "serving", "2 sessions")
    assert manager.receive() == []


def test_a_new_status_is_sent_in_one_line(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.beat(1.0, "serving", "2 sessions")
    manager.receive()
    notifier.beat(2.0, "serving", "3 sessions\nWATCHDOG=trigger")
    assert manager.receive() == ["STATUS=3 sessions WATCHDOG=trigger"]


def test_the_watchdog_is_notified_twice_in_its_interval(manager: Manager) -> None:
    notifier = Notifier(manager.address, watchdog=10.0)
    beats = 0
    for quarter in range(4 * 60):
        notifier.beat(1000.0 + quarter / 4, "serving", "")
        beats += manager.receive().count("WATCHDOG=1")
    assert beats == 12


def test_draining_sends_stopping(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.beat(1.0, "serving", "")
    notifier.beat(2.0, "draining", "")
    assert manager.receive() == ["READY=1", "STOPPING=1"]


def test_a_reload_is_sent_with_its_time_and_ends_with_ready(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.beat(1.0, "serving", "")
    notifier.beat(2.4, "reloading", "")
    notifier.reloading(2.5)
    notifier.beat(2.6, "reloading", "")
    notifier.beat(2.7, "serving", "")
    assert manager.receive() == ["READY=1", "RELOADING=1", "MONOTONIC_USEC=2500000", "READY=1"]


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
def test_watchdog_from_the_environment(manager: Manager, environ: dict[str, str], beats: int) -> None:
    notifier = Notifier.of({"NOTIFY_SOCKET": manager.address, **environ}, pid=7)
    for second in range(15):
        notifier.beat(100.0 + second, "serving", "")
    assert manager.receive().count("WATCHDOG=1") == beats


def test_missing_sockets_are_ignored(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "gone"), "/" + "far" * 100):
        Notifier(address).beat(1.0, "serving", "all is well")


def test_a_manager_that_does_not_read_does_not_block(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    start = time.monotonic()
    for count in range(2000):  # more than the socket's queue holds
        notifier.beat(float(count), "serving", f"{count} sessions")
    assert time.monotonic() - start < 5
    assert 0 < len(manager.receive()) < 2000


@contextlib.contextmanager
def running(manager: Manager, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the proxy, with a watchdog interval of one second."""
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
def test_notifications_of_a_run(manager: Manager, tmp_path: Path) -> None:
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG, "utf-8")
    config.chmod(0o600)
    with running(manager, config) as proxy:
        manager.receive_until("READY=1")
        assert "WATCHDOG=1" in manager.received
        assert "STATUS=serving: 0 sessions, 0 feeds" in manager.received
        manager.received.clear()
        proxy.send_signal(signal.SIGHUP)
        manager.receive_until("RELOADING=1")
        manager.receive_until("READY=1")
        manager.receive_until("WATCHDOG=1")
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(20) == 0


class BlockingConfig:
    """A configuration that is a named pipe, so that reading it blocks until `give`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path, 0o600)

    def give(self, text: str) -> None:
        """Write the configuration to the present or next reader."""
        deadline = time.monotonic() + 20
        while True:
            try:
                with open(
                    self.path, "wb", 0, opener=lambda path, _: os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                ) as pipe:
                    pipe.write(text.encode())
                return
            except OSError:  # the pipe has no reader yet
                assert time.monotonic() < deadline, "the configuration was not read"
                time.sleep(0.01)


@pytest.mark.parametrize("manager", ["path"], indirect=True)
@pytest.mark.parametrize("text", [CONFIG, "accounts: ["], ids=["good", "bad"])
def test_a_long_reload_keeps_the_watchdog_alive(manager: Manager, tmp_path: Path, text: str) -> None:
    """WATCHDOG is sent during the reload, READY only at its end."""
    config = BlockingConfig(tmp_path / "proxy.yaml")
    with running(manager, config.path) as proxy:
        config.give(CONFIG)
        manager.receive_until("READY=1")
        manager.receive()
        manager.received.clear()
        proxy.send_signal(signal.SIGHUP)
        for _ in range(2):
            manager.receive_until("WATCHDOG=1")
            manager.received.remove("WATCHDOG=1")
        assert [line.partition("=")[0] for line in manager.received] == ["RELOADING", "MONOTONIC_USEC"]
        config.give(text)
        manager.receive_until("READY=1")
        assert proxy.poll() is None


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_shutdown_does_not_wait_for_a_reload(manager: Manager, tmp_path: Path) -> None:
    config = BlockingConfig(tmp_path / "proxy.yaml")
    with running(manager, config.path) as proxy:
        config.give(CONFIG)
        manager.receive_until("READY=1")
        proxy.send_signal(signal.SIGHUP)
        manager.receive_until("RELOADING=1")
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(20) == 0
