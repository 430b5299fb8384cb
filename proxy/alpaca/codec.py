"""JSON and msgpack: frames split into messages, bodies joined into frames, requests decoded, replies encoded.

Raw bodies travel. A data frame is an array; splitting it decodes nothing of a message but its kind `T` and symbol
`S`, and keeps each body as the slice of bytes that came. Joining puts slices side by side. So number formats, key order
(Go's SDK demands that `T` comes first) and nanoseconds cannot be got wrong on the way.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from proxy.alpaca.cooperative import Steps

Raw = msgspec.Raw

FRAME_BYTES = 512 * 1024  # Python's SDKs refuse a message over 1 MiB
MAX_DOCUMENTS = 256  # in one message of a client; each is answered

MAX_DEPTH = 32  # of values in values, where that is more than passed over
SCANNED = 2000  # braces and texts that are looked at in one turn

# What matters for where a JSON object ends: texts, which may hold braces, and braces. A text that is not ended reaches
# to the end of the message, so that no byte is looked at twice.
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[{}]', re.DOTALL)
_BLANKS = re.compile(rb"[ \t\r\n]*")


class Malformed(Exception):
    """Bytes that are not what the codec expects. The text never quotes them."""


class Head(msgspec.Struct, gc=False):
    """What routing needs of a message: its kind `T` and symbol `S`, empty where the message has none."""

    T: str = ""
    S: str = ""


class NewsHead(msgspec.Struct, gc=False):
    """News has no `S`: it is routed by its `symbols`."""

    T: str = ""
    symbols: list[str] = []


class Control(msgspec.Struct, gc=False):
    """A control message of the market dialect, its values as they came."""

    T: Raw = Raw()
    msg: Raw = Raw()
    code: Raw = Raw()


class Envelope(msgspec.Struct, gc=False):
    """A message of the trading dialect, its values as they came."""

    stream: Raw = Raw()
    action: Raw = Raw()
    data: Raw = Raw()


# RecursionError: nesting far beyond anything that Alpaca or an SDK sends.
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Codec:
    """One wire format. `text`: its frames are text frames; `content_type`: its name in an upgrade request.

    Everything is decoded by type. An untyped decoder makes tuples of the arrays that msgpack allows as keys; their
    hashes are not salted, so a peer could send a map whose keys collide, and freeze the process for minutes.
    """

    name: str
    text: bool
    content_type: str

    def __init__(self, decoder: Any, encoder: Any) -> None:
        self._raws = decoder(list[Raw])
        self._raw_map = decoder(dict[str, Raw])
        self._heads = decoder(list[Head])
        self._head = decoder(Head)
        self._news = decoder(NewsHead)
        self._control = decoder(Control)
        self._envelope = decoder(Envelope)
        self._text = decoder(str)
        self._texts = decoder(list[str])
        self._integer = decoder(int)
        self._encode = encoder().encode

    def __repr__(self) -> str:
        return f"<Codec {self.name}>"

    def split(self, frame: bytes) -> tuple[list[Raw], list[Head]]:
        """The bodies of a data frame and, beside each, its head. Raises Malformed."""
        try:
            raws = self._raws.decode(frame)
            # Measured: one head by itself beats the second whole-array pass by 15 %; from two on the pass wins.
            heads = [self._head.decode(raws[0])] if len(raws) == 1 else self._heads.decode(frame)
        except msgspec.ValidationError:
            return self._split_odd(frame)
        except _FAULTS as fault:
            raise Malformed(f"not {self.name}") from fault
        return raws, heads

    def _split_odd(self, frame: bytes) -> tuple[list[Raw], list[Head]]:
        """Some `T` or `S` is no text, or some element no object: those count as without a head, the rest travels on."""
        try:
            raws = self._raws.decode(frame)
        except _FAULTS as fault:
            raise Malformed(f"not an array of {self.name} messages") from fault
        heads = []
        for raw in raws:
            try:
                heads.append(self._head.decode(raw))
            except _FAULTS:
                heads.append(Head())
        return raws, heads

    def news_symbols(self, body: Raw | bytes) -> Sequence[str]:
        """The `symbols` of a news message, empty if it has none that are text."""
        try:
            return self._news.decode(body).symbols  # type: ignore[no-any-return]
        except _FAULTS:
            return ()

    def fields(self, body: Raw | bytes) -> dict[str, Raw]:
        """A message's keys with their undecoded values. Raises Malformed."""
        try:
            return self._raw_map.decode(body)  # type: ignore[no-any-return]
        except _FAULTS as fault:
            raise Malformed(f"not a {self.name} object") from fault

    def head(self, body: Raw | bytes) -> Head:
        """What routing needs of one message. Raises Malformed."""
        try:
            return self._head.decode(body)  # type: ignore[no-any-return]
        except _FAULTS as fault:
            raise Malformed(f"not a {self.name} message") from fault

    @property
    def base(self) -> Codec:
        """The wire format, where this codec also has names or shapes of its own (`legacy`, `pairs`)."""
        return self

    def to_client_body(self, kind: str, body: Raw | bytes) -> Raw | bytes | None:
        """A body of the base in this codec's own names and shapes; None if it has none for it."""
        return body

    def to_alpaca_symbol(self, symbol: str) -> str:
        """Alpaca's name of a symbol that this codec may have a name of its own for."""
        return symbol

    def join(self, bodies: Sequence[Raw | bytes]) -> bytes:
        """One data frame of these bodies."""
        raise NotImplementedError

    def batches(self, bodies: Sequence[Raw | bytes]) -> Iterator[tuple[bytes, int]]:
        """Data frames of these bodies, none over FRAME_BYTES but for the sake of one body, and how many are in each."""
        payload = self.join(bodies)
        if len(payload) <= FRAME_BYTES or len(bodies) == 1:
            yield payload, len(bodies)
            return
        half = len(bodies) // 2
        yield from self.batches(bodies[:half])
        yield from self.batches(bodies[half:])

    def encode(self, value: Any) -> bytes:
        """A control message or a whole frame of them."""
        return self._encode(value)  # type: ignore[no-any-return]

    def control(self, body: Raw | bytes) -> Control:
        """A control message of the market dialect. Raises Malformed."""
        try:
            return self._control.decode(body)  # type: ignore[no-any-return]
        except _FAULTS as fault:
            raise Malformed(f"not a {self.name} object") from fault

    def envelope(self, body: Raw | bytes) -> Envelope:
        """A message of the trading dialect, empty if it is no object. Raises Malformed."""
        try:
            return self._envelope.decode(body)  # type: ignore[no-any-return]
        except msgspec.ValidationError:
            return Envelope()
        except _FAULTS as fault:
            raise Malformed(f"not {self.name}") from fault

    def text_of(self, value: Raw | bytes | None) -> str | None:
        """A value that is text; None for any other, and for none."""
        return self._value(self._text, value)  # type: ignore[no-any-return]

    def texts_of(self, value: Raw | bytes | None) -> list[str] | None:
        """A value that is an array of texts; None for any other, and for none."""
        return self._value(self._texts, value)  # type: ignore[no-any-return]

    def integer_of(self, value: Raw | bytes | None) -> int | None:
        """A value that is a whole number; None for any other, and for none."""
        return self._value(self._integer, value)  # type: ignore[no-any-return]

    def items_of(self, value: Raw | bytes | None) -> list[Raw]:
        """The values of an array, undecoded; none of any other value."""
        return self._value(self._raws, value) or []

    def fields_of(self, value: Raw | bytes | None) -> dict[str, Raw] | None:
        """An object's keys with their undecoded values; None for any other value, and for none."""
        return self._value(self._raw_map, value)  # type: ignore[no-any-return]

    def is_array(self, value: Raw | bytes) -> bool:
        """Whether a value is an array, by its first byte."""
        raise NotImplementedError

    def is_null(self, value: Raw | bytes) -> bool:
        """Whether a value is null."""
        raise NotImplementedError

    @staticmethod
    def _value(decoder: Any, value: Raw | bytes | None) -> Any:
        try:
            return decoder.decode(value) if value else None
        except _FAULTS:
            return None

    def requests(self, frame: bytes) -> Steps[list[dict[str, Raw]]]:
        """What a client sent in one message: objects, their values undecoded. Raises Malformed."""
        yield from ()
        return [self.fields(frame)]


class JsonCodec(Codec):
    name = "json"
    text = True
    content_type = "application/json"

    def __init__(self) -> None:
        super().__init__(msgspec.json.Decoder, msgspec.json.Encoder)

    def join(self, bodies: Sequence[Raw | bytes]) -> bytes:
        return b"[%b]" % b",".join(bodies)

    def is_array(self, value: Raw | bytes) -> bool:
        return bytes(memoryview(value)[:1]) == b"["

    def is_null(self, value: Raw | bytes) -> bool:
        return bytes(value) == b"null"

    def requests(self, frame: bytes) -> Steps[list[dict[str, Raw]]]:
        """One object, or several side by side: the C# SDK coalesces rapid calls into one message."""
        try:
            return [self.fields(frame)]
        except Malformed:
            parts = yield from _objects(frame)
            return [self.fields(part) for part in parts]


def _objects(frame: bytes) -> Steps[list[bytes]]:
    """The texts of the objects that stand side by side. Raises Malformed if there is anything else."""
    found: list[bytes] = []
    depth, begin = 0, 0
    for number, match in enumerate(_STRUCTURE.finditer(frame)):
        mark = match[0]
        if mark == b"{":
            if not depth:
                _no_more_than_blanks(frame, begin, match.start())
                begin = match.start()
            depth += 1
        elif mark == b"}":
            depth -= 1
            if not depth:
                found.append(frame[begin : match.end()])
                begin = match.end()
        if len(found) > MAX_DOCUMENTS or not 0 <= depth <= MAX_DEPTH:
            raise Malformed(f"more than {MAX_DOCUMENTS} objects in one message, or not json")
        if number % SCANNED == SCANNED - 1:
            yield
    _no_more_than_blanks(frame, begin, len(frame))
    if not found:
        raise Malformed("not json")
    return found


def _no_more_than_blanks(frame: bytes, start: int, end: int) -> None:
    if not _BLANKS.fullmatch(frame, start, end):
        raise Malformed("not json objects side by side")


class MsgPackCodec(Codec):
    name = "msgpack"
    text = False
    content_type = "application/msgpack"

    def __init__(self) -> None:
        super().__init__(msgspec.msgpack.Decoder, msgspec.msgpack.Encoder)

    def is_array(self, value: Raw | bytes) -> bool:
        first = bytes(memoryview(value)[:1])
        return b"\x90" <= first <= b"\x9f" or first in (b"\xdc", b"\xdd")

    def is_null(self, value: Raw | bytes) -> bool:
        return bytes(value) == b"\xc0"

    def join(self, bodies: Sequence[Raw | bytes]) -> bytes:
        count = len(bodies)
        if count < 16:
            header = bytes((0x90 | count,))
        elif count < 1 << 16:
            header = struct.pack(">BH", 0xDC, count)
        else:
            header = struct.pack(">BI", 0xDD, count)
        return header + b"".join(bodies)


JSON: Codec = JsonCodec()
MSGPACK: Codec = MsgPackCodec()
CODECS = {codec.name: codec for codec in (JSON, MSGPACK)}
