"""A feed of one node when the election, its link and its sessions change at an awkward moment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from proxy.alpaca.client_protocol import Login
from proxy.alpaca.codec import CODECS
from proxy.alpaca.endpoints import endpoint
from proxy.cluster.election import Role
from proxy.cluster.leader_link import Gone, LeaderGone
from proxy.cluster.lease import Lease
from proxy.cluster.member import Member
from proxy.cluster.node_server import NodeServer
from proxy.cluster.registry import Registry
from proxy.gateway import Gateway
from proxy.transport.clock import Clock
from proxy.upstream.alpaca_connection import AlpacaConnection
from proxy.upstream.source import FeedSettings
from tests.cluster.gathered import Gathered, cluster_of, leads, member_of
from tests.cluster.linked import Forwarder
from tests.harness import wait_for
from tests.ports import free_port

SECRET = b"a secret of all nodes, and long"
OTHER = "other: {{key: other, secret: other, data_url: '{alpaca}', trading_url: '{alpaca}'}}"


def slot_of(node: Gateway) -> str:
    return member_of(node).slot


def source_of(node: Gateway) -> Any:
    return member_of(node)._source


def test_an_account_that_the_leader_loses_is_led_by_another_node() -> None:
    with Gathered() as stand:
        first, second = stand.add(), stand.add()
        stand.client(first).subscribe(quotes=["A"])
        wait_for(lambda: leads(first), "no leader")
        assert stand.client(second).subscribe(quotes=["A"]) == {"quotes": ["A"]}
        assert first.config.cluster is not None
        plan = first.reload(stand.config(port=first.config.cluster.listen[1], accounts=OTHER))
        assert not plan.restart
        wait_for(lambda: leads(second), "the other node does not lead", 5)
        assert ("main", "iex") not in cluster_of(first)._members


class WaitingLeader:
    """A leader that never gets a connection to Alpaca, and does not renew its lease."""

    node, secret = "stopped", SECRET

    def __init__(self, stand: Gathered) -> None:
        self.supervisor = SimpleNamespace(
            codec=CODECS["msgpack"],
            hold=lambda *_, **__: None,
            let_go=lambda _: None,
            leave=lambda _: None,
            last_error="",
            reconciler=SimpleNamespace(refusal=None),
        )
        self.live, self.token = False, 5
        self.server = NodeServer(("127.0.0.1", 0), self, clock=Clock())  # type: ignore[arg-type]
        self.server.start()
        self.registry = Registry(stand.redis.url)

    def leading(self, account: str, feed: str) -> Any:
        return self

    def keep(self, slot: str) -> bool:
        """Renew the lease."""
        url = f"ws://127.0.0.1:{self.server.address[1]}"
        text = Lease("stopped/main", url, self.live, 2**52).encode(SECRET, slot)
        self.registry.exchange(slot, self.registry.exchange(slot, "", "")[0], text)
        return True

    def claim(self, slot: str, live: bool = False) -> None:
        url = f"ws://127.0.0.1:{self.server.address[1]}"
        self.registry.exchange(slot, "", Lease("stopped/main", url, live, self.registry.token()).encode(SECRET, slot))


@contextmanager
def waiting_leader(stand: Gathered) -> Iterator[WaitingLeader]:
    leader = WaitingLeader(stand)
    try:
        yield leader
    finally:
        leader.server.stop()
        leader.registry.close()


@pytest.mark.slow
def test_a_leader_that_hangs_before_it_is_live_is_replaced() -> None:
    with Gathered() as stand, waiting_leader(stand) as leader:
        node = stand.add()
        stand.client(node).subscribe(quotes=["A"])
        slot = slot_of(node)
        node.stop(0.1)
        wait_for(lambda: not leader.registry.exchange(slot, "", "")[0], "the lease was not given back")
        stand.redis.cli("DEL", f"alpaca-proxy:last:{slot}")
        node = stand.add()
        client = stand.client(node)
        leader.claim(slot)
        client.send_json({"action": "subscribe", "quotes": ["A"]})
        wait_for(lambda: leader.server.sessions, "no link", 2)
        wait_for(lambda: leads(node), "no node leads", 5)


@pytest.mark.slow
def test_an_attempt_beside_a_link_ends_with_the_link() -> None:
    with Gathered() as stand:
        port = free_port()
        forwarder = Forwarder(("127.0.0.1", port))
        forwarder.start()
        first = Gateway(stand.config(port=port, url=forwarder.url))
        first.start()
        try:
            stand.client(first).subscribe(quotes=["A"])
            wait_for(lambda: leads(first), "no leader")
            second = stand.add()
            stand.client(second).subscribe(quotes=["A"])
            forwarder.freeze()
            cluster_of(first)._greenlet.kill()  # type: ignore[union-attr]
            member = member_of(second)
            wait_for(lambda: member._attempt is not None, "no attempt beside the link", 8)
            forwarder.thaw()
            forwarder.cut()
            wait_for(
                lambda: isinstance(getattr(source_of(second), "inner", None), AlpacaConnection), "no connection", 5
            )
            assert member._attempt is None
        finally:
            first.stop(0.2)
            forwarder.stop()


@pytest.mark.slow
def test_a_leader_that_reaches_alpaca_again_does_not_give_way() -> None:
    with Gathered() as stand:
        host, port = stand.simulator.url.rpartition("/")[2].split(":")
        forwarder = Forwarder((host, int(port)))
        forwarder.start()
        try:
            node = stand.add(alpaca=forwarder.url)
            stand.client(node, "/v1beta3/crypto/us").subscribe(quotes=["A/USD"])
            stand.client(node).subscribe(quotes=["A"])
            wait_for(lambda: leads(node) and leads(node, "crypto"), "not live")
            stand.redis.kill()
            wait_for(lambda: cluster_of(node)._problem, "Redis is not missed")
            forwarder.target = host, free_port()
            forwarder.cut()
            wait_for(lambda: member_of(node)._gives_way, "Alpaca was not tried", 15)
            forwarder.target = host, int(port)
            wait_for(lambda: leads(node), "not live again", 15)
            opened = stand.simulator.opened("iex")
            stand.redis.start()
            wait_for(lambda: not cluster_of(node)._problem, "Redis is not back")
            wait_for(lambda: member_of(node)._text, "no lease", 10)
            gevent.sleep(1)
            assert leads(node)
            assert stand.simulator.opened("iex") == opened
        finally:
            forwarder.stop()


def test_a_feed_that_alpaca_refused_is_asked_for_again_when_the_leader_is_live() -> None:
    with Gathered() as stand, waiting_leader(stand) as leader:
        node = stand.add()
        client = stand.client(node)
        leader.supervisor.reconciler.refusal = 409, "insufficient subscription"
        client.send_json({"action": "subscribe", "quotes": ["A"]})
        wait_for(lambda: ("main", "iex") in cluster_of(node)._members, "not wanted")
        slot = slot_of(node)
        leader.claim(slot)
        upstream = node.upstreams["main", "iex"]
        wait_for(lambda: leader.keep(slot) and upstream.reconciler.closed, "not refused", 3)
        leader.supervisor.reconciler.refusal, leader.live = None, True
        wait_for(lambda: leader.keep(slot) and any(s.live for s in leader.server.sessions), "no link", 5)


def test_redis_is_not_back_before_it_answers() -> None:
    with Gathered() as stand:
        node = stand.add()
        stand.redis.kill()
        wait_for(lambda: cluster_of(node)._problem, "Redis is not missed")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert cluster_of(node)._problem
            gevent.sleep(0.01)
        stand.redis.start()
        wait_for(lambda: not cluster_of(node)._problem, "Redis is not back", 3)


def test_what_others_write_into_the_list_of_nodes_does_not_cost_the_status_page() -> None:
    with Gathered() as stand:
        for name, url, feeds in (("\udcff", "x", 1), ("a", "\udcff", 1), ("b", "\\ud800", 1), ("c", "x", 10**99)):
            stand.redis.cli("SET", f"alpaca-proxy:node:{name}", f'{{"url":"{url}","version":"1","feeds":{feeds}}}')
        node = stand.add()
        wait_for(lambda: cluster_of(node)._nodes, "no list of nodes")
        assert [each.name for each in cluster_of(node)._nodes] == [cluster_of(node).node]


def test_a_silent_feed_is_connected_anew_by_its_leader_alone() -> None:
    with Gathered() as stand:
        first, second = stand.add(), stand.add()
        for node in (first, second):
            stand.client(node).subscribe(quotes=["A"])
        wait_for(lambda: leads(first), "no leader")
        source = source_of(second)
        second.upstreams["main", "iex"]._silence.tick = lambda *_: True  # type: ignore[method-assign]
        gevent.sleep(1)
        assert source_of(second) is source
        first.upstreams["main", "iex"]._silence.tick = lambda *_: True  # type: ignore[method-assign]
        wait_for(lambda: first.upstreams["main", "iex"].silences, "the leader does not notice")
        assert second.upstreams["main", "iex"].silences == 0


@pytest.mark.slow
def test_a_list_of_nodes_that_cannot_be_read_is_no_outage_of_redis() -> None:
    with Gathered() as stand:
        stand.redis.cli("ACL", "SETUSER", "default", "-scan")  # it takes too long where there are many other keys
        node = stand.add()
        stand.client(node).subscribe(quotes=["A"])
        wait_for(lambda: leads(node), "no leader")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert not cluster_of(node)._problem
            gevent.sleep(0.01)


def alone() -> Member:
    """A member without a node around it."""
    host = SimpleNamespace(
        node="me", url="ws://me", secret=SECRET, link_tls=None, clock=Clock(),
        wake=lambda: None, stop_leading=lambda *_: None, heard_at=lambda _: 0.0,
    )  # fmt: skip
    supervisor = SimpleNamespace(needed=True, needed_here=True, reconciler=SimpleNamespace(closed=False))
    iex = endpoint("iex")
    assert iex is not None
    return Member(host, iex, settings("key"), supervisor)  # type: ignore[arg-type]


def settings(key: str) -> FeedSettings:
    return FeedSettings(Login("main", "ws://127.0.0.1:1", key, "secret"), CODECS["json"])


def test_a_reload_in_the_middle_of_a_claim_does_not_give_the_role_to_another_account() -> None:
    member = alone()

    class Slow:
        """A Redis that answers after a reload has changed the account's key."""

        def token(self) -> int:
            return 5

        def knows_tokens(self) -> bool:
            return True

        def exchange(self, slot: str, expected: str, new: str, last: str = "") -> tuple[str, str]:
            if new:
                member.make_source(settings("another key"))
            return new, ""

    member.make_source(settings("key"))
    member.step(Slow())  # type: ignore[arg-type]
    assert member.election.role is Role.NONE
    assert not member._text


def test_a_leader_that_drains_after_it_was_left_does_not_make_the_next_one_void() -> None:
    member = alone()
    source = member.make_source(settings("key"))
    election = member.election
    election.role, election.leader = Role.FOLLOWING, Lease("next", "ws://next", True, 9)

    def receive() -> None:
        raise LeaderGone(Gone.NOT_LEADING, "closed with 1001")

    source.inner = SimpleNamespace(receive=receive, end=lambda *_, **__: None)  # type: ignore[assignment]
    source.redirect("next leads the feed")
    with pytest.raises(LeaderGone):
        source.receive()
    assert election.role is Role.FOLLOWING
    assert not election._void


@pytest.mark.slow
def test_a_drain_ends_the_attempt_beside_a_link() -> None:
    with Gathered() as stand:
        port = free_port()
        forwarder = Forwarder(("127.0.0.1", port))
        forwarder.start()
        first = Gateway(stand.config(port=port, url=forwarder.url))
        first.start()
        try:
            stand.client(first).subscribe(quotes=["A"])
            wait_for(lambda: leads(first), "no leader")
            second = stand.add()
            stand.client(second).subscribe(quotes=["A"])
            forwarder.freeze()
            cluster_of(first)._greenlet.kill()  # type: ignore[union-attr]
            member = member_of(second)
            wait_for(lambda: member._attempt is not None, "no attempt beside the link", 8)
            second.stop(0.2)
            assert member._attempt is None
            assert member._attempted is None
        finally:
            first.stop(0.2)
            forwarder.stop()


def test_a_source_that_is_ended_after_a_redirect_does_not_go_on() -> None:
    with Gathered() as stand, waiting_leader(stand) as leader:
        node = stand.add()
        client = stand.client(node)
        client.send_json({"action": "subscribe", "quotes": ["A"]})
        wait_for(lambda: ("main", "iex") in cluster_of(node)._members, "not wanted")
        slot = slot_of(node)
        leader.claim(slot)
        wait_for(lambda: leader.keep(slot) and leader.server.sessions, "no link", 3)
        source = source_of(node)
        source.redirect("the role has changed")
        source.end("the account's configuration changed", deliberate=True)
        wait_for(lambda: leader.keep(slot) and source_of(node) not in (source, None), "it goes on", 3)
        assert source.ended


@pytest.mark.slow
def test_what_others_write_into_a_lease_costs_no_more_than_elections() -> None:
    with Gathered() as stand:
        node = stand.add()
        stand.client(node).subscribe(quotes=["A"])
        slot = slot_of(node)
        member = member_of(node)
        for text in ("x", "\udcff", "\udcff x"):
            stand.redis.cli("SET", f"alpaca-proxy:lease:{slot}", text)
            gevent.sleep(0.7)
            before = int(stand.redis.cli("INFO", "stats").partition("total_commands_processed:")[2].split()[0])
            gevent.sleep(2)
            after = int(stand.redis.cli("INFO", "stats").partition("total_commands_processed:")[2].split()[0])
            print(repr(text), after - before)
            assert after - before < 120
        stand.redis.cli("DEL", f"alpaca-proxy:lease:{slot}")
        wait_for(lambda: member._text and member._read == member._text, "no lease", 4)


@pytest.mark.slow
def test_a_leader_that_others_cannot_reach_costs_few_attempts() -> None:
    with Gathered() as stand:
        first = stand.add(url=f"ws://127.0.0.1:{free_port()}")
        stand.client(first).subscribe(quotes=["A"])
        wait_for(lambda: leads(first), "no leader")
        second = stand.add()
        stand.client(second).send_json({"action": "subscribe", "quotes": ["A"]})
        gevent.sleep(3)
        token = member_of(first).token
        gevent.sleep(3)
        assert leads(first)
        assert member_of(first).token == token
        assert not leads(second)
