"""The files of a recording: one for each feed and hour, of whole Zstandard frames.

    iex-2026-11-28T14Z.jsonl.zst          sealed: nothing is added any more
    iex-2026-11-28T14Z.2.jsonl.zst        the second one of that hour, after a restart
    iex-2026-11-28T15Z.jsonl.zst.part     being written, or left by a process that was killed
    iex-2026-11-28T14Z@10.0.0.1_8767.2.jsonl.zst    in a cluster: the second one of this node in that hour

Each write is one frame with a checksum, so a file that was torn at any byte is readable up to its last whole frame.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from proxy.recording import lines
from proxy.recording.zstd import ZstdDecompressor, ZstdError, frame

HOUR = 3600 * 10**9  # nanoseconds
ENDING = ".jsonl.zst"
UNSEALED = ".part"
READ_BYTES = 256 * 1024
ENTRIES = 50  # of a folder, between two pauses
MAX_FRAME = 64 * 1024 * 1024  # of lines; the recorder's are far smaller

_NAME = re.compile(
    r"[a-z0-9_-]+-(\d{4}-\d\d-\d\dT\d\d)Z(?:@([A-Za-z0-9._-]+_\d{1,5}))?(?:\.(\d{1,6}))?\.jsonl\.zst(\.part)?"
)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_MAX_HOST = 128  # characters


class NotARecording(Exception):
    """A file that cannot be replayed; the text is the end of a sentence about it."""


class Entry(NamedTuple):
    """A file in the folder, by the start of its hour in nanoseconds since 1970; `node` is empty without a cluster."""

    hour: int
    number: int
    path: Path
    size: int
    node: str = ""

    @property
    def unsealed(self) -> bool:
        return self.path.name.endswith(UNSEALED)


def node_name(url: str) -> str:
    """Return the host and port of a node's URL as a part of file names: `10.0.0.1_8767`."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    return f"{_UNSAFE.sub('-', parts.hostname or '')[:_MAX_HOST]}_{port}"


def entries(folder: Path, pause: Callable[[], None] | None = None) -> list[Entry]:
    """Return the recorded files in a folder, the oldest first. Raises OSError.

    Links and folders are left out, and names whose date does not exist. `pause` is called after each ENTRIES of them.
    """
    found: list[tuple[int, int, str, Entry]] = []
    with os.scandir(folder) as scanned:
        for count, entry in enumerate(scanned, 1):
            if (match := _NAME.fullmatch(entry.name)) is not None and entry.is_file(follow_symlinks=False):
                # The first: a date that does not exist. The second: a file that was sealed or deleted a moment ago.
                with suppress(ValueError, FileNotFoundError):
                    hour, node, number = _nanoseconds(match[1]), match[2] or "", int(match[3] or 1)
                    size = entry.stat(follow_symlinks=False).st_size
                    found.append((hour, number, entry.name, Entry(hour, number, Path(entry.path), size, node)))
            if pause is not None and count % ENTRIES == 0:
                pause()
    return [one[-1] for one in sorted(found)]


def _nanoseconds(hour: str) -> int:
    """Return the start of an hour, as in a file's name. Raises ValueError."""
    return int(datetime.fromisoformat(f"{hour}:00+00:00").timestamp()) * 10**9


class OpenFile:
    """A file that is being written. Every method may raise OSError.

    `node` is in its name: the `node_name` of the node that writes it. `torn`: it ends with a part of a frame, after
    which no other could be read.
    """

    def __init__(self, folder: Path, feed: str, hour: int, node: str = "") -> None:
        self.hour = hour
        self.size = 0
        self.torn = False
        of_node = f"@{node}" if node else ""
        self._stem = folder / f"{feed}-{time.strftime('%Y-%m-%dT%HZ', time.gmtime(hour // 10**9))}{of_node}"
        self._number = 0
        while True:
            self._take_next_number()
            self._part = self.path.with_name(self.path.name + UNSEALED)
            if self.path.exists():
                continue
            try:
                self._file = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            except FileExistsError:
                continue
            return

    def __repr__(self) -> str:
        return f"<OpenFile {self._part.name} {self.size} bytes>"

    def _take_next_number(self) -> None:
        self._number += 1
        number = f".{self._number}" if self._number > 1 else ""
        self.path = self._stem.with_name(self._stem.name + number + ENDING)

    def write(self, data: bytes) -> int:
        """Write lines as one frame, whole or not at all; return its size."""
        if os.fstat(self._file).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._part))
        whole = frame(data)
        try:
            if os.write(self._file, whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._part))
        except OSError:
            self.torn = True
            os.ftruncate(self._file, self.size)
            self.torn = False
            raise
        self.size += len(whole)
        return len(whole)

    def seal(self) -> None:
        """Close the file and give it its name; an empty one is deleted."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)
        while self.size:
            try:
                os.link(self._part, self.path)
                break
            except FileExistsError:  # another recorder has sealed one meanwhile
                self._take_next_number()
            except OSError:  # a file system without hard links
                while self.path.exists():
                    self._take_next_number()
                self._part.rename(self.path)
                return
        self._part.unlink()

    def abandon(self) -> None:
        """Close the file as it is; an empty one is deleted."""
        try:
            if not self.size and os.fstat(self._file).st_nlink:
                self._part.unlink()
        finally:
            os.close(self._file)


class RecordedFile:
    """A file that is read. `torn` is true once `frames` has met an end that is no whole frame."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = False

    def __repr__(self) -> str:
        return f"<RecordedFile {self.path}>"

    def frames(self) -> Iterator[bytes]:
        """Yield the lines of each whole frame. Raises OSError, and NotARecording if the first one is none."""
        decompressor, parts, size, first = ZstdDecompressor(), list[bytes](), 0, True
        with self.path.open("rb") as file:
            while data := file.read(READ_BYTES):
                while data:
                    try:
                        parts.append(decompressor.decompress(data, MAX_FRAME))
                    except ZstdError:
                        return self._end(first)
                    size += len(parts[-1])
                    if not decompressor.eof:
                        if size >= MAX_FRAME:
                            return self._end(first)
                        break
                    whole, data = b"".join(parts), decompressor.unused_data
                    if first and lines.first_line(whole) is None:
                        raise NotARecording("is no recording of this version")
                    yield whole
                    decompressor, parts, size, first = ZstdDecompressor(), [], 0, False
        if parts or first:
            self._end(first)

    def _end(self, first: bool) -> None:
        if first:
            raise NotARecording("is no recording, or has no whole frame")
        self.torn = True
