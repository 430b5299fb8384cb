"""Algorithms on different SDKs share one connection without side effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.sdk.algorithm import Algorithm
from tests.sdk.environments import Environments
from tests.sdk.sdks import SDKS
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120, func_only=True)]

NAMES = ("alpaca-py-0.44.0", "alpaca-trade-api-3.2.0", "StreamConn-1.5.1", "javascript-4.0.2")
STREAM = {"StreamConn-1.5.1": "legacy"}  # the others use stocks

CLIENTS = "".join(
    f"  {name}: {{key: {name}, secret: secret, allow: {{iex: {{trades: [AAPL, {symbol}]}}}}}}\n"
    for name, symbol in zip(NAMES, ("MSFT", "NVDA", "TSLA", "AMD"), strict=True)
)
OWN = dict(zip(NAMES, ("MSFT", "NVDA", "TSLA", "AMD"), strict=True))


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with Stand(tmp_path_factory.mktemp("together"), CLIENTS) as stand:
        yield stand


@pytest.fixture
def algorithms(environments: Environments, stand: Stand) -> Iterator[dict[str, Algorithm]]:
    """Running algorithms, each subscribed to trades of AAPL and one other symbol."""
    with ExitStack() as stack:
        started = {}
        for sdk in SDKS:
            if str(sdk) in NAMES:
                started[str(sdk)] = stack.enter_context(Algorithm(environments.driver(sdk)))
        for name, algorithm in started.items():
            algorithm.ready()
            stream = STREAM.get(name, "stocks")
            algorithm.open(
                stream, stand.url + STREAMS[stream].path, {"trades": ["AAPL", OWN[name]]}, key=name, secret="secret"
            )
        symbols = {"AAPL", *OWN.values()}
        wait_for(lambda: stand.simulator.subscribed("iex") == {"trades": symbols}, "not all of them subscribed")
        yield started


def test_all_algorithms_share_one_connection(stand: Stand, algorithms: dict[str, Algorithm]) -> None:
    """When one of them crashes, the others miss no message."""
    trade = STREAMS["stocks"].channels["trades"]
    simulator = stand.simulator
    simulator.publish("iex", [trade(1), *(trade(2) | {"S": symbol} for symbol in OWN.values()), trade(3)])
    for name, algorithm in algorithms.items():
        assert prices(algorithm, name, 3) == [("AAPL", 1.25), (OWN[name], 2.25), ("AAPL", 3.25)]

    crashed = algorithms.pop("alpaca-py-0.44.0")
    for number in range(4, 104):
        simulator.publish("iex", [trade(number)])
        if number == 50:
            crashed.crash()
    for name, algorithm in algorithms.items():
        assert prices(algorithm, name, 103)[3:] == [("AAPL", number + 0.25) for number in range(4, 104)]
    wait_for(
        lambda: "MSFT" not in simulator.subscribed("iex")["trades"], "the crashed algorithm's topic is still subscribed"
    )
    assert (simulator.opened("iex"), simulator.peak("iex")) == (1, 1)


def prices(algorithm: Algorithm, name: str, count: int) -> list[tuple[str, float]]:
    """The symbols and prices of the received messages, once there are `count`."""
    stream = STREAM.get(name, "stocks")
    wait_for(lambda: len(algorithm.messages(stream)) >= count, algorithm.story)
    return [(event["fields"]["S"], event["fields"]["p"]) for event in algorithm.messages(stream)]
