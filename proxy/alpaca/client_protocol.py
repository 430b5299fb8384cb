"""The client's side of the protocol, toward Alpaca: bytes in, events out.

    IDLE ─► CONNECTING ─► AUTHENTICATING ─► LIVE          a session wants a topic of the feed
              ▲   └──────────────┴───────────┴─► WAITING  refused or lost: connect again after `Backoff`
              └──────────────────────────────────┘
    REFUSED: the account's plan does not include this feed (409); connect again every five minutes

Pure: a `ClientProtocol` turns bytes into a `FeedEvent` and requests into bytes. `routing.reconciler` computes the
requests, and `upstream.alpaca_connection` owns the socket and the phase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from enum import Enum
from itertools import chain, repeat

from proxy.alpaca import market, trading
from proxy.alpaca.codec import JSON, Codec, Malformed, Raw
from proxy.alpaca.endpoints import FOLLOWERS, WILDCARD, Dialect, Endpoint
from proxy.alpaca.topics import Topic


class Phase(Enum):
    IDLE = "idle"
    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    LIVE = "live"
    WAITING = "waiting"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Send:
    """Send this payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Alpaca has accepted the log-in: the feed is live."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """All topics of the connection, as Alpaca states them in answer to each request.

    `channels` are those that the statement has; about any other it says nothing. `answers`: whether it answers the
    request under way; None if that is not known, since Alpaca's statements do not say it. `error` is the refusal that
    is the cause of one that answers none.
    """

    topics: frozenset[Topic]
    channels: Set[str]
    answers: bool | None = None
    error: tuple[int, str] | None = None

    def lacks(self, topics: Set[Topic]) -> Set[Topic]:
        """Return those of the topics that Alpaca states not to send.

        A channel with the wildcard lacks no symbol.
        """
        return {
            topic
            for topic in topics - self.topics
            if topic[0] in self.channels and (topic[0], WILDCARD) not in self.topics
        }


@dataclass(frozen=True, slots=True)
class Refused:
    """An error: of the log-in, of the request under way, or of neither.

    For an HTTP refusal, the code is the status. `answers`: it is known to refuse the request under way.
    """

    code: int
    msg: str
    answers: bool = False


@dataclass(frozen=True, slots=True)
class Ignored:
    """A message that the protocol does not handle."""


FeedEvent = Send | LoggedIn | Acknowledged | Refused | Ignored

MAX_TEXT = 256  # characters of an error of Alpaca's that are passed on and logged

# Codes that refuse the connection, not the request under way.
OF_THE_CONNECTION = frozenset((401, 402, 403, 404, 406, 407))

# Codes and HTTP statuses after which Alpaca should be asked less often: the account's connection slot may be taken.
SLOT_TAKEN = frozenset((402, 406, 429))

# Advice on a refusal, by its code or HTTP status.
HINTS = {
    401: "check the account's key and secret",
    402: "check the account's key and secret, and that they belong to the environment in `trading` (paper or live)",
    404: "check the account's data_url and trading_url",
    406: "another program holds this account's connection; that of a program that crashed stays taken for up to 90 s",
    409: "the account's plan does not include this feed; at another proxy, the allowlist of the client there",
    429: "Alpaca asks to reconnect less often",
}


@dataclass(frozen=True, slots=True)
class Login:
    """A feed's URL and the account's credentials."""

    account: str
    url: str
    key: str
    secret: str

    def __repr__(self) -> str:
        return f"<Login {self.account} …{self.key[-4:]} at {self.url}>"


_NO_LOGIN = Login("", "", "", "")


class MarketClientProtocol:
    """The market dialect.

    Alpaca sends the first message, the proxy logs in, then sends one request at a time.
    """

    def __init__(self, codec: Codec, login: Login) -> None:
        self.codec = codec
        self.text = codec.text
        self._auth = codec.encode(market.auth(login.key, login.secret))

    def opening(self) -> list[bytes]:
        """Return the messages to send before Alpaca has sent any."""
        return []

    def log_in(self) -> bytes:
        """Return the log-in."""
        return self._auth

    def receive(self, body: Raw | bytes) -> FeedEvent:
        """Return the event of a control message."""
        codec = self.codec
        try:
            message = codec.control(body)
        except Malformed:
            return Ignored()
        kind, msg = codec.text_of(message.T), codec.text_of(message.msg)
        if kind == "error":
            code = codec.integer_of(message.code)
            return Refused(500 if code is None else code, (msg or "")[:MAX_TEXT])
        if kind == "subscription":
            return acknowledged(codec, codec.fields(body))
        if msg == "connected":
            return Send(self._auth)
        return LoggedIn() if msg == "authenticated" else Ignored()

    def foreign_error(self, payload: bytes) -> Refused | None:
        """Return the error in a frame that is not of this codec: Alpaca sends some as JSON text. None for any other."""
        try:
            bodies, heads = JSON.split(payload)
        except Malformed:
            return None
        if [head.T for head in heads] != ["error"]:
            return None
        event = MarketClientProtocol(JSON, _NO_LOGIN).receive(bodies[0])
        return event if isinstance(event, Refused) else None

    def request(self, add: bool, topics: Iterable[Topic], acked: Iterable[Topic]) -> bytes:
        """Encode a request to add or to remove these topics.

        `acked` are the topics that Alpaca has confirmed before.
        """
        return self.codec.encode(market.change(add, topics))


def acknowledged(codec: Codec, fields: Mapping[str, Raw]) -> Acknowledged:
    """Return the statement in the fields of a `subscription` message."""
    stated: list[Iterable[Topic]] = []
    channels = set()
    for channel, value in fields.items():
        symbols = None if channel == "T" or channel in FOLLOWERS else codec.texts_of(value)
        if symbols is not None:
            channels.add(channel)
            stated.append(zip(repeat(channel), symbols, strict=False))
    return Acknowledged(frozenset(chain.from_iterable(stated)), channels)


class TradingClientProtocol:
    """The trading dialect.

    The proxy logs in at once, then `listen` names all streams that are wanted.
    """

    text = True

    def __init__(self, codec: Codec, login: Login, channels: Set[str]) -> None:
        self.codec = codec
        self._auth = codec.encode(trading.authenticate(login.key, login.secret))
        self._channels = channels

    def opening(self) -> list[bytes]:
        return [self._auth]

    def log_in(self) -> bytes:
        return self._auth

    def receive(self, body: Raw | bytes) -> FeedEvent:
        """Return the event of a message, `Ignored` for order updates."""
        codec = self.codec
        try:
            message = codec.envelope(body)
        except Malformed:
            return Ignored()
        stream = codec.text_of(message.stream)
        if stream not in ("authorization", "listening") and codec.text_of(message.action) != "error":
            return Ignored()
        data = codec.fields_of(message.data)
        if data is None:
            return Ignored()
        if stream == "authorization":
            status = codec.text_of(data.get("status")) or "unauthorized"
            if status == "authorized":
                return LoggedIn()
            return Refused(406 if status == "exceeded" else 402, status[:MAX_TEXT])  # C#'s SDK: too many connections
        if stream == "listening":
            error = data.get("error")
            if error is None or codec.is_null(error):
                return self._acknowledged(data)
            return Refused(409, (codec.text_of(error) or "")[:MAX_TEXT])
        return Refused(500, (codec.text_of(data.get("error_message")) or "")[:MAX_TEXT])

    def foreign_error(self, payload: bytes) -> Refused | None:
        """Return None: the trading feed has one codec."""

    def _acknowledged(self, data: Mapping[str, Raw]) -> Acknowledged:
        streams = self.codec.texts_of(data.get("streams"))
        if streams is None:
            return Acknowledged(frozenset(), frozenset())
        return Acknowledged(frozenset((stream, WILDCARD) for stream in streams), self._channels)

    def request(self, add: bool, topics: Iterable[Topic], acked: Iterable[Topic]) -> bytes:
        changed, held = frozenset(topics), frozenset(acked)
        return self.codec.encode(trading.listen(held | changed if add else held - changed))


ClientProtocol = MarketClientProtocol | TradingClientProtocol


def client_protocol_for(endpoint: Endpoint, codec: Codec, login: Login) -> ClientProtocol:
    """Return the protocol of the endpoint's dialect."""
    if endpoint.dialect is Dialect.TRADING:
        return TradingClientProtocol(codec, login, frozenset(endpoint.channels))
    return MarketClientProtocol(codec, login)


class Backoff:
    """The wait before the next connection, in seconds.

    It has full jitter under a bound that doubles from 1: to 5 while the network fails, to 30 while Alpaca refuses.
    After 402, 406 and 429 the bound starts at 2 and no wait is under 1: the slot of a connection that died without a
    close stays taken for up to 90 s, and more attempts do not free it. `random` returns a number from 0 to 1.
    """

    LEAST, NETWORK_MOST, REFUSED_MOST = 1.0, 5.0, 30.0
    NOT_SERVED = 300.0  # 409: the plan does not include this feed; an upgrade of the plan takes minutes, not seconds

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._bound = self.LEAST

    def reset(self) -> None:
        """Reset the bound, after a connection that has worked."""
        self._bound = self.LEAST

    def next(self, refusal: int | None) -> float:
        """Return the wait after one more failure: a refusal with this code, or a failure of the network."""
        least, most = 0.0, self.NETWORK_MOST if refusal is None else self.REFUSED_MOST
        if refusal in SLOT_TAKEN:
            self._bound = max(self._bound, 2 * self.LEAST)
            least = 1.0
        bound = min(self._bound, most)
        self._bound = min(2 * bound, most)
        return max(least, bound * self._random())
