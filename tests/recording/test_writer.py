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

from proxy.recording import lines
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
    one = Writer(folder, {"iex": {"topics": {}}}, clock)
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


def test_the_oldest_files_are_deleted_above_max_but_never_the_one_that_is_written(tmp_path: Path) -> None:
    paths = hourly(tmp_path, 5)
    size = paths[0].stat().st_size
    with running(tmp_path, max=2 * size + size // 2) as one:
        wait_for(lambda: len(one.written.deleted) == 3)
        assert recorded_numbers(tmp_path) == [path.name for path in paths[3:]]
        one.put(chunk(1, size=4 * size))
        wait_for(lambda: len(one.written.deleted) == 5)
        assert recorded_numbers(tmp_path) == ["iex-2026-11-27T14Z.jsonl.zst.part"]
