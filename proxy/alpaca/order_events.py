"""Order updates as server-sent events: `GET /v2/events/trades`.

An event is one line, `data: ` and the `data` of an order update as JSON, with the time `at`. A line that begins with a
colon is a comment. Alpaca's Go SDK reads it so (alpacahq/alpaca-trade-api-go v3, alpaca/stream.go): it takes lines that
begin with `data: `, and after an error it asks again with `since`, one nanosecond after the last `at`. So every `at` is
later than the one before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl

from proxy.alpaca import timestamps
from proxy.alpaca.codec import JSON, JsonCodec, Raw
from proxy.alpaca.endpoints import without_extra_slashes

PATHS = ("/v2/events/trades", "/v2beta1/events/trades")  # the second is the older name
CONTENT_TYPE = "text/event-stream"
HEARTBEAT = b":heartbeat\n\n"
SLOW = b": you are reading too slowly\n\n"

# A later time is ignored: an update after it could get no time that is later still and has four digits for the year.
_LATEST = timestamps.nanoseconds("9000-01-01T00:00:00Z")
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")  # JSON has line breaks between its tokens alone


class EventCodec(JsonCodec):
    """The codec of an event stream: the `data` of an update alone, in JSON, with its `at`."""

    name = "sse"


EVENTS = EventCodec()


def is_order_events(path: str) -> bool:
    """Return whether a request path is that of the order updates as events."""
    return without_extra_slashes(path) in PATHS


def event(body: bytes) -> bytes:
    """Return the event of an update that `stamped` has returned."""
    return b"data: %b\n\n" % body


class Stamped(NamedTuple):
    """The time of an update, and its body with that time as `at`; `added`: Alpaca had sent none."""

    at: int
    body: bytes
    added: bool


def stamped(update: Raw | bytes, arrived: int, earliest: int) -> Stamped | None:
    """Return an update's time and its body on one line, which has the time as `at`.

    `update` is the `data` of a message, `arrived` its time of arrival, in nanoseconds since 1970 like the result. The
    time is Alpaca's own `at`, else that of arrival, but not before `earliest`. A body that has the time keeps its
    bytes. None for an update that is not an object.
    """
    fields = JSON.fields_of(update)
    if fields is None:
        return None
    named = _time(JSON.text_of(fields.get("at")))
    at = max(arrived if named is None else named, earliest)
    body = bytes(update) if at == named else JSON.encode({**fields, "at": timestamps.rfc3339(at)})
    return Stamped(at, body.translate(_ONE_LINE), "at" not in fields)


def without_time(body: bytes, at: int) -> bytes:
    """Return a body to which `stamped` has added this time as it was before, but for spaces between its values."""
    added = b'"at":%b}' % JSON.encode(timestamps.rfc3339(at))
    return body if not body.endswith(added) else body[: -len(added)].removesuffix(b",") + b"}"


def time_of(body: bytes) -> int:
    """Return the `at` of a body that `stamped` has returned, in nanoseconds since 1970."""
    return _time(JSON.text_of((JSON.fields_of(body) or {}).get("at"))) or 0


def _time(text: str | None) -> int | None:
    try:
        time = None if text is None else timestamps.nanoseconds(text)
    except (ValueError, OverflowError):
        return None
    return time if time is None or time < _LATEST else None


@dataclass(frozen=True, slots=True)
class Window:
    """The updates that a request asks for, by their `at` in nanoseconds since 1970; both ends are included.

    `since` None: only updates from now on; `until` None: without an end.
    """

    since: int | None = None
    until: int | None = None

    @classmethod
    def of_query(cls, query: str) -> Window:
        """Return the window of a request's query string. Raises ValueError, with a sentence for the client."""
        values = {name: text for name, text in parse_qsl(query) if text}
        if "since_id" in values or "until_id" in values:
            raise ValueError("since_id and until_id are not served by this proxy: use since and until")
        window = cls(*(_parameter(name, values.get(name)) for name in ("since", "until")))
        if window.since is None and window.until is not None:
            raise ValueError("since is required with until")
        return window


def _parameter(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    text = text.replace(" ", "+")  # of a time zone, if the client has not encoded it
    try:
        return timestamps.nanoseconds(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} is not an RFC 3339 time or a date") from None
