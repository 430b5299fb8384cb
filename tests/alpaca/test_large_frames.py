"""Large frames, cut into pieces: the same messages in the same order, or Malformed."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import large_frames
from proxy.alpaca.codec import JSON, MSGPACK, Codec, Malformed
from tests.alpaca.bodies import json_bodies, msgpack_bodies

CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
BODIES = {
    JSON: json_bodies().filter(lambda body: body[:1] in (b"{", b"[")),
    MSGPACK: msgpack_bodies(),
}


def cut(codec: Codec, frame: bytes) -> list[list[bytes]]:
    """The bodies of each piece."""
    frames = [piece for piece in large_frames.pieces(frame, codec) if piece is not None]
    return [[bytes(raw) for raw in codec.split(piece)[0]] for piece in frames]


@CODECS
@given(data=st.data())
def test_pieces_hold_the_bodies_of_the_frame(codec: Codec, data: st.DataObject) -> None:
    bodies = data.draw(st.lists(BODIES[codec], max_size=6))
    frame = codec.join(bodies)
    if codec is JSON and data.draw(st.booleans()):
        frame = b" \n[ " + b"\t, ".join(bodies) + b" ] "
    assert [body for piece in cut(codec, frame) for body in piece] == bodies


@CODECS
def test_pieces_are_bounded(codec: Codec) -> None:
    bodies = [codec.encode({"T": "t", "i": number, "x": "y" * (number % 700)}) for number in range(5000)]
    bodies.insert(2500, codec.encode({"T": "n", "x": "y" * 3 * large_frames.PIECE_BYTES}))
    found = cut(codec, codec.join(bodies))
    assert [body for piece in found for body in piece] == bodies
    assert max(len(piece) for piece in found) <= large_frames.PIECE_MESSAGES
    assert all(sum(map(len, piece)) <= large_frames.PIECE_BYTES for piece in found if len(piece) > 1)


@CODECS
@given(data=st.data())
def test_any_bytes_are_cut_or_malformed(codec: Codec, data: st.DataObject) -> None:
    """A frame that `split` refuses brings no messages beyond those in front of the mistake."""
    bodies = data.draw(st.lists(BODIES[codec], max_size=3))
    frame = codec.join(bodies)
    at = data.draw(st.integers(0, len(frame)))
    torn = frame[:at] + data.draw(st.binary(max_size=3)) + frame[at + data.draw(st.integers(0, 3)) :]
    try:
        found = [body for piece in cut(codec, torn) for body in piece]
    except Malformed:
        return
    assert [bytes(raw) for raw in codec.split(torn)[0]] == found


SIZE = 4_000_000


@pytest.mark.parametrize(
    ("codec", "frame"),
    [
        (JSON, b"[" + b"1," * (SIZE // 2) + b"1]"),
        (JSON, b"[" + b'"",' * (SIZE // 3) + b'""]'),
        (JSON, b"[{}" + b" " * SIZE + b"1]"),
        (JSON, b'[{"' + b'\\"' * (SIZE // 2)),
        (JSON, b"[" * SIZE),
        (MSGPACK, b"\x91" * SIZE),
        (MSGPACK, b"\xdd\xff\xff\xff\xff" + b"\x80" * 100),
        (MSGPACK, b"\x91\xdf\xff\xff\xff\xff" + b"\x80" * 100),
    ],
    ids=range(8),
)
def test_frames_that_are_malformed(codec: Codec, frame: bytes) -> None:
    """In time that grows with the frame, and no pause is longer than a few milliseconds."""
    longest, last = 0.0, time.thread_time()
    with pytest.raises(Malformed):  # noqa: PT012
        for _ in large_frames.pieces(frame, codec):
            now = time.thread_time()
            longest, last = max(longest, now - last), now
    assert longest < 0.02


def test_sixteen_megabytes_of_empty_objects_pause() -> None:
    """Each pause comes within a few milliseconds, and a piece is no larger than any other."""
    longest, last, count = 0.0, time.thread_time(), 0
    for piece in large_frames.pieces(b"[" + b"{}," * (SIZE // 3) + b"{}]", JSON):
        now = time.thread_time()
        longest, last = max(longest, now - last), now
        count += 0 if piece is None else piece.count(b"{")
    assert count == SIZE // 3 + 1
    assert longest < 0.02
