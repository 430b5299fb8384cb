"""A client of the pure server protocol, with codecs that are not the proxy's."""

from __future__ import annotations

import json
from typing import Any

import msgpack

from proxy.alpaca.cooperative import run_to_end
from proxy.alpaca.endpoints import endpoint, feed_of_path
from proxy.alpaca.server_protocol import Authenticate, Reply, server_protocol_for
from proxy.alpaca.topics import Subscription

MSGPACK = "application/msgpack"


class Client:
    """A client that connects to a path with a Content-Type header."""

    def __init__(self, path: str = "/v2/iex", content_type: str = "") -> None:
        served = endpoint(feed_of_path(path, "iex") or "")
        assert served is not None
        self.protocol = server_protocol_for(served, path, content_type)
        self.msgpack = self.protocol.codec.name == "msgpack"
        self.greeting = [self.decode(payload) for payload in self.protocol.opening()]

    def decode(self, payload: bytes) -> Any:
        return msgpack.unpackb(payload) if self.msgpack else json.loads(payload)

    def encode(self, request: Any) -> bytes:
        data: bytes = msgpack.packb(request) if self.msgpack else json.dumps(request).encode()
        return data

    def send(self, frame: bytes) -> list[Any]:
        """Return the outcomes of a message; replies are decoded."""
        return [
            self.decode(outcome.payload) if isinstance(outcome, Reply) else outcome
            for outcome in self.protocol.receive(frame)
            if outcome is not None
        ]

    def request(self, request: Any) -> Any:
        """Return the one outcome of one request."""
        [outcome] = self.send(self.encode(request))
        return outcome

    def log_in(self) -> Client:
        """Log in with the flat `auth` of the documentation, which all paths accept."""
        assert self.request({"action": "auth", "key": "K", "secret": "S"}) == Authenticate("K", "S")
        self.protocol.granted()
        return self

    def acked(self, held: Subscription) -> bytes:
        """Return the acknowledgement of a change."""
        return run_to_end(self.protocol.acked(held))

    def subscribe(self, **channels: Any) -> Any:
        return self.request({"action": "subscribe", **channels})

    def unsubscribe(self, **channels: Any) -> Any:
        return self.request({"action": "unsubscribe", **channels})

    def listen(self, *streams: str) -> Any:
        return self.request({"action": "listen", "data": {"streams": list(streams)}})


def error(code: int, msg: str) -> list[dict[str, Any]]:
    return [{"T": "error", "code": code, "msg": msg}]
