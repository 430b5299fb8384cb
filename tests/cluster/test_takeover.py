"""Takeovers and faults of Redis: real nodes, a real redis-server, the product's own values.

Alpaca sends 2,000 numbered messages a second throughout. The figures are those of the design: streams flow again after
the death of the leader within 2 s, nothing comes twice or out of order, and whatever happens to Redis costs nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from tests.cluster.clients import Client, settled
from tests.cluster.numbered import FEED, SYMBOLS, Alpaca
from tests.cluster.redis_server import RedisServer
from tests.cluster.stand import (
    CALM_SECONDS,
    Node,
    Outage,
    Stand,
    leases,
    until,
)
from tests.harness import wait_for
from tests.ports import free_port

KILL_SECONDS = 2.0  # without data after a kill of the leader, where its death is noticed at once
TERM_SECONDS = 1.0
BACK_SECONDS = 3.0  # after the leader, or the way to it, is back
SLOT_SECONDS = 5.0  # from when Alpaca frees a slot to data: it is tried every 3 s
ALONE_SECONDS = 5.0  # after which a node without Redis and without a leader tries Alpaca itself

slow = pytest.mark.slow


def long(variant: str | bool) -> Any:
    """Return a variant of a slow test that is run by hand."""
    return pytest.param(variant, marks=pytest.mark.long)


def missing_only(client: Client, alpaca: Alpaca, since: float, until: float) -> None:
    """Nothing is missing but messages that were sent between these times."""
    for symbol in client.wanted:
        times = client.missed(symbol, alpaca, since - CALM_SECONDS)
        outside = [round(at - since, 3) for at in times if not since <= at <= until]
        assert not outside, (
            f"{client}: missing {symbol}, sent so many seconds after the first in flight: {outside[:10]}"
        )


def nothing_missing(clients: list[Client]) -> None:
    for client in clients:
        assert len(client.runs) == 1, client
        for symbol in client.wanted:
            assert client.missing(symbol) == [], f"{client}: {symbol}"


def takes_over(stand: Stand, leader: Node, end: Callable[[], None], allowed: float) -> float:
    """End the leader; return for how long the clients of the other nodes get nothing."""
    witnesses = [client for client in stand.clients if client.node != leader.number]
    outage = Outage(witnesses, stand.alpaca)
    end()
    wait_for(lambda: stand.leader() not in (leader, None), "no node takes over")
    silence = outage.over()
    flowing = time.monotonic()
    assert silence < allowed
    for witness in witnesses:
        missing_only(witness, stand.alpaca, outage.in_flight, flowing)
    settled(stand.clients)
    return silence


# The end of the leader


def test_the_leader_is_killed(tmp_path: Path) -> None:
    """Three times in a row; each time another node goes on, and clients of the dead node move to one that lives."""
    with Stand(tmp_path) as stand:
        leader = stand.run()
        silences = []
        for _ in range(3):
            silences.append(takes_over(stand, leader, leader.kill, KILL_SECONDS))
            leader.start()
            stand.spread()
            new = stand.leader()
            assert new is not None
            leader = new
            stand.judge()
        print(f"silence after a kill: {' '.join(f'{silence:.2f}' for silence in silences)} s")
        assert min(silences) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("connections", [1, 3])
def test_the_leader_is_ended(tmp_path: Path, connections: int) -> None:
    """SIGTERM: it hands over. It does so, too, where the plan would allow both nodes a connection."""
    with Stand(tmp_path, alpaca=Alpaca(connections=connections)) as stand:
        leader = stand.run()
        print(f"silence: {takes_over(stand, leader, leader.terminate, TERM_SECONDS):.2f} s")
        assert leader.ended() == 0
        [(code, _)] = [run.closed for client in stand.clients for run in client.runs if run.closed is not None]
        assert code == 1001
        stand.judge()


@pytest.mark.slow
def test_an_edge_is_killed(tmp_path: Path) -> None:
    """Its clients move; the others notice nothing."""
    with Stand(tmp_path) as stand:
        leader = stand.run()
        edge, other = stand.others(leader)
        stayed = [client for client in stand.clients if client.node in (leader.number, other.number)]
        edge.kill()
        settled(stand.clients)
        assert stand.leader() is leader
        nothing_missing(stayed)
        stand.judge()


@pytest.mark.slow
def test_a_client_moves_to_another_node(tmp_path: Path) -> None:
    with Stand(tmp_path) as stand:
        leader = stand.run(0)
        [client] = stand.clients
        for node in (1, 2, 0):
            client.move(node)
            wait_for(lambda node=node: client.connected and client.runs[-1].node == node)
            settled(stand.clients)
        assert stand.leader() is leader
        assert [run.node for run in client.runs] == [0, 1, 2, 0]
        stand.judge()


# Redis


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "fault", ["killed", "hangs", "too slow", *map(long, ("emptied", "restarted", "read-only", "full", "slow"))]
)
def test_a_fault_of_redis(tmp_path: Path, fault: str) -> None:
    """The clients notice nothing. Afterwards a takeover is as quick as ever."""
    with Stand(tmp_path, forwarded=fault.endswith("slow"), alpaca=Alpaca(connections=3)) as stand:
        leader = stand.run()
        before = stand.alpaca.opened(FEED)
        began = time.monotonic()
        with_fault(stand, fault)
        wait_for(lambda: leads_by_lease(stand, leader), "the leader has no lease")
        nothing_missing(stand.clients)
        print(f"longest silence: {max(client.silence(began) for client in stand.clients):.2f} s")
        assert stand.leader() is leader
        assert stand.alpaca.opened(FEED) == before
        for node in stand.others(leader):
            assert not node.events("cluster.leads"), node.text
        stand.judge()
        takes_over(stand, leader, leader.kill, KILL_SECONDS)
        stand.judge()


def with_fault(stand: Stand, fault: str) -> None:
    redis = stand.redis
    match fault:
        case "killed":
            redis.kill()
            gevent.sleep(7)  # more than all of the product's time limits
            redis.start()
        case "restarted":
            for _ in range(3):
                redis.restart()
                gevent.sleep(1.5)
        case "emptied":
            for _ in range(5):
                redis.cli("FLUSHALL")
                gevent.sleep(0.7)
        case "hangs":
            redis.stop()
            gevent.sleep(7)
            redis.resume()
        case "read-only":
            redis.cli("REPLICAOF", "127.0.0.1", str(free_port()))
            gevent.sleep(4)
            redis.cli("REPLICAOF", "NO", "ONE")
        case "full":
            redis.cli("CONFIG", "SET", "maxmemory", "1")
            gevent.sleep(4)
            redis.cli("CONFIG", "SET", "maxmemory", "0")
        case "slow" | "too slow":
            for node in stand.nodes:
                node.redis.delay = 0.1 if fault == "slow" else 0.4  # there, and back
            gevent.sleep(7)
            for node in stand.nodes:
                node.redis.delay = 0.0


def leads_by_lease(stand: Stand, leader: Node) -> bool:
    return any(lease["owner"].startswith(leader.url) and lease["live"] for lease in leases(stand.redis).values())


@slow
@pytest.mark.timeout(120)
def test_the_leader_is_killed_while_redis_is_away(tmp_path: Path) -> None:
    """One of the others tries Alpaca itself after 5 s; all have data when Redis is back, if not before."""
    with Stand(tmp_path) as stand:
        leader = stand.run()
        edges = stand.others(leader)
        stand.redis.kill()
        gevent.sleep(1)
        outages = [Outage(stand.clients_at(node), stand.alpaca) for node in edges]
        leader.kill()
        took = until(lambda: stand.leader() in edges, ALONE_SECONDS + BACK_SECONDS, "no node takes over")
        print(f"led again after {took:.2f} s")
        gevent.sleep(5)
        print(f"silences so far: {' '.join(f'{outage.silence():.2f}' for outage in outages)} s")
        new = stand.leader()
        stand.redis.start()
        back = time.monotonic()
        for outage in outages:
            outage.over(BACK_SECONDS)
        print(f"all have data {time.monotonic() - back:.2f} s after Redis is back")
        assert stand.leader() is new
        settled(stand.clients)
        stand.judge()


@slow
@pytest.mark.timeout(120)
def test_the_leader_is_killed_and_redis_emptied(tmp_path: Path) -> None:
    with Stand(tmp_path) as stand:
        leader = stand.run()

        def end() -> None:
            stand.redis.cli("FLUSHALL")
            leader.kill()

        print(f"silence: {takes_over(stand, leader, end, KILL_SECONDS):.2f} s")
        stand.judge()


@slow
@pytest.mark.timeout(120)
def test_the_leader_is_killed_while_alpaca_is_away(tmp_path: Path) -> None:
    with Stand(tmp_path) as stand:
        leader = stand.run()
        stand.alpaca.stop()
        wait_for(lambda: not any(node.ready() for node in stand.nodes), "a node is ready")
        leader.kill()
        gevent.sleep(2)
        stand.alpaca.start()
        outage = Outage(stand.clients, stand.alpaca)
        print(f"data {outage.over():.2f} s after Alpaca is back")
        settled(stand.clients)
        stand.judge()


@slow
@pytest.mark.timeout(120)
def test_all_nodes_are_killed(tmp_path: Path) -> None:
    """The last leader is still in Redis; no node waits for it."""
    with Stand(tmp_path) as stand:
        stand.run()
        for node in stand.nodes:
            node.kill()
        for node in stand.nodes[1:]:
            node.start(wait=False)
        for node in stand.nodes[1:]:
            node.listens()
        began = time.monotonic()
        settled(stand.clients)
        print(f"data {time.monotonic() - began:.2f} s after the start")
        assert time.monotonic() - began < KILL_SECONDS + BACK_SECONDS
        stand.judge()


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [long("cut"), "frozen"])
def test_the_leader_is_cut_off_from_redis(tmp_path: Path, how: str) -> None:
    """The clients notice nothing, and a node that starts then finds the leader."""
    with Stand(tmp_path, forwarded=True, alpaca=Alpaca(connections=3)) as stand:
        leader = stand.run()
        if how == "cut":
            leader.redis.down()
            leader.redis.cut()
        else:
            leader.redis.freeze()
        gevent.sleep(3)
        new = stand.add()
        new.start()
        joined = stand.client(new.number)
        settled([joined])
        gevent.sleep(3)
        nothing_missing(stand.clients)
        assert stand.leader() is leader
        leader.redis.up()
        leader.redis.resume()
        wait_for(lambda: leads_by_lease(stand, leader), "the leader has no lease")
        nothing_missing(stand.clients)
        assert stand.alpaca.opened(FEED) == 1
        stand.judge()


# The leader hangs, or cannot be reached


@slow
@pytest.mark.timeout(120)
def test_the_leader_hangs(tmp_path: Path) -> None:
    """It is stopped for 6 s. Its slot at Alpaca stays taken, so the streams wait for it, and miss nothing."""
    with Stand(tmp_path) as stand:
        stand.alpaca.slot_outlives(60)
        leader = stand.run()
        leader.stop()
        gevent.sleep(6)
        flows_again(stand, leader.resume)
        nothing_missing(stand.clients)
        assert stand.leader() is leader
        assert stand.alpaca.opened(FEED) == 1
        takes_over_later(stand, leader)


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("what", ["one link", long("all links"), "all links and Redis"])
def test_links_freeze(tmp_path: Path, what: str) -> None:
    """For 6 s. What the leader has received meanwhile arrives then."""
    with Stand(tmp_path, forwarded=True) as stand:
        stand.alpaca.slot_outlives(60)
        leader = stand.run()
        links, edge = leader.links, stand.others(leader)[0]
        if what == "one link":
            links.freeze(lambda pair: stand.node_of(pair.source) is edge)
        else:
            links.freeze()
        if what.endswith("Redis"):
            leader.redis.freeze()
        gevent.sleep(6)

        def resume() -> None:
            links.resume()
            leader.redis.resume()

        flows_again(stand, resume)
        nothing_missing(stand.clients)
        assert stand.leader() is leader
        assert stand.alpaca.opened(FEED) == 1
        takes_over_later(stand, leader)


@slow
@pytest.mark.timeout(120)
def test_links_are_cut(tmp_path: Path) -> None:
    """A link that was cut is made anew; where that is impossible for a while, it is made when it is possible again."""
    with Stand(tmp_path, forwarded=True) as stand:
        stand.alpaca.slot_outlives(60)
        leader = stand.run()
        links = leader.links
        outage = Outage(stand.clients, stand.alpaca)
        links.cut()
        assert outage.over() < TERM_SECONDS
        links.down()
        links.cut()
        gevent.sleep(6)
        flows_again(stand, links.up)
        assert stand.leader() is leader
        assert stand.alpaca.opened(FEED) == 1
        stand.judge()


def flows_again(stand: Stand, repair: Callable[[], None]) -> None:
    repaired = time.monotonic()
    repair()
    for client in stand.clients:
        client.receives(BACK_SECONDS)
    current = [len(stand.alpaca.sent[symbol]) for symbol in SYMBOLS]
    wait_for(
        lambda: all(client.last(s) >= n - 1 for client in stand.clients for s, n in zip(SYMBOLS, current, strict=True)),
        "the streams are behind",
        BACK_SECONDS,
    )
    print(f"flows again after {time.monotonic() - repaired:.2f} s")
    assert time.monotonic() - repaired < BACK_SECONDS


def takes_over_later(stand: Stand, leader: Node) -> None:
    """After the fault a kill of the leader is as quick as ever."""
    stand.judge()
    stand.alpaca.slot_outlives(0)
    wait_for(lambda: leads_by_lease(stand, leader), "the leader has no lease")
    takes_over(stand, leader, leader.kill, KILL_SECONDS)
    stand.judge()


@slow
@pytest.mark.timeout(120)
def test_the_leader_hangs_where_the_plan_allows_several_connections(tmp_path: Path) -> None:
    """Another node leads; the former leader becomes its edge when it runs again."""
    with Stand(tmp_path, alpaca=Alpaca(connections=3)) as stand:
        leader = stand.run()
        witnesses = [client for client in stand.clients if client.node != leader.number]
        outage = Outage(witnesses, stand.alpaca)
        leader.stop()
        wait_for(lambda: stand.alpaca.opened(FEED) == 2, "no other node leads")
        print(f"silence: {outage.over():.2f} s")
        leader.resume()
        took = until(lambda: len(stand.alpaca.connections(FEED)) == 1, BACK_SECONDS, "the former leader still leads")
        print(f"the former leader had left after {took:.2f} s")
        settled(stand.clients)
        assert stand.leader() not in (leader, None)
        stand.alpaca.most.clear()
        stand.judge()


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("power", [long("on"), "off"])
def test_alpaca_keeps_the_slot_of_a_dead_leader(tmp_path: Path, power: str) -> None:
    """The streams flow as soon as Alpaca frees the slot, and the log says that it is this.

    Without power nothing answers at the leader's addresses, and its links do not end.
    """
    seconds = 10.0
    with Stand(tmp_path, forwarded=True) as stand:
        stand.alpaca.slot_outlives(seconds)
        leader = stand.run()
        edges = stand.others(leader)
        outage = Outage([client for client in stand.clients if client.node != leader.number], stand.alpaca)
        if power == "off":
            leader.links.go_dark()
            leader.redis.go_dark()
        leader.kill()
        wait_for(lambda: any(named(node, "406") and named(node, "stays taken") for node in edges), "not in the log", 9)
        wait_for(lambda: stand.leader() in edges, "no node takes over", seconds + SLOT_SECONDS)
        silence = outage.over()
        print(f"silence: {silence:.2f} s with a slot that is taken for {seconds} s")
        assert seconds - 1 < silence < seconds + SLOT_SECONDS
        settled(stand.clients)
        stand.judge()


def named(node: Node, text: str) -> bool:
    """Whether a warning of the node has this text."""
    return any(text in json.dumps(e) for p in node.processes for e in p.events if e["level"] == "warning")


# Clients at an edge


@pytest.mark.slow
def test_refusals_at_an_edge_as_at_the_leader(tmp_path: Path) -> None:
    with Stand(tmp_path, 2) as stand:
        leader = stand.run()
        for client in [*stand.clients]:
            stand.alpaca.refuse_symbols({"REFUSED"})
            client.subscribe("REFUSED")
            wait_for(lambda client=client: client.errors == [405], f"{client}: {client.errors}")
            client.wanted.discard("REFUSED")
            settled([client])
            stand.alpaca.refuse_symbols(())
            client.subscribe("REFUSED")
            wait_for(lambda client=client: client.held == client.wanted, f"{client}: {client.errors}")
            client.unsubscribe("REFUSED")
            settled([client])
        for client in stand.clients:
            assert client.errors == [405], client
        assert stand.leader() is leader
        nothing_missing(stand.clients)
        stand.judge()


@slow
@pytest.mark.timeout(120)
def test_a_late_refusal_at_an_edge_as_at_the_leader(tmp_path: Path) -> None:
    """Alpaca takes longer than a node's patience: the acknowledgement is taken back, everywhere."""
    with Stand(tmp_path, 2) as stand:
        leader = stand.run()
        stand.alpaca.slow_acks(3)
        stand.alpaca.refuse_symbols({"REFUSED"})
        for client in [*stand.clients]:
            client.subscribe("REFUSED")
            client.wanted.discard("REFUSED")
            wait_for(lambda client=client: client.errors == [405], f"{client}: {client.errors}")
            acknowledged = client.acknowledged
            client.subscribe()
            wait_for(lambda client=client, before=acknowledged: client.acknowledged > before, f"{client}: no answer")
            assert client.held == client.wanted, client
        assert [client.errors for client in stand.clients] == [[405], [405]]
        assert stand.leader() is leader
        nothing_missing(stand.clients)
        stand.judge()


@pytest.mark.slow
def test_a_plan_without_the_feed(tmp_path: Path) -> None:
    with Stand(tmp_path, 2) as stand:
        stand.alpaca.fail_auth(FEED, 409)
        clients = [stand.client(0), stand.client(1)]
        for client in clients:
            wait_for(lambda client=client: 409 in client.errors, f"{client}: {client.errors}")
        later = [stand.client(0), stand.client(1)]
        for client in later:
            wait_for(lambda client=client: 409 in client.errors, f"{client}: {client.errors}")
        assert stand.alpaca.opened(FEED) == 0


@slow
@pytest.mark.timeout(120)
def test_every_node_tells_the_truth_about_alpaca(tmp_path: Path) -> None:
    """/readyz is 503 on every node while Alpaca is away, and 200 again when it is back."""
    with Stand(tmp_path) as stand:
        leader = stand.run()
        assert all(node.ready() for node in stand.nodes)
        stand.alpaca.stop()
        for node in stand.nodes:
            took = until(lambda node=node: not node.ready(), 3, f"{node} is ready: {node.get('/readyz')}")
            print(f"{node}{' (leader)' if node is leader else ''} told it after {took:.2f} s: {node.get('/readyz')}")
        gevent.sleep(3)
        assert not any(node.ready() for node in stand.nodes)
        outage = Outage(stand.clients, stand.alpaca)
        stand.alpaca.start()
        for node in stand.nodes:
            until(node.ready, 15, f"{node}: {node.get('/readyz')}")
        print(f"data {outage.over():.2f} s after Alpaca is back")
        settled(stand.clients)
        stand.judge()


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["close", long("fin"), long("rst")])
def test_alpaca_drops_the_connection(tmp_path: Path, how: str) -> None:
    with Stand(tmp_path) as stand:
        leader = stand.run()
        outage = Outage(stand.clients, stand.alpaca)
        stand.alpaca.drop(FEED, how)
        print(f"silence: {outage.over():.2f} s; led by {leader} before, by {stand.leader()} now")
        settled(stand.clients)
        stand.judge()


@slow
@pytest.mark.timeout(120)
def test_the_leader_alone_cannot_reach_alpaca(tmp_path: Path) -> None:
    """Another node leads, and the former leader is its edge."""
    with Stand(tmp_path, forwarded=True) as stand:
        leader = stand.run()
        outage = Outage(stand.clients, stand.alpaca)
        leader.alpaca.down()
        leader.alpaca.cut()
        print(f"silence: {outage.over():.2f} s")
        settled(stand.clients)
        assert stand.leader() not in (leader, None)
        stand.judge()


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("leader_first", [True, long(False)])
def test_another_key_of_the_account(tmp_path: Path, leader_first: bool) -> None:
    """The nodes are reloaded one by one; in the end all have the new key, and one connection."""
    alpaca = Alpaca({"key": "secret", "key2": "secret"}, {"key2": "key"})
    with Stand(tmp_path, alpaca=alpaca) as stand:
        leader = stand.run()
        outages = {client: Outage([client], alpaca) for client in stand.clients}
        (tmp_path / "key").write_text("key2")
        for node in [leader, *stand.others(leader)] if leader_first else [*stand.others(leader), leader]:
            node.reload()
            gevent.sleep(1)
        reloaded = time.monotonic()
        wait_for(
            lambda: [peer.session.key for peer in alpaca.connections(FEED)] == ["key2"], "the old key is in use", 40
        )
        settled(stand.clients, 40)
        silences = [outage.over() for outage in outages.values()]
        print(
            f"settled {time.monotonic() - reloaded:.2f} s after the last of three reloads, one a second; longest"
            f" silence of each client: {' '.join(f'{silence:.2f}' for silence in silences)} s"
        )
        assert [peer.session.key for peer in alpaca.connections(FEED)] == ["key2"]
        assert len(leases(stand.redis)) == 1
        stand.judge()


@slow
@pytest.mark.timeout(120)
def test_a_feed_that_no_session_wants(tmp_path: Path) -> None:
    """Its connection is closed and its lease given back; the next client starts it anew."""
    with Stand(tmp_path, 2) as stand:
        stand.run()
        for client in stand.clients:
            client.unsubscribe(*SYMBOLS)
        took = until(lambda: not stand.alpaca.connections(FEED), 30, "Alpaca was not closed")
        print(f"closed after {took:.2f} s")
        wait_for(lambda: not leases(stand.redis), f"a lease is left: {leases(stand.redis)}", 3)
        edge = stand.clients[1]
        edge.subscribe(*SYMBOLS)
        settled([edge])
        assert stand.leader() is not None
        stand.judge()


# The start


@pytest.mark.slow
def test_the_first_node_and_an_empty_redis(tmp_path: Path) -> None:
    with Stand(tmp_path, 1) as stand:
        began = time.monotonic()
        stand.run(0)
        print(f"data after {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < 3
        stand.judge()


@slow
@pytest.mark.timeout(120)
def test_the_first_node_without_redis(tmp_path: Path) -> None:
    """After 5 s it tries Alpaca itself."""
    with Stand(tmp_path, 1) as stand:
        stand.redis.kill()
        began = time.monotonic()
        leader = stand.run(0)
        took = time.monotonic() - began
        print(f"data after {took:.2f} s")
        assert ALONE_SECONDS - 1 < took < ALONE_SECONDS + BACK_SECONDS
        stand.redis.start()
        wait_for(lambda: leads_by_lease(stand, leader), "the leader has no lease")
        new = stand.add()
        new.start()
        stand.client(new.number)
        settled(stand.clients)
        assert stand.leader() is leader
        nothing_missing(stand.clients)
        stand.judge()


@slow
@pytest.mark.timeout(120)
def test_no_lease_is_needed_to_find_the_last_leader(tmp_path: Path) -> None:
    """Redis was emptied and the leader is cut off from it: a client of an edge joins and is served."""
    redis = RedisServer()
    with Stand(tmp_path, forwarded=True, redis=redis) as stand:
        leader = stand.run(0, 1)
        leader.redis.freeze()
        redis.cli("FLUSHALL")
        gevent.sleep(3)
        for client in stand.clients:
            client.receives()
        assert stand.leader() is leader
        nothing_missing(stand.clients)
        leader.redis.resume()
        stand.client(2)
        settled(stand.clients)
        assert stand.alpaca.opened(FEED) == 1
        stand.judge()
