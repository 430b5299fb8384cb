"""Clients, the topics that each may subscribe to, and their authentication.

An `Allowlist` holds patterns by feed and channel; a topic that no pattern matches is denied. A pattern is an exact
symbol, `PREFIX*` (any symbol with that prefix) or `*` (any symbol, and the wildcard subscription `*` itself). The
channel `*` stands for every channel, including undocumented ones. Corrections and cancel errors follow the trades, as
at Alpaca. On the trading feed, a pattern is one of the orders' client_order_ids, or, after `symbol:`, of their symbols.

A `Client` is one configured algorithm; the `Directory` holds all clients and authenticates them. Only the SHA-256
digest of a secret is kept. That is enough for random secrets, and a slow password hash would delay the market data of
all clients.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from proxy.alpaca.endpoints import FOLLOWERS, WILDCARD
from proxy.alpaca.topics import channel_of

DEFAULT = "default"
"""The key in a client's `accounts` for every feed that has no key of its own."""

TRADING = "trading"
SYMBOL = "symbol:"
"""The beginning of an entry of the trading feed that is a pattern of symbols."""

# The digest of no known secret. An unknown key is compared with it, so that it takes as long as a wrong secret.
_UNKNOWN_KEY_DIGEST = bytes(hashlib.sha256().digest_size)


def digest(secret: str) -> bytes:
    """Return the SHA-256 digest of a secret in UTF-8.

    Lone surrogates, which JSON can carry, are encoded too, so that any string has a digest.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class SymbolPatterns:
    """The patterns of one channel. Two are equal if their sets of patterns are."""

    __slots__ = ("everything", "exact", "prefixes")

    def __init__(self, entries: Iterable[str]) -> None:
        entries = frozenset(entries)
        self.everything = WILDCARD in entries
        self.exact = frozenset(entry for entry in entries if not entry.endswith(WILDCARD))
        self.prefixes = tuple(sorted(entry[:-1] for entry in entries - {WILDCARD} if entry.endswith(WILDCARD)))

    def __eq__(self, other: object) -> bool:
        return self._comparable() == other._comparable() if isinstance(other, SymbolPatterns) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._comparable())

    def _comparable(self) -> tuple[object, ...]:
        return self.everything, self.exact, self.prefixes

    def permit(self, symbol: str) -> bool:
        """Whether a pattern permits the symbol.

        The symbol `*` is permitted only by the pattern `*`.
        """
        if self.everything or symbol in self.exact:
            return True
        return symbol != WILDCARD and symbol.startswith(self.prefixes)


_NO_PATTERNS = SymbolPatterns(())


class OrderPatterns(SymbolPatterns):
    """The patterns of one channel of the trading feed: of client_order_ids, and in `symbols` of symbols.

    Slashes in symbols are ignored, since Alpaca writes a crypto pair as `BTC/USD` or `BTCUSD`.
    """

    __slots__ = ("symbols",)

    def __init__(self, entries: Iterable[str]) -> None:
        entries = frozenset(entries)
        of_symbols = frozenset(entry for entry in entries if entry.startswith(SYMBOL))
        super().__init__(entries - of_symbols)
        self.symbols = SymbolPatterns(without_slashes(entry.removeprefix(SYMBOL)) for entry in of_symbols)

    def _comparable(self) -> tuple[object, ...]:
        return *super()._comparable(), self.symbols

    def permit(self, symbol: str) -> bool:
        """Whether an entry permits a client_order_id or, with `symbol:` before it, a symbol."""
        if self.everything or not symbol.startswith(SYMBOL):
            return super().permit(symbol)
        return self.symbols.permit(without_slashes(symbol.removeprefix(SYMBOL)))

    def own(self, client_order_id: str, symbol: str) -> bool:
        """Whether an order is matched by an entry other than `*`; `symbol` has no slashes.

        An empty text matches nothing.
        """
        if client_order_id in self.exact or client_order_id.startswith(self.prefixes):
            return True
        return bool(symbol) and self.symbols.permit(symbol)


def without_slashes(symbol: str) -> str:
    """Return a symbol in the form in which symbols of orders are compared."""
    return symbol.replace("/", "")


class Allowlist:
    """The topics that a client may subscribe to.

    It is made from `{feed: {channel: (entry, …)}}`. Two are equal if their entries are, in any order.
    """

    __slots__ = ("_channels", "_rules", "orders")

    def __init__(self, rules: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
        self._rules = {
            feed: {channel: tuple(dict.fromkeys(entries)) for channel, entries in channels.items()}
            for feed, channels in rules.items()
        }
        self._channels = {
            feed: _by_channel(channels, _kind_of_patterns(feed)) for feed, channels in self._rules.items()
        }
        trading = self._rules.get(TRADING, {})
        self.orders = OrderPatterns((*trading.get("trade_updates", ()), *trading.get(WILDCARD, ())))

    def names(self, feed: str) -> bool:
        """Whether the feed is listed.

        A client that connects to another feed is refused when it authenticates.
        """
        return feed in self._rules

    def feeds(self) -> tuple[str, ...]:
        """Return the listed feeds, in the order of the configuration."""
        return tuple(self._rules)

    def entries(self, feed: str) -> Mapping[str, tuple[str, ...]]:
        """Return the entries of a feed by channel, as configured."""
        return self._rules.get(feed, {})

    def permits(self, feed: str, channel: str, symbol: str) -> bool:
        """Whether a client may subscribe to the topic.

        The symbol `*` is permitted only by the entry `*`.
        """
        return self._patterns(feed, channel).permit(symbol)

    def refused(self, feed: str, topics: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the topics (channel, symbol) that are not permitted, in their order."""
        by_channel = self._channels.get(feed, {})
        if by_channel and all(patterns.everything for patterns in by_channel.values()):
            return []
        requested = {channel: self._patterns(feed, channel) for channel in set(map(channel_of, topics))}
        if all(patterns.everything for patterns in requested.values()):
            return []
        # Two comprehensions that call no Python function for a topic: a client may subscribe to thousands.
        exact = {channel: patterns.exact for channel, patterns in requested.items() if not patterns.everything}
        prefixes = {channel: patterns.prefixes for channel, patterns in requested.items()}
        not_exact = [topic for topic in topics if topic[0] in exact and topic[1] not in exact[topic[0]]]
        return [topic for topic in not_exact if topic[1] == WILDCARD or not topic[1].startswith(prefixes[topic[0]])]

    def accepts_unknown(self, feed: str) -> SymbolPatterns | None:
        """Return the patterns for messages of undocumented kinds, or None.

        They are those of the channel `*`, if it is listed.
        """
        return self._channels[feed][WILDCARD] if WILDCARD in self._rules.get(feed, {}) else None

    def explain(self, feed: str, channel: str, symbol: str) -> str | None:
        """Return the most exact entry that permits a topic, or None."""
        granted = self.granted_by(feed, channel, symbol)
        return granted and granted[1]

    def granted_by(self, feed: str, channel: str, symbol: str) -> tuple[str, str] | None:
        """Return the listed channel and the most exact entry that permit a topic.

        None if there is none.
        """
        rules = self._rules.get(feed, {})
        patterns = _kind_of_patterns(feed)
        granting = [
            (listed, entry)
            for listed in (_governing_channel(channel), WILDCARD)
            for entry in rules.get(listed, ())
            if patterns((entry,)).permit(symbol)
        ]
        return max(granting, key=lambda grant: (grant[1] == symbol, len(grant[1])), default=None)

    def _patterns(self, feed: str, channel: str) -> SymbolPatterns:
        by_channel = self._channels.get(feed)
        if by_channel is None:
            return _NO_PATTERNS
        return by_channel.get(_governing_channel(channel)) or by_channel[WILDCARD]

    def __eq__(self, other: object) -> bool:
        return self._comparable() == other._comparable() if isinstance(other, Allowlist) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._rules))

    def _comparable(self) -> dict[str, dict[str, frozenset[str]]]:
        return {
            feed: {channel: frozenset(entries) for channel, entries in channels.items()}
            for feed, channels in self._rules.items()
        }

    def __repr__(self) -> str:
        feeds = (f"{feed}: {' '.join(channels)}" for feed, channels in self._rules.items())
        return f"Allowlist({', '.join(feeds) or 'nothing'})"


def _kind_of_patterns(feed: str) -> type[SymbolPatterns]:
    return OrderPatterns if feed == TRADING else SymbolPatterns


def _by_channel(channels: Mapping[str, tuple[str, ...]], kind: type[SymbolPatterns]) -> dict[str, SymbolPatterns]:
    on_every_channel = channels.get(WILDCARD, ())
    patterns = {channel: kind((*entries, *on_every_channel)) for channel, entries in channels.items()}
    patterns.setdefault(WILDCARD, _NO_PATTERNS)
    return patterns


def _governing_channel(channel: str) -> str:
    """Return the channel whose patterns apply.

    Corrections and cancel errors follow the trades.
    """
    return "trades" if channel in FOLLOWERS else channel


class WhenSlow(str, Enum):
    """The action on a session whose outbox overflows."""

    DISCONNECT = "disconnect"
    CONFLATE = "conflate"


class OnOutage(str, Enum):
    """The action on a session when the connection of its feed is lost."""

    STAY = "stay"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Client:
    """A configured algorithm.

    `key` is not secret; of the secret, only the SHA-256 digest is kept. `accounts` maps feeds to accounts (`default`:
    all other feeds), `max_connections` is per feed, `outbox` in bytes.
    """

    name: str
    key: str
    digest: bytes = field(repr=False)
    accounts: Mapping[str, str] = field(hash=False)
    allow: Allowlist
    max_connections: int = 4
    when_slow: WhenSlow = WhenSlow.DISCONNECT
    on_outage: OnOutage = OnOutage.STAY
    outbox: int = 8 * 1024 * 1024

    def account(self, feed: str) -> str:
        """Return the account that serves this feed to the client.

        Raises LookupError if there is none.
        """
        account = self.accounts.get(feed) or self.accounts.get(DEFAULT)
        if account is None:
            raise LookupError(f"the client {self.name} has no account for the feed {feed}")
        return account


RECORDER = "(recorder)"  # as a receiver of order updates; no client can have this name


class Directory:
    """All clients, by key. Raises ValueError if two of them have the same key.

    The `recorder` receives order updates as a client does, and cannot log in.
    """

    __slots__ = ("_by_key", "_by_name", "_digests", "_order_patterns", "_recorder")

    def __init__(self, clients: Iterable[Client], recorder: Client | None = None) -> None:
        self._recorder = recorder
        self._order_patterns: dict[str, Mapping[str, OrderPatterns]] = {}
        self._by_key: dict[str, Client] = {}
        self._by_name: dict[str, Client] = {}
        self._digests: set[bytes] = set()
        for client in clients:
            self._digests.add(client.digest)
            self._by_name[client.name] = client
            if (other := self._by_key.setdefault(client.key, client)) is not client:
                raise ValueError(f"the clients {other.name} and {client.name} share the key {client.key!r}")

    def authenticate(self, key: str, secret: str) -> Client | None:
        """Return the client with this key and secret, or None.

        An unknown key takes the same steps as a wrong secret: one digest, one comparison in constant time.
        """
        client = self._by_key.get(key)
        same = hmac.compare_digest(digest(secret), _UNKNOWN_KEY_DIGEST if client is None else client.digest)
        return client if same else None

    def named(self, name: str) -> Client | None:
        """Return the client with this name, or None."""
        return self._by_name.get(name)

    def with_key(self, key: str) -> Client | None:
        """Return the client with this key, or None.

        It has not authenticated by that.
        """
        return self._by_key.get(key)

    def order_patterns(self, account: str) -> Mapping[str, OrderPatterns]:
        """Return the patterns of the clients that may receive order updates of an account, by the client's name.

        The mapping is the same object at each call; another directory has another one.
        """
        if (patterns := self._order_patterns.get(account)) is None:
            patterns = self._order_patterns[account] = {
                client.name: client.allow.orders
                for client in (*self, *filter(None, [self._recorder]))
                if client.allow.names(TRADING) and client.account(TRADING) == account
            }
        return patterns

    def has_secret(self, digest: bytes) -> bool:
        """Whether this is the digest of some client's secret."""
        return digest in self._digests

    def __iter__(self) -> Iterator[Client]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def __repr__(self) -> str:
        return f"Directory({', '.join(client.name for client in self)})"
