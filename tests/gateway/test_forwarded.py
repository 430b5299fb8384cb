"""Behind a reverse proxy, an algorithm has its own address: for waits, limits, the log and the status page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest

from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.downstream import auth_throttle
from proxy.downstream.auth_throttle import AuthThrottle
from proxy.transport import listener
from tests.harness import ACCOUNT, CONFIG, CONNECTED, Client, Harness, wait_for

Start = Callable[..., Harness]

CLIENTS = '  alpha: {key: alpha, secret: alpha, allow: {iex: "*"}}'
BEHIND = {"listen": "trusted: [127.0.0.1]"}
WRONG = {"action": "auth", "key": "alpha", "secret": "wrong"}


def dial(proxy: Harness, *addresses: str) -> Client:
    """A connection as a reverse proxy on this machine forwards it."""
    client = proxy.dial(headers={"X-Forwarded-For": ", ".join(addresses)})
    assert client.receive() == CONNECTED
    return client


def shown(proxy: Harness) -> list[str]:
    """The addresses in /status.json, without the ports."""
    connection = HTTPConnection(*proxy.gateway.admin.address, timeout=5)
    connection.request("GET", "/status.json")
    document = json.loads(connection.getresponse().read())
    connection.close()
    sessions = [session["address"] for client in document["clients"] for session in client["sessions"]]
    return sorted(address.rpartition(":")[0] for address in sessions)


def configured(proxy: Harness, trusted: str) -> Config:
    text = CONFIG.format(
        clients=CLIENTS,
        accounts=ACCOUNT.format(url=proxy.simulator.url),
        listen=f", trusted: {trusted}",
        admin="",
        admin_port=0,
        more="",
    )
    return configuration.parse(text, "proxy.yaml", os.environ, Path())


@pytest.mark.parametrize("trusted", [True, False])
def test_a_wrong_key_makes_nobody_else_wait(start: Start, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    """Without `trusted` the header counts for nothing: its sender would escape the wait by it."""
    for name, seconds in (("FIRST", 0.01), ("STEP", 0.02), ("MOST", 0.09)):
        monkeypatch.setattr(auth_throttle, name, seconds)
    waits: list[tuple[str, float]] = []
    refuse = AuthThrottle.refuse

    def recorded(self: AuthThrottle, address: str, now: float) -> float:
        waits.append((address, round(refuse(self, address, now), 3)))
        return waits[-1][1]

    monkeypatch.setattr(AuthThrottle, "refuse", recorded)
    proxy = start(CLIENTS, config=BEHIND if trusted else {})
    spoofed = ("198.51.100.1", "203.0.113.7")  # the left one was sent by the client itself
    for forwarded in (["203.0.113.7"], ["203.0.113.7"], ["203.0.113.8"], spoofed):
        assert dial(proxy, *forwarded).ask(WRONG)[0]["code"] == 402
    if trusted:
        assert waits == [("203.0.113.7", 0.01), ("203.0.113.7", 0.03), ("203.0.113.8", 0.01), ("203.0.113.7", 0.05)]
    else:
        assert waits == [("127.0.0.1", seconds) for seconds in (0.01, 0.03, 0.05, 0.07)]


def test_the_limit_on_connections_without_a_log_in(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One algorithm displaces its own oldest connection, and no other's."""
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED_PER_ADDRESS", 2)
    proxy = start(CLIENTS, config=BEHIND)
    other = dial(proxy, "203.0.113.8")
    first = dial(proxy, "203.0.113.7")
    rest = [dial(proxy, "203.0.113.7") for _ in range(2)]
    assert first.closed() == (None, "")
    wait_for(lambda: proxy.gateway.server.unauthenticated == 3)
    for client in (other, *rest):
        client.log_in("alpha")
    wait_for(lambda: proxy.gateway.server.unauthenticated == 0)
    counts = proxy.gateway.server._listener
    assert (counts._by_host, counts._environs) == ({}, {})


def test_the_log_and_the_status_page_show_the_client(start: Start) -> None:
    proxy = start(CLIENTS, config=BEHIND)
    dial(proxy, "203.0.113.7").log_in("alpha")
    proxy.client("alpha")
    assert shown(proxy) == ["127.0.0.1", "203.0.113.7 via 127.0.0.1"]
    [behind, direct] = [event for event in proxy.gateway.snapshot().events if event.name == "session.authenticated"]
    assert behind.fields["address"].startswith("203.0.113.7 via 127.0.0.1:")
    assert direct.fields["address"].startswith("127.0.0.1:")


def test_a_reload_applies_to_open_sessions(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shown, and their waits and limits are, as after a start with the new file."""
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED_PER_ADDRESS", 3)
    proxy = start(CLIENTS)
    witness = dial(proxy, "203.0.113.7").log_in("alpha")
    witness.subscribe(trades=["AAPL"])
    strangers = [dial(proxy, address) for address in ("203.0.113.7", "203.0.113.8")]
    assert shown(proxy) == ["127.0.0.1"]
    gateway = proxy.gateway
    config = configured(proxy, "[127.0.0.1, 10.0.0.0/8]").model_copy(update={"admin": gateway.config.admin})
    with proxy.undisturbed(witness):
        assert gateway.reload(config).lines() == ["listen.trusted: changed"]
        assert shown(proxy) == ["203.0.113.7 via 127.0.0.1"]
        assert gateway.server._listener._by_host == {"203.0.113.7": 1, "203.0.113.8": 1}
        gateway.reload(configured(proxy, "[]").model_copy(update={"admin": gateway.config.admin}))
        assert shown(proxy) == ["127.0.0.1"]
        assert gateway.server._listener._by_host == {"127.0.0.1": 2}
    for client in strangers:
        client.log_in("alpha")
