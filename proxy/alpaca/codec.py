"""JSON and msgpack: split and join frames, decode requests, encode replies.

Bodies are passed on as raw bytes. A data frame is an array; `split` decodes only the kind `T` and the symbol `S` of
each message, and keeps the body as a slice of the received bytes. `join` concatenates slices. So number formats, key
order (Go's SDK requires `T` to be first) and nanoseconds are preserved.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from proxy.alpaca.cooperative import Steps

Raw = msgspec.Raw

FRAME_BYTES = 512 * 1024  # Python's SDKs refuse a message over 1 MiB
BODY_BYTES = 1000 * 1024  # of a single message of Alpaca's, for the same reason; a larger one is not passed on
CONTROL_BYTES = 4 * 1024 * 1024  # of a control message: an acknowledgement of all that a plan permits has less
NEWS_SYMBOLS = 1000  # symbols of an article that are used for routing
MAX_DOCUMENTS = 256  # objects in one message of a client, since each is answered

MAX_DEPTH = 32  # nesting of the objects in a message with several of them
SCANNED = 2000  # braces and strings that are scanned between two pauses

# The tokens that decide where a JSON object ends: strings, which may contain braces, and braces. An unterminated string
# extends to the end of the message, so that no byte is scanned twice.
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[{}]', re.DOTALL)
_BLANKS = re.compile(rb"[ \t\r\n]*")


class Malformed(Exception):
    """Bytes that the codec cannot decode. The text of the error never quotes them."""


class Head(msgspec.Struct, gc=False):
    """A message's kind `T` and symbol `S`, by which it is routed; empty if missing."""

    T: str = ""
    S: str = ""


class NewsHead(msgspec.Struct, gc=False):
    """News has no `S`: it is routed by its `symbols`."""

    T: str = ""
    symbols: list[str] = []


class Control(msgspec.Struct, gc=False):
    """A control message of the market dialect, with undecoded values."""

    T: Raw = Raw()
    msg: Raw = Raw()
    code: Raw = Raw()


class Envelope(msgspec.Struct, gc=False):
    """A message of the trading dialect, with undecoded values."""

    stream: Raw = Raw()
    action: Raw = Raw()
    data: Raw = Raw()


# RecursionError: nesting far deeper than in any message of Alpaca or an SDK.
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Codec(ABC):
    """One wire format.

    `text`: its frames are text frames; `content_type`: its name in an upgrade request. Every value is decoded with a
    type. An untyped decoder turns the arrays that msgpack allows as keys into tuples; their hashes are not salted, so a
    peer could send a map of colliding keys and block the process for minutes.
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
        """Return the bodies of a data frame and their heads. Raises Malformed."""
        try:
            raws = self._raws.decode(frame)
            # Measured: for one body, decoding it alone is 15 % faster than a second pass over the array; from two
            # bodies on, the pass is faster.
            heads = [self._head.decode(raws[0])] if len(raws) == 1 else self._heads.decode(frame)
        except msgspec.ValidationError:
            return self._split_one_by_one(frame)
        except _DECODE_ERRORS as error:
            raise Malformed(f"not {self.name}") from error
        return raws, heads

    def _split_one_by_one(self, frame: bytes) -> tuple[list[Raw], list[Head]]:
        """Split a frame in which a head cannot be decoded.

        Some element is not an object, or some `T` or `S` is not a string. Such an element has an empty head; it does
        not affect the others.
        """
        try:
            raws = self._raws.decode(frame)
        except _DECODE_ERRORS as error:
            raise Malformed(f"not an array of {self.name} messages") from error
        heads = []
        for raw in raws:
            try:
                heads.append(self._head.decode(raw))
            except _DECODE_ERRORS:
                heads.append(Head())
        return raws, heads

    def news_symbols(self, body: Raw | bytes) -> Sequence[str]:
        """Return the `symbols` of a news message.

        Empty if they are not a list of strings.
        """
        try:
            return self._news.decode(body).symbols[:NEWS_SYMBOLS]  # type: ignore[no-any-return]
        except _DECODE_ERRORS:
            return ()

    def fields(self, body: Raw | bytes) -> dict[str, Raw]:
        """Return a message's keys with their undecoded values. Raises Malformed."""
        try:
            return self._raw_map.decode(body)  # type: ignore[no-any-return]
        except _DECODE_ERRORS as error:
            raise Malformed(f"not a {self.name} object") from error

    def head(self, body: Raw | bytes) -> Head:
        """Return the head of one message. Raises Malformed."""
        try:
            return self._head.decode(body)  # type: ignore[no-any-return]
        except _DECODE_ERRORS as error:
            raise Malformed(f"not a {self.name} message") from error

    @property
    def base(self) -> Codec:
        """The wire format.

        A codec with names or structures of its own (`legacy`, `plain_pairs`) has another one as its base.
        """
        return self

    @property
    def body_codec(self) -> Codec:
        """The codec of the bodies that `join` takes: another one if only the frames differ from it."""
        return self

    def to_client_body(self, kind: str, body: Raw | bytes) -> Raw | bytes | None:
        """Convert a body of the base to this codec's names and structures.

        None if this codec has none for the kind.
        """
        return body

    def to_alpaca_symbol(self, symbol: str) -> str:
        """Return Alpaca's name of a symbol, given this codec's name."""
        return symbol

    @abstractmethod
    def join(self, bodies: Sequence[Raw | bytes]) -> bytes:
        """Return one data frame of these bodies."""

    def batches(self, bodies: Sequence[Raw | bytes]) -> Iterator[tuple[bytes, int]]:
        """Yield data frames of these bodies, and the number of bodies in each.

        Only a frame with a single body may exceed FRAME_BYTES.
        """
        payload = self.join(bodies)
        if len(payload) <= FRAME_BYTES or len(bodies) == 1:
            yield payload, len(bodies)
            return
        half = len(bodies) // 2
        yield from self.batches(bodies[:half])
        yield from self.batches(bodies[half:])

    def encode(self, value: Any) -> bytes:
        """Encode a control message, or a frame of them."""
        return self._encode(value)  # type: ignore[no-any-return]

    @abstractmethod
    def readable(self, payload: bytes) -> str:
        """Return a message as JSON text, for people."""

    def control(self, body: Raw | bytes) -> Control:
        """Decode a control message of the market dialect. Raises Malformed."""
        try:
            return self._control.decode(body)  # type: ignore[no-any-return]
        except _DECODE_ERRORS as error:
            raise Malformed(f"not a {self.name} object") from error

    def envelope(self, body: Raw | bytes) -> Envelope:
        """Decode a message of the trading dialect. Raises Malformed.

        Empty if it is not an object.
        """
        try:
            return self._envelope.decode(body)  # type: ignore[no-any-return]
        except msgspec.ValidationError:
            return Envelope()
        except _DECODE_ERRORS as error:
            raise Malformed(f"not {self.name}") from error

    # These decode a value that may be absent. A value of another type is not an error: the caller decides.

    def text_of(self, value: Raw | bytes | None) -> str | None:
        """Return a string, or None."""
        return self._value(self._text, value)  # type: ignore[no-any-return]

    def texts_of(self, value: Raw | bytes | None) -> list[str] | None:
        """Return an array of strings, or None."""
        return self._value(self._texts, value)  # type: ignore[no-any-return]

    def integer_of(self, value: Raw | bytes | None) -> int | None:
        """Return an integer, or None."""
        return self._value(self._integer, value)  # type: ignore[no-any-return]

    def items_of(self, value: Raw | bytes | None) -> list[Raw]:
        """Return the undecoded values of an array; empty for any other value."""
        return self._value(self._raws, value) or []

    def fields_of(self, value: Raw | bytes | None) -> dict[str, Raw] | None:
        """Return an object's keys with their undecoded values, or None."""
        return self._value(self._raw_map, value)  # type: ignore[no-any-return]

    @abstractmethod
    def is_array(self, value: Raw | bytes) -> bool:
        """Whether a value is an array, by its first byte."""

    @abstractmethod
    def is_null(self, value: Raw | bytes) -> bool:
        """Whether a value is null."""

    @staticmethod
    def _value(decoder: Any, value: Raw | bytes | None) -> Any:
        try:
            return decoder.decode(value) if value else None
        except _DECODE_ERRORS:
            return None

    def requests(self, frame: bytes) -> Steps[list[dict[str, Raw]]]:
        """Return the objects in one message of a client. Raises Malformed.

        Their values are undecoded.
        """
        yield from ()
        return [self.fields(frame)]


class JsonCodec(Codec):
    name = "json"
    text = True
    content_type = "application/json"

    def __init__(self) -> None:
        super().__init__(msgspec.json.Decoder, msgspec.json.Encoder)

    def readable(self, payload: bytes) -> str:
        return payload.decode("utf-8", "replace")

    def join(self, bodies: Sequence[Raw | bytes]) -> bytes:
        return b"[%b]" % b",".join(bodies)

    def is_array(self, value: Raw | bytes) -> bool:
        return bytes(memoryview(value)[:1]) == b"["

    def is_null(self, value: Raw | bytes) -> bool:
        return bytes(value) == b"null"

    def requests(self, frame: bytes) -> Steps[list[dict[str, Raw]]]:
        """Return one object, or several concatenated ones.

        The C# SDK coalesces rapid calls into one message.
        """
        try:
            return [self.fields(frame)]
        except Malformed:
            objects = yield from _split_objects(frame)
            return [self.fields(one) for one in objects]


def _split_objects(frame: bytes) -> Steps[list[bytes]]:
    """Split concatenated JSON objects. Raises Malformed.

    Blanks may separate the objects.
    """
    objects: list[bytes] = []
    depth, begin = 0, 0
    for number, match in enumerate(_STRUCTURE.finditer(frame)):
        token = match[0]
        if token == b"{":
            if not depth:
                _require_blanks(frame, begin, match.start())
                begin = match.start()
            depth += 1
        elif token == b"}":
            depth -= 1
            if not depth:
                objects.append(frame[begin : match.end()])
                begin = match.end()
        if len(objects) > MAX_DOCUMENTS or not 0 <= depth <= MAX_DEPTH:
            raise Malformed(f"more than {MAX_DOCUMENTS} objects in one message, or not json")
        if number % SCANNED == SCANNED - 1:
            yield
    _require_blanks(frame, begin, len(frame))
    if not objects:
        raise Malformed("not json")
    return objects


def _require_blanks(frame: bytes, start: int, end: int) -> None:
    if not _BLANKS.fullmatch(frame, start, end):
        raise Malformed("not concatenated json objects")


class MsgPackCodec(Codec):
    name = "msgpack"
    text = False
    content_type = "application/msgpack"

    def __init__(self) -> None:
        super().__init__(msgspec.msgpack.Decoder, msgspec.msgpack.Encoder)

    def readable(self, payload: bytes) -> str:
        return msgspec.json.encode(msgspec.msgpack.decode(payload)).decode()

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
