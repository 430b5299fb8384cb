"""Trades, bars and order updates with alpaca-py.

Install: pip install alpaca-py==0.44.0
Run:     python alpaca_py.py
Change:  the three constants, or the variables of the environment of those names. The defaults are those of
         `python3 alpaca-proxy.pyz demo`.

Each stream takes the whole URL, path included. REST calls (TradingClient) go to Alpaca, with Alpaca's own key.
"""

import os
import threading

from alpaca.data.live import StockDataStream
from alpaca.data.models import Bar, Trade
from alpaca.trading.models import TradeUpdate
from alpaca.trading.stream import TradingStream

URL = os.environ.get("ALPACA_PROXY_URL", "ws://127.0.0.1:8765")
KEY = os.environ.get("ALPACA_PROXY_KEY", "momentum")
SECRET = os.environ.get("ALPACA_PROXY_SECRET", "momentum")

stocks = StockDataStream(KEY, SECRET, url_override=f"{URL}/v2/iex")
orders = TradingStream(KEY, SECRET, url_override=f"{URL}/stream")


async def on_trade(trade: Trade) -> None:
    print("trade", trade.symbol, trade.price, flush=True)


async def on_bar(bar: Bar) -> None:
    print("bar", bar.symbol, bar.close, flush=True)


async def on_order(update: TradeUpdate) -> None:
    print("order", update.event, update.order.client_order_id, flush=True)


stocks.subscribe_trades(on_trade, "AAPL", "MSFT")
stocks.subscribe_bars(on_bar, "*")
orders.subscribe_trade_updates(on_order)

threading.Thread(target=orders.run, daemon=True).start()
stocks.run()
