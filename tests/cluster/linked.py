"""Two nodes of a cluster in this process: a leader in front of Alpaca, and an edge whose source is a link to it.

Which node leads is fixed here. The nodes, their ports and the links are the product's own, at default values.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.event import Event
from gevent.server import StreamServer

from proxy.alpaca.client_protocol import Login
from proxy.alpaca.codec import CODECS
from proxy.alpaca.endpoints import Endpoint, endpoint
from proxy.cluster.leader_link import LeaderLink
from proxy.cluster.node_server import NodeServer
from proxy.config.model import Config
from proxy.gateway import TICK_SECONDS, Gateway
from proxy.simulator import Simulator
from proxy.transport.clock import Clock
from proxy.upstream.source import FeedSettings, FeedSource
from proxy.upstream.supervisor import FeedSupervisor
from tests.harness import Harness, Wire, wait_for

SECRET = b"the secret of this cluster"
ACCOUNT = "0123456789abcdef"  # the hash of the account `main`
TOKEN = 7


@dataclass
class Leading:
    supervisor: FeedSupervisor
    token: int = TOKEN

    @property
    def live(self) -> bool:
        return self.supervisor.live


class Leader(Gateway):
    """A node that leads every feed of the account `main`, as long as `leads`."""

    node = "leader"

    def __init__(self, config: Config, secret: bytes = SECRET) -> None:
        super().__init__(config)
        self.secret = secret
        self.leads = True
        self.nodes = NodeServer(("127.0.0.1", 0), self, clock=self._clock)
        self._node_ticker: gevent.Greenlet | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.nodes.address[1]}"

    def start(self) -> None:
        super().start()
        self.nodes.start()
        self._node_ticker = gevent.spawn(self._tick_nodes)

    def stop(self, seconds: float = 5.0) -> None:
        self.nodes.drain()
        super().stop(seconds)
        self.nodes.stop()
        wait_for(lambda: not self.nodes.sessions, "links did not end")
        if self._node_ticker is not None:
            self._node_ticker.kill()

    def leading(self, account: str, feed: str) -> Leading | None:
        if account != ACCOUNT or not self.leads:
            return None
        if ("main", feed) not in self.upstreams:
            self.upstreams["main", feed] = self._create_supervisor("main", feed)
        return Leading(self.upstreams["main", feed])

    def _feed_is_live(self, live: FeedSupervisor) -> None:
        super()._feed_is_live(live)
        self.nodes.feed_is_live(live)

    def _feed_was_lost(self, upstream: FeedSupervisor) -> None:
        super()._feed_was_lost(upstream)
        self.nodes.feed_was_lost(upstream, upstream.last_error)

    def _tick_nodes(self) -> None:
        while True:
            self.nodes.tick(self._clock())
            gevent.sleep(TICK_SECONDS)


class Edge(Gateway):
    """A node whose feeds all come from one leader."""

    def __init__(self, config: Config, url: str, secret: bytes = SECRET) -> None:
        super().__init__(config)
        self.url = url
        self.secret = secret
        self.links: list[LeaderLink] = []

    @property
    def link(self) -> LeaderLink:
        """The newest link."""
        return self.links[-1]

    def _make_source(self, feed_endpoint: Endpoint, settings: FeedSettings) -> FeedSource:
        self.links.append(
            LeaderLink(
                feed_endpoint,
                settings,
                self._clock,
                node="edge",
                secret=self.secret,
                account=ACCOUNT,
                url=self.url,
                tls=None,
                on_state=lambda: None,
            )
        )
        return self.links[-1]


class Pair:
    """A leader and an edge with the same clients; `simulator` is Alpaca, `forwarder` the cable between the nodes."""

    def __init__(
        self, clients: str, *, accounts: str, edge_accounts: str | None = None, url: str = "", **simulator: Any
    ) -> None:
        self.leader = Harness(
            clients, accounts=accounts.replace("{alpaca}", url or "{url}"), simulator=Simulator(**simulator),
            gateway=Leader,
        )  # fmt: skip
        assert isinstance(self.leader.gateway, Leader)
        self.leading: Leader = self.leader.gateway
        self.simulator = self.leader.simulator
        self.forwarder = Forwarder(self.leading.nodes.address)
        self.forwarder.start()
        self.edge = Harness(
            clients,
            accounts=(edge_accounts or accounts).replace("{alpaca}", "{url}"),
            simulator=Simulator(),
            gateway=lambda config: Edge(config, self.forwarder.url),
        )
        assert isinstance(self.edge.gateway, Edge)
        self.following: Edge = self.edge.gateway
        self._wires: list[Wire] = []

    def live(self, feed: str = "iex") -> bool:
        """Whether the edge's feed is live."""
        upstream = self.edge.gateway.upstreams.get(("main", feed))
        return upstream is not None and upstream.live

    def wire(self, **options: Any) -> Wire:
        """A connection to the leader's port for nodes."""
        self._wires.append(Wire(self.leading.nodes.address, **options))
        return self._wires[-1]

    def close(self) -> None:
        """Stop everything; the edge has asked Alpaca for nothing."""
        for wire in self._wires:
            wire.socket.close()
        opened = sum(self.edge.simulator.opened(feed) for feed in ("iex", "crypto", "news"))
        try:
            self.edge.close()
        finally:
            self.forwarder.stop()
            self.leader.close()
        assert opened == 0


class Forwarder:
    """A TCP proxy in front of an address; `freeze` stops all bytes without an end of any connection."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self._flows = Event()
        self._flows.set()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._flows.set()
        self._server.stop(timeout=1)
        self.cut()

    def freeze(self) -> None:
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """End all connections."""
        for pair in self._pairs:
            for one in pair:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def _serve(self, sock: Any, _: object) -> None:
        with suppress(ConnectionRefusedError), socket.create_connection(self.target) as other:
            self._pairs.append((sock, other))
            back = gevent.spawn(self._copy, other, sock)
            self._copy(sock, other)
            back.join()

    def _copy(self, source: Any, target: Any) -> None:
        with suppress(OSError):
            while True:
                self._flows.wait()
                data = source.recv(1 << 16)
                self._flows.wait()
                if not data:
                    break
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def link_to(
    url: str,
    feed: str = "iex",
    *,
    codec: str = "json",
    secret: bytes = SECRET,
    account: str = ACCOUNT,
    tls: ssl.SSLContext | None = None,
    on_state: Callable[[], None] = lambda: None,
) -> Iterator[LeaderLink]:
    """A link that is not opened, without a gateway around it."""
    served = endpoint(feed)
    assert served is not None
    settings = FeedSettings(Login("main", "", "", ""), CODECS[codec])
    link = LeaderLink(
        served, settings, Clock(), node="edge", secret=secret, account=account, url=url, tls=tls, on_state=on_state
    )
    ticker = gevent.spawn(_tick, link)
    try:
        yield link
    finally:
        ticker.kill()
        link.close()


def _tick(link: LeaderLink) -> None:
    clock: Callable[[], float] = link._clock
    while True:
        link.tick(clock())
        gevent.sleep(TICK_SECONDS)
