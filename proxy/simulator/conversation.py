"""The market-data conversation from Alpaca's side: bytes in, outcomes out.

    greeting → auth → subscribe, unsubscribe, …

A request either changes the state and is acknowledged with all of it, or changes nothing and is answered with an error.
This is a reading of Alpaca's documents of its own, apart from the proxy's dialect code, so that one can prove the other
wrong.
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

# What may be asked for, Alpaca's whole vocabulary; of these a feed carries its endpoint's channels.
_CHANNELS = tuple(dict.fromkeys(CHANNEL_OF_KIND.values()))
_LIMITED = ("trades", "quotes", "orderbooks")  # the channels that a plan's symbol limit counts
_SYMBOL = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")

# The keys of an acknowledgement in documented order; any other channel appears while it is held.
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
    """Alpaca's error message; its text is that of the code unless it is given."""
    return [{"T": "error", "code": code, "msg": ERRORS.get(code, "internal error") if msg is None else msg}]


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key and its secret, as sent in a message or in headers."""

    key: str
    secret: str = field(repr=False)


class ConnectionState(Enum):
    """How far a session has come."""

    STRANGER = "stranger"
    REFUSED = "refused"  # a login failed; the socket stays open and may try again
    AUTHENTICATED = "authenticated"
    OVER = "over"


class MarketSession:
    """One client's conversation on a market-data endpoint."""

    def __init__(self, endpoint: Endpoint, codec: str, slots: AccountSlots) -> None:
        self.endpoint = endpoint
        self.codec = codec
        self.state = ConnectionState.STRANGER
        self.key = ""
        self._slots = slots
        self._held: dict[str, dict[str, None]] = {}  # channel → its symbols, in the order of asking

    def __repr__(self) -> str:
        return f"<MarketSession {self.endpoint.feed} {self.codec} {self.state.value}>"

    @property
    def authenticated(self) -> bool:
        return self.state is ConnectionState.AUTHENTICATED

    @property
    def held(self) -> dict[str, set[str]]:
        """What is subscribed, by channel; channels without a symbol are absent."""
        return {channel: set(symbols) for channel, symbols in self._held.items() if symbols}

    def open(self, credentials: Credentials | None) -> list[Outcome]:
        """The greeting, and the answer to credentials that came with the request's headers."""
        outcomes: list[Outcome] = [Respond([{"T": "success", "msg": "connected"}])]
        return outcomes if credentials is None else outcomes + self._authenticate(credentials)

    def receive(self, payload: bytes) -> list[Outcome]:
        """A client's message and what it leads to."""
        try:
            request = wire.decode(payload, self.codec)
        except ValueError:
            return [Received({"unreadable": len(payload)}), _refusal(400)]
        if not isinstance(request, dict):
            return [Received({"unreadable": len(payload)}), _refusal(400)]
        return [Received(without_secrets(request)), *self._answer(request)]

    def expire(self) -> list[Outcome]:
        """The time to log in is over. One that tried and was refused is hung up on without a word."""
        if self.state is ConnectionState.STRANGER:
            return [_refusal(404), Hangup()]
        return [Hangup()] if self.state is ConnectionState.REFUSED else []

    def end(self, *, farewell: bool) -> None:
        """The connection is gone; its place is free, at once after a `farewell`."""
        if self.state is ConnectionState.AUTHENTICATED:
            self._slots.leave(self.endpoint.feed, self.key, farewell=farewell)
        self.state = ConnectionState.OVER

    def wants(self, message: JsonObject) -> bool:
        """Whether a data message is for this session."""
        channel = CHANNEL_OF_KIND.get(message.get("T", ""), "")
        symbols = self._held.get(channel)
        if not symbols:
            return False
        if WILDCARD in symbols:
            return True
        if channel == "news":
            return any(symbol in symbols for symbol in message["symbols"])
        return message.get("S") in symbols

    def _answer(self, request: JsonObject) -> list[Outcome]:
        action = request.get("action")
        if action == "auth":
            key, secret = request.get("key", ""), request.get("secret", "")
            if not isinstance(key, str) or not isinstance(secret, str):
                return [_refusal(400)]
            return self._authenticate(Credentials(key, secret))
        if action not in ("subscribe", "unsubscribe"):
            return [_refusal(400)]
        if self.state is not ConnectionState.AUTHENTICATED:
            return [_refusal(401)]
        topics, code = self._topics(request)
        if code is None and action == "subscribe":
            code = self._over(topics)
        if code is not None:
            return [_refusal(code)]
        return self._subscribe(topics) if action == "subscribe" else self._unsubscribe(topics)

    def _authenticate(self, credentials: Credentials) -> list[Outcome]:
        if self.state is ConnectionState.AUTHENTICATED:
            return [_refusal(403)]
        feed = self.endpoint.feed
        if self.endpoint.options and self.codec == wire.JSON:
            code: int | None = 412
        else:
            code = self._slots.admit(feed, credentials.key, credentials.secret)
        if code is not None:
            self.state = ConnectionState.REFUSED
            return [_refusal(code)]
        self.state = ConnectionState.AUTHENTICATED
        self.key = credentials.key
        return [Admitted(self.key), Respond([{"T": "success", "msg": "authenticated"}])]

    def _topics(self, request: JsonObject) -> tuple[list[tuple[str, str]], int | None]:
        """What a request names, or the code of what is wrong with it. Keys that are no channel's are ignored, and so
        are the two channels that follow trades; a foreign channel may be named with nothing in it (Go does)."""
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

    def _over(self, topics: Iterable[tuple[str, str]]) -> int | None:
        """The code of what forbids to subscribe to these topics."""
        topics = list(topics)
        if self.endpoint.options and ("quotes", WILDCARD) in topics:
            return 413
        for _, symbol in topics:
            if (scripted := self._slots.symbol_refusals.get(symbol)) is not None:
                return scripted
        limit = self._slots.plan.limit(self.endpoint.feed)
        if limit is None:
            return None
        held = {(channel, symbol) for channel, symbols in self._held.items() for symbol in symbols}
        counted = [topic for topic in held.union(topics) if topic[0] in _LIMITED]
        return 405 if len(counted) > limit or any(symbol == WILDCARD for _, symbol in counted) else None

    def _subscribe(self, topics: Iterable[tuple[str, str]]) -> list[Outcome]:
        fresh = tuple(dict.fromkeys(topic for topic in topics if topic[1] not in self._held.get(topic[0], ())))
        for channel, symbol in fresh:
            self._held.setdefault(channel, {})[symbol] = None
        joined: list[Outcome] = [Joined(fresh)] if fresh else []
        return [self._acknowledgement(), *joined]

    def _unsubscribe(self, topics: Iterable[tuple[str, str]]) -> list[Outcome]:
        for channel, symbol in topics:
            self._held.get(channel, {}).pop(symbol, None)
        return [self._acknowledgement()]

    def _acknowledgement(self) -> Respond:
        held = {channel: list(symbols) for channel, symbols in self._held.items() if symbols}
        ack: JsonObject = {"T": "subscription"}
        for key in _ack_keys(self.endpoint.feed):
            ack[key] = ack["trades"] if key in FOLLOWERS else held.pop(key, [])
        return Respond([ack | held])


def _refusal(code: int) -> Respond:
    return Respond(error(code))
