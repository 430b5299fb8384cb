"""websocket-client, in msgpack; its `send` puts bytes into text frames unless it is told otherwise.

Arguments: stream, URL, key, secret. Prints each data message as a line of JSON.
"""

import json
import sys
from typing import Any

import msgpack
import websocket

stream, url, key, secret = sys.argv[1:]
ws = websocket.create_connection(url, header=["Content-Type: application/msgpack"])


def send(request: dict[str, Any]) -> None:
    ws.send(msgpack.packb(request))


if stream == "trading":
    send({"action": "authenticate", "data": {"key_id": key, "secret_key": secret}})
    send({"action": "listen", "data": {"streams": ["trade_updates"]}})
else:
    send({"action": "auth", "key": key, "secret": secret})
    more = [f"X{number}" for number in range(40)]  # the size of the list makes it no valid UTF-8
    send({"action": "subscribe", "trades": ["AAPL", *more]})
while True:
    print(json.dumps(msgpack.unpackb(ws.recv()), default=str), flush=True)
