"""This node of the cluster: its members, its lease renewals, and the port for the other nodes.

One greenlet speaks to Redis about leases. It goes through the feeds every RENEW_SECONDS, and at once when something has
happened to one of them. A Redis that does not answer costs that greenlet its time limit, and no message. Another one
speaks to Redis about places of clients (`places`).
"""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import gevent
from gevent.event import Event

from proxy.alpaca.endpoints import Dialect, Endpoint
from proxy.cluster.leader_history import LeaderHistory
from proxy.cluster.member import Member
from proxy.cluster.node_server import NodeServer
from proxy.cluster.places import ClusterPlaces, SessionCounts
from proxy.cluster.registry import Registry, RegistryError
from proxy.cluster.source import ClusterSource
from proxy.config.model import Cluster, Config, Tls
from proxy.observe.logs import Log
from proxy.observe.snapshot import ClusterNode, ClusterState
from proxy.observe.version import __version__
from proxy.upstream.source import FeedSettings
from proxy.upstream.supervisor import FeedSupervisor

RENEW_SECONDS = 0.3
ANNOUNCE_SECONDS = 1.0
LIST_SECONDS = 2.0
MAX_NODES = 256  # that are shown
MAX_ANNOUNCEMENT, MAX_NAME = 1024, 128  # characters
STOP_SECONDS = 2.0  # for which a drain waits until the connections to Alpaca are closed

FindSupervisor = Callable[[str, str], FeedSupervisor | None]


class Node:
    """One proxy of a cluster. `find_supervisor` returns that of an account and feed; None for no more.

    `find_orders` returns what an account's router of order updates reads on the nodes that do not lead, `counts` the
    numbers of sessions of this node; `places` are those that all nodes share. `start` raises OSError if the address for
    the other nodes cannot be bound.
    """

    def __init__(
        self,
        config: Cluster,
        clock: Callable[[], float],
        find_supervisor: FindSupervisor,
        find_orders: Callable[[str], LeaderHistory],
        counts: Callable[[], SessionCounts],
    ) -> None:
        self.url = config.url
        self.secret = config.secret.reveal().encode()
        self.node = f"{urlsplit(config.url).netloc}#{secrets.token_hex(3)}"
        self.link_tls: ssl.SSLContext | None = ssl.create_default_context(cafile=config.ca)
        self.clock = clock
        self._problem = ""  # of Redis, in a sentence
        self._nodes: tuple[ClusterNode, ...] = ()
        self._redis = config.redis.shown
        self._find_supervisor = find_supervisor
        self._find_orders = find_orders
        self._registry = Registry(config.redis.reveal(), config.name, config.ca)
        self.places = ClusterPlaces(self._registry, self.node, counts, clock)
        self._members: dict[tuple[str, str], Member] = {}
        self._retired: list[Member] = []  # of accounts that were removed
        self._tls = _server_tls(config.tls)
        self._server = NodeServer(config.listen, self, clock=clock, tls=self._tls)
        self._wake = Event()
        self._announced_at = -ANNOUNCE_SECONDS
        self._away = False  # Redis, when it was used last
        self._listed_at = -LIST_SECONDS
        self._lister: gevent.Greenlet | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._log = Log("cluster")

    def __repr__(self) -> str:
        return f"<Node {self.node} {len(self._members)} feeds>"

    @property
    def address(self) -> tuple[str, int]:
        """The address that it listens on for other nodes."""
        return self._server.address

    def start(self) -> None:
        self._server.start()
        self._greenlet = gevent.spawn(self._run)
        self.places.start()

    # Calls of the gateway

    def configure(self, config: Config) -> None:
        """Load a renewed certificate; any other change of the cluster needs a restart."""
        tls = None if config.cluster is None else config.cluster.tls
        if self._tls is not None and tls is not None:
            self._tls.load_cert_chain(tls.cert, tls.key)

    def make_source(self, endpoint: Endpoint, settings: FeedSettings) -> ClusterSource:
        """Return the next connection of a feed."""
        key = settings.login.account, endpoint.feed
        member = self._members.get(key)
        supervisor = self._find_supervisor(*key)
        assert supervisor is not None
        if member is None or member.supervisor is not supervisor:
            if member is not None:
                self._retired.append(member)
            orders = self._find_orders(key[0]) if endpoint.dialect is Dialect.TRADING else None
            member = self._members[key] = Member(self, endpoint, settings, supervisor, orders)
        return member.make_source(settings)

    def feed_is_live(self, supervisor: FeedSupervisor) -> None:
        """Tell the nodes that follow this one."""
        if (member := self._member_of(supervisor)) is not None:
            member.became_live()
            if member.election.live:
                self._server.feed_is_live(supervisor)

    def feed_was_lost(self, supervisor: FeedSupervisor) -> None:
        """Tell the nodes that follow this one that the connection to Alpaca is lost."""
        self._server.feed_was_lost(supervisor, f"the leader has lost Alpaca: {supervisor.last_error}")

    def recovery_ended(self, supervisor: FeedSupervisor, complete: bool) -> None:
        """Tell the nodes that follow this one that a recovery of order updates has ended."""
        self._server.recovery_ended(supervisor, complete)

    def tick(self, now: float) -> None:
        """Do what is due: pings and time limits of links, and what the leader's links are told."""
        for member in [*self._members.values()]:
            member.tick(now)
        self._server.tick(now)

    def state(self) -> ClusterState:
        """Return this node's part of the snapshot."""
        feeds = tuple(
            member.state(self._server.links(member.supervisor)) for _, member in sorted(self._members.items())
        )
        return ClusterState(self.node, self.url, self._redis, self._problem, self._nodes, feeds, self._server.refused)

    def records(self, account: str, feed: str) -> bool:
        """Return whether this node is the one that records a feed now: its messages come over its own connection."""
        member = self._members.get((account, feed))
        return member is not None and member.receives

    def silence(self, supervisor: FeedSupervisor) -> float:
        """Return for how many seconds nothing was heard over a connection that was lost a moment ago."""
        member = self._member_of(supervisor)
        return 0.0 if member is None else max(0.0, self.clock() - member.heard_at)

    def drain(self) -> None:
        """Give back the places and the leases, close the connections to Alpaca, and end the links of other nodes."""
        self.places.end()
        for member in self._members.values():
            member.election.draining = True
        leading = [member.supervisor for member in self._members.values() if member.leads]
        ends = [gevent.spawn(supervisor.stop) for supervisor in leading]
        ends += [gevent.spawn(member.end_attempt) for member in self._members.values()]
        gevent.joinall(ends, timeout=STOP_SECONDS)
        self.places.join()  # it would enter this node again
        try:
            for member in self._members.values():
                member.drain(self._registry)
            self._registry.withdraw(self.node)
        except RegistryError:
            pass  # the leases expire
        self._server.drain()

    def stop(self) -> None:
        """End everything."""
        if self._greenlet is not None:
            self._greenlet.kill()
        if self._lister is not None:
            self._lister.kill()
        self.places.stop()
        self._server.stop()
        self._registry.close()

    # Calls of members and of the port for nodes

    def wake(self) -> None:
        self._wake.set()

    def leading(self, account: str, feed: str) -> Member | None:
        """Return the member that leads this feed of an account (its hash), or is about to; else None."""
        slot = f"{account}:{feed}"
        return next((member for member in self._members.values() if member.slot == slot and member.leads), None)

    def stop_leading(self, supervisor: FeedSupervisor, reason: str) -> None:
        self._server.stop_leading(supervisor, reason)

    def heard_at(self, supervisor: FeedSupervisor) -> float:
        return self._server.heard_at(supervisor)

    def _member_of(self, supervisor: FeedSupervisor) -> Member | None:
        return next((member for member in self._members.values() if member.supervisor is supervisor), None)

    # The greenlet

    def _run(self) -> None:
        while True:
            try:
                self._round()
            except Exception:  # an internal error costs one round
                self._log.error("internal_error")
            self._wake.wait(RENEW_SECONDS)
            self._wake.clear()

    def _round(self) -> None:
        """Take the next step of each feed, and announce this node."""
        problem = ""
        self._retire()
        for member in [*self._members.values()]:
            try:
                if not problem:
                    member.step(self._registry)
            except RegistryError as error:
                problem = str(error)
            except Exception:  # an internal error of one feed must not cost the leases of the others
                self._log.error("internal_error", part=repr(member))
            if problem:
                member.registry_failed()
        if not problem and (self._away or self.clock() - self._announced_at >= ANNOUNCE_SECONDS):
            self._announced_at = self.clock()
            try:
                self._registry.announce(self.node, json.dumps(self._announcement()))
            except RegistryError as error:
                problem = str(error)
        self._away = bool(problem)
        self._list_nodes()
        if problem:
            self.places.redis_failed(problem)
        problem = problem or self.places.problem
        if bool(problem) is not bool(self._problem):
            if problem:
                self._log.warning("redis_away", reason=problem, hint="leaders go on without it; new ones need it")
            else:
                self._log.info("redis_back")
        self._problem = problem

    def _retire(self) -> None:
        """End the members of accounts that were removed."""
        for key, member in [*self._members.items()]:
            if self._find_supervisor(*key) is not member.supervisor:
                self._retired.append(self._members.pop(key))
        while self._retired:
            member = self._retired.pop()
            with suppress(RegistryError):  # the lease expires
                member.retire(self._registry)

    def _list_nodes(self) -> None:
        """Read who has announced itself, in a greenlet: on a Redis with many other keys that takes long, or fails."""
        idle = self._lister is None or self._lister.ready()
        if idle and not self._away and self.clock() - self._listed_at >= LIST_SECONDS:
            self._listed_at = self.clock()
            self._lister = gevent.spawn(self._read_nodes)

    def _read_nodes(self) -> None:
        try:
            self._nodes = tuple(_announced(self._registry.nodes()))
        except RegistryError as error:
            self._log.warning("nodes_unknown", reason=str(error), result="leases are not affected")

    def _announcement(self) -> dict[str, object]:
        feeds = sum(member.election.sessions for member in self._members.values())
        return {"url": self.url, "version": __version__, "feeds": feeds}


def _announced(nodes: Mapping[str, str]) -> Iterator[ClusterNode]:
    """Yield the nodes that have announced themselves. What they say is not signed, and is only shown."""
    for name, text in sorted(nodes.items())[:MAX_NODES]:
        try:
            said = json.loads(text[:MAX_ANNOUNCEMENT])
            url, version, feeds = said["url"], said["version"], said["feeds"]
        except (ValueError, KeyError, TypeError):  # written by another program
            continue
        if type(feeds) is not int or not 0 <= feeds < 2**31:
            continue
        if all(isinstance(each, str) and each.isprintable() for each in (name, url, version)):
            yield ClusterNode(name[:MAX_NAME], url[:MAX_NAME], version[:MAX_NAME], feeds)


def _server_tls(tls: Tls | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert, tls.key)
    return context
