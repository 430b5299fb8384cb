"""The programs of `examples`, unchanged, against the demo: each prints what it receives.

For the program that needs TLS it is the simulator and a proxy with `examples/tls.yaml`. The programs in Go and C# are
not built; tests/sdk/replays has what their SDKs send.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.simulator import Market, Simulator
from tests.harness import Process
from tests.ports import free_port
from tests.sdk.conftest import Certificate
from tests.sdk.environments import ROOT, Environments
from tests.sdk.program import Program
from tests.sdk.sdks import SDKS, WEBSOCAT, Sdk
from tests.sdk.stand import START_SECONDS, wait_for

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120, func_only=True)]

EXAMPLES = ROOT / "examples"
SECONDS = 80.0  # a bar is of a minute


def pinned(name: str, major: str) -> Sdk:
    """The newest release of an SDK that the tests run, of one major version."""
    return next(sdk for sdk in SDKS if sdk.name == name and sdk.version.startswith(f"{major}."))


PYTHON = {
    "alpaca_py.py": pinned("alpaca-py", "0"),
    "trade_api.py": pinned("alpaca-trade-api", "3"),
}
JAVASCRIPT = {
    "javascript-4.js": pinned("javascript", "4"),
    "javascript-3.js": pinned("javascript", "3"),
}
PROGRAMS = {**PYTHON, **JAVASCRIPT}
TLS_ONLY = "javascript-3.js"

TRADE = r"trade (AAPL|MSFT) \d+(\.\d+)?"
BAR = r"bar [A-Z]+ \d+(\.\d+)?"
ORDER = r"order (new|fill|partial_fill|canceled|replaced|held) momentum-\w+"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that a running demo shows."""
    with Process("demo", folder=tmp_path_factory.mktemp("demo")) as process:
        address = r"(ws://[\d.:]+)/v2/iex"
        wait_for(lambda: re.search(address, process.text), lambda: process.text, START_SECONDS)
        match = re.search(address, process.text)
        assert match is not None
        yield match[1]


def started(environments: Environments, file: str, sdk: Sdk, url: str, **variables: str) -> Program:
    """The example, with the variable of the environment that moves it to another address than the demo's default."""
    driver = environments.driver(sdk)
    address = {"ALPACA_PROXY_URL": url, **driver.variables, **variables}
    if sdk.javascript:
        modules = Path(driver.command[-1]) / "node_modules"
        return Program(["node", str(EXAMPLES / file)], {**address, "NODE_PATH": str(modules)})
    return Program([driver.command[0], str(EXAMPLES / file)], address)


def prints(program: Program, lines: Sequence[str]) -> None:
    """Wait until the program has printed a line of each of these patterns."""

    def missing() -> list[str]:
        return [line for line in lines if not any(re.match(line, printed) for printed in program.output)]

    wait_for(lambda: not missing(), lambda: f"no {missing()}: {program.story()}", SECONDS)
    assert program.popen.poll() is None
    assert not program.has_printed("Traceback")


@pytest.fixture(scope="module")
def running(environments: Environments, demo: str) -> Iterator[dict[str, Program]]:
    """Every program, all at the demo and all started at the same time, since each waits for the end of a minute."""
    environments.prepare([*PROGRAMS.values(), WEBSOCAT])
    with ExitStack() as stack:
        programs = {
            file: started(environments, file, sdk, demo.replace("ws:", "http:") if file == TLS_ONLY else demo)
            for file, sdk in PROGRAMS.items()
        }
        tools = Path(environments.driver(WEBSOCAT).command[0]).parent
        variables = {"ALPACA_PROXY_URL": demo, "PATH": f"{tools}:{os.environ['PATH']}"}
        for name in ("websocat.sh", "websocat.sh orders"):
            file, *arguments = name.split()
            programs[name] = Program(["sh", str(EXAMPLES / file), *arguments], variables)
        for program in programs.values():
            stack.enter_context(program)
        yield programs


LINES = {
    **{file: [TRADE, BAR, ORDER] for file in PROGRAMS},
    TLS_ONLY: ["order updates only", ORDER],
    "websocat.sh": [r'\[\{"T":"t","S":"(AAPL|MSFT)"', r'.*\{"T":"b",'],
    "websocat.sh orders": [r'\{"stream":"trade_updates",.*"client_order_id":"momentum-'],
}


@pytest.mark.parametrize("name", LINES)
def test_against_the_demo(running: dict[str, Program], name: str) -> None:
    prints(running[name], LINES[name])


def test_with_tls(environments: Environments, certificate: Certificate, tmp_path: Path) -> None:
    """With `tls.yaml` at other ports, the certificate beside it, and the simulated market."""
    with Simulator(market=Market(bar_seconds=2)) as simulator:
        text = (EXAMPLES / "tls.yaml").read_text("utf-8")
        text = text.replace("ws://127.0.0.1:8770", simulator.url).replace(
            "port: 8765", f"port: {(port := free_port())}"
        )
        for file in (certificate.cert, certificate.key):
            text = text.replace(f": {file.name}", f": {file}")
        (tmp_path / "tls.yaml").write_text(f"admin: {{port: {free_port()}}}\n{text}")
        with Process("-c", "tls.yaml", folder=tmp_path) as proxy:
            proxy.address()
            url = f"https://127.0.0.1:{port}"
            with started(environments, TLS_ONLY, JAVASCRIPT[TLS_ONLY], url, **certificate.variables) as program:
                prints(program, [TRADE, BAR, ORDER])
