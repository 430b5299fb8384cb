"""An echo server on the proxy's transport alone."""

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
    """Return a listener that echoes messages up to `limit` bytes.

    It answers a close frame as RFC 6455 requires, then waits for the client to close the connection.
    """

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
