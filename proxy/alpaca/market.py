"""The market-data dialect: requests, replies and codes of all feeds but trading.

Requests are objects with an `action`; replies are arrays, and a control message is alone in its array. Codes and texts
are exactly Alpaca's, since SDKs match on either (docs.alpaca.markets, "Streaming Market Data"; the Python SDK stops for
good at the text of 409, Java's at those of 401, 402 and 404, Go's and C#'s at codes).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from proxy.alpaca.codec import Codec, Raw
from proxy.alpaca.cooperative import Steps, chunks, run_to_end
from proxy.alpaca.endpoints import FOLLOWERS, WILDCARD, Endpoint
from proxy.alpaca.topics import (
    MAX_SYMBOL,
    Subscription,
    Topic,
    by_channel,
    symbol_of,
)

ERRORS = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
    412: "option messages are only available in MsgPack format",
    413: "star subscription is not allowed for option quotes",
    500: "internal error",
}

MAX_TOPICS = 50_000  # of a session: four channels of every stock; a client that wants all of them can use `*`
MAX_ACK_BYTES = 1_000_000  # an acknowledgement is one frame, and Python's SDKs refuse a frame over 1 MiB
UNMEASURED_TOPICS = 10_000  # up to this many are accepted without a look at MAX_ACK_BYTES
NAMED_SYMBOLS = 20  # of an invalid request
MAX_KEYS = 64  # of a request; Alpaca has a dozen channels

# The kinds of control messages. Everything else is data.
CONTROL = frozenset(("success", "error", "subscription"))

_CHANGES = ("subscribe", "unsubscribe")

# Keys of a request or an acknowledgement that are not channels with a subscription of their own.
_NO_CHANNELS = frozenset(("action", "T", *FOLLOWERS))

ControlFrame = list[dict[str, Any]]

CONNECTED: ControlFrame = [{"T": "success", "msg": "connected"}]
AUTHENTICATED: ControlFrame = [{"T": "success", "msg": "authenticated"}]


def error(code: int, msg: str | None = None) -> ControlFrame:
    """Return an error message; `msg` defaults to Alpaca's text for the code."""
    return [{"T": "error", "code": code, "msg": msg or ERRORS[code]}]


def subscription(endpoint: Endpoint, held: Iterable[Topic]) -> Steps[ControlFrame]:
    """Return the acknowledgement of all topics held, yielding between chunks.

    The key of each documented channel is present; symbols are sorted.
    """
    channels = yield from by_channel(held)
    trades = channels.get("trades", [])
    reply: dict[str, Any] = {"T": "subscription"}
    for channel in endpoint.shown:
        reply[channel] = trades if channel in FOLLOWERS else channels.pop(channel, [])
    return [reply | channels]


def is_too_much(held: Subscription, more: Subscription) -> bool:
    """Whether the two together exceed MAX_TOPICS or MAX_ACK_BYTES."""
    if len(held) + len(more) <= UNMEASURED_TOPICS:
        return False
    topics = held | more
    ack_bytes = _size(topics)
    if ack_bytes * (1 + len(FOLLOWERS)) > MAX_ACK_BYTES:
        ack_bytes += len(FOLLOWERS) * _size([topic for topic in topics if topic[0] == "trades"])
    return len(topics) > MAX_TOPICS or ack_bytes > MAX_ACK_BYTES


def _size(topics: Collection[Topic]) -> int:
    """Return the size of the topics' symbols in an acknowledgement."""
    return len("".join(map(symbol_of, topics))) + len(topics) * len('"",')


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """An `auth`, or an `authenticate` of the trading dialect."""

    key: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A subscribe (`add`) or an unsubscribe of these topics."""

    add: bool
    topics: Subscription


@dataclass(frozen=True, slots=True)
class InvalidRequest:
    """A request that is refused with this code, whichever client sends it.

    `topics` are some of those for which it is refused, shortened: they have not been checked.
    """

    code: int
    topics: tuple[Topic, ...] = ()


def request(
    message: Mapping[str, Raw], codec: Codec, endpoint: Endpoint
) -> Steps[AuthRequest | ChangeRequest | InvalidRequest]:
    """Parse a client's request, yielding between chunks of symbols.

    Unknown keys of `auth` are ignored, as Alpaca does; so are `corrections` and `cancelErrors` in `subscribe`, since
    one SDK sends them.
    """
    action = codec.text_of(message.get("action"))
    if action == "auth":
        key, secret = (codec.text_of(message[name]) if name in message else "" for name in ("key", "secret"))
        return InvalidRequest(400) if key is None or secret is None else AuthRequest(key, secret)
    if action not in _CHANGES or len(message) > MAX_KEYS:
        return InvalidRequest(400)
    requested: set[Topic] = set()
    for channel, value in message.items():
        # Go's SDK sends every channel's key to every feed, nil for no symbols. Under a key that is not one of Alpaca's
        # channels, a value that is not a list is some field of the SDK's own.
        if channel in _NO_CHANNELS or codec.is_null(value):
            continue
        if not codec.is_array(value):
            if channel in endpoint.channels or endpoint.foreign(channel):
                return _invalid(400, channel)
            continue
        symbols = codec.texts_of(value)
        if endpoint.foreign(channel) and (symbols is None or symbols):
            return _invalid(410, channel, symbols)
        if not 0 < len(channel) <= MAX_SYMBOL or symbols is None:
            return _invalid(400, channel)
        for chunk in chunks(symbols):
            if not _are_symbols(chunk):
                return _invalid(400, channel)
            requested.update(zip(repeat(channel), chunk))
            yield
    if action == "subscribe" and endpoint.options and ("quotes", WILDCARD) in requested:
        return _invalid(413, "quotes", [WILDCARD])
    return ChangeRequest(action == "subscribe", frozenset(requested))


def _invalid(code: int, channel: str, symbols: Sequence[str] | None = None) -> InvalidRequest:
    named = [symbol[:MAX_SYMBOL] for symbol in (symbols or [])[:NAMED_SYMBOLS]] or [""]
    return InvalidRequest(code, tuple((channel[:MAX_SYMBOL], symbol) for symbol in named))


def is_change(message: Mapping[str, Raw], codec: Codec) -> bool:
    """Whether this is a subscribe or an unsubscribe, well-formed or not."""
    return codec.text_of(message.get("action")) in _CHANGES


def _are_symbols(symbols: list[str]) -> bool:
    """Whether all of these are valid symbols or wildcards.

    They are checked together, not one by one: a client may request thousands while data flows.
    """
    text = "\n".join(symbols)
    sizes = {*map(len, symbols)}
    if symbols and not 0 < min(sizes) <= max(sizes) <= MAX_SYMBOL:
        return False
    return "*" not in text or all(symbol == WILDCARD for symbol in symbols if "*" in symbol)


def auth(key: str, secret: str) -> dict[str, Any]:
    """Return the request that logs in to Alpaca."""
    return {"action": "auth", "key": key, "secret": secret}


def change(add: bool, topics: Iterable[Topic]) -> dict[str, Any]:
    """Return the request to Alpaca that adds or removes these topics."""
    return {"action": "subscribe" if add else "unsubscribe", **run_to_end(by_channel(topics))}
