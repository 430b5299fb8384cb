"""One measured run: the load generator against one contender."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from contenders import CACHE, Bench, BenchError, Running, start


@dataclass(frozen=True)
class Figures:
    """The results of load.c.

    `cpu` and `system` are the proxy's nanoseconds for each delivered message.
    """

    cpu: float
    system: float
    share: float
    delivered: float
    offered: float
    frame: float
    lost: int
    unsent: int
    disconnected: int
    mib: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


def run(
    bench: Bench, contender: str, load: Mapping[str, object], seconds: float, *, codec: str = "json",
    client: str = "", more: str = "", launcher: Sequence[str] = ("-m", "proxy"),
    during: Callable[[Running], None] | None = None,
) -> Figures:  # fmt: skip
    """Run the load once against a contender, for so many seconds unless the load says for how many.

    The contender `proxy tls` is the product with TLS toward its clients, `direct` is no proxy at all. `during` is
    called while data flows and may inspect the proxy. Raises BenchError.
    """
    options = {"seconds": seconds, **load}
    if contender == "direct":
        options["direct"] = 1
    tls = contender == "proxy tls"
    if tls:
        contender, options["tls"] = "proxy", 1
    command = [str(CACHE / "load"), *(f"{name}={value}" for name, value in options.items())]
    generator = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {bench.cores[1]}),
    )  # fmt: skip
    try:
        assert generator.stdout is not None
        port = int(generator.stdout.readline().split()[1])
        if contender == "direct":
            out, errors = generator.communicate(f"{port}\n", timeout=120 + seconds)
        else:
            with start(
                bench, contender, port, codec=codec, tls=tls, client=client, more=more, launcher=launcher
            ) as running:
                order = f"{running.port} {running.process.pid}\n"
                if during is not None:
                    assert generator.stdin is not None
                    generator.stdin.write(order)
                    generator.stdin.flush()
                    order = ""
                    if generator.stdout.readline():
                        during(running)
                out, errors = generator.communicate(order, timeout=120 + seconds)
    finally:
        if generator.poll() is None:
            generator.kill()
            generator.wait()
    if generator.returncode or not out:
        raise BenchError(f"{contender}: {errors.strip() or 'the load generator printed nothing'}")
    return figures_of(json.loads(out.splitlines()[-1]))


def figures_of(results: dict[str, object]) -> Figures:
    """Return the figures in the last line of load.c."""

    def number(name: str) -> float:
        value = results[name]
        assert isinstance(value, int | float)
        return float(value)

    latency = results["latency_us"]
    assert isinstance(latency, dict)
    return Figures(
        cpu=number("cpu_ns"),
        system=number("system_ns"),
        share=number("cpu_share"),
        delivered=number("delivered_per_second"),
        offered=number("offered_per_second"),
        frame=number("frame_messages"),
        lost=int(number("lost")),
        unsent=int(number("unsent")),
        disconnected=int(number("disconnected")),
        mib=number("proxy_kib") / 1024,
        **{name: float(latency[name]) for name in ("p50", "p90", "p99", "p999", "max")},
    )
