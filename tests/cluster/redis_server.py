"""A real redis-server on 127.0.0.1, for one test: it keeps nothing on disk and ends with the block.

RedisServer is a server with its options; `sentinel` is a Sentinel that watches one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.absent import absent
from tests.ports import free_port

START_SECONDS = 10.0


@dataclass(frozen=True)
class Certificates:
    """The files of a server's certificate; `ca` is what its clients have to trust."""

    cert: Path
    key: Path
    ca: Path


@dataclass
class RedisServer:
    """A redis-server; use it as a context manager.

    `acl`: rules of users by their names, "default" included. With `tls` its port speaks TLS only. `unix`: the path of a
    Unix socket besides the port. `options`: further settings. `sentinel`: the settings of a Sentinel, which it is then.
    """

    password: str = ""
    acl: dict[str, str] = field(default_factory=dict)
    tls: Certificates | None = None
    unix: Path | None = None
    maxmemory: str = ""
    replica_of: RedisServer | None = None
    options: dict[str, str] = field(default_factory=dict)
    sentinel: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> RedisServer:
        self._folder = tempfile.mkdtemp(prefix="redis-")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start, empty, on the same port as before; return when it answers."""
        file = Path(self._folder, "redis.conf")  # a Sentinel writes to it
        file.write_text("".join(f"{line}\n" for line in self._settings()), "utf-8")
        log = Path(self._folder, "log")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [program(), str(file), *(["--sentinel"] if self.sentinel else [])],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            alive = self._process.poll() is None and time.monotonic() < deadline
            assert alive, f"redis-server did not start: {log.read_text('utf-8', 'replace')}"
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as `kill -9` does, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def restart(self) -> None:
        """Kill it and start it again on the same port; all keys and scripts are gone."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """Let it hang (SIGSTOP): its kernel still accepts connections."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def cli(self, *command: str) -> str:
        """Return the answer to a command of the default user, as redis-cli prints it."""
        login = ["--no-auth-warning", "-a", self.password] if self.password else []
        tls = ["--tls", "--cacert", str(self.tls.ca)] if self.tls else []
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), *login, *tls, *command],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def _settings(self) -> Iterator[str]:
        port = "tls-port" if self.tls else "port"
        yield f"bind 127.0.0.1\n{port} {self.port}"
        if self.sentinel:
            yield from (f"sentinel {line}" for line in self.sentinel)
        else:
            yield 'save ""\nappendonly no\nrepl-diskless-sync-delay 0'
        if self.tls:
            yield "port 0\ntls-auth-clients no\ntls-replication yes"
            yield f"tls-cert-file {self.tls.cert}\ntls-key-file {self.tls.key}\ntls-ca-cert-file {self.tls.ca}"
        if self.unix:
            yield f'unixsocket "{self.unix}"'
        if self.maxmemory:
            yield f"maxmemory {self.maxmemory}\nmaxmemory-policy noeviction"
        if self.replica_of:
            yield f"replicaof 127.0.0.1 {self.replica_of.port}"
        if self.password:
            yield f"requirepass {self.password}"
        yield from (f"user {name} {rule}" for name, rule in self.acl.items())
        yield from (f"{name} {value}" for name, value in self.options.items())

    def _listens(self) -> bool:
        """Whether it answers a command, if only by a refusal; through TLS, whether it accepts connections."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                if self.tls:
                    return True
                probe.sendall(b"PING\r\n")
                return bool(probe.recv(1))
        except OSError:
            return False


@contextmanager
def sentinel(watched: RedisServer, service: str, password: str = "") -> Iterator[RedisServer]:
    """A Sentinel that decides alone, 300 ms after the server has fallen silent; `password`: its own."""
    lines = [f"monitor {service} 127.0.0.1 {watched.port} 1"]
    lines += [f"down-after-milliseconds {service} 300", f"failover-timeout {service} 3000"]
    if watched.password:
        lines.append(f"auth-pass {service} {watched.password}")
    with RedisServer(sentinel=lines, password=password) as server:
        yield server


def program() -> str:
    """The path of redis-server. Without it the test is skipped, or fails in CI."""
    path = shutil.which("redis-server", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        absent("this test runs redis-server: apt-get install redis-server")
    return path
