"""The interface of a feed, between `downstream` and `upstream`.

Sessions in `downstream` subscribe; `upstream` serves the feeds.
"""

from __future__ import annotations

from math import inf
from typing import Any, Protocol

from proxy.alpaca.endpoints import Endpoint
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.routing.router import Routing


class Feed(Protocol):
    """One feed of one account.

    `member` is a session's `downstream.subscriber.Subscriber`.
    """

    endpoint: Endpoint
    router: Routing

    def change(self, member: Any, add: Subscription, remove: Subscription = NO_TOPICS, since: float = inf) -> None:
        """Request the topics `add` and give up `remove`.

        `since` is when the client asked, if that was earlier.
        """

    def revoke(self, member: Any, topics: Subscription) -> None:
        """Remove topics at once; the member's answer comes in order."""

    def adopt(self, member: Any, requests: list[Subscription]) -> None:
        """Add a member that comes from another account, with its requests there."""

    def leave(self, member: Any) -> None:
        """Remove a member and all its topics."""
