"""Test harness: the whole proxy between the simulator and independent clients.

`Harness` runs the simulator and the gateway in this process, each on a free port. The clients share no code with the
proxy: `Client` is the `websockets` library with `json` and `msgpack`; `Wire` is a bare socket for frames that no
library would send. Tests wait for conditions with a deadline, never for a fixed time.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import msgpack
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from proxy.config import model as configuration
from proxy.downstream.outbox import Outbox
from proxy.gateway import Gateway
from proxy.simulator import Simulator
from proxy.upstream.source import FeedSource
from proxy.upstream.supervisor import FeedSupervisor

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 20.0
CALM_SECONDS = 0.05
CONNECTED = [{"T": "success", "msg": "connected"}]
AUTHENTICATED = [{"T": "success", "msg": "authenticated"}]
CONTROL = ("success", "error", "subscription")
STAMP = "2023-04-06T11:54:26.838232225Z"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

ACCOUNT = '  main: {{key: key, secret: secret, data_url: "{url}", trading_url: "{url}"}}'
CONFIG = """\
listen: {{port: 0{listen}}}
admin: {{port: {admin_port}{admin}}}
{more}
accounts:
{accounts}
clients:
{clients}
"""


def wait_for(condition: Callable[[], object], what: str = "condition not met", seconds: float = SECONDS) -> None:
    """Return as soon as the condition holds.

    Fail after `seconds` with `what`, which names the failure.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        gevent.sleep(0.002)


def trade(symbol: str, number: int, **more: Any) -> dict[str, Any]:
    """A trade as Alpaca documents it, with `number` as its `i`."""
    details = {"x": "V", "p": 100.25, "s": 100, "c": ["@"], "z": "C", "t": STAMP}
    return {"T": "t", "S": symbol, "i": number, **details, **more}


def quote(symbol: str, **more: Any) -> dict[str, Any]:
    """A quote as Alpaca documents it."""
    prices = {"bx": "U", "bp": 87.66, "bs": 1, "ax": "Q", "ap": 87.68, "as": 4}
    return {"T": "q", "S": symbol, **prices, "c": ["R"], "z": "C", "t": STAMP, **more}


class Client:
    """An algorithm.

    It keeps what it receives: every frame's bytes in `frames`, data messages in `data`.
    """

    def __init__(self, ws: ClientConnection, codec: str, trading: bool) -> None:
        self.ws = ws
        self.codec = codec
        self.frames: list[bytes] = []
        self.data: list[dict[str, Any]] = []
        self._trading = trading

    def __enter__(self) -> Client:
        self.ws.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.ws.close()

    def send_json(self, request: Any) -> None:
        self.ws.send(msgpack.packb(request) if self.codec == "msgpack" else json.dumps(request))

    def receive(self, seconds: float = SECONDS) -> Any:
        """The next frame, decoded. A control message must be alone in its frame."""
        frame = self.ws.recv(timeout=seconds)
        raw = frame.encode() if isinstance(frame, str) else frame
        self.frames.append(raw)
        message = msgpack.unpackb(raw) if self.codec == "msgpack" else json.loads(raw)
        legacy = self._trading and "." in message["stream"]  # the data of old stream names
        assert isinstance(frame, str) is (self.codec == "json" and (legacy or not self._trading))
        if isinstance(message, list):
            if any(part["T"] in CONTROL for part in message):
                assert len(message) == 1
            else:
                self.data += message
        elif message["stream"].endswith("_updates"):
            self.data.append(message)
        return message

    def answer(self, seconds: float = SECONDS) -> Any:
        """The next control message; data before it goes to `data`.

        It is an array of one message, or an object in the trading dialect.
        """
        deadline = time.monotonic() + seconds
        while True:
            before = len(self.data)
            message = self.receive(deadline - time.monotonic())
            if len(self.data) == before:
                return message

    def ask(self, request: Any) -> Any:
        """Send the request and return the next control message."""
        self.send_json(request)
        return self.answer()

    def log_in(self, key: str, secret: str | None = None) -> Client:
        """Authenticate, which must succeed; the secret defaults to the key."""
        request = {"action": "auth", "key": key, "secret": key if secret is None else secret}
        if self._trading:
            data = {"key_id": request["key"], "secret_key": request["secret"]}
            reply = self.ask({"action": "authenticate", "data": data})
            assert reply["data"] == {"status": "authorized", "action": "authenticate"}
        else:
            assert self.ask(request) == AUTHENTICATED
        return self

    def subscribe(self, **channels: list[str]) -> Any:
        """Subscribe; return the acknowledgement's non-empty channels, or the error."""
        return _reply(self.ask({"action": "subscribe", **channels}))

    def unsubscribe(self, **channels: list[str]) -> Any:
        return _reply(self.ask({"action": "unsubscribe", **channels}))

    def listen(self, *streams: str) -> Any:
        return self.ask({"action": "listen", "data": {"streams": list(streams)}})["data"]

    def gather(self, count: int, seconds: float = SECONDS) -> list[dict[str, Any]]:
        """All data so far, as soon as there are at least `count` messages."""
        deadline = time.monotonic() + seconds
        while len(self.data) < count:
            self.receive(deadline - time.monotonic())
        return self.data

    def numbers(self, symbol: str, last: int, seconds: float = SECONDS) -> list[int]:
        """The numbers of a symbol's trades so far, once the one numbered `last` has come."""
        deadline = time.monotonic() + seconds
        while last not in (numbers := [m["i"] for m in self.data if m["T"] == "t" and m["S"] == symbol]):
            self.receive(deadline - time.monotonic())
        return numbers

    def silent(self) -> bool:
        """Whether no more data has come before the reply to a request without effect."""
        before = len(self.data)
        self.ask({"action": "nothing"} if self._trading else {"action": "subscribe"})
        return len(self.data) == before

    def closed(self, seconds: float = SECONDS) -> tuple[int | None, str]:
        """Receive until the connection ends.

        Return the close frame's code and reason, or (None, "").
        """
        deadline = time.monotonic() + seconds
        try:
            while True:
                self.receive(max(0.0, deadline - time.monotonic()))
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "")


def _reply(message: Any) -> Any:
    [reply] = message
    if reply["T"] != "subscription":
        return reply
    return {channel: symbols for channel, symbols in reply.items() if channel != "T" and symbols}


def dial(
    address: tuple[str, int],
    path: str = "/v2/iex",
    codec: str | None = None,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> Client:
    """Open a WebSocket; the Content-Type header names `codec` unless it is None."""
    headers = dict(headers or {})
    if codec is not None:
        headers["Content-Type"] = f"application/{codec}"
    scheme = "wss" if "ssl" in options else "ws"
    options = {"compression": None, "close_timeout": 0.2, "ping_interval": None, "max_queue": None} | options
    ws = connect(f"{scheme}://{address[0]}:{address[1]}{path}", additional_headers=headers, **options)
    is_options = path in ("/v1beta1/opra", "/v1beta1/indicative")
    return Client(ws, codec or ("msgpack" if is_options else "json"), path.startswith("/stream"))


class Wire:
    """A WebSocket client on a bare socket.

    It masks with zeros, and reads and replies only on request.
    """

    def __init__(
        self,
        address: tuple[str, int],
        path: str = "/v2/iex",
        headers: str = "",
        buffer: int = 0,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(SECONDS)
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._data = b""
        try:
            self.socket.connect(address)
            if trust is not None:
                self.socket = trust.wrap_socket(self.socket, server_hostname="localhost")
            self._upgrade(path, headers)
        except BaseException:
            self.socket.close()
            raise

    def _upgrade(self, path: str, headers: str) -> None:
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        upgrade = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        self.socket.sendall(f"{upgrade}{key}{headers}\r\n".encode("utf-8", "surrogateescape"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            if not byte:
                raise ConnectionError("closed instead of upgraded")
            head += byte
        assert b" 101 " in head

    def send(self, opcode: int, payload: bytes, *, first: int = 0x80) -> None:
        """Send one frame; `first` holds the bits of the first byte other than the opcode."""
        self.socket.sendall(self.frame(opcode, payload, first=first))

    @staticmethod
    def frame(opcode: int, payload: bytes, *, first: int = 0x80) -> bytes:
        size = len(payload)
        if size < 126:
            head = bytes((first | opcode, 0x80 | size))
        elif size < 1 << 16:
            head = struct.pack("!BBH", first | opcode, 0xFE, size)
        else:
            head = struct.pack("!BBQ", first | opcode, 0xFF, size)
        return head + bytes(4) + payload

    def send_json(self, request: Any) -> None:
        self.send(TEXT, json.dumps(request).encode())

    def log_in(self, key: str, **channels: list[str]) -> Wire:
        """Authenticate and subscribe, and read the greeting and both replies."""
        self.send_json({"action": "auth", "key": key, "secret": key})
        self.send_json({"action": "subscribe", **channels})
        for kind in ("success", "success", "subscription"):
            opcode, payload = self.receive()
            assert opcode == TEXT
            assert json.loads(payload)[0]["T"] == kind
        return self

    def receive(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload. Raises EOFError at the end of the stream."""
        first, size = self._take(2)
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        return first & 0x0F, self._take(size)

    def rest(self) -> Iterator[tuple[int, bytes]]:
        """Every frame until the connection ends, which must happen.

        A close frame is answered.
        """
        try:
            while True:
                opcode, payload = self.receive()
                yield opcode, payload
                if opcode == CLOSE:
                    self.send(CLOSE, payload[:2])
        except (EOFError, ConnectionError):
            return

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            more = self.socket.recv(1 << 16)
            if not more:
                raise EOFError
            self._data += more
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def crash(self) -> None:
        """End the connection with a RST, as a killed program with unread data does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Harness:
    """A simulator, and a gateway whose only account connects to it.

    `clients` is the YAML below `clients:`; `listen` and `admin` are settings of these sections, `more` holds further
    sections. `gateway` makes the gateway.
    """

    def __init__(
        self,
        clients: str,
        *,
        accounts: str = ACCOUNT,
        listen: str = "",
        admin: str = "",
        admin_port: int = 0,
        more: str = "",
        simulator: Simulator,
        config: configuration.Config | None = None,
        gateway: Callable[[configuration.Config], Gateway] = Gateway,
    ) -> None:
        self._stack = ExitStack()
        self.simulator = self._stack.enter_context(simulator)
        self.bugs = self._stack.enter_context(_internal_errors())
        text = CONFIG.format(
            clients=clients,
            accounts=accounts.format(url=self.simulator.url),
            listen=listen and f", {listen}",
            admin=admin and f", {admin}",
            admin_port=admin_port,
            more=more,
        )
        self.gateway = gateway(config or configuration.parse(text, "proxy.yaml", os.environ, Path()))
        self.gateway.start()
        self._stack.callback(self.gateway.stop, 0.5)

    def restart(self) -> None:
        """End the proxy, and start another one with the same configuration; the simulator goes on."""
        self.gateway.stop(0.5)
        self.gateway = Gateway(self.gateway.config)
        self.gateway.start()
        self._stack.callback(self.gateway.stop, 0.5)

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that clients connect to."""
        return self.gateway.server.address

    def upstream(self, feed: str = "iex", account: str = "main") -> FeedSupervisor:
        return self.gateway.upstreams[account, feed]

    def source(self, feed: str = "iex") -> FeedSource | None:
        """The current connection to Alpaca."""
        return self.upstream(feed)._source

    def requests(self, feed: str = "iex") -> bool:
        """Whether a request to Alpaca is under way."""
        source = self.source(feed)
        return source is not None and source.request is not None

    def recovered(self) -> None:
        """Wait until the order updates come again, and what was missed has been recovered or given up."""
        router = self.upstream("trading").router
        wait_for(lambda: router.is_up and router.recovery is None, "order updates were not recovered")

    def dial(self, path: str = "/v2/iex", codec: str | None = None, **options: Any) -> Client:
        """A connection that has not logged in."""
        return self._stack.enter_context(dial(self.address, path, codec, **options))

    def client(self, key: str, path: str = "/v2/iex", codec: str | None = None) -> Client:
        """A client that has logged in."""
        client = self.dial(path, codec)
        if not path.startswith("/stream"):
            assert client.receive() == CONNECTED
        return client.log_in(key)

    def wire(self, **options: Any) -> Wire:
        wire = Wire(self.address, **options)
        self._stack.callback(wire.socket.close)
        return wire

    @contextmanager
    def undisturbed(self, *witnesses: Client, feed: str = "iex", symbol: str = "AAPL") -> Iterator[None]:
        """Publish trades without a pause inside the block.

        Each witness must get every one, once and in order.

        Every batch must also be sent at once: the waits longer than CALM_SECONDS add up to less than one second.
        """
        received = [len(witness.data) for witness in witnesses]
        outboxes = [self._outbox(witness) for witness in witnesses]
        first = self.publish(feed, symbol, 1)
        late = 0.0
        over = False

        def flow() -> None:
            nonlocal late
            while not over:
                targets = {outbox: outbox.delivered + 5 for outbox in outboxes}
                began = time.monotonic()
                self.publish(feed, symbol, 5)
                wait_for(
                    lambda targets=targets: all(outbox.delivered >= target for outbox, target in targets.items()),
                    "not sent",
                )
                waited = time.monotonic() - began
                late += waited if waited > CALM_SECONDS else 0

        flowing = gevent.spawn(flow)
        try:
            yield
        finally:
            over = True
            flowing.get()
        assert late < 1, f"messages waited for {late} s"
        last = self.publish(feed, symbol, 1)
        for witness, before in zip(witnesses, received, strict=True):
            witness.numbers(symbol, last)
            numbers = [m["i"] for m in witness.data[before:] if m["T"] == "t" and m["S"] == symbol]
            assert numbers == list(range(first, last + 1))

    def _outbox(self, client: Client) -> Outbox:
        port = client.ws.local_address[1]
        [outbox] = [c.outbox for c in self.gateway.server.sessions if c.address.endswith(f":{port}")]
        return outbox

    def publish(self, feed: str, symbol: str, count: int, *, batch: int = 1) -> int:
        """Publish numbered trades; return the last one's number."""
        self.simulator.publish_trades(feed, symbol, count, batch=batch)
        return self.simulator._trade_counts[feed, symbol]

    def fill(self, outbox: Outbox, pending: int) -> None:
        """Publish until `pending` bytes wait in an outbox, as fast as the proxy receives."""
        router = self.upstream("iex").router
        while outbox.pending < pending:
            before = router.received
            self.publish("iex", "AAPL", 200, batch=100)
            wait_for(lambda expected=before + 200: router.received >= expected)

    def close(self) -> None:
        """Stop everything.

        No error may have been logged, and no exception have ended a greenlet.
        """
        self._stack.close()
        assert self.bugs == []


@contextmanager
def _internal_errors() -> Iterator[list[str]]:
    """Collect what is logged as an error, and exceptions that end a greenlet."""
    errors: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(self.format(record))

    handler = Handler(logging.ERROR)
    logger = logging.getLogger("proxy")
    logger.addHandler(handler)
    hub = gevent.get_hub()
    before = hub.handle_error

    def handle_error(context: Any, kind: Any, value: Any, tb: Any) -> None:
        if not issubclass(kind, (*hub.SYSTEM_ERROR, *hub.NOT_ERROR)):
            errors.append(f"{context!r}: {kind.__name__}: {value}")
        before(context, kind, value, tb)

    hub.handle_error = handle_error
    try:
        yield errors
    finally:
        hub.handle_error = before
        logger.removeHandler(handler)


class Process:
    """`python -m proxy …` as a separate process; `events` collects its JSON log.

    `program` replaces `-m proxy`.
    """

    def __init__(self, *arguments: str, folder: Path, program: Sequence[str] = ("-m", "proxy"), **options: Any) -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environ", {})}
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        self.popen = subprocess.Popen(
            [sys.executable, *program, *arguments], cwd=folder, env=environ, text=True, **pipes
        )
        self._readers = {
            name: gevent.spawn(self._read, pipe)
            for name in ("stdout", "stderr")
            if (pipe := getattr(self.popen, name)) is not None
        }

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait(SECONDS)
        gevent.joinall([*self._readers.values()], timeout=SECONDS)
        for name in [*self._readers]:
            self.leave_unread(name)

    def leave_unread(self, name: str) -> None:
        """Close this end of its `stdout` or `stderr`."""
        self._readers.pop(name).kill()
        getattr(self.popen, name).close()

    @property
    def text(self) -> str:
        """Everything that it has printed and logged so far."""
        return "\n".join(self.lines)

    def address(self, event: str = "proxy.listening") -> tuple[str, int]:
        """The host and port of a listener, from its log."""
        wait_for(lambda: event in self._names() or self.popen.poll() is not None, f"{event} was not logged")
        assert event in self._names(), self.text
        host, _, port = self.events[self._names().index(event)]["at"].split("/")[2].rpartition(":")
        return host, int(port)

    def end(self, *, seconds: float = SECONDS) -> int:
        """Wait for its end; return the exit code. Its output must hold no traceback."""
        code = self.popen.wait(seconds)
        gevent.joinall([*self._readers.values()], timeout=seconds)
        assert "Traceback" not in self.text, self.text
        assert "Exception ignored" not in self.text, self.text
        return code

    def _names(self) -> list[str]:
        return [event["event"] for event in self.events]

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("{"):
                self.events.append(json.loads(line))


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    cert, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True, timeout=30)
    return cert, key
