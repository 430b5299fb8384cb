"""Only receive from the stand-in for Alpaca.

`python benchmarks/receive.py product|stock PORT`.

`product` uses the product's connection, `stock` uses websocket-client in the usual way. Both run under gevent; the
stock one has wsaccel, without which its UTF-8 check is very slow.
"""

# ruff: noqa: E402
# gevent's monkey patch must come before every other import.

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import websocket

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proxy.transport import frames
from proxy.transport.errors import ConnectionLost
from proxy.upstream.websocket import dial

AUTH = b'{"action":"auth","key":"key","secret":"secret"}'
SUBSCRIBE = b'{"action":"subscribe","trades":["*"]}'


def product(url: str) -> None:
    connection = dial(url, {}, lambda *_: None)
    connection.receive()
    for request in (AUTH, SUBSCRIBE):
        connection.write(frames.TEXT, request)
        connection.receive()
    try:
        while True:
            connection.receive()
            gevent.sleep(0)
    except ConnectionLost:
        return


def stock(url: str) -> None:
    connection: Any = websocket.create_connection(url)
    connection.recv()
    for request in (AUTH, SUBSCRIBE):
        connection.send(request)
        connection.recv()
    try:
        while True:
            for _ in range(64):
                connection.recv()
            gevent.sleep(0)
    except (OSError, websocket.WebSocketException):
        return


if __name__ == "__main__":
    ways: dict[str, Callable[[str], None]] = {"product": product, "stock": stock}
    print("listening", 0, flush=True)
    ways[sys.argv[1]](f"ws://127.0.0.1:{sys.argv[2]}/v2/iex")
