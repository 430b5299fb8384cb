"""Summary at the start: at most ten lines, the last with the status page."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from proxy.cli.running import authority
from proxy.cli.startup import announce
from proxy.config import model as configuration
from proxy.observe import logs

ACCOUNT = "accounts: {main: {key: k, secret: canary}}\n"


def announced(clients: int, style: str = "json", **addresses: tuple[str, int]) -> list[str]:
    text = ACCOUNT + "clients:\n" + "".join(f"  c{n}: {{key: k{n}, secret: canary}}\n" for n in range(clients))
    out = io.StringIO()
    logs.set_up(style, "info", out)
    path = Path("no-such-file.yaml")
    config = configuration.parse(text, str(path), {}, Path())
    bound = {"listening": ("127.0.0.1", 8765), "admin": ("127.0.0.1", 8766), **addresses}
    announce(config, path, listening=bound["listening"], admin=bound["admin"])
    logs.set_up("json", "info", io.StringIO())
    return out.getvalue().splitlines()


@pytest.mark.parametrize("clients", [1, 3, 4, 50])
@pytest.mark.parametrize("style", ["json", "human"])
def test_at_most_ten_lines_and_the_last_is_the_status_page(clients: int, style: str) -> None:
    lines = announced(clients, style)
    assert len(lines) <= 10
    assert "http://127.0.0.1:8766/" in lines[-1]
    assert "canary" not in "".join(lines)


def test_events() -> None:
    events = [json.loads(line) for line in announced(50)]
    assert [event["event"] for event in events] == [
        "proxy.started", *["proxy.config"] * 6, "proxy.listening", "proxy.admin"
    ]  # fmt: skip
    assert events[-3]["warning"] == "46 more; the verb `check` lists them all"
    assert events[-2]["at"] == "ws://127.0.0.1:8765"
    assert events[-2]["clients"] == "c0, c1, c2, c3, c4, c5, c6, c7 and 42 more"
    assert events[-2]["accounts"] == "main"


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1:1"),
        ("0.0.0.0", "127.0.0.1:1"),
        ("::", "[::1]:1"),
        ("::1", "[::1]:1"),
        ("10.0.0.7", "10.0.0.7:1"),
        ("proxy.example.com", "proxy.example.com:1"),
    ],
)
def test_addresses_are_reachable_from_this_machine(host: str, shown: str) -> None:
    assert authority((host, 1)) == shown
