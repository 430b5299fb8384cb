"""WebSocket frames of the client listener, as bytes (RFC 6455 §5); no socket here.

wsproto parses the frames of clients: it requires masks and minimal lengths, refuses reserved bits and opcodes, and
checks UTF-8 and close codes. Two limits are added here: the size of a message, by the lengths in its frames' headers,
and the number of its fragments. Frames to clients have no mask, so the same bytes are sent to every client; `encode`
builds them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from wsproto.extensions import Extension
from wsproto.frame_protocol import Frame, FrameDecoder, FrameProtocol, MessageDecoder, Opcode, ParseFailed, RsvBits

TEXT, BINARY, CLOSE, PING, PONG = (
    int(opcode) for opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CLOSE, Opcode.PING, Opcode.PONG)
)
MAX_FRAGMENTS = 256
# Close codes (RFC 6455 §7.4.1; SERVICE_RESTART is in IANA's registry)
NORMAL, GOING_AWAY, PROTOCOL_ERROR, NO_CODE = 1000, 1001, 1002, 1005
NOT_UTF8, POLICY, TOO_BIG, INTERNAL_ERROR, SERVICE_RESTART = 1007, 1008, 1009, 1011, 1012

_FIN = 0x80


class FrameError(Exception):
    """A client broke RFC 6455 or a limit; `code` is the close code for it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message, with its fragments joined: text or binary."""

    payload: bytes
    text: bool = True


@dataclass(frozen=True, slots=True)
class Ping:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The client's close frame; `code` is 1005 if the frame has none."""

    code: int
    reason: str = ""


FrameEvent = Message | Ping | Pong | Closed


def encode(opcode: int, payload: bytes) -> bytes:
    """Return one unfragmented server frame with this payload."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", _FIN | opcode, 126, size) + payload
    return struct.pack("!BBQ", _FIN | opcode, 127, size) + payload


def payload_of(frame: bytes) -> bytes:
    """Return the payload of a frame that `encode` has built."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]


def encode_close(code: int, reason: str) -> bytes:
    """Return a close frame.

    The reason is cut to the 123 bytes that fit into a control frame.
    """
    fitting = reason.encode()[:123].decode(errors="ignore").encode()
    return encode(CLOSE, struct.pack("!H", code) + fitting)


class Inbound:
    """The frame parser of one client: bytes in, events out.

    `limit` is the size of the largest message in bytes; it may be raised once the client is authenticated. With
    `any_bytes`, a text frame may hold any bytes: websocket-client sends bytes in text frames unless told otherwise, so
    a client's msgpack may come in them.
    """

    def __init__(self, limit: int, *, any_bytes: bool = False) -> None:
        self._size_limit = _SizeLimit(limit)
        self._protocol = FrameProtocol(client=False, extensions=[self._size_limit])
        if any_bytes:
            self._protocol._message_decoder = _BytesDecoder()
        self._message = bytearray()
        self._fragments = 0

    @property
    def missing(self) -> int:
        """The number of bytes of the current data frame that have not arrived."""
        return self._size_limit.expected - self._size_limit.held

    @property
    def limit(self) -> int:
        return self._size_limit.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._size_limit.limit = limit

    def receive(self, data: bytes) -> Iterator[FrameEvent]:
        """Yield the events that `data` completes.

        Raises FrameError, after the events of the frames before the invalid one.
        """
        self._protocol.receive_bytes(data)
        try:
            for frame in self._protocol.received_frames():
                payload = frame.payload
                if frame.opcode is Opcode.CLOSE:
                    assert isinstance(payload, tuple)
                    yield Closed(int(payload[0]), payload[1])
                    return
                assert not isinstance(payload, tuple)
                raw = payload.encode() if isinstance(payload, str) else bytes(payload)
                if frame.opcode is Opcode.PING:
                    yield Ping(raw)
                elif frame.opcode is Opcode.PONG:
                    yield Pong(raw)
                elif (whole := self._collect(raw, frame.frame_finished, frame.message_finished)) is not None:
                    yield Message(whole, text=frame.opcode is Opcode.TEXT)
        except ParseFailed as fault:
            raise FrameError(int(fault.code), "not UTF-8" if fault.code == NOT_UTF8 else str(fault)) from fault

    def _collect(self, part: bytes, frame_finished: bool, message_finished: bool) -> bytes | None:
        self._message += part
        self._size_limit.held = len(self._message)
        self._fragments += frame_finished
        if self._fragments > MAX_FRAGMENTS:
            raise FrameError(TOO_BIG, f"message of more than {MAX_FRAGMENTS} fragments")
        if not message_finished:
            return None
        whole = bytes(self._message)
        self._message.clear()
        self._size_limit.held = self._size_limit.expected = 0
        self._fragments = 0
        return whole


class _BytesDecoder(MessageDecoder):
    """Passes on the payload of text frames as bytes, without a check that it is UTF-8."""

    def process_frame(self, frame: Frame) -> Frame:
        opcode = Opcode.BINARY if frame.opcode is Opcode.TEXT else frame.opcode
        return super().process_frame(Frame(opcode, frame.payload, frame.frame_finished, frame.message_finished))


class _SizeLimit(Extension):
    """Refuses a message over the limit as soon as a frame's header shows its size.

    It is never negotiated: wsproto passes each header to its extensions as soon as it is complete. It may pass a header
    that arrives in parts more than once.

    `held` are the bytes of the message that have arrived, `expected` those that the headers of its frames announce.
    """

    name = "size-limit"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = self.expected = 0

    def offer(self) -> bool:
        return False

    def enabled(self) -> bool:
        return True

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> RsvBits:
        if not opcode.iscontrol():
            self.expected = self.held + payload_length
            if self.expected > self.limit:
                raise FrameError(TOO_BIG, f"message over {self.limit} bytes")
        return RsvBits(False, False, False)
