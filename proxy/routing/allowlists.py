"""Who may see what: clients, their allowlists, and how a client proves who it is.

An `Allowlist` is a set of patterns by feed and channel; what no pattern names is denied. A pattern is an exact symbol,
`PREFIX*` (any symbol with that prefix) or `*` (any symbol, and the right to ask for `*` itself). The channel `*` stands
for every channel, those that nobody knows yet included. Corrections and cancel errors follow the trades, as at Alpaca.

A `Client` is one configured algorithm; the `Directory` holds them all and authenticates. A secret is known here only by
its SHA-256 digest. That is enough for random secrets, and a slow password hash would hold up the market data of all.
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
"""In the accounts of a client: the account of every feed that is not named."""

# A digest that no secret is known to have: an unknown key is compared with it, and so takes as long as a wrong secret.
_NOBODY = bytes(hashlib.sha256().digest_size)


def digest(secret: str) -> bytes:
    """The SHA-256 digest of a secret's UTF-8; of any text, lone surrogates (JSON can carry them) included."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class _Patterns:
    """The patterns of one channel, those of the channel `*` included."""

    __slots__ = ("everything", "exact", "prefixes")

    def __init__(self, entries: Iterable[str]) -> None:
        entries = frozenset(entries)
        self.everything = WILDCARD in entries
        self.exact = frozenset(entry for entry in entries if not entry.endswith(WILDCARD))
        self.prefixes = tuple(sorted(entry[:-1] for entry in entries - {WILDCARD} if entry.endswith(WILDCARD)))

    def permit(self, symbol: str) -> bool:
        if self.everything or symbol in self.exact:
            return True
        return symbol != WILDCARD and symbol.startswith(self.prefixes)


_NOTHING = _Patterns(())


class Allowlist:
    """What a client may ask for, from `{feed: {channel: (entry, …)}}`; equal when its entries are."""

    __slots__ = ("_channels", "_rules")

    def __init__(self, rules: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
        self._rules = {
            feed: {channel: tuple(dict.fromkeys(entries)) for channel, entries in channels.items()}
            for feed, channels in rules.items()
        }
        self._channels = {feed: _by_channel(channels) for feed, channels in self._rules.items()}

    def names(self, feed: str) -> bool:
        """Whether the feed is mentioned at all; a client that asks for another is refused as it authenticates."""
        return feed in self._rules

    def feeds(self) -> tuple[str, ...]:
        """The feeds that are mentioned, in the order of the configuration."""
        return tuple(self._rules)

    def entries(self, feed: str) -> Mapping[str, tuple[str, ...]]:
        """The entries of a feed by channel, as they were configured."""
        return self._rules.get(feed, {})

    def permits(self, feed: str, channel: str, symbol: str) -> bool:
        """Whether the symbol may be asked for and seen on the channel. `*` is permitted by an entry `*` alone."""
        return self._patterns(feed, channel).permit(symbol)

    def refused(self, feed: str, topics: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of the topics (channel, symbol) that are not permitted, in their order."""
        listed = self._channels.get(feed, {})
        if listed and all(known.everything for known in listed.values()):
            return []
        patterns = {channel: self._patterns(feed, channel) for channel in set(map(channel_of, topics))}
        if all(known.everything for known in patterns.values()):
            return []
        exact = {channel: known.exact for channel, known in patterns.items()}
        doubtful = [topic for topic in topics if topic[1] not in exact[topic[0]]]
        return [topic for topic in doubtful if not patterns[topic[0]].permit(topic[1])]

    def accepts_unknown(self, feed: str) -> bool:
        """Whether a channel that this proxy does not know may be passed on (the feed `*`, or the channel `*`)."""
        return WILDCARD in self._rules.get(feed, {})

    def explain(self, feed: str, channel: str, symbol: str) -> str | None:
        """The entry that permits a topic, the most exact one first; None if none does."""
        granted = self.granted_by(feed, channel, symbol)
        return granted and granted[1]

    def granted_by(self, feed: str, channel: str, symbol: str) -> tuple[str, str] | None:
        """The channel (as listed) and the entry that permit a topic, the most exact one first; None if none does."""
        rules = self._rules.get(feed, {})
        granting = [
            (listed, entry)
            for listed in (_leader(channel), WILDCARD)
            for entry in rules.get(listed, ())
            if _Patterns((entry,)).permit(symbol)
        ]
        return max(granting, key=lambda grant: (grant[1] == symbol, len(grant[1])), default=None)

    def _patterns(self, feed: str, channel: str) -> _Patterns:
        by_channel = self._channels.get(feed)
        if by_channel is None:
            return _NOTHING
        return by_channel.get(_leader(channel)) or by_channel[WILDCARD]

    def __eq__(self, other: object) -> bool:
        return self._comparable() == other._comparable() if isinstance(other, Allowlist) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._rules))

    def _comparable(self) -> dict[str, dict[str, frozenset[str]]]:
        return {feed: {name: frozenset(of) for name, of in channels.items()} for feed, channels in self._rules.items()}

    def __repr__(self) -> str:
        feeds = (f"{feed}: {' '.join(channels)}" for feed, channels in self._rules.items())
        return f"Allowlist({', '.join(feeds) or 'nothing'})"


def _by_channel(channels: Mapping[str, tuple[str, ...]]) -> dict[str, _Patterns]:
    everywhere = channels.get(WILDCARD, ())
    patterns = {channel: _Patterns((*entries, *everywhere)) for channel, entries in channels.items()}
    patterns.setdefault(WILDCARD, _NOTHING)
    return patterns


def _leader(channel: str) -> str:
    """The channel whose permission counts: corrections and cancel errors follow the trades."""
    return "trades" if channel in FOLLOWERS else channel


class WhenSlow(str, Enum):
    """What happens to a session whose outbox overflows."""

    DISCONNECT = "disconnect"
    CONFLATE = "conflate"


@dataclass(frozen=True, slots=True)
class Client:
    """A configured algorithm. `key` is a name that may be shown; of the secret only the SHA-256 digest is held.

    `accounts` says which account serves a feed (`default`: the rest), `max_connections` is per feed, `outbox` in bytes.
    """

    name: str
    key: str
    digest: bytes = field(repr=False)
    accounts: Mapping[str, str] = field(hash=False)
    allow: Allowlist
    max_connections: int = 4
    when_slow: WhenSlow = WhenSlow.DISCONNECT
    outbox: int = 8 * 1024 * 1024

    def account(self, feed: str) -> str:
        """The account whose connection serves this client's feed. Raises LookupError for a feed that has none."""
        account = self.accounts.get(feed) or self.accounts.get(DEFAULT)
        if account is None:
            raise LookupError(f"the client {self.name} has no account for the feed {feed}")
        return account


class Directory:
    """All clients, by key. Raises ValueError if two of them share one."""

    __slots__ = ("_by_key",)

    def __init__(self, clients: Iterable[Client]) -> None:
        self._by_key: dict[str, Client] = {}
        for client in clients:
            if (holder := self._by_key.setdefault(client.key, client)) is not client:
                raise ValueError(f"the clients {holder.name} and {client.name} share the key {client.key!r}")

    def authenticate(self, key: str, secret: str) -> Client | None:
        """The client whose key and secret these are, or None.

        An unknown key takes the same steps as a wrong secret: one digest, one comparison in constant time.
        """
        client = self._by_key.get(key)
        same = hmac.compare_digest(digest(secret), _NOBODY if client is None else client.digest)
        return client if same else None

    def named(self, name: str) -> Client | None:
        """The client of a name, or None."""
        return next((client for client in self if client.name == name), None)

    def __iter__(self) -> Iterator[Client]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def __repr__(self) -> str:
        return f"Directory({', '.join(client.name for client in self)})"
