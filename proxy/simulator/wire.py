"""Documents as bytes in the two codecs, and which of them a connection speaks.

JSON goes out as it is written here; in msgpack the timestamps, RFC 3339 text in a document, become extension type -1.
The codec is that of the request's Content-Type. Options are msgpack unless JSON is asked for by name (and then they are
refused, in JSON); trading is JSON whatever was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.alpaca import timestamps
from proxy.alpaca.endpoints import Dialect, Endpoint

JsonObject = dict[str, Any]

JSON, MSGPACK = "json", "msgpack"
_TIMES = ("t", "created_at", "updated_at", "ft")


# Typed, since msgpack allows arrays as keys, whose hashes are not salted: a map of colliding keys would take minutes.
_Scalar = str | int | float | bool | None
_request = msgspec.msgpack.Decoder(dict[str, _Scalar | list[_Scalar]]).decode


def codec(endpoint: Endpoint, content_type: str) -> str:
    """What is spoken on a connection to `endpoint` that was asked for with this Content-Type (empty: none)."""
    asked = content_type.partition(";")[0].strip().lower()
    if endpoint.dialect is Dialect.TRADING:
        return JSON
    if endpoint.options:
        return JSON if asked == "application/json" else MSGPACK
    return MSGPACK if asked == "application/msgpack" else JSON


def decode(payload: bytes, codec: str) -> Any:
    """One document, whole and alone. Raises ValueError for anything else."""
    try:
        return msgspec.json.decode(payload) if codec == JSON else _request(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not one {codec} document") from error


def encode(document: Any, codec: str) -> bytes:
    """A document without timestamps: a control message."""
    return msgspec.json.encode(document) if codec == JSON else msgspec.msgpack.encode(document)


def encode_data(messages: Sequence[JsonObject], codec: str) -> bytes:
    """An array of data messages. Raises ValueError for a timestamp that is not RFC 3339."""
    if codec == JSON:
        return msgspec.json.encode(messages)
    return msgspec.msgpack.encode([_stamped(message) for message in messages])


def _stamped(message: JsonObject) -> JsonObject:
    stamps = {
        key: msgspec.msgpack.Ext(timestamps.EXT, timestamps.ext(timestamps.nanoseconds(value)))
        for key in _TIMES
        if isinstance(value := message.get(key), str)
    }
    return {**message, **stamps} if stamps else message
