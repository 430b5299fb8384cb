"""An algorithm as a separate program on a real SDK.

It reads commands from stdin and prints events to stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from tests.sdk.environments import Driver
from tests.sdk.stand import SECONDS, wait_for

Event = dict[str, Any]
# The developer's own Alpaca account and the settings of this Python must not reach an SDK.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("APCA_", "PYTHON"))}
START_SECONDS = 60  # the first import of a fresh environment compiles it


class Algorithm:
    """A running driver; `events` holds its events in order."""

    def __init__(self, driver: Driver, variables: Mapping[str, str] | None = None) -> None:
        self.events: list[Event] = []
        self._process = subprocess.Popen(
            driver.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tempfile.gettempdir(),
            env={**_ENVIRONMENT, **driver.variables, **(variables or {})},
        )
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Algorithm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def ready(self) -> None:
        """Wait until it has imported its SDK."""
        self.wait(lambda event: event["event"] == "ready", "the driver is ready", START_SECONDS)

    def execute(self, **command: Any) -> None:
        """Send a command and wait until it is done."""
        done = self.count("done")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        wait_for(lambda: self.count("done") > done or self.over, lambda: f"{command} is not done; {self.story()}")
        assert self.count("done") > done, f"{command} killed the driver; {self.story()}"

    def open(self, stream: str, url: str, topics: Mapping[str, Sequence[str]], **more: Any) -> None:
        """Open a stream that subscribes to these topics; its `kind` defaults to its name."""
        defaults = {"kind": stream, "key": "algo", "secret": "algo-secret"}
        self.execute(do="open", stream=stream, url=url, topics=topics, **(defaults | more))

    def subscribe(self, stream: str, channel: str, *symbols: str) -> None:
        self.execute(do="subscribe", stream=stream, channel=channel, symbols=symbols)

    def unsubscribe(self, stream: str, channel: str, *symbols: str) -> None:
        self.execute(do="unsubscribe", stream=stream, channel=channel, symbols=symbols)

    def count(self, kind: str, **values: Any) -> int:
        """The number of events of a kind so far, with these values."""
        return sum(event["event"] == kind and _matches(event, values) for event in self.events)

    def messages(self, stream: str, channel: str | None = None) -> list[Event]:
        """The events of the messages received on a stream, or on one of its channels."""
        return [
            event
            for event in self.events
            if event["event"] == "message"
            and event["stream"] == stream
            and (channel is None or event["channel"] == channel)
        ]

    def wait(self, matches: Callable[[Event], bool], what: str, seconds: float = SECONDS) -> Event:
        """Wait for the first event that matches, and return it.

        `what` names it in the failure.
        """

        def first() -> Event | None:
            assert not self.over or any(matches(event) for event in self.events), f"it has ended; {self.story()}"
            return next((event for event in self.events if matches(event)), None)

        event: Event = wait_for(first, lambda: f"missing event: {what}; {self.story()}", seconds)
        return event

    @property
    def over(self) -> bool:
        """Whether the program has ended."""
        return self._process.poll() is not None and not any(reader.is_alive() for reader in self._readers)

    @property
    def pid(self) -> int:
        return self._process.pid

    def story(self) -> str:
        """Its last events and errors, for the message of a failed test."""
        last = "\n".join(json.dumps(event)[:400] for event in self.events[-12:])
        return f"its last events:\n{last}\n{''.join(self._errors[-12:])}"

    def crash(self) -> None:
        """Kill it."""
        self._process.kill()

    def close(self) -> None:
        """End it by closing its stdin; kill it if it does not end in time."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join(SECONDS)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self.events.append(json.loads(line))
            except ValueError:
                self._errors.append(line)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)


def _matches(event: Event, values: Mapping[str, Any]) -> bool:
    return all(event.get(name) == value for name, value in values.items())
