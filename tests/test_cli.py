"""The command line as people meet it: real processes, their exit codes, and what they say when something is wrong."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from proxy import config as configuration
from proxy.simulator import Plan, Simulator
from proxy.version import __version__
from tests.harness import CONNECTED, Process, Wire, dial, trade, wait_for

CONFIG = """\
listen: {port: 0}
admin: {port: 0}
accounts:
  main: {key: key, secret: secret, data_url: "URL", trading_url: "URL"}
clients:
  alpha: {key: alpha, secret: a-canary, allow: {iex: {trades: [AAPL], bars: "*"}, crypto: "*"}}
"""


@pytest.fixture
def alpaca() -> Iterator[Simulator]:
    """Keeps the place of whoever leaves without a farewell, as the real one does."""
    with Simulator(plan=Plan(ghost_seconds=90)) as simulator:
        yield simulator


@pytest.fixture
def file(tmp_path: Path, alpaca: Simulator) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text(CONFIG.replace("URL", alpaca.url))
    path.chmod(0o600)
    return path


def said(*arguments: str, folder: Path, code: int, environ: dict[str, str] | None = None) -> str:
    """Runs it to its end, which must have this exit code; all that it printed."""
    with Process(*arguments, folder=folder, environ=environ or {}) as process:
        assert process.end(seconds=20) == code, process.text
        return process.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_ends_well_on_a_signal(file: Path, alpaca: Simulator, number: signal.Signals) -> None:
    """What is under way is delivered, clients are told 1001, and Alpaca is told farewell so that the place is free."""
    with Process("-c", str(file), folder=file.parent) as process, dial(process.address()) as client:
        assert client.hear() == CONNECTED
        client.log_in("alpha", "a-canary").subscribe(trades=["AAPL"])
        alpaca.publish("iex", [trade("AAPL", 1)])
        assert client.hear() == [trade("AAPL", 1)]
        process.popen.send_signal(number)
        assert client.closed() == (1001, "the proxy is shutting down")
        assert process.end() == 0
        names = [event["event"] for event in process.events]
        assert names[:4] == ["proxy.started", "proxy.listening", "proxy.admin", "session.authenticated"]
        assert names[-2:] == ["gateway.draining", "gateway.stopped"]
    assert alpaca.desk._haunted(("iex", "key")) == 0


def test_a_second_signal_ends_a_drain_at_once(file: Path) -> None:
    """A client that does not answer the close holds the drain up for five seconds; who asks twice does not wait."""
    with Process("-c", str(file), folder=file.parent) as process:
        wire = Wire(process.address())
        assert b"connected" in wire.hear()[1]
        process.popen.send_signal(signal.SIGTERM)
        assert wire.hear()[0] == 8
        began = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0
        assert time.monotonic() - began < 2
        wire.socket.close()


def test_a_burst_is_flushed_before_the_close(file: Path, alpaca: Simulator) -> None:
    with Process("-c", str(file), folder=file.parent) as process, dial(process.address()) as client:
        client.hear()
        client.log_in("alpha", "a-canary").subscribe(trades=["AAPL"])
        alpaca.publish_trades("iex", "AAPL", 5000)
        client.hear()
        process.popen.send_signal(signal.SIGTERM)
        alpaca.publish_trades("iex", "AAPL", 5000)
        assert client.closed()[0] == 1001
        numbers = [message["i"] for message in client.data]
        assert numbers == list(range(1, len(numbers) + 1))
        assert process.end() == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "proxy.yaml: does not exist"),
        (b"", "proxy.yaml:1:1: the file is empty"),
        (b"accounts: {main: [\n", "proxy.yaml:2:1: "),
        (b"accounts: \xff\xfe\n", "proxy.yaml"),
        (b"# nothing but a comment\n", "proxy.yaml: "),
        (
            CONFIG.replace("secret: secret", "secret: ${ALPACA_NO_SUCH}").encode(),
            "proxy.yaml:4:27: accounts.main.secret: ",
        ),
        (CONFIG.replace("listen:", "listne:").encode(), 'did you mean "listen"?'),
    ],
    ids=["missing", "empty", "broken", "not utf-8", "comment", "unset variable", "unknown key"],
)
def test_a_configuration_that_cannot_work(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    """78 for a run, so that systemd does not try for ever; 1 for `check`; the same sentences with the place."""
    if content is not None:
        (tmp_path / "proxy.yaml").write_bytes(content.replace(b"URL", b"ws://127.0.0.1:9"))
    ran = said("-c", "proxy.yaml", folder=tmp_path, code=78)
    assert sentence in ran
    assert len(ran.splitlines()) <= 3
    assert said("check", "-c", "proxy.yaml", folder=tmp_path, code=1) == ran


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["keygen"],
        ["keygen", "é"],
        ["keygen", "two words"],
        ["demo", "--seconds", "soon"],
        ["demo", "--seconds", "-1"],
        ["simulate", "--port", "99999"],
    ],
    ids=" ".join,
)
def test_usage(tmp_path: Path, arguments: list[str]) -> None:
    usage, *_, sentence = said(*arguments, folder=tmp_path, code=2).splitlines()
    assert usage.startswith("usage: alpaca-proxy")
    assert "error: " in sentence
    assert "_" not in sentence.removesuffix("underscores, 64 at most")


@pytest.mark.parametrize("setting", ["listen", "admin"])
def test_a_port_in_use(file: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        file.write_text(file.read_text().replace(f"{setting}: {{port: 0}}", f"{setting}: {{port: {port}}}"))
        said_ = said("-c", str(file), folder=file.parent, code=1)
    assert said_ == (
        f"cannot listen on 127.0.0.1:{port} ({setting}): Address already in use; "
        f"stop what uses it, or change {setting}.port"
    )


def test_keygen_makes_a_client_that_can_log_in(tmp_path: Path) -> None:
    printed = said("keygen", "mean-rev.2", folder=tmp_path, code=0)
    pairs = re.search(r"key +(\S+)\n +secret +(\S+)\n", printed)
    assert pairs is not None
    key, secret = pairs.groups()
    pasted = printed.partition("under clients:\n")[2]
    assert secret not in pasted
    [(name, entry)] = yaml.safe_load(pasted).items()
    assert (name, entry["key"]) == ("mean-rev.2", key)
    text = f"accounts: {{main: {{key: k, secret: s}}}}\nclients:\n{pasted}"
    directory = configuration.parse(text, "pasted", {}, tmp_path).directory()
    found = directory.authenticate(key, secret)
    assert found is not None
    assert found.allow.permits("iex", "trades", "AAPL")
    assert directory.authenticate(key, secret[:-1]) is None
    assert secret not in said("keygen", "mean-rev.2", folder=tmp_path, code=0)


def test_check_says_who_may_see_what_and_no_secret(file: Path) -> None:
    file.chmod(0o644)
    printed = said("check", "-c", str(file), folder=file.parent, code=0)
    assert "canary" not in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["alpha", "iex", "main", "trades", "AAPL"] in rows
    assert ["alpha", "crypto", "main", "*", "*"] in rows
    assert f"{file}: good" in printed
    assert "chmod 600" in printed


def test_where_the_configuration_is(file: Path, tmp_path: Path) -> None:
    """-c, else the environment, else config/proxy.yaml."""
    environ = {"ALPACA_PROXY_CONFIG": str(file)}
    assert f"{file}: good" in said("check", folder=tmp_path, code=0, environ=environ)
    assert "other.yaml: does not exist" in said("-c", "other.yaml", "check", folder=tmp_path, code=1, environ=environ)
    environ["ALPACA_PROXY_CONFIG"] = ""
    assert "config/proxy.yaml: does not exist" in said("check", folder=tmp_path, code=1, environ=environ)


def test_version_and_help(tmp_path: Path) -> None:
    assert said("--version", folder=tmp_path, code=0).startswith(f"alpaca-proxy {__version__} (commit ")
    listed = said("--help", folder=tmp_path, code=0)
    for verb in ("check", "demo", "simulate", "keygen"):
        assert f"    {verb} " in listed


def test_a_reader_that_has_left(file: Path) -> None:
    """`check | head -0`: no complaint about the broken pipe."""
    with Process("check", "-c", str(file), folder=file.parent) as process:
        assert process.popen.stdout is not None
        process.popen.stdout.close()
        process.popen.stdout = None
        assert process.end() in (0, 1)


def test_simulate_is_an_alpaca_to_develop_against(tmp_path: Path) -> None:
    with Process("simulate", "--port", "0", folder=tmp_path) as process:
        wait_for(lambda: "Ctrl-C ends it." in process.lines or process.popen.poll() is not None)
        accounts = yaml.safe_load(process.lines[1])["accounts"]
        host, port = accounts["simulated"]["data_url"].removeprefix("ws://").split(":")
        with dial((host, int(port))) as client:
            assert client.hear() == CONNECTED
            client.log_in("key", "secret").subscribe(quotes=["AAPL"])
            assert client.gather(3)[0]["S"] == "AAPL"
        taken = said("simulate", "--port", port, folder=tmp_path, code=1)
        assert taken == f"cannot listen on port {port}: Address already in use; name another with --port"
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0


def test_the_demo_proves_what_it_says(tmp_path: Path) -> None:
    printed = said("demo", "--seconds", "2", folder=tmp_path, code=0)
    counted = r"demo ok: momentum (\d+) messages, meanrev (\d+) messages, 1 upstream connection per feed"
    match = re.fullmatch(counted, printed.splitlines()[-1])
    assert match is not None
    assert all(int(count) > 0 for count in match.groups())
    assert "Traceback" not in printed


def test_nothing_is_left_behind(file: Path) -> None:
    """A second run may listen where the first did, at once."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    file.write_text(file.read_text().replace("listen: {port: 0}", f"listen: {{port: {port}}}"))
    for _ in range(2):
        with Process("-c", str(file), folder=file.parent) as process, dial(process.address()) as client:
            assert client.hear() == CONNECTED
            process.popen.send_signal(signal.SIGTERM)
            assert process.end() == 0


def test_the_module_and_the_interpreter_agree(tmp_path: Path) -> None:
    """-W error: nothing in the start is deprecated or left open."""
    with Process(
        "--version", folder=tmp_path, environ={"PYTHONWARNINGS": "error"}, stderr=subprocess.STDOUT
    ) as process:
        assert process.end() == 0
