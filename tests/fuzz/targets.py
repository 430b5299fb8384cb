"""What is fuzzed, and what it promises: more than not to fall. What a target takes, it must take the same way twice;
what it refuses, it refuses with the exception that its callers know. Each takes the bytes of one input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgpack

from proxy.alpaca import server_protocol as talk
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
    """A data frame from Alpaca: its bodies are its bytes, and a body is translated or refused."""
    for known, other in ((JSON, MSGPACK), (MSGPACK, JSON)):
        _decoded(known, data)
        try:
            raws, heads = known.split(data)
        except Malformed:
            continue
        assert len(raws) == len(heads)
        assert all(bytes(raw) in data for raw in raws)
        again, heads_again = known.split(known.join(raws))
        assert (list(map(bytes, again)), heads_again) == (list(map(bytes, raws)), heads)
        for raw, head in zip(raws, heads, strict=True):
            known.news_symbols(raw)
            with suppress(Malformed):
                known.fields(raw)
            with suppress(Malformed):
                translated = transcode(head.T, raw, known, other)
                assert translated is not None
                if head.T:
                    assert other.head(translated) == head


def _decoded(known: Codec, data: bytes) -> None:
    """Whatever bytes come as a message or as a value in one, each decoder gives its type, or says that it is not."""
    with suppress(Malformed):
        found = run_to_end(known.requests(data))
        assert 0 < len(found) <= MAX_DOCUMENTS
        assert all(isinstance(key, str) for fields in found for key in fields)
    with suppress(Malformed):
        known.control(data)
    with suppress(Malformed):
        known.envelope(data)
    assert isinstance(known.text_of(data), str | None)
    assert isinstance(known.integer_of(data), int | None)
    assert isinstance(known.fields_of(data), dict | None)
    assert all(isinstance(text, str) for text in known.texts_of(data) or ())
    event_time(data, known)


def session(data: bytes) -> None:
    """A conversation: its first bytes choose the stream and the codec, a line is a message."""
    path = PATHS[data[0] % len(PATHS)] if data else PATHS[0]
    content_type = "application/msgpack" if data[1:2] > b"\x7f" else "application/json"
    feed = feed_of_path(path, "iex")
    known = endpoint(feed or "")
    assert known is not None
    held = server_protocol_for(known, path, content_type)
    for line in data[2:].split(b"\n"):
        for outcome in held.receive(line):
            match outcome:
                case talk.Reply(payload):
                    _reads(held, payload)
                case talk.Authenticate(key, secret):
                    assert isinstance(key, str)
                    assert isinstance(secret, str)
                    _reads(held, held.granted() if key == "momentum" else held.denied(402))
                case talk.Subscribe(topics) | talk.Unsubscribe(topics):
                    assert held.state is talk.LoginState.AUTHENTICATED
                    _acked(held, topics)
                case talk.Listen(streams, topics) | talk.Unlisten(streams, topics):
                    assert held.state is talk.LoginState.AUTHENTICATED
                    _acked(held, topics | (streams or frozenset()))


def _reads(held: talk.ServerProtocol, payload: bytes) -> None:
    """What is sent can be read by other code than the proxy's."""
    if payload:
        msgpack.unpackb(payload) if held.codec.base is MSGPACK else json.loads(payload)


def _acked(held: talk.ServerProtocol, topics: talk.Subscription) -> None:
    assert all(0 < len(symbol) <= MAX_SYMBOL and channel for channel, symbol in topics)
    assert all("*" not in symbol or symbol == "*" for _, symbol in topics)
    _reads(held, held.acked(topics))


def inbound(data: bytes) -> None:
    """What a client sends is the same however it arrives, and nothing breaks the reader but what breaks RFC 6455."""
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
    """A configuration: it is taken, or its problems are told, each in one line and with its place."""
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


TARGETS: dict[str, Callable[[bytes], None]] = {"codec": codec, "session": session, "frames": inbound, "yaml": yaml}


def seeds(target: str) -> Iterator[bytes]:
    """What a target's inputs grow from."""
    if target == "codec":
        for known in (JSON, MSGPACK):
            yield known.encode([TRADE, {"T": "n", "symbols": ["AAPL"]}])
            yield known.encode(REQUESTS[1])
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
    else:
        yield FILE.encode()
        yield b"accounts: [&a {b: *a}, !!int 1, 'x', \"\\u00e9\"]\n---\n? |\n  x\n: >-\n  y\n"
