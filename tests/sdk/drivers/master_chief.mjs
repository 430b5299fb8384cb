// @master-chief/alpaca, whose addresses are settings of its own.
// Arguments: folder of the packages, stream, URL, key, secret. Prints each message as a line of JSON.
const [folder, stream, url, key, secret] = process.argv.slice(2);
const { AlpacaStream } = await import(`${folder}/node_modules/@master-chief/alpaca/dist/mjs/index.js`);

const trading = stream === "trading";
const client = new AlpacaStream({
  credentials: { key, secret, paper: false },
  type: trading ? "account" : "market_data",
  source: "iex",
  endpoints: { websocket: { account: url, market_data: () => url } },
});
client.once("authenticated", () => (trading ? client.subscribe("trade_updates") : client.subscribe("trades", ["AAPL"])));
client.on("error", (error) => console.error(error.message));
client.on("trade", (trade) => console.log(JSON.stringify([trade])));
client.on("trade_updates", (update) => console.log(JSON.stringify(update.raw())));
