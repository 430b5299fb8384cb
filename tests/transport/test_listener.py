"""The door, over raw sockets: what it answers to which request, whom it keeps out, and what it survives."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from wsproto.frame_protocol import FrameProtocol, Opcode

from proxy.observe.logs import Log
from proxy.transport import frames, listener
from proxy.transport import http_request as http
from proxy.transport.connection import ClientConnection
from proxy.transport.errors import ConnectionLost
from proxy.transport.listener import Environ, HttpResponse, Listener
from proxy.transport.upgrade import Handler

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5
HERE = "127.0.0.1"
UPGRADE = {
    "Host": "127.0.0.1:8765",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # to that key: the example in RFC 6455 §1.3

Wait = Callable[..., Any]
Serve = Callable[[ClientConnection, Environ], None]


def request(first: str = "GET /v2/iex HTTP/1.1", headers: dict[str, str | None] | None = None) -> bytes:
    """A request for a WebSocket, with some headers changed, or left out where None."""
    lines = [f"{name}: {value}" for name, value in (UPGRADE | (headers or {})).items() if value is not None]
    return "\r\n".join([first, *lines, "\r\n"]).encode("latin-1")


class Client:
    """A raw socket to the server, and wsproto's reader of what comes from there."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None, source: tuple[str, int] | None = None) -> None:
        self.sock: socket.socket = socket.create_connection((HERE, port), SECONDS, source_address=source)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname=HERE)
        self._frames = FrameProtocol(client=True, extensions=[])

    def send_json(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def send(self, payload: bytes) -> Client:
        return self.send_json(bytes(FrameProtocol(client=True, extensions=[]).send_data(payload)))

    def ping(self, payload: bytes = b"") -> Client:
        return self.send_json(bytes(FrameProtocol(client=True, extensions=[]).ping(payload)))

    def head(self) -> str:
        """The head of an answer, and nothing of what follows."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            assert byte, f"closed after {head!r}"
            head += byte
        return head.decode()

    def upgrade(self) -> Client:
        assert self.send_json(request()).head().startswith("HTTP/1.1 101 ")
        return self

    def receive(self) -> tuple[int, bytes]:
        """The next whole message or control frame."""
        payload = b""
        while True:
            for frame in self._frames.received_frames():
                if frame.opcode is Opcode.CLOSE:
                    return frame.opcode, struct.pack("!H", frame.payload[0])
                assert isinstance(frame.payload, bytes)
                payload += frame.payload
                if frame.message_finished:
                    return frame.opcode, payload
            data = self.sock.recv(65536)
            assert data, "closed"
            self._frames.receive_bytes(data)

    def unread(self, data: bytes) -> None:
        self._frames.receive_bytes(data)

    def rest(self) -> bytes:
        """Everything up to the end."""
        return b"".join(iter(lambda: self.sock.recv(65536), b""))

    def gone(self) -> bool:
        """Whether the server hangs up, with no word or with a TLS alert."""
        said = b""
        with contextlib.suppress(ConnectionError):
            while data := self.sock.recv(65536):
                said += data
        return said[:1] in (b"", b"\x15")

    def reset(self) -> None:
        """Ends the connection without good manners."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def echo(connection: ClientConnection, _: Environ) -> None:
    inbound = frames.Inbound(1 << 21)
    while data := connection.receive():
        for event in inbound.receive(data):
            if isinstance(event, frames.Message):
                connection.send(frames.encode(frames.BINARY, event.payload), SECONDS)
        gevent.sleep(0)


def refuse(environ: Environ) -> HttpResponse | None:
    if environ.get("HTTP_ORIGIN", "").endswith("evil.example"):
        return "403 Forbidden", "This origin is not listed."
    return None if environ["PATH_INFO"] == "/v2/iex" else ("404 Not Found", "No stream has this path.")


def answer(environ: Environ) -> HttpResponse:
    return "426 Upgrade Required", "This is a WebSocket stream."


@pytest.fixture
def open_door() -> Iterator[Callable[..., Listener]]:
    """Listeners: `open_door(serve=…)`."""
    with ExitStack() as stack:

        def open_door(
            serve: Serve = echo, answer: Callable[[Environ], HttpResponse] = answer, **options: Any
        ) -> Listener:
            opened = Listener((HERE, 0), serve=serve, refuse=refuse, answer=answer, log=Log("listener"), **options)
            opened.start()
            stack.callback(opened.stop)
            return opened

        yield open_door


@pytest.fixture
def door(open_door: Callable[..., Listener]) -> Listener:
    return open_door()


@pytest.fixture
def client(door: Listener) -> Iterator[Callable[..., Client]]:
    """Connections to the door, or to the one at another port."""
    with ExitStack() as stack:

        def client(port: int = 0, **options: Any) -> Client:
            opened = Client(port or door.server_port, **options)
            stack.callback(opened.sock.close)
            return opened

        yield client


@pytest.fixture(autouse=True)
def nothing_on_standard_error(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr().err == ""


# The handshake

ACCEPTED = {
    "as browsers ask": request(headers={"Connection": "keep-alive, Upgrade", "Origin": "http://localhost:3000"}),
    "in lower case": request()
    .lower()
    .replace(b"get /v2/iex http", b"GET /v2/iex HTTP")
    .replace(UPGRADE["Sec-WebSocket-Key"].lower().encode(), UPGRADE["Sec-WebSocket-Key"].encode()),
    "in upper case": request(headers={"Upgrade": "WEBSOCKET", "Connection": "UPGRADE"}),
    "with a query": request("GET /v2/iex?x=1 HTTP/1.1"),
    "with a body of nothing": request(headers={"Content-Length": "0"}),
    "with the SDKs' headers": request(
        headers={"Content-Type": "application/msgpack", "User-Agent": "x", "APCA-API-KEY-ID": "k"}
    ),
    "with compression": request(headers={"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}),
    "with a sub-protocol": request(headers={"Sec-WebSocket-Protocol": "chat, superchat"}),
    "with spaces": request(
        headers={"Sec-WebSocket-Key": f"  {UPGRADE['Sec-WebSocket-Key']}  ", "Upgrade": " websocket "}
    ),
    "a head of almost 16 KiB": request(headers={"X-Filler": "x" * 15_900}),
}

REST = b"POST /v2/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
UNVERSIONED = "WebSocket version 13 is needed."
NO_KEY = "Sec-WebSocket-Key is not the base64 of 16 bytes."
NO_UPGRADE = "The Connection header lacks Upgrade."
NO_GET = "A WebSocket is opened with GET and HTTP/1.1."
NO_BODY = "A WebSocket is opened without a body."
PLAIN = "This is a WebSocket stream."
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "no version": (request(headers={"Sec-WebSocket-Version": None}), 426, UNVERSIONED),
    "version 12": (request(headers={"Sec-WebSocket-Version": "12"}), 426, UNVERSIONED),
    "version 8": (request(headers={"Sec-WebSocket-Version": "8"}), 426, UNVERSIONED),
    "version 7": (request(headers={"Sec-WebSocket-Version": "7"}), 426, UNVERSIONED),
    "several versions": (request(headers={"Sec-WebSocket-Version": "13, 8"}), 426, UNVERSIONED),
    "no key": (request(headers={"Sec-WebSocket-Key": None}), 400, NO_KEY),
    "an empty key": (request(headers={"Sec-WebSocket-Key": ""}), 400, NO_KEY),
    "a short key": (request(headers={"Sec-WebSocket-Key": "c2hvcnQ="}), 400, NO_KEY),
    "a long key": (request(headers={"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZSE="}), 400, NO_KEY),
    "a key that is not base64": (request(headers={"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZ*=="}), 400, NO_KEY),
    "a key that is not ASCII": (request(headers={"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZé=="}), 400, NO_KEY),
    "two keys": (request(headers={"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}), 400, NO_KEY),
    "no Host": (request(headers={"Host": None}), 400, "The Host header is missing."),
    "no Connection": (request(headers={"Connection": None}), 400, NO_UPGRADE),
    "another Connection": (request(headers={"Connection": "not-upgrade"}), 400, NO_UPGRADE),
    "no Upgrade": (request(headers={"Upgrade": None}), 426, PLAIN),
    "another Upgrade": (request(headers={"Upgrade": "h2c"}), 426, PLAIN),
    "HTTP/1.0": (request("GET /v2/iex HTTP/1.0"), 400, NO_GET),
    "POST": (request("POST /v2/iex HTTP/1.1"), 400, NO_GET),
    "get": (request("get /v2/iex HTTP/1.1"), 400, NO_GET),
    "a body": (request(headers={"Content-Length": "4"}) + b"body", 400, NO_BODY),
    "a body in chunks": (request(headers={"Transfer-Encoding": "chunked"}) + b"0\r\n\r\n", 400, NO_BODY),
    "a foreign origin": (request(headers={"Origin": "https://evil.example"}), 403, "This origin is not listed."),
    "another path": (request("GET /v2/orders HTTP/1.1"), 404, "No stream has this path."),
    "a path in Latin-1": (request("GET /v2/i\xe9x HTTP/1.1"), 404, "No stream has this path."),
    "plain HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 426, PLAIN),
    "plain HTTP that wants to stay": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 426, PLAIN),
    "a REST call whose body does not come": (REST + b"\r\n", 426, PLAIN),
    "a REST call that asks first": (REST + b"Expect: 100-continue\r\n\r\n", 426, PLAIN),
    "HEAD": (b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", 426, ""),
    "a head over 16 KiB": (request(headers={"X-Filler": "x" * 16_384}), 431, ""),
    "a head over 16 KiB in many lines": (request(headers={f"X-{n}": "x" * 400 for n in range(50)}), 431, ""),
    "over a hundred headers": (request(headers={f"X-{n}": "" for n in range(101)}), 431, ""),
    "a request line too long": (request(f"GET /{'x' * 9000} HTTP/1.1"), 414, ""),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\n\r\n", 400, ""),
    "words": (b"HELO there you lovely server\r\n\r\n", 400, ""),
    "an empty line": (b"\r\n" + request(), 400, ""),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""),
    "HTTP/nonsense": (request("GET / HTTP/x.y"), 400, ""),
    "a length below zero": (request(headers={"Content-Length": "-1"}), 400, ""),
    "a length that is no number": (request(headers={"Content-Length": "ten"}), 400, ""),
}


@pytest.mark.parametrize("asked", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_these_become_websockets(client: Callable[..., Client], asked: bytes) -> None:
    opened = client().send_json(asked)
    status, *headers = opened.head().splitlines()
    assert status == "HTTP/1.1 101 Switching Protocols"
    assert sorted(filter(None, headers)) == [
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {ACCEPT}",
        "Upgrade: websocket",
    ]
    assert opened.send(b"Hello").receive() == (frames.BINARY, b"Hello")


@pytest.mark.parametrize(("asked", "status", "body"), REFUSED.values(), ids=REFUSED.keys())
def test_these_are_refused(
    door: Listener, client: Callable[..., Client], wait_until: Wait, asked: bytes, status: int, body: str
) -> None:
    head, _, said = client().send_json(asked).rest().decode().partition("\r\n\r\n")
    first, *headers = head.splitlines()
    assert first.startswith(f"HTTP/1.1 {status} ")
    assert said == (f"{body}\n" if body else "")
    assert "Connection: close" in headers
    assert ("Sec-WebSocket-Version: 13" in headers) == ("Upgrade: websocket" in headers) == (status == 426)
    wait_until(lambda: door.unauthenticated == 0)


def test_frames_right_behind_the_request_are_not_lost(client: Callable[..., Client]) -> None:
    both = [bytes(FrameProtocol(client=True, extensions=[]).send_data(word)) for word in (b"a" * 3, b"b" * 20_000)]
    opened = client().send_json(request() + b"".join(both))
    assert opened.head().startswith("HTTP/1.1 101 ")
    assert [opened.receive(), opened.receive()] == [(frames.BINARY, b"a" * 3), (frames.BINARY, b"b" * 20_000)]


def test_a_head_in_pieces(client: Callable[..., Client]) -> None:
    opened = client()
    for at in range(len(request())):
        opened.send_json(request()[at : at + 1])
    assert opened.head().startswith("HTTP/1.1 101 ")


@pytest.mark.parametrize("sent", [b"", b"GET /v2", request()[:-2]], ids=["nothing", "half a line", "half a head"])
def test_half_a_head_is_waited_for_only_so_long(
    door: Listener, client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)
    assert client().send_json(sent).gone()
    assert client().upgrade().send(b"x").receive() == (frames.BINARY, b"x")


def test_a_head_that_drips_has_the_same_time(client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.1)
    opened = client()
    with pytest.raises(ConnectionError):  # noqa: PT012
        for _ in range(500):
            opened.send_json(b"G")
            gevent.sleep(0.01)


def test_an_upgraded_connection_has_all_the_time_in_the_world(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)
    opened = client().upgrade()
    gevent.sleep(0.1)
    assert opened.send(b"x").receive() == (frames.BINARY, b"x")


def test_an_answer_that_is_not_taken_is_given_up(
    open_door: Callable[..., Listener],
    client: Callable[..., Client],
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(http, "ANSWER_SECONDS", 0.1)
    door = open_door(answer=lambda _: ("200 OK", "x" * (32 << 20)))
    opened = client(door.server_port).send_json(b"GET / HTTP/1.1\r\n\r\n")
    wait_until(lambda: door.unauthenticated == 1)
    wait_until(lambda: door.unauthenticated == 0)
    assert 0 < len(opened.rest()) < 32 << 20
    assert caplog.records == []


@pytest.mark.parametrize("sent", [b"", b"GET", b"garbage\r\n\r\n", request("GET /nowhere HTTP/1.1"), request()])
def test_a_client_that_breaks_off_is_nobodys_error(
    door: Listener, client: Callable[..., Client], wait_until: Wait, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    client().send_json(sent).reset()
    client().send_json(sent).sock.close()
    wait_until(lambda: door.unauthenticated == 0)
    assert caplog.records == []


@pytest.mark.parametrize("asked", [b"GET / HTTP/1.1\r\n\r\n", request("GET /nowhere HTTP/1.1"), request()])
def test_what_is_over_leaves_nothing_for_the_garbage_collector(
    door: Listener, client: Callable[..., Client], wait_until: Wait, asked: bytes
) -> None:
    gc.collect()
    gc.disable()
    try:
        opened = client().send_json(asked)
        opened.head()
        opened.sock.close()
        wait_until(lambda: door.unauthenticated == 0)
        wait_until(lambda: not [thing for thing in gc.get_objects() if isinstance(thing, Handler | ClientConnection)])
    finally:
        gc.enable()
    assert not hasattr(door, "clients")  # the library's own register, by address


@pytest.mark.parametrize("asked", [b"GET / HTTP/1.1\r\n\r\n", request()], ids=["answer", "serve"])
def test_a_bug_is_logged_once_and_ends_its_own_connection_only(
    open_door: Callable[..., Listener], client: Callable[..., Client], caplog: pytest.LogCaptureFixture, asked: bytes
) -> None:
    def broken(*_: object) -> Any:
        raise KeyError("a bug")

    door = open_door(serve=broken, answer=broken)
    said = client(door.server_port).send_json(asked).rest().decode()
    assert said.startswith("HTTP/1.1 101 " if asked == request() else "HTTP/1.1 500 ")
    [record] = caplog.records
    assert (record.getMessage(), record.levelno) == ("listener.internal_error", logging.ERROR)
    assert record.exc_info is not None


# Strangers


def test_strangers_are_bounded_per_address(
    door: Listener, client: Callable[..., Client], wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED_PER_ADDRESS", 3)
    waiting = [client(), client().upgrade(), client().send_json(b"GET")]
    wait_until(lambda: door.unauthenticated == 3)
    assert client().gone()
    for one in waiting:
        one.sock.close()
        wait_until(lambda: door.unauthenticated == 2)
        client().upgrade()
        assert client().gone()
    assert door.unauthenticated == 3


def test_strangers_are_bounded_in_all(
    door: Listener, client: Callable[..., Client], wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED", 2)
    first, _ = client().upgrade(), client().upgrade()
    assert client().gone()
    first.reset()
    wait_until(lambda: door.unauthenticated == 1)
    client().upgrade()


def test_who_is_admitted_takes_no_strangers_place(
    open_door: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED_PER_ADDRESS", 1)

    def serve(connection: ClientConnection, environ: Environ) -> None:
        opened.admit(environ)
        echo(connection, environ)

    opened = open_door(serve=serve)
    admitted = []
    for _ in range(3):
        admitted.append(client(opened.server_port).upgrade().send(b"x"))
        assert admitted[-1].receive() == (frames.BINARY, b"x")
        assert opened.unauthenticated == 0
    for one in admitted:
        one.sock.close()
    assert client(opened.server_port).upgrade().send(b"x").receive() == (frames.BINARY, b"x")
    assert opened.unauthenticated == 0


def test_a_port_that_comes_back_is_counted_once(
    open_door: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that was reset may come again from the same port while its last conversation still winds up."""
    released = Event()
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED_PER_ADDRESS", 1)
    door = open_door(serve=lambda *_: released.wait(SECONDS) and None)
    first = client(door.server_port).upgrade()
    source = first.sock.getsockname()
    first.reset()

    def come_again() -> Client | None:
        try:
            return client(door.server_port, source=source)
        except OSError:
            return None  # the port is not free yet

    again = wait_until(come_again).upgrade()
    released.set()
    assert again.gone()
    wait_until(lambda: door.unauthenticated == 0)
    for _ in range(3):
        assert client(door.server_port).upgrade().gone()


# The connection of a client


@pytest.mark.parametrize("sent", ["one large message", "a flood of pings"])
def test_what_a_client_sends_is_read_in_small_slices_between_which_others_have_their_turn(
    open_door: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait, sent: str
) -> None:
    """The work is counted, not timed: at the least 400 turns for a mebibyte, at the most 400 frames in a turn."""
    work: list[int] = []
    turns = 0

    def serve(connection: ClientConnection, _: Environ) -> None:
        inbound = frames.Inbound(1 << 20)
        while data := connection.receive():
            work.append(len(list(inbound.receive(data))))
            gevent.sleep(0)

    def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    ticker = gevent.spawn(tick)
    try:
        opened = client(open_door(serve=serve).server_port).upgrade()
        if sent == "one large message":
            began = turns
            opened.send(bytes(1 << 20))
            wait_until(lambda: sum(work) == 1)
            assert turns - began >= 400
        else:
            opened.send_json(bytes.fromhex("8980 00000000") * 20_000)
            wait_until(lambda: sum(work) == 20_000)
            assert max(work) <= 400
    finally:
        ticker.kill()


def test_a_send_that_does_not_get_through_ends_in_time(
    open_door: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait
) -> None:
    outcomes: list[bool] = []

    def serve(connection: ClientConnection, _: Environ) -> None:
        outcomes.append(connection.send(bytes(100), 1))
        outcomes.append(connection.send(bytes(32 << 20), 0.1))

    opened = client(open_door(serve=serve).server_port).upgrade()
    wait_until(lambda: len(outcomes) == 2)
    assert outcomes == [True, False]
    assert 100 < len(opened.rest()) < 32 << 20


def test_try_send_never_waits(
    open_door: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait
) -> None:
    taken: list[int] = []

    def serve(connection: ClientConnection, _: Environ) -> None:
        while not taken or taken[-1]:
            taken.append(connection.try_send(bytes(1 << 20)))

    opened = client(open_door(serve=serve).server_port).upgrade()
    wait_until(lambda: taken and taken[-1] == 0)
    assert len(opened.rest()) == sum(taken)


def test_small_frames_are_not_held_back(open_door: Callable[..., Listener], client: Callable[..., Client]) -> None:
    options: list[int] = []

    def serve(connection: ClientConnection, _: Environ) -> None:
        options.append(connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    assert client(open_door(serve=serve).server_port).upgrade().gone()
    assert options == [1]


@pytest.mark.parametrize("blocked", ["receive", "send"])
def test_shut_wakes_whoever_waits(
    open_door: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait, blocked: str
) -> None:
    ended: list[object] = []
    connections: list[ClientConnection] = []

    def serve(connection: ClientConnection, _: Environ) -> None:
        connections.append(connection)
        try:
            ended.append(connection.receive() if blocked == "receive" else connection.send(bytes(32 << 20), SECONDS))
        except ConnectionLost as error:
            ended.append(error)

    opened = client(open_door(serve=serve).server_port).upgrade()
    wait_until(lambda: connections)
    gevent.sleep(0.02)
    connections[0].shut()
    wait_until(lambda: ended)
    assert ended == [b""] if blocked == "receive" else isinstance(ended[0], ConnectionLost)
    connections[0].shut()
    opened.rest()


def test_last_words_arrive_however_much_is_still_said(
    open_door: Callable[..., Listener], client: Callable[..., Client]
) -> None:
    flooded = Event()

    def serve(connection: ClientConnection, _: Environ) -> None:
        assert flooded.wait(SECONDS)
        connection.send(frames.encode_close(frames.POLICY, "enough"), 1)
        connection.linger(SECONDS)

    opened = client(open_door(serve=serve).server_port).upgrade().send_json(bytes(100_000))
    flooded.set()
    assert opened.receive() == (frames.CLOSE, struct.pack("!H", frames.POLICY))
    opened.send_json(bytes(100_000)).sock.shutdown(socket.SHUT_WR)
    assert opened.rest() == b""


def test_nobody_is_waited_for_longer_than_that(
    open_door: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait
) -> None:
    door = open_door(serve=lambda connection, _: connection.linger(0.05))
    opened = client(door.server_port).upgrade()
    assert opened.rest() == b""
    wait_until(lambda: door.unauthenticated == 0)


# TLS


@pytest.fixture
def secure(open_door: Callable[..., Listener], certificate: tuple[Path, Path]) -> Listener:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return open_door(tls=context)


@pytest.fixture
def trust(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


def test_tls(
    open_door: Callable[..., Listener], secure: Listener, client: Callable[..., Client], trust: ssl.SSLContext
) -> None:
    port = secure.server_port
    for size in (0, 5, 300_000):
        assert client(port, tls=trust).upgrade().send(b"x" * size).receive() == (frames.BINARY, b"x" * size)
    assert client(port, tls=trust).send_json(b"garbage\r\n\r\n").rest().startswith(b"HTTP/1.1 400 ")
    assert client(port, tls=trust).send_json(request("GET /nowhere HTTP/1.1")).rest().startswith(b"HTTP/1.1 404 ")


def test_a_send_over_tls_ends_in_time_too(
    open_door: Callable[..., Listener],
    client: Callable[..., Client],
    certificate: tuple[Path, Path],
    trust: ssl.SSLContext,
    wait_until: Wait,
) -> None:
    outcomes: list[object] = []

    def serve(connection: ClientConnection, _: Environ) -> None:
        outcomes.append(connection.tls)
        outcomes.append(connection.send(b"x", 1))
        outcomes.append(connection.send(bytes(32 << 20), 0.1))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    client(open_door(serve=serve, tls=context).server_port, tls=trust).upgrade()
    wait_until(lambda: len(outcomes) == 3)
    assert outcomes == [True, True, False]


@pytest.mark.parametrize("sent", [b"", request(), b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + bytes(100)])
def test_what_is_no_tls_handshake_is_hung_up_on(
    secure: Listener,
    client: Callable[..., Client],
    trust: ssl.SSLContext,
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
    sent: bytes,
) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.1)
    assert client(secure.server_port).send_json(sent).gone()
    client(secure.server_port).send_json(sent).reset()
    wait_until(lambda: secure.unauthenticated == 0)
    client(secure.server_port, tls=trust).upgrade()


def test_half_a_head_over_tls_is_waited_for_only_so_long(
    secure: Listener,
    client: Callable[..., Client],
    trust: ssl.SSLContext,
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)
    assert client(secure.server_port, tls=trust).send_json(b"GET /v2").gone()
    client(secure.server_port, tls=trust).send_json(request()).reset()
    wait_until(lambda: secure.unauthenticated == 0)


# A process at risk

SERVER = """
import resource, sys, time
import gevent
from gevent.queue import Queue
from proxy.observe import logs
from proxy.observe.logs import Log
from proxy.transport.errors import ConnectionLost
from proxy.observe.logs import Log
from proxy.transport import frames
from proxy.observe.logs import Log
from proxy.transport.listener import Listener

pings = 0

def serve(connection, environ):
    global pings
    door.admit(environ)
    says = Queue()
    writer = gevent.spawn(write, connection, says)
    inbound = frames.Inbound(1024)
    try:
        while data := connection.receive():
            for event in inbound.receive(data):
                match event:
                    case frames.Ping(payload):
                        pings += 1
                        says.put(frames.encode(frames.PONG, payload))
                    case frames.Message(b"flood"):
                        for _ in range(512):
                            says.put(frames.encode(frames.BINARY, bytes(64 * 1024)))
                    case frames.Message(b"pings"):
                        says.put(frames.encode(frames.BINARY, b"%d" % pings))
                    case frames.Message(b"work"):
                        says.put(frames.encode(frames.BINARY, b"%f" % time.process_time()))
    except ConnectionLost:
        pass
    finally:
        writer.kill()

def write(connection, says):
    try:
        while True:
            connection.send(says.get(), 60)
    except ConnectionLost:
        pass

logs.set_up("human", "info")
door = Listener(
    ("127.0.0.1", 0),
    serve=serve,
    refuse=lambda _: None,
    answer=lambda _: ("404 Not Found", "-"),
    log=logs.Log("listener"),
)
door.start()
print(door.server_port, flush=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
door.serve_forever()
"""


class Server:
    """A server in a process of its own: a reader and a writer for each connection, and few descriptors."""

    def __init__(self, descriptors: int) -> None:
        program = f"from gevent import monkey; monkey.patch_all()\n{SERVER}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(descriptors)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def end(self) -> str:
        """Ends it, which it must not have done by itself; what it wrote to standard error."""
        assert self.process.poll() is None
        self.process.kill()
        return self.process.communicate(timeout=SECONDS)[1]


@pytest.fixture
def server() -> Iterator[Callable[[int], Server]]:
    started: list[Server] = []

    def start(descriptors: int) -> Server:
        started.append(Server(descriptors))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.communicate(timeout=SECONDS)


@pytest.mark.parametrize("ending", ["reads on", "closes", "resets"])
def test_pings_of_a_slow_client_disturb_nobody(
    server: Callable[[int], Server], client: Callable[..., Client], wait_until: Wait, ending: str
) -> None:
    """A second greenlet writing to a socket whose writer waits once ended the process, not just the connection."""
    running = server(256)
    other = client(running.port).upgrade()
    slow = client(running.port).upgrade().send(b"flood")
    first = slow.sock.recv(1)
    for n in range(50):
        slow.ping(b"%d" % n)
    wait_until(lambda: other.send(b"pings").receive() == (frames.BINARY, b"50"))
    if ending == "closes":
        slow.sock.close()
    elif ending == "resets":
        slow.reset()
    else:
        slow.unread(first)
        heard = [slow.receive() for _ in range(512 + 50)]
        assert heard[:512] == [(frames.BINARY, bytes(64 * 1024))] * 512
        assert heard[512:] == [(frames.PONG, b"%d" % n) for n in range(50)]
    assert client(running.port).upgrade().send(b"pings").receive() == (frames.BINARY, b"50")
    assert other.send(b"pings").receive() == (frames.BINARY, b"50")
    assert running.end() == ""


@pytest.mark.slow
def test_when_descriptors_run_out_those_who_are_in_are_served_and_the_others_wait(
    server: Callable[[int], Server], client: Callable[..., Client]
) -> None:
    running = server(40)
    inside: list[Client] = []
    outside: list[Client] = []
    for _ in range(60):
        opened = client(running.port).send_json(request())
        opened.sock.settimeout(0.001 if outside else 0.5)
        try:
            assert opened.head().startswith("HTTP/1.1 101 ")
            inside.append(opened)
        except TimeoutError:
            outside.append(opened)
        opened.sock.settimeout(SECONDS)
    assert len(inside) > 10
    assert len(outside) > 10
    began = float(inside[0].send(b"work").receive()[1])
    gevent.sleep(0.5)
    assert float(inside[-1].send(b"work").receive()[1]) - began < 0.2
    for opened in inside[1:]:
        opened.sock.close()
    for opened in outside:
        assert opened.head().startswith("HTTP/1.1 101 ")
        assert opened.send(b"pings").receive() == (frames.BINARY, b"0")
        opened.sock.close()
    assert inside[0].send(b"pings").receive() == (frames.BINARY, b"0")
    lines = running.end().splitlines()
    assert 0 < len(lines) < 3  # the first, and perhaps one that counts those like it
    for line in lines:
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d warning listener\.starved .*Too many open files.* hint=.*ulimit -n.*", line
        )
