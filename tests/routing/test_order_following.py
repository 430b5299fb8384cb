"""Routers of order updates in a cluster: one leads, others follow its history; pure.

`Link` carries entries as a link does: what the node has asked for, then what is added. Alpaca's records are played.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.alpaca.codec import BODY_BYTES
from proxy.alpaca.order_records import RecordedUpdate
from proxy.routing import order_router
from proxy.routing.order_router import OrderRouter
from tests.routing.taking import take
from tests.routing.test_order_router import NOON, SECOND, UPDATES, Member, Reader, make_router

LISTENING = frozenset([UPDATES])


class Node:
    """A router whose stream is not up, with a listening member for each client."""

    def __init__(self, *clients: str, **patterns: list[str]) -> None:
        self.reader = Reader()
        self.router = make_router(*clients, reader=self.reader, **patterns)
        for member, _ in self.router.subscriptions():
            self.router.remove(member)
        self.router.acked_changed(frozenset())
        self.members = {name: Member(name) for name in (*clients, *patterns)}
        self.heard: dict[str, list[str]] = {name: [] for name in self.members}

    def lead(self, term: str) -> Node:
        self.router.lead(term)
        self.up()
        return self

    def up(self) -> None:
        self.router.acked_changed(LISTENING)
        for member in self.members.values():
            self.router.set_subscription(member, LISTENING)

    def down(self) -> None:
        self.router.acked_changed(frozenset())

    def recovered(self, records: Sequence[RecordedUpdate] | None) -> None:
        """The reader has read the records."""
        assert self.router.recovery is not None
        for _ in self.router.recover(self.router.recovery, records):
            pass

    def flush(self) -> list[bytes]:
        """Send what is gathered to the members; return what is for other nodes."""
        entries = []
        for delivery in self.router.flush():
            names = {member.name for member in delivery.members}
            if "node:edge" in names:
                entries.append(delivery.payload)
            for name in names & self.heard.keys():
                data = json.loads(delivery.payload)["data"]
                self.heard[name].append(f"{data['event']} {data['order']['id']}")
        return entries

    def take(self, *updates: dict[str, Any]) -> list[bytes]:
        """Take a message of Alpaca; return the entries for other nodes."""
        for update in updates:
            self.reader.now += SECOND
            assert take(self.router, json.dumps(update).encode()) == []
        return self.flush()


class Link:
    """A link from a leader to a node that follows it."""

    def __init__(self, leader: Node, edge: Node) -> None:
        self.leader, self.edge = leader, edge
        self.member = Member("node:edge")
        edge.router.follow_leader()
        self.asked = edge.router.claim()
        self.is_kept = leader.router.add_follower(self.member, self.asked)
        leader.router.set_subscription(self.member, LISTENING)
        edge.up()
        self.replayed: list[bytes] = []
        position = leader.router.begin_of(self.asked)
        while position < leader.router.history.end:
            entries, position = leader.router.replay(position, self.asked)
            self.replayed += entries
        leader.router.serve_live(self.member)
        self.bring(self.replayed)

    def bring(self, entries: Sequence[bytes]) -> None:
        for entry in entries:
            assert take(self.edge.router, entry) == []
        self.edge.flush()

    def caught_up(self, complete: bool = True) -> None:
        router = self.leader.router
        self.edge.router.caught_up(self.asked, router.term, router.complete_from or 0)
        if self.edge.router.recovery is not None:
            self.edge.recovered(() if complete else None)
        self.edge.flush()

    def cut(self) -> None:
        self.leader.router.remove(self.member)
        self.edge.down()


def update(owner: str, number: int = 1, event: str = "new", **more: Any) -> dict[str, Any]:
    order = {"id": f"{owner}-{number}", "client_order_id": f"{owner}-{number}", **more}
    return {"stream": "trade_updates", "data": {"event": event, "order": order}}


def leg(event: str = "new", **more: Any) -> dict[str, Any]:
    return {"stream": "trade_updates", "data": {"event": event, "order": {"id": "leg", "client_order_id": "x", **more}}}


def started(*clients: str, **patterns: list[str]) -> tuple[Node, Node, Link]:
    leader, edge = Node(*clients, **patterns).lead("a"), Node(*clients, **patterns)
    leader.recovered(())
    link = Link(leader, edge)
    link.caught_up()
    return leader, edge, link


def test_each_node_sends_an_entry_by_its_own_allowlists() -> None:
    """An owner that the leader does not know has it when the leader's look-up has ended."""
    leader, edge = Node("alpha").lead("a"), Node("beta")
    leader.recovered(())
    link = Link(leader, edge)
    link.caught_up()
    link.bring(leader.take(update("alpha"), update("beta")))
    assert leader.reader.lookups == ["beta-1"]
    leader.router.looked_up("beta-1")
    link.bring(leader.flush())
    assert leader.heard == {"alpha": ["new alpha-1"]}
    assert edge.heard == {"beta": ["new beta-1"]}


def test_a_look_up_makes_two_entries() -> None:
    """The first goes to those that are permitted everything, the rest has what the family tells by then."""
    leader, edge, link = started("alpha", desk=["*"])
    link.bring(leader.take(leg()))
    assert edge.heard == leader.heard == {"alpha": [], "desk": ["new leg"]}
    assert leader.reader.lookups == edge.reader.lookups == ["leg"]
    link.bring(leader.take(update("alpha", legs=[{"id": "leg"}])))
    assert edge.heard == leader.heard == {"alpha": ["new leg", "new alpha-1"], "desk": ["new leg", "new alpha-1"]}
    link.bring(leader.take(leg("canceled")))
    assert edge.heard["alpha"][-1] == "canceled leg"


def test_the_rest_that_comes_after_its_time_is_left_out() -> None:
    leader, edge, link = started("alpha", desk=["*"])
    link.bring(leader.take(leg()))
    edge.router.looked_up("leg")
    link.bring(leader.take(update("alpha", legs=[{"id": "leg"}])))
    assert edge.heard["alpha"] == ["new alpha-1"]


def test_what_was_missed_during_a_cut_comes_from_the_history() -> None:
    leader, edge, link = started("alpha", desk=["*"])
    link.bring(leader.take(update("alpha", 1)))
    link.cut()
    leader.take(update("alpha", 2), leg())
    again = Link(leader, edge)
    assert len(again.replayed) == 2
    live = leader.take(update("alpha", 3))
    again.bring(live)
    assert edge.heard["desk"] == ["new alpha-1"]  # it waits until the node has caught up
    again.caught_up()
    assert leader.reader.recoveries[2:] == []
    assert edge.heard["desk"] == ["new alpha-1", "new alpha-2", "new leg", "new alpha-3"]
    again.bring(leader.take(update("alpha", 4, legs=[{"id": "leg"}])))
    assert edge.heard["alpha"] == ["new alpha-1", "new alpha-2", "new alpha-3", "new leg", "new alpha-4"]


def test_a_first_link_fills_the_history_and_tells_sessions_nothing_old() -> None:
    leader, edge = Node("alpha").lead("a"), Node("alpha")
    leader.recovered(())
    leader.take(update("alpha", 1), update("alpha", 2))
    assert not edge.router.history.is_behind
    link = Link(leader, edge)
    assert edge.router.history.is_behind
    link.caught_up()
    assert not edge.router.history.is_behind
    assert edge.heard == {"alpha": []}
    ours, theirs = (node.router.history.read_all(0, 0.0) for node in (edge, leader))
    assert [(one.at, one.body) for one in ours] == [(one.at, one.body) for one in theirs]


def record(owner: str, number: int, time: int) -> RecordedUpdate:
    order = {"id": f"{owner}-{number}", "client_order_id": f"{owner}-{number}"}
    data = json.dumps({"event": "canceled", "order": order, "recovered": True}).encode()
    return RecordedUpdate((f"{owner}-{number}", "canceled"), time, data, 1)


def test_a_new_leader_recovers_what_a_node_asks_for() -> None:
    """The node has not heard what the former leader had not sent; the new one never followed."""
    first, edge, link = started("alpha")
    link.bring(first.take(update("alpha", 1)))
    link.cut()
    second = Node("alpha")
    second.reader.now = first.reader.now + 5 * SECOND
    second.lead("b")
    assert second.router.recovery is not None
    assert not second.router.needs_records
    again = Link(second, edge)
    assert second.router.needs_records
    assert second.router.recovery.since <= first.reader.now
    again.bring(second.take(update("alpha", 1, "fill", filled_qty="1")))
    assert edge.heard["alpha"] == ["new alpha-1"]
    second.recovered([record("alpha", 2, first.reader.now + SECOND), record("alpha", 1, first.reader.now)])
    again.bring(second.flush())
    again.caught_up()
    assert sorted(edge.heard["alpha"]) == ["canceled alpha-1", "canceled alpha-2", "fill alpha-1", "new alpha-1"]
    assert second.heard["alpha"] == ["fill alpha-1"]  # its own session has not listened before


def test_what_a_node_has_heard_is_not_heard_again_from_a_new_leader() -> None:
    """The tail of the former leader's entries came to one node alone."""
    first, edge, link = started("alpha")
    other = Node("alpha")
    others = Link(first, other)
    others.caught_up()
    entries = first.take(update("alpha", 1, "canceled"))
    link.bring(entries)
    link.cut()
    others.cut()
    other.reader.now = first.reader.now + SECOND
    other.lead("b")
    again = Link(other, edge)
    other.recovered([record("alpha", 1, first.reader.now)])
    again.bring(other.flush())
    again.caught_up()
    assert edge.heard == {"alpha": ["canceled alpha-1"]}
    assert other.heard == {"alpha": ["canceled alpha-1"]}
    again.bring(other.take(update("alpha", 1, "canceled")))  # Alpaca sends it once more
    assert edge.heard == other.heard == {"alpha": ["canceled alpha-1"]}


def test_entries_of_a_new_term_are_replayed_whatever_clock_the_former_leader_had() -> None:
    first, edge, link = started("alpha")
    other = Node("alpha")
    others = Link(first, other)
    others.caught_up()
    first.router.history.record(b'{"event":"new","order":{"id":"x"}}', 0.0, at=NOON + 10**15)
    link.bring(first.take(update("alpha", 1)))
    link.cut()
    others.cut()
    other.lead("b")
    other.take(update("alpha", 2))
    again = Link(other, edge)
    other.recovered(())
    again.bring(other.flush())
    again.caught_up()
    assert edge.heard == {"alpha": ["new alpha-1", "new alpha-2"]}


def test_a_history_that_has_forgotten_says_so() -> None:
    leader, edge, link = started("alpha")
    link.bring(leader.take(update("alpha", 1)))
    link.cut()
    leader.reader.clock += 90_000.0
    leader.take(update("alpha", 2))
    leader.router.history.forgotten_at = leader.reader.now
    assert not Link(leader, edge).is_kept


def test_without_a_session_that_listened_nothing_is_recovered() -> None:
    leader, edge, link = started()
    link.cut()
    assert edge.router.claim().since is None
    leader.down()
    leader.up()
    Link(leader, edge)
    assert not leader.router.needs_records


def test_a_later_request_extends_a_recovery() -> None:
    nodes = [Node("alpha") for _ in range(2)]
    former = Node("alpha").lead("a")
    former.recovered(())
    links = [Link(former, node) for node in nodes]
    for link in links:
        link.caught_up()
    for number, link in enumerate(links):
        link.cut()
        former.take(update("alpha", number))
    new: OrderRouter = (leader := Node("alpha")).router
    leader.reader.now = former.reader.now + 100 * SECOND
    leader.lead("b")
    sinces = []
    for node in reversed(nodes):
        Link(leader, node)
        assert new.recovery is not None
        sinces.append(new.recovery.since)
    assert sinces[0] >= sinces[1]
    assert len(leader.reader.recoveries) >= 2


def test_a_session_that_came_in_an_outage_is_not_told_the_whole_history_after_two_losses() -> None:
    leader = Node("alpha").lead("a")
    leader.recovered(())
    old = {**update("alpha", 1)["data"], "timestamp": "2026-11-20T17:00:00Z"}
    leader.take({"stream": "trade_updates", "data": old})
    edge = Node("alpha")
    for member in edge.members.values():
        edge.router.set_subscription(member, LISTENING)  # it is told that it listens before there is a link
    edge.router.follow_leader()
    edge.up()
    edge.down()  # before the leader has sent anything
    again = Link(leader, edge)
    assert len(again.replayed) == 1
    again.bring(leader.take(update("alpha", 2)))
    again.caught_up()
    assert edge.heard == {"alpha": ["new alpha-2"]}


def test_a_new_leader_knows_that_it_was_idle_meanwhile() -> None:
    """It followed a while ago; a session of it came in the outage, long after the other node had lost the leader."""
    first, edge, link = started("alpha")
    idle = Node("alpha")
    before = Link(first, idle)
    before.caught_up()
    for member in idle.members.values():
        idle.router.remove(member)
    before.cut()
    link.bring(first.take(update("alpha", 1)))
    link.cut()
    idle.reader.now = first.reader.now + 1000 * SECOND
    for member in idle.members.values():
        idle.router.set_subscription(member, LISTENING)
    idle.reader.now += 10 * SECOND
    idle.lead("b")
    assert idle.router.needs_records
    Link(idle, edge)
    assert idle.router.recovery is not None
    assert idle.router.recovery.since <= first.reader.now


def test_a_link_that_ends_early_does_not_mix_the_terms() -> None:
    """Its entries are later than those of the former leader that have not come."""
    first, edge, link = started("alpha")
    link.bring(first.take(update("alpha", 1)))
    link.cut()
    second = Node("alpha").lead("b")
    second.recovered(())
    second.router.history.record(b'{"event":"new","order":{"id":"x"}}', 0.0, at=NOON + 10**15)
    then = Link(second, edge)
    edge.recovered(None)  # more has arrived than can wait
    then.cut()
    first.take(update("alpha", 2))
    again = Link(first, edge)
    again.caught_up()
    assert edge.heard["alpha"] == ["new alpha-1", "new alpha-2"]


def test_a_term_without_an_entry_is_asked_for_from_its_start() -> None:
    """The former leader's clock was ahead."""
    first, edge, link = started("alpha")
    first.router.history.record(b'{"event":"new","order":{"id":"x"}}', 0.0, at=NOON + 10**15)
    link.bring(first.take(update("alpha", 1)))
    link.cut()
    second = Node("alpha").lead("b")
    then = Link(second, edge)
    second.recovered(())
    then.caught_up()
    then.cut()
    second.take(update("alpha", 2))
    again = Link(second, edge)
    again.caught_up()
    assert edge.heard["alpha"] == ["new alpha-1", "new alpha-2"]


def test_the_clock_of_a_former_leader_does_not_tell_what_a_new_one_lacks() -> None:
    first, edge, link = started("alpha")
    first.router.history.record(b'{"event":"new","order":{"id":"x"}}', 0.0, at=NOON + 10**15)
    one = update("alpha", 1)
    one["data"]["timestamp"] = "2026-11-27T17:00:01Z"
    link.bring(first.take(one))
    link.cut()
    second = Node("alpha")
    second.reader.now = first.reader.now + 5 * SECOND
    second.lead("b")
    second.recovered(())  # no node has asked
    Link(second, edge)
    assert second.router.needs_records


def test_entries_that_come_again_after_a_second_cut_are_sent_once() -> None:
    """Two of the same name, and one that nothing identifies."""
    leader, edge, link = started("alpha")
    link.cut()
    sent = [update("alpha", 1, event) for event in ("pending_cancel", "pending_cancel", "fill")]
    for one, second in zip(sent, (1, 2, 3), strict=True):
        one["data"]["timestamp"] = f"2026-11-27T17:00:0{second}Z"
    leader.take(*sent)
    Link(leader, edge).cut()
    again = Link(leader, edge)
    again.caught_up()
    assert edge.heard["alpha"] == ["pending_cancel alpha-1", "pending_cancel alpha-1", "fill alpha-1"]


def test_a_node_whose_clock_is_behind_keeps_the_order_of_updates() -> None:
    leader, edge, link = started("alpha")
    link.cut()
    edge.reader.now -= 10 * SECOND
    created = {"created_at": "2026-11-27T17:00:00Z"}
    leader.take(update("alpha", 1, "pending_new", **created), update("alpha", 1, **created))
    again = Link(leader, edge)
    again.bring(leader.take(update("alpha", 1, "fill", filled_qty="1", **created)))
    again.caught_up()
    assert edge.heard["alpha"] == ["pending_new alpha-1", "new alpha-1", "fill alpha-1"]


def test_what_is_remembered_of_recovered_entries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_router, "SENT_KEYS", 10)
    leader, edge, link = started("alpha")
    for number in range(100):
        one = update("alpha", number, "canceled")
        one["data"]["recovered"] = True
        edge.reader.clock += 10.0
        link.bring(leader.take(one))
    assert len(edge.router._repeats) <= 10


def test_an_entry_of_the_largest_update_is_taken() -> None:
    leader, edge, link = started("alpha")
    large = update("alpha", 1, more="")
    large["data"]["order"]["more"] = "x" * (BODY_BYTES - len(json.dumps(large)))
    link.bring(leader.take(large))
    assert leader.heard == edge.heard == {"alpha": ["new alpha-1"]}


def test_the_recorder_of_a_new_leader_records_nothing_older() -> None:
    """The former leader's has recorded it. What is missed from then on is recovered for the recorder too."""
    leader = Node(recorder=["*"])
    leader.router.orders.observers = frozenset(["recorder"])
    leader.router.lead("b")
    leader.router.set_subscription(leader.members["recorder"], LISTENING)
    leader.up()
    assert not leader.router.needs_records
    leader.recovered(())
    leader.down()
    leader.up()
    assert leader.router.needs_records


def test_an_event_stream_waits_until_what_has_waited_is_sent() -> None:
    """It reads from the history what it missed, and is a member as well: it would get an update twice."""
    leader, edge, link = started("alpha")
    link.cut()
    leader.take(update("alpha", 1))
    again = Link(leader, edge)
    edge.router.caught_up(again.asked, leader.router.term, leader.router.complete_from or 0)
    assert len(edge.router.history) == 1
    assert edge.router.history.is_behind
    edge.recovered(())
    assert not edge.router.history.is_behind
    again.cut()
    leader.take(update("alpha", 2))
    Link(leader, edge).cut()
    edge.lead("b")
    assert edge.router.history.is_behind
    edge.recovered(())
    assert not edge.router.history.is_behind
    edge.flush()
    assert edge.heard["alpha"] == ["new alpha-1", "new alpha-2"]


def test_what_a_node_has_asked_for_ends_with_its_link() -> None:
    _, edge, link = started("alpha")
    link.cut()
    leader = Node()
    leader.router.lead("b")
    for _ in range(3):
        Link(leader, edge).cut()
    leader.up()
    assert not leader.router.needs_records
