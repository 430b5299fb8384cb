"""The counts of an outbox.

Each queued message is delivered, conflated or lost, and counted exactly once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import gevent
import pytest
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from proxy import gateway
from proxy.alpaca.codec import JSON
from proxy.alpaca.cooperative import Steps
from proxy.downstream import outbox
from proxy.downstream.outbox import Outbox, Outboxes
from proxy.transport import frames, time_slice
from proxy.transport.errors import ConnectionLost

STEPS = st.one_of(
    st.tuples(st.sampled_from(["put", "reply in steps"]), st.sampled_from([1, 40, 130, 70_000])),
    st.tuples(st.just("room"), st.sampled_from([0, 1, 50, 100_000])),
    st.tuples(
        st.sampled_from(
            ["yield", "sent", "stuck", "lost", "kill", "disconnect slow", "abort", "close", "ping", "reply"],
        ),
        st.just(0),
    ),
    st.tuples(st.just("conflation"), st.booleans()),
)


class Kernel:
    """A client's connection with `room` bytes left in its send buffer.

    A blocked send ends with `end_send`.
    """

    address = "127.0.0.1:1"

    def __init__(self, tls: bool) -> None:
        self.send_now = None if tls else self._take
        self.taken = b""
        self.room = 1 << 30
        self._result: str | None = None
        self._ended = Event()

    def _take(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        part = data[: self.room]
        self.room -= len(part)
        self.taken += part
        return len(part)

    def send(self, data: bytes, seconds: float) -> bool:
        if len(data) > self.room:
            self._ended.wait()
            self._ended.clear()
            if self._result == "lost":
                raise ConnectionLost("reset")
            if self._result == "stuck":
                return False
        self.taken += data
        return True

    def end_send(self, result: str) -> None:
        """End the blocked send, or the next one.

        It fails if `result` is "lost" or "stuck".
        """
        self._result = result
        self._ended.set()

    def shut(self) -> None: ...

    def limit_unsent(self, size: int) -> None: ...

    def whole_frames(self) -> Iterator[tuple[int, bytes]]:
        """Yield the opcodes and payloads of the frames that were sent whole."""
        at = 0
        while at + 2 <= len(self.taken):
            size = self.taken[at + 1]
            start = at + {126: 4, 127: 10}.get(size, 2)
            if size >= 126:
                size = int.from_bytes(self.taken[at + 2 : start], "big")
            if start + size > len(self.taken):
                return
            yield self.taken[at] & 0x0F, self.taken[start : start + size]
            at = start + size

    def messages(self) -> list[dict[str, Any]]:
        """The messages of the data frames that were sent whole, replies among them."""
        return [m for opcode, payload in self.whole_frames() if opcode == frames.TEXT for m in json.loads(payload)]


def in_steps(payload: bytes) -> Steps[bytes]:
    """A reply that takes three chunks of work."""
    for _ in range(3):
        yield
    return payload


def opened(tls: bool = False) -> tuple[Kernel, Outboxes, Outbox, Any]:
    kernel, outboxes = Kernel(tls), Outboxes(1 << 20)
    box = Outbox(cast(Any, kernel), outboxes, opcode=frames.TEXT, limit=150_000, slow_words=b"")
    writer = gevent.spawn(box.run)
    gevent.sleep(0)
    return kernel, outboxes, box, writer


def data(kind: str, *numbers: int, size: int = 1) -> bytes:
    """A data frame of messages of one symbol, of about this size."""
    messages = [{"T": kind, "S": "A", "i": number, "pad": "x" * (size // len(numbers))} for number in numbers]
    return frames.encode(frames.TEXT, JSON.encode(messages))


@given(st.lists(STEPS, max_size=40))
def test_each_message_is_counted_once(steps: list[tuple[str, int]]) -> None:
    """And whatever is sent is sent in order, with and without conflation."""
    kernel, outboxes, box, writer = opened()
    queued = 0
    for step, size in [*steps, ("yield", 0)]:
        if step == "put":
            box.put(data("tq"[queued % 4 > 0], queued, queued + 1, size=size), 2)
            queued += 2
        elif step == "reply":
            box.reply(b"[]")
        elif step == "reply in steps":
            box.reply_in_steps(in_steps(b"[%b]" % (b" " * size)))
        elif step == "conflation":
            box.start_conflation(JSON, lambda pair: None) if size else box.stop_conflation()
        elif step == "room":
            kernel.room = size
        elif step == "kill":
            writer.kill()
        elif step == "disconnect slow":
            box.disconnect_slow()
        elif step == "abort":
            box.close(frames.NORMAL, "")
            box.abort()
            kernel.end_send("lost")
        elif step == "close":
            box.close(frames.NORMAL, "")
        elif step == "ping":
            box.ping()
        else:
            kernel.end_send(step)
            gevent.sleep(0)
            gevent.sleep(0)
    writer.kill()
    numbers = [message["i"] for message in kernel.messages()]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == box.delivered
    assert box.delivered + box.conflated + box.lost == queued
    assert box.pending == outboxes.pending == 0
    assert not outboxes.open


def test_conflation_keeps_the_newest_of_what_replaces_and_everything_else() -> None:
    """In one order with the replies, and only of what is pending beyond BACKLOG_BYTES."""
    kernel, _, box, writer = opened()
    box.start_conflation(JSON, lambda pair: None)
    kernel.room = 0
    box.put(data("q", 0, size=outbox.BACKLOG_BYTES), 1)
    gevent.sleep(0)
    for number in range(1, 100, 3):
        box.put(data("q", number, number + 1), 2)
        box.put(data("t", number + 2), 1)
        if number == 49:
            box.reply(b'[{"T":"subscription"}]')
    box.close(frames.NORMAL, "")
    kernel.room = 1 << 30
    kernel.end_send("sent")
    writer.join(5)
    assert [m.get("i") for m in kernel.messages()] == [0, *range(3, 52, 3), None, *range(54, 99, 3), 98, 99]
    assert (box.delivered, box.conflated, box.lost) == (35, 65, 0)
    assert [opcode for opcode, _ in kernel.whole_frames()][-1] == frames.CLOSE


def test_what_cannot_be_conflated_fills_the_outbox() -> None:
    kernel, _, box, _writer = opened()
    box.start_conflation(JSON, lambda pair: None)
    kernel.room = 0
    for number in range(10_000):
        box.put(data("q", number, size=100), 1)
        if number % 4 == 0:
            box.put(data("t", number, size=100), 1)
        if box.slow:
            break
    assert box.slow
    assert box.delivered + box.conflated + box.lost + box._sending == number + 1 + number // 4 + 1
    assert 800 < box.lost < 1500


def test_a_large_frame_to_a_client_that_keeps_up_is_not_held_back() -> None:
    """Nothing is pending when it comes, and only the queue wakes the writer."""
    _, _, box, _ = opened(tls=True)
    box.start_conflation(JSON, lambda pair: None)
    box.put(data("t", 1, size=2 * outbox.BACKLOG_BYTES), 1)
    gevent.sleep(0)
    assert box.delivered == 1
    box.close(frames.NORMAL, "")
    gevent.sleep(0)


def test_what_is_pending_stays_so_when_conflation_stops() -> None:
    kernel, _, box, writer = opened()
    box.start_conflation(JSON, lambda pair: None)
    kernel.room = 0
    box.put(data("q", 0, size=outbox.BACKLOG_BYTES), 1)
    gevent.sleep(0)
    for number in range(1, 10):
        box.put(data("q", number), 1)
    box.stop_conflation()
    for number in range(10, 20):
        box.put(data("q", number), 1)
    box.close(frames.NORMAL, "")
    kernel.room = 1 << 30
    kernel.end_send("sent")
    writer.join(5)
    assert [message["i"] for message in kernel.messages()] == [0, *range(9, 20)]
    assert (box.delivered, box.conflated, box.lost) == (12, 8, 0)


def test_a_reply_in_steps_keeps_its_place() -> None:
    """Frames that are queued while it is computed come after it."""
    kernel, outboxes, box, writer = opened()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_slice, "SLICE_SECONDS", 0.0)
        box.reply_in_steps(in_steps(b"r" * 300))
        gevent.sleep(0)
        box.put(frames.encode(frames.BINARY, b"d"), 1)
        box.ping()
        box.close(frames.NORMAL, "")
        writer.join(5)
    assert [opcode for opcode, _ in kernel.whole_frames() if opcode != frames.PING] == [
        frames.TEXT,
        frames.BINARY,
        frames.CLOSE,
    ]
    assert (box.delivered, box.lost, box.pending, outboxes.pending) == (1, 0, 0, 0)


@pytest.mark.parametrize("end", ["disconnect slow", "abort", "kill"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_reply_in_steps_that_is_dropped(end: str, begun: bool) -> None:
    """Before it is computed, or in the middle."""
    kernel, outboxes, box, writer = opened()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_slice, "SLICE_SECONDS", 0.0)
        box.reply_in_steps(in_steps(b"r" * 300))
        box.reply_in_steps(in_steps(b"r" * 300))
        if begun:
            gevent.sleep(0)
        if end == "disconnect slow":
            box.disconnect_slow()
        elif end == "abort":
            kernel.room = 0
            kernel.end_send("lost")
            box.abort()
        gevent.sleep(0.01)
        writer.kill()
    assert box.lost == 0
    assert box.pending == outboxes.pending == 0
    assert not outboxes.open


def test_a_reply_in_steps_is_not_conflated() -> None:
    kernel, _, box, writer = opened()
    box.start_conflation(JSON, lambda pair: None)
    kernel.room = 0
    box.put(data("q", 0, size=outbox.BACKLOG_BYTES), 1)
    gevent.sleep(0)
    for number in (1, 2):
        box.put(data("q", number), 1)
        box.reply_in_steps(in_steps(b'[{"T":"subscription"}]'))
    kernel.room = 1 << 30
    kernel.end_send("sent")
    box.close(frames.NORMAL, "")
    writer.join(5)
    assert [message.get("i") for message in kernel.messages()] == [0, None, 2, None]
    assert (box.delivered, box.conflated, box.lost) == (2, 1, 0)


@pytest.mark.parametrize("end", ["lost", "stuck", "kill"])
def test_a_frame_that_is_being_sent_at_the_end_is_lost(end: str) -> None:
    kernel, _, box, writer = opened()
    kernel.room = 50
    for _ in range(3):
        box.put(data("t", 1, size=100), 7)
    gevent.sleep(0)
    if end == "kill":
        writer.kill()
    else:
        kernel.end_send(end)
        writer.join(5)
    assert (box.delivered, box.lost) == (0, 21)


def test_a_partly_sent_frame_is_completed_before_the_close_frame() -> None:
    kernel, _, box, writer = opened()
    kernel.room = 50
    box.put(data("t", 1, size=100), 1)
    box.put(data("t", 2, size=100), 2)
    box.disconnect_slow()
    kernel.room = 1000
    writer.join(5)
    assert [opcode for opcode, _ in kernel.whole_frames()] == [frames.TEXT, frames.CLOSE]
    assert (box.delivered, box.lost) == (1, 2)


def test_a_close_takes_at_most_five_seconds() -> None:
    """Up to one tick passes until the close is detected, and one until its timeout is."""
    assert 4 < outbox.CLOSE_FLUSH_SECONDS + 2 * gateway.TICK_SECONDS <= 5


def test_a_backlog_that_is_sent_at_once_does_not_hold_the_hub() -> None:
    """The peer reads again, and each send succeeds without a wait."""
    kernel, outboxes, box, writer = opened()
    box.limit = outboxes.limit = 1 << 30
    kernel.room = 0
    frame = frames.encode(frames.TEXT, bytes(60_000))
    for _ in range(300):
        box.put(frame, 1)
    kernel.room = 1 << 30
    turns = 0
    while box.pending:
        gevent.sleep(0)
        turns += 1
    assert turns > 3
    writer.kill()
