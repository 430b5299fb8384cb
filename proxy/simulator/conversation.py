"""Market-data session, server side: bytes in, outcomes out.

    greeting → auth → subscribe, unsubscribe, …

A request either changes the subscriptions and is acknowledged with all of them, or changes nothing and is answered with
an error. The implementation follows Alpaca's documentation and is independent of the proxy's dialect code, so that each
checks the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from proxy.alpaca.endpoints import CHANNEL_OF_KIND, FOLLOWERS, WILDCARD, Endpoint
from proxy.simulator import wire
from proxy.simulator.account_plan import ERRORS, AccountSlots
from proxy.simulator.outcomes import Admitted, Hangup, Joined, Outcome, Received, Respond, without_secrets

JsonObject = dict[str, Any]

# Every channel of Alpaca's; a feed carries those of its endpoint.
_CHANNELS = tuple(dict.fromkeys(CHANNEL_OF_KIND.values()))
_LIMITED = ("trades", "quotes", "orderbooks")  # the channels that a plan's symbol limit counts
_SYMBOL = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")

# Keys of an acknowledgement in documented order; any other channel appears while it is subscribed.
_STOCK_KEYS = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds", *FOLLOWERS)
_CRYPTO_KEYS = ("trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars")
_ACK_KEYS: Mapping[str, tuple[str, ...]] = {
    "test": ("trades", "quotes", "bars"),
    "news": ("news",),
    "opra": ("trades", "quotes"),
    "indicative": ("trades", "quotes"),
    "crypto-perps-global": (*_CRYPTO_KEYS, "pricing"),
}


def _ack_keys(feed: str) -> tuple[str, ...]:
    return _ACK_KEYS.get(feed) or (_CRYPTO_KEYS if feed.startswith("crypto") else _STOCK_KEYS)


def error(code: int, msg: str | None = None) -> list[JsonObject]:
    """Return Alpaca's error message; `msg` defaults to the documented text."""
    return [{"T": "error", "code": code, "msg": ERRORS.get(code, "internal error") if msg is None else msg}]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Key and secret, from a message or from headers."""

    key: str
    secret: str = field(repr=False)


class ConnectionState(Enum):
    """Progress of a session's login."""

    UNAUTHENTICATED = "unauthenticated"
    REFUSED = "refused"  # a login failed; the socket stays open and the client may try again
    AUTHENTICATED = "authenticated"
    ENDED = "ended"


class MarketSession:
    """One client's session on a market-data endpoint."""

    def __init__(self, endpoint: Endpoint, codec: str, slots: AccountSlots) -> None:
        self.endpoint = endpoint
        self.codec = codec
        self.state = ConnectionState.UNAUTHENTICATED
        self.key = ""
        self._slots = slots
        self._subscribed: dict[str, dict[str, None]] = {}  # channel → its symbols, in the order of the requests

    def __repr__(self) -> str:
        return f"<MarketSession {self.endpoint.feed} {self.codec} {self.state.value}>"

    @property
    def authenticated(self) -> bool:
        return self.state is ConnectionState.AUTHENTICATED

    @property
    def held(self) -> dict[str, set[str]]:
        """Subscribed symbols by channel; channels without a symbol are absent."""
        return {channel: set(symbols) for channel, symbols in self._subscribed.items() if symbols}

    def open(self, credentials: Credentials | None) -> list[Outcome]:
        """Return the greeting, and the reply to credentials from the upgrade's headers."""
        outcomes: list[Outcome] = [Respond([{"T": "success", "msg": "connected"}])]
        return outcomes if credentials is None else outcomes + self._authenticate(credentials)

    def receive(self, payload: bytes) -> list[Outcome]:
        """Handle a message from the client."""
        try:
            request = wire.decode(payload, self.codec)
        except ValueError:
            return [Received({"unreadable": len(payload)}), _error_response(400)]
        if not isinstance(request, dict):
            return [Received({"unreadable": len(payload)}), _error_response(400)]
        return [Received(without_secrets(request)), *self._handle(request)]

    def expire(self) -> list[Outcome]:
        """Handle the login timeout.

        The error is 404; after a refused login the connection ends without one.
        """
        if self.state is ConnectionState.UNAUTHENTICATED:
            return [_error_response(404), Hangup()]
        return [Hangup()] if self.state is ConnectionState.REFUSED else []

    def end(self, *, close_frame: bool) -> None:
        """Handle the end of the connection: free its slot, at once after a close frame."""
        if self.state is ConnectionState.AUTHENTICATED:
            self._slots.leave(self.endpoint.feed, self.key, close_frame=close_frame)
        self.state = ConnectionState.ENDED

    def wants(self, message: JsonObject) -> bool:
        """Return whether a data message matches this session's subscriptions.

        A recorded one of an unknown kind matches every subscription to its symbol.
        """
        channel = CHANNEL_OF_KIND.get(message.get("T", ""), "")
        if not channel and isinstance(message, wire.Recorded):
            return any(WILDCARD in symbols or message["S"] in symbols for symbols in self._subscribed.values())
        symbols = self._subscribed.get(channel)
        if not symbols:
            return False
        if WILDCARD in symbols:
            return True
        if channel == "news":
            return any(symbol in symbols for symbol in message["symbols"])
        return message.get("S") in symbols

    def _handle(self, request: JsonObject) -> list[Outcome]:
        action = request.get("action")
        if action == "auth":
            key, secret = request.get("key", ""), request.get("secret", "")
            if not isinstance(key, str) or not isinstance(secret, str):
                return [_error_response(400)]
            return self._authenticate(Credentials(key, secret))
        if action not in ("subscribe", "unsubscribe"):
            return [_error_response(400)]
        if self.state is not ConnectionState.AUTHENTICATED:
            return [_error_response(401)]
        topics, code = self._parse_topics(request)
        if code is None and action == "subscribe":
            code = self._subscribe_error(topics)
        if code is not None:
            return [_error_response(code)]
        return self._subscribe(topics) if action == "subscribe" else self._unsubscribe(topics)

    def _authenticate(self, credentials: Credentials) -> list[Outcome]:
        if self.state is ConnectionState.AUTHENTICATED:
            return [_error_response(403)]
        feed = self.endpoint.feed
        if self.endpoint.options and self.codec == wire.JSON:
            code: int | None = 412
        else:
            code = self._slots.admit(feed, credentials.key, credentials.secret)
        if code is not None:
            self.state = ConnectionState.REFUSED
            return [_error_response(code)]
        self.state = ConnectionState.AUTHENTICATED
        self.key = credentials.key
        return [Admitted(self.key), Respond([{"T": "success", "msg": "authenticated"}])]

    def _parse_topics(self, request: JsonObject) -> tuple[list[tuple[str, str]], int | None]:
        """Return the topics that a request names, or the code of its first error.

        Keys that are not channels are ignored, and so are the two channels that follow trades. A channel of another
        feed is accepted with an empty list (Alpaca's Go SDK sends those).
        """
        topics: list[tuple[str, str]] = []
        for channel in _CHANNELS:
            symbols = request.get(channel)
            if symbols is None:
                continue
            if not isinstance(symbols, list):
                return [], 400
            if symbols and channel not in self.endpoint.channels:
                return [], 410
            if not all(isinstance(symbol, str) and _SYMBOL.fullmatch(symbol) for symbol in symbols):
                return [], 400
            topics += [(channel, symbol) for symbol in symbols]
        return topics, None

    def _subscribe_error(self, topics: Iterable[tuple[str, str]]) -> int | None:
        """Return the code that refuses a subscription to these topics, or None."""
        topics = list(topics)
        if self.endpoint.options and ("quotes", WILDCARD) in topics:
            return 413
        if topics and (scripted := self._slots.subscribe_refusal(self.endpoint.feed)) is not None:
            return scripted
        for _, symbol in topics:
            if (scripted := self._slots.symbol_refusals.get(symbol)) is not None:
                return scripted
        limit = self._slots.plan.limit(self.endpoint.feed)
        if limit is None:
            return None
        subscribed = {(channel, symbol) for channel, symbols in self._subscribed.items() for symbol in symbols}
        counted = [topic for topic in subscribed.union(topics) if topic[0] in _LIMITED]
        return 405 if len(counted) > limit or any(symbol == WILDCARD for _, symbol in counted) else None

    def _subscribe(self, topics: Iterable[tuple[str, str]]) -> list[Outcome]:
        added = tuple(dict.fromkeys(topic for topic in topics if topic[1] not in self._subscribed.get(topic[0], ())))
        for channel, symbol in added:
            self._subscribed.setdefault(channel, {})[symbol] = None
        joined: list[Outcome] = [Joined(added)] if added else []
        return [self._ack(), *joined]

    def _unsubscribe(self, topics: Iterable[tuple[str, str]]) -> list[Outcome]:
        for channel, symbol in topics:
            self._subscribed.get(channel, {}).pop(symbol, None)
        return [self._ack()]

    def _ack(self) -> Respond:
        remaining = {channel: list(symbols) for channel, symbols in self._subscribed.items() if symbols}
        ack: JsonObject = {"T": "subscription"}
        for key in _ack_keys(self.endpoint.feed):
            ack[key] = ack["trades"] if key in FOLLOWERS else remaining.pop(key, [])
        return Respond([ack | remaining])


def _error_response(code: int) -> Respond:
    return Respond(error(code))
