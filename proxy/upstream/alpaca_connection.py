"""One open connection to Alpaca: the upstream greenlet reads it, one other greenlet writes it."""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent.queue import Queue

from proxy.transport import frames
from proxy.transport.errors import ConnectionLost
from proxy.upstream.websocket import Frame, UpstreamConnection, dial

PING_SECONDS = 10.0
MUTE_SECONDS = 20.0
CLOSE_FRAME_SECONDS = 1.0


class AlpacaConnection:
    """A WebSocket with its writer and its signs of life. Opening it waits; raises ConnectionLost or UpgradeRefused.

    `cause` is why it was ended from here, if it was.
    """

    def __init__(self, url: str, content_type: str, clock: Callable[[], float]) -> None:
        self.cause = ""
        self._clock = clock
        self._outgoing: Queue[tuple[int, bytes]] = Queue()
        headers = {"Content-Type": content_type, "User-Agent": "alpaca-proxy"}
        self._connection: UpstreamConnection = dial(url, headers, self.send)
        self.received_at = self._pinged_at = self._ended_at = clock()
        self._writer = gevent.spawn(self._write)

    def __repr__(self) -> str:
        return f"<AlpacaConnection {self.cause or 'open'}>"

    def send(self, opcode: int, payload: bytes) -> None:
        """Sends a frame in its turn; never waits."""
        self._outgoing.put_nowait((opcode, payload))

    def receive(self) -> list[Frame]:
        """The messages that are there; waits for the first. Raises ConnectionLost."""
        try:
            arrived = self._connection.receive()
        except ConnectionLost as error:
            raise ConnectionLost(self.cause or str(error)) from error
        self.received_at = self._clock()
        return arrived

    def tick(self, now: float) -> None:
        """Pings, and ends a connection whose peer gives no sign of life, pongs included."""
        if self.cause:
            if now - self._ended_at >= CLOSE_FRAME_SECONDS:  # the farewell does not get through
                self._connection.shut()
        elif now - self.received_at >= MUTE_SECONDS:
            self.end(f"no sign of life for {MUTE_SECONDS:.0f} s")
        elif now - self._pinged_at >= PING_SECONDS:
            self._pinged_at = now
            self.send(frames.PING, b"")

    def end(self, cause: str) -> None:
        """Gives the connection up; whoever receives gets ConnectionLost with this cause."""
        if not self.cause:
            self.cause = cause
            self._ended_at = self._clock()
            self._connection.send_close()

    def close(self) -> None:
        """Says farewell, since Alpaca keeps the place of who goes without a word for 90 s, and frees everything."""
        self._connection.send_close()
        try:
            self._writer.join(CLOSE_FRAME_SECONDS)
        finally:
            self._writer.kill()
            self._connection.shut()
            self._connection.free()

    def _write(self) -> None:
        try:
            opcode = None
            while opcode != frames.CLOSE:
                opcode, payload = self._outgoing.get()
                self._connection.write(opcode, payload)
        except ConnectionLost:
            pass
        self._connection.shut()
