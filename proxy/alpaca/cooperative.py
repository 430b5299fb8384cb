"""Cooperative computations: generators that yield between chunks of work.

A client may request thousands of topics while data flows to all other clients. Pure code cannot wait, so a computation
that takes milliseconds is a generator that yields after each chunk; its caller decides whether to pause there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

CHUNK_SIZE = 1000  # topics; one to two milliseconds of work, if each of them is counted

T = TypeVar("T")
S = TypeVar("S", str, tuple[int, bool, int])
Steps = Generator[None, None, T]


class Deferred:
    """Bytes that are computed later, in steps; until then they count as one."""

    __slots__ = ("steps",)

    def __init__(self, steps: Steps[bytes]) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return 1


def run_to_end(steps: Steps[T], pause: Callable[[], None] | None = None) -> T:
    """Run the generator to its end, with a `pause` at each of its steps if there is one, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if pause is not None:
            pause()


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Split the items into lists of CHUNK_SIZE, the last one shorter."""
    rest = iter(items)
    while chunk := [*islice(rest, CHUNK_SIZE)]:
        yield chunk


def sorted_in_chunks(items: Iterable[S]) -> Steps[list[S]]:
    """Return the items sorted, yielding between chunks.

    The pauses cost nothing: Python's sort merges runs that are sorted already.
    """
    runs: list[list[S]] = []
    for chunk in chunks(items):
        runs.append(sorted(chunk))
        yield
    while len(runs) > 1:
        for at in range(len(runs) // 2):
            runs[at : at + 2] = [sorted(runs[at] + runs[at + 1])]
            yield
    return runs[0] if runs else []
