"""An algorithm of the soak test.

It is a raw-socket client that checks the numbers of the trades it receives.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import gevent
import msgspec


class Trade(msgspec.Struct):
    """The checked fields of a trade; `e` is the epoch, `w` the sending time in ns."""

    T: str
    S: str = ""
    i: int = 0
    e: int = 0
    w: int = 0


@dataclass
class Totals:
    """The totals of all algorithms that read; times are in seconds unless noted."""

    received: int = 0
    missed: int = 0
    disordered: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    silence: float = 0.0  # the longest while Alpaca was connected
    outage: float = 0.0  # the longest across a drop of Alpaca's connection
    lags: Counter[int] = field(default_factory=Counter)  # in tenths of milliseconds

    def lag(self, share: float) -> float:
        """The latency in milliseconds that this share of the messages did not exceed."""
        left = share * self.lags.total()
        for tenths in sorted(self.lags):
            left -= self.lags[tenths]
            if left <= 0:
                return tenths / 10
        return 0.0


@dataclass
class Span:
    """The first and last number of a symbol that an algorithm received in one epoch.

    `since_before` is true if it received the symbol in an earlier epoch.
    """

    first: int
    last: int
    since_before: bool


class Algorithm:
    """One session. Messages are checked as they come; `spans` is by symbol and epoch."""

    def __init__(self, port: int, name: str, codec: str, symbols: list[str], totals: Totals) -> None:
        self.spans: dict[tuple[str, int], Span] = {}
        self.stays = True
        self._totals = totals
        self._codec = codec
        decoder = msgspec.msgpack if codec == "msgpack" else msgspec.json
        self._decoder = decoder.Decoder(list[Trade])
        self._epochs: dict[str, int] = {}
        self._received_at = self._epoch = 0
        self._data = b""
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        head = (
            f"GET /v2/iex HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/{codec}\r\nConnection: Upgrade\r\n"
        )
        key = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        self._socket.sendall((head + key).encode())
        while b"\r\n\r\n" not in self._data:
            self._data += self._more()
        self._data = self._data.partition(b"\r\n\r\n")[2]
        self._symbols = symbols
        self._log_in(name)

    def run(self) -> None:
        """Read until it leaves or is closed by the proxy, which is counted as a failure."""
        try:
            while True:
                opcode, payload = self._frame()
                if opcode == 9:
                    self._send(10, payload)
                elif opcode == 8:
                    self._closed(str(int.from_bytes(payload[:2], "big")))
                    return
                else:
                    self._check(payload)
                if not self._data:
                    gevent.sleep(0)  # more data may be there already: let other greenlets run first
        except (OSError, EOFError) as error:
            self._closed(type(error).__name__)
        finally:
            self._socket.close()

    def stall(self) -> None:
        """Read nothing until the proxy ends the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with suppress(OSError, EOFError):
            while True:
                self._socket.sendall(
                    b"\x8a\x80" + bytes(4)
                )  # an unsolicited pong: the client looks alive and does not read
                gevent.sleep(1)
        self._socket.close()

    def leave(self, how: str) -> None:
        """End the connection: `how` is "close" for a close frame, "fin", or "rst"."""
        self.stays = False
        with suppress(OSError):
            if how == "close":
                self._send(8, struct.pack("!H", 1000))
                return
            if how == "rst":
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.shutdown(socket.SHUT_RDWR)

    def missed_at_the_ends(self, record: dict[int, dict[str, list[int]]]) -> int:
        """The number of messages missed at the start and the end of epochs.

        Epochs in which none was received count as well.

        `record` has the first and last number that Alpaca sent, by epoch and symbol.
        """
        missed = 0
        for (symbol, epoch), span in self.spans.items():
            first, last = record[epoch][symbol]
            if span.since_before:
                missed += span.first - first
            if self.stays or (symbol, epoch + 1) in self.spans:
                missed += last - span.last
        if self.stays and self.spans:
            joined = min(epoch for _, epoch in self.spans)
            for epoch, symbols in record.items():
                for symbol, (first, last) in symbols.items():
                    subscribed = symbol in self._symbols or self._symbols == ["*"]
                    if epoch > joined and subscribed and (symbol, epoch) not in self.spans:
                        missed += last - first + 1
        return missed

    def _log_in(self, name: str) -> None:
        encode = msgspec.msgpack.encode if self._codec == "msgpack" else msgspec.json.encode
        opcode = 2 if self._codec == "msgpack" else 1
        self._send(opcode, encode({"action": "auth", "key": name, "secret": name}))
        self._send(opcode, encode({"action": "subscribe", "trades": self._symbols}))

    def _check(self, payload: bytes) -> None:
        totals, now = self._totals, time.monotonic_ns()
        for trade in self._decoder.decode(payload):
            if trade.T != "t":
                if trade.T == "error":
                    totals.closed["refused"] += 1
                continue
            totals.received += 1
            totals.lags[(now - trade.w) // 100_000] += 1
            if self._received_at:
                gap = (now - self._received_at) / 1e9
                if trade.e == self._epoch:
                    totals.silence = max(totals.silence, gap)
                else:
                    totals.outage = max(totals.outage, gap)
            self._received_at, self._epoch = now, trade.e
            span = self.spans.get((trade.S, trade.e))
            if span is None:
                before = self._epochs.get(trade.S)
                self.spans[trade.S, trade.e] = Span(trade.i, trade.i, before is not None)
                self._epochs[trade.S] = trade.e
                totals.disordered += before is not None and before > trade.e
                continue
            if trade.i <= span.last:
                totals.disordered += 1
            totals.missed += max(0, trade.i - span.last - 1)
            span.last = max(span.last, trade.i)

    def _closed(self, how: str) -> None:
        if self.stays:
            self._totals.closed[how] += 1

    def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        self._socket.sendall(bytes((0x80 | opcode,)) + length + bytes(4) + payload)

    def _frame(self) -> tuple[int, bytes]:
        first, size = self._take(2)
        if size >= 126:
            size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
        return first & 0x0F, self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            self._data += self._more()
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _more(self) -> bytes:
        self._socket.settimeout(60)
        data = self._socket.recv(1 << 16)
        if not data:
            raise EOFError
        return data
