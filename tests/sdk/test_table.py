"""docs/sdks.md has the tables of this suite."""

from __future__ import annotations

from tests.sdk.environments import ROOT
from tests.sdk.sdks import SDKS
from tests.sdk.table import Table, good, reactions


def test_docs_sdks_has_the_table_of_a_run_that_passes() -> None:
    expected = "\n".join(good().lines())
    assert expected in (ROOT / "docs" / "sdks.md").read_text("utf-8"), f"docs/sdks.md should have:\n{expected}"


def test_docs_sdks_has_the_table_of_refusals() -> None:
    expected = "\n".join(reactions())
    assert expected in (ROOT / "docs" / "sdks.md").read_text("utf-8"), f"docs/sdks.md should have:\n{expected}"


def test_the_table_shows_failures_and_tests_that_were_not_run() -> None:
    table = Table()
    first, second = SDKS[:2]
    table.record(str(first), first.streams, True)
    table.record(str(first), ["crypto"], False)
    rows = [line.replace(" ", "").strip("|").split("|") for line in table.lines()]
    assert rows[2] == [str(first).replace("-0", "0"), "✓", "✗", "✓", "✓", "✓", "-", "?"]
    assert set(rows[3][1:]) == {"?", "-"}
    assert rows[3][0].startswith(second.name)
