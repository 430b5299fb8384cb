"""WebSocket frames of the client listener, as bytes (RFC 6455 §5): no socket here.

wsproto reads what clients send: it demands masks and minimal lengths, refuses reserved bits and opcodes, checks UTF-8
and close codes. What it leaves to its caller is bounded here: the size of a message, by the lengths that its frames
announce, and the number of its fragments. What the proxy sends needs no mask, so that one frame's bytes serve every
client; `encode` writes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from wsproto.extensions import Extension
from wsproto.frame_protocol import FrameDecoder, FrameProtocol, Opcode, ParseFailed, RsvBits

TEXT, BINARY, CLOSE, PING, PONG = (
    int(opcode) for opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CLOSE, Opcode.PING, Opcode.PONG)
)
MAX_FRAGMENTS = 256
# Close codes (RFC 6455 §7.4.1)
NORMAL, GOING_AWAY, PROTOCOL_ERROR, NO_CODE = 1000, 1001, 1002, 1005
NOT_UTF8, POLICY, TOO_BIG, INTERNAL_ERROR = 1007, 1008, 1009, 1011

_FIN = 0x80


class FrameError(Exception):
    """What the client sent breaks RFC 6455 or a bound; `code` is the close code that says so."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message, however fragmented: text, or binary."""

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
    """The client's close frame; `code` is 1005 when it carried none."""

    code: int
    reason: str = ""


FrameEvent = Message | Ping | Pong | Closed


def encode(opcode: int, payload: bytes) -> bytes:
    """One unfragmented server frame around `payload`."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", _FIN | opcode, 126, size) + payload
    return struct.pack("!BBQ", _FIN | opcode, 127, size) + payload


def payload_of(frame: bytes) -> bytes:
    """What `encode` put around, taken off again."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]


def encode_close(code: int, reason: str) -> bytes:
    """A close frame with its code; the reason is cut to the 123 bytes that a control frame has room for."""
    room = reason.encode()[:123].decode(errors="ignore").encode()
    return encode(CLOSE, struct.pack("!H", code) + room)


class Inbound:
    """The frames of one client: bytes in, events out.

    `limit` is the largest message in bytes; it may be raised once the client is known.
    """

    def __init__(self, limit: int) -> None:
        self._announcements = _Announcements(limit)
        self._protocol = FrameProtocol(client=False, extensions=[self._announcements])
        self._message = bytearray()
        self._fragments = 0

    @property
    def missing(self) -> int:
        """How many bytes of a data frame have been announced and have not come."""
        return self._announcements.expected - self._announcements.held

    @property
    def limit(self) -> int:
        return self._announcements.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._announcements.limit = limit

    def receive(self, data: bytes) -> Iterator[FrameEvent]:
        """The events that `data` completes. Raises FrameError; what came whole before the fault is still yielded."""
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
        self._announcements.held = len(self._message)
        self._fragments += frame_finished
        if self._fragments > MAX_FRAGMENTS:
            raise FrameError(TOO_BIG, f"message of more than {MAX_FRAGMENTS} fragments")
        if not message_finished:
            return None
        whole = bytes(self._message)
        self._message.clear()
        self._announcements.held = self._announcements.expected = 0
        self._fragments = 0
        return whole


class _Announcements(Extension):
    """Not one that is negotiated: to its extensions wsproto shows each header as soon as it is there, and whoever waits
    for the payload of a gigabyte has waited too long. A header that comes in pieces may be shown again.

    `held` are the bytes of the message that have come so far, `expected` those that its frames have announced.
    """

    name = "announcements"

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
