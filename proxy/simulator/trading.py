"""The trading conversation from Alpaca's side: bytes in, outcomes out.

Alpaca does not greet here, knows no codes, and `listen` replaces what was listened to; streams that it does not know
are absent from its answer. Both ways to log in are understood: `authenticate` with its data, and the flat `auth`
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

# How a login is refused here, by the code that the market feeds use. C#'s SDK knows the second word.
_STATUS = {406: "exceeded"}
_ALREADY = {"stream": "listening", "data": {"error": "your connection is already authenticated"}}
_BROKEN = {"action": "error", "data": {"error_message": "internal server error"}}


class TradingSession:
    """One client's conversation on the trading stream."""

    codec = wire.JSON

    def __init__(self, endpoint: Endpoint, slots: AccountSlots) -> None:
        self.endpoint = endpoint
        self.state = ConnectionState.STRANGER
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
        """The streams listened to; each is of every order."""
        return {stream: {"*"} for stream in self.streams}

    def open(self, credentials: Credentials | None) -> list[Outcome]:
        """Nothing: the client speaks first."""
        return []

    def receive(self, payload: bytes) -> list[Outcome]:
        """A client's message and what it leads to. One that cannot be read ends the connection."""
        try:
            request = wire.decode(payload, self.codec)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            return [Received({"unreadable": len(payload)}), Respond(_BROKEN), Hangup()]
        return [Received(without_secrets(request)), *self._answer(request)]

    def expire(self) -> list[Outcome]:
        """The time to log in is over."""
        return [] if self.authenticated else [Hangup()]

    def end(self, *, farewell: bool) -> None:
        """The connection is gone; its place is free, at once after a `farewell`."""
        if self.state is ConnectionState.AUTHENTICATED:
            self._slots.leave(self.endpoint.feed, self.key, farewell=farewell)
        self.state = ConnectionState.OVER

    def wants(self, message: JsonObject) -> bool:
        """Whether a message of a stream is for this session."""
        return message.get("stream") in self.streams

    def _answer(self, request: JsonObject) -> list[Outcome]:
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
        return [Respond(_BROKEN), Hangup()]

    def _authenticate(self, key: Any, secret: Any) -> list[Outcome]:
        if self.state is ConnectionState.AUTHENTICATED:
            return [Respond(_ALREADY)]
        code: int | None = 402
        if isinstance(key, str) and isinstance(secret, str):
            code = self._slots.admit(self.endpoint.feed, key, secret)
        if code is not None:
            self.state = ConnectionState.REFUSED
            return [_authorization(_STATUS.get(code, "unauthorized"), "authenticate")]
        self.state = ConnectionState.AUTHENTICATED
        self.key = key
        return [Admitted(key), _authorization("authorized", "authenticate")]

    def _listen(self, streams: list[Any]) -> list[Outcome]:
        if self.state is not ConnectionState.AUTHENTICATED:
            return [_authorization("unauthorized", "listen")]
        before = self.streams
        self.streams = tuple(dict.fromkeys(stream for stream in streams if stream in self.endpoint.channels))
        fresh = tuple((stream, "*") for stream in self.streams if stream not in before)
        joined: list[Outcome] = [Joined(fresh)] if fresh else []
        return [Respond({"stream": "listening", "data": {"streams": list(self.streams)}}), *joined]


def _authorization(status: str, action: str) -> Respond:
    return Respond({"stream": "authorization", "data": {"status": status, "action": action}})
