"""A cache of routes: the groups that receive a message of a kind and symbol.

A route is computed for the first such message, which checks each large group, and is kept until a subscription with its
topic is added or removed. Its removal then costs a look-up for each topic. If so many topics change that most routes
would be removed, all routes of the kind are dropped instead, and freed a few at a time as new ones are computed: Python
takes a tenth of a second to free a million objects.

The cache is bounded in bytes. A symbol or kind over MAX_NAME characters is treated as if the message had none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

from proxy.alpaca.endpoints import CHANNEL_OF_KIND, WILDCARD
from proxy.alpaca.topics import Subscription

MAX_NAME = 256  # characters; the longest symbol of Alpaca's has 21
MAX_BYTES = 48 * 1024 * 1024  # about 140,000 routes; options have more symbols than that
ROUTE_BYTES = 300  # of a route, without its symbol
EVICTED = 1 << 10  # routes that are evicted at a time, the oldest first
FREED = 16  # dropped routes that are freed with each new one
MAX_KINDS = 64
KEEP_RATIO = 2  # the routes of a kind are dropped at once if there are fewer than this many for each changed topic

R = TypeVar("R")


class RouteCache(dict[str, "KindRoutes[R]"], Generic[R]):
    """Routes by kind, then by symbol; `find` computes a route that is not cached."""

    def __init__(self, find: Callable[[str, str], R]) -> None:
        super().__init__()
        self.bytes = 0  # the estimated memory of the routes
        self.long_names = 0  # messages whose symbol or kind was too long
        self._find = find
        self._dropped: list[dict[str, R]] = []

    def __missing__(self, kind: str) -> KindRoutes[R]:
        if len(kind) > MAX_NAME:
            self.long_names += 1
            return self[""]
        if len(self) >= MAX_KINDS:
            for unknown in [*self.keys() - CHANNEL_OF_KIND.keys()]:
                self._drop(unknown)
        routes = self[kind] = KindRoutes(self, kind)
        return routes

    def __repr__(self) -> str:
        return f"<RouteCache {sum(map(len, self.values()))} routes, {self.bytes} bytes>"

    def compute(self, kind: str, symbol: str) -> R:
        """Compute a route that is not cached, and make room for it."""
        if self.bytes >= MAX_BYTES:
            largest = max(self.values(), key=lambda routes: routes.bytes)
            for old in [*islice(largest, EVICTED)]:
                largest.discard(old)
        if self._dropped:
            dropped = self._dropped[-1]
            for _ in range(min(FREED, len(dropped))):
                dropped.popitem()
            if not dropped:
                self._dropped.pop()
        return self._find(kind, symbol)

    def change(self, subscription: Subscription) -> None:
        """Remove the routes affected by a group with this subscription.

        Call it when such a group is added or removed.
        """
        for kind, routes in [*self.items()]:
            channel = CHANNEL_OF_KIND.get(kind)
            if channel is None or (channel, WILDCARD) in subscription or len(routes) < KEEP_RATIO * len(subscription):
                self._drop(kind)
            else:
                for topic in subscription:
                    if topic[0] == channel:
                        routes.discard(topic[1])

    def _drop(self, kind: str) -> None:
        """Drop all routes of a kind, to be freed later."""
        routes = self.pop(kind)
        self.bytes -= routes.bytes
        self._dropped.append(routes)


class KindRoutes(dict[str, R]):
    """The routes of one kind."""

    __slots__ = ("_cache", "_kind", "bytes")

    def __init__(self, cache: RouteCache[R], kind: str) -> None:
        super().__init__()
        self.bytes = 0
        self._cache = cache
        self._kind = kind

    def __missing__(self, symbol: str) -> R:
        if len(symbol) > MAX_NAME:
            self._cache.long_names += 1
            return self[""]
        route = self[symbol] = self._cache.compute(self._kind, symbol)
        size = ROUTE_BYTES + sys.getsizeof(symbol)
        self.bytes += size
        self._cache.bytes += size
        return route

    def discard(self, symbol: str) -> None:
        """Remove the route of a symbol, if it is cached."""
        if self.pop(symbol, None) is not None:
            size = ROUTE_BYTES + sys.getsizeof(symbol)
            self.bytes -= size
            self._cache.bytes -= size
