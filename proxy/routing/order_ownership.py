"""Order ownership: which clients receive an update of the trading feed.

An order belongs to a client if an entry of the client's allowlist matches the `client_order_id` that its algorithm gave
to it, or its symbol (`symbol:TEXT`). Alpaca generates ids for orders that it derives from others (a replacement, the
legs of a bracket), so related orders form a family, and a family has the same owners: an order, what it replaces, what
replaced it, its parent and its legs. An entry `*` permits every update, and makes no client an owner.

A family keeps the client_order_ids and symbols of its orders, not its owners, so that a changed allowlist applies to it
at once and as a whole. An order is kept while it is open, for a day after it was last named if it is not, and for a
bounded number of orders.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import NamedTuple

from proxy.alpaca.codec import BODY_BYTES, JSON, Codec, Malformed, Raw
from proxy.alpaca.endpoints import WILDCARD, Endpoint
from proxy.alpaca.order_events import EVENTS
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic
from proxy.alpaca.transcode import msgpack_of
from proxy.routing.allowlists import OrderPatterns, without_slashes
from proxy.routing.order_history import OrderHistory
from proxy.routing.router import ALL, Delivery, Member, Taken

ORDERS = "trade_updates"
FINAL = frozenset(("filled", "canceled", "expired", "rejected", "replaced"))  # not `done_for_day`: it goes on tomorrow
KEEP_SECONDS = 24 * 3600.0
KEEP_ORDERS = 50_000  # about 1 KB each, 2.4 KB with ids of MAX_ID
MAX_ID = 256  # characters; Alpaca's own ids have 36, a client_order_id up to 128
MAX_FAMILY = 64  # orders of an update that are considered
MAX_DEPTH = 2  # of legs of legs
# Characters of client_order_ids and symbols that a family keeps. An algorithm may replace its order a thousand times an
# hour. The first ones count: the algorithm has chosen them, the later ones may be Alpaca's.
FAMILY_CHARACTERS = 512

Clients = Mapping[str, OrderPatterns]
Match = tuple[str, str]
"""A client_order_id and a symbol without slashes, of one order; either may be empty."""


class NamedOrder(NamedTuple):
    """An order that an update names, by the update's own order or by a reference.

    `certain`: `is_open` holds whatever was known before; else only if nothing was.
    """

    id: str
    match: Match
    is_open: bool
    certain: bool


class Family:
    """Related orders; `owners` are those of `clients`, computed anew for others. `merged_into` has taken its place."""

    __slots__ = ("clients", "matches", "merged_into", "owners")

    def __init__(self) -> None:
        self.matches: dict[Match, None] = {}  # in the order in which they were learned
        self.clients: Clients | None = None
        self.owners: frozenset[str] = frozenset()
        self.merged_into: Family | None = None


class Orders:
    """The orders of one account, and their owners.

    `clients()` returns the patterns of the clients that may receive its updates, by name. It must return the same
    mapping until one of them changes.
    """

    def __init__(self, clients: Callable[[], Clients]) -> None:
        self.long_ids = 0  # ids over MAX_ID, which are ignored
        self.unowned = 0  # updates without an owner
        self._clients = clients
        # By order id: its family, and the time at which it was last named, which is the order of each.
        self._open: OrderedDict[str, tuple[Family, float]] = OrderedDict()
        self._final: OrderedDict[str, tuple[Family, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Orders {len(self._open)} open, {len(self._final)} final>"

    def receivers(self, update: Raw | bytes, now: float) -> frozenset[str]:
        """Return the clients that receive an update, by its `data`: the owners of its order, and those with `*`.

        The order and those that it names are kept. `now` is in seconds of any monotonic clock.
        """
        self._prune(now)
        clients = self._clients()
        owners = self._learn(self._named_in(update), clients, now)
        if not owners:
            self.unowned += 1
        return owners.union(name for name, patterns in clients.items() if patterns.everything)

    def known_receivers(self, update: Raw | bytes) -> frozenset[str]:
        """Return the clients that receive an update that `receivers` has had before; nothing is learned or counted."""
        clients = self._clients()
        owners = {name for name, patterns in clients.items() if patterns.everything}
        for order in self._named_in(update):
            owners |= _owners(order.match, clients)
            if (family := self._family_of(order.id)) is not None:
                self._match(family, (), clients)
                owners |= family.owners
        return frozenset(owners)

    def _learn(self, named: Sequence[NamedOrder], clients: Clients, now: float) -> frozenset[str]:
        """Keep orders as one family; return its owners."""
        families = dict.fromkeys(family for order in named if (family := self._family_of(order.id)) is not None)
        family, *others = families or [Family()]
        self._match(family, (), clients)
        for other in others:
            self._match(family, other.matches, clients)
            other.matches, other.merged_into = {}, family
        self._match(family, [order.match for order in named], clients)
        for order in named:
            if order.id:
                self._keep(order, family, now)
        return family.owners

    def _family_of(self, order_id: str) -> Family | None:
        family, _ = self._open.get(order_id) or self._final.get(order_id) or (None, 0.0)
        while family is not None and family.merged_into is not None:
            family = family.merged_into
        return family

    def _match(self, family: Family, matches: Iterable[Match], clients: Clients) -> None:
        """Add what the owners of a family are decided by.

        A full family takes only what brings it another owner.
        """
        if family.clients is not clients:
            family.clients = clients
            family.owners = frozenset().union(*(_owners(match, clients) for match in family.matches))
        for match in matches:
            if match not in family.matches and any(match):
                owners = family.owners | _owners(match, clients)
                if owners != family.owners or sum(map(_length, family.matches)) < FAMILY_CHARACTERS:
                    family.matches[match] = None
                    family.owners = owners

    def _keep(self, order: NamedOrder, family: Family, now: float) -> None:
        was_open, was_final = self._open.pop(order.id, None), self._final.pop(order.id, None)
        known = was_open or was_final
        is_open = order.is_open if order.certain or known is None else was_open is not None
        (self._open if is_open else self._final)[order.id] = family, now

    def _prune(self, now: float) -> None:
        while self._final and now - next(iter(self._final.values()))[1] >= KEEP_SECONDS:
            self._final.popitem(last=False)
        while len(self._open) + len(self._final) > KEEP_ORDERS:
            (self._final or self._open).popitem(last=False)

    def _named_in(self, update: Raw | bytes) -> list[NamedOrder]:
        """Return the first MAX_FAMILY orders that an update names; none if it has no order."""
        fields = JSON.fields_of(update) or {}
        order = JSON.fields_of(fields.get("order"))
        return [] if order is None else [*islice(self._named(order, fields), MAX_FAMILY)]

    def _named(self, order: Mapping[str, Raw], update: Mapping[str, Raw]) -> Iterator[NamedOrder]:
        """Yield an update's order, its relatives, and the legs that the update reports executions of."""
        yield from self._relatives(order, 0)
        for leg in JSON.items_of(update.get("legs")):
            if (fields := JSON.fields_of(leg)) is not None:
                match = "", without_slashes(self._text(fields, "symbol"))
                yield NamedOrder(self._text(fields, "order_id"), match, False, False)

    def _relatives(self, order: Mapping[str, Raw], depth: int) -> Iterator[NamedOrder]:
        """Yield an order, the orders it refers to, and its legs.

        The order of an update is certain to be as open as it says. A leg in its parent may be a copy from before, so
        only a final status of it is certain.
        """
        final = self._text(order, "status") in FINAL
        match = self._text(order, "client_order_id"), without_slashes(self._text(order, "symbol"))
        yield NamedOrder(self._text(order, "id"), match, not final, final or depth == 0)
        for relation, is_open in (("replaces", False), ("replaced_by", True)):
            if relative := self._text(order, relation):
                yield NamedOrder(relative, ("", ""), is_open, False)
        for leg in JSON.items_of(order.get("legs")) if depth < MAX_DEPTH else ():
            if (fields := JSON.fields_of(leg)) is not None:
                yield from self._relatives(fields, depth + 1)

    def _text(self, order: Mapping[str, Raw], key: str) -> str:
        """Return a text of the order; empty if it is missing or too long."""
        value = JSON.text_of(order.get(key)) or ""
        if len(value) > MAX_ID:
            self.long_ids += 1
            return ""
        return value


def _owners(match: Match, clients: Clients) -> set[str]:
    return {name for name, patterns in clients.items() if patterns.own(*match)}


def _length(match: Match) -> int:
    return len(match[0]) + len(match[1])


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

    @property
    def unowned(self) -> int:
        """The number of updates that belong to no client."""
        return self._orders.unowned

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
            receivers = self._orders.receivers(message.data, now)
            members = [member for member in members if member.name in receivers]
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
