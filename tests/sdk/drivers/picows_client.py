"""picows, which joins nothing by itself: it gets addresses with doubled and trailing slashes.

Arguments: stream, URL, key, secret. Prints each message as a line of JSON.
"""

import asyncio
import json
import sys
from typing import Any

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

stream, url, key, secret = sys.argv[1:]


class Listener(WSListener):  # type: ignore[misc]
    def on_ws_connected(self, transport: WSTransport) -> None:
        if stream == "trading":
            self.send(transport, {"action": "authenticate", "data": {"key_id": key, "secret_key": secret}})
            self.send(transport, {"action": "listen", "data": {"streams": ["trade_updates"]}})
        else:
            self.send(transport, {"action": "auth", "key": key, "secret": secret})
            self.send(transport, {"action": "subscribe", "trades": ["AAPL"]})

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY):
            print(json.dumps(json.loads(frame.get_payload_as_bytes())), flush=True)

    @staticmethod
    def send(transport: WSTransport, request: dict[str, Any]) -> None:
        transport.send(WSMsgType.TEXT, json.dumps(request).encode())


async def main() -> None:
    transport, _ = await ws_connect(Listener, url)
    await transport.wait_disconnected()


asyncio.run(main())
