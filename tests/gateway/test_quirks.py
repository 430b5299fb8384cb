"""Exceptions for some clients."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from proxy.downstream.quirks import NO_QUIRKS, quirks_of
from tests.harness import CLOSE, PING, TEXT, Harness, Wire, certificate

Start = Callable[..., Harness]

CLIENTS = """
  java: {key: java, secret: java, max_connections: 1, outbox: 64KiB, allow: {iex: "*"}}
"""
OKHTTP = "User-Agent: okhttp/4.12.0\r\n"


@pytest.mark.parametrize(
    ("user_agent", "close_frame"),
    [
        ("okhttp/4.12.0", False),
        ("okhttp/5.0.0-alpha.14", False),
        ("OkHttp/3", False),
        ("", True),
        ("my okhttp/4", True),
    ],
)
def test_peers_are_known_by_the_beginning_of_their_user_agent(user_agent: str, close_frame: bool) -> None:
    quirks = quirks_of(user_agent)
    assert quirks.close_frame is close_frame
    assert close_frame == (quirks is NO_QUIRKS)


def end_of(wire: Wire) -> list[int]:
    """The opcodes of the frames until the connection ends, which must not take the deadline of a close."""
    began = time.monotonic()
    opcodes = [opcode for opcode, _ in wire.rest() if opcode != PING]
    assert time.monotonic() - began < 3
    return opcodes


@pytest.mark.parametrize(("headers", "last"), [(OKHTTP, []), ("", [CLOSE])], ids=["okhttp", "other"])
def test_a_stop_ends_okhttp_without_a_close_frame(start: Start, headers: str, last: list[int]) -> None:
    """A listener without `onClosing` would never learn of the end, nor connect again."""
    proxy = start(CLIENTS)
    wire = proxy.wire(headers=headers).log_in("java", trades=["AAPL"])
    proxy.publish("iex", "AAPL", 1)
    assert wire.receive()[0] == TEXT
    stopping = gevent.spawn(proxy.gateway.stop)
    assert end_of(wire) == last
    wire.socket.close()
    stopping.get(timeout=3)


def test_a_stop_ends_okhttp_with_tls(start: Start, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    proxy = start(CLIENTS, config={"listen": f"tls: {{cert: {cert}, key: {key}}}"})
    wire = proxy.wire(headers=OKHTTP, trust=ssl.create_default_context(cafile=str(cert))).log_in(
        "java", trades=["AAPL"]
    )
    stopping = gevent.spawn(proxy.gateway.stop)
    with pytest.raises((EOFError, ssl.SSLEOFError)):
        wire.receive()
    wire.socket.close()
    stopping.get(timeout=3)


def test_other_ends_of_okhttp(start: Start) -> None:
    """Pending messages are sent, 407 too; a broken frame ends the connection as well."""
    proxy = start(CLIENTS)
    slow = proxy.wire(headers=OKHTTP, buffer=4096).log_in("java", trades=["AAPL"])
    [session] = proxy.gateway.server.sessions
    proxy.fill(session.outbox, 1)
    while not session.outbox.slow:
        proxy.publish("iex", "AAPL", 200, batch=100)
    payloads = [payload for opcode, payload in slow.rest() if opcode == TEXT]
    assert json.loads(payloads[-1])[0]["code"] == 407
    broken = proxy.wire(headers=OKHTTP).log_in("java", trades=["AAPL"])
    broken.send(TEXT, b"", first=0xF0)
    assert end_of(broken) == []


def test_a_close_of_okhttps_own_is_answered(start: Start) -> None:
    wire = start(CLIENTS).wire(headers=OKHTTP).log_in("java", trades=["AAPL"])
    wire.send(CLOSE, b"\x03\xe8")
    assert wire.receive() == (CLOSE, b"\x03\xe8client closed")
