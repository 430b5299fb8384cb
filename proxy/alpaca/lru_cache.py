"""Small LRU cache, for results that take milliseconds to compute."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

MAX_ENTRIES = 8

V = TypeVar("V")


class LruCache(Generic[V]):
    """The MAX_ENTRIES most recently used values."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[Hashable, V] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<LruCache of {len(self)}>"

    def get(self, key: Hashable) -> V | None:
        """Return the value, or None, and mark it as the most recently used."""
        value = self._entries.pop(key, None)
        if value is not None:
            self._entries[key] = value
        return value

    def put(self, key: Hashable, value: V) -> None:
        """Store the value as the most recently used.

        If the cache is full, the least recently used value is evicted.
        """
        self._entries.pop(key, None)
        if len(self._entries) >= MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = value

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
