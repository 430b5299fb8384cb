"""Reference counts of topics, fast for thousands of topics at a time.

A client may subscribe to thousands of topics while data flows. Python's sets store the hashes of their items, so an
operation on whole sets takes a tenth of a loop over their topics. Up to MAX_WHOLE_SETS large sets are therefore counted
as whole sets, not topic by topic; if hundreds of subscriptions are equal, adding or removing one is a single look-up.
"""

from __future__ import annotations

from collections.abc import Set

from proxy.alpaca.topics import MANY, NO_TOPICS, Subscription, Topic

MAX_WHOLE_SETS = 16  # removing the last copy of a large set compares it with all others, each up to 0.3 ms


class TopicRefCounts:
    """A multiset of topics. `topics` are those with a count above zero."""

    __slots__ = ("_counts", "_whole_sets", "topics")

    def __init__(self) -> None:
        self.topics: set[Topic] = set()
        self._counts: dict[Topic, int] = {}  # by topic, without those in whole sets
        self._whole_sets: dict[Subscription, int] = {}

    def __repr__(self) -> str:
        return f"<TopicRefCounts {len(self.topics)} topics, {len(self._counts)} of them counted>"

    def add(self, topics: Subscription) -> Set[Topic]:
        """Count one more reference to each topic; return the topics that had none."""
        copies = self._whole_sets.get(topics, 0)
        if copies or (len(topics) >= MANY and len(self._whole_sets) < MAX_WHOLE_SETS):
            self._whole_sets[topics] = copies + 1
        else:
            counts = self._counts
            for topic in topics:
                counts[topic] = counts.get(topic, 0) + 1
        new = NO_TOPICS if copies else topics - self.topics
        self.topics |= new
        return new

    def remove(self, topics: Subscription) -> Set[Topic]:
        """Undo one `add` of exactly these topics; return those without a reference now."""
        copies = self._whole_sets.get(topics)
        if copies is None:
            return self._drop_unreferenced(self._decrement(topics))
        if copies > 1:
            self._whole_sets[topics] = copies - 1
            return NO_TOPICS
        del self._whole_sets[topics]
        return self._drop_unreferenced(topics.difference(self._counts))

    def shrink(self, topics: Subscription, removed: Subscription) -> Set[Topic]:
        """Undo a part of one `add` of exactly `topics`; return those without a reference."""
        if topics in self._whole_sets:
            gone = self.remove(topics)
            return gone - self.add(topics - removed)
        return self._drop_unreferenced(self._decrement(removed))

    def _decrement(self, topics: Subscription) -> Subscription:
        """Count one reference less to each topic; return those whose count is zero now."""
        counts = self._counts
        zero = []
        for topic in topics:
            if left := counts[topic] - 1:
                counts[topic] = left
            else:
                del counts[topic]
                zero.append(topic)
        return frozenset(zero)

    def _drop_unreferenced(self, topics: Subscription) -> Subscription:
        """Remove uncounted topics that are in no whole set from `topics`; return them."""
        for whole_set in self._whole_sets:
            if not topics:
                break
            topics -= whole_set
        self.topics -= topics
        return topics
