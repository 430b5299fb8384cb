"""Scripted faults of the REST calls: responses that differ from the right one, and connections without a whole one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from typing import Any

import gevent

from proxy.simulator import trading_rest
from proxy.simulator.faults import RestFault, status_line
from proxy.simulator.trading_rest import MINUTE, RestResponse
from proxy.transport.connection import ClientConnection
from proxy.transport.errors import ConnectionLost

HOLD_SECONDS = 60  # that a response is delayed, or trickles
BYTE_SECONDS = 0.5  # between two bytes of a body that trickles
LIMIT = 200  # requests a minute, in the headers of a scripted 429; Alpaca's own for trading
HTML = "<!DOCTYPE html>\n<html><head><title>Maintenance</title></head><body>We will be back soon.</body></html>"


def altered(fault: RestFault, response: RestResponse, now: int) -> RestResponse:
    """Return what is answered in place of `response`; for faults of the connection, `response` itself."""
    match fault:
        case RestFault.TOO_MANY:
            return trading_rest.error(429, trading_rest.rate_limit_headers(LIMIT, 0, now + MINUTE))
        case RestFault.ERROR:
            return trading_rest.error(500)
        case RestFault.HTML:
            return RestResponse(200, HTML, "text/html; charset=utf-8")
        case RestFault.NONE:
            return RestResponse(404, "There is nothing at this path.", "text/plain; charset=utf-8")
        case RestFault.SHAPE if response.status == 200:
            return trading_rest.json_response(_other_shape(json.loads(response.body)), response.headers)
    return response


def _other_shape(document: Any) -> object:
    """Return another type of document: an object for a list of orders, a number for an order and for each fill."""
    if isinstance(document, dict):
        return 42
    if any("activity_type" in item for item in document):
        return [*range(len(document))]
    return {"orders": document}


def _away(response: RestResponse, connection: ClientConnection) -> None:
    """Close the connection without a response."""


def _hang(response: RestResponse, connection: ClientConnection) -> None:
    """Send nothing."""
    _left(connection, HOLD_SECONDS)


def _slow(response: RestResponse, connection: ClientConnection) -> None:
    """Send the head, then the body byte by byte, and never its last one."""
    head, body = _encoded(response)
    connection.send(head, HOLD_SECONDS)
    for at in range(int(HOLD_SECONDS / BYTE_SECONDS)):
        if at < len(body) - 1:
            connection.send(body[at : at + 1], HOLD_SECONDS)
        if _left(connection, BYTE_SECONDS):
            return


def _cut(response: RestResponse, connection: ClientConnection) -> None:
    """Send half of the body, then close the connection."""
    head, body = _encoded(response)
    connection.send(head + body[: len(body) // 2], HOLD_SECONDS)
    connection.finish()


_ON_CONNECTION: dict[RestFault, Callable[[RestResponse, ClientConnection], None]] = {
    RestFault.AWAY: _away,
    RestFault.HANG: _hang,
    RestFault.SLOW: _slow,
    RestFault.CUT: _cut,
}


def on_connection(fault: RestFault) -> Callable[[RestResponse, ClientConnection], None] | None:
    """Return a function that serves the connection by itself, for the faults that need one."""
    serve = _ON_CONNECTION.get(fault)
    if serve is None:
        return None

    def serve_until_gone(response: RestResponse, connection: ClientConnection) -> None:
        with suppress(ConnectionLost):
            serve(response, connection)

    return serve_until_gone


def _encoded(response: RestResponse) -> tuple[bytes, bytes]:
    """Return the head, with the length of the whole body, and the body."""
    body = response.body.encode() + b"\n"
    lines = [
        f"HTTP/1.1 {status_line(response.status)}",
        f"Content-Type: {response.content_type}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in response.headers),
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Length: {len(body)}",
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode(), body


def _left(connection: ClientConnection, seconds: float) -> bool:
    """Wait for the client to close the connection, or for the simulator to; return whether one of them has."""
    with gevent.Timeout(seconds, False):
        while connection.receive():
            gevent.sleep(0)
        return True
    return False
