"""The market-data dialect: what is said on every feed but trading, by both sides.

Requests are objects with an `action`; answers are arrays, and control messages stand alone in theirs. Codes and texts
are Alpaca's, exact: SDKs match on either (docs.alpaca.markets, "Streaming Market Data"; the Python SDK stops for good
at the text of 409, Java's at those of 401, 402 and 404, Go's and C#'s at codes).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.alpaca.codec import Codec, Raw
from proxy.alpaca.cooperative import Steps, chunks, run_to_end
from proxy.alpaca.endpoints import FOLLOWERS, WILDCARD, Endpoint
from proxy.alpaca.topics import (
    MAX_SYMBOL,
    Subscription,
    Topic,
    by_channel,
    find_interned,
    intern_subscription,
    intern_topics,
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

MAX_TOPICS = 50_000  # of a session: four channels of every stock there is; all of them take `*`
MAX_ACK_BYTES = 1_000_000  # bytes in an acknowledgement, which is one frame: Python's SDKs take none over 1 MiB
UNMEASURED_TOPICS = 10_000  # need not be measured
MAX_KEYS = 64  # of a request; Alpaca has a dozen channels

# The kinds of control messages. Everything else is data.
CONTROL = frozenset(("success", "error", "subscription"))

_CHANGES = ("subscribe", "unsubscribe")

# Keys of a request, or of its acknowledgement, that name no channel which could be asked for.
_NO_CHANNELS = frozenset(("action", "T", *FOLLOWERS))

ControlFrame = list[dict[str, Any]]

CONNECTED: ControlFrame = [{"T": "success", "msg": "connected"}]
AUTHENTICATED: ControlFrame = [{"T": "success", "msg": "authenticated"}]


def error(code: int, msg: str | None = None) -> ControlFrame:
    """A refusal; `msg` is Alpaca's text for the code unless it is given."""
    return [{"T": "error", "code": code, "msg": msg or ERRORS[code]}]


def subscription(endpoint: Endpoint, held: Iterable[Topic]) -> Steps[ControlFrame]:
    """The acknowledgement: the whole state, each documented channel's key present, symbols sorted."""
    channels = yield from by_channel(held)
    trades = channels.get("trades", [])
    reply: dict[str, Any] = {"T": "subscription"}
    for channel in endpoint.shown:
        reply[channel] = trades if channel in FOLLOWERS else channels.pop(channel, [])
    return [reply | channels]


def is_too_much(held: Subscription, more: Subscription) -> bool:
    """Whether both together are more topics than a session may hold, or than an acknowledgement has room for."""
    if len(held) + len(more) <= UNMEASURED_TOPICS:
        return False
    topics = held | more
    told = _size(topics)
    if told * (1 + len(FOLLOWERS)) > MAX_ACK_BYTES:
        told += len(FOLLOWERS) * _size([topic for topic in topics if topic[0] == "trades"])
    return len(topics) > MAX_TOPICS or told > MAX_ACK_BYTES


def _size(topics: Collection[Topic]) -> int:
    """How many bytes their symbols take in an acknowledgement."""
    return len("".join(map(symbol_of, topics))) + len(topics) * len('"",')


@dataclass(frozen=True, slots=True)
class AuthRequest:
    key: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A subscribe (`add`) or an unsubscribe of these topics."""

    add: bool
    topics: Subscription


@dataclass(frozen=True, slots=True)
class InvalidRequest:
    """A request that is refused as it stands, whoever asks."""

    code: int


def request(
    message: Mapping[str, Raw], codec: Codec, endpoint: Endpoint
) -> Steps[AuthRequest | ChangeRequest | InvalidRequest]:
    """What a client asks. Unknown keys are ignored in `auth`, as Alpaca does; `corrections` and `cancelErrors` in
    `subscribe`, since one SDK sends them."""
    action = codec.text_of(message.get("action"))
    if action == "auth":
        key, secret = (codec.text_of(message[name]) if name in message else "" for name in ("key", "secret"))
        return InvalidRequest(400) if key is None or secret is None else AuthRequest(key, secret)
    if action not in _CHANGES or len(message) > MAX_KEYS:
        return InvalidRequest(400)
    asked: set[Topic] = set()
    for channel, value in message.items():
        # Go sends every channel's key to every feed, nil where it wants nothing. What is no list and no channel of
        # Alpaca's is some key of the SDK's own.
        if channel in _NO_CHANNELS or codec.is_null(value):
            continue
        if not codec.is_array(value):
            if channel in endpoint.channels or endpoint.foreign(channel):
                return InvalidRequest(400)
            continue
        symbols = codec.texts_of(value)
        if endpoint.foreign(channel) and (symbols is None or symbols):
            return InvalidRequest(410)
        if len(channel) > MAX_SYMBOL or symbols is None:
            return InvalidRequest(400)
        for piece in chunks(symbols):
            topics = find_interned(channel, piece)
            if topics is None:
                if not _are_symbols(piece):
                    return InvalidRequest(400)
                topics = intern_topics(channel, piece)
            asked.update(topics)
            yield
    if action == "subscribe" and endpoint.options and ("quotes", WILDCARD) in asked:
        return InvalidRequest(413)
    return ChangeRequest(action == "subscribe", intern_subscription(frozenset(asked)))


def is_change(message: Mapping[str, Raw], codec: Codec) -> bool:
    """Whether a client asks to subscribe or to unsubscribe, in whatever words."""
    return codec.text_of(message.get("action")) in _CHANGES


def _are_symbols(symbols: list[str]) -> bool:
    """Whether these are symbols or wildcards. All at once: a client may ask for thousands while data flows."""
    text = "\n".join(symbols)
    sizes = {*map(len, symbols)}
    if symbols and not 0 < min(sizes) <= max(sizes) <= MAX_SYMBOL:
        return False
    return "*" not in text or all(symbol == WILDCARD for symbol in symbols if "*" in symbol)


def auth(key: str, secret: str) -> dict[str, Any]:
    """The request that logs in to Alpaca."""
    return {"action": "auth", "key": key, "secret": secret}


def change(add: bool, topics: Iterable[Topic]) -> dict[str, Any]:
    """The request for one difference between wanted and acked."""
    return {"action": "subscribe" if add else "unsubscribe", **run_to_end(by_channel(topics))}
