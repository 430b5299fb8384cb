"""Random orders, outages, kills and cut links over three nodes, against the model of test_order_machine.py in gateway.

Each client has a session on each node. Through everything that happens, a session whose node runs receives each fill
and each final state of its client's orders once and in order. It is closed with 1012 only after an outage, or a change
of leader, at whose end the records could not be read.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from math import inf
from typing import Any

import gevent
import pytest
from websockets.exceptions import ConnectionClosed

from proxy.alpaca import timestamps
from proxy.upstream import order_reader
from tests.cluster.order_stand import INCOMPLETE, Node, Stand
from tests.harness import Client, wait_for

CLIENTS = """
  alpha: {key: alpha, secret: alpha, max_connections: 20, allow: {trading: {trade_updates: ["alpha-*"]}}}
  beta: {key: beta, secret: beta, max_connections: 20, allow: {trading: {trade_updates: ["beta-*"]}}}
"""
NAMES = ("alpha", "beta")
FINAL = ("canceled", "expired", "replaced", "rejected")
FAULTS = ("500", "away", "shape", "429", "cut")
NODES = 3
STEPS = 14
SECONDS = 55.0  # of random histories, in one run
SETTLE_SECONDS = 25.0  # the rest of an entry may be waited for, and the lists read anew
LOOKUP_SECONDS = 3.0  # for which an update may wait for a look-up, and a little more

Order = dict[str, Any]


class World:
    """The stand, the sessions by client and node, and what each is owed since it listens."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.stand = Stand(NODES, CLIENTS)
        self.alpaca = self.stand.alpaca
        self.sessions: dict[tuple[str, int], Client] = {}
        self.owed: dict[tuple[str, int], list[tuple[str, str]]] = {}
        self.published: list[tuple[float, tuple[str, str]]] = []  # when, and what
        self.recent: dict[tuple[str, int], set[tuple[str, str]]] = {}  # shortly before a session listens
        self.owner: dict[str, str] = {}
        self.open: list[Order] = []
        self.is_up = True
        self.lost_at = inf  # the beginning of the present outage
        self.history: list[str] = []
        for node in self.stand.nodes:
            self.come(node)

    def close(self) -> None:
        self.stand.stack.close()
        assert self.stand.bugs == []

    def come(self, node: Node) -> None:
        """The sessions of a node."""
        for name in NAMES:
            self.listen(name, node)

    def listen(self, name: str, node: Node) -> None:
        self.sessions[name, node.number] = node.client(name)
        self.owed[name, node.number] = []
        since = min(time.monotonic(), self.lost_at) - LOOKUP_SECONDS
        self.recent[name, node.number] = {what for at, what in self.published if at >= since}

    @property
    def running(self) -> list[Node]:
        return [node for node in self.stand.nodes if node.running]

    # What happens

    def step(self) -> None:
        choices = [
            (6, self.place),
            (12, self.fill),
            (3, self.end),
            (3, self.kill),
            (3, self.start),
            (3, self.cut),
            (2, self.lose),
            (3, self.restore),
            (2, self.settle),
            (2, self.stop),
            (2, self.pause),
            (1, self.empty_redis),
        ]
        action = self.random.choices([each for _, each in choices], [weight for weight, _ in choices])[0]
        self.history.append(action.__name__)
        action()

    def burst(self) -> None:
        """Several updates and a fault, without a pause between them."""
        for _ in range(self.random.randrange(4)):
            self.random.choice((self.place, self.fill, self.fill, self.end))()

    def pause(self) -> None:
        gevent.sleep(self.random.choice((0.0, 0.01, 0.1, 0.4)))

    def place(self) -> None:
        """A new order; the streamed parent of a bracket does not name its legs."""
        number, name = len(self.owner), self.random.choice(NAMES)
        parent = self._order(f"o{number}", f"{name}-{number}", name)
        legs = [self._order(f"o{number}-{n}", f"made-up-{number}-{n}", name) for n in range(self.random.choice((0, 2)))]
        self.alpaca.place_order(parent, legs)
        self._publish("new", parent)

    def _order(self, order_id: str, client_order_id: str, name: str) -> Order:
        stamp = timestamps.rfc3339(time.time_ns())
        order = {"id": order_id, "client_order_id": client_order_id, "symbol": "AAPL", "qty": "3", "filled_qty": "0"}
        self.open.append(order | {"created_at": stamp, "submitted_at": stamp, "replaces": None, "status": "new"})
        self.owner[order_id] = name
        return self.open[-1]

    def fill(self) -> None:
        if not self.open:
            return
        order = self.random.choice(self.open)
        order["filled_qty"] = str(int(order["filled_qty"]) + 1)
        event = "fill" if order["filled_qty"] == order["qty"] else "partial_fill"
        order["status"] = "filled" if event == "fill" else "partially_filled"
        if event == "fill":
            self.open.remove(order)
        self._owe(order, order["filled_qty"])
        self._publish(event, order, price="1.5", qty="1")

    def end(self) -> None:
        if not self.open:
            return
        order, event = self.random.choice(self.open), self.random.choice(FINAL)
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
        self.published.append((time.monotonic(), (order["id"], what)))
        for (name, _), owed in self.owed.items():
            if name == self.owner[order["id"]]:
                owed.append((order["id"], what))

    def _publish(self, event: str, order: Order, **more: Any) -> None:
        stamp = timestamps.rfc3339(time.time_ns())
        self.alpaca.publish_order({"event": event, "order": dict(order), "timestamp": stamp, **more})

    # Nodes and links

    def kill(self) -> None:
        """End a node, the leader more often than another one; its sessions are gone."""
        if len(self.running) > 1:
            self.burst()
            self._gone(self._victim(), abruptly=True)
            self.burst()

    def stop(self) -> None:
        if len(self.running) > 1:
            self._gone(self._victim(), abruptly=False)
            self.burst()

    def _victim(self) -> Node:
        leaders = [node for node in self.running if node.leads]
        return self.random.choice(leaders * 2 + self.running)

    def _gone(self, node: Node, *, abruptly: bool) -> None:
        if abruptly:
            node.kill()
        else:
            node.stop()
        for name in NAMES:
            del self.owed[name, node.number]
            client = self.sessions.pop((name, node.number))
            client.ws.close()

    def start(self) -> None:
        """Start a node that was ended; its clients come back."""
        ended = [node for node in self.stand.nodes if not node.running]
        if ended:
            node = self.random.choice(ended)
            node.start()
            self.burst()
            self.come(node)

    def cut(self) -> None:
        """Break all links while orders are filled."""
        self.burst()
        for node in self.running:
            node.cut_links()
        self.burst()

    def empty_redis(self) -> None:
        """Redis comes back without a key."""
        self.stand.redis.restart()
        self.burst()

    # Outages

    def lose(self) -> None:
        if self.is_up:
            self.is_up, self.lost_at = False, time.monotonic()
            self.burst()
            self.alpaca.refuse_upgrade("trading", 503)
            self.alpaca.drop("trading", "rst")
            wait_for(lambda: not any(node.router.is_up for node in self.running))
            self.burst()

    def restore(self) -> None:
        """End an outage, in which the records cannot be read sometimes: then all are closed, and come again."""
        if self.is_up:
            return
        fault = self.random.choice((None, None, None, *FAULTS))
        self.is_up = True
        self.alpaca.fail_rest(fault)
        self.alpaca.accept("trading")
        if fault is not None:
            self.history.append(fault)
            for key, client in self.sessions.items():
                assert client.closed() == INCOMPLETE, key
                self.check(key, complete=False)
            self.alpaca.fail_rest(None)
            for name, number in [*self.sessions]:
                self.listen(name, self.stand.nodes[number])
        self.lost_at = inf
        self.burst()

    # What is heard

    def settle(self) -> None:
        """Wait until all have received what they are owed, unless Alpaca is away."""
        if not self.is_up:
            return
        deadline = time.monotonic() + SETTLE_SECONDS
        for key, client in self.sessions.items():
            while len(self.heard(client)) < len(self.owed[key]):
                try:
                    client.receive(max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    break
        self.stand.settle(seconds=SETTLE_SECONDS)
        for key, client in self.sessions.items():
            client.silent()
            self.check(key)
        assert self.alpaca.peak("trading") == 1

    def check(self, key: tuple[str, int], *, complete: bool = True) -> None:
        """Compare for each order what a session has received with what it is owed; the beginning of it if closed.

        What happened shortly before it listens may have waited for a look-up, and is heard then; if that was in an
        outage, what happened since the beginning of that.
        """
        received, recent = self.heard(self.sessions[key]), self.recent[key]
        everything = _by_order([what for _, what in self.published])
        heard, owed = _by_order([what for what in received if what not in recent]), _by_order(self.owed[key])
        for order_id, told in _by_order(received).items():
            assert [one for one in everything[order_id] if one in told] == told, f"{key}: {told} of {order_id}"
            assert self.owner[order_id] == key[0]
        if complete:
            assert heard == owed, f"{key}: missing {_less(owed, heard)}, too many {_less(heard, owed)}"
        else:
            for order_id, told in heard.items():
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


def _less(one: dict[str, list[str]], other: dict[str, list[str]]) -> dict[str, list[str]]:
    return {order_id: told for order_id, told in one.items() if other.get(order_id) != told}


def run(seed: int) -> None:
    """One random history."""
    world = World(seed)
    try:
        for _ in range(STEPS):
            world.step()
        world.restore()
        world.settle()
    except ConnectionClosed as closed:
        raise AssertionError(f"seed {seed}: closed with {closed} after {world.history}") from closed
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error} after {world.history}") from error
    finally:
        world.close()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_each_owner_hears_every_fill_once_or_is_told(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of calls is widened; tests/gateway/test_order_recovery.py has it as it is."""
    monkeypatch.setattr(order_reader, "CALLS", 10_000)
    monkeypatch.setattr(order_reader, "SINGLE_ORDERS", 10_000)
    until = time.monotonic() + SECONDS
    seed = 0
    while time.monotonic() < until:
        run(seed)
        seed += 1
