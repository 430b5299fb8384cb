"""One connection to Alpaca, from the dial to its end: socket, phase, log-in and the request under way.

The supervisor's greenlet reads it, one other greenlet writes it (`connection`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from proxy.alpaca.client_protocol import FeedEvent, LoggedIn, Phase, Refused, Send, client_protocol_for
from proxy.alpaca.codec import Raw
from proxy.alpaca.endpoints import Endpoint
from proxy.alpaca.topics import Topic
from proxy.routing.request_builder import UpstreamRequest
from proxy.transport import frames
from proxy.upstream.connection import SourceConnection
from proxy.upstream.source import FeedSettings
from proxy.upstream.websocket import dial

PING_SECONDS = 10.0
MUTE_SECONDS = 20.0
LOGIN_SECONDS = 10.0  # for Alpaca's reply to a log-in
# For Alpaca's reply to a request. A request is not repeated: a second reply would be taken for that to the next one.
REQUEST_SECONDS = 30.0


class AlpacaConnection(SourceConnection):
    """A `FeedSource` that reads from Alpaca's WebSocket, or from another proxy's."""

    def __init__(self, endpoint: Endpoint, settings: FeedSettings, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._url = settings.login.url
        self._content_type = settings.codec.content_type
        self._protocol = client_protocol_for(endpoint, settings.codec, settings.login)
        self._opcode = frames.TEXT if self._protocol.text else frames.BINARY
        self._pinged_at = self._requested_at = self.received_at

    def open(self) -> None:
        headers = {"Content-Type": self._content_type, "User-Agent": "alpaca-proxy"}
        self._begin(dial(self._url, headers, self._queue))
        self._pinged_at = self.received_at
        for payload in self._protocol.opening():
            self._queue(self._opcode, payload)

    def log_in_again(self) -> None:
        """Repeat a log-in that was refused, on the same connection."""
        if not self.cause:
            self._queue(self._opcode, self._protocol.log_in())

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

    def tick(self, now: float) -> None:
        """Send pings; end the connection when nothing arrives any more, not even a pong, or an answer is overdue."""
        if self._connection is None or self._cut_off(now):
            return
        if self.phase is Phase.AUTHENTICATING and now - self._phase_began >= LOGIN_SECONDS:
            self.end(f"no answer to the log-in within {LOGIN_SECONDS:.0f} s")
        elif self.request is not None and now - self._requested_at >= REQUEST_SECONDS:
            self.end(f"no answer to a request within {REQUEST_SECONDS:.0f} s")
        elif now - self.received_at >= MUTE_SECONDS:
            self.end(f"no sign of life for {MUTE_SECONDS:.0f} s")
        elif now - self._pinged_at >= PING_SECONDS:
            self._pinged_at = now
            self._queue(frames.PING, b"")
