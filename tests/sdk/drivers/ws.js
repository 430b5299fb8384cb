// ws for Node, with the messages of Alpaca's documentation.
// Arguments: folder of the packages, stream, URL, key, secret. Prints each message as a line of JSON.
const [folder, stream, url, key, secret] = process.argv.slice(2);
const WebSocket = require(`${folder}/node_modules/ws`);

const socket = new WebSocket(url);
const send = (request) => socket.send(JSON.stringify(request));
socket.on("open", () => {
  send({ action: "auth", key, secret });
  if (stream === "trading") send({ action: "listen", data: { streams: ["trade_updates"] } });
  else send({ action: "subscribe", trades: ["AAPL"] });
});
socket.on("message", (data) => console.log(JSON.stringify(JSON.parse(data.toString()))));
