"""The routes that are known: who hears a message of this kind and symbol.

A route is computed when the first such message comes, which asks each large group, and kept until a subscription that
names it comes or goes. That takes an entry per topic; where so many topics change that most routes would go, all of
them are let go of instead, and freed a few at a time as new ones come: Python takes a tenth of a second to free a
million objects.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

from proxy.alpaca.endpoints import CHANNEL_OF_KIND, WILDCARD
from proxy.alpaca.topics import Subscription

# Of some 320 bytes each; options have more symbols than memory wants routes. Over it, the oldest of them give way.
MAX_ROUTES = 1 << 17
EVICTED = 1 << 10
FREED = 16  # with each new one
MAX_KINDS = 64
KEEP_RATIO = (
    2  # times as many routes of a kind as topics that change: then the others are worth an entry for each of those
)

R = TypeVar("R")


class RouteCache(dict[str, "KindRoutes[R]"], Generic[R]):
    """By kind, then by symbol; `find` computes the route of both."""

    def __init__(self, find: Callable[[str, str], R]) -> None:
        super().__init__()
        self._find = find
        self._freed: list[dict[str, R]] = []

    def __missing__(self, kind: str) -> KindRoutes[R]:
        if len(self) >= MAX_KINDS:
            for strange in [*self.keys() - CHANNEL_OF_KIND.keys()]:
                self._freed.append(self.pop(strange))
        found = self[kind] = KindRoutes(self, kind)
        return found

    def __repr__(self) -> str:
        return f"<RouteCache of {self.count()} topics>"

    def count(self) -> int:
        """How many are known."""
        return sum(map(len, self.values()))

    def learn(self, kind: str, symbol: str) -> R:
        """One that is new, or was let go of."""
        if self.count() >= MAX_ROUTES:
            largest = max(self.values(), key=len)
            for old in [*islice(largest, EVICTED)]:
                del largest[old]
        if self._freed:
            freed = self._freed[-1]
            for _ in range(min(FREED, len(freed))):
                freed.popitem()
            if not freed:
                self._freed.pop()
        return self._find(kind, symbol)

    def change(self, subscription: Subscription) -> None:
        """Somebody hears these topics from now on, or nobody does any more."""
        for kind, known in [*self.items()]:
            channel = CHANNEL_OF_KIND.get(kind)
            if channel is None or (channel, WILDCARD) in subscription or len(known) < KEEP_RATIO * len(subscription):
                self._freed.append(self.pop(kind))
            else:
                for topic in subscription:
                    if topic[0] == channel:
                        known.pop(topic[1], None)


class KindRoutes(dict[str, R]):
    """The routes of one kind."""

    __slots__ = ("_kind", "_routes")

    def __init__(self, routes: RouteCache[R], kind: str) -> None:
        super().__init__()
        self._routes = routes
        self._kind = kind

    def __missing__(self, symbol: str) -> R:
        route = self[symbol] = self._routes.learn(self._kind, symbol)
        return route
