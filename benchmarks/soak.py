"""Soak test: many algorithms for a long time must miss no message.

    python benchmarks/soak.py --seconds 1200

The proxy and the simulated Alpaca are separate processes. Algorithms with either codec subscribe to some symbols or to
all; some join and leave, with a close frame, a FIN or a RST; one reads nothing at all; and every minute Alpaca drops
the connection. Alpaca numbers each symbol's trades and records the numbers that it sent on each connection; while
connected, every algorithm that reads must receive exactly these. The exit status is 1 if any of them missed a message.
"""

# ruff: noqa: E402
# gevent's monkey patch must come before every other import.

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import itertools
import json
import os
import platform
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import gevent
from gevent.fileobject import FileObject

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from algorithm import Algorithm, Totals

SYMBOLS = [f"S{number:02}" for number in range(50)]
HELD = 10  # symbols of an algorithm that does not hold all
TICK_SECONDS = 0.1
PAUSE_SECONDS = 0.5  # before a drop, without messages, so that everything sent has been read
SETTLE_SECONDS = 5
CONFIG = """\
listen: {{port: {port}}}
admin: {{port: {admin}}}
log: {{format: json}}
accounts:
  main: {{key: key, secret: secret, data_url: "{alpaca}"}}
clients:
  well: {{key: well, secret: well, max_connections: 1000, allow: {{iex: "*"}}}}
  stalled: {{key: stalled, secret: stalled, outbox: 256KiB, allow: {{iex: "*"}}}}
"""


# Alpaca, as a separate process


def alpaca(rate: int, drop_seconds: float) -> None:
    """Publish until standard input ends, then print the record as JSON.

    The record has, by epoch and symbol, the first and last number sent on the connection of that epoch. An epoch ends
    with a drop.
    """
    from proxy.simulator import Simulator

    record: dict[int, dict[str, list[int]]] = {}
    numbers = dict.fromkeys(SYMBOLS, 0)
    symbols = itertools.cycle(SYMBOLS)
    with Simulator() as simulator:
        print(simulator.url, flush=True)
        ending = gevent.spawn(FileObject(0, closefd=False).read)
        ways = itertools.cycle(("close", "fin", "rst"))
        epoch, drop_at = 0, time.monotonic() + drop_seconds
        while not ending.ready():
            if time.monotonic() >= drop_at:
                gevent.sleep(PAUSE_SECONDS)
                epoch, drop_at = epoch + 1, drop_at + drop_seconds
                simulator.drop("iex", next(ways))
            batch = []
            for symbol in itertools.islice(symbols, round(rate * TICK_SECONDS)):
                numbers[symbol] += 1
                head = {"T": "t", "S": symbol, "i": numbers[symbol], "e": epoch, "w": time.monotonic_ns()}
                batch.append({**head, "x": "V", "p": 100.25, "s": 100, "c": ["@"], "z": "C"})
            for message in batch:
                if any(peer.session.wants(message) for peer in simulator.connections("iex")):
                    spans = record.setdefault(epoch, {})
                    spans.setdefault(message["S"], [message["i"], 0])[1] = message["i"]
            simulator.publish("iex", batch)
            gevent.sleep(TICK_SECONDS)
        print(json.dumps(record), flush=True)


# The run


def soak(options: argparse.Namespace) -> bool:
    """Run the soak test and print its table.

    Returns whether no algorithm missed a message and nothing else failed.
    """
    rng = random.Random(options.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [sys.executable, __file__, "--alpaca", "--rate", str(options.rate), "--drop", str(options.drop)]
        source = stack.enter_context(_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        url = source.stdout.readline().strip()
        ports = [_free_port() for _ in range(2)]
        config = folder / "proxy.yaml"
        config.write_text(CONFIG.format(port=ports[0], admin=ports[1], alpaca=url))
        config.chmod(0o600)
        log = stack.enter_context((folder / "log").open("w"))
        command = [sys.executable, "-m", "proxy", "-c", str(config)]
        proxy = stack.enter_context(_process(command, cwd=ROOT, stderr=log, stdout=subprocess.DEVNULL))
        _until(lambda: _status(ports[1]) is not None)
        totals, algorithms, sessions = Totals(), [], itertools.count(1)

        def join() -> Algorithm:
            symbols = ["*"] if rng.random() < 0.1 else rng.sample(SYMBOLS, HELD)
            algorithm = Algorithm(ports[0], "well", rng.choice(["json", "msgpack"]), symbols, totals)
            algorithms.append(algorithm)
            next(sessions)
            gevent.spawn(algorithm.run)
            return algorithm

        def join_and_leave() -> None:
            while not over:
                passing = join()
                gevent.sleep(rng.uniform(1, 10))
                if not over:
                    passing.leave(rng.choice(["close", "fin", "rst"]))

        def stall() -> None:
            while not over:
                Algorithm(ports[0], "stalled", "json", ["*"], totals).stall()

        over = False
        passing = round(options.clients * options.passing)
        for _ in range(options.clients - passing - 1):
            join()
        crowd = [gevent.spawn(join_and_leave) for _ in range(passing)]
        gevent.spawn(stall)
        gevent.sleep(SETTLE_SECONDS)
        cpu, began, memory = _cpu(proxy.pid), time.monotonic(), [_mib(proxy.pid, "VmRSS")]
        while (left := began + options.seconds - time.monotonic()) > 0:
            gevent.sleep(min(60, left))
            memory.append(_mib(proxy.pid, "VmRSS"))
            problems = f"missed {totals.missed}, disordered {totals.disordered}, closed {dict(totals.closed)}"
            print(
                f"{time.monotonic() - began:5.0f} s  {memory[-1]:.1f} MiB  received {totals.received:,}  {problems}",
                file=sys.stderr,
            )
        share = (_cpu(proxy.pid) - cpu) / (time.monotonic() - began)
        over = True
        _, _ = source.stdin.close(), gevent.sleep(1)
        record = {int(epoch): spans for epoch, spans in json.loads(source.stdout.read()).items()}
        gevent.killall(crowd)
        drops = max(record)
        totals.missed += sum(algorithm.missed_at_the_ends(record) for algorithm in algorithms)
        document = _status(ports[1])
        closed = totals.closed.copy()
        peak = _mib(proxy.pid, "VmHWM")
        proxy.send_signal(signal.SIGTERM)
        proxy.wait(30)
        log.flush()
        events = [json.loads(line)["event"] for line in (folder / "log").read_text().splitlines()]
        errors = sum(event.endswith(".internal_error") for event in events)
    rows = {
        "clients at once": f"{options.clients}, {passing} of them join and leave, 1 reads nothing",
        "sessions": f"{next(sessions) - 1:,}",
        "messages a second from Alpaca": f"{options.rate}",
        "drops of the connection": f"{drops}",
        "messages received": f"{totals.received:,}",
        "missed by clients that read": f"{totals.missed}",
        "duplicate or out of order": f"{totals.disordered}",
        "sessions of clients that read closed by the proxy": f"{closed.total()} {dict(closed) or ''}".strip(),
        "counted by the proxy as lost": "; ".join(f"{who}: {n:,} ({why})" for who, why, n in _losses(document)),
        "longest silence while connected": f"{totals.silence:.2f} s",
        "longest silence across a drop": f"{totals.outage:.2f} s",
        "latency p50, p99, p99.9, worst": ", ".join(f"{totals.lag(s):.1f}" for s in (0.5, 0.99, 0.999, 1)) + " ms",
        "memory at the start, the end, the peak": f"{memory[0]:.1f}, {memory[-1]:.1f}, {peak:.1f} MiB",
        "of one core": f"{share:.0%}",
        "internal errors in the log": f"{errors}",
    }
    print(f"{options.seconds} s on {_machine()}\n\n| | |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in rows.items()))
    lost = any(who == "well" and why != "closed" for who, why, _ in _losses(document))
    return not (totals.missed or totals.disordered or closed.total() or lost or errors)


def _losses(document: Any) -> list[tuple[str, str, int]]:
    """The proxy's counts of lost messages: client, reason, messages."""
    return [(of["client"], why, n) for of in document["clients"] for why, n in of["lost"].items()]


def _process(command: list[str], **options: Any) -> Any:
    process = subprocess.Popen(command, **options)

    class Ended(ExitStack):
        def __enter__(self) -> Any:
            self.callback(process.wait)
            self.callback(process.kill)
            return process

    return Ended()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return int(holder.getsockname()[1])


def _status(port: int) -> Any:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/status.json", timeout=10) as response:
        return json.load(response)


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("the proxy does not start")
        gevent.sleep(0.05)


def _mib(pid: int, what: str) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def _cpu(pid: int) -> float:
    """The processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} cores, {model}, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1200)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--passing", type=float, default=0.25, help="share of clients that join and leave")
    parser.add_argument("--rate", type=int, default=400, help="messages a second from Alpaca")
    parser.add_argument("--drop", type=float, default=60, help="seconds between two drops")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--alpaca", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    if options.alpaca:
        alpaca(options.rate, options.drop)
    elif not soak(options):
        sys.exit(1)


if __name__ == "__main__":
    main()
