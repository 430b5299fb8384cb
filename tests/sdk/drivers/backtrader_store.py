"""Driver of alpaca-backtrader-api's streams for the tests.

Commands and events are those of `alpaca_py.py`.

A store has a `Streamer` for each data feed and one for orders, each with its own connection, and reads the queues that
they fill. It never unsubscribes.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import queue
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

from trade_api import LogHandler, emit, fields, plain

METHODS = {"quotes": "Quote", "bars": "MinuteAgg", "trade_updates": "AccountUpdate"}
# alpaca-trade-api's names of fields, by those in Alpaca's messages.
NAMES = {
    "quotes": {
        "bx": "bid_exchange",
        "bp": "bid_price",
        "bs": "bid_size",
        "ax": "ask_exchange",
        "ap": "ask_price",
        "as": "ask_size",
        "c": "conditions",
        "z": "tape",
    },
    "bars": {"o": "open", "h": "high", "l": "low", "c": "close", "v": "volume", "n": "trade_count", "vw": "vwap"},
}


def start(stream: str, channel: str, url: str, key: str, secret: str, symbol: str) -> None:
    store = importlib.import_module("alpaca_backtrader_api.alpacastore")
    parts = urlsplit(url)
    host = f"http{parts.scheme[2:]}://{parts.netloc}"
    values: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        method = store.StreamingMethod[METHODS[channel]]
        store.Streamer(values, key, secret, symbol, method, base_url=host, data_url=host).run()
        emit(event="over", stream=stream, error="")

    def report() -> None:
        while True:
            value = values.get()
            kind = type(value).__name__
            if channel == "trade_updates":
                wire = fields(value)
            else:
                names = {**NAMES[channel], "S": "symbol", "t": "timestamp"}
                wire = {letter: plain(letter, value[name]) for letter, name in names.items() if name in value}
            emit(event="message", stream=stream, channel=channel, **{"class": kind}, fields=wire)

    for target in (run, report):
        threading.Thread(target=target, name=stream, daemon=True).start()


def main() -> None:
    logging.basicConfig(level=logging.INFO, handlers=[LogHandler()])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    importlib.import_module("alpaca_backtrader_api.alpacastore")
    emit(event="ready")
    for line in sys.stdin:
        command = json.loads(line)
        for channel, symbols in command["topics"].items():
            start(command["stream"], channel, command["url"], command["key"], command["secret"], *symbols)
        emit(event="done", do=command["do"], stream=command["stream"])
    os._exit(0)  # the threads of its streams would keep it running


if __name__ == "__main__":
    main()
