"""Order updates through outages, restarts and idle closes, over real sockets, with the simulator's REST API.

What an algorithm is owed: every fill and final state of its orders once and in order, or the close code 1012.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import gevent
import pytest

from proxy.alpaca import timestamps
from tests.harness import Client, Harness, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  momentum: {key: momentum, secret: momentum, allow: {iex: "*", trading: {trade_updates: ["momentum-*"]}}}
  meanrev: {key: meanrev, secret: meanrev, allow: {trading: {trade_updates: ["meanrev-*"]}}}
  desk: {key: desk, secret: desk, allow: {trading: "*"}}
"""
INCOMPLETE = (1012, "order updates may be missing since an outage")
DAY = 24 * 3600


def ago(seconds: float) -> str:
    return timestamps.rfc3339(time.time_ns() - int(seconds * 1e9))


def order(order_id: str, client_order_id: str = "invented", **more: Any) -> dict[str, Any]:
    """An order; the default client_order_id stands for one that Alpaca has made up."""
    return {"id": order_id, "client_order_id": client_order_id, "symbol": "AAPL", "qty": "10", "side": "buy", **more}


def update(event: str, subject: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    status = {"fill": "filled", "partial_fill": "partially_filled"}.get(event, event)
    return {"event": event, "order": {"status": status, **subject}, "timestamp": ago(0), **more}


def filled(subject: Mapping[str, Any], quantity: int, filled_qty: int, **more: Any) -> dict[str, Any]:
    event = "fill" if filled_qty == 10 else "partial_fill"
    return update(event, {**subject, "filled_qty": str(filled_qty)}, price="1.25", qty=str(quantity), **more)


def listening(proxy: Harness, *names: str) -> list[Client]:
    clients = [proxy.client(name, "/stream") for name in names]
    for client in clients:
        assert client.listen("trade_updates") == {"streams": ["trade_updates"]}
    proxy.recovered()
    wait_for(lambda: all(reader._lists_read.is_set() for reader in proxy.gateway._order_readers.values()))
    return clients


def heard(client: Client) -> list[tuple[str, str, str]]:
    """The event, order and cumulated quantity of each update; marked if it was recovered."""
    return [
        (
            ("recovered " if data.get("recovered") else "") + data["event"],
            data["order"]["id"],
            data["order"].get("filled_qty", ""),
        )
        for data in (message["data"] for message in client.data)
    ]


def lose(proxy: Harness) -> None:
    """Begin an outage of the order stream."""
    proxy.simulator.refuse_upgrade("trading", 503)
    proxy.simulator.drop("trading", "fin")
    wait_for(lambda: not proxy.upstream("trading").acked)


def restore(proxy: Harness) -> None:
    """End the outage; what waits for the recovery is still held."""
    proxy.simulator.accept("trading")


def logged(proxy: Harness, name: str) -> list[Mapping[str, str]]:
    return [event.fields for event in proxy.gateway.snapshot().events if event.name == name]


@pytest.fixture
def proxy(start: Start) -> Harness:
    return start(CLIENTS)


def test_what_was_missed_is_recovered_for_its_owner_and_the_wildcard(proxy: Harness) -> None:
    momentum, meanrev, desk = listening(proxy, "momentum", "meanrev", "desk")
    first, second = order("a", "momentum-1"), order("b", "momentum-2")
    for one in (first, second):
        proxy.simulator.publish_order(update("new", one))
    proxy.simulator.publish_order(filled(first, 4, 4))
    momentum.gather(3)
    lose(proxy)
    proxy.simulator.record_order(filled(first, 3, 7))
    proxy.simulator.record_order(filled(first, 3, 10))
    proxy.simulator.record_order(update("canceled", second, canceled_at=ago(0)))
    restore(proxy)
    expected = [
        ("new", "a", ""),
        ("new", "b", ""),
        ("partial_fill", "a", "4"),
        ("recovered partial_fill", "a", "7"),
        ("recovered fill", "a", "10"),
        ("recovered canceled", "b", "0"),
    ]
    for client in (momentum, desk):
        client.gather(6)
        assert heard(client) == expected
    assert meanrev.silent()
    partial = momentum.data[3]["data"]
    assert (partial["price"], partial["qty"], partial["order"]["status"]) == ("1.25", "3", "partially_filled")
    assert partial["order"]["client_order_id"] == "momentum-1"
    assert not {"execution_id", "position_qty", "event_id"} & {*partial}
    proxy.recovered()
    assert proxy.upstream("trading").router.recovered == 3
    [event] = logged(proxy, "orders.recovered")
    assert event["updates"] == "3"
    proxy.simulator.publish_order(update("canceled", second))  # Alpaca sends once more what was recovered
    proxy.simulator.publish_order(update("new", order("c", "momentum-3")))
    momentum.gather(7)
    assert heard(momentum)[6:] == [("new", "c", "")]


def test_nothing_newer_of_an_order_comes_before_what_was_missed_and_new_orders_do_not_wait(proxy: Harness) -> None:
    [momentum] = listening(proxy, "momentum")
    old = order("a", "momentum-1")
    proxy.simulator.publish_order(update("new", old))
    momentum.gather(1)
    lose(proxy)
    proxy.simulator.record_order(filled(old, 4, 4))
    proxy.simulator.fail_rest("hang")
    restore(proxy)
    wait_for(lambda: proxy.upstream("trading").acked)
    proxy.simulator.publish_order(filled(old, 6, 10))
    proxy.simulator.publish_order(update("new", order("b", "momentum-2", created_at=ago(-1))))
    momentum.gather(2)
    assert heard(momentum)[1:] == [("new", "b", "")]
    proxy.simulator.fail_rest(None)
    proxy.simulator.drop("trading", "fin")  # the records are read anew after the next return
    momentum.gather(4)
    assert heard(momentum)[2:] == [("recovered partial_fill", "a", "4"), ("fill", "a", "10")]


def test_a_leg_that_is_filled_in_an_outage_reaches_the_owner_of_its_parent(proxy: Harness) -> None:
    """The streamed parent does not name its legs: Alpaca's list does."""
    momentum, meanrev = listening(proxy, "momentum", "meanrev")
    parent, leg = (
        order("parent", "momentum-1", order_class="bracket"),
        order("leg", order_class="bracket", status="held"),
    )
    proxy.simulator.place_order(parent, [leg])
    proxy.simulator.publish_order(filled(parent, 10, 10))
    momentum.gather(1)
    lose(proxy)
    proxy.simulator.record_order(filled(leg, 10, 10))
    restore(proxy)
    momentum.gather(2)
    assert heard(momentum)[1:] == [("recovered fill", "leg", "10")]
    assert meanrev.silent()


def test_an_old_order_that_ends_in_an_outage_is_read_by_its_id(proxy: Harness) -> None:
    """It is neither among the open orders any more nor among those of the last day."""
    old = order("old", "momentum-1", submitted_at=ago(9 * DAY), created_at=ago(9 * DAY), time_in_force="gtc")
    proxy.simulator.place_order(old)
    [momentum] = listening(proxy, "momentum")
    lose(proxy)
    proxy.simulator.record_order(update("expired", old))
    restore(proxy)
    momentum.gather(1)
    assert heard(momentum) == [("recovered expired", "old", "0")]
    assert any(path == "/v2/orders/old?nested=true" for _, path in proxy.simulator.rest_requests())


def test_ownership_outlives_a_restart(start: Start) -> None:
    """Friday's bracket, and an order that was replaced days ago, are their client's after a start on Monday."""
    proxy = start(CLIENTS)
    alpaca = proxy.simulator
    days = {"submitted_at": ago(3 * DAY), "created_at": ago(3 * DAY)}
    parent = order("parent", "momentum-1", status="filled", **days)
    alpaca.place_order(parent, [order("leg", status="new", **days)])
    alpaca.place_order(order("first", "meanrev-1", status="replaced", replaced_by="second", **days))
    alpaca.place_order(order("second", status="new", replaces="first", **days))
    momentum, meanrev, desk = listening(proxy, "momentum", "meanrev", "desk")
    alpaca.publish_order(filled(order("leg"), 10, 10))
    alpaca.publish_order(filled(order("second", replaces="first"), 10, 10))
    for client, order_id in ((momentum, "leg"), (meanrev, "second")):
        client.gather(1)
        assert heard(client) == [("fill", order_id, "10")]
    desk.gather(2)
    assert proxy.upstream("trading").router.unowned == 0


def test_an_update_of_an_unknown_owner_waits_for_its_look_up_but_not_for_the_wildcard(proxy: Harness) -> None:
    momentum, meanrev, desk = listening(proxy, "momentum", "meanrev", "desk")
    proxy.simulator.place_order(order("parent", "momentum-1", status="filled"), [order("leg", status="new")])
    proxy.simulator.publish_order(update("new", order("leg")))
    proxy.simulator.publish_order(filled(order("leg"), 10, 10))
    for client in (desk, momentum):
        client.gather(2)
        assert heard(client) == [("new", "leg", ""), ("fill", "leg", "10")]
    proxy.simulator.publish_order(update("new", order("stranger")))
    desk.gather(3)
    wait_for(lambda: proxy.upstream("trading").router.unowned == 1)
    assert momentum.silent()
    assert meanrev.data == []
    reads = len(proxy.simulator.rest_requests())
    proxy.simulator.publish_order(filled(order("stranger"), 10, 10))
    wait_for(lambda: proxy.upstream("trading").router.unowned == 2)
    assert len(proxy.simulator.rest_requests()) == reads  # an owner is looked up once


def test_a_look_up_without_an_answer_delays_an_update_by_two_seconds(proxy: Harness) -> None:
    momentum, desk = listening(proxy, "momentum", "desk")
    proxy.simulator.fail_rest("hang")
    began = time.monotonic()
    proxy.simulator.publish_order(update("new", order("leg")))
    desk.gather(1)
    assert time.monotonic() - began < 1
    proxy.simulator.publish_order(update("new", order("parent", "momentum-1", legs=[order("leg")])))
    momentum.gather(2, seconds=1)  # its parent has come
    assert heard(momentum) == [("new", "leg", ""), ("new", "parent", "")]
    proxy.simulator.publish_order(update("new", order("other")))
    wait_for(lambda: proxy.upstream("trading").router.unowned == 1, seconds=3)
    assert time.monotonic() - began >= 2


def test_an_owner_is_looked_up_again_if_alpaca_has_not_answered(proxy: Harness) -> None:
    momentum, desk = listening(proxy, "momentum", "desk")
    proxy.simulator.place_order(order("parent", "momentum-1", status="filled"), [order("leg", status="new")])
    proxy.simulator.fail_rest("500")
    proxy.simulator.publish_order(update("new", order("leg")))
    wait_for(lambda: proxy.upstream("trading").router.unowned == 1)
    proxy.simulator.fail_rest(None)
    proxy.simulator.publish_order(filled(order("leg"), 10, 10))
    momentum.gather(1)
    assert heard(momentum) == [("fill", "leg", "10")]
    desk.gather(2)


def test_at_most_twenty_calls_a_minute_eight_of_them_for_single_orders(proxy: Harness) -> None:
    momentum, desk = listening(proxy, "momentum", "desk")
    for number in range(30):
        proxy.simulator.publish_order(update("new", order(f"stranger-{number}")))
    desk.gather(30)
    wait_for(lambda: proxy.upstream("trading").router.unowned == 30)
    paths = [path for _, path in proxy.simulator.rest_requests()]
    assert len(paths) <= 20
    assert sum(path.startswith("/v2/orders/") for path in paths) == 8
    assert momentum.silent()


def test_orders_without_an_owner_leave_calls_for_a_recovery(proxy: Harness) -> None:
    momentum, desk = listening(proxy, "momentum", "desk")
    proxy.simulator.publish_order(update("new", order("a", "momentum-1")))
    for number in range(12):
        proxy.simulator.publish_order(update("new", order(f"stranger-{number}")))
    desk.gather(13)
    wait_for(lambda: proxy.upstream("trading").router.unowned == 12)
    lose(proxy)
    proxy.simulator.record_order(filled(order("a", "momentum-1"), 10, 10))
    restore(proxy)
    momentum.gather(2)
    assert heard(momentum)[1:] == [("recovered fill", "a", "10")]


SLOW = ["hang", "slow"]
FAULTS = ["away", "429", "500", "html", "cut", "shape", *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_told(proxy: Harness, fault: str) -> None:
    """Sessions that listened close with 1012 within ten seconds of the return; the market data notices nothing."""
    [momentum] = listening(proxy, "momentum")
    watcher = proxy.client("momentum")
    watcher.subscribe(trades=["AAPL"])
    proxy.simulator.publish_order(update("new", order("a", "momentum-1")))
    momentum.gather(1)
    with proxy.undisturbed(watcher):
        lose(proxy)
        proxy.simulator.record_order(filled(order("a", "momentum-1"), 4, 4))
        proxy.simulator.fail_rest(fault)
        restore(proxy)
        wait_for(lambda: proxy.upstream("trading").acked)
        began = time.monotonic()
        if fault in SLOW:
            proxy.simulator.publish_order(filled(order("a", "momentum-1"), 6, 10))
        assert momentum.closed() == INCOMPLETE
        assert time.monotonic() - began < 11
    assert heard(momentum)[1:] == ([("fill", "a", "10")] if fault in SLOW else [])  # held until then
    [event] = logged(proxy, "orders.incomplete")
    assert timestamps.nanoseconds(event["since"]) <= timestamps.nanoseconds(event["until"])
    assert "key" not in event["reason"]


def test_without_a_rest_api_each_lost_stream_closes_its_sessions(start: Start) -> None:
    """That is said once, at the start."""
    proxy = start(CLIENTS)
    alpaca = proxy.simulator
    alpaca.fail_rest("none")
    [momentum] = listening(proxy, "momentum")
    wait_for(lambda: len(logged(proxy, "orders.not_served")) == 1)
    for _ in range(2):
        alpaca.drop("trading", "fin")
        assert momentum.closed() == INCOMPLETE
        [momentum] = listening(proxy, "momentum")
    assert len(logged(proxy, "orders.not_served")) == 1


def test_an_idle_close_recovers_nothing(proxy: Harness) -> None:
    [momentum] = listening(proxy, "momentum")
    momentum.ws.close()
    wait_for(lambda: ("main", "trading") in proxy.gateway.upstreams and not proxy.upstream("trading").acked, seconds=15)
    proxy.simulator.record_order(filled(order("a", "momentum-1"), 10, 10))
    [again] = listening(proxy, "momentum")
    assert again.silent()
    assert proxy.upstream("trading").router.recovered == 0


def test_an_oauth_account_reads_with_its_token(start: Start) -> None:
    account = '  main: {{key: oauth, secret: token, data_url: "{url}", trading_url: "{url}"}}'
    proxy = start(CLIENTS, keys={"oauth": "token"}, config={"accounts": account})
    alpaca = proxy.simulator
    alpaca.place_order(order("parent", "momentum-1"), [order("leg")])
    [momentum] = listening(proxy, "momentum")
    alpaca.publish_order(filled(order("leg"), 10, 10))
    momentum.gather(1)
    assert heard(momentum) == [("fill", "leg", "10")]


def test_an_event_stream_has_what_was_recovered_and_is_cut_when_updates_may_be_missing(proxy: Harness) -> None:
    listening(proxy, "desk")
    connection = http.client.HTTPConnection(*proxy.address, timeout=20)
    connection.request(
        "GET", "/v2/events/trades", headers={"APCA-API-KEY-ID": "momentum", "APCA-API-SECRET-KEY": "momentum"}
    )
    response = connection.getresponse()
    assert response.status == 200
    lose(proxy)
    proxy.simulator.record_order(filled(order("a", "momentum-1"), 10, 10))
    restore(proxy)
    line = response.readline()
    assert line.startswith(b"data: ")
    recovered = json.loads(line[6:])
    assert recovered["recovered"] is True
    assert "at" in recovered
    proxy.recovered()
    lose(proxy)
    proxy.simulator.fail_rest("500")
    restore(proxy)
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    response.close()
    connection.close()


def test_many_orders_are_read_page_by_page_and_do_not_hold_up_the_data(start: Start) -> None:
    """1,200 orders, 350 fills in the outage: the reading of them yields to the data."""
    proxy = start(CLIENTS)
    alpaca = proxy.simulator
    [momentum] = listening(proxy, "momentum")
    watcher = proxy.client("momentum")
    watcher.subscribe(trades=["AAPL"])
    for number in range(1200):
        alpaca.place_order(order(str(number), f"momentum-{number}", status="new"))
    lose(proxy)
    for number in range(350):
        alpaca.record_order(filled(order(str(number), f"momentum-{number}"), 10, 10))
        gevent.sleep(0)
    with proxy.undisturbed(watcher):
        restore(proxy)
        momentum.gather(350)
    assert heard(momentum) == [("recovered fill", str(number), "10") for number in range(350)]
