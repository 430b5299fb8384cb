"""Clients that replay SDKs that the tests do not install, with equally strict decoding.

They follow the sources of the Go, C# and Java SDKs. Go: each reply within 3 seconds, an array of exactly one; `T` is
the first key of every map; integers where it declares integers. C#: JSON in binary frames, two documents in one message
when calls are rapid. Java: JSON in text frames, errors recognized by their texts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote_plus

import gevent
import msgpack

from tests.events import Cut, EventReader
from tests.harness import BINARY, PING, PONG, TEXT, Wire
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STREAMS

CONTINUATION = 0
ACK_SECONDS = 3.0  # Go's timeout for each reply
LOGIN_SECONDS = 10.0  # the proxy's deadline for a log-in

GO = (
    "Content-Type: application/msgpack\r\nUser-Agent: APCA-GO/3.9.0\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
)
CSHARP = "User-Agent: Alpaca-dotNET-SDK/7.2\r\n"
JAVA = "User-Agent: okhttp/4.12.0\r\nSec-WebSocket-Extensions: permessage-deflate\r\nAccept-Encoding: gzip\r\n"

CONNECTED = [{"T": "success", "msg": "connected"}]
AUTHENTICATED = [{"T": "success", "msg": "authenticated"}]
AUTH = {"action": "auth", "key": "algo", "secret": "secret"}
STOCK_KEYS = (
    "trades",
    "quotes",
    "bars",
    "updatedBars",
    "dailyBars",
    "statuses",
    "lulds",
    "corrections",
    "cancelErrors",
)

# Fields of stocks that Go decodes as integers; a float there loses the rest of the batch. For pairs only `i` and `n`.
INTEGERS: Mapping[str, tuple[str, ...]] = {
    "t": ("i", "s"),
    "q": ("bs", "as"),
    "b": ("v", "n"),
    "u": ("v", "n"),
    "d": ("v", "n"),
    "c": ("oi", "os", "ci", "cs"),
    "x": ("i", "s"),
}


Dial = Callable[..., Wire]  # arguments: path, headers of the request, stand (optional)


class Peer:
    """A client at the level of frames; `received` holds all data frames."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.received: list[tuple[int, bytes]] = []

    def receive(self) -> tuple[int, bytes]:
        """The next frame that carries a message; pings are answered."""
        while True:
            opcode, payload = self.wire.receive()
            if opcode == PING:
                self.wire.send(PONG, payload)
            elif opcode != PONG:
                self.received.append((opcode, payload))
                return opcode, payload


class Go(Peer):
    """Go's client: it sends and expects msgpack in binary frames only."""

    def ask(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        self.wire.send(BINARY, msgpack.packb(request))
        return self.answer()

    def answer(self) -> list[dict[str, Any]]:
        """The next message, which must be an array of one and come within ACK_SECONDS."""
        began = time.monotonic()
        [message] = self.read()
        assert time.monotonic() - began < ACK_SECONDS
        return [message]

    def read(self) -> list[dict[str, Any]]:
        """The next message, decoded as strictly as Go does."""
        opcode, payload = self.receive()
        assert opcode == BINARY
        return [self._map(pairs) for pairs in msgpack.unpackb(payload, object_pairs_hook=list)]

    def start(self, **subscribed: list[str]) -> list[dict[str, Any]]:
        """Log in and subscribe as its `Connect` does; return the acknowledgement."""
        assert self.answer() == CONNECTED
        assert self.ask(AUTH) == AUTHENTICATED
        return self.change("subscribe", **subscribed)

    def change(self, action: str, **subscribed: list[str]) -> list[dict[str, Any]]:
        """Send a request with every channel, nil for unused ones.

        In Go their order is random.
        """
        channels = (
            "trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "imbalances", "lulds", "orderbooks",
            "news", "pricing",
        )  # fmt: skip
        return self.ask({channel: subscribed.get(channel) for channel in channels} | {"action": action})

    @staticmethod
    def _map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert pairs[0][0] == "T"
        message = {name: _levels(value) for name, value in pairs}
        for name in INTEGERS.get(str(message["T"]), ()):
            if name in message and (name in "in" or "USD" not in message["S"]):
                assert isinstance(message[name], int), f"{name} of {message}"
        if "t" in message:
            assert isinstance(message["t"], msgpack.Timestamp)
        return message


def _levels(value: Any) -> Any:
    """Decode an order book's levels, the only maps in a message, from lists of pairs."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return [dict(pairs) for pairs in value]
    return value


class GoEvents:
    """Go's `StreamTradeUpdatesInBackground`, as its alpaca/stream.go has it.

    It takes lines that begin with `data: `, with the space. After an error (a status other than 200, a body without its
    last chunk, a document that it cannot decode) it connects again at once, with `since` one nanosecond after the `at`
    of its last update. The end of a body ends it for good. `targets` has the target of each of its requests.
    """

    def __init__(self, port: int, key: str = "algo", secret: str = "secret", oauth: str = "") -> None:
        self.updates: list[dict[str, Any]] = []
        self.targets: list[str] = []
        self.errors: list[str] = []
        self.ready = False
        self._port = port
        # net/http sorts them, and spells them in its own way.
        keys = {"Apca-Api-Key-Id": key, "Apca-Api-Secret-Key": secret}
        self._headers = {
            "User-Agent": "Go-http-client/1.1",
            **({"Authorization": f"Bearer {oauth}"} if oauth else keys),
            "Accept-Encoding": "gzip",
        }
        self._last = ""
        self._loop = gevent.spawn(self._run)

    def __enter__(self) -> GoEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.kill()

    @property
    def ended(self) -> bool:
        return self._loop.ready()

    def numbers(self) -> list[int]:
        return [int(update["order"]["client_order_id"].rpartition("-")[2]) for update in self.updates]

    def _run(self) -> None:
        while True:
            try:
                if self._stream():
                    return
            except (OSError, Cut, AssertionError, ValueError) as error:
                self.errors.append(repr(error))
            gevent.sleep(0.002)  # for others in this process

    def _stream(self) -> bool:
        """Run one request; return whether its body has ended."""
        target = "/v2/events/trades" + (f"?since={quote_plus(self._next_nanosecond())}" if self._last else "")
        self.targets.append(target)
        with EventReader(("127.0.0.1", self._port), target, self._headers) as reader:
            reader.begin()
            assert reader.status == 200, f"{reader.error()} (HTTP {reader.status})"
            assert "content-encoding" not in reader.headers
            self.ready = True
            try:
                while True:
                    reader.socket.settimeout(None)
                    line = reader.read_line()
                    if line.startswith(b"data: "):
                        update = self._decoded(json.loads(line[6:]))
                        self._last = update["at"]
                        self.updates.append(update)
            except EOFError:
                return True

    def _next_nanosecond(self) -> str:
        """The last `at` and a nanosecond, in RFC 3339 without trailing zeros."""
        seconds, fraction, zone = re.fullmatch(r"(.*:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", self._last).groups("")
        nanoseconds = int(fraction.ljust(9, "0")) + 1
        assert nanoseconds < 10**9  # a test whose time is the last nanosecond of a second has bad luck
        return f"{seconds}.{nanoseconds:09d}".rstrip("0") + zone

    @staticmethod
    def _decoded(update: dict[str, Any]) -> dict[str, Any]:
        """Decode an update as its `TradeUpdate`: times, decimals and texts where it declares them."""
        for name in ("at", "timestamp"):
            if name == "at" or update.get(name) is not None:
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", update[name])
        for name in ("position_qty", "price", "qty"):
            if update.get(name) is not None:
                Decimal(update[name])
        for name in ("event", "event_id", "execution_id"):
            assert isinstance(update.get(name, ""), str)
        assert isinstance(update["order"]["id"], str)
        return update


class Json(Peer):
    """Java's client: JSON in frames with `opcode`."""

    opcode = TEXT

    def send_json(self, *requests: dict[str, Any]) -> None:
        """Send the requests in one message, as C# does when calls are rapid."""
        self.send("".join(json.dumps(request, separators=(",", ":")) for request in requests).encode())

    def send(self, payload: bytes) -> None:
        self.wire.send(self.opcode, payload)

    def ask(self, request: dict[str, Any]) -> Any:
        self.send_json(request)
        return self.read()

    def read(self) -> Any:
        """The next message; market data must come in text frames, trading in binary ones."""
        opcode, payload = self.receive()
        message = json.loads(payload)
        assert opcode == (TEXT if isinstance(message, list) else BINARY)
        return message

    def start(self) -> None:
        assert self.read() == CONNECTED
        assert self.ask(AUTH) == AUTHENTICATED


class CSharp(Json):
    """C#'s client: it sends binary frames only, one for each segment of its pipe."""

    opcode = BINARY
    SEGMENT = 4096

    def send(self, payload: bytes) -> None:
        segments = [payload[start : start + self.SEGMENT] for start in range(0, len(payload), self.SEGMENT)]
        for number, segment in enumerate(segments):
            final = 0x80 if segment is segments[-1] else 0
            self.wire.send(CONTINUATION if number else self.opcode, segment, first=final)


def check_trading_stream(client: Json, stand: Stand) -> None:
    """Log in, listen and receive an order update.

    Every reply is in a binary frame, as from Alpaca.
    """
    data = {"key_id": "algo", "secret_key": "secret"}
    authorized = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
    assert client.ask({"action": "authenticate", "data": data}) == authorized
    listening = {"stream": "listening", "data": {"streams": ["trade_updates"]}}
    assert client.ask({"action": "listen", "data": {"streams": ["trade_updates"]}}) == listening
    wait_for(lambda: "trade_updates" in stand.simulator.subscribed("trading"), "nothing was subscribed")
    update = STREAMS["trading"].channels["trade_updates"](5)
    stand.simulator.publish("trading", [update])
    assert client.read() == update
