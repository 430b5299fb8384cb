"""Order updates as server-sent events: their history, and the connections that read them.

    GET /v2/events/trades?since=…&until=…

A stream sends the updates since a time, if the request names one, and then those that are published. It ends at
`until`; a dropped one is cut off, without the last chunk (docs.alpaca.markets, "Subscribe to Trade Events (SSE)").
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import gevent
from gevent.event import Event

from proxy.alpaca import timestamps
from proxy.transport import chunked
from proxy.transport.connection import ClientConnection
from proxy.transport.errors import ConnectionLost

PATHS = ("/v2/events/trades", "/v2beta1/events/trades")
MAX_EVENTS = 10_000
QUEUE_BYTES = 4 * 1024 * 1024
SEND_SECONDS = 30
HEARTBEAT_SECONDS = 15
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)
ERRORS = {401: (40110000, "request is not authorized"), 403: (40310000, "forbidden"), 400: (40010001, "invalid time")}

JsonObject = dict[str, Any]
TimedEvent = tuple[int, bytes]


def error_body(status: int) -> str:
    """Return the body of an error response."""
    code, message = ERRORS.get(status, (status * 100_000, "refused by a scripted fault of the simulator"))
    return json.dumps({"code": code, "message": message})


class EventHistory:
    """The newest order updates, each with its time `at` in nanoseconds since 1970."""

    def __init__(self) -> None:
        self._events: deque[TimedEvent] = deque(maxlen=MAX_EVENTS)

    def add(self, data: JsonObject, now: int) -> TimedEvent:
        """Add an update. Its own `at` counts, and is `now` if it has none that can be read."""
        at = now
        with suppress(KeyError, TypeError, ValueError):
            at = timestamps.nanoseconds(data["at"])
        if self._events:
            at = max(at, self._events[-1][0] + 1)
        event = at, b"data: " + json.dumps({**data, "at": timestamps.rfc3339(at)}).encode() + b"\n\n"
        self._events.append(event)
        return event

    def since(self, at: int) -> Iterable[TimedEvent]:
        return [event for event in self._events if event[0] >= at]


def window(query: str) -> tuple[int | None, int | None]:
    """Return the times `since` and `until` of a request. Raises ValueError if one is not RFC 3339."""
    values = parse_qs(query)
    since, until = (timestamps.nanoseconds(values[name][0]) if name in values else None for name in ("since", "until"))
    return since, until


class EventPeer:
    """A connection that reads events until it is dropped, or `until` is reached."""

    def __init__(self, connection: ClientConnection, until: int | None) -> None:
        self.ended = Event()
        self._connection = connection
        self._until = until
        self._queue: deque[bytes] = deque([HEAD])
        self._queued_bytes = 0
        self._wake = Event()
        self._finished = False

    def put(self, event: TimedEvent) -> None:
        """Queue an event; drop the connection if the client does not read."""
        at, data = event
        if self._until is not None and at > self._until:
            self.finish()
        elif self._queued_bytes + len(data) > QUEUE_BYTES:
            self.drop()
        else:
            self._append(chunked.chunk(data))

    def finish(self) -> None:
        """End the response after what is queued."""
        if not self._finished:
            self._append(chunked.LAST)
            self._finished = True

    def drop(self) -> None:
        self._connection.shut()

    def run(self) -> None:
        """Serve until the connection ends."""
        writer = gevent.spawn(self._write)
        try:
            while self._connection.receive():
                pass
        except ConnectionLost:
            pass
        finally:
            writer.kill()
            self.ended.set()

    def _append(self, data: bytes) -> None:
        if not self._finished:
            self._queue.append(data)
            self._queued_bytes += len(data)
            self._wake.set()

    def _write(self) -> None:
        try:
            while True:
                while self._queue:
                    data = self._queue.popleft()
                    if not self._connection.send(data, SEND_SECONDS):
                        return self._connection.shut()
                    self._queued_bytes = max(0, self._queued_bytes - len(data))
                if self._finished:
                    return self._connection.finish()
                self._wake.clear()
                left = HEARTBEAT_SECONDS if self._until is None else (self._until - time.time_ns()) / 1e9
                if left <= 0:
                    self.finish()
                elif not self._wake.wait(min(left, HEARTBEAT_SECONDS)) and left >= HEARTBEAT_SECONDS:
                    self._append(chunked.chunk(b":heartbeat\n\n"))
        except ConnectionLost:
            self._connection.shut()
