// Node's `ws`: one array a client, the frame passed on as it came where the client hears everything.
const { WebSocket, WebSocketServer } = require("ws");

const everything = [];
const holders = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });

server.on("connection", (client) => {
  client.send('[{"T":"success","msg":"connected"}]');
  client.on("message", (data) => {
    const asked = JSON.parse(data);
    if (asked.action === "auth") {
      client.send('[{"T":"success","msg":"authenticated"}]');
      return;
    }
    if (asked.trades[0] === "*") everything.push(client);
    else
      for (const symbol of asked.trades) {
        if (!holders.has(symbol)) holders.set(symbol, []);
        holders.get(symbol).push(client);
      }
    client.send('[{"T":"subscription"}]');
  });
});

function relay(port) {
  const upstream = new WebSocket(`ws://127.0.0.1:${port}/v2/iex`, { perMessageDeflate: false });
  const requests = [
    '{"action":"auth","key":"key","secret":"secret"}',
    '{"action":"subscribe","trades":["*"]}',
    null,
  ];
  upstream.on("message", (data) => {
    if (requests.length) {
      const request = requests.shift();
      if (request) upstream.send(request);
      return;
    }
    for (const client of everything) client.send(data, { binary: false });
    if (!holders.size) return;
    const batches = new Map();
    for (const message of JSON.parse(data))
      for (const client of holders.get(message.S) ?? []) {
        if (!batches.has(client)) batches.set(client, []);
        batches.get(client).push(message);
      }
    for (const [client, batch] of batches) client.send(JSON.stringify(batch));
  });
}

server.on("listening", () => {
  console.log("listening", server.address().port);
  relay(process.argv[2]);
});
process.stdin.on("end", () => process.exit(0)).resume();
