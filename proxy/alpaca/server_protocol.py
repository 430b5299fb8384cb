"""One client's conversation, our side of it: bytes in, outcomes out.

    GREETED ──authenticate, granted──► AUTHENTICATED
       └────────── authenticate, denied: stays, may try again until its time is over

A session decides what can be decided from the words alone: their form, their order, what this feed knows. Who the
client is, what it may have and when Alpaca confirms it are others' to say; they answer an outcome by calling `granted`,
`denied`, `acked` or `refused`, each of which gives the bytes to send. Every reply is a frame of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256

from proxy.alpaca import legacy, market, trading
from proxy.alpaca import plain_pairs as pairs
from proxy.alpaca.codec import JSON, MSGPACK, Codec, Malformed, Raw
from proxy.alpaca.cooperative import Steps, run_to_end
from proxy.alpaca.endpoints import Dialect, Endpoint
from proxy.alpaca.lru_cache import LruCache
from proxy.alpaca.topics import MANY, Subscription, Topic, words

# Who asks for thousands is seldom alone, and asks again in the same words whenever it is started. So the last of the
# long messages and of the long acknowledgements are remembered, none over `market.MOST_TOLD` bytes: a join with 8,000
# symbols takes 3.6 ms with it and 16.9 without (measured), since none of the symbols is looked at. Of a message only
# what it changes is kept, and a digest of its words.
LONG_MESSAGE = 8 * 1024
REMEMBERED_TOPICS = 20_000  # of a message
_changes: LruCache[list[market.ChangeRequest]] = LruCache()
_acknowledgements: LruCache[bytes] = LruCache()


class LoginState(Enum):
    GREETED = "greeted"
    AUTHENTICATED = "authenticated"


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this as a frame of its own."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Find out who this is, then call `granted` or `denied`."""

    key: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Add these topics, all or nothing."""

    topics: Subscription


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Give these topics up."""

    topics: Subscription


@dataclass(frozen=True, slots=True)
class Listen:
    """On `/stream`: hear these trading streams, as far as they are allowed, and no others (None: those that are heard);
    and these topics of the default feed besides, all or nothing."""

    trading: Subscription | None
    market: Subscription


@dataclass(frozen=True, slots=True)
class Unlisten:
    """On `/stream`: give these up."""

    trading: Subscription
    market: Subscription


Outcome = Reply | Authenticate | Subscribe | Unsubscribe | Listen | Unlisten


class ServerProtocol:
    """The market dialect. `codec` is what both sides speak, `hears` the codec of its market data, `text` whether its
    frames are text frames, `barred` the code that answers any authentication here, if nobody may."""

    def __init__(self, endpoint: Endpoint, codec: Codec) -> None:
        self.endpoint = endpoint
        self.codec = codec
        self.data_codec = codec
        self.text = codec.text
        self.state = LoginState.GREETED
        # Alpaca carries options in msgpack alone, and says so in reply to auth.
        self.refused_code = 412 if endpoint.options and codec is JSON else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint.feed} {self.codec.name} {self.state.value}>"

    def opening(self) -> list[bytes]:
        """What is said before the client has said anything."""
        return [self._encode(market.CONNECTED)]

    def receive(self, frame: bytes) -> Iterator[Outcome | None]:
        """What follows from one message of the client; each outcome is performed before the next is asked for. None is
        a pause: there is much to read, and others may want a turn."""
        long = LONG_MESSAGE < len(frame) <= market.MAX_ACK_BYTES and self.state is LoginState.AUTHENTICATED
        key = self.endpoint.feed, self.codec.name, sha256(frame).digest() if long else b""
        if long and (changes := _changes.get(key)):
            for change in changes:
                yield self._change(change)
            return
        try:
            messages = yield from self.codec.requests(frame)
        except Malformed:
            yield self._error(400)
            return
        asked = []
        for message in messages:
            request = yield from self._read(message)
            if isinstance(request, market.ChangeRequest):
                asked.append(request)
            yield self._outcome(request)
        if long and len(asked) == len(messages) and sum(len(change.topics) for change in asked) <= REMEMBERED_TOPICS:
            _changes.put(key, asked)

    def _read(
        self, message: Mapping[str, Raw]
    ) -> Steps[market.AuthRequest | market.ChangeRequest | market.InvalidRequest]:
        if self.state is not LoginState.AUTHENTICATED and market.is_change(message, self.codec):
            return market.InvalidRequest(401)
        return (yield from market.request(message, self.codec, self.endpoint))

    def _outcome(self, request: market.AuthRequest | market.ChangeRequest | market.InvalidRequest) -> Outcome:
        if isinstance(request, market.InvalidRequest):
            return self._error(request.code)
        if isinstance(request, market.ChangeRequest):
            return self._change(request)
        if self.state is LoginState.AUTHENTICATED:
            return self._error(403)
        return Authenticate(request.key, request.secret)

    def _change(self, change: market.ChangeRequest) -> Subscribe | Unsubscribe:
        return Subscribe(change.topics) if change.add else Unsubscribe(change.topics)

    def granted(self) -> bytes:
        """The client is who it says, and may be here."""
        self.state = LoginState.AUTHENTICATED
        return self._encode(market.AUTHENTICATED)

    def denied(self, code: int) -> bytes:
        """It is not, or may not: 402, 406, 409 or 412. It may try again."""
        return self._encode(market.error(code))

    def timed_out(self) -> bytes:
        """The time to authenticate is over."""
        return self._encode(market.error(404))

    def acked(self, held: Subscription) -> bytes:
        """The whole state, as the reply to a change."""
        return run_to_end(self._acked(held))

    def prepare(self, held: Subscription) -> Iterator[None]:
        """Makes a long `acked` beforehand, with pauses, so that it takes no time when its turn has come."""
        if len(held) >= MANY:
            yield from self._acked(held)

    def _acked(self, held: Subscription) -> Steps[bytes]:
        key = self.endpoint.feed, self.codec.name, held
        told = _acknowledgements.get(key) if len(held) >= MANY else None
        if told is None:
            told = self._encode((yield from market.subscription(self.endpoint, held)))
            if len(held) >= MANY and len(told) <= market.MAX_ACK_BYTES:
                _acknowledgements.put(key, told)
        return told

    def refused(self, code: int, msg: str | None = None) -> bytes:
        """A change was refused; the state is as before."""
        return self._encode(market.error(code, msg))

    def insufficient(self, topics: Iterable[Topic]) -> bytes:
        """A change was refused, since the allowlist denies these."""
        return self.refused(409, f"{market.ERRORS[409]}: {words(topics)}")

    def slow(self) -> bytes:
        """The last words to a slow client."""
        return self._encode(market.error(407))

    def _error(self, code: int) -> Reply:
        return Reply(self.refused(code))

    def _encode(self, frame: market.ControlFrame) -> bytes:
        return self.codec.encode(frame)


class PlainPairsServerProtocol(ServerProtocol):
    """The market dialect with crypto pairs under their old names, `BTCUSD`."""

    def __init__(self, endpoint: Endpoint, codec: Codec) -> None:
        super().__init__(endpoint, codec)
        self.data_codec = pairs.PLAIN_PAIRS[codec.name]

    def _change(self, change: market.ChangeRequest) -> Subscribe | Unsubscribe:
        return super()._change(market.ChangeRequest(change.add, pairs.to_current_pairs(change.topics)))

    def _acked(self, held: Subscription) -> Steps[bytes]:
        return super()._acked(pairs.to_plain_pairs(held))

    def insufficient(self, topics: Iterable[Topic]) -> bytes:
        return super().insufficient(pairs.to_plain_pairs(topics))


class TradingServerProtocol(ServerProtocol):
    """The trading dialect: no greeting, no codes, JSON in binary frames whatever was asked for; and in its grammar the
    market data of the default feed under the names of 2020."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint, JSON)
        self.text = False
        self.data_codec = legacy.LEGACY

    def opening(self) -> list[bytes]:
        return []

    def receive(self, frame: bytes) -> Iterator[Outcome | None]:
        try:
            messages = yield from self.codec.requests(frame)
        except Malformed:
            messages = [{}]
        for message in messages:
            yield self._request(message)

    def _request(self, message: Mapping[str, Raw]) -> Outcome:
        request = trading.request(message)
        if request is None:
            return Reply(self.codec.encode(trading.INVALID))
        if isinstance(request, market.AuthRequest):
            if self.state is LoginState.AUTHENTICATED:
                return Reply(self.codec.encode(trading.AUTHORIZED))
            return Authenticate(request.key, request.secret)
        if self.state is not LoginState.AUTHENTICATED:
            return Reply(self.codec.encode(trading.NOT_YET))
        streams = trading.topics(request.streams, self.endpoint)
        market_data = legacy.topics(request.streams)
        if request.stop:
            return Unlisten(streams, market_data)
        # `listen` replaces the trading streams; StreamConn sends only what is new of the market data.
        return Listen(streams if streams or not request.streams else None, market_data)

    def granted(self) -> bytes:
        self.state = LoginState.AUTHENTICATED
        return self.codec.encode(trading.AUTHORIZED)

    def denied(self, code: int) -> bytes:
        return self.codec.encode(trading.UNAUTHORIZED)

    def timed_out(self) -> bytes:
        return b""

    def acked(self, held: Subscription) -> bytes:
        streams = (legacy.stream(topic) if legacy.is_legacy(topic) else topic[0] for topic in held)
        return self.codec.encode(trading.listening(streams))

    def prepare(self, held: Subscription) -> Iterator[None]:
        return iter(())

    def refused(self, code: int, msg: str | None = None) -> bytes:
        error = msg or market.ERRORS[code]
        return self.codec.encode({"stream": "listening", "data": {"error": error}})

    def slow(self) -> bytes:
        return b""


def server_protocol_for(endpoint: Endpoint, path: str, content_type: str) -> ServerProtocol:
    """The session for a request to this endpoint; the codec is that of the Content-Type header, never of the opcode."""
    if endpoint.dialect is Dialect.TRADING:
        return TradingServerProtocol(endpoint)
    named = content_type.partition(";")[0].strip().lower()
    msgpack = named == MSGPACK.content_type or (endpoint.options and named != JSON.content_type)
    return (PlainPairsServerProtocol if path == pairs.PATH else ServerProtocol)(endpoint, MSGPACK if msgpack else JSON)
