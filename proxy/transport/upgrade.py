"""The upgrade of an HTTP request to a WebSocket.

It is gevent-websocket's handler, with checks that the library lacks. It accepts only version 13, checks the key and the
Connection header strictly, leaves Origin and path to the server's `refuse`, and sends responses as bytes.
`connection.ClientConnection` replaces the library's own WebSocket, whose frame code blocks the hub, has no limits and
closes without a code.
"""

from __future__ import annotations

import base64
import binascii

from geventwebsocket.handler import WebSocketHandler

from proxy.transport import forwarded
from proxy.transport.connection import ClientConnection
from proxy.transport.http_request import BoundedHandler, headers_for

CONNECTION = "proxy.connection"  # in a WSGI environ: a function that hands over the connection


class Handler(BoundedHandler, WebSocketHandler):  # type: ignore[misc]
    """The handler of one request: refuses, upgrades, or calls the application.

    Its server has a method `refuse(environ)`, which returns None, or a response (`listener.HttpResponse`).
    """

    SUPPORTED_VERSIONS = ("13",)

    def run_application(self) -> None:
        self.environ[CONNECTION] = self._take_over
        try:
            super().run_application()
        finally:
            del self.environ[CONNECTION]  # refers back to this handler, a cycle

    def _take_over(self) -> ClientConnection:
        """Return the connection of this request, whose response the caller writes itself."""
        self.close_connection = True
        return ClientConnection(self.socket, self.rfile, forwarded.shown(self.environ))

    def upgrade_websocket(self) -> list[bytes] | None:
        environ = self.environ
        if environ.get("HTTP_UPGRADE", "").strip().lower() != "websocket":
            return None
        refusal = self._malformed() or self.server.refuse(environ)
        if refusal is None:
            response: list[bytes] | None = self.upgrade_connection()
            return response
        status, body, *more = refusal
        self.start_response(status, headers_for(status, *more))
        return [body.encode() + b"\n"]

    def _malformed(self) -> tuple[str, str] | None:
        """Check the request as in RFC 6455 §4.2.1; return a refusal or None.

        The library makes these checks loosely or not at all.
        """
        environ = self.environ
        if environ["REQUEST_METHOD"] != "GET" or self.request_version != "HTTP/1.1":
            return "400 Bad Request", "A WebSocket is opened with GET and HTTP/1.1."
        tokens = {token.strip().lower() for token in environ.get("HTTP_CONNECTION", "").split(",")}
        if "upgrade" not in tokens:
            return "400 Bad Request", "The Connection header lacks Upgrade."
        if environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ:
            return "400 Bad Request", "A WebSocket is opened without a body."
        if not environ.get("HTTP_HOST"):
            return "400 Bad Request", "The Host header is missing."
        if environ.get("HTTP_SEC_WEBSOCKET_VERSION", "").strip() != "13":
            return "426 Upgrade Required", "WebSocket version 13 is needed."
        try:
            key = base64.b64decode(environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != 16:
            return "400 Bad Request", "Sec-WebSocket-Key is not the base64 of 16 bytes."
        return None

    def run_websocket(self) -> None:
        connection = self._take_over()
        self.environ["wsgi.websocket"] = connection
        try:
            for _ in self.application(self.environ, lambda *_: None):
                pass
        finally:
            connection.shut()
            del self.websocket  # refers back to this handler: a cycle, which only the garbage collector would free

    def log_request(self) -> None:
        """Log nothing: sessions are logged where they begin and end."""
