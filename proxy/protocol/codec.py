"""JSON and msgpack: frames split into messages, bodies joined into frames, requests decoded, replies encoded.

Raw bodies travel. A data frame is an array; splitting it decodes nothing of a message but its kind `T` and symbol
`S`, and keeps each body as the slice of bytes that came. Joining puts slices side by side. So number formats, key order
(Go's SDK demands that `T` comes first) and nanoseconds cannot be got wrong on the way.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

Raw = msgspec.Raw

FRAME_BYTES = 512 * 1024  # Python's SDKs refuse a message over 1 MiB
MAX_DOCUMENTS = 256  # in one message of a client; each is answered

_EXTENT = json.JSONDecoder()
_INK = re.compile(r"[^ \t\r\n]")


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


# RecursionError: nesting far beyond anything that Alpaca or an SDK sends.
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Codec:
    """One wire format. `text`: its frames are text frames; `content_type`: its name in an upgrade request."""

    name: str
    text: bool
    content_type: str

    def __init__(self, decoder: Any, encoder: Any) -> None:
        self._raws = decoder(list[Raw])
        self._raw_map = decoder(dict[str, Raw])
        self._heads = decoder(list[Head])
        self._head = decoder(Head)
        self._news = decoder(NewsHead)
        self._any = decoder()
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

    def dress(self, kind: str, body: Raw | bytes) -> Raw | bytes | None:
        """A body of the base in this codec's own names and shapes; None if it has none for it."""
        return body

    def undress(self, symbol: str) -> str:
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

    def decode(self, frame: bytes | Raw) -> Any:
        """A value, in plain Python types. Raises Malformed."""
        try:
            return self._any.decode(frame)
        except _FAULTS as fault:
            raise Malformed(f"not {self.name}") from fault

    def documents(self, frame: bytes) -> list[Any]:
        """What a client sent in one message: one value. Raises Malformed."""
        return [self.decode(frame)]


class JsonCodec(Codec):
    name = "json"
    text = True
    content_type = "application/json"

    def __init__(self) -> None:
        super().__init__(msgspec.json.Decoder, msgspec.json.Encoder)

    def join(self, bodies: Sequence[Raw | bytes]) -> bytes:
        return b"[%b]" % b",".join(bodies)

    def documents(self, frame: bytes) -> list[Any]:
        """One value, or several side by side: the C# SDK coalesces rapid calls into one message."""
        try:
            return [self.decode(frame)]
        except Malformed:
            return self._several(frame)

    def _several(self, frame: bytes) -> list[Any]:
        """The standard library finds where each document ends; each is then decoded as if it were alone."""
        found: list[Any] = []
        at = 0
        try:
            text = frame.decode()
            while start := _INK.search(text, at):
                if len(found) == MAX_DOCUMENTS:
                    raise Malformed(f"more than {MAX_DOCUMENTS} documents in one message")
                _, at = _EXTENT.raw_decode(text, start.start())
                found.append(self.decode(text[start.start() : at].encode()))
        except (ValueError, RecursionError) as fault:
            raise Malformed("not json") from fault
        if not found:
            raise Malformed("not json")
        return found


class MsgPackCodec(Codec):
    name = "msgpack"
    text = False
    content_type = "application/msgpack"

    def __init__(self) -> None:
        super().__init__(msgspec.msgpack.Decoder, msgspec.msgpack.Encoder)

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
