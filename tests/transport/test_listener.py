"""The listener, over raw sockets: upgrades, refusals, limits, TLS."""

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
    """Return an upgrade request, with some headers changed, or left out if None."""
    lines = [f"{name}: {value}" for name, value in (UPGRADE | (headers or {})).items() if value is not None]
    return "\r\n".join([first, *lines, "\r\n"]).encode("latin-1")


class Client:
    """A raw socket to the server, with wsproto's frame parser."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None, source: tuple[str, int] | None = None) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(SECONDS)
        if source is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind(source)
        self.sock.connect((HERE, port))
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname=HERE)
        self._frames = FrameProtocol(client=True, extensions=[])

    def send_raw(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def send(self, payload: bytes) -> Client:
        return self.send_raw(bytes(FrameProtocol(client=True, extensions=[]).send_data(payload)))

    def ping(self, payload: bytes = b"") -> Client:
        return self.send_raw(bytes(FrameProtocol(client=True, extensions=[]).ping(payload)))

    def head(self) -> str:
        """Read the head of a response, and nothing of what follows."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            assert byte, f"closed after {head!r}"
            head += byte
        return head.decode()

    def upgrade(self) -> Client:
        assert self.send_raw(request()).head().startswith("HTTP/1.1 101 ")
        return self

    def receive(self) -> tuple[int, bytes]:
        """Return the next whole message or control frame."""
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
        """Return all data until the server closes."""
        return b"".join(iter(lambda: self.sock.recv(65536), b""))

    def closed_silently(self) -> bool:
        """Wait until the server closes; return whether it sent no data before.

        A TLS alert does not count as data.
        """
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := self.sock.recv(65536):
                received += data
        return received[:1] in (b"", b"\x15")

    def reset(self) -> None:
        """Close the socket with a TCP reset."""
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
def start_listener() -> Iterator[Callable[..., Listener]]:
    """Starts listeners: `start_listener(serve=…)`."""
    with ExitStack() as stack:

        def start_listener(
            serve: Serve = echo, answer: Callable[[Environ], HttpResponse] = answer, **options: Any
        ) -> Listener:
            server = Listener((HERE, 0), serve=serve, refuse=refuse, answer=answer, log=Log("listener"), **options)
            server.start()
            stack.callback(server.stop)
            return server

        yield start_listener


@pytest.fixture
def server(start_listener: Callable[..., Listener]) -> Listener:
    return start_listener()


@pytest.fixture
def client(server: Listener) -> Iterator[Callable[..., Client]]:
    """Connects clients to `server`, or to a server at another port."""
    with ExitStack() as stack:

        def client(port: int = 0, **options: Any) -> Client:
            connected = Client(port or server.server_port, **options)
            stack.callback(connected.sock.close)
            return connected

        yield client


@pytest.fixture(autouse=True)
def nothing_on_standard_error(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr().err == ""


def test_a_port_is_shared_only_if_all_share_it(
    start_listener: Callable[..., Listener], client: Callable[..., Client]
) -> None:
    one = start_listener(reuse_port=True)
    options = {"serve": echo, "refuse": refuse, "answer": answer, "log": Log("listener")}
    other = Listener((HERE, one.server_port), **options, reuse_port=True)
    other.start()
    one.close()  # the port stays open
    assert client(one.server_port).upgrade().send(b"x").receive() == (frames.BINARY, b"x")
    other.stop()
    with socket.create_server((HERE, 0)) as holder:
        late = Listener(holder.getsockname(), **options, reuse_port=True)
        with pytest.raises(OSError, match="in use"):
            late.start()


# The handshake

ACCEPTED = {
    "of a browser": request(headers={"Connection": "keep-alive, Upgrade", "Origin": "http://localhost:3000"}),
    "in lower case": request()
    .lower()
    .replace(b"get /v2/iex http", b"GET /v2/iex HTTP")
    .replace(UPGRADE["Sec-WebSocket-Key"].lower().encode(), UPGRADE["Sec-WebSocket-Key"].encode()),
    "in upper case": request(headers={"Upgrade": "WEBSOCKET", "Connection": "UPGRADE"}),
    "with a query": request("GET /v2/iex?x=1 HTTP/1.1"),
    "with an empty body": request(headers={"Content-Length": "0"}),
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

REST_CALL = b"POST /v2/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
NO_VERSION = "WebSocket version 13 is needed."
NO_KEY = "Sec-WebSocket-Key is not the base64 of 16 bytes."
NO_UPGRADE = "The Connection header lacks Upgrade."
NO_GET = "A WebSocket is opened with GET and HTTP/1.1."
NO_BODY = "A WebSocket is opened without a body."
PLAIN = "This is a WebSocket stream."
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "no version": (request(headers={"Sec-WebSocket-Version": None}), 426, NO_VERSION),
    "version 12": (request(headers={"Sec-WebSocket-Version": "12"}), 426, NO_VERSION),
    "version 8": (request(headers={"Sec-WebSocket-Version": "8"}), 426, NO_VERSION),
    "version 7": (request(headers={"Sec-WebSocket-Version": "7"}), 426, NO_VERSION),
    "several versions": (request(headers={"Sec-WebSocket-Version": "13, 8"}), 426, NO_VERSION),
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
    "plain HTTP with keep-alive": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 426, PLAIN),
    "a REST call whose body does not arrive": (REST_CALL + b"\r\n", 426, PLAIN),
    "a REST call with Expect": (REST_CALL + b"Expect: 100-continue\r\n\r\n", 426, PLAIN),
    "HEAD": (b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", 426, ""),
    "a head over 16 KiB": (request(headers={"X-Filler": "x" * 16_384}), 431, ""),
    "a head over 16 KiB in many lines": (request(headers={f"X-{n}": "x" * 400 for n in range(50)}), 431, ""),
    "over a hundred headers": (request(headers={f"X-{n}": "" for n in range(101)}), 431, ""),
    "a request line too long": (request(f"GET /{'x' * 9000} HTTP/1.1"), 414, ""),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\n\r\n", 400, ""),
    "SMTP": (b"HELO there you lovely server\r\n\r\n", 400, ""),
    "an empty line": (b"\r\n" + request(), 400, ""),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""),
    "HTTP/nonsense": (request("GET / HTTP/x.y"), 400, ""),
    "a negative length": (request(headers={"Content-Length": "-1"}), 400, ""),
    "a length that is not a number": (request(headers={"Content-Length": "ten"}), 400, ""),
}


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_valid_upgrades_are_accepted(client: Callable[..., Client], data: bytes) -> None:
    peer = client().send_raw(data)
    status, *headers = peer.head().splitlines()
    assert status == "HTTP/1.1 101 Switching Protocols"
    assert sorted(filter(None, headers)) == [
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {ACCEPT}",
        "Upgrade: websocket",
    ]
    assert peer.send(b"Hello").receive() == (frames.BINARY, b"Hello")


@pytest.mark.parametrize(("data", "status", "body"), REFUSED.values(), ids=REFUSED.keys())
def test_other_requests_are_refused(
    server: Listener, client: Callable[..., Client], wait_until: Wait, data: bytes, status: int, body: str
) -> None:
    head, _, content = client().send_raw(data).rest().decode().partition("\r\n\r\n")
    first, *headers = head.splitlines()
    assert first.startswith(f"HTTP/1.1 {status} ")
    assert content == (f"{body}\n" if body else "")
    assert "Connection: close" in headers
    assert ("Sec-WebSocket-Version: 13" in headers) == ("Upgrade: websocket" in headers) == (status == 426)
    wait_until(lambda: server.unauthenticated == 0)


def test_frames_right_behind_the_request_are_not_lost(client: Callable[..., Client]) -> None:
    sent = [bytes(FrameProtocol(client=True, extensions=[]).send_data(data)) for data in (b"a" * 3, b"b" * 20_000)]
    peer = client().send_raw(request() + b"".join(sent))
    assert peer.head().startswith("HTTP/1.1 101 ")
    assert [peer.receive(), peer.receive()] == [(frames.BINARY, b"a" * 3), (frames.BINARY, b"b" * 20_000)]


def test_a_head_that_arrives_in_pieces(client: Callable[..., Client]) -> None:
    peer = client()
    for at in range(len(request())):
        peer.send_raw(request()[at : at + 1])
    assert peer.head().startswith("HTTP/1.1 101 ")


@pytest.mark.parametrize("sent", [b"", b"GET /v2", request()[:-2]], ids=["nothing", "half a line", "half a head"])
def test_an_incomplete_head_times_out(
    server: Listener, client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)
    assert client().send_raw(sent).closed_silently()
    assert client().upgrade().send(b"x").receive() == (frames.BINARY, b"x")


def test_a_head_that_drips_has_the_same_time(client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.1)
    peer = client()
    with pytest.raises(ConnectionError):  # noqa: PT012
        for _ in range(500):
            peer.send_raw(b"G")
            gevent.sleep(0.01)


def test_the_heads_timeout_ends_with_the_upgrade(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)
    peer = client().upgrade()
    gevent.sleep(0.1)
    assert peer.send(b"x").receive() == (frames.BINARY, b"x")


def test_a_response_that_is_not_read_times_out(
    start_listener: Callable[..., Listener],
    client: Callable[..., Client],
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(http, "ANSWER_SECONDS", 0.1)
    server = start_listener(answer=lambda _: ("200 OK", "x" * (32 << 20)))
    peer = client(server.server_port).send_raw(b"GET / HTTP/1.1\r\n\r\n")
    wait_until(lambda: server.unauthenticated == 1)
    wait_until(lambda: server.unauthenticated == 0)
    assert 0 < len(peer.rest()) < 32 << 20
    assert caplog.records == []


@pytest.mark.parametrize("sent", [b"", b"GET", b"garbage\r\n\r\n", request("GET /nowhere HTTP/1.1"), request()])
def test_a_client_that_disconnects_early_is_not_logged(
    server: Listener, client: Callable[..., Client], wait_until: Wait, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    client().send_raw(sent).reset()
    client().send_raw(sent).sock.close()
    wait_until(lambda: server.unauthenticated == 0)
    assert caplog.records == []


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", request("GET /nowhere HTTP/1.1"), request()])
def test_a_closed_connection_leaves_no_cycles_for_the_garbage_collector(
    server: Listener, client: Callable[..., Client], wait_until: Wait, data: bytes
) -> None:
    def connections() -> list[Handler | ClientConnection]:
        return [each for each in gc.get_objects() if isinstance(each, Handler | ClientConnection)]

    gc.collect()
    gc.disable()
    others = connections()  # of servers of earlier tests, which may be closing still
    try:
        peer = client().send_raw(data)
        peer.head()
        peer.sock.close()
        wait_until(lambda: server.unauthenticated == 0)
        wait_until(lambda: not {id(each) for each in connections()} - {id(each) for each in others})
    finally:
        gc.enable()
    assert not hasattr(server, "clients")  # the library's own table of clients by address


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", request()], ids=["answer", "serve"])
def test_an_internal_error_is_logged_once_and_ends_only_its_own_connection(
    start_listener: Callable[..., Listener],
    client: Callable[..., Client],
    caplog: pytest.LogCaptureFixture,
    data: bytes,
) -> None:
    def broken(*_: object) -> Any:
        raise KeyError("an internal error")

    server = start_listener(serve=broken, answer=broken)
    response = client(server.server_port).send_raw(data).rest().decode()
    assert response.startswith("HTTP/1.1 101 " if data == request() else "HTTP/1.1 500 ")
    [record] = caplog.records
    assert (record.getMessage(), record.levelno) == ("listener.internal_error", logging.ERROR)
    assert record.exc_info is not None


# Limits of unauthenticated sockets


def test_unauthenticated_sockets_are_bounded_per_address(
    server: Listener, client: Callable[..., Client], wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new socket displaces the oldest of its address, whatever state that one is in."""
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED_PER_ADDRESS", 3)
    waiting = [client(), client().upgrade(), client().send_raw(b"GET")]
    wait_until(lambda: server.unauthenticated == 3)
    for oldest in waiting:
        client().upgrade()
        assert oldest.closed_silently()
        assert server.unauthenticated == 3
    peer = client().upgrade()
    peer.sock.close()
    wait_until(lambda: server.unauthenticated == 2)


def test_unauthenticated_sockets_are_bounded_in_total(
    server: Listener, client: Callable[..., Client], wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new socket displaces the oldest of the address that has the most."""
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED", 2)
    first, second = client().upgrade(), client().upgrade()
    client().upgrade()
    assert first.closed_silently()
    second.reset()
    wait_until(lambda: server.unauthenticated == 1)
    client().upgrade()


def test_admitted_sockets_do_not_count_as_unauthenticated(
    start_listener: Callable[..., Listener],
    client: Callable[..., Client],
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED_PER_ADDRESS", 1)

    def serve(connection: ClientConnection, environ: Environ) -> None:
        server.admit(environ)
        echo(connection, environ)

    server = start_listener(serve=serve)
    admitted = []
    for _ in range(3):
        admitted.append(client(server.server_port).upgrade().send(b"x"))
        assert admitted[-1].receive() == (frames.BINARY, b"x")
        assert server.unauthenticated == 0
    for peer in admitted:
        peer.sock.close()
    assert client(server.server_port).upgrade().send(b"x").receive() == (frames.BINARY, b"x")
    assert server.unauthenticated == 0


def test_a_reused_port_is_counted_once(
    start_listener: Callable[..., Listener],
    client: Callable[..., Client],
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client may reconnect from the same port before its last session has ended."""
    released = Event()
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED_PER_ADDRESS", 1)
    server = start_listener(serve=lambda *_: released.wait(SECONDS) and None)
    # A port that the kernel chooses for `bind`: one that it chooses for `connect` may be in TIME_WAIT for connections
    # to other servers, and then cannot be bound again for a minute.
    first = client(server.server_port, source=(HERE, 0)).upgrade()
    source = first.sock.getsockname()
    first.reset()

    def reconnect() -> Client | None:
        try:
            return client(server.server_port, source=source)
        except OSError:
            return None  # the port is not free yet

    second = wait_until(reconnect).upgrade()
    released.set()
    assert second.closed_silently()
    wait_until(lambda: server.unauthenticated == 0)
    for _ in range(3):
        assert client(server.server_port).upgrade().closed_silently()


# ClientConnection


@pytest.mark.parametrize("sent", ["one large message", "a flood of pings"])
def test_data_is_read_in_small_slices_so_that_other_greenlets_run_in_between(
    start_listener: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait, sent: str
) -> None:
    """Counts work instead of time.

    At least 400 yields for a mebibyte, and at most 400 frames between two yields.
    """
    work: list[int] = []
    yields = 0

    def serve(connection: ClientConnection, _: Environ) -> None:
        inbound = frames.Inbound(1 << 20)
        while data := connection.receive():
            work.append(len(list(inbound.receive(data))))
            gevent.sleep(0)

    def tick() -> None:
        nonlocal yields
        while True:
            yields += 1
            gevent.sleep(0)

    ticker = gevent.spawn(tick)
    try:
        peer = client(start_listener(serve=serve).server_port).upgrade()
        if sent == "one large message":
            before = yields
            peer.send(bytes(1 << 20))
            wait_until(lambda: sum(work) == 1)
            assert yields - before >= 400
        else:
            peer.send_raw(bytes.fromhex("8980 00000000") * 20_000)
            wait_until(lambda: sum(work) == 20_000)
            assert max(work) <= 400
    finally:
        ticker.kill()


def test_a_send_that_blocks_times_out(
    start_listener: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait
) -> None:
    outcomes: list[bool] = []

    def serve(connection: ClientConnection, _: Environ) -> None:
        outcomes.append(connection.send(bytes(100), 1))
        outcomes.append(connection.send(bytes(32 << 20), 0.1))

    peer = client(start_listener(serve=serve).server_port).upgrade()
    wait_until(lambda: len(outcomes) == 2)
    assert outcomes == [True, False]
    assert 100 < len(peer.rest()) < 32 << 20


def test_send_now_never_blocks(
    start_listener: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait
) -> None:
    taken: list[int] = []
    full: list[bool] = []

    def serve(connection: ClientConnection, _: Environ) -> None:
        assert connection.send_now is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                taken.append(connection.send_now(bytes(1 << 20)))
        full.append(True)

    peer = client(start_listener(serve=serve).server_port).upgrade()
    wait_until(lambda: full)
    assert len(peer.rest()) == sum(taken) > 0


def test_small_frames_are_sent_without_nagles_delay(
    start_listener: Callable[..., Listener], client: Callable[..., Client]
) -> None:
    options: list[int] = []

    def serve(connection: ClientConnection, _: Environ) -> None:
        options.append(connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    assert client(start_listener(serve=serve).server_port).upgrade().closed_silently()
    assert options == [1]


@pytest.mark.parametrize("blocked", ["receive", "send"])
def test_shut_wakes_a_blocked_greenlet(
    start_listener: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait, blocked: str
) -> None:
    ended: list[object] = []
    connections: list[ClientConnection] = []

    def serve(connection: ClientConnection, _: Environ) -> None:
        connections.append(connection)
        try:
            ended.append(connection.receive() if blocked == "receive" else connection.send(bytes(32 << 20), SECONDS))
        except ConnectionLost as error:
            ended.append(error)

    peer = client(start_listener(serve=serve).server_port).upgrade()
    wait_until(lambda: connections)
    gevent.sleep(0.02)
    connections[0].shut()
    wait_until(lambda: ended)
    assert ended == [b""] if blocked == "receive" else isinstance(ended[0], ConnectionLost)
    connections[0].shut()
    peer.rest()


def test_the_close_frame_arrives_even_if_the_client_keeps_sending(
    start_listener: Callable[..., Listener], client: Callable[..., Client]
) -> None:
    flooded = Event()

    def serve(connection: ClientConnection, _: Environ) -> None:
        assert flooded.wait(SECONDS)
        connection.send(frames.encode_close(frames.POLICY, "enough"), 1)
        connection.linger(SECONDS)

    peer = client(start_listener(serve=serve).server_port).upgrade().send_raw(bytes(100_000))
    flooded.set()
    assert peer.receive() == (frames.CLOSE, struct.pack("!H", frames.POLICY))
    peer.send_raw(bytes(100_000)).sock.shutdown(socket.SHUT_WR)
    assert peer.rest() == b""


def test_linger_times_out(
    start_listener: Callable[..., Listener], client: Callable[..., Client], wait_until: Wait
) -> None:
    server = start_listener(serve=lambda connection, _: connection.linger(0.05))
    peer = client(server.server_port).upgrade()
    assert peer.rest() == b""
    wait_until(lambda: server.unauthenticated == 0)


# TLS


@pytest.fixture
def secure(start_listener: Callable[..., Listener], certificate: tuple[Path, Path]) -> Listener:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return start_listener(tls=context)


@pytest.fixture
def trust(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


def test_tls(
    start_listener: Callable[..., Listener], secure: Listener, client: Callable[..., Client], trust: ssl.SSLContext
) -> None:
    port = secure.server_port
    for size in (0, 5, 300_000):
        assert client(port, tls=trust).upgrade().send(b"x" * size).receive() == (frames.BINARY, b"x" * size)
    assert client(port, tls=trust).send_raw(b"garbage\r\n\r\n").rest().startswith(b"HTTP/1.1 400 ")
    assert client(port, tls=trust).send_raw(request("GET /nowhere HTTP/1.1")).rest().startswith(b"HTTP/1.1 404 ")


def test_a_send_over_tls_that_blocks_times_out(
    start_listener: Callable[..., Listener],
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
    client(start_listener(serve=serve, tls=context).server_port, tls=trust).upgrade()
    wait_until(lambda: len(outcomes) == 3)
    assert outcomes == [True, True, False]


@pytest.mark.parametrize("sent", [b"", request(), b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + bytes(100)])
def test_a_failed_tls_handshake_closes_the_connection(
    secure: Listener,
    client: Callable[..., Client],
    trust: ssl.SSLContext,
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
    sent: bytes,
) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.1)
    assert client(secure.server_port).send_raw(sent).closed_silently()
    client(secure.server_port).send_raw(sent).reset()
    wait_until(lambda: secure.unauthenticated == 0)
    client(secure.server_port, tls=trust).upgrade()


def test_an_incomplete_head_over_tls_times_out(
    secure: Listener,
    client: Callable[..., Client],
    trust: ssl.SSLContext,
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)
    assert client(secure.server_port, tls=trust).send_raw(b"GET /v2").closed_silently()
    client(secure.server_port, tls=trust).send_raw(request()).reset()
    wait_until(lambda: secure.unauthenticated == 0)


# A server in a process of its own

SERVER = """
import resource, sys, time
import gevent
from gevent.queue import Queue
from proxy.observe import logs
from proxy.transport import frames
from proxy.transport.errors import ConnectionLost
from proxy.transport.listener import Listener

pings = 0

def serve(connection, environ):
    global pings
    server.admit(environ)
    outgoing = Queue()
    writer = gevent.spawn(write, connection, outgoing)
    inbound = frames.Inbound(1024)
    try:
        while data := connection.receive():
            for event in inbound.receive(data):
                match event:
                    case frames.Ping(payload):
                        pings += 1
                        outgoing.put(frames.encode(frames.PONG, payload))
                    case frames.Message(b"flood"):
                        for _ in range(512):
                            outgoing.put(frames.encode(frames.BINARY, bytes(64 * 1024)))
                    case frames.Message(b"pings"):
                        outgoing.put(frames.encode(frames.BINARY, b"%d" % pings))
                    case frames.Message(b"work"):
                        outgoing.put(frames.encode(frames.BINARY, b"%f" % time.process_time()))
    except ConnectionLost:
        pass
    finally:
        writer.kill()

def write(connection, outgoing):
    try:
        while True:
            connection.send(outgoing.get(), 60)
    except ConnectionLost:
        pass

logs.set_up("human", "info")
server = Listener(
    ("127.0.0.1", 0),
    serve=serve,
    refuse=lambda _: None,
    answer=lambda _: ("404 Not Found", "-"),
    log=logs.Log("listener"),
)
server.start()
print(server.server_port, flush=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
server.serve_forever()
"""


class ServerProcess:
    """A server in a process of its own, with few descriptors.

    It has a reader and a writer for each connection.
    """

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
        """Kill the process, which must still be running; return its standard error."""
        assert self.process.poll() is None
        self.process.kill()
        return self.process.communicate(timeout=SECONDS)[1]


@pytest.fixture
def start_process() -> Iterator[Callable[[int], ServerProcess]]:
    started: list[ServerProcess] = []

    def start(descriptors: int) -> ServerProcess:
        started.append(ServerProcess(descriptors))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.communicate(timeout=SECONDS)


@pytest.mark.parametrize("ending", ["reads on", "closes", "resets"])
def test_pings_of_a_slow_client_do_not_affect_others(
    start_process: Callable[[int], ServerProcess], client: Callable[..., Client], wait_until: Wait, ending: str
) -> None:
    """Regression: a second writer of a blocked socket ended the whole process."""
    running = start_process(256)
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
        received = [slow.receive() for _ in range(512 + 50)]
        assert received[:512] == [(frames.BINARY, bytes(64 * 1024))] * 512
        assert received[512:] == [(frames.PONG, b"%d" % n) for n in range(50)]
    assert client(running.port).upgrade().send(b"pings").receive() == (frames.BINARY, b"50")
    assert other.send(b"pings").receive() == (frames.BINARY, b"50")
    assert running.end() == ""


@pytest.mark.slow
def test_without_free_descriptors_clients_are_served_and_new_ones_wait(
    start_process: Callable[[int], ServerProcess], client: Callable[..., Client]
) -> None:
    running = start_process(40)
    accepted: list[Client] = []
    waiting: list[Client] = []
    for _ in range(60):
        peer = client(running.port).send_raw(request())
        peer.sock.settimeout(0.001 if waiting else 0.5)
        try:
            assert peer.head().startswith("HTTP/1.1 101 ")
            accepted.append(peer)
        except TimeoutError:
            waiting.append(peer)
        peer.sock.settimeout(SECONDS)
    assert len(accepted) > 10
    assert len(waiting) > 10
    began = float(accepted[0].send(b"work").receive()[1])
    gevent.sleep(0.5)
    assert float(accepted[-1].send(b"work").receive()[1]) - began < 0.2
    for peer in accepted[1:]:
        peer.sock.close()
    for peer in waiting:
        assert peer.head().startswith("HTTP/1.1 101 ")
        assert peer.send(b"pings").receive() == (frames.BINARY, b"0")
        peer.sock.close()
    assert accepted[0].send(b"pings").receive() == (frames.BINARY, b"0")
    lines = running.end().splitlines()
    assert 0 < len(lines) < 3  # the first, and perhaps one with the count of its repeats
    for line in lines:
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d warning listener\.starved .*Too many open files.* hint=.*ulimit -n.*", line
        )


def test_an_address_that_is_taken_leaves_no_socket_open() -> None:
    """An unclosed socket would be a ResourceWarning, which fails a test."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listener = Listener(
            taken.getsockname(),
            serve=lambda connection, environ: None,
            refuse=lambda environ: None,
            answer=lambda environ: ("404 Not Found", ""),
            log=Log("listener"),
        )
        with pytest.raises(OSError, match="Address already in use"):
            listener.start()
        del listener
        gc.collect()
