"""Scripted faults: the ways in which Alpaca has been seen to fail, on demand.

`Faults` is what a test has ordered so far, by feed; connections ask it. The tables at the end are what garbage and a
dropped connection look like on the wire.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus

from proxy.simulator import wire
from proxy.transport import frames


class Step(Enum):
    """The steps of a connection that can be made to hang."""

    UPGRADE = "upgrade"
    GREETING = "greeting"
    AUTH = "auth"
    SUBSCRIBE = "subscribe"


class Drop(Enum):
    """How a connection is dropped: with a close frame, with a FIN alone, with a RST."""

    CLOSE = "close"
    FIN = "fin"
    RST = "rst"


@dataclass
class Faults:
    """What goes wrong from now on, until it is taken back. Seconds are seconds."""

    upgrades: dict[str, int] = field(default_factory=dict)  # feed → the HTTP status that answers an upgrade
    stalled: set[tuple[str, Step]] = field(default_factory=set)
    ack_seconds: float = 0

    def stalls(self, feed: str, step: Step) -> bool:
        return (feed, step) in self.stalled

    def accept(self, feed: str) -> None:
        """Nothing is refused or stalled on this feed any more."""
        self.upgrades.pop(feed, None)
        self.stalled -= {(feed, step) for step in Step}


def status_line(status: int) -> str:
    """`502 Bad Gateway`. Raises ValueError for a status that HTTP does not know."""
    return f"{status} {HTTPStatus(status).phrase}"


def data_opcode(codec: str, trading: bool) -> int:
    """The frame that data travels in: text for JSON, binary for msgpack, and binary for trading's JSON."""
    return frames.BINARY if trading or codec == wire.MSGPACK else frames.TEXT


def _not_json(codec: str) -> bytes:
    return frames.encode(frames.TEXT, b"no document") if codec == wire.JSON else frames.encode(frames.BINARY, b"\xc1")


def _truncated(codec: str) -> bytes:
    whole = wire.encode([{"T": "t", "S": "AAPL", "p": 1.5, "s": 1}], codec)
    return frames.encode(data_opcode(codec, False), whole[:-6])


def _oversize(codec: str) -> bytes:
    """The beginning of a frame that says it has 64 MiB."""
    return struct.pack("!BBQ", 0x80 | data_opcode(codec, False), 127, 64 << 20) + bytes(1024)


def _unknown_kind(codec: str) -> bytes:
    return frames.encode(data_opcode(codec, False), wire.encode([{"T": "zz", "S": "AAPL", "new": [1]}], codec))


def _masked(codec: str) -> bytes:
    """Servers must not mask (RFC 6455 §5.1); a mask of zeros leaves the payload as it is."""
    payload = wire.encode([{"T": "success", "msg": "masked"}], codec)
    return bytes((0x80 | data_opcode(codec, False), 0x80 | len(payload))) + bytes(4) + payload


def _bad_utf8(codec: str) -> bytes:
    return frames.encode(frames.TEXT, b'[{"T":"t","S":"AA\xff\xfe","p":1.5}]')


# kind → the bytes that are written to a connection of this codec
GARBAGE: Mapping[str, Callable[[str], bytes]] = {
    "not-json": _not_json,
    "truncated": _truncated,
    "oversize": _oversize,
    "unknown-kind": _unknown_kind,
    "masked": _masked,
    "bad-utf8": _bad_utf8,
}
