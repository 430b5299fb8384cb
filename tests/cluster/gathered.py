"""Nodes of a cluster in this process, with a real redis-server and the simulator as Alpaca."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from proxy.cluster.member import Member
from proxy.cluster.node import Node
from proxy.config import model as configuration
from proxy.gateway import Gateway
from proxy.simulator import Simulator
from tests.cluster.redis_server import RedisServer
from tests.harness import Client, dial
from tests.ports import free_port

CONFIG = """\
listen: {{port: 0}}
admin: {{port: 0}}
cluster:
  redis: {redis}
  listen: 127.0.0.1:{port}
  url: {url}
  secret: a secret of all nodes, and long
accounts:
  {accounts}
clients:
  algo: {{key: algo, secret: algo, max_connections: 10, allow: {{iex: {{quotes: ['*']}}, crypto: {{quotes: ['*']}}}}}}
"""
ACCOUNT = "main: {{key: key, secret: secret, data_url: '{alpaca}', trading_url: '{alpaca}'}}"


class Gathered:
    """A context with a redis-server and a simulator; `add` starts a node."""

    def __init__(self, simulator: Simulator | None = None) -> None:
        self.simulator = Simulator() if simulator is None else simulator
        self.redis = RedisServer()
        self.nodes: list[Gateway] = []
        self._stack = ExitStack()

    def __enter__(self) -> Gathered:
        self._stack.enter_context(self.simulator)
        self._stack.enter_context(self.redis)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def config(self, *, port: int, url: str = "", accounts: str = ACCOUNT, alpaca: str = "") -> configuration.Config:
        text = CONFIG.format(
            redis=self.redis.url,
            port=port,
            url=url or f"ws://127.0.0.1:{port}",
            accounts=accounts.format(alpaca=alpaca or self.simulator.url),
        )
        return configuration.parse(text, "proxy.yaml", os.environ, Path())

    def add(self, url: str = "", alpaca: str = "") -> Gateway:
        """Start a node; `url` and `alpaca` replace its own address and that of Alpaca."""
        node = Gateway(self.config(port=free_port(), url=url, alpaca=alpaca))
        node.start()
        self._stack.callback(node.stop, 0.5)
        self.nodes.append(node)
        return node

    def client(self, node: Gateway, path: str = "/v2/iex") -> Client:
        """A client of a node, which has logged in."""
        client = self._stack.enter_context(dial(node.server.address, path))
        client.receive()
        return client.log_in("algo")


def cluster_of(node: Gateway) -> Node:
    assert node._node is not None
    return node._node


def member_of(node: Gateway, feed: str = "iex") -> Member:
    return cluster_of(node)._members["main", feed]


def leads(node: Gateway, feed: str = "iex") -> bool:
    """Whether the node leads the feed and is live."""
    return ("main", feed) in cluster_of(node)._members and member_of(node, feed).live
