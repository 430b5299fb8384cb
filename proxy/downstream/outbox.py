"""A session's bounded outbox, and the writer greenlet that empties it.

Whoever has something for a client calls `put` (or `reply`, `ping`, `pong`, `close`); that never blocks nor raises.
One greenlet, `run`, owns the connection's sends. It takes all that has piled up and sends it at once, so an idle client
gets each frame as it comes and a busy one gets many in one call; there is no timer. When nothing is pending and the
writer waits, `put` writes at once without blocking, which saves the switch to it.

The bound is in bytes. A client that lets its outbox overflow, or a send wait for SEND_SECONDS, is *slow*. With
conflation its pending messages are thinned out; else, or if that does not help, it is told 407 and closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gevent.queue import Queue

from proxy.observe.logs import Log
from proxy.transport import frames
from proxy.transport.connection import ClientConnection
from proxy.transport.errors import ConnectionLost

SEND_SECONDS = 10.0
CLOSE_FLUSH_SECONDS = 4.5  # and two ticks until a close is noticed, and its end: 5 at most
WRITE_BYTES = 64 * 1024
CONFLATE_BYTES = 1024 * 1024  # conflation begins here, so that it never has much to read at once

Conflate = Callable[[Sequence[bytes]], tuple[list[bytes], int]]


class Outboxes:
    """All outboxes together, and the bound on what is pending in them, in bytes. Over it, the fullest gives way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = 0
        self.open: set[Outbox] = set()

    def __repr__(self) -> str:
        return f"<Outboxes {len(self.open)} with {self.pending} of {self.limit} bytes>"

    def enforce_limit(self) -> None:
        """The fullest one gives way. What is on its way to it stays pending until it is sent or the time for that is
        over; if that alone is too much, the fullest is not waited for."""
        while self.pending > self.limit and self.open:
            fullest = max(self.open, key=lambda outbox: outbox.pending)
            if fullest.closing is None:
                fullest.disconnect_slow()
            else:
                fullest.abort()


class Outbox:
    """What is pending for one session.

    `opcode` is that of its data frames, `slow_words` the payload that tells a slow client so (empty for none). `limit`
    (bytes) and `conflate` may be set once the client is known.
    """

    def __init__(
        self, connection: ClientConnection, outboxes: Outboxes, *, opcode: int, limit: int, slow_words: bytes
    ) -> None:
        self.limit = limit
        self.conflate: Conflate | None = None
        self.pending = 0  # bytes, those that are being sent included
        self.delivered = 0  # messages
        self.lost = 0  # messages dropped here, thinned out ones not included
        self.conflated = 0
        self.slow = False
        self.closing: tuple[int, str] | None = None
        self._connection = connection
        self._outboxes = outboxes
        self._opcode = opcode
        self._slow_words = slow_words
        self._queue: Queue[tuple[bytes, int]] = Queue()
        self._rest = b""  # of a frame that went out in part: nothing may come before it
        self._sending = 0  # the messages of that frame, then those of all that is being sent
        self._urgent: dict[int, bytes] = {}  # the newest ping and pong, ahead of everything else
        self._waiting = False  # the writer waits for something to do
        self._conflate_at = CONFLATE_BYTES
        outboxes.open.add(self)

    def __repr__(self) -> str:
        state = " closing" if self.closing else ""
        return f"<Outbox {self._connection.address} {self.pending} of {self.limit} bytes{state}>"

    def put(self, frame: bytes, messages: int) -> None:
        """A data frame that carries so many messages; its bytes may be shared with other outboxes."""
        if self.closing is not None:
            self.lost += messages
            return
        if not self.pending and self._waiting and not self._connection.tls:
            try:
                sent = self._connection.try_send(frame)
            except ConnectionLost:
                self.lost += messages
                self._connection.shut()
                return
            if sent == len(frame):
                self.delivered += messages
                return
            if sent:
                self._rest, self._sending = frame[sent:], messages
                self._count(len(self._rest))
                self._queue.put_nowait((b"", 0))  # wakes the writer
                self._outboxes.enforce_limit()
                return
        self._append(frame, messages)
        self._check()

    def reply(self, payload: bytes) -> None:
        """A control message: in order with the data, a frame of its own. Nothing, for an empty one."""
        if payload and self.closing is None:
            self._append(frames.encode(self._opcode, payload), 0)
            self._check()

    def ping(self) -> None:
        """A keep-alive ping, ahead of what is pending."""
        self._put_urgent(frames.PING, b"")

    def pong(self, payload: bytes) -> None:
        """The answer to a ping, ahead of what is pending. Only the newest ping counts (RFC 6455 §5.5.3)."""
        self._put_urgent(frames.PONG, payload)

    def close(self, code: int, reason: str) -> None:
        """What is pending is still sent, then a close frame; from now on nothing is taken."""
        if self.closing is None:
            self._append(frames.encode_close(code, reason), 0)
            self.closing = (code, reason)

    def disconnect_slow(self) -> None:
        """The client is slow: what is pending is lost, and it is told so."""
        if self.closing is None:
            self.slow = True
            self._discard()
            self.reply_unbounded(self._slow_words)
            self.close(frames.POLICY, "slow client")

    def abort(self) -> None:
        """Ends the connection without another word; nothing is pending any more."""
        self._discard()
        self._count(-self.pending)
        self._connection.shut()

    def reply_unbounded(self, payload: bytes) -> None:
        """A control message that no bound keeps back, right before a close."""
        if payload:
            self._append(frames.encode(self._opcode, payload), 0)

    def run(self) -> None:
        """The writer: until the close frame is out, the client is gone, or a send has waited too long."""
        try:
            while self.closing is None or self.pending:
                data, pending = self._gather()
                seconds = SEND_SECONDS if self.closing is None else CLOSE_FLUSH_SECONDS
                sent = self._connection.send(data, seconds)
                self._count(-pending)
                if not sent:
                    self.slow = self.slow or self.closing is None
                    self._connection.shut()
                    return
                self.delivered += self._sending
                self._sending = 0
        except ConnectionLost:
            self._connection.shut()
        finally:
            self._waiting = False
            self.closing = self.closing or (frames.NORMAL, "the client is gone")  # nothing is taken any more
            self._discard()
            self.lost += self._sending
            self._count(-self.pending)
            self._outboxes.open.discard(self)

    def _gather(self) -> tuple[bytes, int]:
        """Waits for something; then all that has piled up, and how much of `pending` it is. Its messages have begun."""
        self._waiting = True
        frame, messages = self._queue.get()
        self._waiting = False
        batch = [self._rest, frame]
        size = len(self._rest) + len(frame)
        while size < WRITE_BYTES and not self._queue.empty():
            frame, more = self._queue.get_nowait()
            batch.append(frame)
            size += len(frame)
            messages += more
        self._sending += messages
        if self._urgent:
            batch[1:1] = self._urgent.values()
            self._urgent.clear()
        self._rest = b""
        return b"".join(batch), size

    def _put_urgent(self, opcode: int, payload: bytes) -> None:
        if self.closing is None:
            idle = not self._urgent and self._queue.empty()
            self._urgent[opcode] = frames.encode(opcode, payload)
            if idle:
                self._queue.put_nowait((b"", 0))  # wakes the writer

    def _append(self, frame: bytes, messages: int) -> None:
        self._count(len(frame))
        self._queue.put_nowait((frame, messages))

    def _count(self, size: int) -> None:
        self.pending += size
        self._outboxes.pending += size

    def _check(self) -> None:
        """Over a bound? Then the slow one is this one, or the fullest of all."""
        if self.conflate is not None and self.pending > min(self._conflate_at, self.limit):
            self._conflate_pending(self.conflate)
        if self.pending > self.limit:
            self.disconnect_slow()
        else:
            self._outboxes.enforce_limit()

    def _conflate_pending(self, conflate: Conflate) -> None:
        payloads = []
        messages = 0
        while not self._queue.empty():
            frame, more = self._queue.get_nowait()
            self._count(-len(frame))
            messages += more
            if frame:
                payloads.append(frames.payload_of(frame))
        try:
            kept, dropped = conflate(payloads)
        except Exception:  # a bug: nothing is left out, and the bound will do its work
            Log("outbox", address=self._connection.address).error("internal_error")
            kept, dropped = payloads, 0
        self.conflated += dropped
        left = messages - dropped
        for payload in kept:
            self._append(frames.encode(self._opcode, payload), left)
            left = 0  # counted with the first: they go out together or not at all
        self._conflate_at = max(CONFLATE_BYTES, 2 * self.pending)

    def _discard(self) -> None:
        """Drops what waits; what is being sent, or was sent in part, goes on."""
        while not self._queue.empty():
            frame, messages = self._queue.get_nowait()
            self._count(-len(frame))
            self.lost += messages
        if self._rest:
            self._queue.put_nowait((b"", 0))  # the writer must still finish that frame
