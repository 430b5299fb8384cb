"""A real proxy process between a good and a bad Alpaca.

The account `good` is served by a simulator, the account `bad` by a server that attacks the proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.attacks import target as attacked
from tests.attacks.target import Target
from tests.harness import Process

PROGRAM = str(Path(__file__).with_name("witness.py"))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Callable[..., Target]]:
    """Start a proxy with `target(rogue.url)`.

    `clients` are further lines below `clients:` in the configuration, `allow` is the allowlist of the victim (the
    client of the account `bad`), and `account` are further settings of that account.
    """
    with ExitStack() as stack:

        def start(
            bad: str = "ws://127.0.0.1:9", *, clients: str = "", allow: str = attacked.ALLOW, account: str = ""
        ) -> Target:
            witness = stack.enter_context(Process(folder=tmp_path, program=(PROGRAM,), stdin=PIPE))
            host, port = witness.address("simulating")
            text = attacked.CONFIG.format(
                good=f"ws://{host}:{port}", bad=bad, clients=clients, allow=allow, account=account and f", {account}"
            )
            file = tmp_path / "proxy.yaml"
            file.write_text(text)
            process = stack.enter_context(Process("-c", str(file), folder=tmp_path))
            return Target(process, witness, file, stack)

        yield start
