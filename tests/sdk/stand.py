"""The test stand for SDKs: a simulator, and the proxy as a separate process.

The proxy can be killed and restarted at the same address. The simulator runs in greenlets of the test process, so that
a test can publish messages and inspect connections; it shares only sockets with the proxy.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import gevent

from proxy.simulator import Simulator
from tests.ports import free_port
from tests.sdk.environments import ROOT

START_SECONDS = 60
START_AT_ONCE = 3  # more at the same time would slow each other down too much
SECONDS = 30.0

CONFIG = """\
listen: {{port: {listen}{tls}}}
admin: {{port: {admin}}}
log: {{format: json}}
accounts:
  main: {{key: key, secret: secret, data_url: "{url}", trading_url: "{url}"{account}}}
clients:
{clients}
"""

CLIENT = """\
  algo:
    key: algo
    secret: algo-secret
    allow: {iex: "*", crypto: "*", news: "*", indicative: "*", trading: "*"}
"""


def wait_for(condition: Callable[[], Any], what: Callable[[], str] | str, seconds: float = SECONDS) -> Any:
    """Wait until `condition` returns a true value, and return it.

    Fail with `what` after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what if isinstance(what, str) else what()} (within {seconds:.0f} s)"
        gevent.sleep(0.01)
    return value


def accepts(port: int) -> bool:
    """Whether a server listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Proxy:
    """The proxy as a process, with its configuration in `folder`.

    A restart keeps its ports. `program` may replace `-m proxy`.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        clients: str,
        tls: tuple[Path, Path] | None = None,
        account: str = "",
        program: Sequence[str] = ("-m", "proxy"),
    ) -> None:
        self._program = program
        self._file = folder / "proxy.yaml"
        self._log = folder / "proxy.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self.admin_port = free_port(), free_port()
        tls_setting = "" if tls is None else ", tls: {{cert: {}, key: {}}}".format(*tls)
        text = CONFIG.format(
            listen=self.port, admin=self.admin_port, url=url, clients=clients, tls=tls_setting, account=account
        )
        self._file.write_text(text)
        self._file.chmod(0o600)

    def start(self) -> None:
        """Start it and wait until it listens."""
        before = len(self.log())
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                [sys.executable, *self._program, "-c", str(self._file)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

        def listening() -> bool:
            assert process.poll() is None, f"the proxy has ended: {self.log()[before:]}"
            # The admin port listens before the client port.
            return all(accepts(port) for port in (self.admin_port, self.port))

        wait_for(listening, lambda: f"the proxy does not listen: {self.log()[before:]}", START_SECONDS)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it with a signal, and wait for its end."""
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(number)
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def log(self) -> str:
        """Its log so far."""
        return self._log.read_text() if self._log.exists() else ""

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of /metrics; 0 if there is none."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=SECONDS) as page:
            text = page.read().decode()
        for line in text.splitlines():
            if line.startswith(f"alpaca_proxy_{name}{{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
                return float(line.rpartition(" ")[2])
        return 0.0


class Stand:
    """A simulator, and a proxy whose only account connects to it.

    `account` is appended to its YAML line.
    """

    def __init__(
        self,
        folder: Path,
        clients: str = CLIENT,
        *,
        tls: tuple[Path, Path] | None = None,
        account: str = "",
        program: Sequence[str] = ("-m", "proxy"),
    ) -> None:
        self.simulator = Simulator()
        self.simulator.start()
        self.proxy = Proxy(folder, self.simulator.url, clients, tls, account, program)
        self._scheme = "ws" if tls is None else "wss"

    def __enter__(self) -> Stand:
        try:
            self.proxy.start()
        except BaseException:
            self.simulator.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.proxy.kill()
        self.simulator.stop()

    @property
    def url(self) -> str:
        """The URL that clients connect to, without a path."""
        return f"{self._scheme}://127.0.0.1:{self.proxy.port}"

    def sessions(self, feed: str, client: str = "algo") -> int:
        """The number of sessions that a client has open."""
        return int(self.proxy.metric("client_sessions", client=client, feed=feed))

    def connects(self, feed: str, client: str = "algo") -> int:
        """The number of log-ins of a client since the proxy was started."""
        return int(self.proxy.metric("client_connects_total", client=client, feed=feed))
