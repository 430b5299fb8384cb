"""Nodes of two versions in one cluster, which is upgraded node by node, and back.

The other version is a tree of its own: the newest commit before that differs in the proxy, or this one with another
list of versions of the node dialect. Alpaca sends 2,000 numbered messages a second throughout.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import gevent
import pytest

from proxy.cluster import dialect
from tests.absent import absent
from tests.cluster.clients import settled
from tests.cluster.numbered import FEED
from tests.cluster.stand import IN_FLIGHT_SECONDS, Node, Outage, Stand
from tests.harness import ROOT, wait_for

SILENCE_SECONDS = 1.0  # for clients of a node that stays, while another one is replaced
FUTURE = dialect.VERSIONS[0] + 1

Tree = Callable[[Path], Path]
"""Make a tree with the proxy in this folder; return it."""

slow = pytest.mark.slow


def former(folder: Path) -> Path:
    """The commit before: the newest one that changed the cluster, and whose proxy is not that of the working tree."""
    commit = next((each for each in commits() if git("diff", "--quiet", each, "--", "proxy").returncode), None)
    if commit is None:
        absent("no commit before has proxy/cluster: the history is missing (git fetch --unshallow)")
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "proxy").stdout)) as archive:
        archive.extractall(folder, filter="data")
    print(f"the other version is commit {commit}")
    return folder


def future(folder: Path) -> Path:
    """This tree, with a version of the dialect that no other node knows, and the one that it has."""
    shutil.copytree(ROOT / "proxy", folder / "proxy")
    path = folder / "proxy" / "cluster" / "dialect.py"
    text = path.read_text("utf-8")
    line = f"VERSIONS = {dialect.VERSIONS}"
    assert text.count(line) == 1
    path.write_text(text.replace(line, f"VERSIONS = {(FUTURE, dialect.VERSIONS[0])}"), "utf-8")
    return folder


def incompatible(folder: Path) -> Path:
    """This tree, with a version of the dialect that no other node knows, and no other."""
    path = future(folder) / "proxy" / "cluster" / "dialect.py"
    path.write_text(path.read_text("utf-8").replace(f"({FUTURE}, {dialect.VERSIONS[0]})", f"({FUTURE},)"), "utf-8")
    return folder


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, timeout=60)


@cache
def commits() -> list[str]:
    """The commits that changed the cluster, the newest first."""
    if shutil.which("git") is None:
        absent("git is missing")
    log = git("log", "--format=%H", "--", "proxy/cluster")
    if log.returncode:
        absent(f"no history: {log.stderr.decode().strip()}")
    return [
        each for each in log.stdout.decode().split() if not git("cat-file", "-e", f"{each}:proxy/cluster").returncode
    ]


def start(node: Node, tree: Path) -> None:
    """Start a node with the proxy of this tree."""
    node._variables["PYTHONPATH"] = str(tree)
    node.start()
    assert Path(node_tree(node)) == tree


def node_tree(node: Node) -> str:
    """The tree whose proxy a node runs."""
    environ = Path(f"/proc/{node.pid}/environ").read_bytes().split(b"\0")
    return next(one for one in environ if one.startswith(b"PYTHONPATH=")).partition(b"=")[2].decode()


def replace(stand: Stand, node: Node, tree: Path) -> None:
    """End a node, and start it again from this tree; what the clients of the other one notice is bounded."""
    leads = stand.leader() is node
    [other] = stand.others(node)
    stayed = {client: client.runs[-1] for client in stand.clients if client.node == other.number}
    outage = Outage(stayed, stand.alpaca)
    node.terminate()
    if leads:
        wait_for(lambda: is_leader(stand, other), "no node takes over")
    outage.over()
    flowing = time.monotonic() if leads else outage.began
    assert node.ended() == 0
    settled(stand.clients)
    start(node, tree)
    for client in stayed:
        client.receives()
    silence = outage.silence()
    print(f"{'leader' if leads else 'edge'} replaced, silence {silence:.2f} s")
    assert silence < SILENCE_SECONDS
    for client, run in stayed.items():
        assert client.runs[-1] is run
        for symbol, numbers in run.numbers.items():
            missing = sorted({*range(numbers[0], numbers[-1])} - {*numbers})
            sent = [stand.alpaca.sent[symbol][number] for number in missing]
            assert all(outage.began - IN_FLIGHT_SECONDS <= at <= flowing for at in sent), (
                f"{client}: {symbol} {missing}"
            )
    stand.spread()
    assert is_leader(stand, other)
    stand.judge()


def is_leader(stand: Stand, node: Node) -> bool:
    """Whether this node has the connection to Alpaca."""
    with suppress(OSError):  # it is being closed
        return stand.leader() is node
    return False


@slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("upwards", [True, False], ids=["to this version", "from this version"])
@pytest.mark.parametrize("other", [former, future])
def test_a_cluster_changes_its_version_node_by_node(tmp_path: Path, other: Tree, upwards: bool) -> None:
    """An edge first, then the leader: each version leads an edge of the other one, in one direction or the other."""
    tree = other(tmp_path / "other")
    before, after = (tree, ROOT) if upwards else (ROOT, tree)
    with Stand(tmp_path, 0) as stand:
        for _ in range(2):
            start(stand.add(), before)
        leader = stand.run()
        [edge] = stand.others(leader)
        replace(stand, edge, after)
        assert stand.leader() is leader
        replace(stand, leader, after)
        assert stand.leader() is edge
        assert stand.alpaca.opened(FEED) == 2
        for node in stand.nodes:
            assert not node.events("cluster.foreign_lease")
        stand.judge()


@slow
@pytest.mark.timeout(120)
def test_versions_that_have_nothing_in_common_do_not_take_the_connection_from_each_other(tmp_path: Path) -> None:
    """The node that cannot follow says why; once the leader is replaced, all is well."""
    tree = incompatible(tmp_path / "other")
    with Stand(tmp_path, 0) as stand:
        leader, node = stand.add(), stand.add()
        start(leader, ROOT)
        stand.run(0)
        start(node, tree)
        lost = stand.client(node.number, [])
        wait_for(lambda: lost.connected)
        lost.subscribe("S0")
        wait_for(lambda: node.events("cluster.unreachable"), "it does not say why")
        said = node.events("cluster.unreachable")[0]
        assert "426" in said["reason"]
        assert "versions that follow each other" in said["hint"]
        gevent.sleep(2)  # more than a lease lasts
        assert stand.leader() is leader
        assert stand.alpaca.opened(FEED) == 1
        leader.terminate()
        assert leader.ended() == 0
        wait_for(lambda: is_leader(stand, node), "no node takes over")
        settled(stand.clients)
        stand.judge()


def test_the_versions_are_this_one_and_the_one_before() -> None:
    newest = dialect.VERSIONS[0]
    assert [*dialect.VERSIONS] == ([newest, newest - 1] if newest > 1 else [1])


def test_a_version_that_is_not_known_falls_back_to_the_common_one() -> None:
    newest = dialect.VERSIONS[0]
    assert dialect.negotiate(f"{newest + 1}, {newest}") == newest
    assert dialect.negotiate(f"{newest + 2}, {newest + 1}") is None
