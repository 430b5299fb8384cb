"""`replay`: serve recordings as a stand-in for Alpaca, to their end."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, tzinfo
from pathlib import Path

import gevent

from proxy import simulator
from proxy.cli.overview import size, span
from proxy.cli.terminal import Exit, fail, plain, print_err, warn
from proxy.recording.files import NotARecording
from proxy.recording.replay import Pace, Replay
from proxy.recording.timeline import Recording, Windows, scan, windows
from proxy.simulator.exchange import SourceError
from proxy.transport.errors import StartError

READY = """\
REPLAY of {begin} to {end}: {messages:,} messages of {feeds}
At {url}, key `key`, secret `secret`. In the proxy's configuration:
  accounts: {{replay: {{key: key, secret: secret, data_url: "{url}", trading_url: "{url}"}}}}
It begins {start}. Ctrl-C ends it."""

REDRAW_SECONDS = 0.2  # on a terminal
LINE_SECONDS = 10.0  # elsewhere
LARGE_BYTES = 64 * 1024 * 1024  # files of this size take a moment to read through


def run(options: argparse.Namespace) -> Exit:
    try:
        recordings = read(options.files)
    except (OSError, NotARecording) as error:
        return fail(str(error))
    within = windows(recordings, options.begin, options.end, options.zone)
    if not within:
        return fail("nothing was recorded between --from and --to")
    replay = Replay(recordings, within, Pace(options.speed, options.shift, options.loop, options.wait), options.symbols)
    status = Status(replay, within, options.speed, options.zone)

    def ready(running: simulator.Simulator) -> None:
        start = "with the first subscription" if options.wait == 1 else f"when {options.wait} sessions have subscribed"
        begin, end = (moment(at, options.zone) for at in (within[0][0], within[-1][1]))
        print(READY.format(url=running.url, start=start, begin=begin, end=end, **summary(recordings)), flush=True)
        status.start()

    failure = None
    try:
        simulator.run(port=options.port, source=replay, ready=ready)
    except SourceError as error:
        failure = str(error)
    except OSError as error:
        raise StartError.cannot_listen(f"port {options.port}", error, "name another with --port") from error
    finally:
        status.stop()
    return Exit.GOOD if failure is None else fail(failure)


def read(paths: Sequence[Path]) -> list[Recording]:
    """Read files through, with a remark about a torn one.

    Raises OSError and NotARecording, with a sentence; also for a file that is named twice.
    """
    found = [path.stat() for path in paths]
    identities = [(each.st_dev, each.st_ino) for each in found]
    for number, path in enumerate(paths):
        if identities[number] in identities[:number]:
            raise NotARecording(f"{path} is named twice")
    total = sum(each.st_size for each in found)
    if total > LARGE_BYTES:
        print_err(f"reading {size(total)}")
    recordings = []
    for path in paths:
        try:
            recordings.append(scan(path, _yield))
        except NotARecording as error:
            raise NotARecording(f"{path} {error}") from error
        if recordings[-1].torn:
            warn(f"{path} is torn: it is replayed up to its last whole part")
    return recordings


def _yield() -> None:
    gevent.sleep(0)  # so that Ctrl-C ends it


def summary(recordings: Sequence[Recording]) -> dict[str, object]:
    """Return the number of messages and the names of the feeds."""
    feeds = " ".join(dict.fromkeys(recording.feed for recording in recordings))
    return {"messages": sum(recording.messages for recording in recordings), "feeds": feeds}


def moment(at: int, zone: tzinfo) -> str:
    """Format nanoseconds since 1970 as a date and time with its zone."""
    return f"{datetime.fromtimestamp(at // 10**9, zone):%Y-%m-%d %H:%M:%S %Z}"


class Status:
    """The state of a replay: on a terminal in one line that is drawn again and again, elsewhere a line at times."""

    def __init__(
        self,
        replay: Replay,
        within: Windows,
        speed: float | None,
        zone: tzinfo,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replay = replay
        self._length = sum(end - begin for begin, end in within)
        self._speed = speed
        self._zone = zone
        self._clock = clock
        self._terminal = sys.stdout.isatty()
        self._sent, self._read_at, self._rate = 0, clock(), 0.0
        self._began: float | None = None
        self._greenlet: gevent.Greenlet | None = None

    def __repr__(self) -> str:
        return f"<Status of {self._replay!r}>"

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Print the last state."""
        if self._greenlet is not None:
            self._greenlet.kill()
            if self._replay.begun:
                self._print()
            if self._terminal:
                print()

    def _run(self) -> None:
        while True:
            gevent.sleep(REDRAW_SECONDS if self._terminal else LINE_SECONDS)
            if self._replay.begun:
                self._print()

    def _print(self) -> None:
        text = plain(self.text())
        print(f"\r\x1b[2K{text}" if self._terminal else text, end="" if self._terminal else "\n", flush=True)

    def text(self) -> str:
        """Return the time in the recording, the messages a second, and how long the rest takes."""
        now, replay = self._clock(), self._replay
        self._began = now if self._began is None else self._began
        if now - self._read_at >= 1:
            self._rate = (replay.sent - self._sent) / (now - self._read_at)
            self._sent, self._read_at = replay.sent, now
        parts = [moment(replay.at, self._zone), f"{replay.sent:,} messages", f"{self._rate:,.0f}/s"]
        if replay.ended:
            return "  ".join([*parts[:2], "at its end"])
        done = self._length - replay.left
        if self._speed is not None:
            parts.append(f"{span(replay.left / 1e9 / self._speed)} to go")
        elif done > 0:
            parts.append(f"{span((now - self._began) * replay.left / done)} to go")
        return "  ".join(parts)
