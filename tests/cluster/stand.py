"""A stand for a cluster: numbered Alpaca, a real redis-server, and nodes as processes of their own.

    Alpaca (this process) ◄── nodes (processes) ◄── clients (this process)
                                ▲         ▲
                             forwarders, for Redis and for links, if a test has to cut or freeze them

All nodes have the same configuration file; they differ by their environment. Everything is on 127.0.0.1, and ends with
the block.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError

from tests.cluster.clients import Account, Client, settled
from tests.cluster.forwarder import Forwarder
from tests.cluster.numbered import SYMBOLS, Alpaca
from tests.cluster.redis_server import RedisServer
from tests.harness import Process, wait_for
from tests.ports import free_port

CONFIG = """\
listen: {port: "${LISTEN}"}
admin: {port: "${ADMIN}"}
log: {format: json}
cluster:
  redis: redis://127.0.0.1:${REDIS}/0
  listen: 127.0.0.1:${LINKS}
  url: ws://127.0.0.1:${URL}
  secret: ${CLUSTER_SECRET}
accounts:
  main: {key: "${file:key}", secret: secret, data_url: "${ALPACA}", trading_url: "${ALPACA}"}
clients:
  algo: {key: algo, secret: algo, max_connections: 100, allow: {iex: {trades: ["S*", "REFUSED"]}}}
"""
HTTP_SECONDS = 5.0
CALM_SECONDS = 0.5  # before a fault, for which nothing may be missing
IN_FLIGHT_SECONDS = 0.1  # for which a message may be on its way when its bearer dies


class Node:
    """A proxy of the cluster: a process that can be ended and started again at the same ports."""

    def __init__(self, number: int, folder: Path, variables: dict[str, str], lines: list[Forwarder]) -> None:
        self.number = number
        self._lines = lines
        self.address = "127.0.0.1", int(variables["LISTEN"])
        self.processes: list[Process] = []
        self._folder = folder
        self._variables = variables
        self._admin = int(variables["ADMIN"])
        self._stopped = False

    def __repr__(self) -> str:
        return f"node {self.number}"

    @property
    def links(self) -> Forwarder:
        """The line that its links from other nodes go through."""
        return self._lines[0]

    @property
    def redis(self) -> Forwarder:
        """The line that its calls of Redis go through."""
        return self._lines[1]

    @property
    def alpaca(self) -> Forwarder:
        """The line that its connection to Alpaca goes through."""
        return self._lines[2]

    @property
    def running(self) -> bool:
        return bool(self.processes) and self.processes[-1].popen.poll() is None

    @property
    def pid(self) -> int:
        return self.processes[-1].popen.pid

    @property
    def url(self) -> str:
        """Its name in the leases begins with this."""
        return f"127.0.0.1:{self._variables['URL']}"

    def start(self, wait: bool = True) -> None:
        """Start it; wait until it listens."""
        if self._lines:
            self.links.up()
        self.processes.append(
            Process("-c", str(self._folder / "proxy.yaml"), folder=self._folder, environ=self._variables)
        )
        if wait:
            self.listens()

    def listens(self) -> None:
        """Wait until clients can connect."""
        self.processes[-1].address()

    def kill(self) -> None:
        """End it as `kill -9` does."""
        if self.running:
            self.processes[-1].popen.kill()
            self._refuse()
            self.processes[-1].popen.wait(10)
            self._stopped = False

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self.processes[-1].popen.send_signal(signal.SIGTERM)

    def ended(self, seconds: float = 20.0) -> int:
        """Wait for its end; return the exit code."""
        code = self.processes[-1].popen.wait(seconds)
        self._refuse()
        return code

    def stop(self) -> None:
        """Let it hang (SIGSTOP)."""
        self._stopped = True
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        self._stopped = False
        os.kill(self.pid, signal.SIGCONT)

    def reload(self) -> None:
        """Have it read its configuration again, and wait until it has."""
        before = len(self.events("gateway.reload"))
        os.kill(self.pid, signal.SIGHUP)
        wait_for(lambda: len(self.events("gateway.reload")) > before, f"{self} was not reloaded: {self.text[-2000:]}")

    def close(self) -> None:
        if self._stopped and self.running:
            self.resume()
        for process in self.processes:
            process.__exit__()

    @property
    def text(self) -> str:
        """Everything that it has logged, in all of its lives."""
        return "\n".join(process.text for process in self.processes)

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of its log of this name, with these fields."""
        return [
            event
            for process in self.processes
            for event in process.events
            if event["event"] == name and all(event.get(key) == value for key, value in fields.items())
        ]

    def get(self, path: str) -> tuple[int, str]:
        """The status and the body of a page of its admin port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}{path}", timeout=HTTP_SECONDS) as page:
                return page.status, page.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def _refuse(self) -> None:
        if self._lines and not self.links.dark:
            self.links.down()


class Stand:
    """A cluster of so many nodes; `forwarded`: all their connections but those of clients go through forwarders."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        *,
        forwarded: bool = False,
        redis: RedisServer | None = None,
        alpaca: Alpaca | None = None,
        config: str = CONFIG,
    ) -> None:
        self.alpaca = Alpaca() if alpaca is None else alpaca
        self.redis = RedisServer() if redis is None else redis
        self.nodes: list[Node] = []
        self.clients: list[Client] = []
        self._count = nodes
        self._forwarded = forwarded
        self._folder = folder
        self._config = config
        self._stack = ExitStack()

    def __enter__(self) -> Stand:
        try:
            self.alpaca.start()
            self._stack.callback(self.alpaca.close)
            self._stack.enter_context(self.redis)
            (self._folder / "proxy.yaml").write_text(self._config)
            (self._folder / "key").write_text("key")
            for _ in range(self._count):
                self.add()
            for node in self.nodes:
                node.start(wait=False)
            for node in self.nodes:
                node.listens()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            for node in self.nodes:
                print(f"--- {node} ---\n{node.text[-6000:]}")
        self._stack.close()

    def add(self) -> Node:
        """Add a node that is not started yet."""
        links = free_port()
        variables = {
            "LISTEN": str(free_port()),
            "ADMIN": str(free_port()),
            "LINKS": str(links),
            "URL": str(links),
            "REDIS": str(self.redis.port),
            "ALPACA": self.alpaca.url,
            "CLUSTER_SECRET": "a secret of all nodes, and long",
        }
        lines: list[Forwarder] = []
        if self._forwarded:
            targets = links, self.redis.port, int(self.alpaca.url.rpartition(":")[2])
            lines = [self._stack.enter_context(Forwarder(target)) for target in targets]
            url, redis, alpaca = [str(line.port) for line in lines]
            variables |= {"URL": url, "REDIS": redis, "ALPACA": f"ws://127.0.0.1:{alpaca}"}
        node = Node(len(self.nodes), self._folder, variables, lines)
        self._stack.callback(node.close)
        self.nodes.append(node)
        return node

    def client(self, at: int, symbols: Iterable[str] = SYMBOLS) -> Client:
        """A client of a node."""
        client = Client([node.address for node in self.nodes], at, symbols)
        self._stack.callback(client.close)
        self.clients.append(client)
        return client

    def run(self, *at: int) -> Node:
        """Connect a client to each of these nodes, or to all; return the leader once all receive data."""
        for number in at or range(len(self.nodes)):
            self.client(number)
        settled(self.clients)
        leader = self.leader()
        assert leader is not None
        return leader

    def spread(self) -> None:
        """Move clients so that there is one at each node."""
        for node in self.nodes:
            if not self.clients_at(node):
                crowded = next(other for other in self.nodes if len(self.clients_at(other)) > 1)
                self.clients_at(crowded)[-1].move(node.number)
        settled(self.clients)

    def leader(self) -> Node | None:
        """The node that holds the connection to Alpaca; None if none does."""
        port = self.alpaca.port_of_connection()
        if port is None:
            return None
        if not self._forwarded:
            return self.node_of(port)
        return next((node for node in self.nodes if any(pair.sink == port for pair in node.alpaca.pairs)), None)

    def others(self, leader: Node) -> list[Node]:
        return [node for node in self.nodes if node is not leader and node.running]

    def node_of(self, port: int) -> Node | None:
        """The node whose process has a TCP connection from this port."""
        for _ in range(3):  # the kernel's table may change while it is read
            inode = _inode(port)
            for node in self.nodes:
                if node.running and inode in _sockets(node.pid):
                    return node
        return None

    def clients_at(self, node: Node) -> list[Client]:
        return [client for client in self.clients if client.node == node.number]

    def judge(self, *, joined: bool = False) -> None:
        """No message twice, none out of order, and never two connections of one account and feed.

        `joined`: the sequence of a client's connections to several nodes is judged as one, too.
        """
        for client in self.clients:
            assert client.account() == Account(), f"{client}: {client.account()}"
            assert not joined or client.joined_account() == Account(), f"{client}: joined {client.joined_account()}"
        assert all(count == 1 for count in self.alpaca.most.values()), self.alpaca.most
        for node in self.nodes:
            assert "internal_error" not in node.text, node.text[-6000:]
            assert "Traceback" not in node.text, node.text[-6000:]


class Outage:
    """Measure the pause that these clients notice, of a fault that begins now.

    What was sent after `in_flight` may have been on its way: IN_FLIGHT_SECONDS, or longer on a busy machine.
    """

    def __init__(self, clients: Iterable[Client], alpaca: Alpaca) -> None:
        self._clients = [*clients]
        self._alpaca = alpaca
        self.began = time.monotonic()
        received = [
            alpaca.sent[symbol][client.last(symbol)]
            for client in self._clients
            for symbol in client.wanted
            if client.last(symbol) >= 0
        ]
        self.in_flight = min([self.began - IN_FLIGHT_SECONDS, *received])

    def over(self, seconds: float = 20.0) -> float:
        """Wait until all receive what is sent now, and not only what is on its way; return the longest silence."""
        sent = time.monotonic() + IN_FLIGHT_SECONDS
        wait_for(
            lambda: all(self._receives(each, sent) for each in self._clients), f"no data: {self._clients}", seconds
        )
        return self.silence()

    def silence(self) -> float:
        return max(client.silence(self.began) for client in self._clients)

    def missed(self) -> int:
        """The largest number of messages sent since then, or shortly before, that one of the clients has missed."""
        return max(
            sum(len(client.missed(symbol, self._alpaca, self.began - CALM_SECONDS)) for symbol in client.wanted)
            for client in self._clients
        )

    def _receives(self, client: Client, sent: float) -> bool:
        """Whether it has a message of each of its symbols that was sent after this time."""
        return all((n := client.last(symbol)) >= 0 and self._alpaca.sent[symbol][n] > sent for symbol in client.wanted)


def wait_until_silent(client: Client, seconds: float = 20.0) -> None:
    """Wait until nothing comes any more, for 100 ms."""

    def silent() -> bool:
        return all(time.monotonic() - client.times(symbol)[-1] > 0.1 for symbol in client.wanted)

    wait_for(silent, "data come still", seconds)


def until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for a condition; return how long it took."""
    began = time.monotonic()
    wait_for(condition, what, seconds)
    return time.monotonic() - began


def leases(redis: RedisServer) -> dict[str, dict[str, Any]]:
    """The leases in Redis, by key."""
    found = {}
    for key in redis.cli("--scan", "--pattern", "alpaca-proxy:lease:*").split():
        if text := redis.cli("GET", key):
            found[key] = json.loads(text.partition(" ")[2])
    return found


def _inode(port: int) -> str:
    """The inode of the socket of an established connection from this port of 127.0.0.1."""
    local = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), 'little'):08X}:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local and fields[3] == "01":
            return fields[9]
    return ""


def _sockets(pid: int) -> set[str]:
    """The inodes of the sockets of a process."""
    found = set()
    for name in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(name.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found
