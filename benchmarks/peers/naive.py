"""The proxy that one writes first: asyncio, `websockets`, json, one message a frame, one send a client."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from typing import Any

import msgpack
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

clients: list[tuple[ServerConnection, set[str]]] = []


async def converse(client: ServerConnection) -> None:
    await client.send('[{"T":"success","msg":"connected"}]')
    async for request in client:
        asked: dict[str, Any] = json.loads(request)
        if asked["action"] == "auth":
            await client.send('[{"T":"success","msg":"authenticated"}]')
        else:
            clients.append((client, set(asked["trades"])))
            await client.send('[{"T":"subscription"}]')


def time_text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def relay(port: int) -> None:
    async with connect(f"ws://127.0.0.1:{port}/v2/iex", compression=None, max_size=None) as upstream:
        await upstream.recv()
        await upstream.send('{"action":"auth","key":"key","secret":"secret"}')
        await upstream.recv()
        await upstream.send('{"action":"subscribe","trades":["*"]}')
        await upstream.recv()
        async for frame in upstream:
            for message in json.loads(frame) if isinstance(frame, str) else msgpack.unpackb(frame, timestamp=3):
                text = json.dumps([message], default=time_text)
                for client, symbols in clients:
                    if "*" in symbols or message["S"] in symbols:
                        await client.send(text)


async def main() -> None:
    async with serve(converse, "127.0.0.1", 0, compression=None) as server:
        print("listening", server.sockets[0].getsockname()[1], flush=True)
        task = asyncio.ensure_future(relay(int(sys.argv[1])))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        task.cancel()
        server.close(close_connections=False)


asyncio.run(main())
