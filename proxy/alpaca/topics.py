"""Topics, the unit of routing, and subscriptions, sets of topics.

A topic is the pair (channel, symbol), a plain tuple because it is made and hashed on the hot path. The wildcard `*` is
a symbol like any other here. A subscription is a frozenset of topics, so union, difference and comparison are Python's
own; this module has the other operations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from operator import itemgetter

from proxy.alpaca.cooperative import Steps, chunks, run_to_end, sorted_in_chunks
from proxy.alpaca.endpoints import WILDCARD

Topic = tuple[str, str]
Subscription = frozenset[Topic]

NO_TOPICS: Subscription = frozenset()
MAX_SYMBOL = 64

channel_of = itemgetter(0)
"""A topic's channel."""

symbol_of = itemgetter(1)
"""A topic's symbol."""


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


def words(topics: Iterable[Topic], most: int = 20) -> str:
    """Format topics for a sentence: `quotes *, trades AAPL MSFT`.

    At most `most` of them are named, the others counted.
    """
    listed = sorted(topics)
    channels = run_to_end(by_channel(listed[:most]))
    text = ", ".join(f"{channel} {' '.join(symbols)}" for channel, symbols in channels.items())
    return text if len(listed) <= most else f"{text} and {len(listed) - most} more"
