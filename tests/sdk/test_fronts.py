"""A real SDK over wss:// through nginx, and through Caddy if installed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.downstream.client_session import UNRESPONSIVE_SECONDS
from tests.fronts import caddy, nginx, program
from tests.harness import certificate
from tests.sdk.algorithm import Algorithm
from tests.sdk.environments import Environments
from tests.sdk.sdks import SDKS
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120, func_only=True)]

STOCKS = STREAMS["stocks"]
FRONTS = [nginx, caddy] if program("caddy") else [nginx]


def test_quiet_sessions_stay(environments: Environments, tmp_path: Path) -> None:
    """Nothing is published for longer than a session may be without a pong.

    The proxy's pings and the SDK's pongs must get through, and the server in front must not close the connection. All
    servers are tested at the same time.
    """
    cert, key = certificate(tmp_path)
    driver = environments.driver(next(sdk for sdk in SDKS if str(sdk).startswith("alpaca-py")))
    with Stand(tmp_path) as stand, ExitStack() as stack:
        algorithms = [stack.enter_context(Algorithm(driver, {"SSL_CERT_FILE": str(cert)})) for _ in FRONTS]
        for front, algorithm in zip(FRONTS, algorithms, strict=True):
            (folder := tmp_path / front.__name__).mkdir()
            port = stack.enter_context(front(folder, ("127.0.0.1", stand.proxy.port), cert, key))
            algorithm.ready()
            algorithm.open("stocks", f"wss://localhost:{port}{STOCKS.path}", {"trades": [STOCKS.symbol]})
            algorithm.wait(lambda event: "subscribed to trades" in event.get("text", ""), "it has subscribed")
        for number in (1, 2):
            stand.simulator.publish(STOCKS.feed, [STOCKS.channels["trades"](number)])
            for algorithm in algorithms:
                wait_for(lambda reader=algorithm, all_=number: len(reader.messages("stocks")) == all_, algorithm.story)
            if number == 1:
                deadline = time.monotonic() + UNRESPONSIVE_SECONDS + 1
                wait_for(lambda until=deadline: time.monotonic() >= until, "the clock does not advance")
        assert stand.connects(STOCKS.feed) == len(FRONTS)
