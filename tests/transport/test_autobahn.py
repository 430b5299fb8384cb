"""The Autobahn test suite, `pytest -m autobahn`: its clients against an echo on the proxy's own adapter, and its server
against the connection to Alpaca. What it reports is what docs/conformance.md says.

The suite runs on Python 2.7 alone: the one that `$ALPACA_PROXY_PYTHON27` names, one on the path, or one of pyenv's. It
is installed once, into `.autobahn`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from proxy.transport.errors import ConnectionLost
from proxy.transport.frames import BINARY, TEXT
from proxy.upstream.alpaca_connection import AlpacaConnection
from tests.transport.echo import echo

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "conformance.md"
CACHE = ROOT / ".autobahn"
SUITE = "autobahntestsuite==25.10.1"
VIRTUALENV = "virtualenv==20.21.1"  # the newest that makes environments of Python 2.7
AGENT = "alpaca-proxy"
GROUPS = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 10)]
CASES = 247
TOLD_ONLY = dict.fromkeys(("7.1.6", "7.13.1", "7.13.2"), "INFORMATIONAL")  # the suite judges these of nobody
AT_THE_END = dict.fromkeys(("6.4.1", "6.4.2", "6.4.3", "6.4.4"), "NON-STRICT")
LARGEST = 1 << 20  # of a message
INSTALL_SECONDS = 300
SECONDS = 240

pytestmark = [pytest.mark.autobahn, pytest.mark.timeout(INSTALL_SECONDS + SECONDS)]


@pytest.fixture(scope="session")
def wstest() -> Path:
    """The suite's command, installed."""
    command = CACHE / "bin" / "wstest"
    if not command.exists():
        python = _python27()
        if python is None:
            pytest.skip("the Autobahn suite wants Python 2.7, and there is none: $ALPACA_PROXY_PYTHON27 may name one")
        shutil.rmtree(CACHE, ignore_errors=True)
        tools = CACHE / "tools"
        _run(sys.executable, "-m", "venv", str(tools))
        _run(str(tools / "bin" / "python"), "-m", "pip", "install", "--quiet", VIRTUALENV)
        _run(str(tools / "bin" / "python"), "-m", "virtualenv", "--quiet", "--python", python, str(CACHE))
        _run(str(CACHE / "bin" / "python"), "-m", "pip", "install", "--quiet", SUITE)
    return command


def _python27() -> str | None:
    """An interpreter of Python 2.7, if there is any."""
    named = os.environ.get("ALPACA_PROXY_PYTHON27")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [named, *map(str, sorted(pyenv.glob("versions/2.7.*/bin/python"))), shutil.which("python2.7")]
    for python in filter(None, found):
        asked = subprocess.run(
            [python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
        )
        if asked.stdout.strip() == "(2, 7)":
            return python
    return None


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@contextmanager
def running(wstest: Path, mode: str, specification: dict[str, Any], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The suite at work; its report is in `folder` / "report"."""
    file = folder / "specification.json"
    file.write_text(json.dumps({"outdir": str(folder / "report"), "cases": GROUPS} | specification))
    command = [str(wstest), "--mode", mode, "--webport", "0", "--spec", str(file)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, text=True) as suite:
        try:
            yield suite
        finally:
            suite.kill()


def verdicts(folder: Path) -> tuple[Counter[str], dict[str, str]]:
    """How many cases had which outcome; and those that were not all right, the end of the connection included."""
    cases = json.loads((folder / "report" / "index.json").read_text())[AGENT]
    counts = Counter(said["behavior"] for said in cases.values())
    unclean = {case: said["behaviorClose"] for case, said in cases.items()}
    wrong = {case: said["behavior"] for case, said in cases.items() if said["behavior"] != "OK"}
    return counts, {case: closed for case, closed in unclean.items() if closed != "OK"} | wrong


def documented(whom: str) -> Counter[str]:
    """The same counts, as the document has them."""
    [row] = re.findall(rf"\| {whom} \| (\d+) \| (\d+) \| (\d+) \|", DOCUMENT.read_text("utf-8"))
    counts = dict(zip(("OK", "NON-STRICT", "INFORMATIONAL"), map(int, row), strict=True))
    assert sum(counts.values()) == CASES
    return +Counter(counts)


def test_what_algorithms_connect_to(wstest: Path, tmp_path: Path) -> None:
    listener = echo(16 * LARGEST)
    listener.start()
    servers = [{"agent": AGENT, "url": f"ws://127.0.0.1:{listener.server_port}"}]
    try:
        with running(wstest, "fuzzingclient", {"servers": servers}, tmp_path) as suite:
            assert suite.wait(SECONDS) == 0
    finally:
        listener.stop()
    counts, wrong = verdicts(tmp_path)
    assert wrong == TOLD_ONLY
    assert counts == documented("the client port")


def test_what_connects_to_alpaca(wstest: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    with running(wstest, "fuzzingserver", {"url": url}, tmp_path) as suite:
        [count] = _run_connection(f"{url}/getCaseCount", patient=True)
        assert int(count) == CASES
        for case in range(1, CASES + 1):
            assert suite.poll() is None
            _run_connection(f"{url}/runCase?case={case}&agent={AGENT}", echoes=True)
        _run_connection(f"{url}/updateReports?agent={AGENT}")
    counts, wrong = verdicts(tmp_path)
    assert wrong == TOLD_ONLY | AT_THE_END
    assert counts == documented("the connection to Alpaca")


def _run_connection(url: str, *, echoes: bool = False, patient: bool = False) -> list[bytes]:
    """All that is heard until the other side ends it, said back if asked."""
    deadline = time.monotonic() + (20 if patient else 0)
    while True:
        try:
            line = AlpacaConnection(url, "application/json", time.monotonic)
            break
        except ConnectionLost:
            assert time.monotonic() < deadline, "the suite's server does not answer"
            gevent.sleep(0.05)
    heard = []
    try:
        while True:
            for frame in line.receive():
                heard.append(frame.payload)
                if echoes:
                    line.send_json(TEXT if frame.text else BINARY, frame.payload)
    except ConnectionLost:
        return heard
    finally:
        line.close()
