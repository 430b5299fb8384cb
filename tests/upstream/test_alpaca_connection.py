"""One connection to Alpaca: its queue of frames, its phases and its time limits."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from proxy.alpaca.client_protocol import LoggedIn, Login, Phase, Refused
from proxy.alpaca.codec import JSON
from proxy.alpaca.endpoints import endpoint
from proxy.routing.request_builder import UpstreamRequest
from proxy.transport.errors import ConnectionLost
from proxy.transport.frames import CLOSE, PING, PONG, TEXT
from proxy.upstream import alpaca_connection
from proxy.upstream.alpaca_connection import AlpacaConnection
from proxy.upstream.source import FeedSettings


class StuckWebSocket:
    """A WebSocket whose writes block until `release` is set."""

    def __init__(self) -> None:
        self.release = Event()
        self.written: list[tuple[int, bytes]] = []
        self.closed = self.is_shut = False

    def write(self, opcode: int, payload: bytes) -> None:
        self.release.wait()
        self.written.append((opcode, payload))

    def send_close(self) -> None:
        self.closed = True

    def shut(self) -> None:
        self.is_shut = True


def connection_to(feed: str, clock: Callable[[], float]) -> AlpacaConnection:
    served = endpoint(feed)
    assert served is not None
    return AlpacaConnection(served, FeedSettings(Login("main", "ws://nowhere", "key", "secret"), JSON), clock)


def test_only_the_newest_ping_and_pong_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 6455 §5.5.3 permits an endpoint to answer only the newest ping."""
    stuck = StuckWebSocket()
    monkeypatch.setattr(alpaca_connection, "dial", lambda *_: stuck)
    connection = connection_to("trading", lambda: 0.0)
    connection.open()
    gevent.sleep(0)
    for number in range(1000):
        connection._queue(PONG, b"%d" % number)
        connection._queue(PING, b"")
    assert connection._outgoing.qsize() <= 3
    connection._queue(CLOSE, b"")
    stuck.release.set()
    assert connection._writer is not None
    connection._writer.join(5)
    assert [opcode for opcode, _ in stuck.written] == [TEXT, PONG, PING, CLOSE]
    assert stuck.written[1:] == [(PONG, b"999"), (PING, b""), (CLOSE, b"")]
    connection._queue(PONG, b"again")
    assert connection._outgoing.qsize() == 1


class Scene:
    """A connection of the market dialect at time `now`, without a socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.socket = StuckWebSocket()
        self.now = 0.0
        monkeypatch.setattr(alpaca_connection, "dial", lambda *_: self.socket)
        self.connection = connection_to("iex", lambda: self.now)

    def log_in(self) -> AlpacaConnection:
        self.connection.open()
        self.connection.handle(JSON.encode({"T": "success", "msg": "connected"}))
        assert self.connection.handle(JSON.encode({"T": "success", "msg": "authenticated"})) == LoggedIn()
        return self.connection

    def tick(self, now: float) -> str:
        """Return the reason for the end, empty without one."""
        self.now = now
        self.connection.tick(now)
        return self.connection.cause


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_phases(scene: Scene) -> None:
    connection = scene.connection
    assert (connection.phase, connection.live) == (Phase.CONNECTING, False)
    connection.open()
    assert (connection.phase, connection.live) == (Phase.AUTHENTICATING, False)
    assert connection.handle(JSON.encode({"T": "error", "code": 402, "msg": "auth failed"})) == Refused(
        402, "auth failed"
    )
    assert connection.phase is Phase.AUTHENTICATING
    assert connection.handle(JSON.encode({"T": "success", "msg": "authenticated"})) == LoggedIn()
    assert (connection.phase, connection.live) == (Phase.LIVE, True)
    connection.end("enough")
    assert (connection.phase, connection.live) == (Phase.LIVE, False), "no request is sent any more"


def test_a_log_in_without_an_answer(scene: Scene) -> None:
    scene.connection.open()
    assert scene.tick(9.9) == ""
    assert scene.tick(10) == "no answer to the log-in within 10 s"
    assert (scene.socket.closed, scene.socket.is_shut, scene.connection.deliberate) == (True, False, False)
    scene.tick(11)
    assert scene.socket.is_shut, "the close frame could not be sent"


def test_a_request_without_an_answer(scene: Scene) -> None:
    connection = scene.log_in()
    request = UpstreamRequest(True, (("trades", "AAPL"),))
    scene.now = 5.0
    connection.send_request(request, ())
    assert connection.request is request
    connection.received_at = 30.0
    assert scene.tick(34.9) == ""
    assert scene.tick(35) == "no answer to a request within 30 s"
    assert connection.take_request() is request
    assert connection.take_request() is None


def test_an_answered_request_has_no_time_limit(scene: Scene) -> None:
    connection = scene.log_in()
    connection.send_request(UpstreamRequest(True, (("trades", "AAPL"),)), ())
    connection.take_request()
    connection.received_at = 100.0
    assert scene.tick(100) == ""


def test_no_sign_of_life(scene: Scene) -> None:
    connection = scene.log_in()
    pings = 0
    for now in range(0, 20, 5):
        assert scene.tick(now) == ""
        pings += PING in connection._keep_alive
        connection._keep_alive.clear()
    assert pings == 1
    assert scene.tick(20) == "no sign of life for 20 s"


def test_the_first_reason_is_kept(scene: Scene) -> None:
    connection = scene.log_in()
    connection.end("the account's configuration changed", deliberate=True)
    connection.end("no sign of life")
    assert (connection.cause, connection.deliberate) == ("the account's configuration changed", True)


def test_the_end_of_a_connection_that_is_being_dialled(scene: Scene) -> None:
    """There is no socket yet to close."""
    scene.connection.end("enough", deliberate=True)
    scene.connection.tick(100.0)
    scene.connection.close()
    assert scene.connection.cause == "enough"


def test_a_lost_connection_takes_no_requests(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its close takes up to a second; a request that was never sent must not count as one that failed."""
    connection = scene.log_in()

    def lost() -> list[bytes]:
        raise ConnectionLost("reset")

    monkeypatch.setattr(scene.socket, "receive", lost, raising=False)
    with pytest.raises(ConnectionLost, match="reset"):
        connection.receive()
    assert not connection.live
