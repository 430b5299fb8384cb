"""Driver of the `StreamConn` of alpaca-trade-api before 2.0 for the tests.

Commands and events are those of `alpaca_py.py`.

It listens to order updates, and to market data under the names of 2020: `T.AAPL`, `Q.AAPL`, `AM.AAPL`. Events have the
field names of today's messages.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

NAMES = {"trades": "T.", "quotes": "Q.", "bars": "AM.", "trade_updates": "trade_updates"}
FIELDS = {
    "Trade": {"S": "symbol", "x": "exchange", "p": "price", "s": "size", "c": "conditions", "t": "timestamp"},
    "Quote": {
        "S": "symbol",
        "bx": "bidexchange",
        "bp": "bidprice",
        "bs": "bidsize",
        "ax": "askexchange",
        "ap": "askprice",
        "as": "asksize",
        "c": "conditions",
        "t": "timestamp",
    },
    "Agg": {
        "S": "symbol",
        "o": "open",
        "h": "high",
        "l": "low",
        "c": "close",
        "v": "volume",
        "vw": "vwap",
        "t": "timestamp",
    },
}
RESTART_SECONDS = 0.5
UPDATE = ("event", "price", "qty", "position_qty", "timestamp")
ORDER = ("client_order_id", "symbol", "side", "status", "filled_qty")

_printing = threading.Lock()


def emit(**event: Any) -> None:
    with _printing:
        print(json.dumps(event, default=str), flush=True)


def plain(value: Any) -> Any:
    if type(value).__name__ == "Timestamp":
        return f"{value.tz_convert('UTC').strftime('%Y-%m-%dT%H:%M:%S')}.{value.value % 1_000_000_000:09}Z"
    return value


def fields(value: Any) -> dict[str, Any]:
    kind = type(value).__name__
    if kind == "Entity":
        return {name: value._raw[name] for name in UPDATE} | {name: value.order[name] for name in ORDER}
    return {letter: plain(getattr(value, name)) for letter, name in FIELDS[kind].items()}


class LogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        emit(event="log", stream=record.threadName, level=record.levelname, text=record.getMessage())


class Stream:
    def __init__(self, name: str, url: str, key: str, secret: str, topics: dict[str, list[str]]) -> None:
        parts = urlsplit(url)
        self.name = name
        self.account = (key, secret)
        self.host = f"http{parts.scheme[2:]}://{parts.netloc}"
        self.streams = [stream for channel, symbols in topics.items() for stream in names(channel, symbols)]
        self.sdk: Any = None
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)

    def run(self) -> None:
        """Call the SDK's `run` in a loop: on new Pythons it ends with its connection."""
        while True:
            asyncio.set_event_loop(asyncio.new_event_loop())
            try:
                self.listen()
            except BaseException as error:
                emit(event="log", stream=self.name, level="WARNING", text=f"run() has ended: {error!r}")
            time.sleep(RESTART_SECONDS)

    def listen(self) -> None:
        stream_conn = importlib.import_module("alpaca_trade_api.stream2").StreamConn
        self.sdk = stream_conn(*self.account, base_url=self.host, data_url=self.host)
        for channel, name in NAMES.items():
            self.sdk.register(name.replace(".", r"\.") + ".*", self.handler(channel))
        # `register` has filled the handlers of its connections, and the SDK takes that for open connections.
        for connection in (self.sdk.trading_ws, self.sdk.data_ws):
            connection._handlers = {}
        self.sdk.run(self.streams)

    def call(self, method: str, channel: str, symbols: list[str]) -> None:
        coroutine = getattr(self.sdk, method)(names(channel, symbols))
        asyncio.run_coroutine_threadsafe(coroutine, self.sdk.loop).result()

    def handler(self, channel: str) -> Any:
        async def handle(connection: Any, name: str, value: Any) -> None:
            content = {"class": type(value).__name__, "fields": fields(value)}
            emit(event="message", stream=self.name, channel=channel, **content)

        return handle


def names(channel: str, symbols: list[str]) -> list[str]:
    """The names of streams: `T.AAPL`, …; order updates have no symbols."""
    return [NAMES[channel]] if channel == "trade_updates" else [NAMES[channel] + symbol for symbol in symbols]


def main() -> None:
    logging.basicConfig(level=logging.INFO, handlers=[LogHandler()])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    streams: dict[str, Stream] = {}
    importlib.import_module("alpaca_trade_api.stream2")
    emit(event="ready")
    for line in sys.stdin:
        command = json.loads(line)
        name = command["stream"]
        if command["do"] == "open":
            stream = Stream(name, command["url"], command["key"], command["secret"], command["topics"])
            streams[name] = stream
            stream.thread.start()
        else:
            streams[name].call(command["do"], command["channel"], command["symbols"])
        emit(event="done", do=command["do"], stream=name)
    os._exit(0)  # the threads of its streams would keep it running


if __name__ == "__main__":
    main()
