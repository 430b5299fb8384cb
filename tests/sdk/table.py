"""The table of SDKs and streams, built from the outcomes of the tests.

A cell is ✓ if every test of that SDK on that stream passed, and ? if none was run. docs/sdks.md has the exact table of
a run in which all tests pass, and that of how each SDK handles refusals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from tests.sdk.sdks import PROGRAMS, PROGRAMS_NOTE, REFUSALS, REFUSED, SDKS, Sdk

# Each column's key and heading; the last is for refusals and outages.
COLUMNS: Mapping[str, str] = {
    "stocks": "stocks",
    "crypto": "crypto",
    "options": "options",
    "news": "news",
    "trading": "orders",
    "legacy": "2020 names",
    "refusals": "refusals",
}
OTHERS = "other programs"
REPLAYED = {
    "go": "Go 3",
    "go2": "Go 2",
    "go1": "Go 1",
    "csharp": "C# 7",
    "java": "Java",
    "marketstore": "marketstore",
}


class Mark(Enum):
    GOOD = "✓"
    BAD = "✗"
    NOT_RUN = "?"
    NO_SUCH = "-"


class Table:
    """Outcomes by row and column; a row is an SDK or a replayed client."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], list[bool]] = defaultdict(list)

    def record(self, row: str, columns: Iterable[str], passed: bool) -> None:
        for column in columns:
            self._outcomes[row, column].append(passed)

    def lines(self) -> list[str]:
        """The table as lines of Markdown, with the SDKs' notes."""
        notes = [*dict.fromkeys(sdk.note for sdk in SDKS if sdk.note), PROGRAMS_NOTE]
        rows = [["SDK", *COLUMNS.values()], ["---", *[":-:"] * len(COLUMNS)]]
        for sdk in SDKS:
            reference = f" <sup>{notes.index(sdk.note) + 1}</sup>" if sdk.note else ""
            rows.append(
                [f"{sdk.name} {sdk.version}{reference}", *(self._mark(sdk, column).value for column in COLUMNS)]
            )
        streams = {stream for program in PROGRAMS for stream in program.streams}
        marks = [self._of(OTHERS, column) if column in streams else Mark.NO_SUCH for column in COLUMNS]
        rows.append([f"{OTHERS} <sup>{len(notes)}</sup>", *(mark.value for mark in marks)])
        replays = ", ".join(f"{name} {self._of(row, '').value}" for row, name in REPLAYED.items())
        return [
            *map(_row, rows),
            "",
            f"Replayed byte for byte, as their sources have it: {replays}.",
            "",
            *(f"<sup>{number}</sup> {note}  " for number, note in enumerate(notes, 1)),
        ]

    def _mark(self, sdk: Sdk, column: str) -> Mark:
        if column not in columns(sdk):
            return Mark.NO_SUCH
        return self._of(str(sdk), column)

    def _of(self, row: str, column: str) -> Mark:
        outcomes = self._outcomes.get((row, column), [])
        return Mark.NOT_RUN if not outcomes else Mark.GOOD if all(outcomes) else Mark.BAD


def columns(sdk: Sdk) -> list[str]:
    """The columns of an SDK: its streams, and refusals unless it is a program."""
    return [*sdk.streams, *([] if sdk.program else ["refusals"])]


def good() -> Table:
    """The table of a run in which all tests pass."""
    table = Table()
    for sdk in SDKS:
        table.record(str(sdk), columns(sdk), True)
    for program in PROGRAMS:
        table.record(OTHERS, program.streams, True)
    for row in REPLAYED:
        table.record(row, [""], True)
    return table


def reactions() -> list[str]:
    """The SDKs' reactions to refused log-ins as lines of Markdown.

    A cell is about market data, and names orders where they differ.
    """
    rows = [["SDK", *(f"{code} {text}" for code, text in REFUSALS.items())], ["---"] * (1 + len(REFUSALS))]
    for sdk in REFUSED:
        data, orders = (
            ["gives up" if code in sdk.gives_up.get(stream, ()) else "tries again" for code in REFUSALS]
            for stream in (sdk.stocks, "trading")
        )
        cells = [
            market if market == trading else f"{market}; orders: {trading}"
            for market, trading in zip(data, orders, strict=True)
        ]
        rows.append([f"{sdk.name} {sdk.version}", *cells])
    return [*map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
