"""One connection to Alpaca, from the dial to its end: socket, phase, log-in and the request under way.

The supervisor's greenlet reads it, one other greenlet writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import gevent
from gevent.queue import Queue

from proxy.alpaca.client_protocol import FeedEvent, LoggedIn, Phase, Refused, Send, client_protocol_for
from proxy.alpaca.codec import Raw
from proxy.alpaca.endpoints import Endpoint
from proxy.alpaca.topics import Topic
from proxy.routing.request_builder import UpstreamRequest
from proxy.transport import frames
from proxy.transport.errors import ConnectionLost
from proxy.upstream.source import FeedSettings
from proxy.upstream.websocket import Frame, UpstreamConnection, dial

PING_SECONDS = 10.0
MUTE_SECONDS = 20.0
CLOSE_FRAME_SECONDS = 1.0
LOGIN_SECONDS = 10.0  # for Alpaca's reply to a log-in
# For Alpaca's reply to a request. A request is not repeated: a second reply would be taken for that to the next one.
REQUEST_SECONDS = 30.0

_KEEP_ALIVE = (frames.PING, frames.PONG)


class AlpacaConnection:
    """A `FeedSource` that reads from Alpaca's WebSocket, or from another proxy's.

    `cause` is the reason of its end, empty before that.
    """

    def __init__(self, endpoint: Endpoint, settings: FeedSettings, clock: Callable[[], float]) -> None:
        self.phase = Phase.CONNECTING
        self.request: UpstreamRequest | None = None
        self.cause = ""
        self.deliberate = False
        self._url = settings.login.url
        self._content_type = settings.codec.content_type
        self._protocol = client_protocol_for(endpoint, settings.codec, settings.login)
        self._opcode = frames.TEXT if self._protocol.text else frames.BINARY
        self._clock = clock
        # Bounded in effect: one request is under way at a time, and at most one ping and one pong are queued.
        self._outgoing: Queue[tuple[int, bytes]] = Queue()
        self._keep_alive: dict[int, bytes] = {}
        self._connection: UpstreamConnection | None = None
        self._writer: gevent.Greenlet | None = None
        self.received_at = self._pinged_at = self._ended_at = self._phase_began = self._requested_at = clock()

    def __repr__(self) -> str:
        return f"<AlpacaConnection {self.phase.value} {self.cause}>"

    @property
    def ended(self) -> bool:
        return bool(self.cause)

    @property
    def live(self) -> bool:
        """Whether requests can be sent: logged in, and not ending."""
        return self.phase is Phase.LIVE and not self.cause

    def open(self) -> None:
        headers = {"Content-Type": self._content_type, "User-Agent": "alpaca-proxy"}
        self._connection = dial(self._url, headers, self._queue)
        if self.cause:
            self._connection.send_close()  # without one, Alpaca keeps the account's slot occupied for 90 s
            self._writer = gevent.spawn(self._write, self._connection)
            raise ConnectionLost(self.cause)
        self.received_at = self._pinged_at = self._clock()
        self._enter(Phase.AUTHENTICATING)
        self._writer = gevent.spawn(self._write, self._connection)
        for payload in self._protocol.opening():
            self._queue(self._opcode, payload)

    def receive(self) -> list[Frame]:
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

    def handle(self, body: Raw | bytes) -> FeedEvent:
        event = self._protocol.receive(body)
        match event:
            case Send(payload):
                self._queue(self._opcode, payload)
            case LoggedIn():
                self._enter(Phase.LIVE)
        return event

    def foreign_error(self, payload: bytes) -> Refused | None:
        return self._protocol.foreign_error(payload)

    def send_request(self, request: UpstreamRequest, acked: Iterable[Topic]) -> None:
        self.request = request
        self._requested_at = self._clock()
        self._queue(self._opcode, self._protocol.request(request.add, request.topics, acked))

    def take_request(self) -> UpstreamRequest | None:
        request, self.request = self.request, None
        return request

    def tick(self, now: float) -> None:
        """Send pings; end the connection when nothing arrives any more, not even a pong, or an answer is overdue."""
        if self._connection is None:
            return
        if self.cause:
            if now - self._ended_at >= CLOSE_FRAME_SECONDS:  # the close frame cannot be sent
                self._connection.shut()
        elif self.phase is Phase.AUTHENTICATING and now - self._phase_began >= LOGIN_SECONDS:
            self.end(f"no answer to the log-in within {LOGIN_SECONDS:.0f} s")
        elif self.request is not None and now - self._requested_at >= REQUEST_SECONDS:
            self.end(f"no answer to a request within {REQUEST_SECONDS:.0f} s")
        elif now - self.received_at >= MUTE_SECONDS:
            self.end(f"no sign of life for {MUTE_SECONDS:.0f} s")
        elif now - self._pinged_at >= PING_SECONDS:
            self._pinged_at = now
            self._queue(frames.PING, b"")

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
