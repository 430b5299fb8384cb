"""What a session needs of a feed: the seam between `downstream`, whose sessions subscribe, and `upstream`."""

from __future__ import annotations

from math import inf
from typing import Any, Protocol

from proxy.alpaca.endpoints import Endpoint
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.routing.router import Routing


class Feed(Protocol):
    """One feed of one account, as its sessions use it. `member` is a session's `downstream.subscriber.Subscriber`."""

    endpoint: Endpoint
    router: Routing

    def change(self, member: Any, add: Subscription, remove: Subscription = NO_TOPICS, since: float = inf) -> None:
        """Request `add` and give up `remove`; `since` is when the client asked, if that was earlier."""

    def adopt(self, member: Any, requests: list[Subscription]) -> None:
        """Take over a member from another account, with what it has requested there."""

    def leave(self, member: Any) -> None:
        """Remove a member, and all that it holds."""
