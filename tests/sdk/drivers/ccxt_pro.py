"""ccxt's WebSocket API: trades of a crypto pair, or orders.

Arguments: stream, URL, key, secret. Prints each trade or order as a line of JSON. With `refused` as the stream, it
watches two pairs, the second one after a line of input, and prints what becomes of both.
"""

import asyncio
import json
import sys
from typing import Any

import ccxt.pro

stream, url, key, secret = sys.argv[1:]
PAIR, REFUSED = "BTC/USD", "ETH/USD"


def exchange() -> Any:
    alpaca = ccxt.pro.alpaca({"apiKey": key, "secret": secret})
    alpaca.urls["api"]["ws"] = {"crypto": url, "trading": url if stream == "trading" else ""}
    markets = []
    for pair in (PAIR, REFUSED):
        base, quote = pair.split("/")
        market = {"id": pair, "symbol": pair, "base": base, "quote": quote, "spot": True, "type": "spot"}
        markets.append(alpaca.safe_market_structure(market))
    alpaca.set_markets(markets)  # otherwise it would ask Alpaca for them
    return alpaca


def say(**event: Any) -> None:
    print(json.dumps(event, default=str), flush=True)


async def watch(alpaca: Any, pair: str) -> None:
    while True:
        try:
            for trade in await alpaca.watch_trades(pair):
                say(pair=pair, p=trade["price"])
        except Exception as error:
            say(pair=pair, error=str(error))
            return


async def main() -> None:
    alpaca = exchange()
    try:
        if stream == "trading":
            while True:
                for order in await alpaca.watch_orders():
                    say(client_order_id=order["clientOrderId"])
        elif stream == "refused":
            first = asyncio.create_task(watch(alpaca, PAIR))
            await asyncio.to_thread(sys.stdin.readline)
            second = asyncio.create_task(watch(alpaca, REFUSED))
            await asyncio.gather(first, second)
        else:
            await watch(alpaca, PAIR)
    finally:
        await alpaca.close()


asyncio.run(main())
