"""The two codecs, and the choice of a connection's codec.

Timestamps are RFC 3339 text in messages; msgpack sends them as extension type -1. The codec follows the Content-Type
of the upgrade request. Options are msgpack unless the request names JSON (such logins are then refused, in JSON);
trading is always JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.alpaca import codec as codecs
from proxy.alpaca import timestamps, transcode
from proxy.alpaca.endpoints import Dialect, Endpoint

JsonObject = dict[str, Any]

JSON, MSGPACK = "json", "msgpack"
_TIMESTAMP_KEYS = ("t", "created_at", "updated_at", "ft")


# Typed, because msgpack allows arrays as keys and their hashes are not salted: decoding a map of colliding keys would
# take minutes.
_Scalar = str | int | float | bool | None
_decode_msgpack_request = msgspec.msgpack.Decoder(dict[str, _Scalar | list[_Scalar]]).decode


class Recorded(dict[str, Any]):
    """A message whose JSON is kept as it came; as a dictionary it has only the keys by which it is delivered."""

    __slots__ = ("body",)

    def __init__(self, keys: JsonObject, body: bytes) -> None:
        super().__init__(keys)
        self.body = body

    def packed(self) -> bytes | None:
        """Return the message as msgpack; None if it has no equivalent."""
        body, kind, (source, target) = self.body, self.get("T", ""), (codecs.JSON, codecs.MSGPACK)
        try:
            try:
                return bytes(transcode.transcode(kind, body, source, target) or b"")
            except transcode.InvalidText:
                return bytes(transcode.transcode(kind, transcode.with_valid_text(body, source), source, target) or b"")
        except codecs.Malformed:
            return None


def codec(endpoint: Endpoint, content_type: str) -> str:
    """Return the codec of a connection with this Content-Type (empty: none)."""
    requested = content_type.partition(";")[0].strip().lower()
    if endpoint.dialect is Dialect.TRADING:
        return JSON
    if endpoint.options:
        return JSON if requested == "application/json" else MSGPACK
    return MSGPACK if requested == "application/msgpack" else JSON


def decode(payload: bytes, codec: str) -> Any:
    """Decode exactly one document. Raises ValueError for anything else."""
    try:
        return msgspec.json.decode(payload) if codec == JSON else _decode_msgpack_request(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not one {codec} document") from error


def encode(document: Any, codec: str) -> bytes:
    """Encode a document without timestamps: a control message."""
    return msgspec.json.encode(document) if codec == JSON else msgspec.msgpack.encode(document)


def encode_data(messages: Sequence[JsonObject], codec: str) -> bytes:
    """Encode an array of data messages.

    Raises ValueError for a timestamp that is not RFC 3339.
    """
    recorded = [message for message in messages if isinstance(message, Recorded)]
    if recorded:
        if codec == JSON:
            return codecs.JSON.join([message.body for message in recorded])
        return codecs.MSGPACK.join([body for message in recorded if (body := message.packed()) is not None])
    if codec == JSON:
        return msgspec.json.encode(messages)
    return msgspec.msgpack.encode([_with_timestamps(message) for message in messages])


def _with_timestamps(message: JsonObject) -> JsonObject:
    stamps = {
        key: msgspec.msgpack.Ext(timestamps.EXT, timestamps.ext(timestamps.nanoseconds(value)))
        for key in _TIMESTAMP_KEYS
        if isinstance(value := message.get(key), str)
    }
    return {**message, **stamps} if stamps else message
