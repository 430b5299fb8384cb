"""Other programs read the files, as docs/recordings.md shows. A program that is missing is skipped here."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from proxy.recording.files import RecordedFile
from tests.absent import absent
from tests.harness import ROOT
from tests.recording.recordings import MORNING, body, messages_of, record
from tests.recording.test_replay import MINUTE

PAGE = (ROOT / "docs" / "recordings.md").read_text("utf-8")
SQL = ROOT / "config" / "duckdb-recording.sql"


def examples(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def needed(name: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install {name}")
    return importlib.import_module(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the recorded minute, which is where the examples are run."""
    shutil.copy(MINUTE, tmp_path)
    return tmp_path


def messages() -> list[dict[str, Any]]:
    return [json.loads(one) for one in messages_of(MINUTE)]


def test_zstdcat_and_jq(folder: Path) -> None:
    for program in ("zstdcat", "jq"):
        if shutil.which(program) is None:
            absent(f"{program} is not installed: apt-get install jq zstd")
    command = next(line for line in examples("sh").splitlines() if line.startswith("zstdcat"))
    shown = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True).stdout
    trades = [m for m in messages() if m["T"] == "t" and m["S"] == "AAPL"]
    assert [json.loads(line) for line in shown.splitlines()] == [[m["t"], m["p"], m["s"]] for m in trades]


def test_duckdb_keeps_kinds_and_nanoseconds_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = needed("duckdb")
    record(folder, "test", [(MORNING + 123_456_789, [body("t", "X", p=1.5, s=2, t="2026-11-27T14:30:00.000000001Z")])])
    torn = folder / f"{MINUTE.name}.part"
    torn.write_bytes(MINUTE.read_bytes()[:-9])
    monkeypatch.chdir(folder)
    database = duckdb.connect()
    database.execute(SQL.read_text("utf-8"))
    torn.unlink()
    found = database.execute("select arrived::varchar, time::varchar, symbol, price from trades where symbol = 'X'")
    assert found.fetchall() == [("2026-11-27 14:30:00.123456789", "2026-11-27 14:30:00.000000001", "X", 1.5)]
    counts = database.execute("select kind, count(*) from messages where symbol != 'X' group by kind").fetchall()
    kinds = [m["T"] for m in messages()]
    assert dict(counts) == {kind: kinds.count(kind) for kind in kinds}
    for query in filter(str.strip, examples("sql").split(";")):
        database.execute(query).fetchall()


def test_duckdb_reads_a_torn_file_to_its_last_whole_frame(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = needed("duckdb")
    whole = [*RecordedFile(MINUTE).frames()]
    (folder / MINUTE.name).write_bytes(MINUTE.read_bytes()[:-9])
    monkeypatch.chdir(folder)
    database = duckdb.connect()
    database.execute(SQL.read_text("utf-8"))
    [(count,)] = database.execute("select count(*) from lines").fetchall()
    assert count == sum(frame.count(b"\n") for frame in whole[:-1])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(folder: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    needed(library)
    if library == "pandas":
        needed("zstandard")
    [program] = [block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S) if library in block]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(program, names)
    assert len(names["trades"]) == sum(m["T"] == "t" for m in messages())
