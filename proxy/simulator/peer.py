"""One client connection of the simulator.

It has a reading greenlet and a writing greenlet; the session decides what is sent.

Outgoing frames wait in a queue that is bounded in bytes, so that a client that does not read never blocks others: over
the bound it gets error 407 and is disconnected. A *muted* peer is half open: its socket stays open, but input is not
processed and the queue is not written. A *stalled* step keeps its actions until it is released.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.event import Event

from proxy.simulator import wire
from proxy.simulator.conversation import Credentials, MarketSession, error
from proxy.simulator.faults import Drop, Faults, Step, data_opcode
from proxy.simulator.outcomes import Hangup, Outcome, Respond
from proxy.simulator.trading import TradingSession
from proxy.transport import frames
from proxy.transport.connection import ClientConnection
from proxy.transport.errors import ConnectionLost

QUEUE_BYTES = 4 * 1024 * 1024
WRITE_BYTES = 64 * 1024
ROOM_BYTES = 256 * 1024  # a queue with less has room, for those that wait for it
SEND_SECONDS = 30
CLOSE_SECONDS = 1

MAX_UNPROCESSED_READS = 16  # a muted peer stops reading after these

Session = MarketSession | TradingSession


@dataclass
class _PendingAction:
    """Action of a step; it runs once it is `due` and the step is not stalled."""

    step: Step
    action: Callable[[], list[Outcome]]
    due: bool


class Peer:
    """One client connection.

    `report(peer, outcome)` is called for outcomes that concern more than this connection.
    """

    def __init__(
        self,
        number: int,
        connection: ClientConnection,
        session: Session,
        *,
        faults: Faults,
        request_bytes: int,
        auth_seconds: float,
        report: Callable[[Peer, Outcome], None],
    ) -> None:
        self.number = number
        self.session = session
        self.feed = session.endpoint.feed
        self.codec = session.codec
        self.ended = Event()
        self.half_open = False  # muted by a stall of the connection
        self._connection = connection
        self._faults = faults
        self._auth_seconds = auth_seconds
        self._report = report
        self._inbound = frames.Inbound(request_bytes)
        self._opcode = data_opcode(self.codec, isinstance(session, TradingSession))
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._wake = Event()
        self._room = Event()  # less than ROOM_BYTES are queued, or the connection ends
        self._room.set()
        self._drained = Event()  # nothing is queued, or the connection ends
        self._drained.set()
        self._unmuted = Event()
        self._unmuted.set()
        self._unprocessed: deque[bytes] = deque()
        self._held: deque[_PendingAction] = deque()
        self._finishing = False
        self._close_received = False
        self._reset = False
        self._greenlets: list[Any] = []

    def __repr__(self) -> str:
        return f"<Peer {self.number} {self.session!r} pending={self._queued_bytes}>"

    @property
    def live(self) -> bool:
        """Whether the client is logged in and the connection is not ending."""
        return self.session.authenticated and not self._finishing

    def run(self, credentials: Credentials | None) -> None:
        """Serve the connection; return when it has ended."""
        writer = gevent.spawn(self._write)
        timer = gevent.spawn_later(self._auth_seconds, self._expire)
        self._greenlets += [writer, timer]
        try:
            self._schedule(Step.GREETING, lambda: self.session.open(credentials))
            self._read()
            if self._finishing:
                writer.join(CLOSE_SECONDS)
        finally:
            self._finishing = True
            self._room.set()
            self._drained.set()
            self.session.end(close_frame=self._close_received)
            # The writer must have ended before the handler of the connection returns.
            gevent.killall(self._greenlets)
            if self._reset:
                self._abort()
            self.ended.set()

    def put(self, frame: bytes) -> None:
        """Queue a frame.

        Over the bound, disconnect the client with error 407; if it is muted, discard the frame.
        """
        if self._finishing:
            return
        if self._queued_bytes + len(frame) > QUEUE_BYTES:
            if self._unmuted.is_set():
                self._overflow()
            return
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._drained.clear()
        if self._queued_bytes >= ROOM_BYTES:
            self._room.clear()
        self._wake.set()

    def wait_for_room(self) -> None:
        """Wait until the client has read most of what is queued, or is gone."""
        self._room.wait()

    def wait_until_drained(self, seconds: float) -> None:
        """Wait until the client has read what is queued, or is gone; at most for this time."""
        self._drained.wait(seconds)

    def put_payload(self, payload: bytes) -> None:
        """Queue a payload in a data frame of this connection's kind (text or binary)."""
        self.put(frames.encode(self._opcode, payload))

    def encode(self, messages: Sequence[dict[str, Any]]) -> bytes:
        """Encode data messages: an array, or on trading the one object."""
        if isinstance(self.session, TradingSession):
            (message,) = messages
            if isinstance(message, wire.Recorded):
                return message.body
            return wire.encode(message, self.codec)
        return wire.encode_data(messages, self.codec)

    def mute(self) -> None:
        """Make the connection half open; the end of the client is still detected."""
        self._unmuted.clear()

    def unmute(self) -> None:
        """Process and write what has waited."""
        self._unmuted.set()
        self._process_input()

    def release(self) -> None:
        """Run the pending actions whose steps are no longer stalled."""
        while self._held and self._held[0].due and not self._faults.stalls(self.feed, self._held[0].step):
            self._apply(self._held.popleft().action())

    def close(self, code: int, reason: str) -> None:
        """Start to close the connection with a close frame, after what is queued."""
        self.put(frames.encode_close(code, reason))
        self._finish()

    def drop(self, how: Drop) -> None:
        """Start to end the connection; return at once."""
        if how is Drop.CLOSE:
            self.close(frames.GOING_AWAY, "going away")
            return
        self._finishing = True
        self._reset = how is Drop.RST
        self._queue.clear()
        self._wake.set()
        self._unmuted.set()
        if self._reset:
            with contextlib.suppress(OSError):  # the client has disconnected already
                self._connection._raw.shutdown(socket.SHUT_RD)  # wakes the reader and sends nothing
        else:
            self._connection.shut()

    def _read(self) -> None:
        while not self._finishing:
            try:
                data = self._connection.receive()
            except ConnectionLost:
                return
            if not data:
                return
            self._unprocessed.append(data)
            if len(self._unprocessed) >= MAX_UNPROCESSED_READS:
                self._unmuted.wait()
            if self._unmuted.is_set():
                self._process_input()

    def _process_input(self) -> None:
        """Decode what was read; never waits."""
        try:
            while self._unprocessed:
                for event in self._inbound.receive(self._unprocessed.popleft()):
                    self._receive(event)
        except frames.FrameError as frame_error:
            self._unprocessed.clear()
            self.put(frames.encode_close(frame_error.code, frame_error.reason))
            self._finish()

    def _receive(self, event: frames.FrameEvent) -> None:
        if self._finishing:
            return
        if isinstance(event, frames.Message):
            payload = event.payload
            step = Step.SUBSCRIBE if self.session.authenticated else Step.AUTH
            self._schedule(step, lambda: self.session.receive(payload))
        elif isinstance(event, frames.Ping):
            self.put(frames.encode(frames.PONG, event.payload))
        elif isinstance(event, frames.Closed):
            self._close_received = True
            code = b"" if event.code == 1005 else struct.pack("!H", event.code)
            self.put(frames.encode(frames.CLOSE, code))
            self._finish()

    def _schedule(self, step: Step, action: Callable[[], list[Outcome]]) -> None:
        """Run an action after the pending ones and after the delay of slow acks."""
        delay = self._faults.ack_seconds if step is Step.SUBSCRIBE else 0
        self._held.append(_PendingAction(step, action, due=delay <= 0))
        if delay > 0:
            self._greenlets.append(gevent.spawn_later(delay, self._set_due, self._held[-1]))
        self.release()

    def _set_due(self, pending: _PendingAction) -> None:
        pending.due = True
        self.release()

    def _apply(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Respond):
                self.put_payload(wire.encode(outcome.document, self.codec))
            elif isinstance(outcome, Hangup):
                self._finish()
            else:
                self._report(self, outcome)

    def _expire(self) -> None:
        if not self._held and self._unmuted.is_set():
            self._apply(self.session.expire())

    def _overflow(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0
        if isinstance(self.session, MarketSession):
            self.put_payload(wire.encode(error(407), self.codec))
        self._finish()

    def _finish(self) -> None:
        """End the connection after the queue is written, at most CLOSE_SECONDS later."""
        if not self._finishing:
            self._finishing = True
            self._wake.set()
            self._room.set()
            self._drained.set()
            self._unmuted.set()
            self._greenlets.append(gevent.spawn_later(CLOSE_SECONDS, self._connection.shut))

    def _write(self) -> None:
        with contextlib.suppress(ConnectionLost):
            while not self._finishing:
                self._wake.wait()
                self._wake.clear()
                while self._queue:
                    self._unmuted.wait()
                    chunk = self._next_chunk()
                    if not self._connection.send(chunk, SEND_SECONDS):
                        break
                    self._queued_bytes = max(0, self._queued_bytes - len(chunk))
                    if self._queued_bytes < ROOM_BYTES:
                        self._room.set()
                if not self._queue:
                    self._drained.set()
        if not self._reset:
            self._connection.shut()

    def _next_chunk(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while self._queue and size < WRITE_BYTES:
            parts.append(self._queue.popleft())
            size += len(parts[-1])
        return b"".join(parts)

    def _abort(self) -> None:
        """Close the socket with a RST, before any shutdown, which would send a FIN."""
        raw = self._connection._raw
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
