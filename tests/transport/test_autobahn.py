"""The Autobahn test suite: `pytest -m autobahn`.

Its clients connect to an echo server on the proxy's transport, and the connection to Alpaca connects to its server. Its
results must be those in docs/conformance.md.

The suite needs Python 2.7: the interpreter that `$ALPACA_PROXY_PYTHON27` names, one on the path, or one of pyenv. It is
installed once, into `.autobahn`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
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

from proxy.alpaca.client_protocol import Login
from proxy.alpaca.codec import JSON
from proxy.alpaca.endpoints import endpoint
from proxy.transport.errors import ConnectionLost
from proxy.transport.frames import BINARY, TEXT
from proxy.upstream.alpaca_connection import AlpacaConnection
from proxy.upstream.source import FeedSettings
from tests.ports import free_port
from tests.transport.echo import echo

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "conformance.md"
CACHE = ROOT / ".autobahn"
SUITE = "autobahntestsuite==25.10.1"
VIRTUALENV = "virtualenv==20.21.1"  # the newest that supports Python 2.7
AGENT = "alpaca-proxy"
GROUPS = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 10)]
CASES = 247
INFORMATIONAL = dict.fromkeys(("7.1.6", "7.13.1", "7.13.2"), "INFORMATIONAL")  # the suite passes no verdict on these
# Invalid UTF-8 in a part of a message is reported only at the message's end.
NON_STRICT = dict.fromkeys(("6.4.1", "6.4.2", "6.4.3", "6.4.4"), "NON-STRICT")
MESSAGE_BYTES = 1 << 20
INSTALL_SECONDS = 300
SECONDS = 240

pytestmark = [pytest.mark.autobahn, pytest.mark.timeout(INSTALL_SECONDS + SECONDS)]


@pytest.fixture(scope="session")
def wstest() -> Path:
    """The suite's command; installs the suite if it is missing."""
    command = CACHE / "bin" / "wstest"
    if not command.exists():
        python = _python27()
        if python is None:
            pytest.skip("the Autobahn suite needs Python 2.7; set $ALPACA_PROXY_PYTHON27 to an interpreter")
        shutil.rmtree(CACHE, ignore_errors=True)
        tools = CACHE / "tools"
        _run(sys.executable, "-m", "venv", str(tools))
        _run(str(tools / "bin" / "python"), "-m", "pip", "install", "--quiet", VIRTUALENV)
        _run(str(tools / "bin" / "python"), "-m", "virtualenv", "--quiet", "--python", python, str(CACHE))
        _run(str(CACHE / "bin" / "python"), "-m", "pip", "install", "--quiet", SUITE)
    return command


def _python27() -> str | None:
    """Return an interpreter of Python 2.7, or None."""
    configured = os.environ.get("ALPACA_PROXY_PYTHON27")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [configured, *map(str, sorted(pyenv.glob("versions/2.7.*/bin/python"))), shutil.which("python2.7")]
    for python in filter(None, candidates):
        version = subprocess.run(
            [python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
        )
        if version.stdout.strip() == "(2, 7)":
            return python
    return None


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"


@contextmanager
def running(wstest: Path, mode: str, specification: dict[str, Any], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the suite; its report is in `folder` / "report"."""
    file = folder / "specification.json"
    file.write_text(json.dumps({"outdir": str(folder / "report"), "cases": GROUPS} | specification))
    command = [str(wstest), "--mode", mode, "--webport", "0", "--spec", str(file)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, text=True) as suite:
        try:
            yield suite
        finally:
            suite.kill()


def verdicts(folder: Path) -> tuple[Counter[str], dict[str, str]]:
    """Return the number of cases by verdict, and the cases that are not OK.

    A case is not OK if its verdict or that on its close is not.
    """
    cases = json.loads((folder / "report" / "index.json").read_text())[AGENT]
    counts = Counter(result["behavior"] for result in cases.values())
    unclean = {case: result["behaviorClose"] for case, result in cases.items()}
    wrong = {case: result["behavior"] for case, result in cases.items() if result["behavior"] != "OK"}
    return counts, {case: closed for case, closed in unclean.items() if closed != "OK"} | wrong


def documented(side: str) -> Counter[str]:
    """Return the number of cases by verdict as in docs/conformance.md."""
    [row] = re.findall(rf"\| {side} \| (\d+) \| (\d+) \| (\d+) \|", DOCUMENT.read_text("utf-8"))
    counts = dict(zip(("OK", "NON-STRICT", "INFORMATIONAL"), map(int, row), strict=True))
    assert sum(counts.values()) == CASES
    return +Counter(counts)


def test_client_listener(wstest: Path, tmp_path: Path) -> None:
    listener = echo(16 * MESSAGE_BYTES)
    listener.start()
    servers = [{"agent": AGENT, "url": f"ws://127.0.0.1:{listener.server_port}"}]
    try:
        with running(wstest, "fuzzingclient", {"servers": servers}, tmp_path) as suite:
            assert suite.wait(SECONDS) == 0
    finally:
        listener.stop()
    counts, wrong = verdicts(tmp_path)
    assert wrong == INFORMATIONAL
    assert counts == documented("the client port")


def test_alpaca_connection(wstest: Path, tmp_path: Path) -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    with running(wstest, "fuzzingserver", {"url": url}, tmp_path) as suite:
        [count] = _run_connection(f"{url}/getCaseCount", patient=True)
        assert int(count) == CASES
        for case in range(1, CASES + 1):
            assert suite.poll() is None
            _run_connection(f"{url}/runCase?case={case}&agent={AGENT}", echoes=True)
        _run_connection(f"{url}/updateReports?agent={AGENT}")
    counts, wrong = verdicts(tmp_path)
    assert wrong == INFORMATIONAL | NON_STRICT
    assert counts == documented("the connection to Alpaca")


def _run_connection(url: str, *, echoes: bool = False, patient: bool = False) -> list[bytes]:
    """Return the payloads of all messages until the server closes.

    With `echoes`, send each of them back. With `patient`, retry for 20 s to connect, until the suite has started.
    """
    iex = endpoint("iex")
    assert iex is not None
    deadline = time.monotonic() + (20 if patient else 0)
    while True:
        connection = AlpacaConnection(iex, FeedSettings(Login("main", url, "", ""), JSON), time.monotonic)
        try:
            connection.open()
            break
        except ConnectionLost:
            assert time.monotonic() < deadline, "the suite's server does not accept connections"
            gevent.sleep(0.05)
    payloads = []
    try:
        while True:
            for frame in connection.receive():
                payloads.append(frame.payload)
                if echoes:
                    connection._queue(TEXT if frame.text else BINARY, frame.payload)
    except ConnectionLost:
        return payloads
    finally:
        connection.close()
