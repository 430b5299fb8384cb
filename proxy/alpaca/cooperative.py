"""Work in steps: what takes milliseconds, written so that others may have a turn in between.

A client may ask for thousands of topics while data flows to everybody else. Pure code cannot wait, so such work is a
generator that pauses after each piece of it; whoever drives it decides what a pause is.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

CHUNK_SIZE = 2000  # topics; about a millisecond's work, where all of them are looked at

T = TypeVar("T")
Steps = Generator[None, None, T]


def run_to_end(steps: Steps[T]) -> T:
    """The result, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def chunks(of: Iterable[T]) -> Iterator[list[T]]:
    """What there is, PIECE at a time."""
    rest = iter(of)
    while piece := [*islice(rest, CHUNK_SIZE)]:
        yield piece


def sorted_in_chunks(texts: Iterable[str]) -> Steps[list[str]]:
    """They sorted. Python merges what is sorted in parts already, so the pauses cost nothing."""
    runs: list[list[str]] = []
    for piece in chunks(texts):
        runs.append(sorted(piece))
        yield
    while len(runs) > 1:
        for at in range(len(runs) // 2):
            runs[at : at + 2] = [sorted(runs[at] + runs[at + 1])]
            yield
    return runs[0] if runs else []
