"""A server in the place of Alpaca, whose answers are functions of the test.

It has the log-in of both dialects and both codecs, answers pings, and keeps what it was asked. Each request after the
log-in is given to `answer(peer, request)`, which sends what it likes; by default it is granted. Its REST API knows no
orders.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gevent
import msgpack
from gevent.event import Event
from gevent.server import StreamServer

from tests.attacks.rogue import Connection, frame
from tests.harness import BINARY, CLOSE, PING, PONG, TEXT, wait_for
from tests.ports import free_port

CHANNELS = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds")
CHANNEL_OF_KIND = {"t": "trades", "q": "quotes", "b": "bars"}

Request = dict[str, Any]
Held = dict[str, set[str]]


class Peer(Connection):
    """One connection of the proxy.

    `number` counts the connections to its path from 1. `held` are the symbols of each channel that were granted or, on
    `/stream`, the streams under `streams`; channels without a symbol are absent.
    """

    def __init__(self, sock: Any, close_seconds: float) -> None:
        super().__init__(sock)
        self.number = 0
        self.login: Request = {}
        self.live = False
        self.ended = False
        self.held: Held = {}
        self.closing = Event()  # the proxy's close frame has arrived
        self._close_seconds = close_seconds

    def __repr__(self) -> str:
        return f"<Peer {self.path} {self.number}>"

    @property
    def trading(self) -> bool:
        return self.path.startswith("/stream")

    def log_in(self) -> None:
        """Accept the log-in, whatever its credentials."""
        if self.trading:
            self.login = self.receive()
            self.send_json({"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}})
        else:
            self.send_json([{"T": "success", "msg": "connected"}])
            self.login = self.receive()
            self.send_json([{"T": "success", "msg": "authenticated"}])
        self.live = True

    def receive(self) -> Any:
        """Return the next message of the proxy; pings are answered, a close frame after `close_seconds`."""
        while True:
            first, size = self._take(2)
            size &= 0x7F
            if size > 125:
                size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
            mask, masked = self._take(4), self._take(size)
            payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))
            opcode = first & 0x0F
            if opcode in (TEXT, BINARY):
                return msgpack.unpackb(payload) if self.codec == "msgpack" else json.loads(payload)
            if opcode == PING:
                self.socket.sendall(frame(PONG, payload))
            elif opcode == CLOSE:
                self.closing.set()
                gevent.sleep(self._close_seconds)
                self.socket.sendall(frame(CLOSE, payload))
                raise ConnectionError("the proxy has closed the connection")

    # What an answer can do

    def grant(self, request: Request, *, without: Collection[str] = ()) -> None:
        """Do as requested but for the symbols or streams in `without`, and send the state."""
        self.apply(request, without=without)
        self.send_json(self.state())

    def apply(self, request: Request, *, without: Collection[str] = ()) -> None:
        """Do as requested, and send nothing."""
        if request["action"] == "listen":
            self.held = {"streams": set(request["data"]["streams"]).difference(without)}
        for channel, symbols in request.items():
            if not isinstance(symbols, list):
                continue
            held = self.held.setdefault(channel, set())
            if request["action"] == "subscribe":
                held.update(set(symbols).difference(without))
            else:
                held.difference_update(set(symbols).difference(without))
        self.held = {channel: symbols for channel, symbols in self.held.items() if symbols}

    def state(self) -> Any:
        """The acknowledgement of everything that is granted; symbols in no order, as Alpaca's."""
        if self.trading:
            return {"stream": "listening", "data": {"streams": [*self.held.get("streams", ())]}}
        channels = {channel: [*self.held.get(channel, ())] for channel in (*CHANNELS, *self.held)}
        followers = {"corrections": channels["trades"], "cancelErrors": channels["trades"]}
        return [{"T": "subscription", **channels, **followers}]

    def error(self, code: int, msg: str = "") -> Any:
        """An error; on `/stream` there are no codes."""
        if self.trading:
            return {"action": "error", "data": {"error_message": msg or f"error {code}"}}
        return [{"T": "error", "code": code, "msg": msg or f"error {code}"}]

    def refuse(self, code: int, msg: str = "") -> None:
        self.send_json(self.error(code, msg))

    def frame_of(self, message: Any) -> bytes:
        """The bytes of a message's frame, for a test that sends them in parts."""
        packed = self.codec == "msgpack"
        payload = msgpack.packb(message) if packed else json.dumps(message).encode()
        return frame(BINARY if packed or self.trading else TEXT, payload)

    def publish(self, *messages: dict[str, Any]) -> None:
        """Send those of the messages that are subscribed to, in one frame; on `/stream`, each in its own."""
        if self.trading:
            for message in messages:
                if message["stream"] in self.held.get("streams", ()):
                    self.send_json(message)
            return
        wanted = [message for message in messages if self.wants(message)]
        if wanted:
            self.send_json(wanted)

    def wants(self, message: dict[str, Any]) -> bool:
        held = self.held.get(CHANNEL_OF_KIND[message["T"]], set())
        return message["S"] in held or "*" in held

    def end(self) -> None:
        """Close the connection with a close frame."""
        self.live, self.ended = False, True
        with suppress(OSError):
            self.socket.sendall(frame(CLOSE, struct.pack("!H", 1001)))
            self.socket.shutdown(2)


Answer = Callable[[Peer, Request], None]


@dataclass(frozen=True)
class Asked:
    """A request of the proxy; `at` in seconds of time.monotonic()."""

    peer: Peer
    request: Request
    at: float


class ScriptedAlpaca:
    """The server. `answer` and `log_in` may be replaced while it runs."""

    def __init__(self, answer: Answer = Peer.grant, *, close_seconds: float = 0.0) -> None:
        self.answer = answer
        self.log_in: Callable[[Peer], None] = Peer.log_in
        self.peers: list[Peer] = []
        self.asked: list[Asked] = []
        self._close_seconds = close_seconds
        self._port = free_port()
        self._serving = 0  # connections
        self._server: StreamServer | None = None

    def __enter__(self) -> ScriptedAlpaca:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, at the same port each time."""
        self._server = StreamServer(("127.0.0.1", self._port), self._serve)
        self._server.start()

    def stop(self) -> None:
        """Stop listening, and end all connections."""
        if self._server is not None:
            self._server.stop(timeout=1)
            self._server = None
        for peer in self.peers:
            peer.end()
        wait_for(lambda: not self._serving, "connections did not end")

    def peer(self, path: str) -> Peer:
        """The connection to a path that is logged in; wait for it."""
        wait_for(lambda: self.live(path), f"no connection to {path}")
        [peer] = self.live(path)
        return peer

    def live(self, path: str) -> list[Peer]:
        """The connections to a path that are logged in."""
        return [peer for peer in self.peers if peer.path == path and peer.live]

    def opened(self, path: str) -> int:
        """How many connections to a path there have been."""
        return sum(peer.path == path for peer in self.peers)

    def held(self, path: str) -> Held:
        """The subscription granted to the present connections to a path; empty without one."""
        return {channel: symbols for peer in self.live(path) for channel, symbols in peer.held.items()}

    def requests(self, path: str) -> list[Request]:
        """The requests at a path, without the log-ins."""
        return [asked.request for asked in self.asked if asked.peer.path == path]

    def times(self, path: str, condition: Callable[[Request], object]) -> list[float]:
        """The times of the requests at a path that fulfil the condition."""
        return [asked.at for asked in self.asked if asked.peer.path == path and condition(asked.request)]

    def publish(self, path: str, messages: Iterable[dict[str, Any]]) -> None:
        """Send messages to the connections that are subscribed to them."""
        for peer in self.live(path):
            peer.publish(*messages)

    def _serve(self, sock: Any, _: object) -> None:
        peer = Peer(sock, self._close_seconds)
        self._serving += 1
        with suppress(OSError):
            peer.read_request()
            if not peer.upgrade:  # the REST API of an account without orders
                sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n[]")
                sock.close()
                self._serving -= 1
                return
            peer.number = self.opened(peer.path) + 1
            self.peers.append(peer)
            peer.accept()
            self.log_in(peer)
            while not peer.ended:
                request = peer.receive()
                self.asked.append(Asked(peer, request, time.monotonic()))
                self.answer(peer, request)
        peer.live, peer.ended = False, True
        self._serving -= 1
