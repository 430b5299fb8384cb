"""The interface between a feed's supervisor and the connection that it reads from.

A source is one connection, from its opening to its end. It owns its socket, its phase and the request under way, so
what belongs to an ended connection cannot be mistaken for the next one's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from proxy.alpaca.client_protocol import FeedEvent, Login, Phase
from proxy.alpaca.codec import Codec, Raw
from proxy.alpaca.endpoints import Endpoint
from proxy.alpaca.topics import Topic
from proxy.routing.request_builder import UpstreamRequest
from proxy.transport.errors import ProxyError


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """The settings of a feed, taken from the configuration.

    `silence`: a feed that was busy is connected anew after so many seconds without a message; None for never.
    """

    login: Login
    codec: Codec
    silence: float | None = None


class LoginRefused(ProxyError):
    """Alpaca refused the log-in; `code` is Alpaca's."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(f"Alpaca says {code} {msg}")
        self.code = code


class FeedSource(Protocol):
    """One connection that delivers a feed.

    `request` is the request under way, `received_at` the time at which the last frames arrived. `deliberate`: the proxy
    ended the connection for a reason of its own. `retry_at_once`: the next connection need not wait after this one.
    `others_confirmed`: when the connection ended, the other side had confirmed topics of others than this proxy.
    `finds_silence`: the other side itself connects anew when the feed has fallen silent.
    """

    @property
    def phase(self) -> Phase: ...

    @property
    def request(self) -> UpstreamRequest | None: ...

    @property
    def received_at(self) -> float: ...

    @property
    def deliberate(self) -> bool: ...

    @property
    def retry_at_once(self) -> bool: ...

    @property
    def others_confirmed(self) -> bool: ...

    @property
    def finds_silence(self) -> bool: ...

    @property
    def ended(self) -> bool:
        """Whether the connection is lost, or is being closed."""

    @property
    def live(self) -> bool:
        """Whether requests can be sent."""

    def open(self) -> None:
        """Connect; block until that is done. The connection may be live then, or log in first.

        Raises ConnectionLost, UpgradeRefused or LoginRefused.
        """

    def receive(self) -> list[bytes]:
        """Return the messages that have arrived; block until there is one. Raises ConnectionLost.

        Yields to the hub by time, since it does not block while data is ready.
        """

    def handle(self, body: Raw | bytes) -> FeedEvent:
        """Return the event of a control message; what belongs to the log-in is done."""

    def foreign_error(self, payload: bytes) -> FeedEvent | None:
        """Return the event of an error in a frame of another codec, None for anything else."""

    def send_request(self, request: UpstreamRequest, acked: Iterable[Topic]) -> None:
        """Send a request, which is under way from now on; never block."""

    def take_request(self) -> UpstreamRequest | None:
        """Return the request under way, which ends with that.

        None after the end of the connection if that says nothing about the request.
        """

    def tick(self, now: float) -> None:
        """Send pings, and end the connection when a time limit is over."""

    def end(self, reason: str, deliberate: bool = False) -> None:
        """Begin to close the connection; `receive` raises ConnectionLost with this reason."""

    def close(self) -> None:
        """Free everything; block until that is done."""


MakeSource = Callable[[Endpoint, FeedSettings], FeedSource]
"""Makes the next connection of a feed; it is not opened yet."""
