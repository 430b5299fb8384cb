"""The server's side of the protocol, toward one client: bytes in, outcomes out.

    GREETED ──authenticate, granted──► AUTHENTICATED
       └────────── authenticate, denied: the state is kept; the client may try again until its time is over

A `ServerProtocol` decides what can be decided from the messages alone: their syntax, their order, the channels of the
feed. Its caller authenticates, checks permissions and waits for Alpaca; it then calls `granted`, `denied`, `acked` or
`refused`, each of which returns the bytes of the reply. Every reply is a frame of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from proxy.alpaca import legacy, market, trading
from proxy.alpaca import plain_pairs as pairs
from proxy.alpaca.codec import JSON, MSGPACK, Codec, Malformed, Raw
from proxy.alpaca.cooperative import Steps, chunks, sorted_in_chunks
from proxy.alpaca.endpoints import Dialect, Endpoint, without_extra_slashes
from proxy.alpaca.topics import Subscription, Topic, words


class LoginState(Enum):
    GREETED = "greeted"
    AUTHENTICATED = "authenticated"


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this as a frame of its own; `code` is that of an error, `topics` some of those for which it is one."""

    payload: bytes
    code: int = 0
    topics: tuple[Topic, ...] = ()


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Authenticate the client, then call `granted` or `denied`."""

    key: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Add these topics, all or none."""

    topics: Subscription


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Remove these topics."""

    topics: Subscription


@dataclass(frozen=True, slots=True)
class Listen:
    """On `/stream`: replace the trading streams and add market data, all or none.

    `market` are topics of the default feed. Streams that the allowlist denies are left out. With None, the trading
    streams stay as they are.
    """

    trading: Subscription | None
    market: Subscription


@dataclass(frozen=True, slots=True)
class Unlisten:
    """On `/stream`: remove these trading streams and topics of the default feed."""

    trading: Subscription
    market: Subscription


Outcome = Reply | Authenticate | Subscribe | Unsubscribe | Listen | Unlisten


class ServerProtocol:
    """The market dialect.

    `codec` is that of requests and replies, `data_codec` that of the market data; `text` is whether frames are text
    frames. `refused_code`, if set, is the reply to any authentication.
    """

    def __init__(self, endpoint: Endpoint, codec: Codec) -> None:
        self.endpoint = endpoint
        self.codec = codec
        self.data_codec = codec
        self.text = codec.text
        self.state = LoginState.GREETED
        # Alpaca serves options in msgpack only, and refuses JSON in the reply to auth.
        self.refused_code = 412 if endpoint.options and codec is JSON else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint.feed} {self.codec.name} {self.state.value}>"

    def opening(self) -> list[bytes]:
        """Return the messages that are sent before the client has sent any."""
        return [self._encode(market.CONNECTED)]

    def receive(self, frame: bytes) -> Iterator[Outcome | None]:
        """Yield the outcomes of one message of the client.

        Perform each outcome before taking the next. None is a pause in a long computation: the caller may yield to
        other greenlets.
        """
        try:
            messages = yield from self.codec.requests(frame)
        except Malformed:
            yield self._error(400)
            return
        messages.reverse()
        while messages:  # `pop` frees each message before its outcome is performed, which may take seconds
            yield self._outcome((yield from self._parse(messages.pop())))

    def _parse(
        self, message: Mapping[str, Raw]
    ) -> Steps[market.AuthRequest | market.ChangeRequest | market.InvalidRequest]:
        if self.state is not LoginState.AUTHENTICATED and market.is_change(message, self.codec):
            return market.InvalidRequest(401)
        return (yield from market.request(message, self.codec, self.endpoint))

    def _outcome(self, request: market.AuthRequest | market.ChangeRequest | market.InvalidRequest) -> Outcome:
        if isinstance(request, market.InvalidRequest):
            return self._error(request.code, request.topics)
        if isinstance(request, market.ChangeRequest):
            return self._change(request)
        if self.state is LoginState.AUTHENTICATED:
            return self._error(403)
        return Authenticate(request.key, request.secret)

    def _change(self, change: market.ChangeRequest) -> Subscribe | Unsubscribe:
        return Subscribe(change.topics) if change.add else Unsubscribe(change.topics)

    def granted(self) -> bytes:
        """Accept the authentication; return the reply."""
        self.state = LoginState.AUTHENTICATED
        return self._encode(market.AUTHENTICATED)

    def denied(self, code: int) -> bytes:
        """Return the refusal of an authentication: 402, 406, 409 or 412.

        The client may try again.
        """
        return self._encode(market.error(code))

    def timed_out(self) -> bytes:
        """Return the error for a client that has not authenticated in time.

        Empty if the dialect has none.
        """
        return self._encode(market.error(404))

    def acked(self, held: Subscription) -> Steps[bytes]:
        """Return the acknowledgement of a change, all topics that are held; yield between chunks."""
        return self._encode((yield from market.subscription(self.endpoint, held)))

    def refused(self, code: int, msg: str | None = None) -> bytes:
        """Return the refusal of a change; the client's subscription stays as it was."""
        return self._encode(market.error(code, msg))

    def insufficient(self, topics: Iterable[Topic]) -> bytes:
        """Return the refusal of a change because the allowlist denies these topics."""
        return self.refused(409, f"{market.ERRORS[409]}: {words(topics)}")

    def slow(self) -> bytes:
        """Return the last message to a slow client; empty if the dialect has none."""
        return self._encode(market.error(407))

    def _error(self, code: int, topics: tuple[Topic, ...] = ()) -> Reply:
        return Reply(self.refused(code), code, topics)

    def _encode(self, frame: market.ControlFrame) -> bytes:
        return self.codec.encode(frame)


class PlainPairsServerProtocol(ServerProtocol):
    """The market dialect with crypto pairs without a slash, `BTCUSD`."""

    def __init__(self, endpoint: Endpoint, codec: Codec) -> None:
        super().__init__(endpoint, codec)
        self.data_codec = pairs.PLAIN_PAIRS[codec.name]

    def _change(self, change: market.ChangeRequest) -> Subscribe | Unsubscribe:
        return super()._change(market.ChangeRequest(change.add, pairs.to_current_pairs(change.topics)))

    def acked(self, held: Subscription) -> Steps[bytes]:
        return super().acked(pairs.to_plain_pairs(held))

    def insufficient(self, topics: Iterable[Topic]) -> bytes:
        return super().insufficient(pairs.to_plain_pairs(topics))


class TradingServerProtocol(ServerProtocol):
    """The trading dialect.

    It has no greeting and no codes, and sends binary frames, in JSON too. It also serves the market data of the default
    feed in the trading grammar, with the names of 2020 (`legacy`).
    """

    def __init__(self, endpoint: Endpoint, codec: Codec) -> None:
        super().__init__(endpoint, codec)
        self.text = False
        self.data_codec = legacy.LEGACY[codec.name]

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
        request = trading.request(message, self.codec)
        if request is None:
            return Reply(self.codec.encode(trading.INVALID), 400)
        if isinstance(request, market.AuthRequest):
            if self.state is LoginState.AUTHENTICATED:
                return Reply(self.codec.encode(trading.AUTHORIZED))
            return Authenticate(request.key, request.secret)
        if self.state is not LoginState.AUTHENTICATED:
            return Reply(self.codec.encode(trading.NOT_YET), 401)
        streams = trading.topics(request.streams, self.endpoint)
        market_data = legacy.topics(request.streams)
        if request.stop:
            return Unlisten(streams, market_data)
        # `listen` replaces the trading streams, but adds market data: StreamConn sends only the new market streams.
        return Listen(streams if streams or not request.streams else None, market_data)

    def granted(self) -> bytes:
        self.state = LoginState.AUTHENTICATED
        return self.codec.encode(trading.AUTHORIZED)

    def denied(self, code: int) -> bytes:
        return self.codec.encode(trading.UNAUTHORIZED)

    def timed_out(self) -> bytes:
        return b""

    def acked(self, held: Subscription) -> Steps[bytes]:
        streams: list[str] = []
        for chunk in chunks(held):
            streams += (legacy.stream(topic) if legacy.is_legacy(topic) else topic[0] for topic in chunk)
            yield
        return self.codec.encode(trading.listening((yield from sorted_in_chunks(streams))))

    def refused(self, code: int, msg: str | None = None) -> bytes:
        error = msg or market.ERRORS[code]
        return self.codec.encode({"stream": "listening", "data": {"error": error}})

    def slow(self) -> bytes:
        return b""


def server_protocol_for(endpoint: Endpoint, path: str, content_type: str) -> ServerProtocol:
    """Return the protocol for an upgrade request to this endpoint.

    The codec is that of the Content-Type header; the opcode of the client's frames is ignored.
    """
    named = content_type.partition(";")[0].strip().lower()
    codec = MSGPACK if named == MSGPACK.content_type or (endpoint.options and named != JSON.content_type) else JSON
    if endpoint.dialect is Dialect.TRADING:
        return TradingServerProtocol(endpoint, codec)
    market_protocol = PlainPairsServerProtocol if without_extra_slashes(path) == pairs.PATH else ServerProtocol
    return market_protocol(endpoint, codec)
