"""Files: names, modes, and what is read of a file that was torn at any byte."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from proxy.recording import files
from proxy.recording.files import HOUR, NotARecording, OpenFile, RecordedFile
from proxy.recording.timeline import scan
from proxy.recording.zstd import frame
from tests.recording.recordings import MORNING, SECOND, body, messages_of, record

AT_14 = MORNING - MORNING % HOUR
BODIES = [body("t", "AAPL", i=number) for number in range(30)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return record(tmp_path, "iex", [(MORNING + number * SECOND, [one]) for number, one in enumerate(BODIES)])


def test_a_file_has_the_name_of_its_feed_and_hour_once_it_is_sealed(tmp_path: Path) -> None:
    first, second = (OpenFile(tmp_path, "crypto-us-1", AT_14) for _ in range(2))
    first.write(b"{}\n")
    second.write(b"{}\n")
    unsealed = {"crypto-us-1-2026-11-27T14Z.jsonl.zst.part", "crypto-us-1-2026-11-27T14Z.2.jsonl.zst.part"}
    assert {path.name for path in tmp_path.iterdir()} == unsealed
    first.seal()
    third = OpenFile(tmp_path, "crypto-us-1", AT_14)
    third.write(b"{}\n")
    for file in (second, third):
        file.seal()
    names = [f"crypto-us-1-2026-11-27T14Z{number}.jsonl.zst" for number in ("", ".2", ".3")]
    assert [entry.path.name for entry in files.entries(tmp_path)] == names
    assert {entry.hour for entry in files.entries(tmp_path)} == {AT_14}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_in_a_cluster_a_file_has_the_name_of_its_node(tmp_path: Path) -> None:
    urls = ("wss://10.0.0.1:8767", "ws://proxy_1.internal:80", "wss://[2001:db8::1]:8767/", "wss://node-2.example/")
    names = [files.node_name(url) for url in urls]
    assert names == ["10.0.0.1_8767", "proxy_1.internal_80", "2001-db8--1_8767", "node-2.example_443"]
    for number in (1, 2):
        for name in ["", *names]:
            file = OpenFile(tmp_path, "iex", AT_14, name)
            file.write(b"{}\n")
            if number == 1:
                file.seal()
    found = files.entries(tmp_path)
    assert [entry.number for entry in found] == [1] * 5 + [2] * 5
    assert {entry.node for entry in found if entry.unsealed} == {"", *names}
    assert {entry.node for entry in found if not entry.unsealed} == {"", *names}
    assert (tmp_path / "iex-2026-11-27T14Z@10.0.0.1_8767.jsonl.zst").exists()
    assert (tmp_path / "iex-2026-11-27T14Z@10.0.0.1_8767.2.jsonl.zst.part").exists()


def test_other_files_in_the_folder_are_none_of_the_recorders(tmp_path: Path) -> None:
    for name in ("notes.txt", "iex-2026-11-27.jsonl.zst", "iex-2026-11-27T14Z.jsonl.zst.bak", "iex.jsonl.zst"):
        (tmp_path / name).touch()
    assert files.entries(tmp_path) == []


def test_an_empty_file_does_not_stay(tmp_path: Path) -> None:
    OpenFile(tmp_path, "iex", AT_14).seal()
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_was_torn_at_any_byte_is_read_to_its_last_whole_frame(path: Path, tmp_path: Path) -> None:
    whole, torn = path.read_bytes(), tmp_path / "torn"
    ends = [0]
    for text in RecordedFile(path).frames():
        ends.append(ends[-1] + len(frame(text)))
    assert ends[-1] == len(whole)
    for size in range(len(whole)):
        torn.write_bytes(whole[:size])
        frames = sum(end <= size for end in ends) - 1
        if frames == 0:
            with pytest.raises(NotARecording, match="no whole frame"):
                scan(torn)
            continue
        assert messages_of(torn) == BODIES[: 10 * frames]
        assert scan(torn).torn is (size not in ends)


def test_a_damaged_frame_ends_the_recording(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[-2] ^= 1  # in the checksum of the last frame
    path.write_bytes(damaged)
    found = scan(path)
    assert (found.messages, found.torn) == (20, True)


@pytest.mark.parametrize(
    "content",
    [b"", b"not compressed", frame(b'{"T":"t"}\n'), frame(b'{"recording":"start","format":2,"feed":"iex"}\n')],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(NotARecording, match="is no recording"):
        scan(tmp_path / "file")


def test_a_frame_without_an_end_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FRAME", 1000)
    (tmp_path / "file").write_bytes(frame(bytes(10_000)))
    with pytest.raises(NotARecording):
        scan(tmp_path / "file")


def test_a_write_that_fails_midway_leaves_whole_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OpenFile(tmp_path, "iex", AT_14)
    start = b'{"recording":"start","at":1764253800000000000,"format":1,"feed":"iex"}\n'
    file.write(start)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:-3]))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.write(b'{"at":1764253800000000001,"T":"t"}\n')
    monkeypatch.undo()
    file.write(b'{"at":1764253800000000002,"T":"q"}\n')
    file.seal()
    assert messages_of(file.path) == [b'{"T":"q"}']


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_another_recorder_has_sealed_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    file = OpenFile(tmp_path, "iex", AT_14)
    file.write(b"mine\n")
    (tmp_path / "iex-2026-11-27T14Z.jsonl.zst").write_bytes(b"another's")
    (tmp_path / "iex-2026-11-27T14Z.2.jsonl.zst").write_bytes(b"another's")
    if not links:
        monkeypatch.setattr(os, "link", unsupported)
    file.seal()
    assert file.path.name == "iex-2026-11-27T14Z.3.jsonl.zst"
    assert file.path.read_bytes() == frame(b"mine\n")
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]
    assert sum(path.read_bytes() == b"another's" for path in tmp_path.iterdir()) == 2


def unsupported(*arguments: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_links_folders_and_impossible_dates_are_no_recordings(tmp_path: Path) -> None:
    (tmp_path / "iex-2026-11-27T14Z.jsonl.zst").mkdir()
    (tmp_path / "iex-2026-11-27T15Z.jsonl.zst").symlink_to("nowhere")
    (tmp_path / "iex-2026-02-30T15Z.jsonl.zst").touch()
    (tmp_path / "iex-2026-13-01T15Z.jsonl.zst").touch()
    (tmp_path / "iex-2026-11-27T16Z.jsonl.zst").touch()
    assert [entry.path.name for entry in files.entries(tmp_path)] == ["iex-2026-11-27T16Z.jsonl.zst"]


def test_a_long_list_of_files_is_made_with_pauses(tmp_path: Path) -> None:
    for number in range(120):
        (tmp_path / f"iex-2026-11-27T14Z.{number + 2}.jsonl.zst").touch()
    pauses: list[None] = []
    found = files.entries(tmp_path, lambda: pauses.append(None))
    assert [entry.number for entry in found] == [*range(2, 122)]
    assert len(pauses) == 2


def test_an_abandoned_file_stays_unless_it_is_empty(tmp_path: Path) -> None:
    empty, written = OpenFile(tmp_path, "iex", AT_14), OpenFile(tmp_path, "sip", AT_14)
    written.write(b"{}\n")
    empty.abandon()
    written.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["sip-2026-11-27T14Z.jsonl.zst.part"]


def test_a_torn_frame_that_cannot_be_cut_off_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OpenFile(tmp_path, "iex", AT_14)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:-3]))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.write(b"{}\n")
    assert not file.torn
    monkeypatch.setattr(os, "ftruncate", unsupported)
    with pytest.raises(PermissionError):
        file.write(b"{}\n")
    assert file.torn
