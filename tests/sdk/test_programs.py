"""Programs that speak to Alpaca without one of its SDKs, each with the real library.

A program is started once for each of its streams, with the address at which it opens it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import gevent
import pytest

from tests.sdk.environments import Environments
from tests.sdk.program import Program
from tests.sdk.sdks import PROGRAMS, Sdk
from tests.sdk.stand import SECONDS, Stand, wait_for
from tests.sdk.tape import STREAMS, Message

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(240, func_only=True)]

CLIENTS = """\
  algo: {key: algo, secret: algo-secret, max_connections: 100, allow: {iex: "*", crypto: "*", trading: "*"}}
  narrow: {key: narrow, secret: narrow, allow: {crypto: {trades: [BTC/USD]}}}
"""
PATHS = {
    ("ccxt", "crypto"): "/v1beta2/crypto",
    ("picows", "stocks"): "//iex/",
    ("picows", "trading"): "//stream//",
}
CASES = [pytest.param(sdk, stream, id=f"{sdk.name} {stream}") for sdk in PROGRAMS for stream in sdk.streams]


def started(environments: Environments, sdk: Sdk, stream: str, url: str, key: str, secret: str) -> Program:
    """The program on one of its streams."""
    driver = environments.driver(sdk)
    return Program([*driver.command, stream, url, key, secret], driver.variables)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with Stand(tmp_path_factory.mktemp("programs"), CLIENTS) as stand:
        yield stand


@pytest.fixture(scope="module")
def programs(environments: Environments, stand: Stand) -> Iterator[dict[tuple[Sdk, str], Program]]:
    """Every program on every stream, all of them subscribed."""
    with ExitStack() as stack:
        running = {}
        for sdk in PROGRAMS:
            for stream in sdk.streams:
                url = stand.url + PATHS.get((sdk.name, stream), STREAMS[stream].path)
                running[sdk, stream] = started(environments, sdk, stream, url, "algo", "algo-secret")
                stack.callback(running[sdk, stream].close)
        yield running


def published(stand: Stand, stream: str, number: int) -> Message:
    """Publish the next trade or order update of a stream."""
    tape = STREAMS[stream]
    message = tape.channels["trade_updates" if stream == "trading" else "trades"](number)
    stand.simulator.publish(tape.feed, [message])
    return message


@pytest.mark.parametrize(("sdk", "stream"), CASES)
def test_it_receives_what_it_asked_for(
    programs: dict[tuple[Sdk, str], Program], stand: Stand, sdk: Sdk, stream: str
) -> None:
    """Messages are published until one has come, since not every program says when it is subscribed."""
    program = programs[sdk, stream]
    number = 100

    def received() -> bool:
        nonlocal number
        number += 1
        message = published(stand, stream, number)
        word = message["data"]["order"]["client_order_id"] if stream == "trading" else str(message["p"])
        gevent.sleep(0.2)
        return program.has_printed(word)

    wait_for(received, program.story, SECONDS)
    assert program.popen.poll() is None


def test_ccxt_after_an_error(environments: Environments, stand: Stand) -> None:
    """docs/sdks.md: a symbol that is refused mutes every subscription of its connection, as it would at Alpaca.

    Its receive loop ends with the error. No call is told.
    """
    [ccxt] = [sdk for sdk in PROGRAMS if sdk.name == "ccxt"]
    program = started(environments, ccxt, "refused", f"{stand.url}/v1beta2/crypto", "narrow", "narrow")
    try:
        number = 1000

        def received() -> bool:
            nonlocal number
            number += 1
            published(stand, "crypto", number)
            gevent.sleep(0.2)
            return program.has_printed('"p":', str(number))

        wait_for(received, program.story, SECONDS)
        assert program.popen.stdin is not None
        program.popen.stdin.write("\n")
        program.popen.stdin.flush()
        wait_for(lambda: program.has_printed("ExchangeError", "insufficient subscription"), program.story, SECONDS)
        assert not any(received() for _ in range(5))
        assert program.popen.poll() is None
        assert stand.sessions("crypto", "narrow") == 1
        assert not program.has_printed('"error":')
    finally:
        program.close()
