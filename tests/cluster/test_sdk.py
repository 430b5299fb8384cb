"""An unmodified alpaca-py on a node of a cluster, through the ends of nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.clients import Account, judge
from tests.cluster.numbered import SYMBOLS, Alpaca
from tests.cluster.stand import Node, Stand
from tests.harness import wait_for
from tests.sdk.algorithm import Algorithm
from tests.sdk.environments import Environments, cache
from tests.sdk.sdks import SDKS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(300)]

SDK = next(sdk for sdk in SDKS if sdk.name == "alpaca-py")
KILL_SECONDS = 2.0


@pytest.fixture(scope="module")
def environments() -> Iterator[Environments]:
    environments = Environments(cache())
    yield environments
    environments.close()


def numbers(algorithm: Algorithm, symbol: str) -> list[int]:
    """The numbers of a symbol's trades that the SDK has handed to the algorithm."""
    return [e["fields"]["i"] for e in algorithm.messages("stocks", "trades") if e["fields"]["S"] == symbol]


def receives(algorithm: Algorithm, seconds: float = 30.0) -> float:
    """Wait until a new trade of each symbol has come; return how long it took."""
    before = {symbol: numbers(algorithm, symbol)[-1:] for symbol in SYMBOLS}
    began = time.monotonic()
    wait_for(lambda: all(numbers(algorithm, s)[-1:] != before[s] for s in SYMBOLS), algorithm.story(), seconds)
    return time.monotonic() - began


def test_alpaca_py_on_an_edge(tmp_path: Path, environments: Environments) -> None:
    """It stays connected when the leader is killed; when its own node is restarted, it reconnects by itself."""
    driver = environments.driver(SDK)
    with Stand(tmp_path, alpaca=Alpaca(rate=100)) as stand, Algorithm(driver) as algorithm:
        algorithm.ready()
        leader = stand.run()
        edge: Node = stand.others(leader)[0]
        url = f"ws://127.0.0.1:{edge.address[1]}/v2/iex"
        algorithm.open("stocks", url, {"trades": [*SYMBOLS]}, key="algo", secret="algo")
        receives(algorithm)
        logged_in = count_of_log_ins(algorithm)
        leader.kill()
        assert receives(algorithm) < KILL_SECONDS
        assert count_of_log_ins(algorithm) == logged_in, algorithm.story()
        assert all(judge(numbers(algorithm, symbol)) == Account() for symbol in SYMBOLS)
        leader.start()
        edge.terminate()
        assert edge.ended() == 0
        edge.start()
        receives(algorithm)
        assert count_of_log_ins(algorithm) > logged_in, algorithm.story()
        assert all(judge(numbers(algorithm, symbol)) == Account() for symbol in SYMBOLS)
        stand.judge()


def count_of_log_ins(algorithm: Algorithm) -> int:
    return sum("connected to" in event.get("text", "") for event in algorithm.events)
