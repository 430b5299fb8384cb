"""Which SDK is known to work on what: gathered from the outcomes of the tests, printed at their end, and as Markdown.

A cell is good if every test of that SDK on that stream passed, and says nothing if none was run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from tests.sdk.sdks import SDKS, Sdk

# Each column's key and heading. The last is how an SDK takes refusals and outages.
COLUMNS: Mapping[str, str] = {
    "stocks": "stocks",
    "crypto": "crypto",
    "options": "options",
    "news": "news",
    "trading": "orders",
    "legacy": "2020 names",
    "refusals": "refusals",
}
REPLAYED = {"go": "Go 3", "csharp": "C# 7", "java": "Java"}


class Mark(Enum):
    GOOD = "✓"
    BAD = "✗"
    NOT_RUN = "?"
    NO_SUCH = "-"


class Table:
    """Outcomes by row and column; a row is an SDK or a client that was replayed."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], list[bool]] = defaultdict(list)

    def record(self, row: str, columns: Iterable[str], passed: bool) -> None:
        for column in columns:
            self._outcomes[row, column].append(passed)

    @property
    def complete(self) -> bool:
        """Whether all of it was run and is good."""
        marks = {mark for row in self._rows() for mark in row[1]}
        return marks == {Mark.GOOD, Mark.NO_SUCH} and set(self._replays().values()) == {Mark.GOOD}

    def lines(self) -> list[str]:
        """For a terminal."""
        rows = [("SDK", *COLUMNS.values())]
        rows += [(name, *(mark.value for mark in marks)) for name, marks in self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return [*lines, "", f"replayed byte for byte: {self._said_of_replays()}"]

    def markdown(self) -> str:
        """For the README: the same, with what its users should know."""
        notes = list(dict.fromkeys(sdk.note for sdk in SDKS if sdk.note))
        lines = [_row(["SDK", *COLUMNS.values()]), _row(["---", *[":-:"] * len(COLUMNS)])]
        for sdk, (name, marks) in zip(SDKS, self._rows(), strict=True):
            raised = f" <sup>{notes.index(sdk.note) + 1}</sup>" if sdk.note else ""
            lines.append(_row([name + raised, *(mark.value for mark in marks)]))
        lines += ["", f"Replayed byte for byte, as their sources have it: {self._said_of_replays()}."]
        lines += ["", *(f"<sup>{number}</sup> {note}  " for number, note in enumerate(notes, 1))]
        return "\n".join(lines) + "\n"

    def _rows(self) -> list[tuple[str, list[Mark]]]:
        return [(f"{sdk.name} {sdk.version}", [self._mark(sdk, column) for column in COLUMNS]) for sdk in SDKS]

    def _mark(self, sdk: Sdk, column: str) -> Mark:
        if column != "refusals" and column not in sdk.streams:
            return Mark.NO_SUCH
        return self._of(str(sdk), column)

    def _of(self, row: str, column: str) -> Mark:
        outcomes = self._outcomes.get((row, column), [])
        return Mark.NOT_RUN if not outcomes else Mark.GOOD if all(outcomes) else Mark.BAD

    def _replays(self) -> dict[str, Mark]:
        return {name: self._of(row, "") for row, name in REPLAYED.items()}

    def _said_of_replays(self) -> str:
        return ", ".join(f"{name} {mark.value}" for name, mark in self._replays().items())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
