"""How many hold each topic, for thousands of topics at a time.

A client may ask for thousands while data flows. Python's sets keep the hashes of what is in them, so what is said of
whole sets takes a tenth of what a loop over their topics would. So large sets, MOST_WHOLES of them, are not counted
topic by topic, but as what they are, sets that somebody holds; and where hundreds hold the same one, who joins or
leaves them is a look-up.
"""

from __future__ import annotations

from collections.abc import Set

from proxy.alpaca.topics import MANY, NO_TOPICS, Subscription, Topic

MAX_WHOLE_SETS = 16  # whoever gives up a large set has it compared with all others, which takes up to 0.3 ms for each


class TopicRefCounts:
    """A multiset. `topics` are those that somebody holds."""

    __slots__ = ("_counts", "_wholes", "topics")

    def __init__(self) -> None:
        self.topics: set[Topic] = set()
        self._counts: dict[Topic, int] = {}  # how many hold each, those of wholes aside
        self._wholes: dict[Subscription, int] = {}  # how many hold exactly these

    def __repr__(self) -> str:
        return f"<TopicRefCounts {len(self.topics)} topics, {len(self._counts)} of them counted>"

    def add(self, topics: Subscription) -> Set[Topic]:
        """One more holds these; those that nobody held before."""
        holders = self._wholes.get(topics, 0)
        if holders or (len(topics) >= MANY and len(self._wholes) < MAX_WHOLE_SETS):
            self._wholes[topics] = holders + 1
        else:
            counts = self._counts
            for topic in topics:
                counts[topic] = counts.get(topic, 0) + 1
        fresh = NO_TOPICS if holders else topics - self.topics
        self.topics |= fresh
        return fresh

    def remove(self, topics: Subscription) -> Set[Topic]:
        """One that held exactly these holds nothing any more; those that nobody holds any more."""
        holders = self._wholes.get(topics)
        if holders is None:
            return self._gone(self._uncounted(topics))
        if holders > 1:
            self._wholes[topics] = holders - 1
            return NO_TOPICS
        del self._wholes[topics]
        return self._gone(topics.difference(self._counts))

    def shrink(self, topics: Subscription, given: Subscription) -> Set[Topic]:
        """One that held exactly these has given some of them up; those that nobody holds any more."""
        if topics in self._wholes:
            gone = self.remove(topics)
            return gone - self.add(topics - given)
        return self._gone(self._uncounted(given))

    def _uncounted(self, topics: Subscription) -> Subscription:
        """Those of the topics that nobody holds any more whose holdings are counted."""
        counts = self._counts
        last = []
        for topic in topics:
            if left := counts[topic] - 1:
                counts[topic] = left
            else:
                del counts[topic]
                last.append(topic)
        return frozenset(last)

    def _gone(self, topics: Subscription) -> Subscription:
        """Those of the topics that are in no whole, and so in nothing any more."""
        for whole in self._wholes:
            if not topics:
                break
            topics -= whole
        self.topics -= topics
        return topics
