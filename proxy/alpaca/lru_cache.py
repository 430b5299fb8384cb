"""What took long to make, kept for whoever asks for the same."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

KEPT = 8

V = TypeVar("V")


class LruCache(Generic[V]):
    """The last KEPT of something."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[Hashable, V] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"<LruCache of {len(self)}>"

    def get(self, key: Hashable) -> V | None:
        """What was kept last under this key, if it still is; it is the newest again."""
        value = self._kept.pop(key, None)
        if value is not None:
            self._kept[key] = value
        return value

    def put(self, key: Hashable, value: V) -> None:
        """It is the newest; what was asked for longest ago gives way."""
        self._kept.pop(key, None)
        if len(self._kept) >= KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = value

    def clear(self) -> None:
        """All of it."""
        self._kept.clear()
