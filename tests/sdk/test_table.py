"""The documents show what this suite prints when all of it passes, and what it expects."""

from __future__ import annotations

from tests.sdk.environments import ROOT
from tests.sdk.sdks import SDKS
from tests.sdk.table import Table, good, reactions


def test_readme_shows_the_table_of_a_good_run() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = "\n".join(good().lines())
    assert shown in readme, f"README.md should have:\n{shown}"


def test_the_page_of_sdks_shows_how_they_take_refusals() -> None:
    shown = "\n".join(reactions())
    assert shown in (ROOT / "docs" / "sdks.md").read_text("utf-8"), f"docs/sdks.md should have:\n{shown}"


def test_a_failure_shows_and_so_does_what_was_not_run() -> None:
    table = Table()
    first, second = SDKS[:2]
    table.record(str(first), first.streams, True)
    table.record(str(first), ["crypto"], False)
    rows = [line.replace(" ", "").strip("|").split("|") for line in table.lines()]
    assert rows[2] == [str(first).replace("-0", "0"), "✓", "✗", "✓", "✓", "✓", "-", "?"]
    assert set(rows[3][1:]) == {"?", "-"}
    assert rows[3][0].startswith(second.name)
