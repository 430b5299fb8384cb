"""One connection to the simulator: a greenlet that reads, one that writes, and the session that decides between them.

What is to be written waits in a queue, bounded in bytes, so that a client that does not read holds up nobody: over the
bound it is told 407 and dropped. A *muted* peer is half open: its socket stays, but what comes is not heard and what is
queued not written. A step that is *stalled* keeps what would be done until it is released.
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
SEND_SECONDS = 30
CLOSE_SECONDS = 1

MUTED = 16  # reads that a muted peer takes in before it stops reading

Session = MarketSession | TradingSession


@dataclass
class _Held:
    """Something to do at a step, once it is `ripe` and the step not stalled."""

    step: Step
    act: Callable[[], list[Outcome]]
    ripe: bool


class Peer:
    """A client's connection. `report(peer, outcome)` hears of the outcomes that concern more than this connection."""

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
        self._connection = connection
        self._faults = faults
        self._auth_seconds = auth_seconds
        self._report = report
        self._inbound = frames.Inbound(request_bytes)
        self._opcode = data_opcode(self.codec, isinstance(session, TradingSession))
        self._queue: deque[bytes] = deque()
        self._pending = 0
        self._wake = Event()
        self._audible = Event()
        self._audible.set()
        self._muted: deque[bytes] = deque()
        self._held: deque[_Held] = deque()
        self._finishing = False
        self._close_deadline = False
        self._reset = False
        self._greenlets: list[Any] = []

    def __repr__(self) -> str:
        return f"<Peer {self.number} {self.session!r} pending={self._pending}>"

    @property
    def live(self) -> bool:
        """Logged in, and not at its end."""
        return self.session.authenticated and not self._finishing

    def run(self, credentials: Credentials | None) -> None:
        """Holds the conversation, and returns when it is over."""
        writer = gevent.spawn(self._write)
        timer = gevent.spawn_later(self._auth_seconds, self._expire)
        self._greenlets += [writer, timer]
        try:
            self._do(Step.GREETING, lambda: self.session.open(credentials))
            self._read()
            if self._finishing:
                writer.join(CLOSE_SECONDS)
        finally:
            self._finishing = True
            self.session.end(farewell=self._close_deadline)
            # The connection must have no writer left when its handler returns.
            gevent.killall(self._greenlets)
            if self._reset:
                self._abort()
            self.ended.set()

    def put(self, frame: bytes) -> None:
        """Queues a frame. Over the bound the client is told that it is slow, and dropped; a muted one misses it."""
        if self._finishing:
            return
        if self._pending + len(frame) > QUEUE_BYTES:
            if self._audible.is_set():
                self._overflow()
            return
        self._queue.append(frame)
        self._pending += len(frame)
        self._wake.set()

    def put_payload(self, payload: bytes) -> None:
        """Queues a payload in a frame of the kind that this connection's data has."""
        self.put(frames.encode(self._opcode, payload))

    def encode(self, messages: Sequence[dict[str, Any]]) -> bytes:
        """Data messages as this connection's payload: an array, or on trading the one object."""
        if isinstance(self.session, TradingSession):
            (message,) = messages
            return wire.encode(message, self.codec)
        return wire.encode_data(messages, self.codec)

    def mute(self) -> None:
        """Is half open from now on. That the client has gone is still noticed."""
        self._audible.clear()

    def unmute(self) -> None:
        """Hears and says what has waited."""
        self._audible.set()
        self._listen()

    def release(self) -> None:
        """Does what was stalled, as far as it is so no longer."""
        while self._held and self._held[0].ripe and not self._faults.stalls(self.feed, self._held[0].step):
            self._perform(self._held.popleft().act())

    def drop(self, how: Drop) -> None:
        """Ends the connection; returns at once."""
        if how is Drop.CLOSE:
            self.put(frames.encode_close(frames.GOING_AWAY, "going away"))
            self._finish()
            return
        self._finishing = True
        self._reset = how is Drop.RST
        self._queue.clear()
        self._wake.set()
        self._audible.set()
        if self._reset:
            with contextlib.suppress(OSError):  # the client was first
                self._connection._raw.shutdown(socket.SHUT_RD)  # wakes the reader and says nothing to the client
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
            self._muted.append(data)
            if len(self._muted) >= MUTED:
                self._audible.wait()
            if self._audible.is_set():
                self._listen()

    def _listen(self) -> None:
        """Reads what has come; never waits."""
        try:
            while self._muted:
                for event in self._inbound.receive(self._muted.popleft()):
                    self._receive(event)
        except frames.FrameError as fault:
            self._muted.clear()
            self.put(frames.encode_close(fault.code, fault.reason))
            self._finish()

    def _receive(self, event: frames.FrameEvent) -> None:
        if self._finishing:
            return
        if isinstance(event, frames.Message):
            payload = event.payload
            step = Step.SUBSCRIBE if self.session.authenticated else Step.AUTH
            self._do(step, lambda: self.session.receive(payload))
        elif isinstance(event, frames.Ping):
            self.put(frames.encode(frames.PONG, event.payload))
        elif isinstance(event, frames.Closed):
            self._close_deadline = True
            code = b"" if event.code == 1005 else struct.pack("!H", event.code)
            self.put(frames.encode(frames.CLOSE, code))
            self._finish()

    def _do(self, step: Step, act: Callable[[], list[Outcome]]) -> None:
        """Does it at once, or when its turn comes."""
        late = self._faults.ack_seconds if step is Step.SUBSCRIBE else 0
        self._held.append(_Held(step, act, ripe=late <= 0))
        if late > 0:
            self._greenlets.append(gevent.spawn_later(late, self._ripen, self._held[-1]))
        self.release()

    def _ripen(self, held: _Held) -> None:
        held.ripe = True
        self.release()

    def _perform(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Respond):
                self.put_payload(wire.encode(outcome.document, self.codec))
            elif isinstance(outcome, Hangup):
                self._finish()
            else:
                self._report(self, outcome)

    def _expire(self) -> None:
        if not self._held:
            self._perform(self.session.expire())

    def _overflow(self) -> None:
        self._queue.clear()
        self._pending = 0
        if isinstance(self.session, MarketSession):
            self.put_payload(wire.encode(error(407), self.codec))
        self._finish()

    def _finish(self) -> None:
        """What is queued is still written, for a moment, and then the connection ends."""
        if not self._finishing:
            self._finishing = True
            self._wake.set()
            self._audible.set()
            self._greenlets.append(gevent.spawn_later(CLOSE_SECONDS, self._connection.shut))

    def _write(self) -> None:
        with contextlib.suppress(ConnectionLost):
            while not self._finishing:
                self._wake.wait()
                self._wake.clear()
                while self._queue:
                    self._audible.wait()
                    chunk = self._take()
                    if not self._connection.send(chunk, SEND_SECONDS):
                        break
                    self._pending = max(0, self._pending - len(chunk))
        if not self._reset:
            self._connection.shut()

    def _take(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while self._queue and size < WRITE_BYTES:
            parts.append(self._queue.popleft())
            size += len(parts[-1])
        return b"".join(parts)

    def _abort(self) -> None:
        """Closes the socket so that the kernel sends a RST: it has to happen before anyone says FIN."""
        raw = self._connection._raw
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
