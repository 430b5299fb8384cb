"""A conversation with a pure session: what the client says, what it hears, what others have to decide."""

from __future__ import annotations

import json
from typing import Any

import msgpack

from proxy.alpaca.endpoints import endpoint, feed_of_path
from proxy.alpaca.server_protocol import Authenticate, Reply, server_protocol_for

MSGPACK = "application/msgpack"


class Conversation:
    """A client at a path. Its words are encoded, and what it hears is decoded, by other code than the proxy's."""

    def __init__(self, path: str = "/v2/iex", content_type: str = "") -> None:
        found = endpoint(feed_of_path(path, "iex") or "")
        assert found is not None
        self.session = server_protocol_for(found, path, content_type)
        self.msgpack = self.session.codec.name == "msgpack"
        self.greeting = [self.reads(payload) for payload in self.session.opening()]

    def reads(self, payload: bytes) -> Any:
        return msgpack.unpackb(payload) if self.msgpack else json.loads(payload)

    def writes(self, request: Any) -> bytes:
        data: bytes = msgpack.packb(request) if self.msgpack else json.dumps(request).encode()
        return data

    def sends(self, frame: bytes) -> list[Any]:
        """What comes of a message: replies as they are heard, everything else for others to decide."""
        return [
            self.reads(outcome.payload) if isinstance(outcome, Reply) else outcome
            for outcome in self.session.receive(frame)
            if outcome is not None
        ]

    def says(self, request: Any) -> Any:
        """The one outcome of one request."""
        [outcome] = self.sends(self.writes(request))
        return outcome

    def logs_in(self) -> Conversation:
        """In the words of Alpaca's documentation, which every path understands."""
        assert self.says({"action": "auth", "key": "K", "secret": "S"}) == Authenticate("K", "S")
        self.session.granted()
        return self

    def subscribes(self, **channels: Any) -> Any:
        return self.says({"action": "subscribe", **channels})

    def unsubscribes(self, **channels: Any) -> Any:
        return self.says({"action": "unsubscribe", **channels})

    def listens(self, *streams: str) -> Any:
        return self.says({"action": "listen", "data": {"streams": list(streams)}})


def error(code: int, msg: str) -> list[dict[str, Any]]:
    return [{"T": "error", "code": code, "msg": msg}]
