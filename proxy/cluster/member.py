"""One feed of one account on this node: it leads the feed or follows the node that does.

`Member.step` reads the lease, lets the election decide, and does what it says; `source.ClusterSource` is what the
feed's supervisor reads from: this node's own connection to Alpaca, or a link to the leader.

    node's greenlet:        registry ─► Election.decide ─► claim, lead, follow, yield
    supervisor's greenlet:  ClusterSource.open ─► AlpacaConnection or LeaderLink, as the role says
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Sequence
from typing import Protocol

import gevent
from gevent.event import Event

from proxy.alpaca.client_protocol import HINTS, Backoff, FeedEvent, Refused
from proxy.alpaca.codec import Malformed, Raw
from proxy.alpaca.endpoints import Dialect, Endpoint
from proxy.cluster.election import (
    RETRY_SECONDS,
    TAKEOVER_SECONDS,
    Claim,
    Election,
    Follow,
    Lead,
    Link,
    Release,
    Role,
    Wait,
    Yield,
)
from proxy.cluster.leader_history import LeaderHistory
from proxy.cluster.leader_link import Gone, LeaderGone, LeaderLink
from proxy.cluster.lease import Lease, account_hash, slot_of
from proxy.cluster.registry import Registry
from proxy.cluster.source import DENIED, SLOT_TAKEN, ClusterSource
from proxy.observe.logs import Log
from proxy.observe.snapshot import ClusterFeed
from proxy.transport.errors import ConnectionLost, UpgradeRefused
from proxy.upstream.alpaca_connection import AlpacaConnection
from proxy.upstream.source import FeedSettings, LoginRefused
from proxy.upstream.supervisor import FeedSupervisor

LINK_SECONDS = 0.1  # between two links to the same leader
# Alpaca keeps the slot of a connection that died without a close for up to 90 s. For so long after a change of leader
# it is tried again after SLOT_RETRY_SECONDS at most, so that data come as soon as it is free.
SLOT_SECONDS, SLOT_RETRY_SECONDS = 100.0, 3.0
_HINTS = {Gone.REJECTED: "give all nodes the same cluster.secret and codec, and versions that follow each other"}


class Host(Protocol):
    """The part of a `node.Node` that its members use."""

    node: str
    url: str
    secret: bytes
    link_tls: ssl.SSLContext | None

    def clock(self) -> float:
        """Return monotonic time in seconds."""

    def wake(self) -> None:
        """Have the members' next step taken now."""

    def stop_leading(self, supervisor: FeedSupervisor, reason: str) -> None:
        """End the links of the nodes that follow this one."""

    def heard_at(self, supervisor: FeedSupervisor) -> float:
        """Return the time of the last sign of life of a node that follows this one."""


class Member:
    """One feed of one account on this node. `changes` counts the changes of its leader.

    `orders`: what the router of order updates reads, by the role of this node.
    """

    def __init__(
        self,
        host: Host,
        endpoint: Endpoint,
        settings: FeedSettings,
        supervisor: FeedSupervisor,
        orders: LeaderHistory | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.supervisor = supervisor
        self.election = Election(f"{host.node}/{settings.login.account}")
        self.changes = 0
        self.heard_at = host.clock()  # of the last connection that has ended: the other side's last sign of life
        self.slot = self._slot_of(host.secret, settings)
        self._host = host
        self._orders = orders
        self._source: ClusterSource | None = None
        self._text = ""  # of the own lease, as it was last written
        self._read = ""  # of the lease, as it was last read
        self._leader = ""  # the owner of the last lease that counted as a leader's
        self._led_since = 0.0
        self._closed_at = 0.0  # the last source
        self._linked = (0, 0.0)  # the token of the leader that was linked to last, and the time
        self._gives_way = False  # Alpaca cannot be reached from here: another node may try
        self._attempt: gevent.Greenlet | None = None
        self._attempted: AlpacaConnection | None = None
        self._changed = Event()
        self._log = Log("cluster", account=settings.login.account, feed=endpoint.feed)

    def __repr__(self) -> str:
        return f"<Member {self.slot} {self.election.role.value} {self.election.link.value}>"

    @property
    def leads(self) -> bool:
        """Whether this node leads the feed, or is about to."""
        return self.election.role is Role.LEADING

    @property
    def token(self) -> int:
        """The token of the own lease; 0 without one."""
        return self.election.token

    @property
    def live(self) -> bool:
        """Whether this node leads the feed and is connected to Alpaca."""
        return self.leads and self.election.live

    @property
    def receives(self) -> bool:
        """Whether the feed's messages come over this node's own connection to Alpaca now."""
        source = self._source
        return source is not None and source.live and isinstance(source.inner, AlpacaConnection)

    def state(self, links: int) -> ClusterFeed:
        """Return the feed's part of the snapshot; `links` is the number of nodes that follow this one."""
        election, link = self.election, self._link
        lease = election.leader or election.registered.lease
        leader, live, token = self._host.node, election.live, election.token
        if not self.leads:
            leader = "" if lease is None else lease.owner.rpartition("/")[0]
            live = link.live if link is not None else lease is not None and lease.live
            token = 0 if lease is None else lease.token
        return ClusterFeed(
            account=self.settings.login.account,
            feed=self.endpoint.feed,
            role=election.role.value,
            leader=leader,
            live=live,
            token=token,
            link=election.link.value,
            round_trip=None if link is None else link.round_trip,
            links=links,
            changes=self.changes,
        )

    @property
    def _link(self) -> LeaderLink | None:
        inner = None if self._source is None else self._source.inner
        return inner if isinstance(inner, LeaderLink) else None

    # Calls of the supervisor, through its source

    def make_source(self, settings: FeedSettings) -> ClusterSource:
        """Return the supervisor's next connection."""
        if (slot := self._slot_of(self._host.secret, settings)) != self.slot:  # a reload has changed the account's key
            self._stop_leading("the account's configuration changed")
            self.slot, self._text = slot, ""
            self.election = Election(self.election.owner)
        self.settings = settings
        self._source = ClusterSource(self, self._host.clock)
        self._host.wake()
        return self._source

    def next_connection(self, source: ClusterSource) -> LeaderLink | AlpacaConnection:
        """Return the connection that the role asks for, not opened or live; block until there is a role.

        Raises ConnectionLost if the source is ended meanwhile.
        """
        while True:
            self._changed.clear()
            if source.cause:
                raise ConnectionLost(source.cause)
            election = self.election
            if self._attempted is not None and self._attempted.live:
                connection, self._attempted = self._attempted, None
                if self._orders is not None:
                    self._orders.lead()
                return connection
            if election.role is Role.LEADING and election.link is not Link.MUTE:
                if self._attempted is not None:  # beside a link that has ended since
                    self.end_attempt()
                    continue
                if self._orders is not None:
                    self._orders.lead()
                return self._alpaca()
            if election.role is Role.FOLLOWING and election.leader is not None:
                leader, (last, at) = election.leader, self._linked
                if leader.token == last and (wait := at + LINK_SECONDS - self._host.clock()) > 0:
                    gevent.sleep(wait)
                    continue
                self._linked = leader.token, self._host.clock()
                if self._orders is not None:
                    self._orders.follow()
                return self._link_to(leader)
            self._changed.wait()

    def unreachable(self, error: LeaderGone) -> None:
        """Record that the leader could not be reached, does not lead or is about to end; choose anew."""
        election = self.election
        if election.role is Role.FOLLOWING and election.leader is not None:
            self._log.warning(
                "unreachable", leader=election.leader.owner, reason=str(error), hint=_HINTS.get(error.cause)
            )
            election.gone(election.leader, self._host.clock(), denied=error.cause in DENIED)
            election.role, election.leader = Role.NONE, None
        self._host.wake()

    def closed(self, source: ClusterSource) -> None:
        """Record that a source is closed. A leader whose link has ended is tried again first."""
        if source is not self._source:
            return
        self.heard_at = source.heard_at
        self._source = None
        self._closed_at = self._host.clock()
        self.election.live = False
        self._set_link(Link.NONE)
        self._gives_way = source.unopened
        self._host.wake()

    def slot_is_taken(self) -> None:
        """Record that Alpaca has refused the log-in since the account's slot is taken."""
        self.election.slot_taken = True

    def changed(self) -> None:
        """Wake a source that waits for a role."""
        self._changed.set()

    def keeps_trying(self) -> bool:
        """Return whether a taken slot is tried again at once: the former leader's connection may not be closed yet."""
        return self._host.clock() - self._led_since < TAKEOVER_SECONDS

    # Calls of the node

    def step(self, registry: Registry) -> None:
        """Read and renew the lease, and do what the election says. Raises RegistryError."""
        now = self._host.clock()
        self._observe(now)
        election = self.election
        if not election.wanted and not self._text and election.role is not Role.LEADING:
            election.role, election.leader = Role.NONE, None
            if not self.supervisor.needed and not self.supervisor.reconciler.closed:
                return
        if self._gives_way:
            self._gives_way = False
            if election.role is Role.LEADING:
                self._end("Alpaca cannot be reached from this node")
            self._release(registry)
        expected = new = last = ""
        if election.role is Role.LEADING and self._text:
            expected, new = self._text, self._own_text(election.token)
            last = new if election.live else ""
        current, former = registry.exchange(self.slot, expected, new, last)
        if self.election is not election:  # meanwhile a reload has changed the account's key
            return
        self._answered(registry, current, former)
        if new and self._read == new:
            self._text = new
        self._perform(registry)

    def registry_failed(self) -> None:
        """Record that Redis cannot be used, and do what the election says then."""
        now = self._host.clock()
        self._observe(now)
        if self.election.wanted:
            self.election.registered.failed(now)
            self._perform(None)

    def tick(self, now: float) -> None:
        """Do what is due for an attempt beside a mute link, and try again whether a dead leader's slot is free."""
        if self._attempted is not None:
            self._attempted.tick(now)
        waits = self.leads and self.election.slot_taken and self._source is None
        if waits and now - self._led_since < SLOT_SECONDS and now - self._closed_at >= SLOT_RETRY_SECONDS:
            self.supervisor.dial_now()

    def became_live(self) -> None:
        """Record that the supervisor's connection is live."""
        election = self.election
        if election.role is Role.LEADING and self._link is None:
            election.live, election.slot_taken = True, False
            self._gives_way = False
        elif self._link is not None:
            self._set_link(Link.WORKING)
        self._host.wake()

    def retire(self, registry: Registry) -> None:
        """End all that belongs to a feed that this node does not have any more. Raises RegistryError."""
        self._stop_leading("the account was removed")
        self._release(registry)

    def drain(self, registry: Registry) -> None:
        """Give the lease back, after the supervisor was stopped, and stand no more. Raises RegistryError."""
        self.election.draining = True
        self._release(registry)

    # The role

    def _observe(self, now: float) -> None:
        """Tell the election how things are."""
        election, supervisor = self.election, self.supervisor
        election.wanted = self._source is not None or (election.role is Role.LEADING and supervisor.needed)
        election.asks = self._source is not None
        election.sessions = supervisor.needed_here
        election.heard_at = self._host.heard_at(supervisor)
        link = self._link
        if link is None or link.ended:
            self._set_link(Link.NONE)
        elif not link.live:
            self._set_link(Link.WAITING)
        else:
            self._set_link(Link.MUTE if link.mute(now) else Link.WORKING)

    def _set_link(self, link: Link) -> None:
        election = self.election
        if election.link is not link:
            leader = None if election.leader is None else election.leader.owner
            if link is Link.MUTE:
                self._log.warning("link_mute", leader=leader)
            elif election.link is Link.MUTE and link is Link.WORKING:
                self._log.warning("link_back", leader=leader)
            election.link, election.link_since = link, self._host.clock()

    def _answered(self, registry: Registry, current: str, last: str) -> None:
        """Record what Redis holds."""
        secret, known = self._host.secret, self.election.registered
        lease = Lease.decode(secret, self.slot, current) if current else None
        if current and lease is None:
            self._log.warning(
                "foreign_lease", hint="another program writes to these keys, or a node has another secret"
            )
        self._read = current
        settled = known.since is None and known.failing_since < 0 and (lease is not None or registry.knows_tokens())
        former = Lease.decode(secret, self.slot, last) if last else None
        known.answered(lease, former, self._host.clock(), settled)
        if lease is not None and lease.live and lease.owner != self._leader:
            self.changes += bool(self._leader)
            self._leader = lease.owner
        other = lease is not None and lease.live and lease.owner != self.election.owner
        if other and self._source is None:  # it waits to try Alpaca, which the other one has reached
            self.supervisor.dial_now()
            self.supervisor.try_again()

    def _perform(self, registry: Registry | None) -> None:
        election = self.election
        match election.decide(self._host.clock()):
            case Claim(over) if registry is not None:
                self._claim(registry, over)
            case Lead():
                election.token = 0
                self._lead("Redis cannot be reached, and no leader")
            case Follow(leader):
                self._follow(leader)
            case Release():
                self._stop_leading("the leader is back")
                if registry is not None:
                    self._release(registry)
            case Yield(reason):
                self._end(reason)
                if registry is not None:
                    self._release(registry)
            case Claim() | Wait():
                pass

    def _claim(self, registry: Registry, over: Lease | None) -> None:
        election = self.election
        if over is not None and over.owner == election.owner and self._read == self._text:
            return  # it was renewed when it was read
        token = registry.token()
        if self.election is not election:
            return
        text = self._own_text(token)
        expected = "" if over is None else self._read
        current, last = registry.exchange(self.slot, expected, text, text if election.live else "")
        if self.election is not election:
            return
        self._answered(registry, current, last)
        if current == text:
            self._text, election.token = text, token
            if election.role is not Role.LEADING:
                self._lead("" if over is None else f"the lease of {over.owner} is void")
        elif election.registered.lease is not None:  # another node was faster
            self._host.wake()

    def _own_text(self, token: int) -> str:
        lease = Lease(self.election.owner, self._host.url, self.election.live, token)
        return lease.encode(self._host.secret, self.slot)

    def _lead(self, reason: str) -> None:
        election = self.election
        election.role = Role.LEADING
        if not election.slot_taken:
            self._led_since = self._host.clock()
        self._log.info("leads", reason=reason or None)
        if election.link is Link.MUTE:  # kept, since the leader may come back with what it has received
            self._attempt = gevent.spawn(self._log_in_beside)
        else:
            election.leader = None
            if self._source is not None and self._link is not None:  # it waits for a leader that is not live
                self._source.redirect("this node leads the feed")
            self._changed.set()

    def _follow(self, leader: Lease) -> None:
        election = self.election
        same = election.leader is not None and election.leader.owner == leader.owner
        if election.role is Role.FOLLOWING and same:
            election.leader = leader
            return
        if election.role is Role.LEADING:
            self._stop_leading(f"{leader.owner} leads")
        election.role, election.leader = Role.FOLLOWING, leader
        self._text = ""
        self._log.info("follows", leader=leader.owner, url=leader.url, live=leader.live)
        self._end(f"{leader.owner} leads the feed")

    def _stop_leading(self, reason: str) -> None:
        """End the links of other nodes, and the attempt beside a mute link."""
        election = self.election
        self.end_attempt()
        if election.role is Role.LEADING:
            election.role = Role.FOLLOWING if election.link is not Link.NONE else Role.NONE
            self._log.info("leads_no_more", reason=reason)
            self._host.stop_leading(self.supervisor, reason)
        election.live = False

    def _end(self, reason: str) -> None:
        """End what the supervisor reads from; its next source is chosen by the role."""
        if self.election.role is Role.LEADING:
            self._stop_leading(reason)
        if self._source is not None:
            self._source.redirect(reason)
        self._changed.set()

    def _release(self, registry: Registry) -> None:
        if self._text:
            text, self._text = self._text, ""
            registry.release(self.slot, text)

    # Connections

    def _alpaca(self) -> AlpacaConnection:
        return AlpacaConnection(self.endpoint, self.settings, self._host.clock)

    def _link_to(self, leader: Lease) -> LeaderLink:
        host = self._host
        account = self.slot.partition(":")[0]
        return LeaderLink(
            self.endpoint,
            self.settings,
            host.clock,
            node=host.node,
            secret=host.secret,
            account=account,
            url=leader.url,
            tls=host.link_tls,
            on_state=host.wake,
            orders=self._orders,
        )

    def _log_in_beside(self) -> None:
        """Log in to Alpaca while a mute link is kept; then replace the link."""
        backoff = Backoff(random.random)
        while True:
            connection = self._attempted = self._alpaca()
            refusal = None
            try:
                connection.open()
                self._log_in(connection)
                break
            except LoginRefused as error:
                refusal, reason = error.code, str(error)
            except UpgradeRefused as error:
                refusal, reason = error.status, str(error)
            except ConnectionLost as error:
                reason = str(error)
            connection.close()
            wait = backoff.next(refusal)
            if refusal == SLOT_TAKEN and self._host.clock() - self._led_since < SLOT_SECONDS:
                wait = min(wait, SLOT_RETRY_SECONDS)
            self._log.warning("not_live_yet", reason=reason, hint=HINTS.get(refusal or 0), retry_in=wait)
            gevent.sleep(wait)
        self._attempt = None
        if self._source is not None:
            self._source.redirect("this node leads the feed")

    def _log_in(self, connection: AlpacaConnection) -> None:
        """Read until the log-in is accepted. Raises LoginRefused or ConnectionLost."""
        while not connection.live:
            for frame in connection.receive():
                for event in self._events(connection, frame):
                    match event:
                        case Refused(code) if code == SLOT_TAKEN and self.keeps_trying():
                            gevent.sleep(RETRY_SECONDS)
                            connection.log_in_again()
                        case Refused(code, msg):
                            raise LoginRefused(code, msg)

    def _events(self, connection: AlpacaConnection, payload: bytes) -> list[FeedEvent]:
        try:
            return [connection.handle(body) for body in self._bodies(payload)]
        except Malformed:
            error = connection.foreign_error(payload)
            return [] if error is None else [error]

    def _bodies(self, payload: bytes) -> Sequence[Raw | bytes]:
        if self.endpoint.dialect is Dialect.TRADING and not self.settings.codec.is_array(payload.lstrip()):
            return [payload]
        return self.settings.codec.split(payload)[0]

    def end_attempt(self) -> None:
        """End the attempt beside a mute link; block until that is done."""
        if self._attempt is not None:
            self._attempt.kill()
            self._attempt = None
        if self._attempted is not None:
            self._attempted.close()
            self._attempted = None

    def _slot_of(self, secret: bytes, settings: FeedSettings) -> str:
        return slot_of(account_hash(secret, settings.login.key, settings.login.secret), self.endpoint.feed)
