"""The proxies that a run compares ("contenders"), each pinned to one core.

A contender gets the port of the stand-in for Alpaca and prints the port that it listens at. `Bench` builds what they
need below build/bench, if missing: the compiled programs, a virtual environment with the product's requirements and the
peers' libraries, and Node's `ws`. A contender that cannot be set up is skipped and named in the report.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = ROOT / "build" / "bench"
PEER_LIBRARIES = ("websockets", "orjson", "picows", "uvloop", "wsaccel", "msgpack")
START_SECONDS = 20

CONFIG = """\
listen: {{port: {listen}{tls}}}
admin: {{port: {admin}}}
log: {{format: json, level: error}}
accounts:
  bench: {{key: key, secret: secret, data_url: "ws://127.0.0.1:{upstream}", codec: {{iex: {codec}}}}}
clients:
  bench: {{key: bench, secret: bench, allow: {{iex: "*"}}, max_connections: 10000{client}}}
{more}
"""


class BenchError(Exception):
    """The run is impossible; the message is one sentence."""


class Bench:
    """The environment of the runs, built once.

    `cores`: the proxy's core, and the core for everything else. `other`: another checkout of the product to compare.
    """

    def __init__(self, other: Path | None = None) -> None:
        self.other = other
        if sys.platform != "linux":
            raise BenchError("the benchmarks need Linux: epoll, /proc and processor affinity")
        allowed = sorted(os.sched_getaffinity(0))
        self.cores = (allowed[0], allowed[-1])
        self.pinned = len(allowed) > 1
        self.missing: dict[str, str] = {}
        CACHE.mkdir(parents=True, exist_ok=True)
        self.tls = self._compile()
        self.python = self._environment()
        self._node()

    def has(self, contender: str) -> bool:
        return contender not in self.missing

    def _compile(self) -> bool:
        """Compile load and relay; whether load supports TLS."""
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise BenchError("no C compiler: the load generator is C; install gcc or clang")
        flags = [compiler, "-O3", "-march=native", "-Wall", "-I", str(HERE)]
        self._build([*flags, "-o", str(CACHE / "relay"), str(HERE / "relay.c")])
        load = [*flags, "-o", str(CACHE / "load"), str(HERE / "load.c")]
        try:
            self._build([*load, "-DWITH_TLS", "-lssl", "-lcrypto", "-lm"])
        except BenchError:
            self._build([*load, "-lm"])
            return False
        return True

    def _build(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{command[-1]} does not compile: {done.stderr.strip()[:500]}")

    def _environment(self) -> str:
        """The Python of the benchmarks' virtual environment, which is built if outdated."""
        home = CACHE / "venv"
        python = str(home / "bin" / "python")
        requirements = (ROOT / "requirements.txt").read_text() + "\n".join(PEER_LIBRARIES)
        stamp = home / "installed"
        if not stamp.exists() or stamp.read_text() != requirements:
            venv.create(home, with_pip=True, clear=True)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "-r", str(ROOT / "requirements.txt")], check=True)
            for library in PEER_LIBRARIES:
                subprocess.run([*pip, library], check=False)
            stamp.write_text(requirements)
        for contender, modules in (
            ("naive", "websockets, msgpack"),
            ("broadcast", "websockets, orjson"),
            ("picows", "picows, uvloop, msgspec"),
        ):
            if subprocess.run([python, "-c", f"import {modules}"], capture_output=True, check=False).returncode:
                self.missing[contender] = f"{modules} could not be installed"
        return python

    def _node(self) -> None:
        home = CACHE / "node"
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            self.missing["node"] = "no Node.js here"
        elif not (home / "node_modules" / "ws").exists():
            home.mkdir(exist_ok=True)
            done = subprocess.run([npm, "install", "--silent", "--prefix", str(home), "ws"], check=False)
            if done.returncode:
                self.missing["node"] = "npm could not install ws"


class Running:
    """A running contender: its port, its process, and the proxy's admin port."""

    def __init__(self, port: int, process: subprocess.Popen[str], admin: int = 0) -> None:
        self.port = port
        self.process = process
        self.admin = admin


@contextmanager
def start(
    bench: Bench, contender: str, upstream: int, *, codec: str = "json", tls: bool = False, client: str = "",
    more: str = "", launcher: Sequence[str] = ("-m", "proxy"), core: int | None = None, listen: int | None = None,
) -> Iterator[Running]:  # fmt: skip
    """Run a contender until the block ends.

    `codec`, `tls`, `client`, `more` (sections of the configuration), `launcher` and `listen`, a port that it shares
    with others, apply to the proxy alone.
    """
    core = bench.cores[0] if core is None else core
    product = contender in ("proxy", "other")
    home = bench.other if contender == "other" and bench.other is not None else ROOT
    if product:
        admin = free_port()
        config = CACHE / f"proxy-{admin}.yaml"
        certificate = ", tls: {cert: cert.pem, key: key.pem}" if tls else ""
        certificate += ", reuse_port: true" if listen else ""
        listen = listen or free_port()
        if tls:
            _certificate()
        config.write_text(
            CONFIG.format(
                listen=listen, admin=admin, upstream=upstream, codec=codec, tls=certificate, client=client, more=more
            )
        )
        config.chmod(0o600)
        command = [bench.python, *launcher, "-c", str(config)]
    else:
        listen, admin = 0, 0
        command = _command(bench, contender, upstream)
    process = subprocess.Popen(
        command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "NODE_PATH": str(CACHE / "node" / "node_modules")},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    try:
        if product:
            _wait_until_listening(listen, process)
        else:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if len(words) != 2:
                raise BenchError(f"{contender} did not start")
            listen = int(words[1])
        yield Running(listen, process, admin)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if product:
            config.unlink()


def _command(bench: Bench, contender: str, upstream: int) -> list[str]:
    commands = {
        "C chunk": [str(CACHE / "relay"), "chunk"],
        "C frame": [str(CACHE / "relay"), "frame"],
        "naive": [bench.python, str(HERE / "peers" / "naive.py")],
        "broadcast": [bench.python, str(HERE / "peers" / "broadcast.py")],
        "picows": [bench.python, str(HERE / "peers" / "picows_relay.py")],
        "gevent": [bench.python, str(HERE / "peers" / "gevent_relay.py")],
        "receive": [bench.python, str(HERE / "receive.py"), "product"],
        "stock": [bench.python, str(HERE / "receive.py"), "stock"],
        "node": ["node", str(HERE / "peers" / "ws_relay.js")],
    }
    return [*commands[contender], str(upstream)]


def _wait_until_listening(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"the proxy ended with {process.returncode} before it listened")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise BenchError("the proxy does not listen")


def _certificate() -> None:
    if (CACHE / "cert.pem").exists():
        return
    openssl = shutil.which("openssl")
    if openssl is None:
        raise BenchError("no openssl command to make a certificate with")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=localhost"]
    command += ["-keyout", str(CACHE / "key.pem"), "-out", str(CACHE / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
