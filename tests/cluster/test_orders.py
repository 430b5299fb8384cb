"""Order updates in a cluster: real gateways, elections and Redis, with the simulator's orders and REST.

One node reads /stream and REST. On whichever node an algorithm is, it receives each update of its orders once and in
order, or the close code 1012.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest

from proxy.simulator import Simulator
from tests.cluster.order_stand import CLIENTS, CONFIG, INCOMPLETE, Events, Stand, filled, heard, order, update
from tests.cluster.redis_server import RedisServer
from tests.harness import Client, Process, dial, wait_for
from tests.ports import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand(2) as stand:
        yield stand


def listening(stand: Stand) -> dict[str, list[Client]]:
    """Each client on each node, the leader's first; all are subscribed and the lists are read."""
    first = stand.nodes[0].client("desk")
    ordered = [stand.leader, *(node for node in stand.nodes if node is not stand.leader)]
    clients = {name: [node.client(name) for node in ordered] for name in ("alpha", "beta")}
    clients["desk"] = [first, *(node.client("desk") for node in ordered[1:])]
    stand.settle()
    return clients


def calls(stand: Stand) -> int:
    return len(stand.alpaca.rest_requests())


def test_each_session_receives_its_updates_once_on_whichever_node(stand: Stand) -> None:
    clients = listening(stand)
    for number in range(20):
        stand.alpaca.publish_order(update("new", order(f"a{number}", f"alpha-{number}")))
        stand.alpaca.publish_order(update("new", order(f"b{number}", f"beta-{number}")))
    for name, own in (("alpha", "a"), ("beta", "b")):
        for client in clients[name]:
            client.gather(20)
            assert heard(client) == [("new", f"{own}{number}", "") for number in range(20)]
    for client in clients["desk"]:
        client.gather(40)
    assert clients["desk"][0].data == clients["desk"][1].data
    assert len({client.frames[-1] for client in clients["desk"]}) == 1  # the bytes of Alpaca
    for client in [one for group in clients.values() for one in group]:
        assert client.silent()
    assert len(stand.alpaca.connections("trading")) == 1


def test_account_updates_reach_every_node(stand: Stand) -> None:
    clients = [node.client("desk", "account_updates") for node in stand.nodes]
    wait_for(lambda: all(node.gateway.upstreams["main", "trading"].acked for node in stand.nodes))
    stand.alpaca.publish_raw("trading", b'{"stream":"account_updates","data":{"cash":"1"}}')
    for client in clients:
        client.gather(1)
        assert client.data == [{"stream": "account_updates", "data": {"cash": "1"}}]


def test_only_the_leader_reads_rest_for_an_owner_that_the_family_tells(stand: Stand) -> None:
    """A leg whose parent REST alone names, and a replacement that its update names."""
    clients = listening(stand)
    before = calls(stand)
    stand.alpaca.place_order(order("parent", "alpha-1", status="filled"), [order("leg", status="new")])
    stand.alpaca.publish_order(update("new", order("leg")))
    stand.alpaca.publish_order(filled(order("leg"), 10))
    stand.alpaca.publish_order(update("replaced", order("b", "beta-1", replaced_by="c")))
    stand.alpaca.publish_order(filled(order("c", replaces="b"), 10))
    for client in clients["alpha"]:
        client.gather(2)
        assert heard(client) == [("new", "leg", ""), ("fill", "leg", "10")]
    for client in clients["beta"]:
        client.gather(2)
        assert heard(client) == [("replaced", "b", ""), ("fill", "c", "10")]
    for client in clients["desk"]:
        client.gather(4)
        assert client.silent()
    assert 1 <= calls(stand) - before <= 3
    for client in (*clients["alpha"], *clients["beta"]):
        assert client.silent()


def test_an_update_without_an_owner_goes_to_the_wildcard_of_every_node(stand: Stand) -> None:
    clients = listening(stand)
    stand.alpaca.publish_order(update("new", order("stranger")))
    for client in clients["desk"]:
        client.gather(1, seconds=1)
    wait_for(lambda: all(node.router.unowned == 1 for node in stand.nodes))
    for client in (*clients["alpha"], *clients["beta"]):
        assert client.silent()


def fill_during(stand: Stand, what: str) -> None:
    """Publish fills of one order without a pause, and let something happen in the middle."""
    subject = order("a", "alpha-1", qty="10")
    stand.alpaca.publish_order(update("new", subject))
    for number in range(1, 11):
        if number == 4:
            ending = gevent.spawn(happen, stand, what)
        stand.alpaca.publish_order(filled(subject, number))
        gevent.sleep(0.05)
    ending.get(timeout=20)


def happen(stand: Stand, what: str) -> None:
    match what:
        case "kill":
            stand.leader.kill()
        case "stop":
            stand.leader.stop()
        case "cut":
            stand.leader.cut_links()
        case "away":
            stand.lose()
            gevent.sleep(0.2)
            stand.restore()


EXPECTED = [("new", "a", "")] + [("fill" if n == 10 else "partial_fill", "a", str(n)) for n in range(1, 11)]


@pytest.mark.parametrize("what", ["kill", "stop", "cut", "away"])
def test_fills_during_an_outage_are_heard_once(stand: Stand, what: str) -> None:
    clients = listening(stand)
    fill_during(stand, what)
    gone = what in ("kill", "stop")
    for client in (*clients["alpha"][gone:], *clients["desk"][gone:]):
        client.gather(11)
        assert heard(client) == EXPECTED
        assert client.silent()
    assert clients["beta"][1].silent()
    if gone:
        assert len(stand.alpaca.connections("trading")) == 1


def test_a_cut_link_costs_no_rest_call(stand: Stand) -> None:
    clients = listening(stand)
    before = calls(stand)
    fill_during(stand, "cut")
    for client in clients["alpha"]:
        client.gather(11)
        assert heard(client) == EXPECTED
        assert not any("recovered" in message["data"] for message in client.data)
    assert calls(stand) == before


@pytest.mark.parametrize("what", ["kill", "away"])
def test_when_rest_fails_the_sessions_of_every_node_are_told(stand: Stand, what: str) -> None:
    clients = listening(stand)
    stand.alpaca.publish_order(update("new", order("a", "alpha-1")))
    for group in ("alpha", "desk"):
        for client in clients[group]:
            client.gather(1)
    stand.alpaca.fail_rest("500")
    happen(stand, what)
    gone = what == "kill"
    for group in clients.values():
        for client in group[gone:]:
            assert client.closed() == INCOMPLETE
    assert stand.logged("orders.incomplete")


def test_a_look_up_survives_its_leader(stand: Stand) -> None:
    """The new leader looks up what the former one had begun to."""
    clients = listening(stand)
    stand.alpaca.place_order(order("parent", "alpha-1", status="new"), [order("leg", status="new")])
    stand.alpaca.fail_rest("hang")
    stand.alpaca.publish_order(update("new", order("leg")))
    clients["desk"][1].gather(1)
    stand.alpaca.fail_rest(None)
    stand.leader.kill()
    clients["alpha"][1].gather(1, seconds=5)
    assert heard(clients["alpha"][1]) == [("new", "leg", "")]
    stand.settle()
    for name in ("alpha", "desk"):
        assert clients[name][1].silent()


def test_a_node_that_joins_later_has_the_history_for_event_streams(stand: Stand) -> None:
    """A Go client moves with `since`, back and forth: no gap, nothing twice; WebSocket sessions get nothing old."""
    first, second = stand.nodes
    watcher = first.client("desk")
    events = Events(first, "alpha")
    for number in range(3):
        stand.alpaca.publish_order(update("new", order(f"a{number}", f"alpha-{number}")))
    wait_for(lambda: len(events.data) == 3)
    watcher.gather(3)
    events.close()
    stand.alpaca.publish_order(update("new", order("a3", "alpha-3")))
    watcher.gather(4)
    newcomer = second.client("alpha")
    moved = Events(second, "alpha", events.next)
    stand.alpaca.publish_order(update("new", order("a4", "alpha-4")))
    wait_for(lambda: len(moved.data) == 2)
    assert [one[1] for one in heard(moved)] == ["a3", "a4"]
    newcomer.gather(1)
    assert [one[1] for one in heard(newcomer)] == ["a4"]
    moved.close()
    first.kill()
    wait_for(lambda: second.leads)
    stand.settle()
    back = Events(second, "alpha", moved.next)
    stand.alpaca.publish_order(update("new", order("a5", "alpha-5")))
    wait_for(lambda: len(back.data) == 1)
    assert [one[1] for one in heard(back)] == ["a5"]
    back.close()


def test_an_event_stream_is_told_what_was_missed_and_cut_if_that_is_unknown(stand: Stand) -> None:
    clients = listening(stand)
    edge = stand.edges[0]
    events = Events(edge, "alpha")
    stand.lose()
    stand.alpaca.record_order(filled(order("a", "alpha-1"), 10))
    stand.restore()
    wait_for(lambda: len(events.data) == 1)
    assert events.data[0]["recovered"] is True
    clients["alpha"][1].gather(1)
    stand.settle()
    stand.lose()
    stand.alpaca.fail_rest("500")
    stand.restore()
    wait_for(lambda: events.is_cut)
    events.close()


def test_a_session_that_came_in_an_outage_is_owed_what_happened_in_it(stand: Stand) -> None:
    """It was told that it listens while no node had Alpaca."""
    clients = listening(stand)
    stand.lose()
    late = stand.nodes[1].client("beta")
    stand.alpaca.record_order(filled(order("b", "beta-1"), 10))
    stand.restore()
    for client in (*clients["beta"], late):
        client.gather(1)
        assert heard(client) == [("fill", "b", "10")]


def test_a_new_session_is_told_nothing_old(stand: Stand) -> None:
    clients = listening(stand)
    stand.alpaca.publish_order(update("new", order("a", "alpha-1")))
    clients["alpha"][1].gather(1)
    stand.leader.cut_links()
    newcomers = [node.client("alpha") for node in stand.nodes]
    stand.settle()
    for client in newcomers:
        assert client.silent()
        assert client.data == []


def test_clients_that_want_it_are_closed_when_the_leader_is_gone() -> None:
    closing = CLIENTS.replace("alpha, max", "alpha, on_outage: close, max")
    with Stand(2, closing) as stand:
        clients = listening(stand)
        stand.leader.kill()
        assert clients["alpha"][1].closed() == (1012, "the connection to trading was lost")
        stand.settle()
        assert clients["beta"][1].silent()
        assert clients["desk"][1].silent()
        [outages] = {
            subscriber.outages
            for node in [*stand.edges, stand.leader]
            for session in node.gateway.server.sessions
            for subscriber in session.subscribers
        }
        assert outages == 1


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_processes(tmp_path: Path, signal_: signal.Signals) -> None:
    """Two processes; while orders fill, the leader is killed, ended, or stopped for some seconds."""
    with ExitStack() as stack:
        alpaca = stack.enter_context(Simulator())
        redis = stack.enter_context(RedisServer())
        nodes = []
        for number in range(2):
            text = CONFIG.format(redis=redis.port, links=free_port(), url=alpaca.url, clients=CLIENTS)
            path = tmp_path / f"{number}.yaml"
            path.write_text(text + "log: {format: json}\n", "utf-8")
            nodes.append(stack.enter_context(Process("-c", str(path), folder=tmp_path)))
        clients = []
        for node in nodes:
            client = stack.enter_context(dial(node.address(), "/stream"))
            clients.append(client.log_in("alpha"))
            client.listen("trade_updates")
        wait_for(lambda: all(_has(node, "upstream.live") for node in nodes), "not live")
        wait_for(lambda: any(_has(node, "cluster.follows") for node in nodes), "no node follows")
        [leader] = [node for node in nodes if not _has(node, "cluster.follows")]
        subject = order("a", "alpha-1")
        alpaca.publish_order(update("new", subject))
        for client in clients:
            client.gather(1)
        for number in range(1, 11):
            if number == 4:
                os.kill(leader.popen.pid, signal_)
            alpaca.publish_order(filled(subject, number))
            gevent.sleep(0.1)
        stays = [client for client, node in zip(clients, nodes, strict=True) if node is not leader]
        if signal_ is signal.SIGSTOP:
            gevent.sleep(2)
            os.kill(leader.popen.pid, signal.SIGCONT)
            stays = clients
        for client in stays:
            client.gather(11)
            assert heard(client) == EXPECTED
            assert client.silent()
        for node in nodes:
            assert "internal_error" not in node.text, node.text


def _has(node: Process, name: str) -> bool:
    return any(event["event"] == name for event in node.events)
