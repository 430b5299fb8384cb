"""The counts of an outbox.

Each queued message is delivered, conflated or lost, and counted exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import gevent
import pytest
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from proxy import gateway
from proxy.downstream import outbox
from proxy.downstream.outbox import Outbox, Outboxes
from proxy.transport import frames
from proxy.transport.errors import ConnectionLost

STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from([1, 40, 130, 70_000])),
    st.tuples(st.just("room"), st.sampled_from([0, 1, 50, 100_000])),
    st.tuples(
        st.sampled_from(
            ["yield", "sent", "stuck", "lost", "kill", "disconnect slow", "abort", "close", "ping"],
        ),
        st.just(0),
    ),
)


class Kernel:
    """A client's connection with `room` bytes left in its send buffer.

    A blocked send ends with `end_send`.
    """

    tls = False
    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.taken = b""
        self.room = 1 << 30
        self._result: str | None = None
        self._ended = Event()

    def try_send(self, data: bytes) -> int:
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

    def whole_frames(self) -> Iterator[int]:
        """Yield the opcodes of the frames that were sent whole."""
        at = 0
        while at + 2 <= len(self.taken):
            size = self.taken[at + 1]
            start = at + {126: 4, 127: 10}.get(size, 2)
            if size >= 126:
                size = int.from_bytes(self.taken[at + 2 : start], "big")
            if start + size > len(self.taken):
                return
            yield self.taken[at] & 0x0F
            at = start + size


def opened() -> tuple[Kernel, Outboxes, Outbox, Any]:
    kernel, outboxes = Kernel(), Outboxes(1 << 20)
    box = Outbox(cast(Any, kernel), outboxes, opcode=frames.BINARY, limit=150_000, slow_words=b"")
    writer = gevent.spawn(box.run)
    gevent.sleep(0)
    return kernel, outboxes, box, writer


@given(st.lists(STEPS, max_size=30))
def test_each_message_is_counted_once(steps: list[tuple[str, int]]) -> None:
    kernel, outboxes, box, writer = opened()
    queued = 0
    for step, size in [*steps, ("yield", 0)]:
        if step == "put":
            box.put(frames.encode(frames.BINARY, bytes(size)), 1)
            queued += 1
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
    assert list(kernel.whole_frames()).count(frames.BINARY) == box.delivered
    assert box.delivered + box.lost == queued
    assert box.pending == outboxes.pending == 0
    assert not outboxes.open


@pytest.mark.parametrize("end", ["lost", "stuck", "kill"])
def test_a_frame_that_is_being_sent_at_the_end_is_lost(end: str) -> None:
    kernel, _, box, writer = opened()
    kernel.room = 50
    for _ in range(3):
        box.put(frames.encode(frames.BINARY, bytes(100)), 7)
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
    box.put(frames.encode(frames.BINARY, bytes(100)), 1)
    box.put(frames.encode(frames.BINARY, bytes(100)), 2)
    box.disconnect_slow()
    kernel.room = 1000
    writer.join(5)
    assert list(kernel.whole_frames()) == [frames.BINARY, frames.CLOSE]
    assert (box.delivered, box.lost) == (1, 2)


def test_a_close_takes_at_most_five_seconds() -> None:
    """Up to one tick passes until the close is detected, and one until its timeout is."""
    assert 4 < outbox.CLOSE_FLUSH_SECONDS + 2 * gateway.TICK_SECONDS <= 5
