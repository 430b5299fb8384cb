"""Any orders, outages, restarts, idle closes and REST failures, against a small model.

The model knows whose an order is: its client's, and so are its legs and what replaces it. Through everything that
happens, a client that stays receives each fill and each final state of its orders once and in order, or is closed with
1012, which happens only after an outage at whose end the records could not be read.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from proxy.alpaca import timestamps
from proxy.simulator import Simulator
from proxy.upstream import order_reader, supervisor
from tests.harness import Client, Harness, wait_for

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {trading: {trade_updates: ["alpha-*"]}}}
  beta: {key: beta, secret: beta, allow: {trading: {trade_updates: ["beta-*"]}}}
"""
NAMES = ("alpha", "beta")
FINAL = ("canceled", "expired", "replaced", "rejected")
INCOMPLETE = (1012, "order updates may be missing since an outage")

Order = dict[str, Any]


class World:
    """The simulator, the proxy, both clients, and what each of them is owed since it listens."""

    def __init__(self) -> None:
        self.alpaca = Simulator()
        self.proxy = Harness(CLIENTS, simulator=self.alpaca)
        self.clients: dict[str, Client] = {}
        self.owed: dict[str, list[tuple[str, str]]] = {}
        self.owner: dict[str, str] = {}
        self.open: list[Order] = []
        self.is_up = True
        self.fault: str | None = None
        for name in NAMES:
            self.listen(name)

    def listen(self, name: str) -> None:
        self.clients[name] = self.proxy.client(name, "/stream")
        self.clients[name].listen("trade_updates")
        self.owed[name] = []

    # What happens

    def place(self, name: str, *, bracket: bool = False) -> None:
        """A new order of a client; the streamed parent of a bracket does not name its legs."""
        number = len(self.owner)
        parent = self._order(f"o{number}", f"{name}-{number}", name)
        legs = [self._order(f"o{number}-{leg}", f"made-up-{number}-{leg}", name) for leg in range(2 * bracket)]
        self.alpaca.place_order(parent, legs)
        self._publish("new", parent)

    def _order(self, order_id: str, client_order_id: str, name: str) -> Order:
        stamp = timestamps.rfc3339(time.time_ns())
        order = {"id": order_id, "client_order_id": client_order_id, "symbol": "AAPL", "qty": "3", "filled_qty": "0"}
        self.open.append(order | {"created_at": stamp, "submitted_at": stamp, "replaces": None, "status": "new"})
        self.owner[order_id] = name
        return self.open[-1]

    def fill(self, order: Order) -> None:
        order["filled_qty"] = str(int(order["filled_qty"]) + 1)
        event = "fill" if order["filled_qty"] == order["qty"] else "partial_fill"
        order["status"] = "filled" if event == "fill" else "partially_filled"
        if event == "fill":
            self.open.remove(order)
        self._owe(order, order["filled_qty"])
        self._publish(event, order, price="1.5", qty="1")

    def end(self, order: Order, event: str) -> None:
        order["status"] = event
        self.open.remove(order)
        self._owe(order, event)
        if event == "replaced":
            successor = self._order(f"{order['id']}r", f"made-up-{order['id']}", self.owner[order["id"]])
            successor |= {"replaces": order["id"], "qty": "9"}
            order["replaced_by"] = successor["id"]
            self.alpaca.place_order(successor)
        self._publish(event, order)

    def _owe(self, order: Order, what: str) -> None:
        self.owed[self.owner[order["id"]]].append((order["id"], what))

    def _publish(self, event: str, order: Order, **more: Any) -> None:
        stamp = timestamps.rfc3339(time.time_ns())
        self.alpaca.publish_order({"event": event, "order": dict(order), "timestamp": stamp, **more})

    # Outages

    def lose(self) -> None:
        if self.is_up:
            self.is_up = False
            self.alpaca.refuse_upgrade("trading", 503)
            self.alpaca.drop("trading", "rst")
            wait_for(lambda: not self.proxy.upstream("trading").acked)

    def restore(self, fault: str | None) -> None:
        """End an outage; with a fault, the records cannot be read, so both clients are closed and come again."""
        if self.is_up:
            return
        self.is_up = True
        self.alpaca.fail_rest(fault)
        self.alpaca.accept("trading")
        if fault is not None:
            for name in NAMES:
                assert self.clients[name].closed() == INCOMPLETE
                self.check(name, complete=False)
            self.alpaca.fail_rest(None)
            self.come()
        self.settle()

    def flap(self) -> None:
        """The stream comes back, and is lost again before the records are read."""
        self.lose()
        self.alpaca.fail_rest("hang")
        self.alpaca.accept("trading")
        wait_for(lambda: self.proxy.upstream("trading").acked)
        if self.open:
            self.fill(self.open[-1])
        self.place(NAMES[0])
        self.fill(self.open[-1])
        self.alpaca.fail_rest(None)
        self.is_up = True
        self.lose()
        self.fill(self.open[-1])

    def leave(self) -> None:
        """Both clients leave for so long that the idle connection is closed, and come again."""
        self.settle()
        for client in self.clients.values():
            client.ws.close()
        wait_for(lambda: not self.proxy.gateway.server.sessions)
        upstream = self.proxy.upstream("trading")
        wait_for(lambda: upstream._greenlet is None, "not closed as idle")

    def come(self) -> None:
        for name in NAMES:
            self.listen(name)

    def restart(self) -> None:
        """The proxy ends, and a new one begins."""
        self.restore(None)
        self.settle()
        self.proxy.restart()
        self.come()

    # What is heard

    def settle(self) -> None:
        """Wait until both clients have received what they are owed, unless the stream is away."""
        if self.is_up:
            self.proxy.recovered()
            for name, client in self.clients.items():
                while len(self.heard(client)) < len(self.owed[name]):
                    client.receive(5.0)
                client.silent()
                self.check(name)

    def check(self, name: str, *, complete: bool = True) -> None:
        """Compare for each order what the client has received with what it is owed; the beginning of it if closed."""
        heard, owed = (_by_order(pairs) for pairs in (self.heard(self.clients[name]), self.owed[name]))
        if complete:
            assert heard == owed
        else:
            for order_id, told in heard.items():
                assert self.owner[order_id] == name
                assert len({*told}) == len(told)
                assert [one for one in owed[order_id] if one in told] == told

    @staticmethod
    def heard(client: Client) -> list[tuple[str, str]]:
        pairs = []
        for message in client.data:
            event, order = message["data"]["event"], message["data"]["order"]
            if event in ("fill", "partial_fill"):
                pairs.append((order["id"], order["filled_qty"]))
            elif event in FINAL:
                pairs.append((order["id"], event))
        return pairs


def _by_order(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    told = defaultdict(list)
    for order_id, what in pairs:
        told[order_id].append(what)
    return told


STEPS = st.one_of(
    st.tuples(st.just("place"), st.sampled_from(NAMES), st.booleans()),
    st.tuples(st.just("fill"), st.integers(0, 9)),
    st.tuples(st.just("fill"), st.integers(0, 9)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from(FINAL)),
    st.tuples(st.just("lose")),
    st.tuples(st.just("flap")),
    st.tuples(st.just("restore"), st.sampled_from([None, None, None, "500", "away", "shape", "429", "cut"])),
    st.tuples(st.just("settle")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("idle")),
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=5, max_size=30))
def test_an_owner_receives_each_fill_and_final_state_once_or_is_told(
    quick: None, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[Any, ...]]
) -> None:
    """The idle close is shortened and the budget of calls widened; test_order_recovery.py has both as they are."""
    monkeypatch.setattr(supervisor, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(order_reader, "CALLS", 10_000)
    monkeypatch.setattr(order_reader, "SINGLE_ORDERS", 10_000)
    world = World()
    try:
        for step in steps:
            match step:
                case ("place", name, bracket):
                    world.place(name, bracket=bracket)
                case ("fill", number) if world.open:
                    world.fill(world.open[number % len(world.open)])
                case ("end", number, event) if world.open:
                    world.end(world.open[number % len(world.open)], event)
                case ("lose",):
                    world.lose()
                case ("flap",):
                    world.flap()
                case ("restore", fault):
                    world.restore(fault)
                case ("settle",):
                    world.settle()
                case ("restart",):
                    world.restart()
                case ("idle",) if world.is_up:
                    world.leave()
                    for order in world.open[:2]:
                        if order["status"] == "new":
                            world.alpaca.record_order({"event": "new", "order": dict(order)})
                    world.come()
        world.restore(None)
        world.settle()
    except ConnectionClosed as closed:
        raise AssertionError(f"closed with {closed}") from closed
    finally:
        world.proxy.close()
