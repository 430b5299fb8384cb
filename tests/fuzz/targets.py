"""Fuzz targets, which check the code's invariants for the bytes of one input.

Input that is accepted must be decoded the same way twice; input that is refused must raise the documented exception.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgpack
import websocket
from websocket._handshake import _get_resp_headers

from proxy.alpaca import large_frames, order_events, server_protocol
from proxy.alpaca.codec import JSON, MAX_DOCUMENTS, MSGPACK, Codec, Malformed
from proxy.alpaca.cooperative import run_to_end
from proxy.alpaca.endpoints import endpoint, feed_of_path
from proxy.alpaca.event_time import event_time
from proxy.alpaca.server_protocol import server_protocol_for
from proxy.alpaca.topics import MAX_SYMBOL
from proxy.alpaca.transcode import transcode
from proxy.config import model
from proxy.config.errors import ConfigError
from proxy.transport import frames
from proxy.upstream.websocket import (
    ANSWER_BODY_BYTES,
    ANSWER_HEAD_BYTES,
    ANSWER_READ_BYTES,
    BoundedResponse,
)

PATHS = ("/v2/iex", "/v1beta1/opra", "/v1beta1/news", "/v1beta3/crypto/us", "/v1beta1/crypto", "/stream")
LIMIT = 4096

TRADE = {"T": "t", "S": "AAPL", "i": 1, "x": "V", "p": 1.5, "s": 1, "c": ["@"], "t": "2023-04-06T11:54:26.838232225Z"}
REQUESTS: list[dict[str, object]] = [
    {"action": "auth", "key": "momentum", "secret": "s"},
    {"action": "subscribe", "trades": ["AAPL", "*"], "quotes": [], "bars": ["*"]},
    {"action": "unsubscribe", "news": ["*"], "orderbooks": ["BTC/USD"]},
    {"action": "authenticate", "data": {"key_id": "momentum", "secret_key": "s"}},
    {"action": "listen", "data": {"streams": ["trade_updates", "T.AAPL", "alpacadatav1/AM.*"]}},
    {"action": "unlisten", "data": {"streams": ["Q.AAPL"]}},
]
FILE = """\
listen: {host: 127.0.0.1, port: 8765, tls: {cert: a, key: b}}
limits: {message: 1MiB}
accounts:
  paper: {key: "${KEY:-K}", secret: '${file:x}', trading: paper, codec: {iex: json}}
clients:
  momentum:
    key: momentum
    secret: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    allow:
      iex: {trades: [AAPL, "MS*"], bars: "*"}
"""


def codec(data: bytes) -> None:
    """Decode a data frame from Alpaca.

    Its bodies are parts of its bytes, and each is transcoded or refused.
    """
    for codec_, other in ((JSON, MSGPACK), (MSGPACK, JSON)):
        _decode(codec_, data)
        try:
            raws, heads = codec_.split(data)
        except Malformed:
            continue
        assert len(raws) == len(heads)
        assert all(bytes(raw) in data for raw in raws)
        again, heads_again = codec_.split(codec_.join(raws))
        assert (list(map(bytes, again)), heads_again) == (list(map(bytes, raws)), heads)
        for raw, head in zip(raws, heads, strict=True):
            codec_.news_symbols(raw)
            with suppress(Malformed):
                codec_.fields(raw)
            with suppress(Malformed):
                translated = transcode(head.T, raw, codec_, other)
                assert translated is not None
                if head.T:
                    assert other.head(translated) == head


def _decode(codec_: Codec, data: bytes) -> None:
    """Each decoder returns a value of its type, or None, or raises Malformed."""
    with suppress(Malformed):
        requests = run_to_end(codec_.requests(data))
        assert 0 < len(requests) <= MAX_DOCUMENTS
        assert all(isinstance(key, str) for fields in requests for key in fields)
    with suppress(Malformed):
        codec_.control(data)
    with suppress(Malformed):
        codec_.envelope(data)
    assert isinstance(codec_.text_of(data), str | None)
    assert isinstance(codec_.integer_of(data), int | None)
    assert isinstance(codec_.fields_of(data), dict | None)
    assert all(isinstance(text, str) for text in codec_.texts_of(data) or ())
    event_time(data, codec_)


def session(data: bytes) -> None:
    """Run a client's session.

    The first two bytes choose stream and codec; each line is a message.
    """
    path = PATHS[data[0] % len(PATHS)] if data else PATHS[0]
    content_type = "application/msgpack" if data[1:2] > b"\x7f" else "application/json"
    feed = feed_of_path(path, "iex")
    endpoint_ = endpoint(feed or "")
    assert endpoint_ is not None
    protocol = server_protocol_for(endpoint_, path, content_type)
    for line in data[2:].split(b"\n"):
        for outcome in protocol.receive(line):
            match outcome:
                case server_protocol.Reply(payload):
                    _check_readable(protocol, payload)
                case server_protocol.Authenticate(key, secret):
                    assert isinstance(key, str)
                    assert isinstance(secret, str)
                    _check_readable(protocol, protocol.granted() if key == "momentum" else protocol.denied(402))
                case server_protocol.Subscribe(topics) | server_protocol.Unsubscribe(topics):
                    assert protocol.state is server_protocol.LoginState.AUTHENTICATED
                    _check_topics(protocol, topics)
                case server_protocol.Listen(streams, topics) | server_protocol.Unlisten(streams, topics):
                    assert protocol.state is server_protocol.LoginState.AUTHENTICATED
                    _check_topics(protocol, topics | (streams or frozenset()))


def _check_readable(protocol: server_protocol.ServerProtocol, payload: bytes) -> None:
    """A payload must be readable by other decoders than the proxy's."""
    if payload:
        msgpack.unpackb(payload) if protocol.codec.base is MSGPACK else json.loads(payload)


def _check_topics(protocol: server_protocol.ServerProtocol, topics: server_protocol.Subscription) -> None:
    """Topics must be valid, and their acknowledgement readable."""
    assert all(0 < len(symbol) <= MAX_SYMBOL and channel for channel, symbol in topics)
    assert all("*" not in symbol or symbol == "*" for _, symbol in topics)
    _check_readable(protocol, run_to_end(protocol.acked(topics)))


def inbound(data: bytes) -> None:
    """Read WebSocket frames in one piece and in several, with the same result.

    Only RFC 6455 errors may end it.
    """
    step = 1 + (data[0] if data else 0)
    whole = list(_events([data[1:]]))
    assert whole == list(_events(data[at : at + step] for at in range(1, len(data), step)))
    for event in whole:
        assert not isinstance(event, int) or event in (frames.PROTOCOL_ERROR, frames.NOT_UTF8, frames.TOO_BIG)
        assert not isinstance(event, frames.Message) or len(event.payload) <= LIMIT


def _events(pieces: Iterable[bytes]) -> Iterator[object]:
    reader = frames.Inbound(LIMIT)
    try:
        for piece in pieces:
            for event in reader.receive(piece):
                yield event
                if isinstance(event, frames.Closed):
                    return
    except frames.FrameError as fault:
        yield fault.code


def yaml(data: bytes) -> None:
    """Parse a configuration.

    It is accepted, or every problem has one line of text and its position.
    """
    text = data.decode(errors="ignore")
    problems = None
    try:
        model.parse(text, "proxy.yaml", {"KEY": "K"}, Path("/nonexistent"))
    except ConfigError as error:
        problems = error.problems
    assert problems is None or len(problems) > 0
    for problem in problems or ():
        assert "\n" not in str(problem)
        assert 0 <= problem.line <= len(text.splitlines()) + 1


def large(data: bytes) -> None:
    """A large frame: cut into the bodies that `split` finds, or malformed; never into others."""
    for known in (JSON, MSGPACK):
        bodies: list[bytes] = []
        try:
            for piece in large_frames.pieces(data, known):
                bodies += map(bytes, known.split(piece)[0] if piece is not None else ())
        except Malformed:
            continue
        with suppress(Malformed):
            assert bodies == [bytes(raw) for raw in known.split(data)[0]]


def answer(data: bytes) -> None:
    """The HTTP answer to an upgrade: read within its bounds, whatever it is."""

    class Socket:
        def __init__(self) -> None:
            self.rest = data

        def gettimeout(self) -> float:
            return 1.0

        def recv(self, size: int) -> bytes:
            part, self.rest = self.rest[:size], self.rest[size:]
            return part

    response = BoundedResponse(Socket())
    with suppress(websocket.WebSocketException, ValueError):
        _get_resp_headers(response)
    assert response.status is None or 0 <= response.status <= 999
    assert len(data) - len(response.socket.rest) <= ANSWER_HEAD_BYTES + ANSWER_BODY_BYTES + ANSWER_READ_BYTES


def events(data: bytes) -> None:
    """An order update and a query of an event stream; the first line is the query."""
    query, _, update = data.partition(b"\n")
    with suppress(ValueError):
        window = order_events.Window.of_query(query.decode("latin-1"))
        assert window.until is None or window.since is not None
    stamped = order_events.stamped(update, 1_700_000_000_000_000_000, 1_600_000_000_000_000_000)
    if stamped is not None:
        at, body, _ = stamped
        assert at >= 1_600_000_000_000_000_000
        assert order_events.time_of(body) == at
        assert order_events.event(body).count(b"\n") == 2


TARGETS: dict[str, Callable[[bytes], None]] = {
    "codec": codec,
    "session": session,
    "frames": inbound,
    "yaml": yaml,
    "large": large,
    "answer": answer,
    "events": events,
}


def seeds(target: str) -> Iterator[bytes]:
    """The seeds of a target's inputs."""
    if target == "codec":
        for codec_ in (JSON, MSGPACK):
            yield codec_.encode([TRADE, {"T": "n", "symbols": ["AAPL"]}])
            yield codec_.encode(REQUESTS[1])
        yield b'{"action":"auth"}{"action":"subscribe"}'
        yield b"\x91\x83\xa1T\xa1t\xa1S\xa1A\xa1t\xd7\xff" + bytes(8)
    elif target == "session":
        for at in range(len(PATHS)):
            yield bytes((at, 0)) + b"\n".join(map(JSON.encode, REQUESTS))
            yield bytes((at, 255)) + b"\n".join(map(MSGPACK.encode, REQUESTS))
    elif target == "frames":
        yield bytes.fromhex("00 8185 37fa213d 7f9f4d5158 8980 00000000 8882 00000000 03e8")
        yield bytes.fromhex("03 0181 00000000 61 8a81 00000000 78 8081 00000000 62")
        yield bytes.fromhex("07 82fe0080 01020304") + bytes(128)
        yield bytes.fromhex("01 82ff 0000000000001000 00000000")
    elif target == "large":
        yield JSON.encode([TRADE, {"T": "n", "symbols": ["AAPL"], "x": {"y": "]}"}}])
        yield b' [ {"a":"\\"}"} , [] ] '
        yield MSGPACK.encode([TRADE, {"T": "x", "y": [1, -1, 2.5, None, "text" * 20, b"z" * 300, 2**40, {}]}])
        yield b"\xdd\x00\x00\x00\x01\xdf\x00\x00\x00\x01\xa1t\xd7\xff" + bytes(8)
    elif target == "answer":
        yield b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x01x"
        yield b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nhello"
        yield b"HTTP/1.1 302 Elsewhere\nLocation: ws://other\nSet-Cookie: a=b\n\n"
    elif target == "events":
        yield b'since=2026-03-02T15:00:00.5Z&until=2026-03-03\n{"order":{"id":"1"},\n"at":"2026-03-02T10:00:00-05:00"}'
        yield b'since_id=1\n{"event":"new","at":null}'
    else:
        yield FILE.encode()
        yield b"accounts: [&a {b: *a}, !!int 1, 'x', \"\\u00e9\"]\n---\n? |\n  x\n: >-\n  y\n"
