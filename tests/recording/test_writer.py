"""The writer on bad disks: full, too small, slow, read-only, gone, not there at the start. It goes on when it can."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from proxy.recording import lines, writer
from proxy.recording.files import HOUR, OpenFile, entries
from proxy.recording.lines import LINES
from proxy.recording.writer import Chunk, Folder, Writer
from tests.harness import wait_for
from tests.recording.recordings import MORNING, SECOND, body, messages_of, own_lines, record

HOUR_14 = MORNING - MORNING % HOUR
DAY = 86_400.0


def chunk(number: int, *, at: int = MORNING, size: int = 0) -> Chunk:
    """One message with this number; `size` bytes that do not compress make it larger."""
    text = lines.stamped(LINES.join([body("t", "AAPL", i=number, pad=os.urandom(size // 2).hex())]), at)
    return Chunk("iex", at - at % HOUR, [text], 1, len(text), at)


@contextmanager
def running(path: Path, *, clock: Callable[[], int] = lambda: MORNING, **limits: Any) -> Iterator[Writer]:
    """A writer whose thread runs; at the end everything is written."""
    folder = Folder(path, **{"keep": 7 * DAY, "max": 10**12, "min_free": 0, **limits})
    one = Writer(folder, {"iex": frozenset([("trades", "AAPL")])}, clock)
    pool = ThreadPool(1)
    thread = pool.spawn(one.run)
    try:
        yield one
    finally:
        one.end()
        assert gevent.wait([thread], 20)
        pool.kill()
        assert one.written.bug == ""


@contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    """A small file system of its own; skipped where the test may not mount one."""
    path.mkdir(exist_ok=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a file system here: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def written(one: Writer, count: int) -> None:
    wait_for(lambda: one.written.messages["iex"] >= count, "not written")


def lost(one: Writer, count: int) -> None:
    wait_for(lambda: sum(one.written.dropped.values()) >= count, "not dropped")


def recorded_numbers(folder: Path) -> list[str]:
    return [entry.path.name for entry in entries(folder)]


def test_a_full_disk_costs_the_messages_that_do_not_fit_and_a_line_says_so(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=300k"):
        with running(disk / "rec") as one:
            for number in range(20):
                one.put(chunk(number, size=50_000))
            lost(one, 1)
            wait_for(lambda: one.pending == 0)
            assert one.written.problem.endswith(f": {os.strerror(errno.ENOSPC)}")
            dropped = one.written.dropped["iex", "disk_error"]
            kept = one.written.messages["iex"]
            assert kept + dropped == 20
            (disk / "rec" / "other").write_bytes(b"")
            subprocess.run(["mount", "-o", "remount,size=3m", str(disk)], check=True)
            one.put(chunk(99, at=MORNING + SECOND))
            written(one, kept + 1)
            assert one.written.problem == ""
        [path] = [entry.path for entry in entries(disk / "rec")]
        assert len(messages_of(path)) == kept + 1
        [gap] = own_lines(path)
        assert gap == {
            "recording": "gap", "at": MORNING + SECOND, "since": MORNING, "messages": dropped, "reason": "disk_error",
        }  # fmt: skip


def test_below_min_free_nothing_is_written_until_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=2m"):
        (disk / "ballast").write_bytes(bytes(1_500_000))
        with running(disk / "rec", min_free=1_000_000) as one:
            one.put(chunk(1))
            lost(one, 1)
            assert one.written.dropped == {("iex", "min_free"): 1}
            assert one.written.problem == f"{disk / 'rec'}: less than 1,000,000 bytes are free (min_free)"
            (disk / "ballast").unlink()
            one.put(chunk(2))
            written(one, 1)
        [path] = [entry.path for entry in entries(disk / "rec")]
        assert [line["reason"] for line in own_lines(path)] == ["min_free"]


def test_a_read_only_disk_is_said_and_costs_only_the_recording(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=1m"):
        (disk / "rec").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with running(disk / "rec") as one:
            one.put(chunk(1))
            lost(one, 1)
            assert one.written.problem.endswith(f": {os.strerror(errno.EROFS)}")
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            one.put(chunk(2))
            written(one, 1)


def test_a_disk_that_is_not_there_at_the_start_is_used_once_it_is(tmp_path: Path) -> None:
    with running(tmp_path / "mount" / "rec") as one:
        one.put(chunk(1))
        lost(one, 1)
        assert one.written.problem == f"{tmp_path / 'mount' / 'rec'}: {os.strerror(errno.ENOENT)}"
        assert not (tmp_path / "mount").exists()
        (tmp_path / "mount").mkdir()
        one.put(chunk(2))
        written(one, 1)
    assert oct((tmp_path / "mount" / "rec").stat().st_mode & 0o777) == "0o700"


def test_a_folder_that_is_deleted_is_made_anew_with_a_new_file(tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    with running(folder) as one:
        one.put(chunk(1))
        written(one, 1)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        one.put(chunk(2))
        lost(one, 1)
        one.put(chunk(3))
        written(one, 2)
    [path] = [entry.path for entry in entries(folder)]
    assert len(messages_of(path)) == 1
    assert [line["messages"] for line in own_lines(path)] == [1]


def test_a_disk_that_hangs_holds_up_the_thread_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = get_original("threading", "Event")()
    real = OpenFile.write

    def hanging(file: OpenFile, data: bytes) -> int:
        answers.wait(20)
        return real(file, data)

    monkeypatch.setattr(OpenFile, "write", hanging)
    with running(tmp_path) as one:
        began = time.monotonic()
        for number in range(100):
            one.put(chunk(number))
        assert time.monotonic() - began < 1
        assert one.pending > 0
        answers.set()
        written(one, 100)


def test_a_file_is_sealed_when_its_hour_is_over_though_nothing_comes(tmp_path: Path) -> None:
    now = [MORNING]
    with running(tmp_path, clock=lambda: now[0]) as one:
        one.put(chunk(1))
        written(one, 1)
        assert recorded_numbers(tmp_path) == ["iex-2026-11-27T14Z.jsonl.zst.part"]
        now[0] = HOUR_14 + HOUR
        wait_for(lambda: recorded_numbers(tmp_path) == ["iex-2026-11-27T14Z.jsonl.zst"], "not sealed")
        one.put(chunk(2, at=HOUR_14 + HOUR))
        written(one, 2)
        assert recorded_numbers(tmp_path)[1:] == ["iex-2026-11-27T15Z.jsonl.zst.part"]


def hourly(folder: Path, hours: int) -> list[Path]:
    """Files of so many hours up to the one of MORNING, which is not among them."""
    ages = range(hours, 0, -1)
    return [record(folder, "iex", [(HOUR_14 - age * HOUR, [body("t", "AAPL", i=age)])]) for age in ages]


def test_files_older_than_keep_are_deleted(tmp_path: Path) -> None:
    paths = hourly(tmp_path, 5)
    with running(tmp_path, keep=3 * 3600.0) as one:
        wait_for(lambda: len(one.written.deleted) == 2)
        assert [*one.written.deleted] == [path.name for path in paths[:2]]
        assert recorded_numbers(tmp_path) == [path.name for path in paths[2:]]


def test_the_oldest_files_are_deleted_above_max_but_never_the_one_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CLEAN_SECONDS", 0.0)
    paths = hourly(tmp_path, 5)
    size = paths[0].stat().st_size
    with running(tmp_path, max=2 * size + size // 2) as one:
        wait_for(lambda: len(one.written.deleted) == 3)
        assert recorded_numbers(tmp_path) == [path.name for path in paths[3:]]
        one.put(chunk(1, size=4 * size))
        wait_for(lambda: len(one.written.deleted) == 5)
        assert recorded_numbers(tmp_path) == ["iex-2026-11-27T14Z.jsonl.zst.part"]


def test_a_file_that_another_node_may_be_writing_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a node of this name has left is, and one of an hour that is long over."""
    monkeypatch.setattr(writer, "CLEAN_SECONDS", 0.0)
    for hour in (HOUR_14 - 2 * HOUR, HOUR_14 - HOUR, HOUR_14):
        for node in ("a_1", "b_2", ""):
            OpenFile(tmp_path, "iex", hour, node).write(b"{}\n")
    sealed = OpenFile(tmp_path, "iex", HOUR_14, "b_2")
    sealed.write(b"{}\n")
    sealed.seal()
    with running(tmp_path, max=0, node="a_1") as one:
        one.put(chunk(1))
        written(one, 1)
        wait_for(lambda: len(one.written.deleted) == 6, f"{one.written.deleted}")
        names = {f"iex-2026-11-27T1{hour}Z{node}.jsonl.zst.part" for hour in (3, 4) for node in ("", "@b_2")}
        assert set(recorded_numbers(tmp_path)) == {*names, "iex-2026-11-27T14Z@a_1.2.jsonl.zst.part"}
        assert one.written.tidy_problem == ""


def test_a_file_that_another_node_has_deleted_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = hourly(tmp_path, 3)
    real = Path.unlink

    def unlink(path: Path) -> None:
        real(path)
        if path == paths[0]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    with running(tmp_path, max=paths[2].stat().st_size, node="a_1") as one:
        wait_for(lambda: one.written.deleted)
        assert [*one.written.deleted] == [paths[1].name]
        assert recorded_numbers(tmp_path) == [paths[2].name]
        assert one.written.tidy_problem == ""


def test_a_file_is_sealed_on_request(tmp_path: Path) -> None:
    """Lines that were handed over before are in it, later ones in another one; without a file nothing happens."""
    with running(tmp_path, node="a_1") as one:
        one.finish("iex")
        one.put(chunk(1))
        one.finish("iex")
        one.finish("iex")
        one.put(chunk(2))
        written(one, 2)
        names = ["iex-2026-11-27T14Z@a_1.jsonl.zst", "iex-2026-11-27T14Z@a_1.2.jsonl.zst.part"]
        assert recorded_numbers(tmp_path) == names
    assert [len(messages_of(entry.path)) for entry in entries(tmp_path)] == [1, 1]


def test_an_entry_that_cannot_be_deleted_or_is_no_file_keeps_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = hourly(tmp_path, 5)
    (tmp_path / "iex-2020-01-01T00Z.jsonl.zst").mkdir()
    (tmp_path / "iex-2020-02-31T00Z.jsonl.zst").touch()
    real = Path.unlink

    def unlink(path: Path) -> None:
        if path == paths[0]:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        real(path)

    monkeypatch.setattr(Path, "unlink", unlink)
    with running(tmp_path, keep=3 * 3600.0) as one:
        wait_for(lambda: one.written.deleted)
        wait_for(lambda: one.written.tidy_problem)
        assert [*one.written.deleted] == [paths[1].name]
        assert one.written.tidy_problem == f"{paths[0]}: {os.strerror(errno.EPERM)}"
        assert one.written.problem == ""


def test_a_clock_that_jumps_ahead_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CLEAN_SECONDS", 0.0)
    paths = hourly(tmp_path, 5)
    now = [MORNING]
    with running(tmp_path, clock=lambda: now[0]) as one:
        now[0] = later = MORNING + 365 * int(DAY) * SECOND
        one.put(chunk(1, at=later))
        written(one, 1)
        one.put(chunk(2, at=later))
        written(one, 2)
        now[0] = MORNING
        one.put(chunk(3))
        written(one, 3)
        one.put(chunk(4))
        written(one, 4)
        assert not one.written.deleted
        assert {path.name for path in paths} < {*recorded_numbers(tmp_path)}


def test_the_folder_is_looked_through_once_a_minute_whatever_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []

    def counted(folder: Path, *arguments: Any) -> list[Any]:
        looks.append(folder)
        return []

    monkeypatch.setattr(writer.files, "entries", counted)
    with running(tmp_path) as one:
        for number in range(5):
            one.put(chunk(number, at=MORNING + number * HOUR))
        written(one, 5)
    assert looks == [tmp_path]


def failing(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Every write to a file fails until `undo`."""

    def write(file: OpenFile, data: bytes) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(OpenFile, "write", write)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failed_writes_leave_no_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    with running(tmp_path) as one:
        failing(monkeypatch, error)
        for number in range(5):
            one.put(chunk(number))
        lost(one, 5)
        assert len(recorded_numbers(tmp_path)) == (0 if error == errno.EIO else 1)
        monkeypatch.undo()
        one.put(chunk(9))
        written(one, 1)
    assert recorded_numbers(tmp_path) == ["iex-2026-11-27T14Z.jsonl.zst"]


def test_a_file_with_a_torn_end_gets_no_more_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with running(tmp_path) as one:
        one.put(chunk(1))
        written(one, 1)
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:-3]))
        monkeypatch.setattr(os, "ftruncate", full)
        one.put(chunk(2))
        lost(one, 1)
        monkeypatch.undo()
        one.put(chunk(3))
        written(one, 2)
    assert sorted(recorded_numbers(tmp_path)) == [
        "iex-2026-11-27T14Z.2.jsonl.zst", "iex-2026-11-27T14Z.jsonl.zst.part",
    ]  # fmt: skip
    assert [len(messages_of(entry.path)) for entry in entries(tmp_path)] == [1, 1]


def test_a_disk_that_is_well_again_is_noticed_without_a_message_and_the_gap_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.02)
    with running(tmp_path) as one:
        failing(monkeypatch, errno.EIO)
        one.put(chunk(1))
        lost(one, 1)
        gevent.sleep(0.1)
        assert one.written.problem == os.strerror(errno.EIO)
        monkeypatch.undo()
        wait_for(lambda: one.written.problem == "")
        [path] = [entry.path for entry in entries(tmp_path)]
        assert [(line["messages"], line["reason"]) for line in own_lines(path)] == [(1, "disk_error")]


def test_a_gap_at_the_end_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path) as one:
        failing(monkeypatch, errno.EIO)
        one.put(chunk(1))
        lost(one, 1)
        monkeypatch.undo()
    [path] = [entry.path for entry in entries(tmp_path)]
    assert [line["messages"] for line in own_lines(path)] == [1]


def test_a_discarded_queue_is_said_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = get_original("threading", "Event")()
    real = OpenFile.write

    def hanging(file: OpenFile, data: bytes) -> int:
        answers.wait(20)
        return real(file, data)

    monkeypatch.setattr(OpenFile, "write", hanging)
    with running(tmp_path) as one:
        one.put(chunk(0))
        wait_for(lambda: one._queue.empty())
        for number in range(100):
            one.put(chunk(number, size=1000))
        one.end()
        assert one.discard() == 100
        assert one.pending < 1000
        answers.set()
    [path] = [entry.path for entry in entries(tmp_path)]
    assert len(messages_of(path)) == 1
    assert [(line["messages"], line["reason"]) for line in own_lines(path)] == [(100, "queue_full")]


def test_the_first_line_has_the_topics_in_order(tmp_path: Path) -> None:
    one = Writer(Folder(tmp_path, DAY, 1, 0), {"iex": frozenset((c, s) for c in ("trades", "bars") for s in "CAB")})
    assert [*one._header("iex").items()] == [("bars", ["A", "B", "C"]), ("trades", ["A", "B", "C"])]
