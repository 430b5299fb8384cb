"""The queue of frames to Alpaca is bounded."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from proxy.transport.frames import BINARY, CLOSE, PING, PONG
from proxy.upstream import alpaca_connection
from proxy.upstream.alpaca_connection import AlpacaConnection


class StuckWebSocket:
    """A WebSocket whose writes block until `release` is set."""

    def __init__(self) -> None:
        self.release = Event()
        self.written: list[tuple[int, bytes]] = []

    def write(self, opcode: int, payload: bytes) -> None:
        self.release.wait()
        self.written.append((opcode, payload))

    def shut(self) -> None:
        """Do nothing: there is no socket."""


def test_only_the_newest_ping_and_pong_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 6455 §5.5.3 permits an endpoint to answer only the newest ping."""
    stuck = StuckWebSocket()
    monkeypatch.setattr(alpaca_connection, "dial", lambda *_: stuck)
    connection = AlpacaConnection("ws://nowhere", "", lambda: 0.0)
    gevent.sleep(0)
    connection.send(BINARY, b"request")
    for number in range(1000):
        connection.send(PONG, b"%d" % number)
        connection.send(PING, b"")
    assert connection._outgoing.qsize() <= 3
    connection.send(CLOSE, b"")
    stuck.release.set()
    connection._writer.join(5)
    assert stuck.written == [(BINARY, b"request"), (PONG, b"999"), (PING, b""), (CLOSE, b"")]
    connection.send(PONG, b"again")
    assert connection._outgoing.qsize() == 1
