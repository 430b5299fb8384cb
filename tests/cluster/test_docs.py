"""docs/cluster.md: its walk-through and its commands work as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from proxy.cluster.registry import ACL, Registry
from proxy.config import model as configuration
from tests.cluster.redis_server import Certificates, RedisServer, program
from tests.fronts import until
from tests.harness import CONNECTED, Client, Process, dial, wait_for
from tests.ports import free_port
from tests.test_docs import blocks

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "cluster.md"
ALPACA = "import runpy\nrunpy.run_module('proxy', run_name='__main__')\n"


class Terminal:
    """A folder in which the page's commands run, with the page's ports replaced by free ones."""

    def __init__(self, folder: Path) -> None:
        program()  # skips the test without redis-server
        self.folder = folder
        text = PAGE.read_text("utf-8")
        self.ports = {port: str(free_port()) for port in sorted(set(re.findall(r"\b(?:6379|87\d\d)\b", text)))}
        self._stack = ExitStack()
        (folder / "alpaca-proxy.pyz").write_text(ALPACA)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        self._environ = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def here(self, text: str) -> str:
        """The text with this test's ports."""
        return re.sub("|".join(self.ports), lambda match: self.ports[match[0]], text)

    def run(self, line: str) -> str:
        """Run a command to its end; return what it prints."""
        done = subprocess.run(
            ["bash", "-euc", self.here(line)],
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def started(self, line: str) -> Iterator[Path]:
        """Run a command until the block ends; yield the file of its output."""
        output = self.folder / f"{len(list(self.folder.iterdir()))}.txt"
        with output.open("wb") as file:
            running = subprocess.Popen(
                ["bash", "-euc", f"exec env {self.here(line)}"],
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield output
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait(20)

    def start(self, line: str) -> Path:
        """The same, until the test ends."""
        return self._stack.enter_context(self.started(line))

    def connect(self, url: str) -> Client:
        """Do as `websocat` does with a URL of the page."""
        found = re.fullmatch(r"ws://([\d.]+):(\d+)(/\S+)", self.here(url))
        assert found is not None
        client = self._stack.enter_context(dial((found[1], int(found[2])), found[3]))
        assert client.receive() == CONNECTED
        return client


def has(output: Path, *events: str) -> bool:
    """Whether the output of a node has these events, in this order."""
    logged = [json.loads(line)["event"] for line in output.read_text("utf-8").splitlines() if line.startswith("{")]
    rest = iter(logged)
    return all(event in rest for event in events)


@pytest.mark.slow
def test_two_nodes_in_five_minutes(tmp_path: Path) -> None:
    """The file, the commands and the messages of the page; what it says about the outcome."""
    [start, look, kill] = [text for text in blocks(PAGE, "sh") if "cluster.yaml" in text][:3]
    redis, simulate, first, second, *sessions = start.splitlines()
    with Terminal(tmp_path) as terminal:
        (tmp_path / "cluster.yaml").write_text(terminal.here(blocks(PAGE, "yaml")[0]))
        terminal.start(f"{simulate} --port 8770")  # its default
        with terminal.started(redis):
            nodes = [terminal.start(first), terminal.start(second)]
            clients = []
            for session, node in zip(sessions, nodes, strict=True):
                assert until(lambda node=node: has(node, "proxy.listening"))  # type: ignore[misc]
                client = terminal.connect(session.removeprefix("websocat "))
                for message in blocks(PAGE, "json")[0].splitlines():
                    assert client.ask(json.loads(message))[0]["T"] in ("success", "subscription")
                clients.append(client)
                wait_for(lambda client=client: client.receive() and client.data)  # type: ignore[misc]
            leads, follows = map(terminal.run, look.splitlines())
            assert has(nodes[0], "cluster.leads", "upstream.live")
            assert has(nodes[1], "cluster.follows", "upstream.live")
            assert not has(nodes[1], "cluster.leads")
            assert re.search(r"^\S*iex +this node", leads, re.MULTILINE)
            assert re.search(rf"^\S*iex +127\.0\.0\.1:{terminal.ports['8767']}#", follows, re.MULTILINE)

            terminal.run(kill)
            told = re.search(r"The second node logs (.+?), and the trades go on", PAGE.read_text("utf-8"), re.DOTALL)
            assert told is not None
            assert until(lambda: has(nodes[1], *re.findall(r"`([\w.]+)`", told[1])))
            before = len(clients[1].data)
            wait_for(lambda: clients[1].receive() and len(clients[1].data) > before + 3)
            again = terminal.start(first)
            assert until(lambda: has(again, "proxy.listening"))
            client = terminal.connect(sessions[0].removeprefix("websocat "))
            client.log_in("momentum").subscribe(trades=["AAPL"])
            assert until(lambda: has(again, "cluster.follows", "upstream.live"))
        for node in (again, nodes[1]):
            assert until(lambda node=node: has(node, "cluster.redis_away"))  # type: ignore[misc]
        before = len(client.data)
        wait_for(lambda: client.receive() and len(client.data) > before + 3)


@pytest.mark.slow
def test_two_nodes_with_tls_as_on_several_machines(tmp_path: Path) -> None:
    """The certificate of the page's command, for nodes and Redis, and its second configuration; on one machine."""
    [make] = [text for text in blocks(PAGE, "sh") if text.startswith("openssl")]
    addresses = re.findall(r"IP:([\d.]+)", make)
    hosts = {address: f"127.0.0.{at}" for at, address in enumerate(addresses, 2)}
    password = "a-password"
    with Terminal(tmp_path) as terminal, ExitStack() as stack:
        simulator = free_port()
        terminal.start(f"python3 alpaca-proxy.pyz simulate --port {simulator}")
        terminal.run(re.sub("|".join(map(re.escape, hosts)), lambda match: hosts[match[0]], make))
        certificates = Certificates(tmp_path / "node.crt", tmp_path / "node.key", tmp_path / "node.crt")
        redis = stack.enter_context(
            RedisServer(
                acl={"alpaca-proxy": f"on >{password} {ACL}"},
                tls=certificates,
                options={"bind": f"127.0.0.1 {hosts['10.0.0.9']}"},
            )
        )
        terminal.ports["6379"] = str(redis.port)
        text = terminal.here(blocks(PAGE, "yaml")[1]).replace("10.0.0.9", hosts["10.0.0.9"])
        port = terminal.ports["8765"]
        text = text.replace("listen:\n  host", f"listen:\n  port: {port}\n  host", 1)
        text = text.replace("admin:\n", f"admin:\n  port: {terminal.ports['8766']}\n", 1)
        url = f"ws://127.0.0.1:{simulator}"
        text += f"accounts:\n  main: {{key: key, secret: secret, data_url: '{url}', trading_url: '{url}'}}\n"
        text += "clients:\n  momentum: {key: momentum, secret: momentum, allow: {iex: '*'}}\n"
        (tmp_path / "proxy.yaml").write_text(text)
        trusting = ssl.create_default_context(cafile=str(tmp_path / "node.crt"))
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does by default
        nodes = []
        for address in addresses[:2]:
            variables = {"NODE_ADDRESS": hosts[address], **VARIABLES, "CLUSTER_REDIS_PASSWORD": password}
            node = stack.enter_context(Process("-c", "proxy.yaml", folder=tmp_path, environ=variables))
            nodes.append(node)
            assert node.address()[0] == hosts[address]
            client = stack.enter_context(dial((hosts[address], int(port)), ssl=trusting))
            assert client.receive() == CONNECTED
            client.log_in("momentum").subscribe(trades=["AAPL"])
            wait_for(lambda client=client: client.receive() and client.data)  # type: ignore[misc]
        assert "cluster.leads" in nodes[0].text
        assert "cluster.follows" in nodes[1].text
        assert f"wss://{hosts[addresses[0]]}:" in nodes[1].text
        warnings = [event["warning"] for event in nodes[0].events if event["event"] == "proxy.config"]
        assert [warning for warning in warnings if "cluster" in warning] == []


VARIABLES: Mapping[str, str] = {
    "ALPACA_PROXY_ADMIN_TOKEN": "t" * 32,
    "CLUSTER_SECRET": "s" * 32,
    "CLUSTER_REDIS_PASSWORD": "p",
}


def test_the_configuration_of_several_machines_is_valid(tmp_path: Path) -> None:
    text = blocks(PAGE, "yaml")[1]
    text = text.replace("  tls: {cert: node.crt, key: node.key}\n", "").replace("  ca: node.crt\n", "")
    text = text.replace("wss://", "ws://").replace("listen:\n", "listen:\n  insecure: true\n", 1)
    text += "accounts:\n  a: {key: k, secret: s}\nclients:\n  a: {key: a, secret: b, allow: {iex: '*'}}\n"
    config = configuration.parse(text, "cluster.md", {**VARIABLES, "NODE_ADDRESS": "10.0.0.1"}, tmp_path)
    assert config.cluster is not None
    assert (config.cluster.url, str(config.cluster.listen)) == ("ws://10.0.0.1:8767", "10.0.0.1:8767")


def test_the_command_for_the_user_of_redis_is_the_registrys_rule(tmp_path: Path) -> None:
    [shown] = [text for text in blocks(PAGE, "sh") if text.startswith("redis-cli")]
    words = shlex.split(shown.replace("\\\n", ""))
    assert words[:6] == ["redis-cli", "ACL", "SETUSER", "alpaca-proxy", "on", ">PASSWORD"]
    assert " ".join(words[6:]) == ACL
    with RedisServer() as redis:
        assert redis.cli(*words[1:]) == "OK"
        registry = Registry(redis.url.replace("://", "://alpaca-proxy:PASSWORD@"))
        registry.announce("n", "v")
        assert registry.nodes() == {"n": "v"}
        registry.close()


def test_the_events_of_the_page_are_those_of_the_log() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text("utf-8")
    named = set(re.findall(r"`((?:cluster|node|upstream|gateway)\.[a-z_]+)`", PAGE.read_text("utf-8")))
    others = {f"cluster.{name}" for name in configuration.schema()["$defs"]["Cluster"]["properties"]} | {"cluster.yaml"}
    assert {event for event in named - others if f"`{event}`" not in operations} == set()
