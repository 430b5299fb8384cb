"""The part of a feed's source that every WebSocket has: its phase, its end, and the one greenlet that writes.

The supervisor's greenlet reads; what is sent is queued, and the writer sends it.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent.queue import Queue

from proxy.alpaca.client_protocol import Phase
from proxy.routing.request_builder import UpstreamRequest
from proxy.transport import frames
from proxy.transport.errors import ConnectionLost
from proxy.upstream.websocket import UpstreamConnection

CLOSE_FRAME_SECONDS = 1.0

_KEEP_ALIVE = (frames.PING, frames.PONG)


class SourceConnection:
    """One WebSocket of a source, from the dial to its end.

    `cause` is the reason of its end, empty before that.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.phase = Phase.CONNECTING
        self.request: UpstreamRequest | None = None
        self.cause = ""
        self.deliberate = self.retry_at_once = self.others_confirmed = self.finds_silence = False
        self._clock = clock
        # Bounded in effect: one request is under way at a time, and at most one ping and one pong are queued.
        self._outgoing: Queue[tuple[int, bytes]] = Queue()
        self._keep_alive: dict[int, bytes] = {}
        self._connection: UpstreamConnection | None = None
        self._writer: gevent.Greenlet | None = None
        self.received_at = self._ended_at = self._phase_began = clock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.phase.value} {self.cause}>"

    @property
    def ended(self) -> bool:
        return bool(self.cause)

    @property
    def live(self) -> bool:
        """Whether requests can be sent: logged in, and not ending."""
        return self.phase is Phase.LIVE and not self.cause

    def receive(self) -> list[bytes]:
        """Return the messages that have arrived; block until there is one.

        The list is empty after a ping or a pong. Raises ConnectionLost.
        """
        assert self._connection is not None
        try:
            received = self._connection.receive()
        except ConnectionLost as error:
            self.cause = self.cause or str(error)
            raise ConnectionLost(self.cause) from error
        self.received_at = self._clock()
        return received

    def take_request(self) -> UpstreamRequest | None:
        request, self.request = self.request, None
        return request

    def end(self, reason: str, deliberate: bool = False) -> None:
        if not self.cause:
            self.cause = reason
            self.deliberate = deliberate
            self._ended_at = self._clock()
            if self._connection is not None:
                self._connection.send_close()

    def close(self) -> None:
        """Send a close frame, and free the socket and the writer.

        Without a close frame, Alpaca keeps the account's connection slot occupied for 90 s.
        """
        self.cause = self.cause or "closed here"
        if self._connection is None or self._writer is None:
            return
        self._connection.send_close()
        try:
            self._writer.join(CLOSE_FRAME_SECONDS)
        finally:
            self._writer.kill()
            self._connection.shut()
            self._connection.free()

    def _begin(self, connection: UpstreamConnection) -> None:
        """Start to write to a socket that the dial has opened. Raises ConnectionLost if `end` was called meanwhile."""
        self._connection = connection
        if self.cause:
            connection.send_close()  # without one, Alpaca keeps the account's slot occupied for 90 s
            self._writer = gevent.spawn(self._write, connection)
            raise ConnectionLost(self.cause)
        self.received_at = self._clock()
        self._enter(Phase.AUTHENTICATING)
        self._writer = gevent.spawn(self._write, connection)

    def _cut_off(self, now: float) -> bool:
        """Return whether the connection ends; shut it down if its close frame cannot be sent."""
        if self.cause and self._connection is not None and now - self._ended_at >= CLOSE_FRAME_SECONDS:
            self._connection.shut()
        return bool(self.cause)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._phase_began = self._clock()

    def _queue(self, opcode: int, payload: bytes) -> None:
        """Queue a frame; never block.

        A newer ping or pong replaces a queued one (RFC 6455 §5.5.3).
        """
        if opcode in _KEEP_ALIVE:
            queued = opcode in self._keep_alive
            self._keep_alive[opcode] = payload
            if queued:
                return
        self._outgoing.put_nowait((opcode, payload))

    def _write(self, connection: UpstreamConnection) -> None:
        try:
            opcode = None
            while opcode != frames.CLOSE:
                opcode, payload = self._outgoing.get()
                payload = self._keep_alive.pop(opcode, payload)
                connection.write(opcode, payload)
        except ConnectionLost:
            pass
        connection.shut()
