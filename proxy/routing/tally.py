"""How many hold each topic, for thousands of topics at a time.

A client may ask for thousands while data flows. Python's sets keep the hashes of what is in them, so what is said of
whole sets here takes a tenth of what a loop over their topics would; a loop is left where several hold the same. And
where hundreds hold the same thousands they are counted as what they are, holders of one set: who joins them or leaves
them is a look-up.
"""

from __future__ import annotations

from collections.abc import Set

from proxy.protocol.topics import MANY, NOTHING, Subscription, Topic


class Tally:
    """A multiset. `topics` are those that somebody holds."""

    __slots__ = ("_more", "_wholes", "topics")

    def __init__(self) -> None:
        self.topics: set[Topic] = set()
        self._more: dict[Topic, int] = {}  # how many hold a topic beside the first, if any; all of a whole are one
        self._wholes: dict[Subscription, int] = {}  # how many hold exactly these

    def __repr__(self) -> str:
        return f"<Tally {len(self.topics)} topics, {len(self._more)} of them held more than once>"

    def add(self, topics: Subscription) -> Set[Topic]:
        """One more holds these; those that nobody held before."""
        if len(topics) >= MANY:
            holders = self._wholes.get(topics, 0)
            self._wholes[topics] = holders + 1
            if holders:
                return NOTHING
        return self._add(topics)

    def remove(self, topics: Subscription) -> Set[Topic]:
        """One that held exactly these holds nothing any more; those that nobody holds any more."""
        return NOTHING if self._left(topics) else self._remove(topics)

    def shrink(self, topics: Subscription, given: Subscription) -> Set[Topic]:
        """One that held exactly these has given some of them up; those that nobody holds any more."""
        if self._left(topics):
            self._add(topics)
        return self._remove(given)

    def _left(self, topics: Subscription) -> int:
        """How many still hold these as a whole, now that one of them does not."""
        if len(topics) < MANY or topics not in self._wholes:
            return 0
        left = self._wholes.pop(topics) - 1
        if left:
            self._wholes[topics] = left
        return left

    def _add(self, topics: Subscription) -> Set[Topic]:
        fresh = topics - self.topics
        self.topics |= fresh
        more = self._more
        for topic in topics - fresh:
            more[topic] = more.get(topic, 0) + 1
        return fresh

    def _remove(self, topics: Subscription) -> Set[Topic]:
        more = self._more
        gone = topics.difference(more)
        self.topics -= gone
        for topic in topics - gone:
            if left := more[topic] - 1:
                more[topic] = left
            else:
                del more[topic]
        return gone
