"""`reload`: what the running proxy changed, or why it changed nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.cli import reload
from proxy.cli.reload import Reload
from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.observe.process import start_ticks
from tests.cli.conftest import Call, Write
from tests.cli.test_running import answering
from tests.harness import ACCOUNT, CONFIG, Harness, Process, certificate
from tests.ports import free_port

Start = Callable[..., Harness]

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: {trades: [AAPL, MSFT]}}}
  beta: {key: beta, secret: canary-beta, allow: {iex: "*"}}
"""


@dataclass
class Reloadable:
    """A running proxy that reads `path` again at SIGHUP; its admin port is in the file."""

    proxy: Harness
    path: Path

    def change(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))


@pytest.fixture
def running(start: Start, write: Write) -> Iterator[Reloadable]:
    port = free_port()
    proxy = start(CLIENTS, config={"admin_port": port})
    text = CONFIG.format(
        clients=CLIENTS,
        accounts=ACCOUNT.format(url=proxy.simulator.url),
        listen="",
        admin="",
        admin_port=port,
        more="",
    )
    path = write(text)

    def read() -> Config:
        return configuration.load(path, os.environ)

    proxy.gateway._read = read
    with proxy.gateway.signals():
        yield Reloadable(proxy, path)


def test_nothing_changed(running: Reloadable, call: Call) -> None:
    result = call("reload", "-c", running.path)
    assert (result.code, result.out, result.err) == (0, "nothing changed\n", "")


def test_the_changes_are_shown_and_in_effect(running: Reloadable, call: Call) -> None:
    alpha = running.proxy.client("alpha")
    alpha.subscribe(trades=["AAPL", "MSFT"])
    running.change("[AAPL, MSFT]", "[AAPL]")
    running.change("key: beta", "key: gamma")
    result = call("reload", "-c", running.path)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "client beta: key changed, its sessions are closed",
        "client alpha: changed, its sessions continue under the new rules",
    ]
    assert alpha.answer()[0]["trades"] == ["AAPL"]


def test_problems_change_nothing(running: Reloadable, call: Call) -> None:
    running.change("secret: canary-beta", "secrets: canary-beta")
    for _ in range(2):  # the same result twice
        result = call("reload", "-c", running.path)
        assert (result.code, result.out) == (1, "")
        *problems, last = result.err.splitlines()
        assert last == "nothing was reloaded"
        assert all(problem.startswith(f"{running.path}:9:") for problem in problems)
        assert 'clients.beta.secrets: unknown key; did you mean "secret"?' in result.err
        assert "canary" not in result.err
    state = running.proxy.gateway.snapshot().reload
    assert (state.count, state.ok, state.plan, len(state.problems)) == (2, False, (), len(problems))
    running.change("secrets: ", "secret: ")
    assert call("reload", "-c", running.path).code == 0
    assert running.proxy.gateway.snapshot().reload.applied_at > state.applied_at


def test_a_syntax_error_is_shown_with_its_place(running: Reloadable, call: Call) -> None:
    running.change("allow: {iex: {trades", "allow: {iex: }{trades")
    result = call("reload", "-c", running.path)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"{running.path}:8:")


def test_a_setting_that_takes_a_restart(running: Reloadable, call: Call) -> None:
    running.change("listen: {port: 0", "listen: {port: 9")
    result = call("reload", "-c", running.path)
    assert (result.code, result.out) == (1, "")
    assert result.err == "listen.port changed: restart to apply it\nnothing was reloaded\n"


def test_an_internal_error_is_not_a_success(running: Reloadable, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.proxy.gateway, "_apply", lambda *_: 1 / 0)
    result = call("reload", "-c", running.path)
    assert result.code == 1
    assert result.err.startswith("an internal error; the log has its traceback\n")
    running.proxy.bugs.clear()


def test_a_process_of_another_user(running: Reloadable, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    result = call("reload", "-c", running.path)
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"the proxy (process {os.getpid()}) belongs to another user; run this as that user, or as root\n"
    )


def test_a_system_without_sighup(running: Reloadable, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patches:
        patches.delattr(signal, "SIGHUP")
        result = call("reload", "-c", running.path)
    assert result.code == 1
    assert result.err == ("this system has no SIGHUP, so nothing can be reloaded; restart the proxy to apply changes\n")


def test_an_admin_token_that_the_proxy_does_not_have(running: Reloadable, call: Call) -> None:
    running.change("admin: {", "admin: {token: canary-new, ")
    running.proxy.gateway.admin._token = b"canary-old"
    result = call("reload", "-c", running.path)
    assert result.code == 1
    assert " refuses the admin token of " in result.err
    assert "canary" not in result.err


@pytest.mark.slow
def test_a_process_with_a_renewed_certificate(tmp_path: Path, write: Write, call: Call) -> None:
    """New connections get the renewed certificate at once."""
    cert, key = certificate(tmp_path)
    port = free_port()
    text = CONFIG.format(
        clients=CLIENTS,
        accounts="  main: {key: key, secret: secret}",
        listen=f", tls: {{cert: {cert}, key: {key}}}",
        admin="",
        admin_port=port,
        more="",
    )
    path = write(text)
    with Process("-c", str(path), folder=tmp_path) as process:
        address = process.address()
        process.address("proxy.admin")
        old = certificate_at(address)
        certificate(tmp_path)
        result = call("reload", "-c", path)
        assert (result.code, result.err) == (0, "")
        assert re.fullmatch(
            r"listen\.tls: certificate renewed, valid until \d{4}-\d\d-\d\d \d\d:\d\d UTC\n", result.out
        )
        assert certificate_at(address) != old
        process.popen.terminate()
        assert process.end() == 0


def certificate_at(address: tuple[str, int]) -> bytes | None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(address, 10) as plain, context.wrap_socket(plain) as secured:
        return secured.getpeercert(binary_form=True)


# Which process gets the signal


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that would have been sent a signal; none is sent."""
    pids: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: pids.append(pid))
    monkeypatch.setattr(reload, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(reload, "QUIET_SECONDS", 0.0)
    return pids


def document(pid: int, pid_start: int | None, **more: object) -> bytes:
    state = {"count": 3, "running": False, "ok": True, "plan": [], "problems": [], **more}
    return json.dumps({"pid": pid, "pid_start": pid_start, "reload": state}).encode()


@pytest.mark.parametrize(
    ("pid", "pid_start"),
    [(1, None), (1, 3), (0, None), (-1, None), (os.getpid(), 3), (1, -1)],
    ids=["first, unknown", "first of a container", "a group", "all", "an id that is used again", "first, other start"],
)
def test_a_process_elsewhere_gets_no_signal(
    write: Write, call: Call, signalled: list[int], pid: int, pid_start: int | None
) -> None:
    with answering(document(pid, pid_start)) as port:
        result = call("reload", "-c", write(f"admin: {{port: {port}}}"))
    assert signalled == []
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"the proxy at http://127.0.0.1:{port} is not a process of this machine or container (its process id there is "
        f"{pid}); run `reload` there, or send that process SIGHUP\n"
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_reload_that_does_not_end(write: Write, call: Call, signalled: list[int], known: bool) -> None:
    """Also where the system does not tell when a process was started."""
    pid = os.getpid()
    with answering(document(pid, start_ticks(pid) if known else None)) as port:
        result = call("reload", "-c", write(f"admin: {{port: {port}}}"))
    assert signalled == [pid]
    assert result.code == 1
    assert result.err.splitlines() == [
        f"waiting for the proxy at http://127.0.0.1:{port} to read its configuration",
        "the reload has not ended within 0 s; the proxy's log will have its result",
    ]


def test_a_reload_that_is_under_way_does_not_count(
    write: Write, call: Call, signalled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have read the file before it was changed."""
    pid = os.getpid()

    def state(count: int, running: bool, line: str) -> Reload:
        return Reload(pid, start_ticks(pid), count, running, True, [line], [])

    answers = iter([state(3, True, "old"), state(3, True, "old"), state(4, True, "stale"), state(5, False, "new")])
    monkeypatch.setattr(reload, "_fetch", lambda proxy: next(answers))
    assert call("reload", "-c", write("admin: {port: 1}")).out == "new\n"


def test_an_answer_without_the_state_of_reloads(write: Write, call: Call, signalled: list[int]) -> None:
    with answering(b'{"version": 1, "ready": true}') as port:
        result = call("reload", "-c", write(f"admin: {{port: {port}}}"))
    assert (result.code, signalled) == (1, [])
    assert "not an alpaca-proxy of this version" in result.err


def test_the_start_of_a_process() -> None:
    """Read once more after a moment, it is the same; a process that does not exist has none."""
    start = start_ticks(os.getpid())
    time.sleep(0.02)
    assert start == start_ticks(os.getpid())
    assert start_ticks(2**30) is None
