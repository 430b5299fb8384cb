"""Readers of order updates as server-sent events that do not read, stay idle, or come back again and again.

Meanwhile, the delay of another client's messages is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import gevent
import pytest

from proxy.simulator import Simulator
from tests.attacks.target import CALM_SECONDS, Target
from tests.events import PATH, Cut, EventReader, keys
from tests.harness import wait_for

pytestmark = pytest.mark.attack

READER = (
    "  reader: {key: reader, secret: reader, account: bad, max_connections: 250, outbox: 1MiB,"
    " allow: {trading: {trade_updates: ['*']}}}"
)

Start = Callable[..., Target]


@pytest.fixture
def alpaca() -> Iterator[Simulator]:
    with Simulator(keys={"bad": "bad"}) as alpaca:
        yield alpaca


def publish(alpaca: Simulator, seconds: float, rate: float, size: int) -> int:
    """Publish order updates of about `size` bytes; return their number."""
    until = time.monotonic() + seconds
    count = 0
    while time.monotonic() < until:
        order = {"id": str(count), "client_order_id": "reader-1", "note": "x" * size}
        alpaca.publish_order({"event": "new", "order": order})
        count += 1
        gevent.sleep(1 / rate)
    return count


def streams(proxy: Target, stack: ExitStack, count: int, query: str = "", buffer: int = 0) -> list[EventReader]:
    """Open event streams; none of them is read after its head."""
    readers = [EventReader(proxy.address, PATH + query, keys("reader"), buffer=buffer) for _ in range(count)]
    for reader in readers:
        stack.enter_context(reader)
    return [reader.opened() for reader in readers]


def test_readers_that_do_not_read(target: Start, alpaca: Simulator) -> None:
    """Each is cut when its outbox is full, and no other client waits for that."""
    proxy = target(alpaca.url, clients=READER)
    with ExitStack() as stack:
        readers = streams(proxy, stack, 20, buffer=4096)
        cost = proxy.cost(lambda: publish(alpaca, 5, 100, 50_000), 5.5, tries=1)
        print(cost)
        assert cost.excess <= CALM_SECONDS, repr(cost)
        assert cost.grown < 20 + 2 * 16 + 16  # the outboxes, the history, and what the allocator keeps
        wait_for(lambda: "slow client" in [event.get("reason") for event in proxy.process.events])
        for reader in readers:
            assert reader.rest() == "cut"
            assert [int(event["order"]["id"]) for event in reader.events] == [*range(len(reader.events))]


def test_two_hundred_idle_streams(target: Start, alpaca: Simulator) -> None:
    """They cost memory as sessions do; every update reaches each of them."""
    proxy = target(alpaca.url, clients=READER)
    before = proxy.memory()
    with ExitStack() as stack:
        readers = streams(proxy, stack, 200)
        grown = proxy.memory() - before
        assert grown / 200 < 64 * 1024
        sent = 0

        def attack() -> None:
            nonlocal sent
            sent += publish(alpaca, 3, 20, 500)

        cost = proxy.cost(attack, 3.5)
        print(cost, f"{grown / 200 / 1024:.0f} KiB each")
        assert cost.excess <= CALM_SECONDS, repr(cost)
        for reader in readers:
            assert [int(event["at"] != "") for event in reader.gather(sent)] == [1] * sent


def test_streams_that_come_back_at_once(target: Start, alpaca: Simulator) -> None:
    """A program that cannot read an update asks for it again and again, and gets it each time."""
    proxy = target(alpaca.url, clients=READER.replace("250", "16"))
    seconds = 4.0
    opened: list[float] = []
    taken: list[float] = []
    with ExitStack() as stack:
        streams(proxy, stack, 1)
        publish(alpaca, 0.2, 100, 100)

    def attack() -> None:
        opened.clear()
        before = proxy.processor()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(OSError, Cut), EventReader(proxy.address, f"{PATH}?since=2020-01-01", keys("reader")) as one:
                one.opened().next()
                opened.append(time.monotonic())
            gevent.sleep(0)
        taken.append((proxy.processor() - before) / seconds)

    cost = proxy.cost(attack, seconds + 1)
    print(cost, f"{len(opened)} streams, {min(taken):.2f} of a core")
    assert cost.excess <= CALM_SECONDS, repr(cost)
    assert 8 <= len(opened) <= 16 + seconds / 0.25 + 2
    assert min(taken) < 0.3


@pytest.mark.timeout(90)
def test_a_long_history_again_and_again(target: Start, alpaca: Simulator) -> None:
    """All streams of a client read their history within its share of the hub's time."""
    proxy = target(alpaca.url, clients=READER)
    with ExitStack() as stack:
        [first] = streams(proxy, stack, 1)
        for number in range(4000):
            alpaca.publish_order({"event": "new", "order": {"id": str(number), "client_order_id": "reader-1"}})
            if number % 100 == 99:
                first.gather(number + 1)

    def read() -> None:
        with suppress(OSError, Cut):
            while True:
                with EventReader(proxy.address, f"{PATH}?since=2020-01-01", keys("reader")) as reader:
                    reader.opened().gather(4000)

    def attack() -> None:
        reading = [gevent.spawn(read) for _ in range(10)]
        gevent.sleep(4)
        gevent.killall(reading)

    cost = proxy.cost(attack, 5)
    print(cost)
    assert cost.excess <= CALM_SECONDS, repr(cost)
