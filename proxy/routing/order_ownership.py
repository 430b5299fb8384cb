"""Order ownership: which clients receive an update of the trading feed.

A client's allowlist patterns match the `client_order_id`s that its algorithm gives to its orders. Alpaca generates ids
for orders that it derives from them (a replacement, the legs of a bracket), so ownership is also inherited. Related
orders are the replaced one and its replacement, and a parent and its legs; they all belong to the same owners. Owners
are kept for a day, and for a bounded number of orders.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice

from proxy.alpaca.codec import BODY_BYTES, JSON, Codec, Malformed, Raw
from proxy.alpaca.endpoints import WILDCARD, Endpoint
from proxy.alpaca.order_events import EVENTS
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic
from proxy.alpaca.transcode import msgpack_of
from proxy.routing.order_history import OrderHistory
from proxy.routing.router import ALL, Delivery, Member, Taken

ORDERS = "trade_updates"
KEEP_SECONDS = 24 * 3600.0
KEEP_ORDERS = 50_000  # about 1 KB each, with ids of MAX_ID and a few owners
MAX_ID = 256  # characters; Alpaca's own ids have 36, a client_order_id up to 128
MAX_FAMILY = 64  # orders of an update that are considered
MAX_DEPTH = 2  # of legs of legs


class Orders:
    """Owners by order id.

    `matches(client_order_id)` returns the names of the clients whose patterns match it.
    """

    def __init__(self, matches: Callable[[str], Iterable[str]]) -> None:
        self.matches = matches
        self.long_ids = 0  # ids over MAX_ID, which are ignored
        # By order id: the owners' names, each with the client_order_id by which it became one; the time of the update.
        self._owners: OrderedDict[str, tuple[dict[str, str], float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Orders {len(self._owners)} kept>"

    def owners(self, update: Raw | bytes, now: float) -> frozenset[str]:
        """Return the clients that own the order in an update's `data`.

        They are also kept as owners of its related orders. `now` is in seconds of any monotonic clock. An inherited
        owner counts only while the client's patterns match the client_order_id that it was inherited from.
        """
        order = JSON.fields_of((JSON.fields_of(update) or {}).get("order"))
        if order is None:
            return frozenset(self.matches(""))  # an update without an order: only the pattern `*` permits it
        family = [*islice(self._family(order), MAX_FAMILY)]
        owners: dict[str, str] = {}
        for order_id, client_order_id in family:
            stored, _ = self._owners.get(order_id, ({}, now))
            owners |= {name: matched for name, matched in stored.items() if name in self.matches(matched)}
            owners |= dict.fromkeys(self.matches(client_order_id), client_order_id)
        if owners:
            for order_id, _ in family:
                if order_id:
                    self._store(order_id, owners, now)
        self._prune(now)
        return frozenset(owners)

    def _family(self, order: Mapping[str, Raw], depth: int = 0) -> Iterator[tuple[str, str]]:
        """Yield the ids of an order, of its legs and of the orders it refers to.

        Each is a pair of an id and a client_order_id. A missing one is empty.
        """
        yield self._id(order, "id"), self._id(order, "client_order_id")
        for relation in ("replaces", "replaced_by"):
            if relative := self._id(order, relation):
                yield relative, ""
        for leg in JSON.items_of(order.get("legs")) if depth < MAX_DEPTH else ():
            if (fields := JSON.fields_of(leg)) is not None:
                yield from self._family(fields, depth + 1)

    def _id(self, order: Mapping[str, Raw], key: str) -> str:
        """Return an id of the order; empty if it is missing or too long."""
        value = JSON.text_of(order.get(key)) or ""
        if len(value) > MAX_ID:
            self.long_ids += 1
            return ""
        return value

    def _store(self, order_id: str, owners: dict[str, str], now: float) -> None:
        stored, _ = self._owners.pop(order_id, ({}, now))
        self._owners[order_id] = (stored | owners, now)

    def _prune(self, now: float) -> None:
        while self._owners:
            order_id, (_, stored_at) = next(iter(self._owners.items()))
            if len(self._owners) <= KEEP_ORDERS and now - stored_at < KEEP_SECONDS:
                return
            del self._owners[order_id]


class OrderRouter:
    """Routes the updates of the trading feed.

    The counterpart of `router.Router`; each frame holds one object. Updates of the account (`account_updates`) are sent
    to every member that listens to that stream. Each order update is recorded in the `history`, if there is one, from
    which members with the codec EVENTS have their form of it.
    """

    def __init__(
        self, endpoint: Endpoint, orders: Orders, clock: Callable[[], float], history: OrderHistory | None = None
    ) -> None:
        self.endpoint = endpoint
        self.received = 0  # updates
        self.unrouted = 0  # updates that no session received
        self._oversized = 0
        self._untranslatable = 0
        self._orders = orders
        self._clock = clock
        self._history = history
        self._members: dict[Member, Subscription] = {}
        self._deliveries: list[Delivery] = []

    def __repr__(self) -> str:
        return f"<OrderRouter {len(self._members)} members>"

    @property
    def irregular(self) -> Mapping[str, int]:
        """The numbers of updates that were dropped or had an id ignored, by reason."""
        return {
            "oversized": self._oversized,
            "untranslatable": self._untranslatable,
            "long_id": self._orders.long_ids,
        }

    def set_subscription(self, member: Member, subscription: Subscription) -> list[Delivery]:
        """Replace the streams that the member receives.

        There are no order books to send first.
        """
        if subscription:
            self._members[member] = subscription
        else:
            self.remove(member)
        return []

    def revoke(self, member: Member, topics: Subscription) -> None:
        """Remove these streams from the member's subscription."""
        if member in self._members:
            self._members[member] -= topics

    def remove(self, member: Member) -> None:
        """Remove a member."""
        self._members.pop(member, None)

    def subscription_of(self, member: Member) -> Subscription:
        """Return the streams that the member receives."""
        return self._members.get(member, NO_TOPICS)

    def subscriptions(self) -> list[tuple[Member, Subscription]]:
        """Return each member's subscription."""
        return [*self._members.items()]

    def prune_books(self, acked: Set[Topic]) -> None:
        """Do nothing: the trading feed has no order books."""

    def book(self, symbol: str, codec: Codec) -> None:
        """Return None: the trading feed has no order books."""

    def pieces(self, frame: bytes) -> Iterator[bytes | None]:
        """Yield the frame, which holds one object and is not split."""
        yield frame

    def take(self, frame: bytes) -> Taken:
        """Gather the updates in a frame for their members, up to another message. Raises Malformed.

        An array is the same as its elements, each in a frame of its own.
        """
        if frame[:1] in b"[ \t\r\n" and JSON.is_array(frame.lstrip()):
            bodies: Sequence[Raw | bytes] = JSON.split(frame)[0]
        else:
            bodies = (frame,)
        for position, body in enumerate(bodies):
            if not self._take_update(body):
                rest = bodies[position + 1 :]
                return Taken(body, JSON.join(rest) if rest else None)
        return ALL

    def _take_update(self, body: Raw | bytes) -> bool:
        """Gather an update for its members; return False for any other message. Raises Malformed."""
        if len(body) > BODY_BYTES:
            self._oversized += 1
            return True
        message = JSON.envelope(body)
        stream = JSON.text_of(message.stream)
        if stream not in self.endpoint.channels:
            return False
        members = [member for member, held in self._members.items() if (stream, WILDCARD) in held]
        event = None
        if stream == ORDERS:
            now = self._clock()
            owners = self._orders.owners(message.data, now)
            members = [member for member in members if member.name in owners]
            event = None if self._history is None else self._history.record(message.data, now)
        self.received += 1
        if members:
            self._gather(bytes(body), event, members)
        else:
            self.unrouted += 1
        return True

    def _gather(self, frame: bytes, event: bytes | None, members: list[Member]) -> None:
        """Gather an update for these members, in the codec of each; `event` is what event streams get."""
        same = [member for member in members if member.codec is JSON]
        streams = [member for member in members if member.codec is EVENTS]
        other = [member for member in members if member.codec is not JSON and member.codec is not EVENTS]
        if same:
            self._deliveries.append(Delivery(same, False, frame, 1))
        if streams:
            if event is None:
                self._untranslatable += 1
            else:
                self._deliveries.append(Delivery(streams, False, event, 1))
        if other:
            try:
                self._deliveries.append(Delivery(other, False, msgpack_of(frame), 1))
            except Malformed:
                self._untranslatable += 1

    def flush(self) -> list[Delivery]:
        """Return the updates that `take` gathered, in binary frames as Alpaca's."""
        deliveries, self._deliveries = self._deliveries, []
        return deliveries
