"""One open connection to Alpaca, with its reader and its writer.

The supervisor's greenlet reads it, one other greenlet writes it.
"""

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

_KEEP_ALIVE = (frames.PING, frames.PONG)


class AlpacaConnection:
    """A WebSocket with its writer and its keep-alive.

    The constructor blocks until it is open; it raises ConnectionLost or UpgradeRefused. `cause` is the reason of `end`,
    empty before that.
    """

    def __init__(self, url: str, content_type: str, clock: Callable[[], float]) -> None:
        self.cause = ""
        self._clock = clock
        # Bounded in effect: one request is under way at a time, and at most one ping and one pong are queued.
        self._outgoing: Queue[tuple[int, bytes]] = Queue()
        self._keep_alive: dict[int, bytes] = {}
        headers = {"Content-Type": content_type, "User-Agent": "alpaca-proxy"}
        self._connection: UpstreamConnection = dial(url, headers, self.send)
        self.received_at = self._pinged_at = self._ended_at = clock()
        self._writer = gevent.spawn(self._write)

    def __repr__(self) -> str:
        return f"<AlpacaConnection {self.cause or 'open'}>"

    def send(self, opcode: int, payload: bytes) -> None:
        """Queue a frame; never block.

        A newer ping or pong replaces a queued one (RFC 6455 §5.5.3).
        """
        if opcode in _KEEP_ALIVE:
            queued = opcode in self._keep_alive
            self._keep_alive[opcode] = payload
            if queued:
                return
        self._outgoing.put_nowait((opcode, payload))

    def receive(self) -> list[Frame]:
        """Return the messages that have arrived; block until there is one.

        The list is empty after a ping or a pong. Raises ConnectionLost.
        """
        try:
            received = self._connection.receive()
        except ConnectionLost as error:
            raise ConnectionLost(self.cause or str(error)) from error
        self.received_at = self._clock()
        return received

    def tick(self, now: float) -> None:
        """Send pings, and end the connection if nothing arrives any more, not even a pong."""
        if self.cause:
            if now - self._ended_at >= CLOSE_FRAME_SECONDS:  # the close frame cannot be sent
                self._connection.shut()
        elif now - self.received_at >= MUTE_SECONDS:
            self.end(f"no sign of life for {MUTE_SECONDS:.0f} s")
        elif now - self._pinged_at >= PING_SECONDS:
            self._pinged_at = now
            self.send(frames.PING, b"")

    def end(self, cause: str) -> None:
        """Begin to close the connection; `receive` raises ConnectionLost with this cause."""
        if not self.cause:
            self.cause = cause
            self._ended_at = self._clock()
            self._connection.send_close()

    def close(self) -> None:
        """Send a close frame, and free the socket and the writer.

        Without a close frame, Alpaca keeps the account's connection slot occupied for 90 s.
        """
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
                payload = self._keep_alive.pop(opcode, payload)
                self._connection.write(opcode, payload)
        except ConnectionLost:
            pass
        self._connection.shut()
