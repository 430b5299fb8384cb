"""Recordings for tests: files made of given messages, and what a client of a replay gets of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from proxy.recording import lines
from proxy.recording.files import HOUR, OpenFile, RecordedFile
from proxy.recording.lines import LINES
from proxy.recording.replay import Pace, Replay
from proxy.recording.timeline import scan, windows
from proxy.simulator import Simulator

SECOND = 10**9
MORNING = int(datetime(2026, 11, 27, 14, 30, tzinfo=timezone.utc).timestamp()) * SECOND  # 09:30 in New York, a Friday

Arrival = tuple[int, Sequence[bytes]]
"""A time and the bodies that arrived then."""


def body(kind: str, symbol: str, **more: Any) -> bytes:
    return json.dumps({"T": kind, "S": symbol, **more}).encode()


def record(folder: Path, feed: str, arrivals: Iterable[Arrival], *, per_frame: int = 10) -> Path:
    """Write a sealed file of these arrivals; return its path."""
    folder.mkdir(exist_ok=True)
    arrivals = [*arrivals]
    at = arrivals[0][0]
    file = OpenFile(folder, feed, at - at % HOUR)
    text = lines.own(lines.START, at, format=lines.FORMAT, feed=feed, topics={})
    for number in range(0, len(arrivals), per_frame):
        for when, bodies in arrivals[number : number + per_frame]:
            text += lines.stamped(LINES.join(bodies), when)
        file.write(text[1:] + b"\n")
        text = b""
    file.seal()
    return file.path


def text_of(path: Path) -> bytes:
    """The lines of all whole frames."""
    return b"".join(RecordedFile(path).frames())


def messages_of(path: Path) -> list[bytes]:
    """The bodies of the recorded messages."""
    return [line.body for line in lines.read(text_of(path)) if line.is_message]


def own_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are the recorder's own, after the first."""
    found = [json.loads(line) for line in text_of(path).splitlines() if line.startswith(b'{"recording"')]
    assert found[0]["recording"] == "start"
    return found[1:]


def bodies(frames: Iterable[bytes]) -> list[bytes]:
    """The bytes of each data message in these JSON frames."""
    found = [bytes(raw) for frame in frames for raw in msgspec.json.decode(frame, type=list[msgspec.Raw])]
    return [raw for raw in found if msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get("T") not in CONTROL]


CONTROL = [msgspec.Raw(b'"success"'), msgspec.Raw(b'"subscription"'), msgspec.Raw(b'"error"')]


def replaying(paths: Iterable[Path], pace: Pace | None = None, symbols: Sequence[str] = ()) -> Simulator:
    """A simulator that replays these files, by default as fast as its clients read."""
    recordings = [scan(path) for path in paths]
    source = Replay(recordings, windows(recordings), pace or Pace(speed=None), frozenset(symbols))
    return Simulator(source=source)
