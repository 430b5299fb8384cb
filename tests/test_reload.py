"""What a reload changes: the plan of two configurations, and a real SIGHUP in the middle of a burst."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.reload import plan

BEFORE = """\
accounts:
  one: {key: PKAAAABBBB1111, secret: s1}
  two: {key: PKAAAABBBB2222, secret: s2}
clients:
  momentum: {key: momentum, secret: m1, account: one, allow: {iex: {trades: [AAPL, MSFT]}}}
  meanrev: {key: meanrev, secret: r1, account: one, allow: {iex: {quotes: ["*"]}}}
"""


def read(text: str) -> Config:
    return configuration.parse(text, "proxy.yaml", {}, Path())


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("", "", ["nothing changed"]),
        ("[AAPL, MSFT]", "[AAPL]", ["client momentum: changed, its sessions go on under the new rules"]),
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
            ["listen.port changed: restart to make it so; nothing was reloaded"],
        ),
        ("accounts:", "limits: {outboxes: 512MiB}\naccounts:", ["limits: changed"]),
        (
            "account: one, allow: {iex: {quotes",
            "account: two, allow: {iex: {quotes",
            ["client meanrev: changed, its sessions go on under the new rules"],
        ),
    ],
)
def test_a_plan_says_what_changes_and_nothing_else(old: str, new: str, lines: list[str]) -> None:
    steps = plan(read(BEFORE), read(BEFORE.replace(old, new, 1) if old else BEFORE))
    assert steps.lines() == lines
