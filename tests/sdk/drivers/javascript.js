// Drives @alpacahq/alpaca-trade-api 2 and 3 for the tests: the same commands and events as alpaca_py.py.
// Its one argument is the folder that the package is installed in.

"use strict";

const { createRequire } = require("node:module");
const readline = require("node:readline");

const Alpaca = createRequire(`${process.argv[2]}/`)("@alpacahq/alpaca-trade-api");

const SDK_GIVES_UP_MS = 500;

// What each stream is called here, and for each channel the method that subscribes and the one that takes a handler.
const PRICES = {
  trades: ["Trades", "Trade"],
  quotes: ["Quotes", "Quote"],
  bars: ["Bars", "Bar"],
  updatedBars: ["UpdatedBars", "UpdatedBar"],
  dailyBars: ["DailyBars", "DailyBar"],
};
const STREAMS = {
  stocks: {
    names: ["data_stream_v2"],
    kind: "Stock",
    channels: {
      ...PRICES,
      statuses: ["Statuses", "onStatuses"],
      lulds: ["Lulds", "onLulds"],
      corrections: [null, "onCorrections"],
      cancelErrors: [null, "onCancelErrors"],
    },
  },
  crypto: {
    names: ["crypto_stream_v1beta3", "crypto_stream_v2"],
    kind: "Crypto",
    channels: { ...PRICES, orderbooks: ["Orderbooks", "Orderbook"] },
  },
  options: { names: ["option_stream"], kind: "Option", channels: PRICES },
  news: { names: ["news_stream"], kind: "", channels: { news: ["News", "onNews"] } },
};

// The SDK's names of fields by those on the wire; the first that an object has is meant. Others are as on the wire.
const FIELDS = {
  S: ["Symbol"],
  t: ["Timestamp"],
  i: ["ID", "Indicator"],
  x: ["Exchange"],
  p: ["Price"],
  s: ["Size"],
  c: ["Conditions", "Condition", "ClosePrice", "Close"],
  z: ["Tape"],
  tks: ["TakerSide"],
  bx: ["BidExchange"],
  bp: ["BidPrice"],
  bs: ["BidSize"],
  ax: ["AskExchange"],
  ap: ["AskPrice"],
  as: ["AskSize"],
  o: ["OpenPrice", "Open"],
  h: ["HighPrice", "High"],
  l: ["LowPrice", "Low"],
  v: ["Volume"],
  n: ["TradeCount"],
  vw: ["VWAP"],
  sc: ["StatusCode"],
  sm: ["StatusMessage"],
  rc: ["ReasonCode"],
  rm: ["ReasonMessage"],
  u: ["LimitUpPrice"],
  d: ["LimitDownPrice"],
  a: ["CancelErrorAction"],
  oi: ["OriginalID"],
  op: ["OriginalPrice"],
  os: ["OriginalSize"],
  oc: ["OriginalConditions"],
  ci: ["CorrectedID"],
  cp: ["CorrectedPrice"],
  cs: ["CorrectedSize"],
  cc: ["CorrectedConditions"],
};
const NEWS = {
  id: "ID",
  headline: "Headline",
  summary: "Summary",
  author: "Author",
  created_at: "CreatedAt",
  updated_at: "UpdatedAt",
  url: "URL",
  content: "Content",
  symbols: "Symbols",
  source: "Source",
};
const UPDATE = ["event", "price", "qty", "position_qty", "timestamp"];
const ORDER = ["client_order_id", "symbol", "side", "status", "filled_qty"];

const print = process.stdout.write.bind(process.stdout);
process.stdout.write = () => true; // the SDK prints what it sends
const tell = (event) => print(`${JSON.stringify(event)}\n`);
const log = (stream, level, text) => tell({ event: "log", stream, level, text: String(text) });

function fields(channel, value) {
  if (channel === "trade_updates") {
    const read = Object.fromEntries(UPDATE.map((name) => [name, value[name]]));
    return Object.assign(read, Object.fromEntries(ORDER.map((name) => [name, value.order[name]])));
  }
  if (channel === "orderbooks") {
    const levels = (side) => side.map((level) => ({ p: level.Price, s: level.Size }));
    const symbol = value.Symbol ?? value.S;
    return { S: symbol, t: value.Timestamp, b: levels(value.Bids), a: levels(value.Asks) };
  }
  if (channel === "news") {
    return Object.fromEntries(Object.entries(NEWS).map(([wire, name]) => [wire, value[name]]));
  }
  const read = {};
  for (const [letter, names] of Object.entries(FIELDS)) {
    const name = [...names, letter].find((each) => each in value);
    if (name !== undefined) read[letter] = value[name];
  }
  return read;
}

class Stream {
  constructor(name, kind, url, key, secret, topics) {
    const host = new URL(url).origin.replace(/^ws/, "http");
    const alpaca = new Alpaca({ keyId: key, secretKey: secret, baseUrl: host, dataStreamUrl: host, feed: "iex" });
    this.name = name;
    this.topics = topics;
    const described = STREAMS[kind];
    this.kind = kind;
    this.sdk = described ? alpaca[described.names.find((each) => alpaca[each])] : alpaca.trade_ws;
    this.sdk.onError((error) => log(name, "ERROR", error));
    this.sdk.onStateChange((state) => log(name, "INFO", state));
    if (described) {
      this.listen(described);
      this.sdk.onConnect(() => this.subscribe(this.topics));
      // It gives up for good once a connection is refused; the program that uses it has to connect again.
      this.sdk.onDisconnect(() => {
        tell({ event: "over", stream: name, error: "" });
        setTimeout(() => this.sdk.connect(), SDK_GIVES_UP_MS);
      });
    } else {
      this.sdk.onOrderUpdate((value) => this.heard("trade_updates", value));
      this.sdk.onConnect(() => this.sdk.subscribe(["trade_updates"]));
    }
    this.sdk.connect();
  }

  listen(described) {
    for (const [channel, [, method]] of Object.entries(described.channels)) {
      const on = method.startsWith("on") ? method : `on${described.kind}${method}`;
      if (this.sdk[on]) this.sdk[on]((value) => this.heard(channel, value));
    }
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
      const [name] = STREAMS[this.kind].channels[channel];
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
