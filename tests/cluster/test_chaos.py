"""Many kills of the leader, and ten minutes of chaos. Run by hand:

pytest -m long -s tests/cluster/test_chaos.py
CLUSTER_CHAOS_SECONDS=60 CLUSTER_CHAOS_SEED=7 pytest -m long -s tests/cluster/test_chaos.py -k chaos
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from tests.cluster.clients import Account, Client, settled
from tests.cluster.numbered import FEED, SYMBOLS
from tests.cluster.stand import Outage, Stand
from tests.harness import wait_for

KILLS = 20
KILL_SECONDS = 2.0
CHAOS_SECONDS = float(os.environ.get("CLUSTER_CHAOS_SECONDS", "600"))
CHAOS_SEED = os.environ.get("CLUSTER_CHAOS_SEED", "")
CALM_SECONDS = 60.0  # after the chaos, within which everything is as it should be

pytestmark = pytest.mark.long


@pytest.mark.timeout(600)
def test_many_kills_of_the_leader(tmp_path: Path) -> None:
    silences: list[float] = []
    missed: list[int] = []
    with Stand(tmp_path) as stand:
        leader = stand.run()
        for _ in range(KILLS):
            witnesses = [client for client in stand.clients if client.node != leader.number]
            outage = Outage(witnesses, stand.alpaca)
            leader.kill()
            silences.append(outage.over())
            missed.append(outage.missed())
            leader.start()
            stand.spread()
            found = stand.leader()
            assert found is not None
            leader = found
        account = sum((client.account() for client in stand.clients), Account())
        joined = sum((client.joined_account() for client in stand.clients), Account())
        print(
            f"{KILLS} kills: silence median {statistics.median(silences):.2f} s, worst {max(silences):.2f} s; missed"
            f" median {statistics.median(missed):.0f}, worst {max(missed)} of 2,000 a second; twice {account.twice},"
            f" out of order {account.out_of_order} (across reconnects {joined.twice}, {joined.out_of_order})"
        )
        stand.judge()
        assert statistics.median(silences) < 0.5
        assert max(silences) < KILL_SECONDS


class Chaos:
    """The faults of the nodes, of Redis and of the lines between them; `done` counts it by kind."""

    def __init__(self, stand: Stand, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._stand = stand
        self._seed = seed
        self._over = False

    def run(self, seconds: float, restless: list[Client]) -> None:
        """Let it happen for so long, and then be calm."""
        hands = [
            gevent.spawn(self._repeat, random.Random(self._seed + 1), self._to_a_node, 0.5, 3.0),
            gevent.spawn(self._repeat, random.Random(self._seed + 2), self._to_a_line, 0.5, 4.0),
            *(
                gevent.spawn(self._repeat, random.Random(self._seed + 3 + at), self._by(client), 0.1, 1.5)
                for at, client in enumerate(restless)
            ),
        ]
        gevent.wait(hands, timeout=seconds, count=1)  # one ends early by an error
        self._over = True
        for hand in hands:
            hand.get(timeout=60)

    def _repeat(self, chance: random.Random, act: Callable[[random.Random], str], least: float, most: float) -> None:
        while not self._over:
            self.done[act(chance)] += 1
            gevent.sleep(chance.uniform(least, most))

    def _to_a_node(self, chance: random.Random) -> str:
        leader = self._stand.leader()
        node = leader if leader is not None and chance.random() < 0.5 else chance.choice(self._stand.nodes)
        match chance.choice(["kill", "kill", "end", "end", "hang", "hang"]):
            case "kill":
                node.kill()
                gevent.sleep(chance.uniform(0, 3))
                node.start()
                return "killed"
            case "end":
                node.terminate()
                assert node.ended() == 0
                gevent.sleep(chance.uniform(0, 3))
                node.start()
                return "ended"
            case _:
                node.stop()
                gevent.sleep(chance.uniform(0.2, 6))
                node.resume()
                return "hung"

    def _to_a_line(self, chance: random.Random) -> str:
        stand, node = self._stand, chance.choice(self._stand.nodes)
        line, name = chance.choice([(node.links, "links"), (node.links, "links"), (node.redis, "line to Redis")])
        match chance.choice(["cut", "freeze", "freeze", "restart", "empty", "hang", "slot", "drop"]):
            case "cut":
                line.cut()
                return f"{name} cut"
            case "freeze":
                line.freeze()
                gevent.sleep(chance.uniform(0.2, 6))
                line.resume()
                return f"{name} frozen"
            case "restart":
                stand.redis.kill()
                gevent.sleep(chance.choice([0, 0, chance.uniform(0.2, 8)]))
                stand.redis.start()
                return "Redis restarted"
            case "empty":
                stand.redis.cli("FLUSHALL")
                return "Redis emptied"
            case "hang":
                stand.redis.stop()
                gevent.sleep(chance.uniform(0.2, 6))
                stand.redis.resume()
                return "Redis hung"
            case "slot":
                stand.alpaca.slot_outlives(chance.choice([0, 0, 2]))
                return "slots of the dead set"
            case _:
                stand.alpaca.drop(FEED, chance.choice(["close", "fin", "rst"]))
                return "dropped by Alpaca"

    def _by(self, client: Client) -> Callable[[random.Random], str]:
        def act(chance: random.Random) -> str:
            symbols = chance.sample(SYMBOLS, chance.randint(1, len(SYMBOLS)))
            match chance.choice(["subscribe", "subscribe", "unsubscribe", "move"]):
                case "subscribe":
                    client.subscribe(*symbols)
                    return "subscribed"
                case "unsubscribe":
                    client.unsubscribe(*symbols)
                    return "unsubscribed"
                case _:
                    client.move(chance.choice(self._stand.nodes).number)
                    return "moved"

        return act


@pytest.mark.timeout(CHAOS_SECONDS + 300)
def test_chaos(tmp_path: Path) -> None:
    seed = int(CHAOS_SEED or random.randrange(1 << 32))
    print(f"seed {seed}: CLUSTER_CHAOS_SEED={seed} CLUSTER_CHAOS_SECONDS={CHAOS_SECONDS:.0f}")
    with Stand(tmp_path, forwarded=True) as stand:
        stand.run()
        steady = [*stand.clients]
        restless = [stand.client(at, SYMBOLS[:at]) for at in range(len(stand.nodes))]
        settled(stand.clients)
        chaos, began, untaken = Chaos(stand, seed), time.monotonic(), stand.alpaca.untaken()
        chaos.run(CHAOS_SECONDS, restless)
        calm = time.monotonic()
        stand.alpaca.slot_outlives(0)
        report(stand, steady, chaos, began, stand.alpaca.untaken() - untaken)
        all_is_well(stand)
        print(f"calm after {time.monotonic() - calm:.1f} s")
        stand.judge()


def all_is_well(stand: Stand) -> None:
    """Every client holds what it asked for, by its node's own word, and gets it; so does Alpaca know it."""
    settled(stand.clients, CALM_SECONDS)
    for client in stand.clients:
        acknowledged = client.acknowledged
        client.subscribe()
        wait_for(lambda client=client, before=acknowledged: client.acknowledged > before, f"{client}: no answer")
        assert client.held == client.wanted, client
    wanted = set().union(*(client.wanted for client in stand.clients))
    wait_for(lambda: stand.alpaca.subscribed(FEED).get("trades") == wanted, f"not {wanted}")
    assert len(stand.alpaca.connections(FEED)) == 1
    for node in stand.nodes:
        wait_for(node.ready, f"{node} is not ready")


def report(stand: Stand, steady: list[Client], chaos: Chaos, began: float, untaken: int) -> None:
    print(", ".join(f"{kind} {count}" for kind, count in sorted(chaos.done.items())))
    account = sum((client.account() for client in stand.clients), Account())
    joined = sum((client.joined_account() for client in stand.clients), Account())
    sent = sum(len(times) for times in stand.alpaca.sent.values())
    missed = [sum(len(client.missing(symbol)) for symbol in SYMBOLS) for client in steady]
    print(
        f"sent {sent}, {untaken} of them while no connection was subscribed; steady clients missed {missed}, longest"
        f" silence {max(client.silence(began) for client in steady):.1f} s; twice {account.twice}, out of order"
        f" {account.out_of_order} (across reconnects {joined.twice}, {joined.out_of_order}); log-ins at Alpaca"
        f" {stand.alpaca.opened(FEED)}, refused {dict(stand.alpaca.slots.refused)}; most connections"
        f" {dict(stand.alpaca.most)}"
    )
