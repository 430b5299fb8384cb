"""Fixtures with a client that shares no code with the simulator.

The client is the `websockets` library with `json` and `msgpack`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgpack
import pytest
from websockets.sync.client import ClientConnection, connect

from proxy.simulator import Simulator
from tests.ports import free_port

SECONDS = 5
MSGPACK = {"Content-Type": "application/msgpack"}


class Client:
    """Client side of a connection to the simulator."""

    def __init__(self, ws: ClientConnection, packed: bool) -> None:
        self.ws = ws
        self.packed = packed

    def send_json(self, request: Any) -> None:
        self.ws.send(msgpack.packb(request) if self.packed else json.dumps(request))

    def receive(self, seconds: float = SECONDS) -> Any:
        frame = self.ws.recv(timeout=seconds)
        if self.packed:
            assert isinstance(frame, bytes)
            return msgpack.unpackb(frame)
        return json.loads(frame)

    def ask(self, request: Any) -> Any:
        self.send_json(request)
        return self.receive()

    def log_in(self) -> Client:
        assert self.receive() == [{"T": "success", "msg": "connected"}]
        assert self.ask({"action": "auth", "key": "key", "secret": "secret"}) == [
            {"T": "success", "msg": "authenticated"}
        ]
        return self

    def subscribe(self, **channels: list[str]) -> Any:
        return self.ask({"action": "subscribe", **channels})


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(port=free_port()) as simulator:
        yield simulator


@pytest.fixture
def dial() -> Iterator[Callable[..., Client]]:
    """Return a function that connects; its connections are closed at the end.

    Use: `dial(simulator, "/v2/iex", headers={…})`.
    """
    with ExitStack() as stack:

        def dial(simulator: Simulator, path: str, headers: dict[str, str] | None = None, **options: Any) -> Client:
            headers = headers or {}
            options = {"close_timeout": 0.2, "compression": None} | options
            ws = stack.enter_context(connect(simulator.url + path, additional_headers=headers, **options))
            return Client(ws, packed=headers == MSGPACK)

        yield dial


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Return a function that waits for a condition.

    Use: `wait_for(lambda: simulator.opened("iex") == 2)`.
    """

    def wait_for(predicate: Callable[[], object], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not predicate():
            assert time.monotonic() < deadline, "condition not met in time"
            time.sleep(0.005)

    return wait_for
