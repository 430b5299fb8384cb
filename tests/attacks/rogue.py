"""A server that starts like Alpaca and then attacks the proxy."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
import msgpack
from gevent.event import Event
from gevent.server import StreamServer

from tests.harness import BINARY, TEXT, wait_for

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
FIN = 0x80

Attack = Callable[["Connection"], None]


class Connection:
    """One connection that the proxy has opened."""

    def __init__(self, sock: Any) -> None:
        self.socket = sock
        self.codec = "json"
        self.path = ""
        self.upgrade = False
        self._key = b""
        self._data = b""

    def read_request(self) -> None:
        while b"\r\n\r\n" not in self._data:
            self._more()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self.path = first.split()[1].decode()
        self.upgrade = b"upgrade" in headers
        self.codec = "msgpack" if headers.get(b"content-type") == b"application/msgpack" else "json"
        self._key = headers.get(b"sec-websocket-key", b"")

    def accept(self) -> None:
        proof = base64.b64encode(hashlib.sha1(self._key + GUID).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.socket.sendall(head + b"Sec-WebSocket-Accept: " + proof + b"\r\n\r\n")

    def log_in(self) -> None:
        """Answer the log-in and the first subscription."""
        if self.path.startswith("/stream"):
            self.receive()
            self.send_json({"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}})
            streams = self.receive()["data"]["streams"]
            self.send_json({"stream": "listening", "data": {"streams": streams}})
            return
        self.send_json([{"T": "success", "msg": "connected"}])
        self.receive()
        self.send_json([{"T": "success", "msg": "authenticated"}])
        request = self.receive()
        channels = {channel: symbols for channel, symbols in request.items() if isinstance(symbols, list)}
        self.send_json([{"T": "subscription", **channels}])

    def send_json(self, message: Any) -> None:
        """Send a message in the connection's codec."""
        packed = self.codec == "msgpack"
        self.send(msgpack.packb(message) if packed else json.dumps(message).encode())

    def send(self, payload: bytes) -> None:
        """Send one whole data frame."""
        text = self.codec == "json" and not self.path.startswith("/stream")
        self.socket.sendall(frame(TEXT if text else BINARY, payload))

    def receive(self) -> Any:
        """Return the next data message of the proxy."""
        while True:
            first, size = self._take(2)
            size &= 0x7F
            if size > 125:
                size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
            mask, payload = self._take(4), self._take(size)
            if first & 0x0F in (TEXT, BINARY):
                plain = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
                return msgpack.unpackb(plain) if self.codec == "msgpack" else json.loads(plain)

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            self._more()
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _more(self) -> None:
        more = self.socket.recv(1 << 16)
        if not more:
            raise ConnectionError("the proxy has closed the connection")
        self._data += more


class Rogue:
    """A server in the place of Alpaca, which attacks the proxy.

    It calls `attack(connection)` for each `strike` of the test. The attack takes place on a connection that has
    subscribed or, with `at_upgrade`, instead of an answer to the upgrade request.
    """

    def __init__(self, attack: Attack, *, at_upgrade: bool = False) -> None:
        self.lines: list[Connection] = []  # connections that wait for a strike
        self.strikes = 0
        self._attack = attack
        self._at_upgrade = at_upgrade
        self._go = Event()
        self._done = Event()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)

    def __enter__(self) -> Rogue:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(timeout=1)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._server.server_port}"

    def ready(self) -> None:
        """Wait for a connection that can be attacked."""
        wait_for(lambda: self.lines, "the proxy did not connect")

    def strike(self, seconds: float) -> bool:
        """Attack, and return whether the attack has ended within so many seconds."""
        self._done.clear()
        self._go.set()
        return bool(self._done.wait(seconds))

    def _serve(self, sock: Any, _: object) -> None:
        line = Connection(sock)
        with suppress(OSError, gevent.Timeout):
            line.read_request()
            if not line.upgrade:
                sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if not self._at_upgrade:
                line.accept()
                line.log_in()
            while True:
                self.lines.append(line)
                try:
                    self._go.wait()
                finally:
                    self.lines.remove(line)
                self._go.clear()
                self.strikes += 1
                try:
                    self._attack(line)
                finally:
                    self._done.set()
                if self._at_upgrade:
                    return


def frame(opcode: int, payload: bytes, *, first: int = FIN) -> bytes:
    """Encode a frame without a mask, as servers send them.

    `first` are the bits beside its opcode.
    """
    size = len(payload)
    if size < 126:
        head = bytes((first | opcode, size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", first | opcode, 126, size)
    else:
        head = struct.pack("!BBQ", first | opcode, 127, size)
    return head + payload
