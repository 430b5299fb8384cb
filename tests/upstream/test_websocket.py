"""The connection to Alpaca, against a server made of a raw socket that says exactly what a test wants."""

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
from gevent.event import AsyncResult
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode

from proxy.transport import frames
from proxy.transport.errors import ConnectionLost, UpgradeRefused
from proxy.transport.frames import BINARY, CLOSE, PING, PONG, TEXT
from proxy.upstream import websocket
from proxy.upstream.websocket import Frame, UpstreamConnection, dial

SECONDS = 5
HERE = "127.0.0.1"
CONTINUATION = 0
LIMIT = websocket.UPSTREAM_MESSAGE_BYTES
EURO = "€".encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """A server's frame, as wrong as it is asked to be."""
    encoded = frames.encode(opcode, payload)
    return bytes((fin << 7 | rsv << 4 | opcode,)) + encoded[1:]


def fragments(opcode: int, *parts: bytes) -> bytes:
    """One message in so many frames."""
    last = len(parts) - 1
    return b"".join(frame(CONTINUATION if at else opcode, part, fin=at == last) for at, part in enumerate(parts))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


class Server:
    """A listening socket; whoever connects is met by `script`, in a greenlet."""

    def __init__(self, script: Callable[[socket.socket], object], *, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._listening = socket.create_server((HERE, 0))
        self.port = self._listening.getsockname()[1]
        self.visits = 0
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
            self.visits += 1
            with sock, suppress(OSError):
                if self._tls is None:
                    self._script(sock)
                    continue
                with self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as secured:
                    secured.do_handshake()
                    self._script(secured)


def head(sock: socket.socket) -> str:
    """A request's head, and nothing of what follows."""
    said = b""
    while not said.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionResetError
        said += byte
    return said.decode()


def accept(asked: str) -> bytes:
    """The answer that makes a WebSocket of it."""
    key = re.findall(r"Sec-WebSocket-Key: (\S+)", asked)[0]
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    said = base64.b64encode(digest).decode()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {said}",
    ]
    return "\r\n".join([*lines, "\r\n"]).encode()


class Pair:
    """A connection, the raw socket at its other end, and what the connection wants its writer to answer."""

    def __init__(self, connection: UpstreamConnection, sock: socket.socket, replies: list[tuple[int, bytes]]) -> None:
        self.connection = connection
        self.sock = sock
        self.replies = replies

    def send_json(self, data: bytes) -> Pair:
        self.sock.sendall(data)
        return self

    def receive(self) -> list[tuple[bool, bytes]]:
        return [(frame.text, frame.payload) for frame in self.connection.receive()]

    def lost(self) -> str:
        """Why the connection is lost, now."""
        with pytest.raises(ConnectionLost) as lost:
            self.connection.receive()
        return str(lost.value)

    def silent(self) -> bool:
        """Whether nothing has been written by the connection."""
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
    met: AsyncResult[socket.socket] = AsyncResult()

    def script(sock: socket.socket) -> None:
        sock.sendall(accept(head(sock)))
        met.set(sock)
        gevent.sleep(60)

    replies: list[tuple[int, bytes]] = []
    connection = dial(serve(script).url, {}, lambda opcode, payload: replies.append((opcode, payload)))
    sock = met.get(timeout=SECONDS)
    sock.settimeout(SECONDS)
    yield Pair(connection, sock, replies)
    connection.free()


def nobody(_: int, __: bytes) -> None:
    raise AssertionError("nothing was to be answered")


# Messages


def test_one_receive_takes_what_is_there(pair: Pair) -> None:
    pair.send_json(frame(TEXT, b"a") + frame(BINARY, b"\xff") + frame(TEXT))
    assert pair.receive() == [(True, b"a"), (False, b"\xff"), (True, b"")]
    pair.send_json(frame(TEXT, "aß€\U0010ffff".encode()))
    assert pair.receive() == [(True, "aß€\U0010ffff".encode())]


def test_at_most_256_frames_at_once(pair: Pair) -> None:
    pair.send_json(b"".join(frame(BINARY, b"%d" % n) for n in range(800)))
    received = [pair.receive() for _ in range(4)]
    assert [len(messages) for messages in received] == [256, 256, 256, 32]
    assert [payload for messages in received for _, payload in messages] == [b"%d" % n for n in range(800)]


def test_at_most_so_many_bytes_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert websocket.MERGE_BYTES == 256 * 1024
    monkeypatch.setattr(websocket, "MERGE_BYTES", 1000)
    pair.send_json(b"".join(frame(BINARY, bytes(400)) for _ in range(10)))
    assert [len(pair.receive()) for _ in range(4)] == [3, 3, 3, 1]


def test_more_than_the_kernel_holds_at_once(pair: Pair) -> None:
    payloads = [bytes([n]) * 300_000 for n in range(60)]
    writer = gevent.spawn(pair.send_json, b"".join(frame(BINARY, payload) for payload in payloads))
    received: list[bytes] = []
    while len(received) < len(payloads):
        received += [payload for _, payload in pair.receive()]
    writer.join()
    assert received == payloads


def test_a_frame_in_pieces_arrives_whole(pair: Pair) -> None:
    waiting = gevent.spawn(pair.receive)
    for byte in frame(TEXT, b"x" * 200) + frame(TEXT, b"y")[:-1]:
        assert not waiting.ready()
        pair.send_json(bytes((byte,)))
        gevent.sleep(0)
    assert waiting.get(timeout=SECONDS) == [(True, b"x" * 200)]
    assert pair.send_json(b"y").receive() == [(True, b"y")]


@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 1 << 20, LIMIT])
def test_every_size_up_to_the_limit(pair: Pair, size: int) -> None:
    writer = gevent.spawn(pair.send_json, frame(BINARY, b"x" * size))
    [(text, payload)] = pair.receive()
    writer.join()
    assert not text
    assert payload == b"x" * size


def test_fragments_make_one_message(pair: Pair) -> None:
    pair.send_json(fragments(TEXT, b"a", b"", b"b") + frame(BINARY, b"c") + fragments(BINARY, b"\xff", b"\xfe"))
    assert [pair.receive(), pair.receive(), pair.receive()] == [
        [(True, b"ab")],
        [(False, b"c")],
        [(False, b"\xff\xfe")],
    ]


def test_a_character_may_be_split_between_fragments(pair: Pair) -> None:
    assert pair.send_json(fragments(TEXT, EURO[:1], EURO[1:])).receive() == [(True, EURO)]


def test_many_fragments_up_to_the_limit(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "UPSTREAM_MESSAGE_BYTES", 40_000)
    for _ in range(2):
        assert pair.send_json(fragments(BINARY, *[b"x" * 100] * 400)).receive() == [(False, b"x" * 40_000)]
    assert pair.send_json(fragments(BINARY, *[b"x" * 100] * 401)).lost() == "message over 40000 bytes"


# Control frames: signs of life, answered by the one who writes


def test_a_ping_is_answered_by_the_writer(pair: Pair) -> None:
    assert pair.send_json(frame(PING, b"\xffhi")).receive() == []
    assert pair.send_json(frame(PING)).receive() == []
    assert pair.replies == [(PONG, b"\xffhi"), (PONG, b"")]
    assert pair.silent()


def test_a_pong_is_a_sign_of_life(pair: Pair) -> None:
    assert pair.send_json(frame(PONG, b"x" * 125)).receive() == []
    assert pair.replies == []


def test_a_ping_among_messages_keeps_its_place(pair: Pair) -> None:
    pair.send_json(frame(TEXT, b"a") + frame(PING, b"p") + frame(TEXT, b"b"))
    assert [pair.receive(), pair.receive(), pair.receive()] == [[(True, b"a")], [], [(True, b"b")]]
    assert pair.replies == [(PONG, b"p")]


def test_a_ping_between_fragments(pair: Pair) -> None:
    pair.send_json(frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"b"))
    assert [pair.receive(), pair.receive()] == [[], [(True, b"ab")]]
    assert pair.replies == [(PONG, b"p")]
    assert pair.silent()


# What ends it

PROTOCOL_ERROR, NOT_UTF8, TOO_BIG = 1002, 1007, 1009
NOT_ALLOWED = "a frame that RFC 6455 does not allow"
LOST: dict[str, tuple[bytes, str, int]] = {  # what came, why that is the end, and the code that says so
    "close without a code": (frame(CLOSE), "closed by the other side with 1005", 1000),
    "close with a code": (close(1001), "closed by the other side with 1001", 1001),
    "close with a reason": (close(1008, b"slow client"), "closed by the other side with 1008 slow client", 1008),
    "close with a reason that is not UTF-8": (close(4000, b"\xff"), "text that is not UTF-8", NOT_UTF8),
    "close of one byte": (frame(CLOSE, b"\x03"), "Invalid close frame.", PROTOCOL_ERROR),
    "close with a code that nobody may send": (close(1005), "Invalid close opcode 1005", PROTOCOL_ERROR),
    "a masked frame": (b"\x81\x81\x00\x00\x00\x00x", "masked frame from the server", PROTOCOL_ERROR),
    **{f"RSV{bit}": (frame(TEXT, b"x", rsv=8 >> bit), NOT_ALLOWED, PROTOCOL_ERROR) for bit in (1, 2, 3)},
    **{f"opcode {code:X}": (frame(code), NOT_ALLOWED, PROTOCOL_ERROR) for code in (3, 7, 11, 15)},
    "RSV1 on a ping": (frame(PING, rsv=4), NOT_ALLOWED, PROTOCOL_ERROR),
    "a ping in fragments": (frame(PING, fin=False), NOT_ALLOWED, PROTOCOL_ERROR),
    "a close in fragments": (frame(CLOSE, fin=False), NOT_ALLOWED, PROTOCOL_ERROR),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), NOT_ALLOWED, PROTOCOL_ERROR),
    "a pong of 126 bytes": (frame(PONG, b"x" * 126), NOT_ALLOWED, PROTOCOL_ERROR),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), "Illegal frame", PROTOCOL_ERROR),
    "text that is not UTF-8": (frame(TEXT, b"x\xff"), "text that is not UTF-8", NOT_UTF8),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), "text that is not UTF-8", NOT_UTF8),
    "text in fragments that is not UTF-8": (fragments(TEXT, b"x", EURO[:2]), "text that is not UTF-8", NOT_UTF8),
    "too much announced": (b"\x82\x7f" + struct.pack("!Q", LIMIT + 1), f"frame over {LIMIT} bytes", TOO_BIG),
    "2^63 bytes announced": (b"\x82\x7f" + struct.pack("!Q", 1 << 63), f"frame over {LIMIT} bytes", TOO_BIG),
}


@pytest.mark.parametrize(("said", "why", "code"), LOST.values(), ids=LOST.keys())
def test_what_ends_the_connection(pair: Pair, said: bytes, why: str, code: int) -> None:
    """The answer is the writer's to give."""
    assert pair.send_json(said).lost() == why
    assert pair.silent()
    assert pair.replies == [(CLOSE, struct.pack("!H", code))]


@pytest.mark.parametrize("said", [case for case, _, _ in LOST.values()], ids=LOST.keys())
def test_what_came_whole_before_is_not_lost(pair: Pair, said: bytes) -> None:
    pair.send_json(frame(TEXT, b"a") + frame(BINARY, b"b") + said)
    assert pair.receive() == [(True, b"a"), (False, b"b")]
    pair.lost()


@pytest.mark.parametrize("ping", [b"", frame(PING)], ids=["at once", "after a ping"])
def test_no_message_begins_inside_another(pair: Pair, ping: bytes) -> None:
    pair.send_json(frame(TEXT, b"a", fin=False) + ping + frame(TEXT, b"b"))
    if ping:
        assert pair.receive() == []
    assert pair.lost() == "Illegal frame"


def test_an_end_without_a_word(pair: Pair) -> None:
    pair.send_json(frame(TEXT, b"a") + frame(TEXT, b"b")[:-1]).sock.shutdown(socket.SHUT_WR)
    assert pair.receive() == [(True, b"a")]
    assert pair.lost() == "closed by the other side without a word"
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


def test_what_is_free_is_closed(pair: Pair) -> None:
    pair.connection.free()
    assert pair.sock.recv(1) == b""
    assert pair.lost() == "closed here"
    with pytest.raises(ConnectionLost):
        pair.connection.write(TEXT, b"x")
    pair.connection.free()
    pair.connection.shut()


@pytest.fixture(autouse=True)
def no_writer_fails_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A greenlet that a test lets fail tells it by its `exception`."""
    monkeypatch.setattr(gevent.get_hub(), "NOT_ERROR", (*gevent.get_hub().NOT_ERROR, ConnectionLost))


# What is written


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
def test_what_is_written_is_what_a_server_reads(pair: Pair, opcode: int, payload: bytes) -> None:
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


# However it is chopped


class Chopped:
    """A socket that gives a stream in these pieces, and then ends."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter([piece for piece in pieces if piece])

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
def streams(draw: st.DrawFn) -> tuple[bytes, list[Frame], list[bytes]]:
    """A valid stream of frames, its messages, and its pings."""
    stream = b""
    messages: list[Frame] = []
    pings: list[bytes] = []
    for text, payload in draw(st.lists(PAYLOADS, max_size=6)):
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        for at, (begin, end) in enumerate(pairwise([0, *cuts, len(payload)])):
            for opcode, data in draw(st.lists(CONTROLS, max_size=1)):
                stream += frame(opcode, data)
                pings += [data] if opcode == PING else []
            first = TEXT if text else BINARY
            stream += frame(CONTINUATION if at else first, payload[begin:end], fin=at == len(cuts))
        messages.append(Frame(text, payload))
    return stream, messages, pings


@given(streams(), st.data())
def test_a_valid_stream_is_the_same_however_it_is_chopped(
    expected: tuple[bytes, list[Frame], list[bytes]], data: st.DataObject
) -> None:
    stream, messages, pings = expected
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8), label="cuts"))
    for pieces in (
        [stream],
        [stream[begin:end] for begin, end in pairwise([0, *cuts, len(stream)])],
        [bytes((byte,)) for byte in stream],
    ):
        assert heard(pieces) == (messages, pings, "closed by the other side without a word")


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([said for said, _, _ in LOST.values()]))), st.data())
def test_no_bytes_do_more_than_end_the_connection(parts: Sequence[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8), label="cuts"))
    assert heard([stream[begin:end] for begin, end in pairwise([0, *cuts, len(stream)])]) == heard([stream])


def heard(pieces: Iterable[bytes]) -> tuple[list[Frame], list[bytes], str]:
    """The messages, the pings, and why it ended."""
    replies: list[tuple[int, bytes]] = []
    connection = UpstreamConnection(lambda opcode, payload: replies.append((opcode, payload)))
    connection.sock = Chopped(pieces)  # type: ignore[assignment]
    connection.connected = True
    messages: list[Frame] = []
    try:
        while True:
            messages += connection.receive()
    except ConnectionLost as lost:
        return messages, [payload for opcode, payload in replies if opcode == PONG], str(lost)


# Opening it


def test_the_request(serve: Callable[..., Server]) -> None:
    asked: list[str] = []

    def script(sock: socket.socket) -> None:
        asked.append(head(sock))
        sock.sendall(accept(asked[0]) + frame(TEXT, b"right behind the head"))
        sock.recv(1)

    server = serve(script)
    connection = dial(server.url, {"Content-Type": "application/msgpack", "User-Agent": "alpaca-proxy"}, nobody)
    try:
        assert connection.receive() == [Frame(True, b"right behind the head")]
        assert connection.sock is not None
        assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    finally:
        connection.free()
    first, *headers = asked[0].splitlines()
    assert first == "GET /v2/iex?x=1 HTTP/1.1"
    names = [line.partition(":")[0] for line in headers if line]
    assert sorted(names) == sorted(
        {*names, "Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"}
    )
    assert "Origin" not in names
    assert {f"Host: {HERE}:{server.port}", "Content-Type: application/msgpack", "User-Agent: alpaca-proxy"} <= {
        *headers
    }


def answering(said: bytes | Callable[[str], bytes]) -> Callable[[socket.socket], None]:
    def script(sock: socket.socket) -> None:
        asked = head(sock)
        sock.sendall(said if isinstance(said, bytes) else said(asked))

    return script


@pytest.mark.parametrize("status", [200, 301, 302, 303, 307, 308, 400, 401, 403, 404, 426, 429, 500, 502, 503])
def test_any_other_answer_is_a_refusal_with_its_status(serve: Callable[..., Server], status: int) -> None:
    elsewhere = serve(lambda sock: sock.sendall(accept(head(sock))))
    lines = [f"HTTP/1.1 {status} No", f"Location: {elsewhere.url}", "Content-Length: 4", "\r\nbody"]
    server = serve(answering("\r\n".join(lines).encode()))
    with pytest.raises(UpgradeRefused) as refused:
        dial(server.url, {}, nobody)
    assert refused.value.status == status
    assert (server.visits, elsewhere.visits) == (1, 0)


NO_WEBSOCKET = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso",
    "no status": b"\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "a status that is no number": b"HTTP/1.1 good Yes\r\n\r\n",
    "no headers": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "another key": lambda asked: accept(asked.replace("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: x")),
    "no Upgrade": lambda asked: accept(asked).replace(b"Upgrade: websocket\r\n", b""),
    "bytes that are not UTF-8": b"HTTP/1.1 101 \xff\r\n\r\n",
    "a cookie that is none": lambda asked: accept(asked)[:-2] + b"Set-Cookie: a=b; {=c\r\n\r\n",
}


@pytest.mark.parametrize("said", NO_WEBSOCKET.values(), ids=NO_WEBSOCKET.keys())
def test_what_is_no_answer_is_a_lost_connection(
    serve: Callable[..., Server], said: bytes | Callable[[str], bytes]
) -> None:
    with pytest.raises(ConnectionLost) as lost:
        dial(serve(answering(said)).url, {}, nobody)
    assert str(lost.value)


ENDLESS = {
    "a line": (b"HTTP/1.1 101 " + b"x" * 1_000_000, ConnectionLost),
    "headers": (b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 200_000, ConnectionLost),
    "a body": (b"HTTP/1.1 503 No\r\nContent-Length: 9999999999\r\n\r\n" + b"x" * 1_000_000, UpgradeRefused),
}


@pytest.mark.parametrize(("said", "error"), ENDLESS.values(), ids=ENDLESS.keys())
def test_an_answer_without_end(serve: Callable[..., Server], said: bytes, error: type[Exception]) -> None:
    """It is given up at its bound, and other greenlets run meanwhile."""
    turns = 0

    def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    counting = gevent.spawn(count)
    with pytest.raises(error):
        dial(serve(answering(said)).url, {}, nobody)
    counting.kill()
    assert turns >= websocket.ANSWER_HEAD_BYTES // websocket.ANSWER_READ_BYTES


def test_frames_that_come_with_the_answer_are_kept(serve: Callable[..., Server]) -> None:
    server = serve(answering(lambda asked: accept(asked) + b"\x81\x05hello"))
    connection = dial(server.url, {}, nobody)
    assert connection.receive() == [Frame(True, b"hello")]
    connection.free()


def test_nobody_listens() -> None:
    with socket.create_server((HERE, 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ConnectionLost, match="refused"):
        dial(f"ws://{HERE}:{port}", {}, nobody)


@pytest.mark.parametrize(
    "url", ["ws://", "ws://127.0.0.1:port", "ws://127.0.0.1:99999", "http://127.0.0.1:1", "ws://no such host"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConnectionLost):
        dial(url, {}, nobody)


def test_an_answer_that_does_not_come(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.05)
    with pytest.raises(ConnectionLost, match="timed out"):
        dial(serve(lambda _: gevent.sleep(60)).url, {}, nobody)


def test_an_answer_that_drips(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "DIAL_SECONDS", 0.1)

    def script(sock: socket.socket) -> None:
        while True:
            sock.sendall(b"H")
            gevent.sleep(0.01)

    with pytest.raises(ConnectionLost):
        dial(serve(script).url, {}, nobody)


def test_once_open_it_may_be_silent(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.05)
    monkeypatch.setattr(websocket, "DIAL_SECONDS", 0.05)

    def script(sock: socket.socket) -> None:
        sock.sendall(accept(head(sock)))
        gevent.sleep(0.15)
        sock.sendall(frame(TEXT, b"late"))
        sock.recv(1)

    connection = dial(serve(script).url, {}, nobody)
    assert connection.receive() == [Frame(True, b"late")]
    connection.free()


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port whose connections are neither accepted nor refused."""
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


def test_an_address_that_is_dead_leaves_time_for_the_next(
    serve: Callable[..., Server], deaf: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(answering(accept))
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (HERE, port)) for port in (deaf, server.port)]
    monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *_: places)
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.05)
    dial(f"ws://stream.example:{server.port}", {}, nobody).free()
    monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *_: places[:1])
    with pytest.raises(ConnectionLost, match="timed out"):
        dial(f"ws://stream.example:{server.port}", {}, nobody)


# TLS


@pytest.fixture
def secure(serve: Callable[..., Server], certificate: tuple[Path, Path]) -> Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def script(sock: socket.socket) -> None:
        sock.sendall(accept(head(sock)) + b"".join(frame(BINARY, b"x" * 30_000) for _ in range(10)))
        sock.recv(1)

    return serve(script, tls=context)


def test_a_certificate_that_nobody_vouches_for(secure: Server) -> None:
    with pytest.raises(ConnectionLost, match="certificate verify failed"):
        dial(secure.url, {}, nobody)


def test_a_certificate_that_is_trusted(
    secure: Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    connection = dial(secure.url, {}, nobody)
    messages: list[Frame] = []
    while len(messages) < 10:
        messages += connection.receive()
    connection.write(TEXT, b"x")
    connection.shut()
    with pytest.raises(ConnectionLost):
        connection.receive()
    connection.free()
    assert messages == [Frame(False, b"x" * 30_000)] * 10


def test_a_certificate_of_somebody_else(
    secure: Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with pytest.raises(ConnectionLost, match="certificate verify failed"):
        dial(secure.url.replace(HERE, "localhost"), {}, nobody)


def test_tls_where_none_is_spoken(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.1)
    for script in (lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), lambda _: gevent.sleep(60)):
        with pytest.raises(ConnectionLost):
            dial(serve(script).url.replace("ws://", "wss://"), {}, nobody)


# An HTTP proxy on the way


def test_the_environments_http_proxy_is_used_but_not_for_this_machine(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def script(sock: socket.socket) -> None:
        asked.append(head(sock))
        sock.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        sock.sendall(accept(head(sock)))

    proxy = serve(script)
    monkeypatch.setenv("http_proxy", f"http://{HERE}:{proxy.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    dial("ws://stream.example/v2/iex", {}, nobody).free()
    assert [first.splitlines()[0] for first in asked] == ["CONNECT stream.example:80 HTTP/1.1"]

    direct = serve(answering(accept))
    dial(direct.url, {}, nobody).free()
    assert (proxy.visits, direct.visits) == (1, 1)


def test_the_http_proxys_credentials(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def script(sock: socket.socket) -> None:
        asked.append(head(sock))
        sock.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        sock.sendall(accept(head(sock)))

    proxy = serve(script)
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@{HERE}:{proxy.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    dial("ws://stream.example:8080/v2/iex", {}, nobody).free()
    assert "Proxy-Authorization: Basic bWU6cEBzcw==" in asked[0].splitlines()
    assert "Host: stream.example:8080" in asked[0].splitlines()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 407 Who are you\r\n\r\n", "the HTTP proxy answered 407"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", "the HTTP proxy answered no HTTP"),
        (b"HTTP/1.1 200 ", "the HTTP proxy closed the connection"),
        (b"HTTP/1.1 200 " + b"x" * 1_000_000, "HTTP answer over 16384 bytes"),
    ],
)
def test_an_http_proxy_that_refuses(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, said: bytes, why: str
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{HERE}:{serve(answering(said)).port}")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ConnectionLost, match=why):
        dial("ws://stream.example/v2/iex", {}, nobody)
