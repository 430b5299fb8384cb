"""Order updates as server-sent events of the simulator."""

from __future__ import annotations

import time

import gevent
import pytest

from proxy.alpaca import timestamps
from proxy.simulator import Market, Simulator
from tests.events import PATH, EventReader, keys
from tests.harness import wait_for

KEYS = keys("key", "secret")


def update(number: int) -> dict[str, object]:
    return {"event": "new", "order": {"id": str(number)}}


@pytest.fixture
def simulator():
    with Simulator() as simulator:
        yield simulator


def reader(simulator: Simulator, query: str = "", headers: dict[str, str] = KEYS, path: str = PATH) -> EventReader:
    return EventReader(("127.0.0.1", simulator._port), path + query, headers)


def ids(reader: EventReader) -> list[str]:
    return [event["order"]["id"] for event in reader.events]


@pytest.mark.parametrize("path", [PATH, "/v2beta1/events/trades"])
def test_published_updates_and_the_history(simulator: Simulator, path: str) -> None:
    simulator.publish_order(update(1))
    with reader(simulator, path=path) as live:
        live.opened()
        wait_for(lambda: simulator._event_peers)
        simulator.publish_order(update(2))
        second = live.next()
        assert second["order"] == {"id": "2"}
        with reader(simulator, "?since=2020-01-01T00:00:00Z") as older:
            assert [event["order"]["id"] for event in older.opened().gather(2)] == ["1", "2"]
        with reader(simulator, f"?since={second['at']}") as same:
            assert same.opened().next() == second
        last = timestamps.rfc3339(timestamps.nanoseconds(second["at"]) + 1)
        with reader(simulator, f"?since={last}") as after:
            after.opened()
            wait_for(lambda: len(simulator._event_peers) == 2)
            simulator.publish_order(update(3))
            assert after.next()["order"] == {"id": "3"}


def test_until_ends_it(simulator: Simulator) -> None:
    simulator.publish_order(update(1) | {"at": "2026-01-01T00:00:00Z"})
    simulator.publish_order(update(2) | {"at": "2026-01-02T00:00:00Z"})
    with reader(simulator, "?since=2020-01-01T00:00:00Z&until=2026-01-01T12:00:00Z") as bounded:
        assert bounded.opened().rest() == "ended"
        assert ids(bounded) == ["1"]
    until = timestamps.rfc3339(time.time_ns() + 200_000_000)
    with reader(simulator, f"?since=2999-01-01T00:00:00Z&until={until}") as timed:
        assert timed.opened().rest() == "ended"


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [({}, "", 401), (keys("key", "wrong"), "", 401), (KEYS, "?since=soon", 400)],
)
def test_refusals(simulator: Simulator, headers: dict[str, str], query: str, status: int) -> None:
    with reader(simulator, query, headers) as refused:
        assert refused.refused()[0] == status


def test_faults(simulator: Simulator) -> None:
    """A drop cuts it; a refusal of upgrades refuses it too; silence keeps updates back, but not from the history."""
    with reader(simulator) as dropped:
        dropped.opened()
        wait_for(lambda: simulator._event_peers)
        simulator.drop("trading")
        assert dropped.rest() == "cut"
    simulator.refuse_upgrade("trading", 503)
    with reader(simulator) as refused:
        assert refused.refused()[0] == 503
    simulator.accept("trading")
    simulator.rehearse(simulator.settings.changed({"silence": "on"}))
    with reader(simulator) as silent:
        silent.opened()
        wait_for(lambda: simulator._event_peers)
        simulator.publish_order(update(1))
        gevent.sleep(0.05)
        assert not silent.has_begun()
    with reader(simulator, "?since=2020-01-01T00:00:00Z") as older:
        assert older.opened().next()["order"] == {"id": "1"}


def test_the_market_has_orders_for_event_streams_alone() -> None:
    with Simulator(market=Market(order_seconds=0.01)) as simulator, reader(simulator) as orders:
        events = orders.opened().gather(20)
        times = [timestamps.nanoseconds(event["at"]) for event in events]
        assert times == sorted({*times})


def test_it_stops_with_the_simulator() -> None:
    with Simulator() as simulator, reader(simulator) as cut:
        cut.opened()
        wait_for(lambda: simulator._event_peers)
        simulator.stop()
        assert cut.rest() == "cut"
