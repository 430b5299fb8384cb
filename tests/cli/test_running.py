"""`status` and `healthcheck`: what they say of a proxy that runs, of one that does not, and of something else there."""

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

Start = Callable[..., Harness]

ROOT = Path(__file__).parent.parent.parent
CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*"}}
  beta: {key: beta, secret: beta, allow: {iex: {trades: [AAPL]}}}
"""
BROKEN = """
accounts: {main: {key: "${NO_SUCH_VARIABLE}", secret: canary}}
clients: somebody is typing here
"""


@contextmanager
def answering(body: bytes, code: str = "200 OK") -> Iterator[int]:
    """Something that answers every request so; its port."""

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
    """What these verbs need of a configuration; the rest of the file is not even right."""
    return f"admin: {{port: {proxy.gateway.admin.address[1]}{more}}}{BROKEN}"


def row(said: str, first: str) -> list[str]:
    """The cells of the table's row that begins so."""
    [found] = [line for line in said.splitlines() if line.startswith(first)]
    return found.split()


# status


def test_before_anybody_came(start: Start, write: Write, call: Call) -> None:
    said = call("status", "-c", write(admin_of(start(CLIENTS))))
    assert (said.code, said.err) == (0, "")
    assert re.match(r"alpaca-proxy 1\.0\.0: serving, ready, up \d+ s, outboxes 0 bytes of 256\.0 MiB\n", said.out)
    assert "No client has connected yet." in said.out


def test_feeds_and_clients(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    alpha, beta = proxy.client("alpha"), proxy.client("beta")
    alpha.subscribe(trades=["AAPL", "MSFT"], quotes=["*"])
    beta.subscribe(trades=["AAPL"])
    last = proxy.publish("iex", "AAPL", 1500)
    alpha.numbers("AAPL", last)
    beta.numbers("AAPL", last)
    said = call("status", "-c", write(admin_of(proxy))).out
    feed = row(said, "main/iex")
    assert feed[1] == "live"
    assert "1,500" in feed
    assert feed[-2:] == ["3", "1"]  # topics, connects
    assert row(said, "alpha")[:4] == ["alpha", "iex", "1", "3"]
    assert row(said, "beta")[:4] == ["beta", "iex", "1", "1"]
    assert "1,500" in row(said, "alpha")
    assert "\x1b" not in said


def test_trouble_is_told(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    proxy.client("alpha").subscribe(trades=["AAPL"])
    proxy.simulator.refuse_upgrade("iex", 502)
    proxy.simulator.drop("iex")
    wait_for(lambda: "502" in proxy.upstream().last_error)
    said = call("status", "-c", write(admin_of(proxy)))
    assert said.code == 0
    assert ": serving, not ready, " in said.out
    assert row(said.out, "main/iex")[1] in ("waiting", "connecting")
    assert "HTTP 502 in answer to the upgrade" in said.out
    assert " warning upstream.lost account=main feed=iex " in said.out


def test_words_of_others_cannot_steer_the_terminal(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    proxy.client("alpha").subscribe(trades=["AAPL"])
    proxy.upstream().last_error = "bad\x1b[2J\nnews"
    proxy.upstream().phase = Phase.WAITING
    said = call("status", "-c", write(admin_of(proxy))).out
    proxy.upstream().phase = Phase.LIVE
    assert "bad\ufffd[2J news" in said
    assert "\x1b" not in said


def test_json_is_what_the_proxy_says(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    proxy.client("beta").subscribe(trades=["AAPL"])
    said = call("status", "--json", "-c", write(admin_of(proxy)))
    document = json.loads(said.out)
    assert said.code == 0
    assert document["version"] == 1
    assert document["clients"][0]["client"] == "beta"
    assert "history" in document


def test_the_token_is_sent_and_never_shown(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    proxy.gateway.admin.permit("canary-token", ())
    assert call("status", "-c", write(admin_of(proxy, ", token: canary-token"))).code == 0
    refused = call("status", "-c", write(admin_of(proxy, ", token: canary-other")))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(
        f"the proxy at http://127.0.0.1:{proxy.gateway.admin.address[1]} refuses the admin token"
    )
    assert "canary" not in refused.err


def test_every_address_is_reached_by_the_nearest(start: Start, write: Write, call: Call) -> None:
    """Nobody can connect to 0.0.0.0, and a host name of one's own need not be listed in admin.hosts."""
    proxy = start(CLIENTS)
    for host in ("0.0.0.0", "localhost"):
        assert call("status", "-c", write(admin_of(proxy, f", host: {host}, token: unused"))).code == 0


@pytest.mark.parametrize("verb", ["status", "healthcheck"])
def test_no_proxy_is_one_sentence(write: Write, call: Call, verb: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    path = write(f"admin: {{port: {port}}}{BROKEN}")
    said = call(verb, "-c", path)
    assert (said.code, said.out) == (1, "")
    assert said.err == f"no proxy is running at http://127.0.0.1:{port}; start it with -c {path}\n"


@pytest.mark.parametrize("verb", ["status", "healthcheck"])
def test_a_proxy_that_does_not_answer(write: Write, call: Call, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """After a second it is said what is waited for; the wait has an end."""
    monkeypatch.setattr(running, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(running, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said = call(verb, "-c", write(f"admin: {{port: {silent.getsockname()[1]}}}"))
    assert (said.code, said.out) == (1, "")
    waiting, sentence = said.err.splitlines()
    assert waiting == f"waiting for the proxy at {place} to answer"
    assert sentence.startswith(f"no proxy answers at {place} (")


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"[]", b"null", b'"text"', b"{}", b'{"feeds": 3}', b"\xff\xfe", b'{"ready": {}, "feeds": [1]}'],
)
def test_something_else_has_the_address(write: Write, call: Call, body: bytes) -> None:
    with answering(body) as port:
        said = call("status", "-c", write(f"admin: {{port: {port}}}"))
    assert (said.code, said.out) == (1, "")
    assert "no alpaca-proxy of this version" in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("admin", "sentence"),
    [
        ("{port: 0}", ":1:15: admin.port: is 0, any free port, so nobody can know which; give it a number"),
        ("{port: eight}", ":1:15: admin.port: should be a number"),
        ('{token: "${NO_SUCH_VARIABLE}"}', ":1:16: admin.token: the environment variable NO_SUCH_VARIABLE is not set"),
    ],
)
@pytest.mark.parametrize("verb", ["status", "healthcheck"])
def test_an_admin_section_that_cannot_work(write: Write, call: Call, admin: str, sentence: str, verb: str) -> None:
    path = write(f"admin: {admin}{BROKEN}")
    said = call(verb, "-c", path)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(f"{path}{sentence}")
    assert len(said.err.splitlines()) == 1


def test_watching_goes_on_until_ctrl_c(start: Start, write: Write, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.01)
    proxy = start(CLIENTS)
    path = write(admin_of(proxy))
    main = gevent.getcurrent()
    gevent.spawn_later(0.3, main.throw, KeyboardInterrupt)
    said = call("status", "--watch", "--json", "-c", path)
    assert said.code == 0
    assert len({json.loads(line)["uptime"] for line in said.out.splitlines()}) > 1


def test_watching_a_proxy_that_goes_away(
    start: Start, write: Write, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.01)
    proxy = start(CLIENTS)
    path = write(admin_of(proxy))
    gevent.spawn_later(0.1, proxy.gateway.admin.stop)
    said = call("status", "--watch", "-c", path)
    assert said.code == 1
    assert said.out.count(": serving, ready, ") >= 1
    assert said.err.startswith("no proxy ")


def test_a_real_ctrl_c_ends_the_watch_without_a_word(start: Start, write: Write) -> None:
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


def test_ready_is_exit_0_and_not_ready_exit_1(start: Start, write: Write, call: Call) -> None:
    proxy = start(CLIENTS)
    path = write(admin_of(proxy))
    assert call("healthcheck", "-c", path) == call("healthcheck", "-c", path)
    assert call("healthcheck", "-c", path).out == "ready\n"
    proxy.client("alpha").subscribe(trades=["AAPL"])
    proxy.simulator.refuse_upgrade("iex", 502)
    proxy.simulator.drop("iex")
    wait_for(lambda: "502" in proxy.upstream().last_error)
    said = call("healthcheck", "-c", path)
    assert said.code == 1
    assert said.out.startswith("main/iex ")
