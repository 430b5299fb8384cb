// Trades, bars and order updates with @alpacahq/alpaca-trade-api 3. The program is the same for version 2.
//
// Install: npm install @alpacahq/alpaca-trade-api@3.1.3
// Run:     node javascript-3.js
// Change:  the three constants, or the variables of the environment of those names. The defaults are those of
//          `python3 alpaca-proxy.pyz demo`.
//
// The SDK takes addresses without a path: `dataStreamUrl` for market data, `baseUrl` for order updates. REST calls go
// to Alpaca, with Alpaca's own key: use another object.
//
// Whatever the URL says, this SDK opens the streams of stocks, options and news with TLS. So trades come from a proxy
// with TLS only; tls.yaml beside this file is the configuration of one. From the demo come order updates alone.

"use strict";

const Alpaca = require("@alpacahq/alpaca-trade-api");

const URL = process.env.ALPACA_PROXY_URL ?? "http://127.0.0.1:8765"; // with TLS: https://…
const KEY = process.env.ALPACA_PROXY_KEY ?? "momentum";
const SECRET = process.env.ALPACA_PROXY_SECRET ?? "momentum";

const alpaca = new Alpaca({ keyId: KEY, secretKey: SECRET, baseUrl: URL, dataStreamUrl: URL, feed: "iex" });

const orders = alpaca.trade_ws;
orders.onConnect(() => orders.subscribe(["trade_updates"]));
orders.onOrderUpdate((update) => console.log("order", update.event, update.order.client_order_id));
orders.connect();

if (URL.startsWith("https:")) {
  const stocks = alpaca.data_stream_v2;
  stocks.onConnect(() => {
    stocks.subscribeForTrades(["AAPL", "MSFT"]);
    stocks.subscribeForBars(["*"]);
  });
  stocks.onStockTrade((trade) => console.log("trade", trade.Symbol, trade.Price));
  stocks.onStockBar((bar) => console.log("bar", bar.Symbol, bar.ClosePrice));
  // The SDK gives a stream up once it cannot connect.
  stocks.onDisconnect(() => setTimeout(() => stocks.connect(), 1000));
  stocks.connect();
} else {
  console.log("order updates only: trades need a URL that begins with https:");
}
