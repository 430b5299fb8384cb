"""Recording in a cluster: the node that has the connection to Alpaca records; all files together are one recording.

The nodes have one configuration and one folder. Alpaca sends 2,000 numbered messages a second throughout.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest

from proxy.recording.files import Entry, entries, node_name
from proxy.recording.timeline import scan
from tests.cluster.clients import settled
from tests.cluster.numbered import FEED, SYMBOLS, Alpaca
from tests.cluster.stand import CONFIG, Node, Stand
from tests.harness import dial, wait_for
from tests.recording.recordings import messages_of, own_lines, replaying

RECORDED = CONFIG + 'record: {folder: rec, min_free: 1MB, topics: {iex: {trades: ["*"]}}}\n'
TRADING = CONFIG + 'record: {folder: rec, min_free: 1MB, topics: {trading: {trade_updates: ["*"]}}}\n'
LOST_SECONDS = 1.0  # of a recording whose process is killed
UPDATE = {"event": "new", "order": {"id": "1", "client_order_id": "momentum-1", "symbol": "AAPL", "status": "new"}}

slow = pytest.mark.slow


def files(folder: Path, node: Node | None = None) -> list[Entry]:
    """The files in the folder, all of them or those of a node."""
    path = folder / "rec"
    found = entries(path) if path.exists() else []
    return found if node is None else [entry for entry in found if entry.node == name_of(node)]


def name_of(node: Node) -> str:
    return node_name(f"ws://{node.url}")


def recorded(paths: Sequence[Path]) -> dict[str, list[int]]:
    """The numbers of the recorded messages by symbol, in the order of a replay of all these files."""
    found: dict[str, list[int]] = defaultdict(list)
    with replaying(sorted(paths)) as alpaca, dial((alpaca._host, alpaca._port), codec="json") as client:
        client.receive()
        client.log_in("key", "secret").send_json({"action": "subscribe", "trades": ["*"]})
        data = client.gather(sum(scan(path).messages for path in paths))
    for message in data:
        found[message["S"]].append(message["i"])
    return found


def recording_of(node: Node) -> dict[str, Any]:
    """The recording in the status of a node."""
    found = json.loads(node.get("/status.json")[1])["recording"]
    assert isinstance(found, dict)
    return found


def is_active(node: Node) -> bool:
    [feed] = recording_of(node)["feeds"]
    return bool(feed["active"])


def written(node: Node) -> int:
    [feed] = recording_of(node)["feeds"]
    return int(feed["messages"])


def end(stand: Stand) -> None:
    """Close the clients, and end the nodes that run."""
    for client in stand.clients:
        client.close()
    for node in stand.nodes:
        if node.running:
            node.terminate()
            assert node.ended() == 0


@pytest.mark.slow
def test_the_recordings_of_the_nodes_are_one(tmp_path: Path) -> None:
    """The leader is ended, twice: nothing that a client was sent is missing, and nothing is there twice."""
    with Stand(tmp_path, 2, config=RECORDED) as stand:
        leader = stand.run()
        [other] = stand.others(leader)
        wait_for(lambda: written(leader) > 1000)
        assert (is_active(leader), is_active(other)) == (True, False)
        assert files(tmp_path, other) == []
        for ending, heir in ((leader, other), (other, leader)):
            ending.terminate()
            assert ending.ended() == 0
            wait_for(lambda heir=heir: is_active(heir), "no node records")
            settled(stand.clients)
            before = written(heir)
            wait_for(lambda heir=heir, before=before: written(heir) > before + 1000)
            if ending is leader:
                leader.start()
                stand.spread()
        end(stand)
        found = files(tmp_path)
        names = {name_of(leader): 2, name_of(other): 1}
        assert {name: sum(entry.node == name for entry in found) for name in names} == names
        assert len(found) == 3
        assert not any(entry.unsealed for entry in found)
        numbers = recorded([entry.path for entry in found])
        for symbol in SYMBOLS:
            assert numbers[symbol] == sorted(set(numbers[symbol]))
            for client in stand.clients:
                assert set(client.sequence(symbol)) <= set(numbers[symbol])
        for entry in files(tmp_path, other):
            assert [line["recording"] for line in own_lines(entry.path)][:1] == ["resumed"]
        stand.judge()


@pytest.mark.slow
def test_the_leader_is_killed(tmp_path: Path) -> None:
    """The other node's file begins; at most the last second before the kill is missing."""
    with Stand(tmp_path, 2, config=RECORDED) as stand:
        leader = stand.run()
        [other] = stand.others(leader)
        wait_for(lambda: written(leader) > 2000)
        killed = time.monotonic()
        killed_at = time.time_ns()
        leader.kill()
        wait_for(lambda: is_active(other), "no node records")
        settled(stand.clients)
        before = written(other)
        wait_for(lambda: written(other) > before + 1000)
        end(stand)
        [first], [second] = files(tmp_path, leader), files(tmp_path, other)
        assert first.unsealed
        assert not second.unsealed
        [resumed] = own_lines(second.path)[:1]
        assert resumed["recording"] == "resumed"
        assert -1.5e9 < resumed["since"] - killed_at < 0.5e9
        numbers = recorded([first.path, second.path])
        for symbol in SYMBOLS:
            assert numbers[symbol] == sorted(set(numbers[symbol]))
            for client in stand.clients:
                missing = set(client.sequence(symbol)) - set(numbers[symbol])
                sent = [stand.alpaca.sent[symbol][number] for number in missing]
                assert all(killed - LOST_SECONDS <= at <= killed for at in sent), (killed, min(sent), max(sent))
        assert messages_of(second.path)
        stand.judge()


@pytest.mark.slow
def test_a_node_that_does_not_record_is_sent_nothing_for_its_recorder(tmp_path: Path) -> None:
    """Without a client, some node records all the same, and the links bring nothing."""
    with Stand(tmp_path, 3, config=RECORDED) as stand:
        wait_for(lambda: any(written(node) > 1000 for node in stand.nodes), "no node records")
        leader = stand.leader()
        assert leader is not None
        for node in stand.others(leader):
            wait_for(node.ready, "no link")
            [feed] = json.loads(node.get("/status.json")[1])["feeds"]
            assert (feed["wanted"], feed["received"]) == (0, 0)
            assert not is_active(node)
            assert 'recording_active{feed="iex"} 0' in node.get("/metrics")[1]
        assert 'recording_active{feed="iex"} 1' in leader.get("/metrics")[1]
        assert [node for node in stand.nodes if is_active(node)] == [leader]
        assert {entry.node for entry in files(tmp_path)} == {name_of(leader)}
        assert stand.alpaca.opened(FEED) == 1


@slow
@pytest.mark.timeout(120)
def test_a_lone_node_records_without_redis(tmp_path: Path) -> None:
    """It has no client, and goes on for longer than the time after which a leader without any use gives way."""
    with Stand(tmp_path, 1, config=RECORDED) as stand:
        [node] = stand.nodes
        wait_for(lambda: written(node) > 0)
        stand.redis.kill()
        gevent.sleep(8)
        assert stand.alpaca.opened(FEED) == 1
        node.kill()
        node.start()
        wait_for(lambda: written(node) > 0, "it does not record")
        gevent.sleep(3)
        assert stand.alpaca.opened(FEED) == 2


@slow
@pytest.mark.timeout(120)
def test_a_feed_of_which_each_node_has_a_connection_is_recorded_by_one(tmp_path: Path) -> None:
    with Stand(tmp_path, 2, config=TRADING, alpaca=Alpaca(connections=2)) as stand:
        for node in stand.nodes:
            wait_for(lambda node=node: len(json.loads(node.get("/status.json")[1])["cluster"]["nodes"]) == 2)
        wait_for(lambda: [is_active(node) for node in stand.nodes].count(True) == 1, "not one node records")
        recording = next(node for node in stand.nodes if is_active(node))
        [other] = stand.others(recording)
        wait_for(lambda: stand.alpaca.subscribed("trading"))
        stand.alpaca.publish_order(UPDATE)
        wait_for(lambda: written(recording) == 1, "not recorded")
        recording.kill()
        wait_for(lambda: is_active(other), "no node records")
        wait_for(lambda: stand.alpaca.subscribed("trading"))
        stand.alpaca.publish_order(UPDATE)
        wait_for(lambda: written(other) == 1, "not recorded")
        assert {entry.node for entry in files(tmp_path)} == {name_of(recording), name_of(other)}
