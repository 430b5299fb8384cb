"""The lines of a recording, pure. Times are nanoseconds since 1970.

A message is a line: its time of arrival, then the body as Alpaca sent it, without its first brace.

    {"at":1764340200123456789,"T":"t","S":"AAPL",…}

So the body's bytes can be had back. A line that begins with `{"recording":` is the recorder's own:

    {"recording":"start","at":…,"format":1,"feed":"iex","topics":{…}}     the first line of a file
    {"recording":"book","at":…,"T":"o",…}                                 a whole order book, as the proxy keeps it
    {"recording":"gap","at":…,"since":…,"messages":…,"reason":"…"}        messages were dropped
    {"recording":"outage","at":…}                                         the connection to Alpaca was lost
    {"recording":"resumed","at":…,"since":…}                              it is back

JSON allows line breaks between its tokens; Alpaca sends none. One becomes a space, so that a message is one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from proxy.alpaca.codec import JSON, Codec, JsonCodec, Raw

FORMAT = 1
START, GAP, OUTAGE, RESUMED = "start", "gap", "outage", "resumed"

_OBJECT = re.compile(rb'\{[ \t\r]*"')  # with a key: the time is put before it
_MESSAGE = b'{"at":'
_OWN = b'{"recording":"'
_BOOK = b'{"recording":"book","at":'
_DIGITS = 19  # of a time from 2001 to 2286


class LineCodec(JsonCodec):
    """The codec of the recorder: bodies in JSON, each after a line break, without times."""

    name = "lines"

    @property
    def body_codec(self) -> Codec:
        return JSON

    def join(self, bodies: Sequence[Raw | bytes]) -> bytes:
        """Return the bodies, each after a line break; those that are no objects, or have no keys, are left out."""
        joined = b"\n" + b"\n".join(bodies)
        if joined.count(b'\n{"') == joined.count(b"\n") == len(bodies):
            return joined
        lines = [bytes(body).replace(b"\n", b" ") for body in bodies]
        return b"".join([b"\n" + line for line in lines if _OBJECT.match(line)])


LINES = LineCodec()


def stamped(bodies: bytes, at: int) -> bytes:
    """Return the lines of the messages that `LineCodec.join` has joined."""
    stamp = b"%b%d," % (_MESSAGE, at)
    if bodies.count(b"{") == bodies.count(b"\n"):  # no braces but the first ones, as in ticks: five times as fast
        return bodies.replace(b"{", stamp)
    return bodies.replace(b"\n{", b"\n" + stamp)


def books(bodies: bytes, at: int) -> bytes:
    """Return the lines of whole order books, which `LineCodec.join` has joined."""
    return bodies.replace(b"\n{", b"\n%b%d," % (_BOOK, at))


def own(kind: str, at: int, **fields: Any) -> bytes:
    """Return a line of the recorder's own."""
    return b"\n" + JSON.encode({"recording": kind, "at": at, **fields})


class Line(NamedTuple):
    """A line that was read: a message or a whole order book, with its time of arrival."""

    at: int
    body: bytes
    is_message: bool


def first_line(data: bytes) -> Mapping[str, Any] | None:
    """Return the fields of a file's first line; None if the file is no recording, or one of a later format."""
    line = data.partition(b"\n")[0]
    fields = JSON.fields_of(line) if line.startswith(_OWN) else None
    if fields is None or JSON.integer_of(fields.get("format")) != FORMAT:
        return None
    return {"feed": JSON.text_of(fields.get("feed")), "at": JSON.integer_of(fields.get("at"))}


def message_count(data: bytes) -> int:
    """Return the number of messages in these lines."""
    return data.count(b"\n" + _MESSAGE) + data.startswith(_MESSAGE)


def span(data: bytes) -> tuple[int, int]:
    """Return the times of the first and of the last line."""
    lines = data.strip(b"\n").split(b"\n", 1)
    return _time(lines[0]), _time(data.rstrip(b"\n").rpartition(b"\n")[2])


def read(data: bytes) -> Iterator[Line]:
    """Yield the messages and the order books in these lines."""
    head = len(_MESSAGE) + _DIGITS
    for line in data.split(b"\n"):
        if line.startswith(_MESSAGE):
            yield Line(int(line[len(_MESSAGE) : head]), b"{" + line[head + 1 :], True)
        elif line.startswith(_BOOK):
            yield Line(_time(line), b"{" + line[len(_BOOK) + _DIGITS + 1 :], False)


_AT = re.compile(rb'"at":(\d{19})')


def _time(line: bytes) -> int:
    found = _AT.search(line)
    return int(found[1]) if found else 0
