"""A relay on gevent with nothing but the routing: what pure Python costs under gevent before any feature.

One greenlet reads Alpaca's socket when it is readable, and one call sends a frame to a client. No login is checked,
nothing is bounded, queued, counted or logged, and a client that reads slowly loses frames.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import gevent
import msgspec
import websocket
from gevent import socket
from gevent.pywsgi import WSGIServer
from geventwebsocket.handler import WebSocketHandler

TEXT = 0x81
READ_BYTES = 256 * 1024
Send = Callable[[bytes], int]
everything: list[Send] = []
holders: dict[str, list[Send]] = defaultdict(list)


class Head(msgspec.Struct, gc=False):
    T: str = ""
    S: str = ""


raws_of = msgspec.json.Decoder(list[msgspec.Raw]).decode
heads_of = msgspec.json.Decoder(list[Head]).decode


def serve(environ: dict[str, Any], _: object) -> list[bytes]:
    client = environ["wsgi.websocket"]
    client.send('[{"T":"success","msg":"connected"}]')
    client.receive()
    client.send('[{"T":"success","msg":"authenticated"}]')
    symbols = json.loads(client.receive())["trades"]
    client.send('[{"T":"subscription"}]')
    send = client.handler.socket._sock.send
    for members in [everything] if symbols == ["*"] else [holders[symbol] for symbol in symbols]:
        members.append(send)
    while client.receive() is not None:
        pass
    return []


def framed(payload: bytes) -> bytes:
    size = len(payload)
    head = bytes((TEXT, size)) if size < 126 else bytes((TEXT, 126)) + size.to_bytes(2, "big")
    return head + payload


def relay(port: int) -> None:
    sock = socket.create_connection(("127.0.0.1", port))
    upstream = websocket.create_connection(f"ws://127.0.0.1:{port}/v2/iex", socket=sock)
    for request in ('{"action":"auth","key":"key","secret":"secret"}', '{"action":"subscribe","trades":["*"]}'):
        upstream.recv()
        upstream.send(request)
    upstream.recv()
    hub, rest = gevent.get_hub(), b""
    readable = hub.loop.io(sock.fileno(), 1)
    while True:
        hub.wait(readable)
        if not (data := sock.recv(READ_BYTES)):
            return
        data, at = rest + data, 0
        while at + 4 <= len(data):
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = data[at + 2] << 8 | data[at + 3], at + 4
            if start + size > len(data):
                break
            route(data[start : start + size])
            at = start + size
        rest = data[at:]


def route(payload: bytes) -> None:
    if everything:
        frame = framed(payload)
        for send in everything:
            send(frame)
    if holders:
        batches: dict[Send, list[msgspec.Raw]] = defaultdict(list)
        for raw, head in zip(raws_of(payload), heads_of(payload), strict=True):
            for send in holders.get(head.S, ()):
                batches[send].append(raw)
        for send, batch in batches.items():
            with contextlib.suppress(BlockingIOError):
                send(framed(b"[%b]" % b",".join(batch)))


server = WSGIServer(("127.0.0.1", 0), serve, handler_class=WebSocketHandler, log=None)
server.start()
print("listening", server.server_port, flush=True)
gevent.spawn(relay, int(sys.argv[1]))
gevent.get_hub().threadpool.apply(sys.stdin.read)
