"""Driver of alpaca-py for the tests.

It runs in that package's environment and imports nothing of the proxy.

It reads commands and prints events, one JSON object a line:

    {"do": "open", "stream": …, "kind": "stocks", "url": …, "key": …, "secret": …, "topics": {"trades": ["AAPL"]}}
    {"do": "subscribe" | "unsubscribe", "stream": …, "channel": …, "symbols": […]}

    {"event": "message", "stream": …, "channel": …, "class": "Trade", "fields": {"S": "AAPL", "p": 1.5}}
    {"event": "log", "stream": …, "level": …, "text": …}   what the SDK logs
    {"event": "over", "stream": …, "error": …}             its run() has returned or raised

Fields have the names of Alpaca's messages, so that the tests can expect the same of every SDK.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import threading
from datetime import datetime, timezone
from enum import Enum
from typing import Any

CLASSES = {
    "stocks": "StockDataStream",
    "crypto": "CryptoDataStream",
    "options": "OptionDataStream",
    "news": "NewsDataStream",
}

METHODS = {
    "trades": "subscribe_trades",
    "quotes": "subscribe_quotes",
    "bars": "subscribe_bars",
    "updatedBars": "subscribe_updated_bars",
    "dailyBars": "subscribe_daily_bars",
    "statuses": "subscribe_trading_statuses",
    "orderbooks": "subscribe_orderbooks",
    "news": "subscribe_news",
    "corrections": "register_trade_corrections",
    "cancelErrors": "register_trade_cancels",
    "trade_updates": "subscribe_trade_updates",
}

BAR = {"o": "open", "h": "high", "l": "low", "c": "close", "v": "volume", "n": "trade_count", "vw": "vwap"}
FIELDS = {
    "Trade": {"p": "price", "s": "size", "x": "exchange", "i": "id", "c": "conditions", "z": "tape"},
    "Quote": {
        "bx": "bid_exchange",
        "bp": "bid_price",
        "bs": "bid_size",
        "ax": "ask_exchange",
        "ap": "ask_price",
        "as": "ask_size",
        "c": "conditions",
        "z": "tape",
    },
    "Bar": BAR,
    "TradingStatus": {
        "sc": "status_code",
        "sm": "status_message",
        "rc": "reason_code",
        "rm": "reason_message",
        "z": "tape",
    },
    "TradeCancel": {"p": "price", "s": "size", "x": "exchange", "i": "id", "a": "action", "z": "tape"},
    "TradeCorrection": {
        "x": "exchange",
        "oi": "original_id",
        "op": "original_price",
        "os": "original_size",
        "oc": "original_conditions",
        "ci": "corrected_id",
        "cp": "corrected_price",
        "cs": "corrected_size",
        "cc": "corrected_conditions",
        "z": "tape",
    },
    "Orderbook": {"r": "reset"},
    "News": {name: name for name in ("id", "headline", "summary", "author", "url", "content", "symbols", "source")},
}

_printing = threading.Lock()


def emit(**event: Any) -> None:
    with _printing:
        print(json.dumps(event, default=str), flush=True)


def plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value


def fields(value: Any) -> dict[str, Any]:
    """The fields of an SDK's object by their names in Alpaca's messages."""
    kind = type(value).__name__
    if kind == "TradeUpdate":
        order = value.order
        return {
            "event": plain(value.event),
            "price": value.price,
            "qty": value.qty,
            "position_qty": value.position_qty,
            "timestamp": plain(value.timestamp),
            "client_order_id": order.client_order_id,
            "symbol": order.symbol,
            "side": plain(order.side),
            "status": plain(order.status),
            "filled_qty": order.filled_qty,
        }
    wire = {letter: plain(getattr(value, name)) for letter, name in FIELDS[kind].items()}
    if kind == "News":
        return wire | {name: plain(getattr(value, name)) for name in ("created_at", "updated_at")}
    if kind == "Orderbook":
        wire |= {
            letter: [{"p": level.price, "s": level.size} for level in getattr(value, side)]
            for letter, side in (("b", "bids"), ("a", "asks"))
        }
    return wire | {"S": value.symbol, "t": plain(value.timestamp)}


class LogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        emit(event="log", stream=record.threadName, level=record.levelname, text=record.getMessage())


class Stream:
    def __init__(self, name: str, kind: str, url: str, key: str, secret: str) -> None:
        self.name = name
        if kind == "trading":
            self.sdk = importlib.import_module("alpaca.trading.stream").TradingStream(key, secret, url_override=url)
        else:
            self.sdk = getattr(importlib.import_module("alpaca.data.live"), CLASSES[kind])(
                key, secret, url_override=url
            )
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)

    def subscribe(self, channel: str, symbols: list[str]) -> None:
        async def handle(value: Any) -> None:
            emit(
                event="message",
                stream=self.name,
                channel=channel,
                **{"class": type(value).__name__},
                fields=fields(value),
            )

        if channel in ("corrections", "cancelErrors", "trade_updates"):
            getattr(self.sdk, METHODS[channel])(handle)
        else:
            getattr(self.sdk, METHODS[channel])(handle, *symbols)

    def unsubscribe(self, channel: str, symbols: list[str]) -> None:
        getattr(self.sdk, "un" + METHODS[channel])(*symbols)

    def run(self) -> None:
        error = ""
        try:
            self.sdk.run()
        except BaseException as raised:
            error = repr(raised)
        emit(event="over", stream=self.name, error=error)


def main() -> None:
    logging.basicConfig(level=logging.INFO, handlers=[LogHandler()])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    streams: dict[str, Stream] = {}
    importlib.import_module("alpaca.data.live")
    importlib.import_module("alpaca.trading.stream")
    emit(event="ready")
    for line in sys.stdin:
        command = json.loads(line)
        name = command["stream"]
        if command["do"] == "open":
            arguments = (command[option] for option in ("kind", "url", "key", "secret"))
            stream = streams[name] = Stream(name, *arguments)
            for channel, symbols in command["topics"].items():
                stream.subscribe(channel, symbols)
            stream.thread.start()
        elif command["do"] == "subscribe":
            streams[name].subscribe(command["channel"], command["symbols"])
        else:
            streams[name].unsubscribe(command["channel"], command["symbols"])
        emit(event="done", do=command["do"], stream=name)
    os._exit(0)  # the threads of its streams would keep it running


if __name__ == "__main__":
    main()
