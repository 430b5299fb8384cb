"""Timestamps in both codecs' formats, exact to the nanosecond.

JSON carries RFC 3339 in UTC with trailing zeros trimmed (`2023-04-06T13:15:42.83540958Z`), msgpack the extension type
-1 of its specification (4, 8 or 12 bytes). The common form is integer nanoseconds since 1970. `datetime` has only
microseconds, so it is used for the whole seconds alone.
"""

from __future__ import annotations

import re
import struct
from datetime import datetime, timedelta, timezone
from functools import lru_cache

EXT = -1
_SECOND = 1_000_000_000
_TEXT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@lru_cache(maxsize=64)  # messages of a burst have the same second: one calendar computation for all
def _date(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


@lru_cache(maxsize=64)
def _seconds(date: str, zone: str) -> int:
    return int(datetime.fromisoformat(date + ("+00:00" if zone == "Z" else zone)).timestamp())


def rfc3339(nanoseconds: int) -> str:
    """Format nanoseconds since 1970 as RFC 3339, for JSON.

    Raises ValueError or OverflowError outside of the years 1 to 9999.
    """
    seconds, rest = divmod(nanoseconds, _SECOND)
    if not rest:
        return _date(seconds) + "Z"
    return f"{_date(seconds)}.{rest:09d}".rstrip("0") + "Z"


def nanoseconds(text: str) -> int:
    """Parse RFC 3339 with any UTC offset into nanoseconds since 1970.

    Raises ValueError.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 timestamp")
    date, fraction, zone = match.groups()
    return _seconds(date, zone) * _SECOND + int((fraction or "").ljust(9, "0"))


def ext(nanoseconds: int) -> bytes:
    """Return the data of msgpack's extension type -1, in its shortest form."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    if seconds >> 34 or seconds < 0:
        return struct.pack(">Iq", rest, seconds)
    if rest or seconds >> 32:
        return (rest << 34 | seconds).to_bytes(8, "big")
    return seconds.to_bytes(4, "big")


def of_ext(data: bytes | memoryview) -> int:
    """Parse the data of msgpack's extension type -1 into nanoseconds since 1970.

    Raises ValueError for a length, or a number of nanoseconds, that the specification does not allow.
    """
    rest = 0
    if len(data) == 8:
        both = int.from_bytes(data, "big")
        seconds, rest = both & 0x3FFFFFFFF, both >> 34
    elif len(data) == 4:
        seconds = int.from_bytes(data, "big")
    elif len(data) == 12:
        rest, seconds = struct.unpack(">Iq", data)
    else:
        raise ValueError(f"a timestamp of {len(data)} bytes")
    if rest >= _SECOND:
        raise ValueError("a timestamp with more nanoseconds than a second has")
    return seconds * _SECOND + rest
