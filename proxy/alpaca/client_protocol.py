"""Our side of the conversation with Alpaca about one feed: what to say, and what was heard.

    IDLE ─► CONNECTING ─► AUTHENTICATING ─► LIVE          somebody wants something, and all goes well
              ▲   └──────────────┴───────────┴─► WAITING  refused or lost: again after `Backoff`
              └──────────────────────────────────┘
    REFUSED: Alpaca does not serve this account here (409); asked again every five minutes

Pure: bytes in, a `Heard` out. What the difference between wanted and acked is, the ledger knows; how bytes travel,
`net.upstream`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from proxy.alpaca import market, trading
from proxy.alpaca.codec import Codec, Malformed, Raw
from proxy.alpaca.endpoints import Dialect, Endpoint
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
    """Alpaca's turn has passed to us: send this."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The feed is live."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The request under way was accepted."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Alpaca said no: to the log-in, or to the request under way. An HTTP refusal has its status as code."""

    code: int
    msg: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """Not for us."""


FeedEvent = Send | LoggedIn | Confirmed | Refused | Ignored

# These say something of the connection, not of the request under way.
OF_THE_CONNECTION = frozenset((401, 402, 403, 404, 406, 407))


# What to do about a refusal, by its code or HTTP status.
HINTS = {
    401: "check the account's key and secret",
    402: "check the account's key and secret, and that `trading` (paper or live) is what they belong to",
    404: "check the account's data_url and trading_url",
    406: "another program holds this account's connection, or one that died without a word does, for up to 90 s",
    409: "the account's plan does not include this feed",
    429: "Alpaca asks to reconnect less often",
}


@dataclass(frozen=True, slots=True)
class Login:
    """Where a feed lives and who asks there."""

    account: str
    url: str
    key: str
    secret: str

    def __repr__(self) -> str:
        return f"<Login {self.account} …{self.key[-4:]} at {self.url}>"


class MarketClientProtocol:
    """The market dialect: Alpaca greets, we log in, it answers, then requests one at a time."""

    def __init__(self, codec: Codec, login: Login) -> None:
        self.codec = codec
        self.text = codec.text
        self._auth = codec.encode(market.auth(login.key, login.secret))

    def opening(self) -> list[bytes]:
        """What we say before Alpaca says anything."""
        return []

    def receive(self, body: Raw | bytes) -> FeedEvent:
        """A control message."""
        codec = self.codec
        try:
            message = codec.control(body)
        except Malformed:
            return Ignored()
        kind, msg = codec.text_of(message.T), codec.text_of(message.msg)
        if kind == "error":
            code = codec.integer_of(message.code)
            return Refused(500 if code is None else code, msg or "")
        if kind == "subscription":
            return Confirmed()
        if msg == "connected":
            return Send(self._auth)
        return LoggedIn() if msg == "authenticated" else Ignored()

    def request(self, add: bool, topics: Iterable[Topic], acked: Iterable[Topic]) -> bytes:
        """The request for one difference."""
        return self.codec.encode(market.change(add, topics))


class TradingClientProtocol:
    """The trading dialect: we log in at once, then `listen` to all that is wanted."""

    text = True

    def __init__(self, codec: Codec, login: Login) -> None:
        self.codec = codec
        self._auth = codec.encode(trading.authenticate(login.key, login.secret))

    def opening(self) -> list[bytes]:
        return [self._auth]

    def receive(self, body: Raw | bytes) -> FeedEvent:
        """Any message; Nothing for order updates and what is unknown."""
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
            return Refused(406 if status == "exceeded" else 402, status)  # C#'s SDK: too many connections
        if stream == "listening":
            error = data.get("error")
            return Confirmed() if error is None or codec.is_null(error) else Refused(409, codec.text_of(error) or "")
        return Refused(500, codec.text_of(data.get("error_message")) or "")

    def request(self, add: bool, topics: Iterable[Topic], acked: Iterable[Topic]) -> bytes:
        changed, held = frozenset(topics), frozenset(acked)
        return self.codec.encode(trading.listen(held | changed if add else held - changed))


ClientProtocol = MarketClientProtocol | TradingClientProtocol


def client_protocol_for(endpoint: Endpoint, codec: Codec, login: Login) -> ClientProtocol:
    """The conversation that this endpoint's dialect asks for."""
    return (TradingClientProtocol if endpoint.dialect is Dialect.TRADING else MarketClientProtocol)(codec, login)


class Backoff:
    """How long to wait before the next connection, in seconds: full jitter under a bound that doubles from 1 to 30.

    After a refusal (402, 406) the bound starts at 2 and no wait is under 1: the slot of a connection that died without
    a word stays taken for up to 90 s, and asking harder does not free it. `random` gives a number from 0 to 1.
    """

    LEAST, MOST = 1.0, 30.0
    REFUSED = 300.0  # 409: the plan lacks this feed; it may be bought, but not within seconds

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._bound = self.LEAST

    def reset(self) -> None:
        """The connection has proved itself."""
        self._bound = self.LEAST

    def next(self, refused: bool) -> float:
        """The wait after one more failure."""
        least = 0.0
        if refused:
            self._bound = max(self._bound, 2 * self.LEAST)
            least = 1.0
        wait = max(least, self._bound * self._random())
        self._bound = min(2 * self._bound, self.MOST)
        return wait
