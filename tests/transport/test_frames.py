"""Frames of clients, by RFC 6455 §4-§7: a table of outcomes, and properties.

The table runs on the pure parser, with the bytes whole and in pieces; a part of it also runs over real sockets.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode

from proxy.transport import frames
from proxy.transport.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Closed,
    FrameError,
    FrameEvent,
    Inbound,
    Message,
    Ping,
    Pong,
)
from proxy.transport.listener import Listener
from tests.transport import echo as echo_server

LIMIT = 70_000
CONTINUATION = 0
KEY = bytes.fromhex("37fa213d")  # from the examples in RFC 6455 §5.7
PROTOCOL_ERROR, NOT_UTF8, TOO_BIG = 1002, 1007, 1009
EURO = "€".encode()

Outcome = list[FrameEvent | int]  # events, and at the end the close code of the error, if there is one


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = KEY,
    size: int | None = None,
    width: int | None = None,
) -> bytes:
    """Return a client's frame, which may be invalid.

    `size` replaces the payload's length in the header, and `width` its number of bits. Without a `key`, the payload is
    not masked.
    """
    size = len(payload) if size is None else size
    width = width or (7 if size < 126 else 16 if size < 1 << 16 else 64)
    length = {
        7: bytes((size & 0x7F,)),
        16: b"\x7e" + (size & 0xFFFF).to_bytes(2, "big"),
        64: b"\x7f" + size.to_bytes(8, "big"),
    }[width]
    first = bytes((fin << 7 | rsv << 4 | opcode,))
    if key is None:
        return first + length + payload
    masked = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
    return first + bytes((length[0] | 0x80,)) + length[1:] + key + masked


def fragments(opcode: int, *parts: bytes) -> bytes:
    """Return one message, each part in a frame of its own."""
    last = len(parts) - 1
    return b"".join(frame(CONTINUATION if at else opcode, part, fin=at == last) for at, part in enumerate(parts))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def binary(payload: bytes) -> Message:
    return Message(payload, text=False)


CASES: dict[str, tuple[bytes, Outcome]] = {
    # Lengths (§5.2)
    "text": (frame(TEXT, b"Hello"), [Message(b"Hello")]),
    "the RFC's own example": (bytes.fromhex("818537fa213d7f9f4d5158"), [Message(b"Hello")]),
    "binary": (frame(BINARY, b"\x00\xff"), [binary(b"\x00\xff")]),
    "empty text": (frame(TEXT), [Message(b"")]),
    "empty binary": (frame(BINARY), [binary(b"")]),
    "125 bytes": (frame(TEXT, b"x" * 125), [Message(b"x" * 125)]),
    "126 bytes": (frame(TEXT, b"x" * 126), [Message(b"x" * 126)]),
    "127 bytes": (frame(TEXT, b"x" * 127), [Message(b"x" * 127)]),
    "65535 bytes": (frame(TEXT, b"x" * 65535), [Message(b"x" * 65535)]),
    "65536 bytes": (frame(TEXT, b"x" * 65536), [Message(b"x" * 65536)]),
    "0 bytes in 16 bits": (frame(TEXT, width=16), [PROTOCOL_ERROR]),
    "125 bytes in 16 bits": (frame(TEXT, b"x" * 125, width=16), [PROTOCOL_ERROR]),
    "126 bytes in 64 bits": (frame(TEXT, b"x" * 126, width=64), [PROTOCOL_ERROR]),
    "65535 bytes in 64 bits": (frame(TEXT, b"x" * 65535, width=64), [PROTOCOL_ERROR]),
    "2^63 bytes announced": (frame(TEXT, size=1 << 63), [PROTOCOL_ERROR]),
    "2^64 - 1 bytes announced": (frame(BINARY, size=(1 << 64) - 1), [PROTOCOL_ERROR]),
    "three messages at once": (
        frame(TEXT, b"a") + frame(BINARY, b"b") + frame(TEXT),
        [Message(b"a"), binary(b"b"), Message(b"")],
    ),
    # Masks (§5.3)
    "text without a mask": (frame(TEXT, b"Hello", key=None), [PROTOCOL_ERROR]),
    "empty text without a mask": (frame(TEXT, key=None), [PROTOCOL_ERROR]),
    "ping without a mask": (frame(PING, key=None), [PROTOCOL_ERROR]),
    "close without a mask": (frame(CLOSE, key=None), [PROTOCOL_ERROR]),
    "a mask of zeros": (frame(TEXT, b"Hello", key=bytes(4)), [Message(b"Hello")]),
    "a mask of ones": (frame(TEXT, b"Hello", key=b"\xff" * 4), [Message(b"Hello")]),
    "a whole frame, then one without a mask": (
        frame(TEXT, b"a") + frame(TEXT, b"b", key=None),
        [Message(b"a"), PROTOCOL_ERROR],
    ),
    # Reserved bits and opcodes (§5.2)
    **{f"RSV{4 - bit.bit_length()}": (frame(TEXT, b"x", rsv=bit), [PROTOCOL_ERROR]) for bit in (4, 2, 1)},
    "RSV1 on a ping": (frame(PING, rsv=4), [PROTOCOL_ERROR]),
    "RSV1 on a continuation": (frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"y", rsv=4), [PROTOCOL_ERROR]),
    **{f"opcode {code:X}": (frame(code, b"x"), [PROTOCOL_ERROR]) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    # Control frames (§5.5)
    "ping": (frame(PING, b"Hello"), [Ping(b"Hello")]),
    "empty ping": (frame(PING), [Ping(b"")]),
    "ping of 125 bytes": (frame(PING, b"\xff" * 125), [Ping(b"\xff" * 125)]),
    "ping of 126 bytes": (frame(PING, b"x" * 126), [PROTOCOL_ERROR]),
    "close of 126 bytes": (close(1000, b"x" * 124), [PROTOCOL_ERROR]),
    "unsolicited pong": (frame(PONG, b"Hello"), [Pong(b"Hello")]),
    "pong of 65536 bytes announced": (frame(PONG, size=65536), [PROTOCOL_ERROR]),
    "ping in fragments": (frame(PING, b"x", fin=False), [PROTOCOL_ERROR]),
    "pong in fragments": (frame(PONG, b"x", fin=False), [PROTOCOL_ERROR]),
    "close in fragments": (frame(CLOSE, b"\x03\xe8", fin=False), [PROTOCOL_ERROR]),
    # Fragments (§5.4)
    "two fragments": (fragments(TEXT, b"Hel", b"lo"), [Message(b"Hello")]),
    "three binary fragments": (fragments(BINARY, b"\xff", b"\x00", b"\xfe"), [binary(b"\xff\x00\xfe")]),
    "empty fragments": (fragments(TEXT, b"", b"", b"x", b""), [Message(b"x")]),
    "empty text in fragments": (fragments(TEXT, b"", b""), [Message(b"")]),
    "a message after one in fragments": (
        fragments(TEXT, b"a", b"b") + frame(BINARY, b"c"),
        [Message(b"ab"), binary(b"c")],
    ),
    "pings between fragments": (
        frame(TEXT, b"a", fin=False)
        + frame(PING, b"1")
        + frame(CONTINUATION, b"b", fin=False)
        + frame(PING, b"2")
        + frame(CONTINUATION, b"c"),
        [Ping(b"1"), Ping(b"2"), Message(b"abc")],
    ),
    "a pong between fragments": (
        frame(TEXT, b"a", fin=False) + frame(PONG) + frame(CONTINUATION, b"b"),
        [Pong(b""), Message(b"ab")],
    ),
    "a close between fragments": (frame(TEXT, b"a", fin=False) + close(1001), [Closed(1001)]),
    "a continuation without a beginning": (frame(CONTINUATION, b"x"), [PROTOCOL_ERROR]),
    "a continuation without a beginning, not the last": (frame(CONTINUATION, b"x", fin=False), [PROTOCOL_ERROR]),
    "a continuation after a whole message": (
        frame(TEXT, b"a") + frame(CONTINUATION, b"b"),
        [Message(b"a"), PROTOCOL_ERROR],
    ),
    "text inside a message": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), [PROTOCOL_ERROR]),
    "binary inside a message": (frame(TEXT, b"a", fin=False) + frame(BINARY, b"b"), [PROTOCOL_ERROR]),
    "256 fragments": (fragments(TEXT, *[b"x"] * 256), [Message(b"x" * 256)]),
    "257 fragments": (fragments(TEXT, *[b"x"] * 257), [TOO_BIG]),
    "200 fragments, twice": (fragments(TEXT, *[b"x"] * 200) * 2, [Message(b"x" * 200)] * 2),
    "endless empty fragments": (frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 256, [TOO_BIG]),
    # Sizes
    "the limit": (frame(BINARY, b"x" * LIMIT), [binary(b"x" * LIMIT)]),
    "the limit in fragments": (fragments(TEXT, b"x", b"x" * (LIMIT - 1)), [Message(b"x" * LIMIT)]),
    "a ping after as many bytes as the limit": (
        frame(TEXT, b"x" * LIMIT, fin=False) + frame(PING, b"p") + frame(CONTINUATION),
        [Ping(b"p"), Message(b"x" * LIMIT)],
    ),
    "one byte over the limit announced": (frame(TEXT, size=LIMIT + 1), [TOO_BIG]),
    "a gigabyte announced": (frame(BINARY, size=1 << 30), [TOO_BIG]),
    "2^63 - 1 bytes announced": (frame(BINARY, size=(1 << 63) - 1), [TOO_BIG]),
    "over the limit in fragments": (fragments(BINARY, b"x" * LIMIT, b"x"), [TOO_BIG]),
    "a ping before a message over the limit": (frame(PING) + frame(TEXT, size=1 << 30), [Ping(b""), TOO_BIG]),
    # UTF-8 (§8.1)
    "all of Unicode": (
        frame(TEXT, "aß€\U0010ffff\ufffe\0\ufeff".encode()),
        [Message("aß€\U0010ffff\ufffe\0\ufeff".encode())],
    ),
    "a character across fragments": (fragments(TEXT, EURO[:1], EURO[1:2], EURO[2:]), [Message(EURO)]),
    "a character across a ping": (
        frame(TEXT, EURO[:2], fin=False) + frame(PING) + frame(CONTINUATION, EURO[2:]),
        [Ping(b""), Message(EURO)],
    ),
    "half a character": (frame(TEXT, EURO[:2]), [NOT_UTF8]),
    "half a character in the last fragment": (fragments(TEXT, b"x", EURO[:2]), [NOT_UTF8]),
    "half a character, then an empty fragment": (fragments(TEXT, EURO[:2], b""), [NOT_UTF8]),
    "an invalid byte": (frame(TEXT, b"Hello\xff"), [NOT_UTF8]),
    "an invalid byte in the second fragment": (fragments(TEXT, b"Hello", b"\xff", b"x"), [NOT_UTF8]),
    "overlong": (frame(TEXT, b"\xc0\x80"), [NOT_UTF8]),
    "overlong slash": (frame(TEXT, b"\xe0\x80\xaf"), [NOT_UTF8]),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), [NOT_UTF8]),
    "a pair of surrogates": (frame(TEXT, b"\xed\xa0\xbd\xed\xb8\x80"), [NOT_UTF8]),
    "beyond Unicode": (frame(TEXT, b"\xf4\x90\x80\x80"), [NOT_UTF8]),
    "a lone continuation byte": (frame(TEXT, b"\x80"), [NOT_UTF8]),
    "binary that is not UTF-8": (fragments(BINARY, b"\xff", b"\xed\xa0\x80"), [binary(b"\xff\xed\xa0\x80")]),
    # Closing (§5.5.1, §7.4)
    "close without a code": (frame(CLOSE), [Closed(1005)]),
    "close of one byte": (frame(CLOSE, b"\x03"), [PROTOCOL_ERROR]),
    "close with a reason": (close(1000, b"done for today"), [Closed(1000, "done for today")]),
    "close with 123 bytes of reason": (close(4000, EURO * 41), [Closed(4000, "€" * 41)]),
    "close with a reason that is not UTF-8": (close(1000, b"\xff"), [NOT_UTF8]),
    "close with half a character": (close(1000, EURO[:2]), [NOT_UTF8]),
    "frames after a close": (close(1000) + frame(TEXT, b"x") + frame(3), [Closed(1000)]),
    "a message, a ping, a close": (
        frame(TEXT, b"a") + frame(PING, b"p") + close(1000),
        [Message(b"a"), Ping(b"p"), Closed(1000)],
    ),
    **{
        f"close with {code}": (close(code), [Closed(code)])
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999)
    },
    **{
        f"close with {code}": (close(code), [PROTOCOL_ERROR])
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}

OVER_SOCKETS = [
    "text",
    "65536 bytes",
    "125 bytes in 16 bits",
    "text without a mask",
    "RSV1",
    "opcode 3",
    "ping",
    "pings between fragments",
    "text inside a message",
    "257 fragments",
    "a gigabyte announced",
    "the limit in fragments",
    "a surrogate",
    "close without a code",
    "close with a reason",
    "close with 4999",
    "close with 1005",
    "a message, a ping, a close",
]


def outcome(chunks: Iterable[bytes], limit: int = LIMIT) -> Outcome:
    """Return the parser's outcome for bytes that arrive in these pieces."""
    inbound = Inbound(limit)
    events: Outcome = []
    try:
        for chunk in chunks:
            events.extend(inbound.receive(chunk))
    except FrameError as fault:
        events.append(fault.code)
    return events


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


# The table


@pytest.mark.parametrize(("data", "expected"), CASES.values(), ids=CASES.keys())
def test_bytes_and_their_outcome(data: bytes, expected: Outcome) -> None:
    assert outcome([data]) == expected
    assert outcome(pieces(data, 1 if len(data) < 4096 else 1021)) == expected


@pytest.fixture(scope="module")
def echo() -> Iterator[Listener]:
    listener = echo_server.echo(LIMIT)
    listener.start()
    yield listener
    listener.stop()


@pytest.mark.parametrize("name", OVER_SOCKETS)
def test_the_outcome_over_sockets(echo: Listener, name: str) -> None:
    data, expected = CASES[name]
    if not isinstance(expected[-1], Closed | int):
        data, expected = data + close(1000), [*expected, Closed(1000)]
    assert list(answers(echo.server_port, data)) == [reply for event in expected for reply in answer_to(event)]


def answers(port: int, data: bytes) -> Iterator[tuple[Opcode, object]]:
    """Yield the server's messages and control frames until it closes."""
    request = [
        "GET / HTTP/1.1",
        "Host: x",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        "\r\n",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall("\r\n".join(request).encode() + data)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, output = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    client = FrameProtocol(client=True, extensions=[])
    client.receive_bytes(output)
    parts: list[bytes] = []
    for piece in client.received_frames():
        if isinstance(piece.payload, tuple):
            yield piece.opcode, piece.payload[0]
        elif piece.opcode.iscontrol():
            yield piece.opcode, piece.payload
        else:
            parts.append(piece.payload.encode() if isinstance(piece.payload, str) else bytes(piece.payload))
            if piece.message_finished:
                yield piece.opcode, b"".join(parts)
                parts.clear()


def answer_to(event: FrameEvent | int) -> list[tuple[Opcode, object]]:
    match event:
        case Message(payload, text):
            return [(Opcode.TEXT if text else Opcode.BINARY, payload)]
        case Ping(payload):
            return [(Opcode.PONG, payload)]
        case Closed(code):
            return [(Opcode.CLOSE, 1000 if code == 1005 else code)]
        case int(code):
            return [(Opcode.CLOSE, code)]
        case _:
            return []


# Properties of the parser

CONTROLS = st.one_of(
    st.binary(max_size=125).map(lambda payload: (frame(PING, payload), Ping(payload))),
    st.binary(max_size=125).map(lambda payload: (frame(PONG, payload), Pong(payload))),
)
PAYLOADS = st.one_of(
    st.tuples(st.just(TEXT), st.text(max_size=200).map(str.encode)),
    st.tuples(st.just(BINARY), st.binary(max_size=300)),
)


@st.composite
def sessions(draw: st.DrawFn) -> tuple[bytes, Outcome]:
    """Generate a valid stream of frames.

    Messages have any number of fragments, with control frames between them.
    """
    stream = b""
    expected: Outcome = []
    for opcode, payload in draw(st.lists(PAYLOADS, max_size=4)):
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
        key = draw(st.binary(min_size=4, max_size=4))
        for at, (begin, end) in enumerate(pairwise([0, *cuts, len(payload)])):
            for data, event in draw(st.lists(CONTROLS, max_size=2)):
                stream += data
                expected.append(event)
            stream += frame(CONTINUATION if at else opcode, payload[begin:end], fin=at == len(cuts), key=key)
        expected.append(Message(payload, text=opcode == TEXT))
    return stream, expected


@given(sessions(), st.data())
def test_the_events_of_a_stream_do_not_depend_on_its_pieces(
    session: tuple[bytes, Outcome], data: st.DataObject
) -> None:
    stream, expected = session
    assert outcome(cut(stream, data)) == expected


@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([case for case, _ in CASES.values() if len(case) < 400]))
    ),
    st.data(),
)
def test_any_bytes_raise_frame_error_at_the_most(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    whole = outcome([stream])
    assert outcome(cut(stream, data)) == whole
    assert {event for event in whole if isinstance(event, int)} <= {PROTOCOL_ERROR, NOT_UTF8, TOO_BIG}


def cut(stream: bytes, data: st.DataObject) -> list[bytes]:
    """Return the stream in pieces that hypothesis chooses."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8), label="cuts"))
    return [stream[begin:end] for begin, end in pairwise([0, *cuts, len(stream)])]


@given(st.integers(0, 3), st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 600))
def test_missing_never_exceeds_the_rest_of_the_frame(before: int, first: bytes, second: bytes, at: int) -> None:
    """So many bytes can be read at once, since they contain no other frame."""
    stream = frame(PING) * before + frame(BINARY, first, fin=False) + frame(PING, b"!") + frame(CONTINUATION, second)
    ends = [before * len(frame(PING)) + len(frame(BINARY, first)), len(stream)]
    inbound = Inbound(LIMIT)
    list(inbound.receive(stream[:at]))
    rest = min((end - at for end in ends if end >= at), default=0)
    assert 0 <= inbound.missing <= rest
    list(inbound.receive(stream[at : at + rest]))
    assert inbound.missing == 0


def test_missing_of_a_large_frame() -> None:
    inbound = Inbound(LIMIT)
    whole = frame(TEXT, b"x" * 60_000)
    list(inbound.receive(whole[:2048]))
    assert inbound.missing == len(whole) - 2048


def test_no_event_follows_an_error() -> None:
    inbound = Inbound(LIMIT)
    with pytest.raises(FrameError, match="not UTF-8"):
        list(inbound.receive(frame(TEXT, b"\xff")))
    assert list(inbound.receive(frame(TEXT, b"x"))) == []


def test_the_limit_may_be_raised_between_messages() -> None:
    inbound = Inbound(3)
    assert list(inbound.receive(frame(TEXT, b"abc"))) == [Message(b"abc")]
    inbound.limit = 6
    assert list(inbound.receive(fragments(TEXT, b"abc", b"def"))) == [Message(b"abcdef")]
    with pytest.raises(FrameError, match="message over 6 bytes") as fault:
        list(inbound.receive(frame(TEXT, size=7)))
    assert fault.value.code == TOO_BIG


def test_the_memory_of_a_message_in_tiny_pieces_is_bounded() -> None:
    size = 16 * 1024
    inbound = Inbound(size)
    payload = os.urandom(size)
    stream = frame(BINARY, payload)
    tracemalloc.start()
    try:
        for piece in pieces(stream[:-2], 3):
            assert list(inbound.receive(piece)) == []
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert allocated < 2 * size
    assert list(inbound.receive(stream[-2:])) == [binary(payload)]


# Encoding


@given(st.sampled_from([TEXT, BINARY]), st.sampled_from([0, 1, 125, 126, 127, 65535, 65536, 100_000]))
def test_a_client_reads_the_encoded_frame(opcode: int, size: int) -> None:
    payload = b"x" * size
    encoded = frames.encode(opcode, payload)
    assert frames.payload_of(encoded) == payload
    client = FrameProtocol(client=True, extensions=[])
    client.receive_bytes(encoded)
    [read] = client.received_frames()
    text = payload.decode() if opcode == TEXT else payload
    assert read == (opcode, text, True, True)


@pytest.mark.parametrize("opcode", [PING, PONG])
def test_encoded_control_frames(opcode: int) -> None:
    assert frames.encode(opcode, b"\x00\xff") == bytes((0x80 | opcode, 2)) + b"\x00\xff"


@given(st.sampled_from([1000, 1001, 1002, 1007, 1008, 1009, 1011]), st.text())
def test_an_encoded_close_frame_has_as_much_of_its_reason_as_fits(code: int, reason: str) -> None:
    encoded = frames.encode_close(code, reason)
    assert len(encoded) <= 127
    client = FrameProtocol(client=True, extensions=[])
    client.receive_bytes(encoded)
    [read] = client.received_frames()
    assert isinstance(read.payload, tuple)
    read_code, read_reason = read.payload
    assert read_code == code
    assert reason.startswith(read_reason)
    assert read_reason == reason or len(encoded) > 127 - 4


def test_text_frames_of_any_bytes() -> None:
    """websocket-client sends msgpack in them; in one piece, in fragments, between other frames."""
    packed = b"\x81\xa1k\xc4\x03\xff\xfe\x80"
    fragments = frame(TEXT, packed[:5], fin=False) + frame(PING, b"p") + frame(CONTINUATION, packed[5:])
    inbound = Inbound(LIMIT, any_bytes=True)
    events = list(inbound.receive(frame(TEXT, packed) + fragments + frame(BINARY, packed)))
    assert [event.payload for event in events if isinstance(event, Message)] == [packed] * 3
    with pytest.raises(FrameError) as error:
        list(Inbound(LIMIT).receive(frame(TEXT, packed)))
    assert error.value.code == NOT_UTF8
    with pytest.raises(FrameError) as error:
        list(inbound.receive(frame(TEXT, b"", fin=False) + frame(TEXT, b"")))
    assert error.value.code == PROTOCOL_ERROR
