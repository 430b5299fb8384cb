"""Test of the cluster's Redis, and the nodes that lead its feeds now; only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from proxy.cli.terminal import plain
from proxy.cluster.lease import Lease, account_hash, slot_of
from proxy.cluster.registry import Registry, RegistryError
from proxy.config.model import Account, Cluster


class Line(NamedTuple):
    """A line of the report; `good` is False for a problem.

    `led` is the account and feed whose leader is connected to Alpaca, if it is about one.
    """

    good: bool
    text: str
    led: tuple[str, str] | None = None


def find_leaders(cluster: Cluster, accounts: Mapping[str, Account], feeds: Sequence[tuple[str, str]]) -> Iterator[Line]:
    """Yield whether Redis answers, then which node leads each of the feeds, given as account and feed."""
    where, secret = cluster.redis.shown, cluster.secret.reveal().encode()
    try:
        with closing(Registry(cluster.redis.reveal(), cluster.name, cluster.ca)) as registry:
            nodes = registry.nodes()
            running = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} of {cluster.name} now"
            yield Line(True, f"cluster: Redis answers at {where}; it has {running}")
            for name, feed in feeds:
                account = accounts[name]
                slot = slot_of(account_hash(secret, account.key.reveal(), account.secret.reveal()), feed)
                text, _ = registry.exchange(slot, "", "")
                yield _leader(name, feed, text, Lease.decode(secret, slot, text))
    except RegistryError as error:
        yield Line(False, f"cluster: {plain(str(error))}")


def _leader(account: str, feed: str, text: str, lease: Lease | None) -> Line:
    shown = f"{account}/{feed}"
    if not text:
        return Line(True, f"{shown}: no node leads it now")
    if lease is None:
        reason = "its lease is not signed with this cluster.secret"
        step = "give all nodes the same secret, and other clusters another cluster.name"
        return Line(False, f"{shown}: {reason}; {step}")
    state = "connected to Alpaca" if lease.live else "not yet connected to Alpaca"
    led = (account, feed) if lease.live else None
    return Line(True, f"{shown}: node {plain(lease.owner)} at {plain(lease.url)} leads it, {state}", led)
