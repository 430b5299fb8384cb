"""Runs of the program: error messages, exit codes, and shutdown.

Verbs that end by themselves are called in this process; those that run until a signal have a process of their own.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config import model as configuration
from proxy.downstream.client_session import UNRESPONSIVE_SECONDS
from proxy.observe.version import __version__
from proxy.simulator import AccountPlan, Simulator
from tests.harness import CONNECTED, Process, Wire, dial, trade, wait_for
from tests.ports import free_port

CONFIG = """\
listen: {port: 0}
admin: {port: 0}
accounts:
  main: {key: key, secret: secret, data_url: "URL", trading_url: "URL"}
clients:
  alpha: {key: alpha, secret: a-canary, allow: {iex: {trades: [AAPL], bars: "*"}, crypto: "*"}}
"""

Call = Callable[..., Any]

# gevent leaves a socket that it could not bind to the garbage collector; harmless in a process that ends.
leaves_a_socket = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def alpaca() -> Iterator[Simulator]:
    """Simulator that keeps the slot after a loss without a close frame, as Alpaca."""
    with Simulator(plan=AccountPlan(ghost_seconds=90)) as simulator:
        yield simulator


@pytest.fixture
def file(tmp_path: Path, alpaca: Simulator) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text(CONFIG.replace("URL", alpaca.url))
    path.chmod(0o600)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_proxy(file: Path, alpaca: Simulator, number: signal.Signals) -> None:
    """Pending data is delivered, and both sides get close frames.

    Clients are closed with 1001; the close frame to Alpaca frees the connection slot.
    """
    with Process("-c", str(file), folder=file.parent) as process, dial(process.address()) as client:
        assert client.receive() == CONNECTED
        client.log_in("alpha", "a-canary").subscribe(trades=["AAPL"])
        alpaca.publish("iex", [trade("AAPL", 1)])
        assert client.receive() == [trade("AAPL", 1)]
        process.popen.send_signal(number)
        assert client.closed() == (1001, "the proxy is shutting down")
        assert process.end() == 0
        names = [event["event"] for event in process.events]
        assert names[0] == "proxy.started"
        assert names[-3:] == ["gateway.draining", "session.closed", "gateway.stopped"]
    assert alpaca.slots._ghost_count(("iex", "key")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_right_after_the_port_opens(file: Path, number: signal.Signals) -> None:
    """Once a port is open, SIGHUP must not end the proxy and SIGTERM must drain it."""
    address = "127.0.0.1", free_port()
    file.write_text(file.read_text().replace("admin: {port: 0}", f"admin: {{port: {address[1]}}}"))
    with Process("-c", str(file), folder=file.parent) as process, socket.socket() as probe:
        wait_for(lambda: probe.connect_ex(address) == 0)
        process.popen.send_signal(number)
        if number == signal.SIGHUP:
            wait_for(lambda: '"nothing changed"' in process.text or process.popen.poll() is not None)
            process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0
        assert process.events[-1]["event"] == "gateway.stopped"


@pytest.mark.slow
def test_a_second_signal_ends_the_drain(file: Path) -> None:
    """A second signal skips the five seconds for a client that does not close."""
    with Process("-c", str(file), folder=file.parent) as process:
        wire = Wire(process.address())
        assert b"connected" in wire.receive()[1]
        process.popen.send_signal(signal.SIGTERM)
        assert wire.receive()[0] == 8
        start = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0
        assert time.monotonic() - start < 3
        wire.socket.close()


@pytest.mark.slow
def test_a_burst_is_flushed_before_the_close(file: Path, alpaca: Simulator) -> None:
    with Process("-c", str(file), folder=file.parent) as process, dial(process.address()) as client:
        client.receive()
        client.log_in("alpha", "a-canary").subscribe(trades=["AAPL"])
        alpaca.publish_trades("iex", "AAPL", 3000)
        client.receive()
        process.popen.send_signal(signal.SIGTERM)
        alpaca.publish_trades("iex", "AAPL", 3000)
        assert client.closed()[0] == 1001
        numbers = [message["i"] for message in client.data]
        assert numbers == list(range(1, len(numbers) + 1))
        assert process.end() == 0


@pytest.mark.slow
def test_the_port_can_be_reused_at_once(file: Path) -> None:
    """A second run can listen on the port of the first at once."""
    file.write_text(file.read_text().replace("listen: {port: 0}", f"listen: {{port: {free_port()}}}"))
    for _ in range(2):
        with Process("-c", str(file), folder=file.parent) as process, dial(process.address()) as client:
            assert client.receive() == CONNECTED
            process.popen.send_signal(signal.SIGTERM)
            assert process.end() == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "proxy.yaml: does not exist"),
        (b"", "proxy.yaml:1:1: the file is empty"),
        (b"# nothing but a comment\n", "proxy.yaml:1:1: the file is empty"),
        (b"accounts: {main: [\n", "proxy.yaml:2:1: "),
        (b"accounts: \xff\xfe\n", "proxy.yaml"),
        (
            CONFIG.replace("secret: secret", 'secret: "${NO_SUCH}"').encode(),
            "proxy.yaml:4:28: accounts.main.secret: the",
        ),
        (CONFIG.replace("listen:", "listne:").encode(), 'did you mean "listen"?'),
    ],
    ids=["missing", "empty", "comment", "broken", "not utf-8", "unset variable", "unknown key"],
)
def test_invalid_configurations(tmp_path: Path, call: Call, content: bytes | None, sentence: str) -> None:
    """A run exits with 78, `check` with 1; their output is equal.

    78 keeps systemd from restarting the proxy.
    """
    file = tmp_path / "proxy.yaml"
    if content is not None:
        file.write_bytes(content.replace(b"URL", b"ws://127.0.0.1:9"))
    ran, checked = call("-c", file), call("check", "-c", file)
    assert (ran.code, checked.code) == (78, 1)
    assert sentence in ran.err
    assert ran.err == checked.err
    assert ran.out == checked.out == ""
    assert len(ran.err.splitlines()) <= 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["keygen"],
        ["keygen", "é"],
        ["keygen", "two words"],
        ["demo", "--seconds", "soon"],
        ["demo", "--seconds", "nan"],
        ["demo", "--seconds=-1"],
        ["simulate", "--port", "99999"],
        ["simulate", "--port=-1"],
        ["simulate", "--drop", "soon"],
        ["simulate", "--refuse", "7"],
        ["simulate", "--stall", "lunch"],
        ["simulate", "--feeds", "nasdaq"],
        ["simulate", "--rate=-1"],
        ["simulate", "--symbol-limit", "0"],
    ],
    ids=" ".join,
)
def test_usage_errors(call: Call, arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.code == 2
    usage, *_, sentence = result.err.splitlines()
    assert usage.startswith("usage: alpaca-proxy")
    assert "error: " in sentence
    assert "_" not in sentence


def test_a_misspelt_verb_gets_a_proposal(call: Call) -> None:
    assert call("chek").err.endswith('error: argument VERB: unknown "chek"; did you mean "check"?\n')


def test_run_is_not_a_verb(call: Call) -> None:
    assert call("run", "-c", "x.yaml").err.endswith('unknown "run"; the proxy runs without a verb\n')


@pytest.mark.parametrize(
    "arguments", [["my.yaml"], ["check", "my.yaml"], ["status", "--json", "my.yaml"]], ids=" ".join
)
def test_a_configuration_without_the_option(call: Call, arguments: list[str]) -> None:
    assert call(*arguments).err.endswith("error: pass a configuration with -c, as in -c my.yaml\n")


@leaves_a_socket
@pytest.mark.parametrize("setting", ["listen", "admin"])
def test_a_port_in_use(file: Path, call: Call, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        file.write_text(file.read_text().replace(f"{setting}: {{port: 0}}", f"{setting}: {{port: {port}}}"))
        result = call("-c", file)
    assert result.code == 1
    assert result.err == (
        f"cannot listen on 127.0.0.1:{port} ({setting}): Address already in use; "
        f"stop what uses it, or change {setting}.port\n"
    )


def test_a_shared_port_in_use_by_a_program_that_does_not_share_it(file: Path, call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        file.write_text(file.read_text().replace("listen: {port: 0}", f"listen: {{port: {port}, reuse_port: true}}"))
        result = call("-c", file)
    assert result.code == 1
    assert result.err == (
        f"cannot listen on 127.0.0.1:{port} (listen): Address already in use; only processes of the same user that all "
        "have listen.reuse_port share it; stop what uses it, or change listen.port\n"
    )


@pytest.mark.slow
def test_processes_share_a_port(file: Path) -> None:
    """Each of them gets connections, each connection is served, and a reload leaves the port open."""
    port, text = free_port(), file.read_text()
    shared = f"listen: {{port: {port}, reuse_port: true}}"
    file.write_text(text.replace("listen: {port: 0}", shared))
    run = partial(Process, "-c", str(file), folder=file.parent)
    with ExitStack() as stack:
        nodes = [stack.enter_context(run()) for _ in range(2)]
        assert [node.address() for node in nodes] == [("127.0.0.1", port)] * 2
        nodes[0].popen.send_signal(signal.SIGHUP)
        wait_for(lambda: '"nothing changed"' in nodes[0].text)
        for _ in range(40):
            assert stack.enter_context(dial(("127.0.0.1", port))).receive() == CONNECTED
        counts = [status(node)["strangers"] for node in nodes]
        assert sum(counts) == 40
        assert all(counts), counts
        file.write_text(text.replace("listen: {port: 0}", f"listen: {{port: {port}}}"))
        with run() as third:
            assert third.end() == 1
            reason = "Address already in use; stop what uses it, or change listen.port"
            assert f"cannot listen on 127.0.0.1:{port} (listen): {reason}" in third.text
        for node in nodes:
            node.popen.send_signal(signal.SIGTERM)
            assert node.end(seconds=10) == 0


def status(process: Process) -> Any:
    connection = http.client.HTTPConnection(*process.address("proxy.admin"), timeout=5)
    connection.request("GET", "/status.json")
    document = json.loads(connection.getresponse().read())
    connection.close()
    return document


@leaves_a_socket
def test_an_address_of_another_machine(file: Path, call: Call) -> None:
    address = "192.0.2.1"  # reserved by RFC 5737
    file.write_text(file.read_text().replace("listen: {", f"listen: {{host: {address}, insecure: true, "))
    result = call("-c", file)
    assert result.code == 1
    assert result.err.startswith(f"cannot listen on {address}:0 (listen): Cannot assign requested address; change ")


def test_keygen_makes_a_client_that_can_log_in(tmp_path: Path, call: Call) -> None:
    printed = call("keygen", "mean-rev.2").out
    pairs = re.search(r"key +(\S+)\n +secret +(\S+)\n", printed)
    assert pairs is not None
    key, secret = pairs.groups()
    pasted = printed.partition("under clients:\n")[2]
    assert secret not in pasted
    [(name, entry)] = yaml.safe_load(pasted).items()
    assert (name, entry["key"]) == ("mean-rev.2", key)
    text = f"accounts: {{main: {{key: k, secret: s}}}}\nclients:\n{pasted}"
    directory = configuration.parse(text, "pasted", {}, tmp_path).directory
    assert directory.authenticate(key, secret) is not None
    assert directory.authenticate(key, secret[:-1]) is None
    again = call("keygen", "mean-rev.2").out
    assert key.startswith("mean-rev.2-")
    assert key not in again
    assert secret not in again


def test_path_of_the_configuration(file: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The path is -c, else the environment variable, else config/proxy.yaml."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("ALPACA_PROXY_CONFIG", str(file))
    assert call("check").code == 0
    assert "other.yaml: does not exist" in call("-c", "other.yaml", "check").err
    monkeypatch.setenv("ALPACA_PROXY_CONFIG", "")
    assert "config/proxy.yaml: does not exist" in call("check").err


def test_version(call: Call) -> None:
    result = call("--version")
    assert result.code == 0
    assert result.out.startswith(f"alpaca-proxy {__version__} (commit ")


@pytest.mark.slow
def test_closed_standard_output(file: Path) -> None:
    """`check | head -0` prints no error about the broken pipe."""
    with Process("check", "-c", str(file), folder=file.parent) as process:
        process.leave_unread("stdout")
        assert process.end() in (0, 1)


@pytest.mark.slow
@leaves_a_socket
def test_simulate(tmp_path: Path, call: Call) -> None:
    with Process("simulate", "--port", "0", folder=tmp_path) as process:
        wait_for(lambda: "Ctrl-C ends it." in process.text or process.popen.poll() is not None)
        printed = re.search(r"accounts: .*", process.text)
        assert printed is not None, process.text
        accounts = yaml.safe_load(printed[0])["accounts"]
        host, port = accounts["simulated"]["data_url"].removeprefix("ws://").split(":")
        with dial((host, int(port))) as client:
            assert client.receive() == CONNECTED
            client.log_in("key", "secret").subscribe(quotes=["AAPL"])
            assert client.gather(3)[0]["S"] == "AAPL"
        second = call("simulate", "--port", port)
        assert (second.code, second.err) == (
            1,
            f"cannot listen on port {port}: Address already in use; name another with --port\n",
        )
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    """The demo runs for longer than a ping may be unanswered."""
    seconds = UNRESPONSIVE_SECONDS + 3
    with Process("demo", "--seconds", f"{seconds}", folder=tmp_path) as process:
        assert process.end(seconds=seconds + 15) == 0, process.text
        assert re.search(r"^  status page +http://127\.0\.0\.1:\d+/$", process.text, re.MULTILINE)
        pattern = r"demo ok: momentum (\d+) messages, meanrev (\d+) messages, 1 upstream connection per feed"
        match = re.fullmatch(pattern, process.text.splitlines()[-1])
        assert match is not None
        assert all(int(count) > 0 for count in match.groups())
