"""Topics, the unit of routing, and subscriptions, sets of topics.

A topic is the pair (channel, symbol), a plain tuple because it is made and hashed on the hot path. The wildcard `*` is
a symbol like any other here. A subscription is a frozenset of topics, so union, difference and comparison are Python's
own; this module has the other operations, and the interning of both.
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

MAX_INTERNED = 1 << 17  # topics, about 200 bytes each; there are more option contracts than should stay in memory

MANY = 500  # topics; with fewer, comparing two subscriptions is as cheap as a look-up

# By channel and symbol. Only documented channels, since a client may invent any number of others.
_interned: dict[str, dict[str, Topic]] = {channel: {} for channel in CHANNEL_OF_KIND.values()}
_interned_subscriptions: WeakKeyDictionary[Subscription, ref[Subscription]] = WeakKeyDictionary()


def covers(subscription: Set[Topic], topic: Topic) -> bool:
    """Whether the subscription includes the topic or its channel's wildcard."""
    return topic in subscription or (topic[0], WILDCARD) in subscription


def by_channel(topics: Iterable[Topic]) -> Steps[dict[str, list[str]]]:
    """Return each channel's symbols, sorted, yielding between chunks.

    Channels are in the order in which they first appear.
    """
    channels: defaultdict[str, list[str]] = defaultdict(list)
    for chunk in chunks(topics):
        for channel, symbol in chunk:
            channels[channel].append(symbol)
        yield
    for channel, symbols in channels.items():
        channels[channel] = yield from sorted_in_chunks(symbols)
    return dict(channels)


def of_channels(channels: Mapping[str, Iterable[str]]) -> Subscription:
    """Return the subscription to these symbols of each channel."""
    return frozenset((channel, symbol) for channel, symbols in channels.items() for symbol in symbols)


def find_interned(channel: str, symbols: Iterable[Any]) -> list[Topic] | None:
    """Return the interned topics of these symbols, or None unless all are interned."""
    try:
        return [*map(_interned[channel].__getitem__, symbols)]
    except (KeyError, TypeError):  # TypeError: a value that is not hashable, so not text
        return None


def intern_topics(channel: str, symbols: Collection[str]) -> list[Topic]:
    """Return the topics of these symbols, equal topics as the same object.

    Many clients subscribe to the same thousands of topics. Python compares two equal tuples item by item, but
    recognizes the same object at once: sets of interned topics are combined four times as fast, and hold no copies.
    Topics of undocumented channels are not interned. Over MAX_INTERNED topics the table is cleared.
    """
    interned = _interned.get(channel)
    if interned is None:
        return [(channel, symbol) for symbol in symbols]
    new = set(symbols).difference(interned)
    if len(new) + sum(map(len, _interned.values())) > MAX_INTERNED:
        for topics in _interned.values():
            topics.clear()
        return [(channel, symbol) for symbol in symbols]
    interned |= ((symbol, (channel, symbol)) for symbol in new)
    return [*map(interned.__getitem__, symbols)]


def intern_subscription(topics: Subscription) -> Subscription:
    """Return an equal subscription that is alive already, else this one.

    Otherwise two hundred clients with the same 8,000 topics would hold a hundred megabytes of equal sets.
    """
    if len(topics) < MANY:
        return topics
    reference = _interned_subscriptions.get(topics)
    interned = None if reference is None else reference()
    if interned is None:
        _interned_subscriptions[topics] = ref(topics)
        return topics
    return interned


def known(channel: str, symbol: str) -> Topic:
    """Return the topic, the interned object if there is one."""
    return _interned.get(channel, {}).get(symbol) or (channel, symbol)


def words(topics: Iterable[Topic], most: int = 20) -> str:
    """Format topics for a sentence: `quotes *, trades AAPL MSFT`.

    At most `most` of them are named, the others counted.
    """
    listed = sorted(topics)
    channels = run_to_end(by_channel(listed[:most]))
    text = ", ".join(f"{channel} {' '.join(symbols)}" for channel, symbols in channels.items())
    return text if len(listed) <= most else f"{text} and {len(listed) - most} more"
