"""REST of the simulator over HTTP: what its orders are fed from, and the scripted faults."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from proxy.simulator import AccountPlan, Market, Simulator
from proxy.simulator.faults import RestFault

KEYS = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
ORDERS = "/v2/orders?status=all&direction=asc"
FILLS = "/v2/account/activities/FILL"
MOMENT = 0.2

Dial = Callable[..., Any]
WaitFor = Callable[..., None]


def request(simulator: Simulator, path: str, seconds: float = 5) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", simulator._port, timeout=seconds)
    try:
        connection.request("GET", path, headers=KEYS)
        return connection.getresponse()
    finally:
        connection.close()  # the response keeps the socket until it is closed itself


def get(simulator: Simulator, path: str = ORDERS) -> Any:
    with request(simulator, path) as response:
        assert response.status == 200
        return json.loads(response.read())


def statuses(simulator: Simulator) -> dict[str, str]:
    return {order["id"]: order["status"] for order in get(simulator)}


def update(event: str, order_id: str, **more: Any) -> dict[str, Any]:
    return {"event": event, "order": {"id": order_id}, **more}


def listen(dial: Dial, simulator: Simulator) -> Any:
    client = dial(simulator, "/stream")
    client.ask({"action": "auth", "key": "key", "secret": "secret"})
    client.ask({"action": "listen", "data": {"streams": ["trade_updates"]}})
    return client


def test_updates_are_recorded_with_and_without_listeners(simulator: Simulator, dial: Dial) -> None:
    client = listen(dial, simulator)
    published = update("new", "1")
    simulator.publish_order(published)
    assert client.receive()["data"] == published == update("new", "1")
    simulator.drop("trading")
    simulator.publish_order(update("new", "2"))
    simulator.rehearse(simulator.settings.changed({"silence": "on"}))
    simulator.publish_order(update("fill", "1", price="2", qty="1"))
    assert statuses(simulator) == {"1": "filled", "2": "new"}
    assert [fill["order_id"] for fill in get(simulator, FILLS)] == ["1"]


def test_recorded_and_placed_orders_are_not_delivered(simulator: Simulator, dial: Dial) -> None:
    client = listen(dial, simulator)
    simulator.place_order({"id": "1"}, [{"id": "2"}])
    simulator.record_order(update("canceled", "2"))
    simulator.publish_order(update("new", "3"))
    assert client.receive()["data"] == update("new", "3")
    assert statuses(simulator) == {"1": "new", "2": "canceled", "3": "new"}
    assert get(simulator, "/v2/orders/1?nested=true")["legs"][0]["status"] == "canceled"


def test_records_outlast_a_restart(simulator: Simulator) -> None:
    simulator.publish_order(update("new", "1"))
    simulator.stop()
    simulator.record_order(update("canceled", "1"))
    simulator.start()
    assert statuses(simulator) == {"1": "canceled"}


def test_requests_are_listed_and_dated(simulator: Simulator) -> None:
    before = time.monotonic()
    with request(simulator, ORDERS) as response:
        assert abs(parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()) < 5
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    simulator.fail_rest("500")
    with request(simulator, FILLS):
        pass
    times, paths = zip(*simulator.rest_requests(), strict=True)
    assert paths == (ORDERS, FILLS)
    assert before <= times[0] <= times[1] <= time.monotonic()


def test_the_rate_limit() -> None:
    with Simulator(plan=AccountPlan(rest_requests_per_minute=1)) as simulator:
        get(simulator)
        with request(simulator, ORDERS) as response:
            assert response.status == 429
            assert response.headers["X-Ratelimit-Remaining"] == "0"


def test_the_market_has_orders_while_the_stream_is_away(dial: Dial, wait_for: WaitFor) -> None:
    with Simulator(market=Market(order_seconds=0.01)) as simulator:
        listen(dial, simulator).receive()
        simulator.refuse_upgrade("trading", 503)
        simulator.drop("trading")
        fills = len(get(simulator, FILLS))
        wait_for(lambda: len(get(simulator, FILLS)) > fills)
        wait_for(lambda: any(order["legs"] for order in get(simulator, "/v2/orders?status=all&nested=true")))


@pytest.fixture
def failing(simulator: Simulator) -> Callable[[str], Simulator]:
    """Return a function that gives the simulator, with an order and a fill, whose REST fails in some way."""
    simulator.record_order(update("fill", "1", qty="1"))

    def failing(kind: str) -> Simulator:
        simulator.fail_rest(kind)
        return simulator

    return failing


def test_errors(failing: Callable[[str], Simulator]) -> None:
    with request(failing("429"), ORDERS) as response:
        assert response.status == 429
        assert json.loads(response.read())["code"] == 42910000
        assert response.headers["X-Ratelimit-Limit"] == "200"
    with request(failing("500"), ORDERS) as response:
        assert response.status == 500
        assert json.loads(response.read())["code"] == 50010000
    for path in (ORDERS, FILLS, "/v2/orders/1"):
        with request(failing("none"), path) as response:
            assert response.status == 404
            assert response.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_other_documents(failing: Callable[[str], Simulator]) -> None:
    with request(failing("html"), ORDERS) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert response.read().startswith(b"<!DOCTYPE html>")
    simulator = failing("shape")
    assert [*get(simulator, ORDERS)] == ["orders"]
    assert get(simulator, "/v2/orders/1") == 42
    assert get(simulator, FILLS) == [0]
    assert [*get(simulator, "/v2/orders?status=open")] == ["orders"]
    with request(simulator, "/v2/orders/2") as response:
        assert response.status == 404


def test_no_whole_response(failing: Callable[[str], Simulator]) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        request(failing("away"), ORDERS)
    for path in (ORDERS, "/v2/orders?symbols=NONE"):
        with request(failing("cut"), path) as response, pytest.raises(http.client.IncompleteRead) as cut:
            response.read()
        half, missing = len(cut.value.partial), cut.value.expected
        assert missing is not None
        assert half <= missing <= half + 1
    with pytest.raises(TimeoutError):
        request(failing("hang"), ORDERS, MOMENT)
    with request(failing("slow"), ORDERS, MOMENT) as response:
        assert response.status == 200
        with pytest.raises(TimeoutError):
            response.read()


@pytest.mark.parametrize("kind", ["hang", "slow"])
def test_a_delayed_response_ends_when_its_client_leaves(
    failing: Callable[[str], Simulator], kind: str, wait_for: WaitFor
) -> None:
    simulator = failing(kind)
    connection = http.client.HTTPConnection("127.0.0.1", simulator._port, timeout=5)
    connection.request("GET", ORDERS, headers=KEYS)
    wait_for(lambda: simulator._rest_connections)
    connection.close()
    wait_for(lambda: not simulator._rest_connections)


@pytest.mark.parametrize("kind", ["hang", "slow"])
def test_a_delayed_response_ends_with_the_simulator(
    failing: Callable[[str], Simulator], kind: str, wait_for: WaitFor
) -> None:
    simulator = failing(kind)
    connection = http.client.HTTPConnection("127.0.0.1", simulator._port, timeout=5)
    connection.request("GET", ORDERS, headers=KEYS)
    wait_for(lambda: simulator._rest_connections)
    before = time.monotonic()
    simulator.stop()
    assert time.monotonic() - before < 1
    with pytest.raises((http.client.RemoteDisconnected, http.client.IncompleteRead)):
        connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize("kind", RestFault)
def test_a_fault_ends(failing: Callable[[str], Simulator], kind: RestFault) -> None:
    simulator = failing(kind.value)
    simulator.fail_rest(None)
    assert statuses(simulator) == {"1": "filled"}
    simulator.rehearse(simulator.settings.changed({"rest": kind.value}))
    assert simulator.faults.rest is kind
    simulator.rehearse(simulator.settings.changed({"rest": "off"}))
    assert statuses(simulator) == {"1": "filled"}
