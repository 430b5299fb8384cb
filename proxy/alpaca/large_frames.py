"""A large data frame of Alpaca's, cut into small ones.

To split a frame takes time, and some 200 bytes of memory for each message in it: 16 MB of empty objects held the hub
for 9.5 s and took 900 MB. So a frame over LARGE_FRAME_BYTES is scanned for its messages in Python, which is slower and
can pause, and is passed on in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from proxy.alpaca.codec import JSON, Codec, Malformed

LARGE_FRAME_BYTES = 256 * 1024
PIECE_BYTES, PIECE_MESSAGES = 64 * 1024, 500
TOKENS = 1000  # that are scanned between two pauses, in some 0.3 ms

# A text, which may hold brackets, or a bracket. A text that is not ended reaches to the end of the frame, so that no
# byte is scanned twice.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[][{}]', re.DOTALL)
_BEGIN = re.compile(rb"[ \t\r\n]*\[[ \t\r\n]*")
_NOTHING = re.compile(rb"")
_SEPARATOR = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_END = re.compile(rb"[ \t\r\n]*\][ \t\r\n]*")


def pieces(frame: bytes, codec: Codec) -> Iterator[bytes | None]:
    """Data frames that together hold the messages of a large one, in their order; None is a pause.

    Each has at most PIECE_MESSAGES messages and PIECE_BYTES, unless it is a single message. Raises Malformed, perhaps
    after some pieces, if the frame is no array of objects.
    """
    bodies: list[bytes] = []
    size = 0
    for body in (_json_bodies if codec is JSON else _msgpack_bodies)(frame):
        if body is None:
            yield None
            continue
        if bodies and (len(bodies) == PIECE_MESSAGES or size + len(body) > PIECE_BYTES):
            yield codec.join(bodies)
            bodies, size = [], 0
        bodies.append(body)
        size += len(body)
    if bodies:
        yield codec.join(bodies)


def _json_bodies(frame: bytes) -> Iterator[bytes | None]:
    begin = _BEGIN.match(frame)
    if begin is None:
        raise Malformed("not an array of json messages")
    depth, start, end = 0, 0, begin.end()
    for number, token in enumerate(_TOKEN.finditer(frame, end)):
        mark = token[0]
        if mark in (b"{", b"["):
            if not depth:
                between = _SEPARATOR if start else _NOTHING
                if not between.fullmatch(frame, end, token.start()):
                    break
                start = token.start()
            depth += 1
        elif mark in (b"}", b"]"):
            if not depth:
                if not _END.fullmatch(frame, end):
                    break
                return
            depth -= 1
            if not depth:
                end = token.end()
                yield frame[start:end]
        elif not depth:
            break
        if number % TOKENS == TOKENS - 1:
            yield None
    raise Malformed("not an array of json messages")


def _sizes() -> list[int]:
    """By its first byte, how many bytes follow in a msgpack value of fixed size; -1 for the other values."""
    sizes = [0] * 0x80 + [-1] * 0x80
    sizes[0xA0:0xC0] = range(32)  # fixstr
    sizes[0xE0:0x100] = [0] * 0x20  # negative fixint
    for first, size in {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}.items():
        sizes[first] = size
    sizes[0xCC:0xD4] = [1, 2, 4, 8] * 2  # uint, int
    sizes[0xD4:0xD9] = [2, 3, 5, 9, 17]  # fixext
    return sizes


_SIZES = _sizes()
# Of the other values: how many bytes hold the length; and what is to be added to it, or how many values it counts.
_BYTES = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}  # bin, ext
_BYTES |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}  # str
_VALUES = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # array, map


def _msgpack_bodies(frame: bytes) -> Iterator[bytes | None]:
    try:
        yield from _msgpack_values(frame)
    except IndexError:
        raise Malformed("not an array of msgpack messages") from None


def _msgpack_values(frame: bytes) -> Iterator[bytes | None]:
    """The values of the array that the frame is (msgpack's specification, "Formats"). Raises Malformed, IndexError."""
    first = frame[0]
    if 0x90 <= first <= 0x9F:
        count, at = first & 0x0F, 1
    elif first in (0xDC, 0xDD):
        at = 3 if first == 0xDC else 5
        count = int.from_bytes(frame[1:at], "big")
    else:
        raise Malformed("not an array of msgpack messages")
    tokens, length = 0, len(frame)
    for _ in range(count):
        start, left = at, 1
        while left:
            first = frame[at]
            size = _SIZES[first]
            at += 1
            left -= 1
            if size >= 0:
                at += size
            elif first < 0xA0:
                left += first & 0x0F if first >= 0x90 else 2 * (first & 0x0F)
            elif first in _BYTES:
                width, more = _BYTES[first]
                at += width + more + int.from_bytes(frame[at : at + width], "big")
            elif first in _VALUES:
                width, each = _VALUES[first]
                left += each * int.from_bytes(frame[at : at + width], "big")
                at += width
            else:
                raise Malformed("not an array of msgpack messages")
            tokens += 1
            if tokens % TOKENS == 0:
                yield None
        if at > length:
            raise Malformed("a msgpack frame that is cut off")
        yield frame[start:at]
    if at != length:
        raise Malformed("bytes after a msgpack frame")
