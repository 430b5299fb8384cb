"""A stand for order updates in a cluster: the simulator with its orders and REST, a real redis-server, and nodes.

The nodes are gateways in this process. `Node.kill` ends one as abruptly as a process can be ended from outside: its
sockets are shut, its lease stays.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import gevent

from proxy.alpaca import timestamps
from proxy.config import model as configuration
from proxy.gateway import Gateway
from proxy.routing.order_router import OrderRouter
from proxy.simulator import Simulator
from proxy.transport.errors import StartError
from tests.cluster.redis_server import RedisServer
from tests.harness import Client, _internal_errors, dial, wait_for
from tests.ports import free_port

CONFIG = """\
listen: {{port: 0}}
admin: {{port: 0}}
cluster:
  redis: redis://127.0.0.1:{redis}/0
  listen: 127.0.0.1:{links}
  url: ws://127.0.0.1:{links}
  secret: a-secret-of-all-nodes
accounts:
  main: {{key: key, secret: secret, data_url: "{url}", trading_url: "{url}"}}
clients:
{clients}
"""
CLIENTS = """
  alpha: {key: alpha, secret: alpha, max_connections: 20, allow: {trading: {trade_updates: ["alpha-*"]}}}
  beta: {key: beta, secret: beta, max_connections: 20, allow: {trading: {trade_updates: ["beta-*"]}}}
  desk: {key: desk, secret: desk, max_connections: 20, allow: {trading: "*"}}
"""
INCOMPLETE = (1012, "order updates may be missing since an outage")

PORTS = 5  # that are tried

Order = dict[str, Any]


class Node:
    """A gateway of the cluster, which can be ended and started again."""

    def __init__(self, stand: Stand, number: int) -> None:
        self.number = number
        self.links = free_port()
        self._stand = stand
        self.gateway = self._make()

    def __repr__(self) -> str:
        return f"<Node {self.number}>"

    def _make(self) -> Gateway:
        text = CONFIG.format(
            redis=self._stand.redis.port, links=self.links, url=self._stand.alpaca.url, clients=self._stand.clients
        )
        return Gateway(configuration.parse(text, "proxy.yaml", {}, Path()))

    def start(self) -> None:
        """Start it, at another address if some connection has the port by now."""
        if self.gateway.state.value != "starting":
            self.gateway = self._make()
        for _ in range(PORTS):
            try:
                self.gateway.start()
                return
            except StartError:
                self.links = free_port()
                self.gateway = self._make()
        raise AssertionError("no free port")

    @property
    def internal(self) -> Any:
        """The part of the gateway that is this node of the cluster."""
        assert self.gateway._node is not None
        return self.gateway._node

    @property
    def running(self) -> bool:
        return self.gateway.state.value == "serving"

    @property
    def leads(self) -> bool:
        feeds = self.internal.state().feeds
        return self.running and any(feed.role == "leading" and feed.live for feed in feeds)

    @property
    def router(self) -> OrderRouter:
        return self.gateway._order_router("main")

    @property
    def settled(self) -> bool:
        """Whether its sessions hear what is sent now, and have heard what was sent before."""
        router = self.router
        upstream = self.gateway.upstreams.get(("main", "trading"))
        if upstream is None or upstream.reconciler.idle:
            return True
        return router.is_up and router.recovery is None and not router.history.is_behind and not router.awaited

    def client(self, name: str, stream: str = "trade_updates") -> Client:
        client = self._stand.stack.enter_context(dial(self.gateway.server.address, "/stream"))
        client.log_in(name)
        assert client.listen(stream) == {"streams": [stream]}
        return client

    def cut_links(self) -> None:
        """Break the links of the nodes that follow this one."""
        for session in [*self.internal._server.sessions]:
            session.abort()

    def kill(self) -> None:
        gateway, node = self.gateway, self.internal
        node._greenlet.kill()  # so that the lease is not given back
        node._server.draining = True
        node._server._listener.close()
        gateway.server.stop_accepting()
        for session in [*node._server.sessions, *gateway.server.sessions]:
            session.abort()
        for upstream in [*gateway.upstreams.values()]:
            connection = getattr(getattr(upstream._source, "inner", None), "_connection", None)
            if connection is not None:
                connection.shut()
            upstream.stop()
        self.stop(0.0)

    def stop(self, seconds: float = 0.5) -> None:
        if self.running:
            self.gateway.stop(seconds)


class Stand:
    """Alpaca, Redis, and so many nodes."""

    def __init__(self, nodes: int, clients: str = CLIENTS) -> None:
        self.stack = ExitStack()
        self.clients = clients
        self.bugs = self.stack.enter_context(_internal_errors())
        try:
            self.alpaca = self.stack.enter_context(Simulator())
            self.redis = self.stack.enter_context(RedisServer())
            self.nodes = [Node(self, number) for number in range(nodes)]
            for node in self.nodes:
                node.start()
                self.stack.callback(lambda node=node: node.stop())
        except BaseException:
            self.stack.close()
            raise

    def __enter__(self) -> Stand:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stack.close()
        if error is None:
            assert self.bugs == []

    @property
    def leader(self) -> Node:
        """The node that leads; wait until there is one."""
        wait_for(lambda: any(node.leads for node in self.nodes), "no node leads")
        return next(node for node in self.nodes if node.leads)

    @property
    def edges(self) -> list[Node]:
        leader = self.leader
        return [node for node in self.nodes if node is not leader and node.running]

    def settle(self, *, seconds: float = 20.0) -> None:
        """Wait until every node that runs is up, and nothing waits."""
        wait_for(
            lambda: all(node.settled for node in self.nodes if node.running),
            f"not settled: {[(node.leads, node.router.is_up, node.router.recovery) for node in self.nodes]}",
            seconds,
        )
        readers = [node.gateway._order_readers["main"] for node in self.nodes if node.running]
        wait_for(lambda: all(reader._lists_read.is_set() for reader in readers), "lists not read", seconds)

    def lose(self) -> None:
        """Begin an outage of Alpaca's order stream."""
        self.alpaca.refuse_upgrade("trading", 503)
        self.alpaca.drop("trading", "rst")
        wait_for(lambda: not any(node.router.is_up for node in self.nodes if node.running))

    def restore(self) -> None:
        self.alpaca.accept("trading")

    def logged(self, name: str) -> list[Mapping[str, str]]:
        return [event.fields for node in self.nodes for event in node.gateway.snapshot().events if event.name == name]


class Events:
    """A client of the event stream: its own connection, and the updates it has read."""

    def __init__(self, node: Node, name: str, since: str | None = None) -> None:
        self.data: list[dict[str, Any]] = []
        self._connection = http.client.HTTPConnection(*node.gateway.server.address, timeout=20)
        query = "" if since is None else f"?since={since}"
        headers = {"APCA-API-KEY-ID": name, "APCA-API-SECRET-KEY": name}
        self._connection.request("GET", f"/v2/events/trades{query}", headers=headers)
        self.response = self._connection.getresponse()
        assert self.response.status == 200
        self.is_cut = False
        self._greenlet = gevent.spawn(self._read)

    @property
    def next(self) -> str:
        """Return the request of the Go SDK when it comes back."""
        return timestamps.rfc3339(timestamps.nanoseconds(self.data[-1]["at"]) + 1)

    def close(self) -> None:
        self._greenlet.kill()
        self.response.close()
        self._connection.close()

    def _read(self) -> None:
        try:
            while line := self.response.readline():
                if line.startswith(b"data: "):
                    self.data.append(json.loads(line[6:]))
        except (OSError, http.client.HTTPException):
            pass
        self.is_cut = True


def now() -> str:
    return timestamps.rfc3339(time.time_ns())


def order(order_id: str, client_order_id: str = "invented", **more: Any) -> Order:
    """An order; the default client_order_id stands for one that Alpaca has made up."""
    return {"id": order_id, "client_order_id": client_order_id, "symbol": "AAPL", "qty": "10", "side": "buy", **more}


def update(event: str, subject: Mapping[str, Any], **more: Any) -> Order:
    status = {"fill": "filled", "partial_fill": "partially_filled"}.get(event, event)
    return {"event": event, "order": {"status": status, **subject}, "timestamp": now(), **more}


def filled(subject: Mapping[str, Any], filled_qty: int, quantity: int = 1, **more: Any) -> Order:
    event = "fill" if filled_qty == 10 else "partial_fill"
    return update(event, {**subject, "filled_qty": str(filled_qty)}, price="1.25", qty=str(quantity), **more)


def heard(client: Client | Events) -> list[tuple[str, str, str]]:
    """The event, order and cumulated quantity of each update."""
    updates = client.data if isinstance(client, Events) else [message["data"] for message in client.data]
    return [(data["event"], data["order"]["id"], data["order"].get("filled_qty", "")) for data in updates]
