"""Trading session, server side: bytes in, outcomes out.

On this stream there is no greeting and there are no error codes. `listen` replaces the streams listened to; unknown
streams are absent from the reply. Both logins are accepted: `authenticate` with its data, and the flat `auth`
(docs.alpaca.markets, "Websocket Streaming").
"""

from __future__ import annotations

from typing import Any

from proxy.alpaca.endpoints import Endpoint
from proxy.simulator import wire
from proxy.simulator.account_plan import AccountSlots
from proxy.simulator.conversation import ConnectionState, Credentials
from proxy.simulator.outcomes import Admitted, Hangup, Joined, Outcome, Received, Respond, without_secrets

JsonObject = dict[str, Any]

# Status of a refused login, by the market feeds' code; any other is "unauthorized". The C# SDK parses "exceeded".
_REFUSAL_STATUS = {406: "exceeded"}
_ALREADY_AUTHENTICATED = {"stream": "listening", "data": {"error": "your connection is already authenticated"}}
_INTERNAL_ERROR = {"action": "error", "data": {"error_message": "internal server error"}}


class TradingSession:
    """One client's session on the trading stream."""

    codec = wire.JSON

    def __init__(self, endpoint: Endpoint, slots: AccountSlots) -> None:
        self.endpoint = endpoint
        self.state = ConnectionState.UNAUTHENTICATED
        self.key = ""
        self.streams: tuple[str, ...] = ()
        self._slots = slots

    def __repr__(self) -> str:
        return f"<TradingSession {self.state.value} {','.join(self.streams)}>"

    @property
    def authenticated(self) -> bool:
        return self.state is ConnectionState.AUTHENTICATED

    @property
    def held(self) -> dict[str, set[str]]:
        """Streams listened to, each with the wildcard."""
        return {stream: {"*"} for stream in self.streams}

    def open(self, credentials: Credentials | None) -> list[Outcome]:
        """Return no outcomes: the client sends first."""
        return []

    def receive(self, payload: bytes) -> list[Outcome]:
        """Handle a client's message; an undecodable one ends the connection."""
        try:
            request = wire.decode(payload, self.codec)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            return [Received({"unreadable": len(payload)}), Respond(_INTERNAL_ERROR), Hangup()]
        return [Received(without_secrets(request)), *self._handle(request)]

    def expire(self) -> list[Outcome]:
        """Handle the login timeout."""
        return [] if self.authenticated else [Hangup()]

    def end(self, *, close_frame: bool) -> None:
        """Handle the end of the connection: free its slot, at once after a close frame."""
        if self.state is ConnectionState.AUTHENTICATED:
            self._slots.leave(self.endpoint.feed, self.key, close_frame=close_frame)
        self.state = ConnectionState.ENDED

    def wants(self, message: JsonObject) -> bool:
        """Return whether a message is of a stream that the session listens to."""
        return message.get("stream") in self.streams

    def _handle(self, request: JsonObject) -> list[Outcome]:
        action = request.get("action")
        data = request.get("data")
        if action == "authenticate" and isinstance(data, dict):
            if "oauth_token" in data:
                return self._authenticate("oauth", data["oauth_token"])
            return self._authenticate(data.get("key_id"), data.get("secret_key"))
        if action == "auth":
            return self._authenticate(request.get("key"), request.get("secret"))
        if action == "listen" and isinstance(data, dict) and isinstance(data.get("streams"), list):
            return self._listen(data["streams"])
        return [Respond(_INTERNAL_ERROR), Hangup()]

    def _authenticate(self, key: Any, secret: Any) -> list[Outcome]:
        if self.state is ConnectionState.AUTHENTICATED:
            return [Respond(_ALREADY_AUTHENTICATED)]
        code: int | None = 402
        if isinstance(key, str) and isinstance(secret, str):
            code = self._slots.admit(self.endpoint.feed, key, secret)
        if code is not None:
            self.state = ConnectionState.REFUSED
            return [_authorization(_REFUSAL_STATUS.get(code, "unauthorized"), "authenticate")]
        self.state = ConnectionState.AUTHENTICATED
        self.key = key
        return [Admitted(key), _authorization("authorized", "authenticate")]

    def _listen(self, streams: list[Any]) -> list[Outcome]:
        if self.state is not ConnectionState.AUTHENTICATED:
            return [_authorization("unauthorized", "listen")]
        previous = self.streams
        self.streams = tuple(dict.fromkeys(stream for stream in streams if stream in self.endpoint.channels))
        added = tuple((stream, "*") for stream in self.streams if stream not in previous)
        joined: list[Outcome] = [Joined(added)] if added else []
        return [Respond({"stream": "listening", "data": {"streams": list(self.streams)}}), *joined]


def _authorization(status: str, action: str) -> Respond:
    return Respond({"stream": "authorization", "data": {"status": status, "action": action}})
