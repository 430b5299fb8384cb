"""The whole proxy between a simulated Alpaca and clients that share no code with it.

`Harness` is simulator and gateway in this process, on ports of their own. `Client` is the `websockets` library with
`json` and `msgpack`; `Wire` is a bare socket for what no library would do. Nothing here sleeps and hopes: whatever is
waited for has a deadline.
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


def wait_for(condition: Callable[[], object], what: str = "it did not come about", seconds: float = SECONDS) -> None:
    """Returns as soon as it is so; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        gevent.sleep(0.002)


def trade(symbol: str, number: int, **more: Any) -> dict[str, Any]:
    """A trade as Alpaca documents it; `i` is its number."""
    details = {"x": "V", "p": 100.25, "s": 100, "c": ["@"], "z": "C", "t": STAMP}
    return {"T": "t", "S": symbol, "i": number, **details, **more}


def quote(symbol: str, **more: Any) -> dict[str, Any]:
    """A quote as Alpaca documents it."""
    prices = {"bx": "U", "bp": 87.66, "bs": 1, "ax": "Q", "ap": 87.68, "as": 4}
    return {"T": "q", "S": symbol, **prices, "c": ["R"], "z": "C", "t": STAMP, **more}


class Client:
    """An algorithm. Every frame that it hears is kept: bytes in `frames`, messages that are data in `data`."""

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
        """The next frame, decoded. Control messages must come alone in theirs."""
        frame = self.ws.recv(timeout=seconds)
        assert isinstance(frame, str) is (self.codec == "json" and not self._trading)
        raw = frame.encode() if isinstance(frame, str) else frame
        self.frames.append(raw)
        message = msgpack.unpackb(raw) if self.codec == "msgpack" else json.loads(raw)
        if isinstance(message, list):
            if any(part["T"] in CONTROL for part in message):
                assert len(message) == 1
            else:
                self.data += message
        elif message["stream"].endswith("_updates"):
            self.data.append(message)
        return message

    def answer(self, seconds: float = SECONDS) -> Any:
        """The next control message: an array of one, or the object of the trading dialect. Data before it is kept."""
        deadline = time.monotonic() + seconds
        while True:
            heard = len(self.data)
            message = self.receive(deadline - time.monotonic())
            if len(self.data) == heard:
                return message

    def ask(self, request: Any) -> Any:
        self.send_json(request)
        return self.answer()

    def log_in(self, key: str, secret: str | None = None) -> Client:
        """Authenticates, which must succeed; the secret is the key unless it is given."""
        request = {"action": "auth", "key": key, "secret": key if secret is None else secret}
        if self._trading:
            data = {"key_id": request["key"], "secret_key": request["secret"]}
            reply = self.ask({"action": "authenticate", "data": data})
            assert reply["data"] == {"status": "authorized", "action": "authenticate"}
        else:
            assert self.ask(request) == AUTHENTICATED
        return self

    def subscribe(self, **channels: list[str]) -> Any:
        """The reply: the acknowledgement's channels that hold something, or the error."""
        return _reply(self.ask({"action": "subscribe", **channels}))

    def unsubscribe(self, **channels: list[str]) -> Any:
        return _reply(self.ask({"action": "unsubscribe", **channels}))

    def listen(self, *streams: str) -> Any:
        return self.ask({"action": "listen", "data": {"streams": list(streams)}})["data"]

    def gather(self, count: int, seconds: float = SECONDS) -> list[dict[str, Any]]:
        """All data so far, once there are so many messages."""
        deadline = time.monotonic() + seconds
        while len(self.data) < count:
            self.receive(deadline - time.monotonic())
        return self.data

    def numbers(self, symbol: str, last: int, seconds: float = SECONDS) -> list[int]:
        """The numbers of a symbol's trades, heard until the one numbered `last` has come."""
        deadline = time.monotonic() + seconds
        while last not in (numbers := [m["i"] for m in self.data if m["T"] == "t" and m["S"] == symbol]):
            self.receive(deadline - time.monotonic())
        return numbers

    def silent(self) -> bool:
        """Whether nothing more has come: no data precedes the answer to a request that asks for nothing."""
        heard = len(self.data)
        self.ask({"action": "nothing"} if self._trading else {"action": "subscribe"})
        return len(self.data) == heard

    def closed(self, seconds: float = SECONDS) -> tuple[int | None, str]:
        """Hears everything until the end; the code and the reason of the close frame."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                self.receive(max(0.0, deadline - time.monotonic()))
        except ConnectionClosed as end:
            return (end.rcvd.code, end.rcvd.reason) if end.rcvd else (None, "")


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
    """Opens a WebSocket; `codec` is named in the Content-Type header unless it is None."""
    headers = dict(headers or {})
    if codec is not None:
        headers["Content-Type"] = f"application/{codec}"
    scheme = "wss" if "ssl" in options else "ws"
    options = {"compression": None, "close_timeout": 0.2, "ping_interval": None, "max_queue": None} | options
    ws = connect(f"{scheme}://{address[0]}:{address[1]}{path}", additional_headers=headers, **options)
    named_options = path in ("/v1beta1/opra", "/v1beta1/indicative")
    return Client(ws, codec or ("msgpack" if named_options else "json"), path.startswith("/stream"))


class Wire:
    """A WebSocket client of bare bytes: it masks with zeros, and reads and answers when it is told to."""

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
        self.socket.connect(address)
        if trust is not None:
            self.socket = trust.wrap_socket(self.socket, server_hostname="localhost")
        self._data = b""
        try:
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
        """One frame; `first` are the bits beside its opcode."""
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
        """Authenticates and subscribes, and reads the three answers."""
        self.send_json({"action": "auth", "key": key, "secret": key})
        self.send_json({"action": "subscribe", **channels})
        for kind in ("success", "success", "subscription"):
            opcode, payload = self.receive()
            assert opcode == TEXT
            assert json.loads(payload)[0]["T"] == kind
        return self

    def receive(self) -> tuple[int, bytes]:
        """The next frame: its opcode and payload. Raises EOFError when there is no more."""
        first, size = self._take(2)
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        return first & 0x0F, self._take(size)

    def rest(self) -> Iterator[tuple[int, bytes]]:
        """Every frame until the end of the connection, which must come; a close frame is answered."""
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
        """Goes away as a killed program does that has not read everything: with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Harness:
    """A simulator, and a gateway whose only account is there. `clients` are the lines below `clients:`; `listen` and
    `admin` are settings of those sections, `more` further sections."""

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
    ) -> None:
        self._stack = ExitStack()
        self.simulator = self._stack.enter_context(simulator)
        self.bugs = self._stack.enter_context(_bugs())
        text = CONFIG.format(
            clients=clients,
            accounts=accounts.format(url=self.simulator.url),
            listen=listen and f", {listen}",
            admin=admin and f", {admin}",
            admin_port=admin_port,
            more=more,
        )
        self.gateway = Gateway(configuration.parse(text, "proxy.yaml", os.environ, Path()))
        self.gateway.start()
        self._stack.callback(self.gateway.stop, 0.5)

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect."""
        return self.gateway.server.address

    def upstream(self, feed: str = "iex", account: str = "main") -> FeedSupervisor:
        return self.gateway.upstreams[account, feed]

    def dial(self, path: str = "/v2/iex", codec: str | None = None, **options: Any) -> Client:
        """A connection that says nothing yet."""
        return self._stack.enter_context(dial(self.address, path, codec, **options))

    def client(self, key: str, path: str = "/v2/iex", codec: str | None = None) -> Client:
        """An algorithm that has logged in."""
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
        """Trades flow without a pause; whatever happens meanwhile, each witness gets every one, once and in order, and
        they are on their way to it at once: those that waited longer than CALM_SECONDS waited for a second in all."""
        heard = [len(witness.data) for witness in witnesses]
        outboxes = [self._outbox(witness) for witness in witnesses]
        first = self.publish(feed, symbol, 1)
        late = 0.0
        over = False

        def flow() -> None:
            nonlocal late
            while not over:
                due = {outbox: outbox.delivered + 5 for outbox in outboxes}
                began = time.monotonic()
                self.publish(feed, symbol, 5)
                wait_for(lambda due=due: all(outbox.delivered >= sent for outbox, sent in due.items()), "not sent")
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
        for witness, before in zip(witnesses, heard, strict=True):
            witness.numbers(symbol, last)
            numbers = [m["i"] for m in witness.data[before:] if m["T"] == "t" and m["S"] == symbol]
            assert numbers == list(range(first, last + 1))

    def _outbox(self, client: Client) -> Outbox:
        port = client.ws.local_address[1]
        [outbox] = [c.outbox for c in self.gateway.server.sessions if c.address.endswith(f":{port}")]
        return outbox

    def publish(self, feed: str, symbol: str, count: int, *, batch: int = 1) -> int:
        """Publishes numbered trades; the last one's number."""
        self.simulator.publish_trades(feed, symbol, count, batch=batch)
        return self.simulator._sequence[feed, symbol]

    def fill(self, outbox: Outbox, pending: int) -> None:
        """Publishes until so many bytes wait in a session's outbox, and no faster than the proxy takes it."""
        router = self.upstream("iex").router
        while outbox.pending < pending:
            before = router.received
            self.publish("iex", "AAPL", 200, batch=100)
            wait_for(lambda all_of_it=before + 200: router.received >= all_of_it)

    def close(self) -> None:
        """Ends everything. No greenlet may have died of a bug, nor one have been logged."""
        self._stack.close()
        assert self.bugs == []


@contextmanager
def _bugs() -> Iterator[list[str]]:
    """What is logged as an error, and greenlets that die of an exception."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    handler = Handler(logging.ERROR)
    logger = logging.getLogger("proxy")
    logger.addHandler(handler)
    hub = gevent.get_hub()
    before = hub.handle_error

    def handle_error(context: Any, kind: Any, value: Any, tb: Any) -> None:
        if not issubclass(kind, (*hub.SYSTEM_ERROR, *hub.NOT_ERROR)):
            found.append(f"{context!r}: {kind.__name__}: {value}")
        before(context, kind, value, tb)

    hub.handle_error = handle_error
    try:
        yield found
    finally:
        hub.handle_error = before
        logger.removeHandler(handler)


class Process:
    """`python -m proxy …` as a process of its own; its log, one JSON object a line, is collected as it comes.

    `program` is what Python runs in place of `-m proxy`.
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
        """Closes our end of its `stdout` or `stderr`."""
        self._readers.pop(name).kill()
        getattr(self.popen, name).close()

    @property
    def text(self) -> str:
        """All that it has printed and logged so far."""
        return "\n".join(self.lines)

    def address(self, event: str = "proxy.listening") -> tuple[str, int]:
        """Where it listens, as its log says."""
        wait_for(lambda: event in self._names() or self.popen.poll() is not None, f"{event} was not logged")
        assert event in self._names(), self.text
        host, _, port = self.events[self._names().index(event)]["at"].split("/")[2].rpartition(":")
        return host, int(port)

    def end(self, *, seconds: float = SECONDS) -> int:
        """Waits for its end; the exit code. Nothing that it said may be a traceback."""
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
    """A certificate for this machine that nobody signed, and its key."""
    cert, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True, timeout=30)
    return cert, key
