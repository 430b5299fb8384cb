"""Driver of alpaca-trade-api's `Stream` for the tests.

Commands and events are those of `alpaca_py.py`.

This SDK takes a host and adds the paths itself.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

METHODS = {
    "trades": "trades",
    "quotes": "quotes",
    "bars": "bars",
    "updatedBars": "updated_bars",
    "dailyBars": "daily_bars",
    "statuses": "statuses",
    "lulds": "lulds",
    "orderbooks": "orderbooks",
    "news": "news",
}

NAMES = {
    "S": "symbol",
    "t": "timestamp",
    "i": "id",
    "x": "exchange",
    "p": "price",
    "s": "size",
    "c": "conditions",
    "z": "tape",
    "tks": "takerside",
    "bx": "bid_exchange",
    "bp": "bid_price",
    "bs": "bid_size",
    "ax": "ask_exchange",
    "ap": "ask_price",
    "as": "ask_size",
}
BAR = {
    "S": "symbol",
    "t": "timestamp",
    "o": "open",
    "h": "high",
    "l": "low",
    "c": "close",
    "v": "volume",
    "n": "trade_count",
    "vw": "vwap",
}
STATUS = {
    "sc": "status_code",
    "sm": "status_message",
    "rc": "reason_code",
    "rm": "reason_message",
}
LULD = {"u": "limit_up_price", "d": "limit_down_price", "i": "indicator"}
CORRECTION = {
    "x": "exchange",
    "oi": "original_id",
    "op": "original_price",
    "os": "original_size",
    "oc": "original_conditions",
    "ci": "corrected_id",
    "cp": "corrected_price",
    "cs": "corrected_size",
    "cc": "corrected_conditions",
}
COMMON = {"S": "symbol", "t": "timestamp", "z": "tape"}
FIELDS = {
    "Bar": BAR,
    "StatusV2": {**COMMON, **STATUS},
    "LULDV2": {**COMMON, **LULD},
    "CancelErrorV2": {**COMMON, "i": "id", "x": "exchange", "p": "price", "s": "size", "a": "cancel_error_action"},
    "CorrectionV2": {**COMMON, **CORRECTION},
}
NEWS = ("id", "headline", "summary", "author", "url", "content", "symbols", "source", "created_at", "updated_at")
UPDATE = ("event", "price", "qty", "position_qty", "timestamp")
ORDER = ("client_order_id", "symbol", "side", "status", "filled_qty")

_printing = threading.Lock()


def emit(**event: Any) -> None:
    with _printing:
        print(json.dumps(event, default=str), flush=True)


def plain(name: str, value: Any) -> Any:
    """The value, with times as text.

    Times of pandas and msgpack have nanoseconds, and this SDK leaves some as a number of nanoseconds.
    """
    if hasattr(value, "nanoseconds"):
        value = value.seconds * 1_000_000_000 + value.nanoseconds
    elif type(value).__name__ == "Timestamp":
        value = value.value
    if isinstance(value, int) and name in ("t", "created_at", "updated_at"):
        pandas = importlib.import_module("pandas")
        return f"{pandas.Timestamp(value // 1_000_000_000, unit='s').isoformat()}.{value % 1_000_000_000:09}Z"
    return value


def fields(value: Any) -> dict[str, Any]:
    """The fields of an SDK's object by their names in Alpaca's messages."""
    kind = type(value).__name__
    if kind == "Entity":
        return {name: getattr(value, name) for name in UPDATE} | {name: value.order[name] for name in ORDER}
    if kind == "NewsV2":
        return {name: plain(name, getattr(value, name)) for name in NEWS}
    if kind == "OrderbookV2":
        sides = {
            letter: [{"p": level.p, "s": level.s} for level in getattr(value, side)]
            for letter, side in (("b", "bids"), ("a", "asks"))
        }
        return {"S": value.symbol, "t": plain("t", value.timestamp), **sides}
    # The attributes of some classes cannot be read: they look for names that `_raw` no longer has.
    names = FIELDS.get(kind, NAMES)
    return {letter: plain(letter, value._raw[name]) for letter, name in names.items() if name in value._raw}


class LogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        emit(event="log", stream=record.threadName, level=record.levelname, text=record.getMessage())


class Stream:
    def __init__(self, name: str, kind: str, url: str, key: str, secret: str) -> None:
        parts = urlsplit(url)
        host = f"http{parts.scheme[2:]}://{parts.netloc}"
        self.name = name
        self.kind = kind
        self.sdk = importlib.import_module("alpaca_trade_api.stream").Stream(
            key, secret, base_url=host, data_stream_url=host, data_feed="iex"
        )
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)

    def subscribe(self, topics: dict[str, list[str]]) -> None:
        for channel, symbols in topics.items():
            if channel == "trade_updates":
                self.sdk.subscribe_trade_updates(self.handler(channel))
            elif channel == "trades" and self.kind == "stocks":
                self.sdk.subscribe_trades(
                    self.handler(channel),
                    *symbols,
                    handler_cancel_errors=self.handler("cancelErrors"),
                    handler_corrections=self.handler("corrections"),
                )
            elif channel in METHODS:
                self.method("subscribe", channel)(self.handler(channel), *symbols)

    def unsubscribe(self, channel: str, symbols: list[str]) -> None:
        self.method("unsubscribe", channel)(*symbols)

    def method(self, verb: str, channel: str) -> Any:
        prefix = "crypto_" if self.kind == "crypto" else ""
        return getattr(self.sdk, f"{verb}_{prefix}{METHODS[channel]}")

    def handler(self, channel: str) -> Any:
        async def handle(value: Any) -> None:
            content = {"class": type(value).__name__, "fields": fields(value)}
            emit(event="message", stream=self.name, channel=channel, **content)

        return handle

    def run(self) -> None:
        error = ""
        try:
            asyncio.set_event_loop(asyncio.new_event_loop())
            self.sdk.run()
        except BaseException as raised:
            error = repr(raised)
        emit(event="over", stream=self.name, error=error)


def main() -> None:
    logging.basicConfig(level=logging.INFO, handlers=[LogHandler()])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    streams: dict[str, Stream] = {}
    importlib.import_module("alpaca_trade_api.stream")
    emit(event="ready")
    for line in sys.stdin:
        command = json.loads(line)
        name = command["stream"]
        if command["do"] == "open":
            arguments = (command[option] for option in ("kind", "url", "key", "secret"))
            stream = streams[name] = Stream(name, *arguments)
            stream.subscribe(command["topics"])
            stream.thread.start()
        elif command["do"] == "subscribe":
            streams[name].subscribe({command["channel"]: command["symbols"]})
        else:
            streams[name].unsubscribe(command["channel"], command["symbols"])
        emit(event="done", do=command["do"], stream=name)
    os._exit(0)  # the threads of its streams would keep it running


if __name__ == "__main__":
    main()
