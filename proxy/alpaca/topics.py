"""Topics and subscriptions: the unit of routing, and sets of it.

A topic is the pair (channel, symbol), as plain a tuple as a hot path wants; `*` is a symbol like any other here, the
wildcard. A subscription is a frozenset of topics, so union, difference and comparison are Python's own; what else is
asked of one stands below.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Set
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary, ref

from proxy.alpaca.cooperative import Steps, chunks, run_to_end, sorted_in_chunks
from proxy.alpaca.endpoints import CHANNEL_OF_KIND, WILDCARD

Topic = tuple[str, str]
Subscription = frozenset[Topic]

NO_TOPICS: Subscription = frozenset()
MAX_SYMBOL = 64

channel_of = itemgetter(0)
"""A topic's channel."""

symbol_of = itemgetter(1)
"""A topic's symbol."""

MAX_INTERNED = 1 << 17  # topics, some 200 bytes each; options have more than memory wants

MANY = 500  # topics: fewer are compared as fast as they are looked up

# By channel and symbol; of the channels that are documented, since clients may make up as many as they like.
_shared: dict[str, dict[str, Topic]] = {channel: {} for channel in CHANNEL_OF_KIND.values()}
_subscriptions: WeakKeyDictionary[Subscription, ref[Subscription]] = WeakKeyDictionary()


def covers(subscription: Set[Topic], topic: Topic) -> bool:
    """Whether messages of this topic reach who holds the subscription."""
    return topic in subscription or (topic[0], WILDCARD) in subscription


def by_channel(topics: Iterable[Topic]) -> Steps[dict[str, list[str]]]:
    """The symbols of each channel, sorted; channels in the order in which they first appear."""
    channels: defaultdict[str, list[str]] = defaultdict(list)
    for piece in chunks(topics):
        for channel, symbol in piece:
            channels[channel].append(symbol)
        yield
    for channel, symbols in channels.items():
        channels[channel] = yield from sorted_in_chunks(symbols)
    return dict(channels)


def of_channels(channels: Mapping[str, Iterable[str]]) -> Subscription:
    """The subscription that names these symbols of these channels."""
    return frozenset((channel, symbol) for channel, symbols in channels.items() for symbol in symbols)


def find_interned(channel: str, symbols: Iterable[Any]) -> list[Topic] | None:
    """The channel's topics of these symbols, if each has been `shared` before."""
    try:
        return [*map(_shared[channel].__getitem__, symbols)]
    except (KeyError, TypeError):  # the latter: one of them is no text
        return None


def intern_topics(channel: str, symbols: Collection[str]) -> list[Topic]:
    """The channel's topics of these symbols, for the same topic the same object whoever asks.

    Many clients ask for the same thousands. Python compares equal tuples piece by piece, but finds the same one the
    same at a glance: sets of shared topics are combined four times as fast, and hold no copies.
    """
    known = _shared.get(channel)
    if known is None:
        return [(channel, symbol) for symbol in symbols]
    new = set(symbols).difference(known)
    if len(new) + sum(map(len, _shared.values())) > MAX_INTERNED:
        for topics in _shared.values():
            topics.clear()
        return [(channel, symbol) for symbol in symbols]
    known |= ((symbol, (channel, symbol)) for symbol in new)
    return [*map(known.__getitem__, symbols)]


def intern_subscription(topics: Subscription) -> Subscription:
    """An equal subscription that somebody holds already, else this one: two hundred clients that hold the same 8,000
    topics would hold a hundred megabytes of equal sets."""
    if len(topics) < MANY:
        return topics
    found = _subscriptions.get(topics)
    held = None if found is None else found()
    if held is None:
        _subscriptions[topics] = ref(topics)
        return topics
    return held


def known(channel: str, symbol: str) -> Topic:
    """The topic, and if it is shared, that object."""
    return _shared.get(channel, {}).get(symbol) or (channel, symbol)


def words(topics: Iterable[Topic], most: int = 20) -> str:
    """Topics in a sentence: `trades AAPL MSFT, quotes *`, cut after `most` of them."""
    listed = sorted(topics)
    channels = run_to_end(by_channel(listed[:most]))
    text = ", ".join(f"{channel} {' '.join(symbols)}" for channel, symbols in channels.items())
    return text if len(listed) <= most else f"{text} and {len(listed) - most} more"
