// Trades, bars and order updates with @alpacahq/alpaca-trade-api 4.
//
// Install: npm install @alpacahq/alpaca-trade-api@4.0.2   (Node 20 or newer)
// Run:     node javascript-4.js
// Change:  the three constants, or the variables of the environment of those names. The defaults are those of
//          `python3 alpaca-proxy.pyz demo`.
//
// Each stream takes the whole URL, path included. REST calls go to Alpaca, with Alpaca's own key: use another object.

"use strict";

const { Alpaca } = require("@alpacahq/alpaca-trade-api");

const URL = process.env.ALPACA_PROXY_URL ?? "ws://127.0.0.1:8765";
const KEY = process.env.ALPACA_PROXY_KEY ?? "momentum";
const SECRET = process.env.ALPACA_PROXY_SECRET ?? "momentum";

const alpaca = new Alpaca({ keyId: KEY, secret: SECRET });

const stocks = alpaca.marketData.stockStream({ url: `${URL}/v2/iex` });
stocks.onConnect(() => {
  stocks.subscribeForTrades(["AAPL", "MSFT"]);
  stocks.subscribeForBars(["*"]);
});
stocks.onTrade((trade) => console.log("trade", trade.symbol, trade.price));
stocks.onBar((bar) => console.log("bar", bar.symbol, bar.close));
stocks.onError((error) => console.error(String(error)));
stocks.connect();

const orders = alpaca.trading.stream({ url: `${URL}/stream` });
orders.onConnect(() => orders.subscribeTradeUpdates());
orders.onTradeUpdate((update) => console.log("order", update.event, update.order.clientOrderId));
orders.onError((error) => console.error(String(error)));
orders.connect();
