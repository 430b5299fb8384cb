"""docs/faults.md promises a test for each fault: they exist, and no test of a fault is missing from it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
TABLE = TESTS.parent / "docs" / "faults.md"


def named_in(path: Path) -> set[str]:
    """The tests of a file, as the table names them."""
    module = ast.parse(path.read_text("utf-8"))
    names = [node.name for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {f"{path.relative_to(TESTS).as_posix()}::{name}" for name in names}


def test_the_table_and_the_tests_agree() -> None:
    rows = [line for line in TABLE.read_text("utf-8").splitlines() if re.match(r"\| (?!fault \|)", line)]
    named = [re.fullmatch(r"\| [^|]+ \| [^|]+ \| `(\S+::\w+)` \|", row) for row in rows]
    assert None not in named
    promised = {match[1] for match in named if match is not None}
    assert len(promised) == len(rows)
    assert promised <= set().union(*map(named_in, TESTS.rglob("test_*.py")))
    here = set().union(*map(named_in, Path(__file__).parent.glob("test_*.py"))) - named_in(Path(__file__))
    assert here <= promised
