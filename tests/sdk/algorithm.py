"""An algorithm as its user runs it: a program of its own on a real SDK, told what to do and heard by its output."""

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
# Neither the account of whoever runs the tests nor the settings of this Python are an SDK's business.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("APCA_", "PYTHON"))}
START_SECONDS = 60  # the first import of a fresh environment compiles it


class Algorithm:
    """A running driver. Its events are kept in `events`, in order."""

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
        """Waits until it has imported its SDK."""
        self.wait(lambda event: event["event"] == "ready", "the driver is ready", START_SECONDS)

    def tell(self, **command: Any) -> None:
        """Gives a command and waits until it is carried out."""
        done = self.count("done")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        wait_for(lambda: self.count("done") > done or self.over, lambda: f"{command} is not done; {self.story()}")
        assert self.count("done") > done, f"{command} killed the driver; {self.story()}"

    def open(self, stream: str, url: str, topics: Mapping[str, Sequence[str]], **more: Any) -> None:
        """Begins a stream that subscribes to these topics; its `kind` is its name unless it is given."""
        usual = {"kind": stream, "key": "algo", "secret": "algo-secret"}
        self.tell(do="open", stream=stream, url=url, topics=topics, **(usual | more))

    def subscribe(self, stream: str, channel: str, *symbols: str) -> None:
        self.tell(do="subscribe", stream=stream, channel=channel, symbols=symbols)

    def unsubscribe(self, stream: str, channel: str, *symbols: str) -> None:
        self.tell(do="unsubscribe", stream=stream, channel=channel, symbols=symbols)

    def count(self, kind: str, **like: Any) -> int:
        """How many events of a kind there were so far."""
        return sum(event["event"] == kind and _like(event, like) for event in self.events)

    def messages(self, stream: str, channel: str | None = None) -> list[Event]:
        """What has been heard on a stream."""
        return [
            event
            for event in self.events
            if event["event"] == "message"
            and event["stream"] == stream
            and (channel is None or event["channel"] == channel)
        ]

    def wait(self, matches: Callable[[Event], bool], what: str, seconds: float = SECONDS) -> Event:
        """The first event that matches."""

        def found() -> Event | None:
            assert not self.over or any(matches(event) for event in self.events), f"no more; {self.story()}"
            return next((event for event in self.events if matches(event)), None)

        event: Event = wait_for(found, lambda: f"not so: {what}; {self.story()}", seconds)
        return event

    @property
    def over(self) -> bool:
        """Whether the program has ended."""
        return self._process.poll() is not None and not any(reader.is_alive() for reader in self._readers)

    @property
    def pid(self) -> int:
        return self._process.pid

    def story(self) -> str:
        """The last that was heard of it, for a test that fails."""
        last = "\n".join(json.dumps(event)[:400] for event in self.events[-12:])
        return f"its last events:\n{last}\n{''.join(self._errors[-12:])}"

    def crash(self) -> None:
        """Ends it without a chance to say a word."""
        self._process.kill()

    def close(self) -> None:
        """Ends it."""
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


def _like(event: Event, like: Mapping[str, Any]) -> bool:
    return all(event.get(name) == value for name, value in like.items())
