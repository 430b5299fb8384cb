"""Drives the streams of alpaca-backtrader-api for the tests: the same commands and events as `alpaca_py.py`.

A store has a `Streamer` for each data feed and one for orders, each with a connection of its own, and takes what they
put into its queues. It never unsubscribes.
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

from trade_api import Logged, fields, plain, tell

METHODS = {"quotes": "Quote", "bars": "MinuteAgg", "trade_updates": "AccountUpdate"}
# The names that alpaca-trade-api gives to fields, by those on the wire.
LONG = {
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


def client_protocol_for(stream: str, channel: str, url: str, key: str, secret: str, symbol: str) -> None:
    store = importlib.import_module("alpaca_backtrader_api.alpacastore")
    parts = urlsplit(url)
    host = f"http{parts.scheme[2:]}://{parts.netloc}"
    heard: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        method = store.StreamingMethod[METHODS[channel]]
        store.Streamer(heard, key, secret, symbol, method, base_url=host, data_url=host).run()
        tell(event="over", stream=stream, error="")

    def report() -> None:
        while True:
            value = heard.get()
            kind, read = type(value).__name__, None
            if channel == "trade_updates":
                read = fields(value)
            else:
                names = {**LONG[channel], "S": "symbol", "t": "timestamp"}
                read = {letter: plain(letter, value[name]) for letter, name in names.items() if name in value}
            tell(event="message", stream=stream, channel=channel, **{"class": kind}, fields=read)

    for each in (run, report):
        threading.Thread(target=each, name=stream, daemon=True).start()


def main() -> None:
    logging.basicConfig(level=logging.INFO, handlers=[Logged()])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    importlib.import_module("alpaca_backtrader_api.alpacastore")
    tell(event="ready")
    for line in sys.stdin:
        command = json.loads(line)
        for channel, symbols in command["topics"].items():
            client_protocol_for(command["stream"], channel, command["url"], command["key"], command["secret"], *symbols)
        tell(event="done", do=command["do"], stream=command["stream"])
    os._exit(0)  # its streams run in threads of their own, and would go on


if __name__ == "__main__":
    main()
