"""`status` and `healthcheck` with a proxy, without one, and with other servers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import pytest
from gevent.pywsgi import WSGIServer

from proxy.alpaca.client_protocol import Phase
from proxy.cli import running, status
from tests.cli.conftest import Call, Write
from tests.harness import Harness, wait_for
from tests.ports import free_port

Start = Callable[..., Harness]

ROOT = Path(__file__).parent.parent.parent
CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*"}}
  beta: {key: beta, secret: beta, allow: {iex: {trades: [AAPL]}}}
"""
BROKEN = """
accounts: {main: {key: "${NO_SUCH_VARIABLE}", secret: canary}}
clients: incomplete text
"""


@contextmanager
def answering(body: bytes, code: str = "200 OK") -> Iterator[int]:
    """Run a server that gives every request this response; yield its port."""

    def application(environ: dict[str, str], start_response: Callable[..., object]) -> list[bytes]:
        start_response(code, [("Content-Length", str(len(body)))])
        return [body]

    server = WSGIServer(("127.0.0.1", 0), application, log=None)
    server.start()
    try:
        yield server.server_port
    finally:
        server.stop()


def admin_of(proxy: Harness, more: str = "") -> str:
    """Return a configuration whose admin section is valid and the rest invalid."""
    return f"admin: {{port: {proxy.gateway.admin.address[1]}{more}}}{BROKEN}"


def row(output: str, first: str) -> list[str]:
    """Return the cells of the table row that starts with `first`."""
    [line] = [line for line in output.splitlines() if line.startswith(first)]
    return line.split()


# status


def test_status_without_clients(start: Start, write: Write, call: Call) -> None:
    result = call("status", "-c", write(admin_of(start(CLIENTS))))
    assert (result.code, result.err) == (0, "")
    assert re.match(r"alpaca-proxy 1\.0\.0: serving, ready, up \d+ s, outboxes 0 bytes of 256\.0 MiB\n", result.out)
    assert "No client has connected yet." in result.out
    assert "Not connected: alpha (never since the start), beta (never since the start)\n" in result.out


def test_status_of_feeds_and_clients(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    alpha, beta = proxy.client("alpha"), proxy.client("beta")
    alpha.subscribe(trades=["AAPL", "MSFT"], quotes=["*"])
    beta.subscribe(trades=["AAPL"])
    last = proxy.publish("iex", "AAPL", 1500)
    alpha.numbers("AAPL", last)
    beta.numbers("AAPL", last)
    result = call("status", "-c", write(admin_of(proxy))).out
    feed = row(result, "main/iex")
    assert feed[1] == "live"
    assert "1,500" in feed
    assert feed[-2:] == ["3", "1"]  # topics, connects
    assert row(result, "alpha")[:4] == ["alpha", "iex", "1", "3"]
    assert row(result, "beta")[:4] == ["beta", "iex", "1", "1"]
    assert "1,500" in row(result, "alpha")
    assert "\x1b" not in result


def test_status_of_a_failing_feed(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    proxy.client("alpha").subscribe(trades=["AAPL"])
    proxy.simulator.refuse_upgrade("iex", 502)
    proxy.simulator.drop("iex")
    wait_for(lambda: "502" in proxy.upstream().last_error)
    result = call("status", "-c", write(admin_of(proxy)))
    assert result.code == 0
    assert ": serving, not ready, " in result.out
    assert row(result.out, "main/iex")[1] in ("waiting", "connecting")
    assert "HTTP 502 in answer to the upgrade" in result.out
    assert " warning upstream.lost account=main feed=iex " in result.out


def test_control_characters_are_replaced(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    proxy.client("alpha").subscribe(trades=["AAPL"])
    source = proxy.source()
    assert source is not None
    proxy.upstream().last_error = "bad\x1b[2J\nnews"
    source.phase = Phase.WAITING
    result = call("status", "-c", write(admin_of(proxy))).out
    source.phase = Phase.LIVE
    assert "bad\ufffd[2J news" in result
    assert "\x1b" not in result


def test_json_is_the_document_of_the_proxy(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    proxy.client("beta").subscribe(trades=["AAPL"])
    result = call("status", "--json", "-c", write(admin_of(proxy)))
    document = json.loads(result.out)
    assert result.code == 0
    assert document["version"] == 1
    assert document["clients"][0]["client"] == "beta"
    assert "history" in document


def test_the_token_is_sent_and_never_printed(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS, config={"admin": "token: canary-token"})
    assert call("status", "-c", write(admin_of(proxy, ", token: canary-token"))).code == 0
    refused = call("status", "-c", write(admin_of(proxy, ", token: canary-other")))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(
        f"the proxy at http://127.0.0.1:{proxy.gateway.admin.address[1]} refuses the admin token"
    )
    assert "canary" not in refused.err


def test_unspecified_address_and_host_name(start: Start, write: Write, call: Call) -> None:
    """The verb connects to loopback, with a Host header that every proxy accepts."""
    proxy = start(CLIENTS)
    for host in ("0.0.0.0", "localhost"):
        assert call("status", "-c", write(admin_of(proxy, f", host: {host}, token: unused"))).code == 0


@pytest.mark.parametrize("verb", ["status", "healthcheck", "reload"])
def test_no_proxy(write: Write, call: Call, verb: str) -> None:
    port = free_port()
    path = write(f"admin: {{port: {port}}}{BROKEN}")
    result = call(verb, "-c", path)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"no proxy is running at http://127.0.0.1:{port}; start it with -c {path}\n"


@pytest.mark.parametrize("verb", ["status", "healthcheck", "reload"])
def test_a_proxy_that_does_not_answer(write: Write, call: Call, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """A remark names what the verb waits for; the wait ends."""
    monkeypatch.setattr(running, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(running, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = call(verb, "-c", write(f"admin: {{port: {silent.getsockname()[1]}}}"))
    assert (result.code, result.out) == (1, "")
    waiting, sentence = result.err.splitlines()
    assert waiting == f"waiting for the proxy at {url} to answer"
    assert sentence.startswith(f"no proxy answers at {url} (")


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"[]", b"null", b'"text"', b"{}", b'{"feeds": 3}', b"\xff\xfe", b'{"ready": {}, "feeds": [1]}'],
)
def test_another_server_at_the_address(write: Write, call: Call, body: bytes) -> None:
    with answering(body) as port:
        result = call("status", "-c", write(f"admin: {{port: {port}}}"))
    assert (result.code, result.out) == (1, "")
    assert "not an alpaca-proxy of this version" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("admin", "sentence"),
    [
        ("{port: 0}", ":1:15: admin.port: is 0 (any free port), so the address is unknown; set a port number"),
        ("{port: eight}", ":1:15: admin.port: should be a number"),
        ('{token: "${NO_SUCH_VARIABLE}"}', ":1:16: admin.token: the environment variable NO_SUCH_VARIABLE is not set"),
    ],
)
@pytest.mark.parametrize("verb", ["status", "healthcheck", "reload"])
def test_invalid_admin_section(write: Write, call: Call, admin: str, sentence: str, verb: str) -> None:
    path = write(f"admin: {admin}{BROKEN}")
    result = call(verb, "-c", path)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"{path}{sentence}")
    assert len(result.err.splitlines()) == 1


def test_watch_runs_until_ctrl_c(start: Start, write: Write, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.01)
    proxy = start(CLIENTS)
    path = write(admin_of(proxy))
    main = gevent.getcurrent()
    gevent.spawn_later(0.3, main.throw, KeyboardInterrupt)
    result = call("status", "--watch", "--json", "-c", path)
    assert result.code == 0
    assert len({json.loads(line)["uptime"] for line in result.out.splitlines()}) > 1


def test_watch_fits_80_columns(start: Start, write: Write, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.01)
    monkeypatch.setenv("COLUMNS", "80")
    proxy = start(CLIENTS)
    for _ in range(2):
        proxy.client("alpha").subscribe(trades=["AAPL", "MSFT"], quotes=["*"])
    proxy.simulator.refuse_upgrade("iex", 502)
    proxy.simulator.drop("iex")
    wait_for(lambda: "502" in proxy.upstream().last_error)
    gevent.spawn_later(0.1, gevent.getcurrent().throw, KeyboardInterrupt)
    result = call("status", "--watch", "-c", write(admin_of(proxy)))
    assert "HTTP 502 in answer to the upgrade" in result.out
    assert max(map(len, result.out.splitlines())) < 80
    assert max(map(len, call("status", "-c", write(admin_of(proxy))).out.splitlines())) > 80  # for other programs


def test_watch_ends_when_the_proxy_stops(
    start: Start, write: Write, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.01)
    proxy = start(CLIENTS)
    path = write(admin_of(proxy))
    gevent.spawn_later(0.1, proxy.gateway.admin.stop)
    result = call("status", "--watch", "-c", path)
    assert result.code == 1
    assert result.out.count(": serving, ready, ") >= 1
    assert result.err.startswith("no proxy ")


def test_sigint_ends_the_watch_without_output(start: Start, write: Write) -> None:
    path = write(admin_of(start(CLIENTS)))
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "proxy", "status", "--watch", "-c", str(path)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("alpaca-proxy ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")


# healthcheck


def test_healthcheck_exit_status(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    path = write(admin_of(proxy))
    assert call("healthcheck", "-c", path) == call("healthcheck", "-c", path)
    assert call("healthcheck", "-c", path).out == "ready\n"
    proxy.client("alpha").subscribe(trades=["AAPL"])
    proxy.simulator.refuse_upgrade("iex", 502)
    proxy.simulator.drop("iex")
    wait_for(lambda: "502" in proxy.upstream().last_error)
    result = call("healthcheck", "-c", path)
    assert result.code == 1
    assert result.out.startswith("main/iex ")
    alive = call("healthcheck", "--live", "-c", path)
    assert (alive.code, alive.out, alive.err) == (0, "ok\n", "")


def test_healthcheck_live_fails_without_a_proxy(write: Write, call: Call) -> None:
    result = call("healthcheck", "--live", "-c", write(f"admin: {{port: {free_port()}}}"))
    assert result.code == 1
    assert result.err.startswith("no proxy is running at ")
