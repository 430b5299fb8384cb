"""Scripted faults: failures that Alpaca has shown, on demand.

`Faults` holds the active faults by feed; connections consult it. A fault of `EVERY_FEED` concerns the feeds that have
none of their own. The table at the end holds the bytes of each kind of garbage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus

from proxy.simulator import wire
from proxy.simulator.account_plan import EVERY_FEED
from proxy.transport import frames


class Step(Enum):
    """Steps of a connection that can be stalled. A stalled `CONNECTION` is half open: nothing is read or written."""

    UPGRADE = "upgrade"
    GREETING = "greeting"
    AUTH = "auth"
    SUBSCRIBE = "subscribe"
    CONNECTION = "connection"


# Alpaca's code of a refusal, or an HTTP status, and the step that it answers.
REFUSALS: Mapping[int, Step] = {
    402: Step.AUTH,
    406: Step.AUTH,
    409: Step.AUTH,
    411: Step.AUTH,
    500: Step.AUTH,
    400: Step.SUBSCRIBE,
    405: Step.SUBSCRIBE,
    410: Step.SUBSCRIBE,
    413: Step.SUBSCRIBE,
    429: Step.UPGRADE,
    502: Step.UPGRADE,
    503: Step.UPGRADE,
}


class Drop(Enum):
    """How a connection is dropped: with a close frame, a FIN alone, or a RST."""

    CLOSE = "close"
    FIN = "fin"
    RST = "rst"


class RestFault(Enum):
    """How REST calls fail.

    The connection is closed without a response (`AWAY`) or in the middle of the body (`CUT`), the response never comes
    (`HANG`) or never ends (`SLOW`), is an error or a page of HTML, or is JSON of another shape. `NONE` is a stand-in
    without REST: nothing is at the paths.
    """

    AWAY = "away"
    TOO_MANY = "429"
    ERROR = "500"
    HTML = "html"
    SLOW = "slow"
    HANG = "hang"
    CUT = "cut"
    SHAPE = "shape"
    NONE = "none"


@dataclass
class Faults:
    """Active faults.

    `silent` feeds send no data; `ack_seconds` is the delay of every subscribe and unsubscribe; `rest` concerns the
    REST calls.
    """

    upgrades: dict[str, int] = field(default_factory=dict)  # feed → the HTTP status that answers an upgrade
    stalled: set[tuple[str, Step]] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    ack_seconds: float = 0
    rest: RestFault | None = None

    def stalls(self, feed: str, step: Step) -> bool:
        return (feed, step) in self.stalled or (EVERY_FEED, step) in self.stalled

    def silences(self, feed: str) -> bool:
        return feed in self.silent or EVERY_FEED in self.silent

    def upgrade_status(self, feed: str) -> int | None:
        """Return the HTTP status that refuses an upgrade, or None."""
        return self.upgrades.get(feed, self.upgrades.get(EVERY_FEED))

    def accept(self, feed: str) -> None:
        """Remove the refusals and stalls of this feed."""
        self.upgrades.pop(feed, None)
        self.stalled -= {(feed, step) for step in Step}


def status_line(status: int) -> str:
    """Return an HTTP status line, such as `502 Bad Gateway`.

    Raises ValueError for an unknown status.
    """
    return f"{status} {HTTPStatus(status).phrase}"


def data_opcode(codec: str, trading: bool) -> int:
    """Return the opcode of data frames: text only for JSON outside of trading."""
    return frames.BINARY if trading or codec == wire.MSGPACK else frames.TEXT


def _not_json(codec: str) -> bytes:
    return frames.encode(frames.TEXT, b"no document") if codec == wire.JSON else frames.encode(frames.BINARY, b"\xc1")


def _truncated(codec: str) -> bytes:
    whole = wire.encode([{"T": "t", "S": "AAPL", "p": 1.5, "s": 1}], codec)
    return frames.encode(data_opcode(codec, False), whole[:-6])


def _oversize(codec: str) -> bytes:
    """Return the start of a frame whose header announces 64 MiB."""
    return struct.pack("!BBQ", 0x80 | data_opcode(codec, False), 127, 64 << 20) + bytes(1024)


def _unknown_kind(codec: str) -> bytes:
    return frames.encode(data_opcode(codec, False), wire.encode([{"T": "zz", "S": "AAPL", "new": [1]}], codec))


def _masked(codec: str) -> bytes:
    """Return a masked frame; servers must not mask (RFC 6455 §5.1).

    A mask of zeros leaves the payload as it is.
    """
    payload = wire.encode([{"T": "success", "msg": "masked"}], codec)
    return bytes((0x80 | data_opcode(codec, False), 0x80 | len(payload))) + bytes(4) + payload


def _bad_utf8(codec: str) -> bytes:
    return frames.encode(frames.TEXT, b'[{"T":"t","S":"AA\xff\xfe","p":1.5}]')


# kind → function from a codec to the bytes that are written
GARBAGE: Mapping[str, Callable[[str], bytes]] = {
    "not-json": _not_json,
    "truncated": _truncated,
    "oversize": _oversize,
    "unknown-kind": _unknown_kind,
    "masked": _masked,
    "bad-utf8": _bad_utf8,
}
