"""Whose order is it: the trading feed's updates go to the clients that the order belongs to.

A client's patterns name the `client_order_id`s that its algorithm gives its orders. Alpaca invents ids for what it
derives from them (a replacement, the legs of a bracket), so ownership is also learned: an order belongs to whoever owns
an order that it replaces, that replaces it, or that it is a leg of or has as a leg. What was learned is kept for a day,
and for a bounded number of orders.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import islice

from proxy.alpaca.codec import JSON, Codec, Raw
from proxy.alpaca.endpoints import WILDCARD, Endpoint
from proxy.alpaca.topics import Subscription, Topic
from proxy.routing.router import Delivery, Member

ORDERS = "trade_updates"
KEEP_SECONDS = 24 * 3600.0
KEEP_ORDERS = 100_000
MAX_ID = 256  # characters; Alpaca's own ids have 36, a client_order_id up to 128
MAX_FAMILY, MAX_DEPTH = 64, 2  # orders of an update that are looked at, and legs of legs


class Orders:
    """Owners by order id. `matches(client_order_id)` gives the names of the clients whose patterns name it."""

    def __init__(self, matches: Callable[[str], Iterable[str]]) -> None:
        self.matches = matches
        # By order: each owner, and the client_order_id that made it one; and when that was learned.
        self._owners: OrderedDict[str, tuple[dict[str, str], float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Orders {len(self._owners)} known>"

    def owners(self, update: Raw | bytes, now: float) -> frozenset[str]:
        """The clients that an update's `data` belongs to; learns from it. `now` is in seconds of any steady clock.

        What was learned holds for as long as the client's patterns name the id that it was learned from.
        """
        order = JSON.fields_of((JSON.fields_of(update) or {}).get("order"))
        if order is None:
            return frozenset(self.matches(""))  # nobody's: whose pattern is `*` sees it
        family = [*islice(_family(order), MAX_FAMILY)]
        owners: dict[str, str] = {}
        for order_id, given in family:
            known, _ = self._owners.get(order_id, ({}, now))
            owners |= {name: learned for name, learned in known.items() if name in self.matches(learned)}
            owners |= dict.fromkeys(self.matches(given), given)
        if owners:
            for order_id, _ in family:
                if order_id:
                    self._learn(order_id, owners, now)
        self._forget(now)
        return frozenset(owners)

    def _learn(self, order: str, owners: dict[str, str], now: float) -> None:
        known, _ = self._owners.pop(order, ({}, now))
        self._owners[order] = (known | owners, now)

    def _forget(self, now: float) -> None:
        while self._owners:
            order, (_, learned) = next(iter(self._owners.items()))
            if len(self._owners) <= KEEP_ORDERS and now - learned < KEEP_SECONDS:
                return
            del self._owners[order]


class OrderRouter:
    """Who hears which update on the trading feed; the counterpart of `router.Router`, one object a frame.

    Updates of the account as a whole (`account_updates`) reach everyone who hears their stream.
    """

    def __init__(self, endpoint: Endpoint, orders: Orders, clock: Callable[[], float]) -> None:
        self.endpoint = endpoint
        self.received = 0  # updates
        self.unrouted = 0  # of them, those that nobody wanted
        self._orders = orders
        self._clock = clock
        self._members: dict[Member, Subscription] = {}
        self._deliveries: list[Delivery] = []

    def __repr__(self) -> str:
        return f"<OrderRouter {len(self._members)} members>"

    def set_subscription(self, member: Member, subscription: Subscription) -> list[Delivery]:
        """From now on the member hears these streams, and nothing else; there is nothing that it begins with."""
        self._members[member] = subscription
        return []

    def remove(self, member: Member) -> None:
        """The member hears nothing any more."""
        self._members.pop(member, None)

    def subscriptions(self) -> list[tuple[Member, Subscription]]:
        """Who hears what."""
        return [*self._members.items()]

    def prune_books(self, acked: Set[Topic]) -> None:
        """Nothing is remembered by topic."""

    def book(self, symbol: str, codec: Codec) -> None:
        """There are no order books here."""

    def take(self, frame: bytes) -> bytes | None:
        """Gathers an update for those who hear it; any other frame is given back. Raises Malformed."""
        message = JSON.envelope(frame)
        stream = JSON.text_of(message.stream)
        if stream not in self.endpoint.channels:
            return frame
        members = [member for member, held in self._members.items() if (stream, WILDCARD) in held]
        if stream == ORDERS:
            owners = self._orders.owners(message.data, self._clock())
            members = [member for member in members if member.name in owners]
        self.received += 1
        if members:
            self._deliveries.append(Delivery(members, False, frame, 1))
        else:
            self.unrouted += 1
        return None

    def flush(self) -> list[Delivery]:
        """The updates that `take` gathered; binary frames, as Alpaca's."""
        deliveries, self._deliveries = self._deliveries, []
        return deliveries


def _family(order: Mapping[str, Raw], depth: int = 0) -> Iterator[tuple[str, str]]:
    """The id and client_order_id of the order, of those that it names as its relatives, and of its legs; empty for one
    that it lacks."""
    yield _id(order, "id"), _id(order, "client_order_id")
    for relation in ("replaces", "replaced_by"):
        if relative := _id(order, relation):
            yield relative, ""
    for leg in JSON.items_of(order.get("legs")) if depth < MAX_DEPTH else ():
        if (found := JSON.fields_of(leg)) is not None:
            yield from _family(found, depth + 1)


def _id(order: Mapping[str, Raw], key: str) -> str:
    """Empty if the order has none, or one that is too long to be remembered."""
    found = JSON.text_of(order.get(key)) or ""
    return found if len(found) <= MAX_ID else ""
