"""`websockets` used as its documentation advises: one array a batch, encoded once, `broadcast` to those who hear it."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from typing import Any

import orjson
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, broadcast, serve

everything: set[ServerConnection] = set()
holders: dict[str, list[ServerConnection]] = defaultdict(list)


async def converse(client: ServerConnection) -> None:
    await client.send('[{"T":"success","msg":"connected"}]')
    async for request in client:
        asked: dict[str, Any] = orjson.loads(request)
        if asked["action"] == "auth":
            await client.send('[{"T":"success","msg":"authenticated"}]')
            continue
        if asked["trades"] == ["*"]:
            everything.add(client)
        else:
            for symbol in asked["trades"]:
                holders[symbol].append(client)
        await client.send('[{"T":"subscription"}]')
    everything.discard(client)


async def relay(port: int) -> None:
    async with connect(f"ws://127.0.0.1:{port}/v2/iex", compression=None, max_size=None) as upstream:
        await upstream.recv()
        await upstream.send('{"action":"auth","key":"key","secret":"secret"}')
        await upstream.recv()
        await upstream.send('{"action":"subscribe","trades":["*"]}')
        await upstream.recv()
        async for frame in upstream:
            messages = orjson.loads(frame)
            if everything:
                broadcast(everything, orjson.dumps(messages).decode())
            batches: dict[ServerConnection, list[Any]] = defaultdict(list)
            for message in messages:
                for client in holders.get(message["S"], ()):
                    batches[client].append(message)
            for client, batch in batches.items():
                broadcast([client], orjson.dumps(batch).decode())
            await asyncio.sleep(0)


async def main() -> None:
    async with serve(converse, "127.0.0.1", 0, compression=None) as server:
        print("listening", server.sockets[0].getsockname()[1], flush=True)
        task = asyncio.ensure_future(relay(int(sys.argv[1])))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        task.cancel()
        server.close(close_connections=False)


asyncio.run(main())
