"""An unmodified alpaca-py receives what happens to its orders, through outages, a restart and an idle day.

The proxy is a process of its own, with the product's own values.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest

from proxy.alpaca import timestamps
from tests.sdk.algorithm import Algorithm
from tests.sdk.environments import Environments
from tests.sdk.sdks import SDKS
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(180, func_only=True)]

SDK = next(sdk for sdk in SDKS if sdk.name == "alpaca-py")
CLIENTS = """\
  momentum: {key: momentum, secret: secret, allow: {trading: {trade_updates: ["momentum-*"]}}}
"""
CLOCK = ("tests/sdk/moved_clock.py",)


@pytest.fixture
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with Stand(tmp_path_factory.mktemp("orders"), CLIENTS, program=CLOCK) as stand:
        yield stand


@pytest.fixture
def algorithm(environments: Environments, stand: Stand) -> Iterator[Algorithm]:
    with ExitStack() as stack:
        algorithm = stack.enter_context(Algorithm(environments.driver(SDK)))
        algorithm.ready()
        url = stand.url + STREAMS["trading"].path
        algorithm.open("trading", url, {"trade_updates": ["*"]}, key="momentum", secret="secret")
        listens(stand)
        yield algorithm


def listens(stand: Stand) -> None:
    wait_for(lambda: "trade_updates" in stand.simulator.subscribed("trading"), "nothing was subscribed")


def order(client_order_id: str, **more: Any) -> dict[str, Any]:
    """An order with all fields that the SDK requires."""
    documented = STREAMS["trading"].channels["trade_updates"](1)["data"]["order"]
    now = timestamps.rfc3339(time.time_ns())
    made = {"created_at": now, "submitted_at": now, "updated_at": now, "filled_at": None, "filled_avg_price": None}
    fields = {"id": str(uuid4()), "client_order_id": client_order_id, "qty": "10", "filled_qty": "0", "status": "new"}
    return {**documented, **made, **fields, **more}


def bracket() -> tuple[dict[str, Any], dict[str, Any]]:
    """A bracket's parent, as it is streamed, and its stop-loss leg, whose client_order_id Alpaca has made up."""
    parent = order("momentum-1", order_class="bracket", side="buy")
    return parent, order(str(uuid4()), order_class="bracket", type="stop", order_type="stop", status="held")


def filled(subject: dict[str, Any], **more: Any) -> dict[str, Any]:
    now = timestamps.rfc3339(time.time_ns())
    state = {**subject, "status": "filled", "filled_qty": "10", "filled_avg_price": "99.5", "filled_at": now}
    return {"event": "fill", "order": state, "price": "99.5", "qty": "10", "timestamp": now, **more}


def begin(stand: Stand, algorithm: Algorithm) -> dict[str, Any]:
    """Place a bracket order whose entry is filled; return the stop-loss leg."""
    parent, leg = bracket()
    stand.simulator.place_order(parent, [leg])
    stand.simulator.publish_order(filled(parent))
    received(algorithm, 1)
    return leg


def received(algorithm: Algorithm, count: int) -> list[dict[str, Any]]:
    """The fields of the order updates so far, once there are `count`."""
    wait_for(lambda: len(algorithm.messages("trading")) >= count, algorithm.story)
    return [event["fields"] for event in algorithm.messages("trading")]


def test_a_stop_loss_that_is_filled_in_an_outage(stand: Stand, algorithm: Algorithm) -> None:
    leg = begin(stand, algorithm)
    stand.simulator.refuse_upgrade("trading", 503)
    stand.simulator.drop("trading", "fin")
    wait_for(lambda: not stand.proxy.metric("feed_live", feed="trading"), "the stream is still live")
    stand.simulator.record_order(filled(leg))
    stand.simulator.accept("trading")
    fields = received(algorithm, 2)[1]
    assert (fields["event"], fields["client_order_id"]) == ("fill", leg["client_order_id"])
    assert (fields["price"], fields["qty"], fields["status"]) == (99.5, 10.0, "filled")
    assert stand.proxy.metric("order_updates_recovered_total", feed="trading") == 1
    assert stand.proxy.metric("client_connects_total", feed="trading") == 1  # the SDK has noticed nothing


def test_a_fill_after_a_restart_of_the_proxy(stand: Stand, algorithm: Algorithm) -> None:
    leg = begin(stand, algorithm)
    stand.proxy.kill(signal.SIGTERM)
    stand.proxy.start()
    listens(stand)
    stand.simulator.publish_order(filled(leg))
    assert received(algorithm, 2)[1]["client_order_id"] == leg["client_order_id"]


def test_a_fill_after_an_idle_day(stand: Stand, algorithm: Algorithm) -> None:
    """After 25 hours, nothing is left in the proxy of the parent, which was final."""
    leg = begin(stand, algorithm)
    stand.proxy.signal(signal.SIGUSR1)
    wait_for(lambda: stand.simulator.opened("trading") > 1, "the clock has not moved")
    listens(stand)
    stand.simulator.publish_order(filled(leg))
    assert received(algorithm, 2)[1]["client_order_id"] == leg["client_order_id"]
