"""A reader of order updates as server-sent events, on a bare socket.

It decodes HTTP and chunks strictly, and shares no code with the proxy.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

from tests.harness import SECONDS

PATH = "/v2/events/trades"


class Cut(Exception):
    """The connection has ended without the last chunk."""


def keys(key: str, secret: str | None = None) -> dict[str, str]:
    """Alpaca's headers; the secret defaults to the key."""
    return {"APCA-API-KEY-ID": key, "APCA-API-SECRET-KEY": key if secret is None else secret}


class EventReader:
    """One request and its response.

    `events` has every event so far, decoded, `lines` every line as it came.
    """

    def __init__(
        self,
        address: tuple[str, int],
        target: str = PATH,
        headers: dict[str, str] | None = None,
        *,
        request: str = "GET {target} HTTP/1.1",
        buffer: int = 0,
        wrap: Any = lambda sock: sock,
    ) -> None:
        sock = socket.socket()
        sock.settimeout(SECONDS)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            sock.connect(address)
            self.socket = wrap(sock)
        except OSError:
            sock.close()
            raise
        self.events: list[dict[str, Any]] = []
        self.lines: list[bytes] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self._data = b""
        self._body = b""
        lines = [request.format(target=target), "Host: localhost", *(f"{k}: {v}" for k, v in (headers or {}).items())]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def __enter__(self) -> EventReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def begin(self) -> EventReader:
        """Read the head of the response."""
        first, *rest = self._until(b"\r\n\r\n").decode().split("\r\n")[:-2]
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        self.status = int(status)
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        return self

    def has_begun(self) -> bool:
        """Whether anything has arrived; does not wait."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def opened(self) -> EventReader:
        """Read the head, which must be that of a stream."""
        self.begin()
        assert self.status == 200, (self.status, self.error())
        assert self.headers["content-type"] == "text/event-stream"
        assert self.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in self.headers
        return self

    def error(self) -> Any:
        """The body of an error, decoded."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self._take(int(self.headers["content-length"])))

    def refused(self) -> tuple[int, int]:
        """The status of a response that is no stream, and the code in its body."""
        self.begin()
        return self.status, self.error()["code"]

    def next(self, seconds: float = SECONDS) -> dict[str, Any]:
        """The next event. Raises Cut, or EOFError at the end of the response."""
        before = len(self.events)
        deadline = time.monotonic() + seconds
        while len(self.events) == before:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            self.read_line()
        return self.events[-1]

    def gather(self, count: int) -> list[dict[str, Any]]:
        """All events so far, as soon as there are so many."""
        while len(self.events) < count:
            self.next()
        return self.events

    def read_line(self) -> bytes:
        """The next line of the body; an event is decoded as well."""
        while b"\n" not in self._body:
            size = int(self._until(b"\r\n"), 16)
            data = self._take(size)
            assert self._take(2) == b"\r\n"
            if not size:
                assert not self._body, "the response ends within a line"
                raise EOFError
            self._body += data
        line, _, self._body = self._body.partition(b"\n")
        self.lines.append(line)
        assert not line or line.startswith((b"data: ", b":")), line
        if line.startswith(b"data: "):
            self.events.append(json.loads(line[6:]))
        return line

    def rest(self) -> str:
        """Read everything: "cut" or "ended"."""
        try:
            while True:
                self.read_line()
        except EOFError:
            return "ended"
        except (Cut, ConnectionError):
            return "cut"

    def _until(self, end: bytes) -> bytes:
        while end not in self._data:
            self._receive()
        head, _, self._data = self._data.partition(end)
        return head + end

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            self._receive()
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise Cut
        self._data += data
