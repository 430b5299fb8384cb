"""The WebSocket to Alpaca, against raw-socket servers that run a script."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode

from proxy.transport import frames
from proxy.transport.errors import ConnectionLost, UpgradeRefused
from proxy.transport.frames import BINARY, CLOSE, PING, PONG, TEXT
from proxy.transport.time_slice import TimeSlice
from proxy.upstream import websocket
from proxy.upstream.websocket import UpstreamConnection, dial
from tests.ports import free_port

SECONDS = 5
RECORDS = 300
HERE = "127.0.0.1"
CONTINUATION = 0
LIMIT = websocket.UPSTREAM_MESSAGE_BYTES
EURO = "€".encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """Return a server's frame, which may be invalid."""
    encoded = frames.encode(opcode, payload)
    return bytes((fin << 7 | rsv << 4 | opcode,)) + encoded[1:]


def fragments(opcode: int, *parts: bytes) -> bytes:
    """Return one message, each part in a frame of its own."""
    last = len(parts) - 1
    return b"".join(frame(CONTINUATION if at else opcode, part, fin=at == last) for at, part in enumerate(parts))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


class Server:
    """A listening socket; a greenlet runs `script` with each accepted socket."""

    def __init__(self, script: Callable[[socket.socket], object], *, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._listening = socket.create_server((HERE, 0))
        self.port = self._listening.getsockname()[1]
        self.accepted = 0
        self._greenlet = gevent.spawn(self._serve)

    @property
    def url(self) -> str:
        return f"{'wss' if self._tls else 'ws'}://{HERE}:{self.port}/v2/iex?x=1"

    def stop(self) -> None:
        self._greenlet.kill()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            sock, _ = self._listening.accept()
            self.accepted += 1
            with sock, suppress(OSError):
                if self._tls is None:
                    self._script(sock)
                    continue
                with self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as secured:
                    secured.do_handshake()
                    self._script(secured)


def head(sock: socket.socket) -> str:
    """Read the head of a request, and nothing of what follows."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionResetError
        data += byte
    return data.decode()


def accept(upgrade: str) -> bytes:
    """Return the 101 response to an upgrade."""
    key = re.findall(r"Sec-WebSocket-Key: (\S+)", upgrade)[0]
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    accept_key = base64.b64encode(digest).decode()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key}",
    ]
    return "\r\n".join([*lines, "\r\n"]).encode()


class Pair:
    """A connection, the raw socket at its other end, and the enqueued replies."""

    def __init__(self, connection: UpstreamConnection, sock: socket.socket, replies: list[tuple[int, bytes]]) -> None:
        self.connection = connection
        self.sock = sock
        self.replies = replies

    def send(self, data: bytes) -> Pair:
        self.sock.sendall(data)
        return self

    def receive(self) -> list[bytes]:
        return self.connection.receive()

    def lost(self) -> str:
        """Expect ConnectionLost; return its text."""
        with pytest.raises(ConnectionLost) as lost:
            self.connection.receive()
        return str(lost.value)

    def silent(self) -> bool:
        """Return whether the connection has written nothing."""
        self.sock.settimeout(0.01)
        try:
            return not self.sock.recv(1)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(SECONDS)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:

        def serve(script: Callable[[socket.socket], object], **options: Any) -> Server:
            server = Server(script, **options)
            stack.callback(server.stop)
            return server

        yield serve


@pytest.fixture
def pair(serve: Callable[..., Server]) -> Iterator[Pair]:
    accepted: AsyncResult[socket.socket] = AsyncResult()

    def script(sock: socket.socket) -> None:
        sock.sendall(accept(head(sock)))
        accepted.set(sock)
        gevent.sleep(60)

    replies: list[tuple[int, bytes]] = []
    connection = dial(serve(script).url, {}, lambda opcode, payload: replies.append((opcode, payload)))
    sock = accepted.get(timeout=SECONDS)
    sock.settimeout(SECONDS)
    yield Pair(connection, sock, replies)
    connection.free()


def no_reply(_: int, __: bytes) -> None:
    raise AssertionError("no reply is expected")


# Messages


def test_one_receive_returns_all_messages_that_have_arrived(pair: Pair) -> None:
    pair.send(frame(TEXT, b"a") + frame(BINARY, b"\xff") + frame(TEXT))
    assert pair.receive() == [b"a", b"\xff", b""]
    pair.send(frame(TEXT, "aß€\U0010ffff".encode()))
    assert pair.receive() == ["aß€\U0010ffff".encode()]


def test_receive_returns_at_most_256_messages(pair: Pair) -> None:
    pair.send(b"".join(frame(BINARY, b"%d" % n) for n in range(800)))
    received = [pair.receive() for _ in range(4)]
    assert [len(messages) for messages in received] == [256, 256, 256, 32]
    assert [payload for messages in received for payload in messages] == [b"%d" % n for n in range(800)]


def test_receive_stops_after_merge_bytes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert websocket.MERGE_BYTES == 256 * 1024
    monkeypatch.setattr(websocket, "MERGE_BYTES", 1000)
    pair.send(b"".join(frame(BINARY, bytes(400)) for _ in range(10)))
    assert [len(pair.receive()) for _ in range(4)] == [3, 3, 3, 1]


def test_more_data_than_the_kernels_buffer_holds(pair: Pair) -> None:
    payloads = [bytes([n]) * 300_000 for n in range(60)]
    writer = gevent.spawn(pair.send, b"".join(frame(BINARY, payload) for payload in payloads))
    received: list[bytes] = []
    while len(received) < len(payloads):
        received += pair.receive()
    writer.join()
    assert received == payloads


def test_a_frame_that_arrives_in_pieces(pair: Pair) -> None:
    waiting = gevent.spawn(pair.receive)
    for byte in frame(TEXT, b"x" * 200) + frame(TEXT, b"y")[:-1]:
        assert not waiting.ready()
        pair.send(bytes((byte,)))
        gevent.sleep(0)
    assert waiting.get(timeout=SECONDS) == [b"x" * 200]
    assert pair.send(b"y").receive() == [b"y"]


@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 1 << 20, LIMIT])
def test_messages_of_every_size_up_to_the_limit(pair: Pair, size: int) -> None:
    writer = gevent.spawn(pair.send, frame(BINARY, b"x" * size))
    [payload] = pair.receive()
    writer.join()
    assert payload == b"x" * size


def test_fragments_are_joined(pair: Pair) -> None:
    pair.send(fragments(TEXT, b"a", b"", b"b") + frame(BINARY, b"c") + fragments(BINARY, b"\xff", b"\xfe"))
    assert [pair.receive(), pair.receive(), pair.receive()] == [
        [b"ab"],
        [b"c"],
        [b"\xff\xfe"],
    ]


def test_a_character_may_be_split_between_fragments(pair: Pair) -> None:
    assert pair.send(fragments(TEXT, EURO[:1], EURO[1:])).receive() == [EURO]


def test_the_limit_holds_for_all_fragments_together(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "UPSTREAM_MESSAGE_BYTES", 40_000)
    for _ in range(2):
        assert pair.send(fragments(BINARY, *[b"x" * 100] * 400)).receive() == [b"x" * 40_000]
    assert pair.send(fragments(BINARY, *[b"x" * 100] * 401)).lost() == "message over 40000 bytes"


# Control frames, which the writer answers


def test_a_pong_is_left_to_the_writer(pair: Pair) -> None:
    assert pair.send(frame(PING, b"\xffhi")).receive() == []
    assert pair.send(frame(PING)).receive() == []
    assert pair.replies == [(PONG, b"\xffhi"), (PONG, b"")]
    assert pair.silent()


def test_receive_returns_after_a_pong(pair: Pair) -> None:
    assert pair.send(frame(PONG, b"x" * 125)).receive() == []
    assert pair.replies == []


def test_a_ping_between_messages_keeps_its_position(pair: Pair) -> None:
    pair.send(frame(TEXT, b"a") + frame(PING, b"p") + frame(TEXT, b"b"))
    assert [pair.receive(), pair.receive(), pair.receive()] == [[b"a"], [], [b"b"]]
    assert pair.replies == [(PONG, b"p")]


def test_a_ping_between_fragments(pair: Pair) -> None:
    pair.send(frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"b"))
    assert [pair.receive(), pair.receive()] == [[], [b"ab"]]
    assert pair.replies == [(PONG, b"p")]
    assert pair.silent()


# The end of a connection

PROTOCOL_ERROR, NOT_UTF8, TOO_BIG = 1002, 1007, 1009
NOT_ALLOWED = "a frame that RFC 6455 does not allow"
LOST: dict[str, tuple[bytes, str, int]] = {  # received bytes, text of ConnectionLost, close code
    "close without a code": (frame(CLOSE), "closed by the other side with 1005", 1000),
    "close with a code": (close(1001), "closed by the other side with 1001", 1001),
    "close with a reason": (close(1008, b"slow client"), "closed by the other side with 1008 slow client", 1008),
    "close with a reason that is not UTF-8": (close(4000, b"\xff"), "text that is not UTF-8", NOT_UTF8),
    "close of one byte": (frame(CLOSE, b"\x03"), "Invalid close frame.", PROTOCOL_ERROR),
    "close with a code that must not be sent": (close(1005), "Invalid close opcode 1005", PROTOCOL_ERROR),
    "a masked frame": (b"\x81\x81\x00\x00\x00\x00x", "masked frame from the server", PROTOCOL_ERROR),
    **{f"RSV{bit}": (frame(TEXT, b"x", rsv=8 >> bit), NOT_ALLOWED, PROTOCOL_ERROR) for bit in (1, 2, 3)},
    **{f"opcode {code:X}": (frame(code), NOT_ALLOWED, PROTOCOL_ERROR) for code in (3, 7, 11, 15)},
    "RSV1 on a ping": (frame(PING, rsv=4), NOT_ALLOWED, PROTOCOL_ERROR),
    "a ping in fragments": (frame(PING, fin=False), NOT_ALLOWED, PROTOCOL_ERROR),
    "a close in fragments": (frame(CLOSE, fin=False), NOT_ALLOWED, PROTOCOL_ERROR),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), NOT_ALLOWED, PROTOCOL_ERROR),
    "a pong of 126 bytes": (frame(PONG, b"x" * 126), NOT_ALLOWED, PROTOCOL_ERROR),
    "a continuation without a beginning": (frame(CONTINUATION, b"x"), "a fragment out of place", PROTOCOL_ERROR),
    "text that is not UTF-8": (frame(TEXT, b"x\xff"), "text that is not UTF-8", NOT_UTF8),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), "text that is not UTF-8", NOT_UTF8),
    "text in fragments that is not UTF-8": (fragments(TEXT, b"x", EURO[:2]), "text that is not UTF-8", NOT_UTF8),
    "a length over the limit": (b"\x82\x7f" + struct.pack("!Q", LIMIT + 1), f"frame over {LIMIT} bytes", TOO_BIG),
    "a length of 2^63": (b"\x82\x7f" + struct.pack("!Q", 1 << 63), f"frame over {LIMIT} bytes", TOO_BIG),
}


@pytest.mark.parametrize(("data", "reason", "code"), LOST.values(), ids=LOST.keys())
def test_frames_that_end_the_connection(pair: Pair, data: bytes, reason: str, code: int) -> None:
    """The close frame is left to the writer."""
    assert pair.send(data).lost() == reason
    assert pair.silent()
    assert pair.replies == [(CLOSE, struct.pack("!H", code))]


@pytest.mark.parametrize("data", [case for case, _, _ in LOST.values()], ids=LOST.keys())
def test_whole_messages_before_the_end_are_returned(pair: Pair, data: bytes) -> None:
    pair.send(frame(TEXT, b"a") + frame(BINARY, b"b") + data)
    assert pair.receive() == [b"a", b"b"]
    pair.lost()


@pytest.mark.parametrize("ping", [b"", frame(PING)], ids=["at once", "after a ping"])
def test_a_message_that_begins_inside_another_ends_the_connection(pair: Pair, ping: bytes) -> None:
    pair.send(frame(TEXT, b"a", fin=False) + ping + frame(TEXT, b"b"))
    if ping:
        assert pair.receive() == []
    assert pair.lost() == "a fragment out of place"


def test_an_end_without_a_close_frame(pair: Pair) -> None:
    pair.send(frame(TEXT, b"a") + frame(TEXT, b"b")[:-1]).sock.shutdown(socket.SHUT_WR)
    assert pair.receive() == [b"a"]
    assert pair.lost() == "closed by the other side, no close frame"
    assert pair.replies == []


def test_a_reset(pair: Pair) -> None:
    pair.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.sock.close()
    assert "reset" in pair.lost()
    with pytest.raises(ConnectionLost):
        pair.connection.write(TEXT, b"x")


def test_shut_wakes_the_reader_and_the_writer(pair: Pair) -> None:
    reader, writer = gevent.spawn(pair.lost), gevent.spawn(pair.connection.write, BINARY, bytes(16 << 20))
    gevent.sleep(0.05)
    assert not reader.ready()
    assert not writer.ready()
    pair.connection.shut()
    assert reader.get(timeout=SECONDS) == "closed here"
    writer.join(timeout=SECONDS)
    assert isinstance(writer.exception, ConnectionLost)
    pair.connection.shut()


def test_free_closes_the_socket(pair: Pair) -> None:
    pair.connection.free()
    assert pair.sock.recv(1) == b""
    assert pair.lost() == "closed here"
    with pytest.raises(ConnectionLost):
        pair.connection.write(TEXT, b"x")
    pair.connection.free()
    pair.connection.shut()


@pytest.fixture(autouse=True)
def silent_greenlets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep gevent from printing a ConnectionLost that a test expects."""
    monkeypatch.setattr(gevent.get_hub(), "NOT_ERROR", (*gevent.get_hub().NOT_ERROR, ConnectionLost))


# Writing


@pytest.mark.parametrize(
    ("opcode", "payload"),
    [
        (TEXT, b"Hello"),
        (BINARY, b"\xff" * 70_000),
        (BINARY, bytes(3 << 20)),
        (PING, b""),
        (PONG, b"\xff"),
        (TEXT, EURO),
    ],
)
def test_a_server_reads_the_written_frame(pair: Pair, opcode: int, payload: bytes) -> None:
    writer = gevent.spawn(pair.connection.write, opcode, payload)
    server = FrameProtocol(client=False, extensions=[])
    read: list[bytes] = []
    finished = False
    while not finished:
        server.receive_bytes(pair.sock.recv(1 << 20))
        for piece in server.received_frames():
            assert isinstance(piece.payload, bytes | str)
            assert piece.opcode is Opcode(opcode)
            read.append(piece.payload.encode() if isinstance(piece.payload, str) else piece.payload)
            finished = piece.message_finished
    writer.get(timeout=SECONDS)
    assert b"".join(read) == payload


# Streams in arbitrary pieces


class PiecewiseSocket:
    """A socket that returns a stream in given pieces, and then its end; it is always readable."""

    def __init__(self, pieces: Iterable[bytes], readable: socket.socket) -> None:
        self._pieces = iter([piece for piece in pieces if piece])
        self.fileno, self.settimeout = readable.fileno, readable.settimeout

    def recv(self, size: int) -> bytes:
        piece = next(self._pieces, b"")
        assert len(piece) <= size
        return piece


CONTROLS = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125))
PAYLOADS = st.one_of(
    st.tuples(st.just(True), st.text(max_size=200).map(str.encode)),
    st.tuples(st.just(False), st.binary(max_size=300)),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes], list[bytes]]:
    """Generate a valid stream of frames, with its messages and its pings."""
    stream = b""
    messages: list[bytes] = []
    pings: list[bytes] = []
    for text, payload in draw(st.lists(PAYLOADS, max_size=6)):
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        for at, (begin, end) in enumerate(pairwise([0, *cuts, len(payload)])):
            for opcode, data in draw(st.lists(CONTROLS, max_size=1)):
                stream += frame(opcode, data)
                pings += [data] if opcode == PING else []
            first = TEXT if text else BINARY
            stream += frame(CONTINUATION if at else first, payload[begin:end], fin=at == len(cuts))
        messages.append(payload)
    return stream, messages, pings


@given(streams(), st.data())
def test_the_messages_of_a_stream_do_not_depend_on_its_pieces(
    expected: tuple[bytes, list[bytes], list[bytes]], data: st.DataObject
) -> None:
    stream, messages, pings = expected
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8), label="cuts"))
    for pieces in (
        [stream],
        [stream[begin:end] for begin, end in pairwise([0, *cuts, len(stream)])],
        [bytes((byte,)) for byte in stream],
    ):
        assert received(pieces) == (messages, pings, "closed by the other side, no close frame")


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([case for case, _, _ in LOST.values()]))), st.data())
def test_any_bytes_raise_connection_lost_at_the_most(parts: Sequence[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8), label="cuts"))
    assert received([stream[begin:end] for begin, end in pairwise([0, *cuts, len(stream)])]) == received([stream])


def received(pieces: Iterable[bytes]) -> tuple[list[bytes], list[bytes], str]:
    """Return the messages, the pings and the error's text for a stream in pieces."""
    replies: list[tuple[int, bytes]] = []
    connection = UpstreamConnection(lambda opcode, payload: replies.append((opcode, payload)))
    connection.connected = True
    messages: list[bytes] = []
    ends = socket.socketpair()
    with ends[0], ends[1]:
        ends[1].send(b"x")
        connection.begin(PiecewiseSocket(pieces, ends[0]), b"")  # type: ignore[arg-type]
        try:
            while True:
                messages += connection.receive()
        except ConnectionLost as lost:
            return messages, [payload for opcode, payload in replies if opcode == PONG], str(lost)
        finally:
            connection._readable.close()


# Opening a connection


def test_the_upgrade_request(serve: Callable[..., Server]) -> None:
    requests: list[str] = []

    def script(sock: socket.socket) -> None:
        requests.append(head(sock))
        sock.sendall(accept(requests[0]) + frame(TEXT, b"right behind the head"))
        sock.recv(1)

    server = serve(script)
    connection = dial(server.url, {"Content-Type": "application/msgpack", "User-Agent": "alpaca-proxy"}, no_reply)
    try:
        assert connection.receive() == [b"right behind the head"]
        assert connection.sock is not None
        assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    finally:
        connection.free()
    first, *headers = requests[0].splitlines()
    assert first == "GET /v2/iex?x=1 HTTP/1.1"
    names = [line.partition(":")[0] for line in headers if line]
    assert sorted(names) == sorted(
        {*names, "Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"}
    )
    assert "Origin" not in names
    assert {f"Host: {HERE}:{server.port}", "Content-Type: application/msgpack", "User-Agent: alpaca-proxy"} <= {
        *headers
    }


def answering(response: bytes | Callable[[str], bytes]) -> Callable[[socket.socket], None]:
    """Return a script that answers a request with `response`.

    If `response` is a function, the script sends its result for the request's head.
    """

    def script(sock: socket.socket) -> None:
        upgrade = head(sock)
        sock.sendall(response if isinstance(response, bytes) else response(upgrade))

    return script


@pytest.mark.parametrize("status", [200, 301, 302, 303, 307, 308, 400, 401, 403, 404, 426, 429, 500, 502, 503])
def test_any_other_status_raises_upgrade_refused(serve: Callable[..., Server], status: int) -> None:
    elsewhere = serve(lambda sock: sock.sendall(accept(head(sock))))
    lines = [f"HTTP/1.1 {status} No", f"Location: {elsewhere.url}", "Content-Length: 4", "\r\nbody"]
    server = serve(answering("\r\n".join(lines).encode()))
    with pytest.raises(UpgradeRefused) as refused:
        dial(server.url, {}, no_reply)
    assert refused.value.status == status
    assert (server.accepted, elsewhere.accepted) == (1, 0)


INVALID_RESPONSES = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso",
    "no status": b"\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "a status that is no number": b"HTTP/1.1 good Yes\r\n\r\n",
    "no headers": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "another key": lambda upgrade: accept(upgrade.replace("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: x")),
    "no Upgrade": lambda upgrade: accept(upgrade).replace(b"Upgrade: websocket\r\n", b""),
    "bytes that are not UTF-8": b"HTTP/1.1 101 \xff\r\n\r\n",
    "an invalid cookie": lambda upgrade: accept(upgrade)[:-2] + b"Set-Cookie: a=b; {=c\r\n\r\n",
}


@pytest.mark.parametrize("response", INVALID_RESPONSES.values(), ids=INVALID_RESPONSES.keys())
def test_an_invalid_response_raises_connection_lost(
    serve: Callable[..., Server], response: bytes | Callable[[str], bytes]
) -> None:
    with pytest.raises(ConnectionLost) as lost:
        dial(serve(answering(response)).url, {}, no_reply)
    assert str(lost.value)


ENDLESS = {
    "a line": (b"HTTP/1.1 101 " + b"x" * 1_000_000, ConnectionLost),
    "headers": (b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 200_000, ConnectionLost),
    "a body": (b"HTTP/1.1 503 No\r\nContent-Length: 9999999999\r\n\r\n" + b"x" * 1_000_000, UpgradeRefused),
}


@pytest.mark.parametrize(("response", "error"), ENDLESS.values(), ids=ENDLESS.keys())
def test_an_endless_response(serve: Callable[..., Server], response: bytes, error: type[Exception]) -> None:
    """The dial fails at the limit, and other greenlets run until then."""
    iterations = 0

    def count() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            gevent.sleep(0)

    counting = gevent.spawn(count)
    with pytest.raises(error):
        dial(serve(answering(response)).url, {}, no_reply)
    counting.kill()
    assert iterations >= websocket.ANSWER_HEAD_BYTES // websocket.ANSWER_READ_BYTES


def test_frames_right_behind_the_response_are_not_lost(serve: Callable[..., Server]) -> None:
    server = serve(answering(lambda upgrade: accept(upgrade) + b"\x81\x05hello"))
    connection = dial(server.url, {}, no_reply)
    assert connection.receive() == [b"hello"]
    connection.free()


def test_a_port_without_a_listener() -> None:
    with pytest.raises(ConnectionLost, match="refused"):
        dial(f"ws://{HERE}:{free_port()}", {}, no_reply)


@pytest.mark.parametrize(
    "url", ["ws://", "ws://127.0.0.1:port", "ws://127.0.0.1:99999", "http://127.0.0.1:1", "ws://no such host"]
)
def test_an_invalid_address(url: str) -> None:
    with pytest.raises(ConnectionLost):
        dial(url, {}, no_reply)


def test_a_response_that_does_not_arrive(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.05)
    with pytest.raises(ConnectionLost, match="timed out"):
        dial(serve(lambda _: gevent.sleep(60)).url, {}, no_reply)


def test_a_response_that_arrives_too_slowly(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "DIAL_SECONDS", 0.1)

    def script(sock: socket.socket) -> None:
        while True:
            sock.sendall(b"H")
            gevent.sleep(0.01)

    with pytest.raises(ConnectionLost):
        dial(serve(script).url, {}, no_reply)


def test_an_open_connection_may_be_silent(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.05)
    monkeypatch.setattr(websocket, "DIAL_SECONDS", 0.05)

    def script(sock: socket.socket) -> None:
        sock.sendall(accept(head(sock)))
        gevent.sleep(0.15)
        sock.sendall(frame(TEXT, b"late"))
        sock.recv(1)

    connection = dial(serve(script).url, {}, no_reply)
    assert connection.receive() == [b"late"]
    connection.free()


@pytest.fixture
def unresponsive() -> Iterator[int]:
    """A port that neither accepts nor refuses connections."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((HERE, 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        while True:
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.05)
            try:
                waiting.connect((HERE, port))
            except TimeoutError:
                break
        yield port


def test_an_unresponsive_address_leaves_time_for_the_next(
    serve: Callable[..., Server], unresponsive: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(answering(accept))
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (HERE, port)) for port in (unresponsive, server.port)]
    monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *_: addresses)
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.05)
    dial(f"ws://stream.example:{server.port}", {}, no_reply).free()
    monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *_: addresses[:1])
    with pytest.raises(ConnectionLost, match="timed out"):
        dial(f"ws://stream.example:{server.port}", {}, no_reply)


# TLS


@pytest.fixture
def secure(serve: Callable[..., Server], certificate: tuple[Path, Path]) -> Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def script(sock: socket.socket) -> None:
        sock.sendall(accept(head(sock)) + b"".join(frame(BINARY, b"x" * 30_000) for _ in range(10)))
        sock.recv(1)

    return serve(script, tls=context)


def test_an_untrusted_certificate(secure: Server) -> None:
    with pytest.raises(ConnectionLost, match="certificate verify failed"):
        dial(secure.url, {}, no_reply)


def test_a_trusted_certificate(secure: Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setattr(websocket, "tls_context", ssl.create_default_context)
    connection = dial(secure.url, {}, no_reply)
    messages: list[bytes] = []
    while len(messages) < 10:
        messages += connection.receive()
    connection.write(TEXT, b"x")
    connection.shut()
    with pytest.raises(ConnectionLost):
        connection.receive()
    connection.free()
    assert messages == [b"x" * 30_000] * 10


def test_waiting_tls_records_are_read_in_one_time_slice(
    serve: Callable[..., Server], certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one for each turn of the hub, in which every other greenlet works for a time slice."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    sent = Event()

    def script(sock: socket.socket) -> None:
        sock.sendall(accept(head(sock)))
        for number in range(RECORDS):
            sock.sendall(frame(BINARY, b"%200d" % number))
        sent.set()
        sock.recv(1)

    def work() -> None:
        time_slice = TimeSlice()
        while True:
            if time_slice.over():
                turns.append(1)
                time_slice.yield_to_hub()

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setattr(websocket, "tls_context", ssl.create_default_context)
    connection = dial(serve(script, tls=context).url, {}, no_reply)
    assert sent.wait(SECONDS)
    turns: list[int] = []
    messages: list[bytes] = []
    workers = [gevent.spawn(work) for _ in range(3)]
    try:
        while len(messages) < RECORDS:
            messages += connection.receive()
    finally:
        gevent.killall(workers)
        connection.free()
    assert messages == [b"%200d" % number for number in range(RECORDS)]
    assert len(turns) < RECORDS / 2, f"{len(turns)} turns of others"


def test_a_certificate_of_another_host(
    secure: Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setattr(websocket, "tls_context", ssl.create_default_context)
    with pytest.raises(ConnectionLost, match="certificate verify failed"):
        dial(secure.url.replace(HERE, "localhost"), {}, no_reply)


def test_tls_to_a_server_without_tls(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.1)
    for script in (lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), lambda _: gevent.sleep(60)):
        with pytest.raises(ConnectionLost):
            dial(serve(script).url.replace("ws://", "wss://"), {}, no_reply)


# HTTP proxies


def tunnel(requests: list[str]) -> Callable[[socket.socket], None]:
    """The script of a proxy, and of the server behind it; keeps the heads of the proxy's requests."""

    def script(sock: socket.socket) -> None:
        requests.append(head(sock))
        sock.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        sock.sendall(accept(head(sock)))

    return script


def test_the_environments_http_proxy_is_used_but_not_for_this_machine(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[str] = []
    proxy = serve(tunnel(requests))
    monkeypatch.setenv("http_proxy", f"http://{HERE}:{proxy.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    dial("ws://stream.example/v2/iex", {}, no_reply).free()
    assert [first.splitlines()[0] for first in requests] == ["CONNECT stream.example:80 HTTP/1.1"]

    direct = serve(answering(accept))
    dial(direct.url, {}, no_reply).free()
    assert (proxy.accepted, direct.accepted) == (1, 1)


def test_the_http_proxys_credentials(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []
    proxy = serve(tunnel(requests))
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@{HERE}:{proxy.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    dial("ws://stream.example:8080/v2/iex", {}, no_reply).free()
    assert "Proxy-Authorization: Basic bWU6cEBzcw==" in requests[0].splitlines()
    assert "Host: stream.example:8080" in requests[0].splitlines()


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"HTTP/1.1 407 Who are you\r\n\r\n", "the HTTP proxy answered 407"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", "the HTTP proxy answered no HTTP"),
        (b"HTTP/1.1 200 ", "the HTTP proxy closed the connection"),
        (b"HTTP/1.1 200 " + b"x" * 1_000_000, "HTTP response over 16384 bytes"),
    ],
)
def test_an_http_proxy_that_refuses(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, response: bytes, reason: str
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{HERE}:{serve(answering(response)).port}")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ConnectionLost, match=reason):
        dial("ws://stream.example/v2/iex", {}, no_reply)
