"""A session's bounded queue of outgoing frames, and the greenlet that sends it.

`put`, `reply`, `ping`, `pong` and `close` queue a frame; they never block and never raise. One greenlet, `run`, owns
the connection's sends. It sends all pending frames in one call, so an idle client gets each frame as it comes and a
busy one gets many at once; there is no timer. When nothing is pending and the writer waits, `put` writes the frame
itself without blocking, which saves a greenlet switch.

The bound is in bytes. A client is *slow* if its outbox overflows, and for nothing else: a send may wait. It is sent 407
and closed. With conflation, what is pending beyond BACKLOG_BYTES is in a `Backlog`, where newer messages replace
outdated ones, and the kernel is given little in advance, since it drops nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gevent.queue import Queue

from proxy.alpaca.codec import Codec, Malformed, Raw
from proxy.alpaca.cooperative import Deferred, Steps, run_to_end
from proxy.config.model import Config
from proxy.observe.logs import Log
from proxy.routing.conflation import Backlog, WholeBook
from proxy.transport import frames
from proxy.transport.connection import ClientConnection
from proxy.transport.errors import ConnectionLost
from proxy.transport.time_slice import TimeSlice

CLOSE_FLUSH_SECONDS = 4.5  # `ClientSession.tick` enforces it, up to two ticks later: 5 s at most
WRITE_BYTES = 64 * 1024
BACKLOG_BYTES = 64 * 1024  # with this much pending, conflation starts: a client that keeps up does not pay for it
UNSENT_BYTES = 32 * 1024  # that the kernel takes in advance, with conflation; by default it may take 4 MiB


class Outboxes:
    """All open outboxes, and the bound on their pending bytes in total."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = 0
        self.open: set[Outbox] = set()

    def __repr__(self) -> str:
        return f"<Outboxes {len(self.open)} with {self.pending} of {self.limit} bytes>"

    def configure(self, config: Config) -> None:
        """Apply a configuration."""
        self.limit = config.limits.outboxes

    def enforce_limit(self) -> None:
        """Disconnect the slowest clients until the total is within the limit.

        The slowest client is the one with the most pending bytes. Bytes that are being sent stay pending until they are
        sent or the send times out. If they alone exceed the limit, the fullest connection is aborted.
        """
        while self.pending > self.limit and self.open:
            fullest = max(self.open, key=lambda outbox: outbox.pending)
            if fullest.closing is None:
                fullest.disconnect_slow()
            else:
                fullest.abort()


class Outbox:
    """The pending frames of one session.

    `opcode` is that of its data frames, `slow_words` the payload of the last message to a slow client (empty for none).
    `limit` (bytes) may be changed later, when the client has authenticated; without `close_frame`, the connection is
    closed by TCP alone. `encode(opcode, payload)` returns the frames of control messages, pings and pongs.
    """

    def __init__(
        self,
        connection: ClientConnection,
        outboxes: Outboxes,
        *,
        opcode: int,
        limit: int,
        slow_words: bytes,
        encode: Callable[[int, bytes], bytes] = frames.encode,
    ) -> None:
        self.limit = limit
        self.close_frame = True
        self.pending = 0  # bytes, including those that are being sent
        self.delivered = 0  # messages
        self.lost = 0  # messages dropped here, without those that conflation drops
        self.conflated = 0
        self.deferred = 0  # replies that are not computed yet
        self.slow = False
        self.closing: tuple[int, str] | None = None
        self._connection = connection
        self._outboxes = outboxes
        self._opcode = opcode
        self._encode = encode
        self._slow_words = slow_words
        self._queue: Queue[tuple[bytes | Deferred, int]] = Queue()
        self._rest = b""  # of a frame that was sent in part: no other bytes may come before it
        self._sending = 0  # the number of messages in `_rest`, or in the batch that is being sent
        self._urgent: dict[int, bytes] = {}  # the newest ping and pong, sent before everything else
        self._send_now: Callable[[bytes], int] | None = None  # while nothing is pending and the writer waits
        self._conflates = False
        self._backlog: Backlog | None = None  # what comes after `_queue`, for a client with conflation that is behind
        outboxes.open.add(self)

    def __repr__(self) -> str:
        state = " closing" if self.closing else ""
        return f"<Outbox {self._connection.address} {self.pending} of {self.limit} bytes{state}>"

    def start_conflation(self, codec: Codec, whole_book: WholeBook) -> None:
        """Conflate what will be pending; nothing changes if that is so already.

        `codec` is that of the data frames, `whole_book` returns the body of a pair's order book, or None.
        """
        if not self._conflates:
            self._conflates = True
            if self._backlog is None:
                encode = partial(frames.encode, frames.TEXT if codec.text else frames.BINARY)
                self._backlog = Backlog(codec, partial(self._book_or_none, whole_book), encode)
            self._connection.limit_unsent(UNSENT_BYTES)

    def stop_conflation(self) -> None:
        """Conflate nothing any more. What is pending stays pending."""
        if self._conflates:
            self._conflates = False
            self._connection.limit_unsent(0)
        if not self._backlog:
            self._backlog = None

    def put(self, frame: bytes, messages: int) -> None:
        """Queue a data frame with this number of messages.

        Its bytes may be shared with other outboxes.
        """
        if (send := self._send_now) is not None:
            try:
                sent = send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
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
        if self.closing is not None:
            self.lost += messages
            return
        if self._conflates and (self._backlog or (self.pending and self.pending + len(frame) > BACKLOG_BYTES)):
            self._conflate(frame, messages)
        else:
            self._append(frame, messages)
        self._check_limits()

    def reply(self, payload: bytes) -> None:
        """Queue a control message in a frame of its own, in order with the data.

        An empty payload is not sent.
        """
        if payload and self.closing is None:
            self._append(self._encode(self._opcode, payload), 0)
            self._check_limits()

    def reply_in_steps(self, payload: Steps[bytes]) -> None:
        """Queue a control message that the writer computes when its turn has come.

        So an acknowledgement of thousands of topics delays only this client. It counts one byte until it is computed,
        so no data frame overtakes it; the session bounds `deferred`.
        """
        if self.closing is None:
            self.deferred += 1
            self._append(Deferred(payload), 0)

    def ping(self) -> None:
        """Queue a keep-alive ping ahead of the pending frames."""
        self._put_urgent(frames.PING, b"")

    def pong(self, payload: bytes) -> None:
        """Queue a pong ahead of the pending frames.

        It replaces a pending one (RFC 6455 §5.5.3).
        """
        self._put_urgent(frames.PONG, payload)

    def close(self, code: int, reason: str) -> None:
        """Queue a close frame after the pending frames; nothing is accepted afterwards.

        Without `close_frame`, the connection's end takes its place.
        """
        if self.closing is None:
            self._append(frames.encode_close(code, reason) if self.close_frame else b"", 0)
            self.closing = (code, reason)

    def disconnect_slow(self) -> None:
        """Drop the pending frames and close the connection of a slow client with 407."""
        if self.closing is None:
            self.slow = True
            self._discard()
            self.reply_unbounded(self._slow_words)
            self.close(frames.POLICY, "slow client")

    def abort(self) -> None:
        """Shut the connection down without a close frame; nothing is pending afterwards."""
        self._discard()
        self._count(-self.pending)
        self._connection.shut()

    def reply_unbounded(self, payload: bytes) -> None:
        """Queue a control message without a check of the limits, right before a close."""
        if payload:
            self._append(self._encode(self._opcode, payload), 0)

    def run(self) -> None:
        """Send pending frames until the session ends.

        It ends when the close frame is sent, the client is gone, or a send times out.
        """
        time_slice = TimeSlice()
        try:
            while self.closing is None or self.pending:
                if self.pending and time_slice.over():  # a send does not block while the peer keeps up
                    time_slice.yield_to_hub()
                data, pending = self._gather()
                seconds = None if self.closing is None else CLOSE_FLUSH_SECONDS
                sent = self._connection.send(data, seconds)
                self._count(-min(pending, self.pending))  # nothing is pending after `abort`
                if not sent:
                    self._connection.shut()
                    return
                self.delivered += self._sending
                self._sending = 0
            if not self.close_frame:
                self._connection.finish()
        except ConnectionLost:
            self._connection.shut()
        finally:
            self._send_now = None
            self.closing = self.closing or (frames.NORMAL, "the client is gone")  # nothing is accepted any more
            self._discard()
            self.lost += self._sending
            self._count(-self.pending)
            self._outboxes.open.discard(self)

    def _gather(self) -> tuple[bytes, int]:
        """Wait for a frame; return a batch of the pending frames and its bytes.

        The bytes are the batch's share of `pending`. The batch's messages are counted in `_sending`.
        """
        if self._backlog and self._queue.empty():
            self._refill(self._backlog)
        self._send_now = self._connection.send_now if not self.pending and self.closing is None else None
        queued, messages = self._queue.get()
        self._send_now = None
        frame = queued if isinstance(queued, bytes) else self._computed(queued)
        batch = [self._rest, frame]
        size = len(self._rest) + len(frame)
        while size < WRITE_BYTES and not self._queue.empty():
            queued, more = self._queue.get_nowait()
            frame = queued if isinstance(queued, bytes) else self._computed(queued)
            batch.append(frame)
            size += len(frame)
            messages += more
        self._sending += messages
        if self._urgent:
            batch[1:1] = self._urgent.values()
            self._urgent.clear()
        self._rest = b""
        return b"".join(batch), size

    def _computed(self, queued: Deferred) -> bytes:
        """Compute a queued frame, with pauses."""
        self.deferred -= 1
        frame = self._encode(self._opcode, run_to_end(queued.steps, TimeSlice().pause))
        self._count(len(frame) - len(queued))
        return frame

    def _put_urgent(self, opcode: int, payload: bytes) -> None:
        if self.closing is None:
            idle = not self._urgent and self._queue.empty()
            self._urgent[opcode] = self._encode(opcode, payload)
            if idle:
                self._queue.put_nowait((b"", 0))  # wakes the writer

    def _append(self, frame: bytes | Deferred, messages: int) -> None:
        """Queue a frame as it is, behind everything that is pending."""
        if self._backlog:
            before = self._backlog.size
            self._backlog.add_whole(frame, messages)
            self._count(self._backlog.size - before)
        else:
            self._count(len(frame))
            self._queue.put_nowait((frame, messages))

    def _conflate(self, frame: bytes, messages: int) -> None:
        """Add a data frame to the backlog.

        There must be something pending, since only the queue wakes the writer.
        """
        backlog = self._backlog
        assert backlog is not None
        before = backlog.size
        try:
            self.conflated += backlog.add(frames.payload_of(frame))
        except Exception as error:
            if not isinstance(error, Malformed):
                self._log_error()
            backlog.add_whole(frame, messages)
        self._count(backlog.size - before)

    def _book_or_none(self, whole_book: WholeBook, pair: str) -> Raw | bytes | None:
        try:
            return whole_book(pair)
        except Exception:  # the updates of the book are not replaced, and the limit still applies
            self._log_error()
            return None

    def _log_error(self) -> None:
        Log("outbox", address=self._connection.address).error("internal_error")

    def _refill(self, backlog: Backlog) -> None:
        """Move the oldest of the backlog to the queue."""
        before = backlog.size
        for frame, messages in backlog.take(WRITE_BYTES):
            self._queue.put_nowait((frame, messages))
            self._count(len(frame))
        self._count(backlog.size - before)

    def _count(self, size: int) -> None:
        self._send_now = None
        self.pending += size
        self._outboxes.pending += size

    def _check_limits(self) -> None:
        """Enforce the limit of this outbox, then that of all outboxes."""
        if self.pending > self.limit:
            self.disconnect_slow()
        else:
            self._outboxes.enforce_limit()

    def _discard(self) -> None:
        """Drop the queued frames, except the rest of a frame that was sent in part."""
        queued = self._queue.queue  # cleared as a whole: an outbox of 8 MiB may have 70,000 small frames
        self._count(-sum(len(frame) for frame, _ in queued))
        self.lost += sum(messages for _, messages in queued)
        queued.clear()
        if self._backlog:
            self._count(-self._backlog.size)
            self.lost += self._backlog.messages
            self._backlog.clear()
        if self._rest:
            self._queue.put_nowait((b"", 0))  # the writer must still finish that frame
