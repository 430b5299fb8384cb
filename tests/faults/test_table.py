"""docs/faults.md names a test for each fault.

Each of them exists, and each test in this folder is in the table.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
TABLE = TESTS.parent / "docs" / "faults.md"


def _tests_in(path: Path) -> set[str]:
    """The tests in a file, as `folder/file.py::test`."""
    module = ast.parse(path.read_text("utf-8"))
    names = [node.name for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {f"{path.relative_to(TESTS).as_posix()}::{name}" for name in names}


def test_the_table_and_the_tests_agree() -> None:
    rows = [line for line in TABLE.read_text("utf-8").splitlines() if re.match(r"\| (?!fault \|)", line)]
    matches = [re.fullmatch(r"\| [^|]+ \| [^|]+ \| `(\S+::\w+)` \|", row) for row in rows]
    assert None not in matches
    documented = {match[1] for match in matches if match is not None}
    assert len(documented) == len(rows)
    assert documented <= set().union(*map(_tests_in, TESTS.rglob("test_*.py")))
    here = set().union(*map(_tests_in, Path(__file__).parent.glob("test_*.py"))) - _tests_in(Path(__file__))
    assert here <= documented
