"""nginx and Caddy in front of the proxy, or in front of the nodes of a cluster.

They are configured as in config/, except for addresses and certificate.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
CADDY = ROOT / "config" / "caddy" / "Caddyfile"
CADDY_CLUSTER = ROOT / "config" / "caddy" / "Caddyfile.cluster"
NGINX = ROOT / "config" / "nginx" / "alpaca-proxy.conf"
NGINX_CLUSTER = ROOT / "config" / "nginx" / "alpaca-proxy-cluster.conf"
SECONDS = 30.0


@dataclass(frozen=True)
class Nodes:
    """The addresses of two nodes: hosts of their own, the same ports. `token` is that of the admin port."""

    hosts: tuple[str, str]
    port: int
    admin_port: int
    token: str


def program(name: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def needed(name: str) -> str:
    """The path of a program; fail with the command that installs it if there is none."""
    path = program(name)
    assert path is not None, f"this test runs {name}: apt-get install {name}"
    return path


def nginx(folder: Path, behind: tuple[str, int], cert: Path, key: Path) -> AbstractContextManager[int]:
    """nginx in front of the proxy at `behind`; its port on 127.0.0.1."""
    return _nginx(folder, NGINX, {"http://127.0.0.1:8765": "http://{}:{}".format(*behind)}, cert, key)


def nginx_cluster(folder: Path, nodes: Nodes, cert: Path, key: Path) -> AbstractContextManager[int]:
    """nginx in front of two nodes; its port on 127.0.0.1."""
    changes = {f"10.0.0.{n}:8765": f"{host}:{nodes.port}" for n, host in enumerate(nodes.hosts, 1)}
    return _nginx(folder, NGINX_CLUSTER, changes, cert, key)


@contextmanager
def _nginx(folder: Path, site: Path, changes: Mapping[str, str], cert: Path, key: Path) -> Iterator[int]:
    port = free_port()
    text = site.read_text("utf-8").replace("    listen [::]:443 ssl;\n", "")
    changes = {
        **changes,
        "443 ssl": f"127.0.0.1:{port} ssl",
        "proxy.example.com;": "localhost;",
        "/etc/letsencrypt/live/proxy.example.com/fullchain.pem": str(cert),
        "/etc/letsencrypt/live/proxy.example.com/privkey.pem": str(key),
    }
    (folder / "site.conf").write_text(changed(text, changes), "utf-8")
    temp_paths = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; {user} pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {temp_paths} include {folder}/site.conf; }}\n"
    )
    command = [needed("nginx"), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    check = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    with _running(command, port):
        yield port


def caddy(folder: Path, behind: tuple[str, int], cert: Path, key: Path) -> AbstractContextManager[int]:
    """Caddy in front of the proxy at `behind`; its port on 127.0.0.1."""
    changes = {"reverse_proxy 127.0.0.1:8765": "reverse_proxy {}:{}".format(*behind)}
    return _caddy(folder, CADDY, changes, cert, key)


def caddy_cluster(folder: Path, nodes: Nodes, cert: Path, key: Path) -> AbstractContextManager[int]:
    """Caddy in front of two nodes, whose health it checks; its port on 127.0.0.1."""
    behind = " ".join(f"{host}:{nodes.port}" for host in nodes.hosts)
    changes = {
        "reverse_proxy 10.0.0.1:8765 10.0.0.2:8765": f"reverse_proxy {behind}",
        "health_port 8766": f"health_port {nodes.admin_port}",
    }
    return _caddy(folder, CADDY_CLUSTER, changes, cert, key, ALPACA_PROXY_ADMIN_TOKEN=nodes.token)


@contextmanager
def _caddy(
    folder: Path, site: Path, changes: Mapping[str, str], cert: Path, key: Path, **variables: str
) -> Iterator[int]:
    port = free_port()
    start = f"\nhttps://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {cert} {key}"
    text = changed(site.read_text("utf-8"), {"\nproxy.example.com {": start, **changes})
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + text, "utf-8")
    command = [needed("caddy"), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    with _running(command, port, HOME=str(folder), **variables):
        yield port


def changed(text: str, changes: Mapping[str, str]) -> str:
    """The text with each key of `changes` replaced by its value.

    Each key must occur exactly once.
    """
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextmanager
def _running(command: list[str], port: int, **variables: str) -> Iterator[None]:
    """Run a server, listening on `port`, until the block ends."""
    server = subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert until(lambda: server.poll() is not None or _listens(port))
        assert server.poll() is None
        yield
    finally:
        server.terminate()
        server.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Wait for the condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
