"""Reloads of a large configuration, and secrets from special files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.target import CALM_SECONDS, Target
from tests.harness import Process, wait_for

pytestmark = pytest.mark.attack

Start = Callable[..., Target]

CONFIG = """\
accounts: {{a: {{key: key, secret: "${{file:{file}}}"}}}}
clients: {{c: {{key: c, secret: c, allow: {{iex: "*"}}}}}}
"""


@pytest.mark.parametrize(
    ("count", "seconds"), [(5_000, 3), pytest.param(35_000, 20, marks=[pytest.mark.long, pytest.mark.timeout(240)])]
)
def test_reload_of_many_clients(target: Start, count: int, seconds: float) -> None:
    """One client is changed, without a delay of the market data.

    The file is read, compared and applied.
    """
    lines = "\n".join(f"  c{at}: {{key: c{at},secret: s,account: bad,allow: {{}}}}" for at in range(count))
    proxy = target(clients=lines)
    text = proxy.file.read_text()
    done = 0

    def attack() -> None:
        nonlocal done
        proxy.file.write_text(text.replace("key: c7,", f"key: changed{done},"))
        proxy.process.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: sum("key changed" in line for line in proxy.process.lines) > done, "no reload", seconds)
        done += 1

    cost = proxy.cost(attack, seconds)
    assert done
    assert cost.excess <= CALM_SECONDS, repr(cost)


@pytest.mark.parametrize("kind", ["fifo", "endless device", "directory"])
def test_a_secret_from_what_is_no_file(tmp_path: Path, kind: str) -> None:
    """`check` refuses it at once: reading a FIFO without a writer would block it."""
    path = {"fifo": tmp_path / "fifo", "endless device": Path("/dev/zero"), "directory": tmp_path}[kind]
    if kind == "fifo":
        os.mkfifo(path)
    file = tmp_path / "proxy.yaml"
    file.write_text(CONFIG.format(file=path))
    with Process("check", "-c", str(file), folder=tmp_path) as checking:
        assert checking.end(seconds=5) == 1
        assert "file" in checking.text


def test_reload_with_a_secret_from_a_fifo(target: Start) -> None:
    """It is refused like any other error.

    The proxy continues with the configuration that it has.
    """
    proxy = target()
    fifo = proxy.file.with_name("fifo")
    os.mkfifo(fifo)
    proxy.file.write_text(proxy.file.read_text().replace("secret: victim", f"secret: '${{file:{fifo}}}'"))

    def attack() -> None:
        proxy.process.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: "nothing was reloaded" in proxy.process.text, "no answer to the reload", 3)

    cost = proxy.cost(attack, 3, tries=1)
    assert cost.excess <= CALM_SECONDS, repr(cost)
    assert proxy.client().socket.fileno() >= 0
