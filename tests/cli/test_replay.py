"""The verb `replay` as a process, and its status."""

from __future__ import annotations

import os
import pty
import re
import signal
import time
from collections.abc import Callable
from datetime import timezone
from pathlib import Path

import gevent
import pytest

from proxy.cli import replay
from proxy.cli.replay import Status
from proxy.recording.replay import Pace, Replay
from proxy.recording.timeline import scan, windows
from tests.cli.conftest import Call
from tests.harness import CONNECTED, Process, dial, wait_for
from tests.recording.recordings import MORNING, SECOND, body, record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Twenty trades, one a second."""
    return record(tmp_path, "iex", [(MORNING + n * SECOND, [body("t", "AAPL", i=n)]) for n in range(20)])


def address(process: Process) -> tuple[str, int]:
    wait_for(lambda: "Ctrl-C ends it." in process.text or process.popen.poll() is not None, "no address")
    return "127.0.0.1", int(re.findall(r"ws://127.0.0.1:(\d+), key", process.text)[0])


def test_a_replay_says_what_it_is_serves_to_its_end_and_exits_with_0(path: Path, tmp_path: Path) -> None:
    with Process("replay", path.name, "--port", "0", "--speed", "max", folder=tmp_path) as process:
        client = dial(address(process))
        port = address(process)[1]
        assert process.lines == [
            "REPLAY of 2026-11-27 14:30:00 UTC to 2026-11-27 14:30:19 UTC: 20 messages of iex",
            f"At ws://127.0.0.1:{port}, key `key`, secret `secret`. In the proxy's configuration:",
            f'  accounts: {{replay: {{key: key, secret: secret, data_url: "ws://127.0.0.1:{port}", '
            f'trading_url: "ws://127.0.0.1:{port}"}}}}',
            "It begins with the first subscription. Ctrl-C ends it.",
        ]
        assert client.receive() == CONNECTED
        client.log_in("key", "secret").subscribe(trades=["AAPL"])
        assert client.closed() == (1000, "the end")
        assert [message["i"] for message in client.data] == [*range(20)]
        assert process.end() == 0
        assert process.lines[-1] == "2026-11-27 14:30:19 UTC  20 messages  at its end"


def test_ctrl_c_ends_a_replay(path: Path, tmp_path: Path) -> None:
    with Process("replay", path.name, "--port", "0", "--wait", "3", folder=tmp_path) as process:
        address(process)
        assert "It begins when 3 sessions have subscribed." in process.text
        process.popen.send_signal(signal.SIGINT)
        assert process.end() == 0


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    """Two times 3 MB, a second apart: the sockets' buffers and the queue hold them, neither holds all."""
    times = [MORNING + second * SECOND + n for second in (0, 1) for n in range(150)]
    arrivals = [(at, [body("t", "AAPL", pad="x" * 20_000)]) for at in times]
    path = record(tmp_path, "iex", arrivals)
    with Process("replay", path.name, "--port", "0", folder=tmp_path) as process:
        client = dial(address(process), max_queue=1)  # stops to read
        assert client.receive() == CONNECTED
        client.log_in("key", "secret").subscribe(trades=["*"])
        gevent.sleep(2.5)  # at its end: the rest waits in its queue
        assert process.popen.poll() is None
        process.popen.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.end() == 0
        assert time.monotonic() - began < 5
        assert "at its end" in process.lines[-1]


def test_a_torn_file_is_said(path: Path, tmp_path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])
    with Process("replay", path.name, "--port", "0", folder=tmp_path) as process:
        address(process)
        assert f"warning: {path.name} is torn: it is replayed up to its last whole part" in process.lines
        assert "10 messages of iex" in process.text


def test_what_is_no_recording_is_refused_with_one_sentence(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no recording")
    for verb in (("replay",), ("demo", "--replay")):
        found = call(*verb, file)
        assert (found.code, found.err) == (1, f"{file} is no recording, or has no whole frame\n")
    missing = call("replay", tmp_path / "none")
    assert missing.code == 1
    assert missing.err.count("\n") == 1
    assert str(tmp_path / "none") in missing.err


def test_a_span_without_messages_is_refused(call: Call, path: Path) -> None:
    found = call("replay", path, "--from", "20:00", "--to", "21:00")
    assert (found.code, found.err) == (1, "nothing was recorded between --from and --to\n")


def test_a_file_that_is_named_twice_is_refused(call: Call, path: Path) -> None:
    again = path.with_name("link")
    again.symlink_to(path)
    found = call("replay", path, again)
    assert (found.code, found.err) == (1, f"{again} is named twice\n")


@pytest.mark.parametrize("more", [(), ("--loop",)])
def test_symbols_that_were_not_recorded_are_an_error(path: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    with Process("replay", path.name, "--port", "0", "--symbols", "TYPO", *more, folder=tmp_path) as process:
        client = dial(address(process))
        assert client.receive() == CONNECTED
        client.log_in("key", "secret").subscribe(trades=["*"])
        assert client.closed()[0] == 1000
        assert process.end() == 1
        assert "no message of TYPO was recorded in the chosen span" in process.lines


def test_a_file_that_is_deleted_before_its_turn_is_an_error(path: Path, tmp_path: Path) -> None:
    with Process("replay", path.name, "--port", "0", folder=tmp_path) as process:
        client = dial(address(process))
        path.unlink()
        assert client.receive() == CONNECTED
        client.log_in("key", "secret").subscribe(trades=["*"])
        assert client.closed()[0] == 1000
        assert process.end() == 1
        assert f"[Errno 2] No such file or directory: '{path.name}'" in process.lines


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--speed", "fast"), "should be a number above 0, or max"),
        (("--speed", "0"), "should be a number above 0, or max"),
        (("--from", "half past nine"), "should be a time such as 09:30"),
        (("--zone", "New York"), 'unknown time zone "New York"; should be one such as America/New_York'),
        (("--wait", "0"), "should be a number from 1 to 10000"),
    ],
)
def test_an_option_that_cannot_be_used_is_a_usage_error(
    call: Call, path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    found = call("replay", path, *arguments)
    assert found.code == 2
    assert reason in found.err


def test_on_a_terminal_the_status_is_one_line_that_is_redrawn(path: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with Process("replay", path.name, "--port", "0", "--speed", "10", folder=tmp_path, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"Ctrl-C ends it." not in shown:
            shown += os.read(ours, 4096)
        client = dial(("127.0.0.1", int(re.findall(rb"ws://127.0.0.1:(\d+), key", shown)[0])))
        assert client.receive() == CONNECTED
        client.log_in("key", "secret").subscribe(trades=["AAPL"])
        shown = b""
        while b"at its end" not in shown:
            shown += os.read(ours, 4096)
        assert client.closed()[0] == 1000
        assert process.end() == 0
    os.close(ours)
    states = shown.split(b"\r\x1b[2K")
    assert len(states) > 5
    assert any(re.search(rb"2026-11-27 14:30:\d\d UTC  \d+ messages  \d+/s  \d s to go", state) for state in states)
    assert shown.strip(b"\r\n").count(b"\n") <= 1


@pytest.mark.parametrize(("speed", "left"), [(1.0, "9 s"), (3.0, "3 s"), (None, "0 s")])
def test_the_status_tells_how_long_the_rest_takes(path: Path, speed: float | None, left: str) -> None:
    recordings = [scan(path)]
    within = windows(recordings)
    now = [100.0]
    going = Replay(recordings, within, Pace(speed=speed))
    status = Status(going, within, speed, timezone.utc, lambda: now[0])
    going.begun, going.at, going.sent = True, MORNING + 10 * SECOND, 500
    status.text()
    now[0] += 2
    assert status.text() == f"2026-11-27 14:30:10 UTC  500 messages  250/s  {'1 s' if speed is None else left} to go"


def test_elsewhere_a_line_comes_every_ten_seconds() -> None:
    assert (replay.REDRAW_SECONDS, replay.LINE_SECONDS) == (0.2, 10.0)


@pytest.mark.slow
def test_the_demo_replays(path: Path, tmp_path: Path, wait_until: Callable[..., object]) -> None:
    with Process("demo", "--seconds", "2", "--replay", path.name, folder=tmp_path) as process:
        assert process.end() == 0
        assert "A replay of 20 messages" in process.text
        assert re.fullmatch(r"demo ok: momentum \d messages, meanrev \d messages, .*", process.lines[-1])
