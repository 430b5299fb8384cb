"""The cost of a cluster, each row side by side with one process in the same rounds.

`python benchmarks/cluster.py [--rounds N] [--seconds N]`; it needs redis-server.

edge: the clients are at an edge, which reads from a leader; both processes on one core, whose time counts together.
shared: two nodes share the clients' port by `listen.reuse_port`, each with about half of the clients, on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    try:
        bench = Bench()
        with redis() as port:
            alone, edge, shared = [], [], []
            for _ in range(options.rounds):
                alone.append(run(bench, "proxy", LOAD, options.seconds))
                edge.append(with_edge(bench, port, options.seconds))
                shared.append(with_shared_port(bench, port, options.seconds))
    except BenchError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    for name, figures in (("one process", alone), ("leader and edge", edge), ("two nodes, one port", shared)):
        print(f"{name}: {words(figures)}")
    for name, figures in (("leader and edge", edge), ("two nodes, one port", shared)):
        print(f"{name} against one process: {ratio('cpu', figures, alone)} the processor time")
    added = [b.p50 - a.p50 for a, b in zip(alone, edge, strict=True)]
    print(
        f"an edge adds {statistics.median(added):.0f} us ({min(added):.0f} to {max(added):.0f}) to the median latency"
    )
    return 0


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


def words(figures: Sequence[Figures]) -> str:
    def median(name: str) -> float:
        return statistics.median(getattr(one, name) for one in figures)

    lost = sum(one.lost + one.disconnected for one in figures)
    return (
        f"{median('cpu'):,.0f} ns/message, core {100 * median('share'):.0f} %, "
        f"p50 {median('p50'):.0f} p99 {median('p99'):.0f} us, {median('delivered'):,.0f} messages/s, {lost} lost"
    )


def ratio(name: str, figures: Sequence[Figures], others: Sequence[Figures]) -> str:
    ratios = [getattr(a, name) / getattr(b, name) for a, b in zip(figures, others, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})x"


if __name__ == "__main__":
    sys.exit(main())
