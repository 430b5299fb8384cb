"""Trades, bars and order updates with alpaca-trade-api, the older SDK for Python.

Install: pip install alpaca-trade-api==3.2.0
Run:     python trade_api.py
Change:  the three constants, or the variables of the environment of those names. The defaults are those of
         `python3 alpaca-proxy.pyz demo`.

The SDK takes addresses without a path: `data_stream_url` for market data, `base_url` for order updates. REST calls
(alpaca_trade_api.REST) go to Alpaca, with Alpaca's own key.
"""

import os
from typing import Any

from alpaca_trade_api.stream import Stream

URL = os.environ.get("ALPACA_PROXY_URL", "ws://127.0.0.1:8765")
KEY = os.environ.get("ALPACA_PROXY_KEY", "momentum")
SECRET = os.environ.get("ALPACA_PROXY_SECRET", "momentum")

stream = Stream(KEY, SECRET, base_url=URL, data_stream_url=URL, data_feed="iex")


async def on_trade(trade: Any) -> None:
    print("trade", trade.symbol, trade.price, flush=True)


async def on_bar(bar: Any) -> None:
    print("bar", bar.symbol, bar.close, flush=True)


async def on_order(update: Any) -> None:
    print("order", update.event, update.order["client_order_id"], flush=True)


stream.subscribe_trades(on_trade, "AAPL", "MSFT")
stream.subscribe_bars(on_bar, "*")
stream.subscribe_trade_updates(on_order)
stream.run()
