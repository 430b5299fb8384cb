"""The plan of a reload from two configurations, and the log event of a real SIGHUP."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from proxy.config import model as configuration
from proxy.config.model import Config, certified
from proxy.config.reload_plan import make_plan
from tests.harness import Process, wait_for

BEFORE = """\
accounts:
  one: {key: PKAAAABBBB1111, secret: s1}
  two: {key: PKAAAABBBB2222, secret: s2}
clients:
  momentum: {key: momentum, secret: m1, account: one, allow: {iex: {trades: [AAPL, MSFT]}}}
  meanrev: {key: meanrev, secret: r1, account: one, allow: {iex: {quotes: ["*"]}}}
"""
CLUSTER = {
    "redis": "redis://127.0.0.1",
    "listen": "127.0.0.1:8767",
    "url": "ws://127.0.0.1:8767",
    "secret": "the-secret-of-the-cluster",
}


def read(text: str) -> Config:
    return configuration.parse(text, "proxy.yaml", {}, Path())


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("", "", ["nothing changed"]),
        ("[AAPL, MSFT]", "[AAPL]", ["client momentum: changed, its sessions continue under the new rules"]),
        ("secret: m1", "secret: m2", ["client momentum: secret changed, its sessions are closed"]),
        ("key: momentum", "key: mo", ["client momentum: key changed, its sessions are closed"]),
        (
            "  momentum: {",
            "  mo: {",
            ["client momentum: removed, its sessions are closed", "client mo: new"],
        ),
        ("secret: s1", "secret: s3", ["account one: changed, its feeds reconnect"]),
        (
            "accounts:",
            "listen: {port: 9}\naccounts:",
            ["listen.port changed: restart to apply it; nothing was reloaded"],
        ),
        (
            "accounts:",
            "listen: {reuse_port: true}\naccounts:",
            ["listen.reuse_port changed: restart to apply it; nothing was reloaded"],
        ),
        (
            "accounts:",
            f"cluster: {json.dumps(CLUSTER)}\naccounts:",
            ["cluster changed: restart to apply it; nothing was reloaded"],
        ),
        ("accounts:", "listen: {trusted: [127.0.0.1]}\naccounts:", ["listen.trusted: changed"]),
        ("accounts:", "limits: {outboxes: 512MiB}\naccounts:", ["limits: changed"]),
        ("accounts:", "record: {account: one, topics: {iex: {trades: [AAPL]}}}\naccounts:", ["record: changed"]),
        (
            "account: one, allow: {iex: {quotes",
            "account: two, allow: {iex: {quotes",
            ["client meanrev: changed, its sessions continue under the new rules"],
        ),
    ],
)
def test_plan_lists_the_changes_and_nothing_else(old: str, new: str, lines: list[str]) -> None:
    steps = make_plan(read(BEFORE), read(BEFORE.replace(old, new, 1) if old else BEFORE))
    assert steps.lines() == lines


def test_every_setting_is_compared() -> None:
    """Not `listen.insecure`: it permits an address, and that needs a restart. `listen.tls` has tests of its own."""
    before = read(BEFORE)
    changed = {name: before.model_copy(update={name: object()}) for name in ("log", "limits", "default_feed")}
    for section in ("listen", "admin"):
        found = getattr(before, section)
        for name in {*type(found).model_fields} - {"insecure", "tls"}:
            copy = found.model_copy(update={name: object()})
            changed[f"{section}.{name}"] = before.model_copy(update={section: copy})
    apart = {"listen", "admin", "accounts", "clients", "record", "cluster"}  # compared above, below, or one by one
    assert {name for name in changed if "." not in name} == {*Config.model_fields} - apart
    for name, after in changed.items():
        assert make_plan(before, after).lines()[0].startswith(name)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("redis", "redis://:other@127.0.0.1"),
        ("listen", "127.0.0.1:8768"),
        ("url", "wss://127.0.0.1:8768"),
        ("secret", "another-secret-of-the-cluster"),
        ("tls", {"cert": "server.crt", "key": "../data/server.key"}),
        ("ca", "server.crt"),
        ("name", "desk"),
    ],
)
def test_every_setting_of_the_cluster_needs_a_restart(setting: str, value: object) -> None:
    data = Path(__file__).parent / "data"
    tls = {"url": "wss://127.0.0.1:8767", "tls": {"cert": "server.crt", "key": "server.key"}}

    def with_cluster(more: dict[str, object]) -> Config:
        text = f"cluster: {json.dumps({**CLUSTER, **tls, **more})}\n{BEFORE}"
        return configuration.parse(text, "proxy.yaml", {}, data)

    plan = make_plan(with_cluster({}), with_cluster({setting: value}))
    assert plan.lines() == [f"cluster.{setting} changed: restart to apply it; nothing was reloaded"]
    assert make_plan(with_cluster({}), with_cluster({})).lines() == ["nothing changed"]


@pytest.mark.parametrize("setting", ["listen.tls", "cluster.tls"])
def test_a_renewed_certificate_is_named_with_the_end_of_its_validity(tmp_path: Path, setting: str) -> None:
    data = Path(__file__).parent / "data"
    cert, key = tmp_path / "server.crt", tmp_path / "server.key"
    key.write_bytes((data / "server.key").read_bytes())
    issuer = (data / "server.crt").read_text()
    section, rest = setting.partition(".")[0], {**CLUSTER, "url": "wss://127.0.0.1:8767"}
    settings = {**(rest if section == "cluster" else {}), "tls": {"cert": str(cert), "key": str(key)}}
    text = f"{section}: {json.dumps(settings)}\n{BEFORE}"

    def with_certificate(pem: str) -> Config:
        cert.write_text(pem)
        return read(text)

    before = with_certificate(issuer)
    renewed = with_certificate(issuer + issuer)  # a chain is a part of it
    assert make_plan(before, with_certificate(issuer)).lines() == ["nothing changed"]
    tls = dict(certified(renewed))[setting]
    assert tls is not None
    assert tls.certificate is not None
    until = f"{tls.certificate.valid_until:%Y-%m-%d %H:%M} UTC"
    assert make_plan(before, renewed).lines() == [f"{setting}: certificate renewed, valid until {until}"]


@pytest.mark.slow
def test_every_reload_is_logged_at_once(tmp_path: Path) -> None:
    """Also when a reload repeats the problem or the change of the one before: the repeat filter must not delay it."""
    path = tmp_path / "proxy.yaml"
    good = "listen: {port: 0}\nadmin: {port: 0}\n" + BEFORE
    path.write_text(good)
    path.chmod(0o600)
    misspelt = f'{path}:7:63: clients.momentum.allow.iexx: unknown feed; did you mean "iex"?'
    changed = "client momentum: changed, its sessions continue under the new rules"
    with Process("-c", str(path), folder=tmp_path) as process:
        process.address("proxy.admin")
        for number, (new, level, expected) in enumerate(
            (
                (good.replace("iex: {trades", "iexx: {trades"), "warning", misspelt),
                (good.replace("iex: {trades", "iexx: {trades"), "warning", misspelt),
                (good.replace("[AAPL, MSFT]", "[AAPL]"), "info", changed),
                (good, "info", changed),
                (good.replace("listen: {port: 0", "listen: {port: 9"), "warning", "listen.port changed"),
            ),
            1,
        ):
            path.write_text(new)
            process.popen.send_signal(signal.SIGHUP)
            wait_for(lambda number=number: len(reloads(process)) == number)
            event = reloads(process)[-1]
            assert (event["level"], event.get("repeated")) == (level, None)
            assert event.get("plan", event.get("problem", "")).startswith(expected)
        process.popen.terminate()
        assert process.end() == 0


def reloads(process: Process) -> list[dict[str, Any]]:
    """The log events of reloads so far."""
    return [event for event in process.events if event["event"] == "gateway.reload"]
