"""aiohttp, with the credentials in the headers of the upgrade.

Arguments: stream, URL, key, secret. Prints each message as a line of JSON.
"""

import asyncio
import json
import sys

import aiohttp


async def main(stream: str, url: str, key: str, secret: str) -> None:
    headers = {"APCA-API-KEY-ID": key, "APCA-API-SECRET-KEY": secret}
    async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=headers) as ws:
        for _ in range(1 if stream == "trading" else 2):
            assert "authorized" in (text := str((await ws.receive()).data)) or "success" in text, text
        if stream == "trading":
            await ws.send_json({"action": "listen", "data": {"streams": ["trade_updates"]}})
        else:
            await ws.send_json({"action": "subscribe", "trades": ["AAPL"]})
        async for message in ws:
            print(json.dumps(json.loads(message.data)), flush=True)


asyncio.run(main(*sys.argv[1:]))
