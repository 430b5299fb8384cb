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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from proxy.alpaca.codec import JSON, Raw
from proxy.routing.allowlists import OrderPatterns, without_slashes

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

    __slots__ = ("clients", "looked_up", "matches", "merged_into", "owners")

    def __init__(self) -> None:
        self.matches: dict[Match, None] = {}  # in the order in which they were learned
        self.clients: Clients | None = None
        self.owners: frozenset[str] = frozenset()
        self.merged_into: Family | None = None
        self.looked_up = ""  # the order of it for which Alpaca was asked


class Orders:
    """The orders of one account, and their owners.

    `clients()` returns the patterns of the clients that may receive its updates, by name. It must return the same
    mapping until one of them changes. The `observers` among them receive what their patterns match, and own nothing.
    """

    def __init__(self, clients: Callable[[], Clients], observers: frozenset[str] = frozenset()) -> None:
        self.observers = observers
        self.long_ids = 0  # ids over MAX_ID, which are ignored
        self._clients = clients
        # By order id: its family, and the time at which it was last named, which is the order of each.
        self._open: OrderedDict[str, tuple[Family, float]] = OrderedDict()
        self._final: OrderedDict[str, tuple[Family, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Orders {len(self._open)} open, {len(self._final)} final>"

    def owners(self, update: Raw | bytes, now: float) -> frozenset[str]:
        """Return the clients and observers whose patterns match the order of an update, by the update's `data`.

        The order and those that it names are kept. `now` is in seconds of any monotonic clock.
        """
        self._prune(now)
        return self._learn(self._named_in(update), self._clients(), now)

    def permitted_all(self) -> frozenset[str]:
        """Return the clients that receive every update."""
        return frozenset(name for name, patterns in self._clients().items() if patterns.everything)

    def known_receivers(self, update: Raw | bytes) -> frozenset[str]:
        """Return the clients that receive an update that `owners` has had before; nothing is learned."""
        clients = self._clients()
        owners = {*self.permitted_all()}
        for order in self._named_in(update):
            owners |= _owners(order.match, clients)
            if (family := self._family_of(order.id)) is not None:
                self._match(family, (), clients)
                owners |= family.owners
        return frozenset(owners)

    def learn(self, order: Mapping[str, Raw], now: float) -> frozenset[str]:
        """Keep the orders of a record from Alpaca's REST API; return their owners.

        A record may be older than an update that has arrived, so only a final state in it is certain.
        """
        self._prune(now)
        named = [each._replace(certain=not each.is_open) for each in islice(self._relatives(order, 0), MAX_FAMILY)]
        return self._learn(named, self._clients(), now)

    def relate(self, order_id: str, matches: Iterable[Match], now: float) -> None:
        """Keep what another node knows of an order: the client_order_ids and symbols of its family."""
        self._prune(now)
        named = [NamedOrder(order_id, match, True, False) for match in islice(matches, MAX_FAMILY)]
        if named:
            self._learn(named, self._clients(), now)

    def matches_of(self, order_id: str) -> Sequence[Match]:
        """Return what the owners of an order are decided by, for `relate` on another node."""
        family = self._family_of(order_id)
        return () if family is None else [*family.matches]

    def open_before(self, time: float) -> Iterator[str]:
        """Yield the orders that are known to be open and were last named before a time."""
        for order_id, (_, named_at) in [*self._open.items()]:
            if named_at < time:
                yield order_id

    def knows(self, order_id: str) -> bool:
        """Return whether any update or record has named an order."""
        return order_id in self._open or order_id in self._final

    def owners_of(self, order_id: str) -> frozenset[str]:
        """Return the owners of an order, as far as they are known, without observers."""
        if (family := self._family_of(order_id)) is None:
            return frozenset()
        self._match(family, (), self._clients())
        return family.owners - self.observers

    def look_up_of(self, order_id: str) -> str:
        """Return the related order for which Alpaca was asked to which orders they are related; empty if none."""
        return "" if (family := self._family_of(order_id)) is None else family.looked_up

    def note_look_up(self, order_id: str) -> None:
        """Note that Alpaca is asked to which orders this one is related."""
        if (family := self._family_of(order_id)) is not None:
            family.looked_up = order_id

    def forget_look_up(self, order_id: str) -> None:
        """Note that Alpaca has not answered: the next update of the order is looked up again."""
        if (family := self._family_of(order_id)) is not None:
            family.looked_up = ""

    def end(self, order_id: str, now: float) -> None:
        """Note that an order is not open any more: Alpaca does not know it."""
        if (known := self._open.pop(order_id, None)) is not None:
            self._final[order_id] = known[0], now

    def _learn(self, named: Sequence[NamedOrder], clients: Clients, now: float) -> frozenset[str]:
        """Keep orders as one family; return its owners."""
        families = dict.fromkeys(family for order in named if (family := self._family_of(order.id)) is not None)
        family, *others = families or [Family()]
        self._match(family, (), clients)
        for other in others:
            self._match(family, other.matches, clients)
            other.matches, other.merged_into = {}, family
            family.looked_up = family.looked_up or other.looked_up
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
