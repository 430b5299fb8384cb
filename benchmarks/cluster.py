"""The cost of a cluster, each side by side with one process in the same rounds. It needs redis-server.

edge: the clients are at an edge, which reads from a leader. shared: two nodes share the clients' port by
`listen.reuse_port`, each with about half of the clients. Both processes are on one core; their time counts together.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field

import websocket
from contenders import CACHE, Bench, BenchError, Running, free_port, start
from measure import Figures, figures_of, run

LOAD = {"clients": 50, "batch": 20, "rate": 10_000}
CLUSTER = """\
cluster: {{redis: redis://127.0.0.1:{redis}, listen: 127.0.0.1:{node}, url: ws://127.0.0.1:{node}, \
secret: {secret}}}
"""
SECRET = "a secret of the benchmarks"
WAIT_SECONDS = 10.0


@dataclass
class Costs:
    """The figures of each round."""

    alone: list[Figures] = field(default_factory=list)
    edge: list[Figures] = field(default_factory=list)
    shared: list[Figures] = field(default_factory=list)


def measure_cluster(bench: Bench, rounds: int, seconds: float) -> Costs:
    """Measure one process, a leader with an edge, and two nodes on one port. Raises BenchError."""
    costs = Costs()
    with redis() as port:
        for _ in range(rounds):
            costs.alone.append(run(bench, "proxy", LOAD, seconds))
            costs.edge.append(with_edge(bench, port, seconds))
            costs.shared.append(with_shared_port(bench, port, seconds))
    return costs


def with_edge(bench: Bench, redis_port: int, seconds: float) -> Figures:
    """Measure with all clients at an edge. The leader leads since a client of its own came first."""
    with Load(seconds) as load, ExitStack() as stack:
        leader, edge = (stack.enter_context(node(bench, load.port, redis_port)) for _ in range(2))
        stack.enter_context(closing(first_client(leader.port)))
        return load.measure(edge.port, [leader, edge])


def with_shared_port(bench: Bench, redis_port: int, seconds: float) -> Figures:
    """Measure with two nodes that listen on one port."""
    port = free_port()
    with Load(seconds) as load, ExitStack() as stack:
        nodes = [stack.enter_context(node(bench, load.port, redis_port, listen=port)) for _ in range(2)]
        return load.measure(port, nodes)


class Load:
    """The load generator; it listens as Alpaca on `port`."""

    def __init__(self, seconds: float) -> None:
        options = {**LOAD, "seconds": seconds}
        command = [str(CACHE / "load"), *(f"{name}={value}" for name, value in options.items())]
        cores = sorted(os.sched_getaffinity(0))
        self._seconds = seconds
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {cores[-1]}),
        )  # fmt: skip
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline().split()[1])

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def measure(self, port: int, nodes: Sequence[Running]) -> Figures:
        order = f"{port} {' '.join(str(each.process.pid) for each in nodes)}\n"
        out, _ = self._process.communicate(order, timeout=90 + self._seconds)
        if not out:
            raise BenchError("the load generator printed nothing")
        return figures_of(json.loads(out.splitlines()[-1]))


@contextmanager
def node(bench: Bench, upstream: int, redis_port: int, listen: int | None = None) -> Iterator[Running]:
    more = CLUSTER.format(redis=redis_port, node=free_port(), secret=SECRET)
    with start(bench, "proxy", upstream, more=more, listen=listen) as running:
        yield running


@contextmanager
def redis() -> Iterator[int]:
    """Run a Redis until the block ends; yield its port."""
    server = shutil.which("redis-server")
    if server is None:
        raise BenchError("no redis-server here")
    port = free_port()
    command = [server, "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise BenchError(f"nothing listens on port {port}")


def first_client(port: int) -> websocket.WebSocket:
    """Return a client that has subscribed to a symbol of which nothing is sent."""
    client = websocket.create_connection(f"ws://127.0.0.1:{port}/v2/iex", timeout=WAIT_SECONDS)
    client.recv()
    client.send(json.dumps({"action": "auth", "key": "bench", "secret": "bench"}))
    client.recv()
    client.send(json.dumps({"action": "subscribe", "trades": ["NONE"]}))
    client.recv()
    return client
