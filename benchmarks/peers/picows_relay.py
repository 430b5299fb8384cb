"""picows on uvloop, the fastest asyncio pair, with this proxy's way to route: raw bodies, one array a client."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from typing import Any

import msgspec
import picows
import uvloop

TEXT = picows.WSMsgType.TEXT
everything: list[Any] = []
holders: dict[str, list[Any]] = defaultdict(list)


class Head(msgspec.Struct, gc=False):
    T: str = ""
    S: str = ""


raws_of = msgspec.json.Decoder(list[msgspec.Raw]).decode
heads_of = msgspec.json.Decoder(list[Head]).decode


class Client(picows.WSListener):
    def on_ws_connected(self, transport: Any) -> None:
        transport.send(TEXT, b'[{"T":"success","msg":"connected"}]')

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type != TEXT:
            return
        asked = msgspec.json.decode(frame.get_payload_as_bytes())
        if asked["action"] == "auth":
            transport.send(TEXT, b'[{"T":"success","msg":"authenticated"}]')
            return
        if asked["trades"] == ["*"]:
            everything.append(transport)
        else:
            for symbol in asked["trades"]:
                holders[symbol].append(transport)
        transport.send(TEXT, b'[{"T":"subscription"}]')


class FeedSupervisor(picows.WSListener):
    def __init__(self) -> None:
        self.said = [
            b'{"action":"auth","key":"key","secret":"secret"}',
            b'{"action":"subscribe","trades":["*"]}',
            b"",
        ]

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        payload = frame.get_payload_as_bytes()
        if self.said:
            if request := self.said.pop(0):
                transport.send(TEXT, request)
            return
        for client in everything:
            client.send(TEXT, payload)
        if holders:
            batches: dict[Any, list[Any]] = defaultdict(list)
            for raw, head in zip(raws_of(payload), heads_of(payload), strict=True):
                for client in holders.get(head.S, ()):
                    batches[client].append(raw)
            for client, batch in batches.items():
                client.send(TEXT, b"[%b]" % b",".join(batch))


async def main() -> None:
    server = await picows.ws_create_server(lambda _: Client(), "127.0.0.1", 0)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await picows.ws_connect(FeedSupervisor, f"ws://127.0.0.1:{sys.argv[1]}/v2/iex")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


uvloop.run(main())
