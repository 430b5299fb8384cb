"""A server that says back what it hears, with nothing of the proxy above the WebSocket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from proxy.observe.logs import Log
from proxy.transport import frames
from proxy.transport.connection import ClientConnection
from proxy.transport.errors import ConnectionLost
from proxy.transport.frames import BINARY, PONG, TEXT, Closed, FrameError, Inbound, Message, Ping
from proxy.transport.listener import Environ, Listener

SECONDS = 5


def echo(limit: int) -> Listener:
    """Messages up to `limit` bytes; it closes as RFC 6455 asks, and waits then for the other side to hang up."""

    def serve(connection: ClientConnection, _: Environ) -> None:
        with suppress(ConnectionLost):
            for reply in _replies(connection, limit):
                assert connection.send(reply, SECONDS)
            connection.linger(SECONDS)

    return Listener(
        ("127.0.0.1", 0),
        serve=serve,
        refuse=lambda _: None,
        answer=lambda _: ("404 Not Found", "-"),
        log=Log("listener"),
    )


def _replies(connection: ClientConnection, limit: int) -> Iterator[bytes]:
    inbound = Inbound(limit)
    try:
        while data := connection.receive():
            for event in inbound.receive(data):
                match event:
                    case Message(payload, text):
                        yield frames.encode(TEXT if text else BINARY, payload)
                    case Ping(payload):
                        yield frames.encode(PONG, payload)
                    case Closed(code):
                        yield frames.encode_close(frames.NORMAL if code == frames.NO_CODE else code, "")
                        return
    except FrameError as fault:
        yield frames.encode_close(fault.code, fault.reason)
