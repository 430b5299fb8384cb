// Drives @alpacahq/alpaca-trade-api 4 for the tests: the same commands and events as alpaca_py.py.
// Its one argument is the folder that the package is installed in.

"use strict";

const { createRequire } = require("node:module");
const readline = require("node:readline");

const { Alpaca } = createRequire(`${process.argv[2]}/`)("@alpacahq/alpaca-trade-api");

const FACTORIES = { stocks: "stockStream", crypto: "cryptoStream", options: "optionStream", news: "newsStream" };

// For each channel the end of the methods that subscribe, and the one that takes a handler.
const CHANNELS = {
  trades: ["Trades", "onTrade"],
  quotes: ["Quotes", "onQuote"],
  bars: ["Bars", "onBar"],
  updatedBars: ["UpdatedBars", "onUpdatedBar"],
  dailyBars: ["DailyBars", "onDailyBar"],
  statuses: ["Statuses", "onStatus"],
  lulds: ["Lulds", "onLuld"],
  imbalances: ["Imbalances", "onImbalance"],
  orderbooks: ["Orderbooks", "onOrderbook"],
  news: ["News", "onNews"],
  corrections: [null, "onCorrection"],
  cancelErrors: [null, "onCancelError"],
};

const BAR = {
  o: "open",
  h: "high",
  l: "low",
  c: "close",
  v: "volume",
  n: "tradeCount",
  vw: "vwap",
};
const FIELDS = {
  trades: { p: "price", s: "size", x: "exchange", i: "idRaw", c: "conditions", z: "tape", tks: "takerSide" },
  quotes: {
    bx: "bidExchange",
    bp: "bidPrice",
    bs: "bidSize",
    ax: "askExchange",
    ap: "askPrice",
    as: "askSize",
    c: "conditions",
    z: "tape",
  },
  bars: BAR,
  updatedBars: BAR,
  dailyBars: BAR,
  statuses: { sc: "statusCode", sm: "statusMessage", rc: "reasonCode", rm: "reasonMessage", z: "tape" },
  lulds: { u: "limitUpPrice", d: "limitDownPrice", i: "indicator", z: "tape" },
  imbalances: { p: "price", z: "tape" },
  corrections: {
    x: "exchange",
    oi: "originalIdRaw",
    op: "originalPrice",
    os: "originalSize",
    oc: "originalConditions",
    ci: "correctedIdRaw",
    cp: "correctedPrice",
    cs: "correctedSize",
    cc: "correctedConditions",
    z: "tape",
  },
  cancelErrors: { p: "price", s: "size", x: "exchange", i: "idRaw", a: "action", z: "tape" },
  orderbooks: {},
  news: {
    id: "idRaw",
    headline: "headline",
    summary: "summary",
    author: "author",
    created_at: "createdAt",
    updated_at: "updatedAt",
    url: "url",
    content: "content",
    symbols: "symbols",
    source: "source",
  },
};

const print = process.stdout.write.bind(process.stdout);
const tell = (event) => print(`${JSON.stringify(event)}\n`);
const log = (stream, level, text) => tell({ event: "log", stream, level, text: String(text) });

function fields(channel, value) {
  if (channel === "trade_updates") {
    const { event, price, qty, positionQty, timestamp, order } = value;
    const { clientOrderId, symbol, side, status, filledQty } = order;
    const update = { event, price, qty, position_qty: positionQty, timestamp };
    return { ...update, client_order_id: clientOrderId, symbol, side, status, filled_qty: filledQty };
  }
  const read = Object.fromEntries(Object.entries(FIELDS[channel]).map(([letter, name]) => [letter, value[name]]));
  if (channel === "news") return read;
  if (channel === "orderbooks") {
    const levels = (side) => side.map(({ price, size }) => ({ p: price, s: size }));
    Object.assign(read, { r: value.reset, b: levels(value.bids), a: levels(value.asks) });
  }
  return { ...read, S: value.symbol, t: value.timestampRaw };
}

class Stream {
  constructor(name, kind, url, keyId, secret, topics) {
    const alpaca = new Alpaca({ keyId, secret });
    const trading = kind === "trading";
    this.name = name;
    this.sdk = trading ? alpaca.trading.stream({ url }) : alpaca.marketData[FACTORIES[kind]]({ url });
    this.sdk.onError((error) => log(name, "ERROR", error));
    this.sdk.onStateChange((state) => log(name, "INFO", state));
    this.sdk.onConnect(() => (trading ? this.sdk.subscribeTradeUpdates() : this.subscribe(topics)));
    if (trading) {
      this.sdk.onTradeUpdate((value) => this.heard("trade_updates", value));
    } else {
      for (const [channel, [, method]] of Object.entries(CHANNELS)) {
        this.sdk[method]((value) => this.heard(channel, value));
      }
    }
    this.sdk.connect();
  }

  heard(channel, value) {
    const kind = value?.constructor?.name ?? "";
    tell({ event: "message", stream: this.name, channel, class: kind, fields: fields(channel, value) });
  }

  subscribe(topics) {
    this.change("subscribeFor", topics);
  }

  unsubscribe(topics) {
    this.change("unsubscribeFrom", topics);
  }

  change(verb, topics) {
    for (const [channel, symbols] of Object.entries(topics)) {
      const [name] = CHANNELS[channel];
      if (name !== null) this.sdk[verb + name](symbols);
    }
  }
}

const streams = {};
readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const { do: verb, stream, kind, url, key, secret, topics, channel, symbols } = JSON.parse(line);
    if (verb === "open") streams[stream] = new Stream(stream, kind, url, key, secret, topics);
    else streams[stream][verb]({ [channel]: symbols });
    tell({ event: "done", do: verb, stream });
  })
  .on("close", () => process.exit(0));
tell({ event: "ready" });
