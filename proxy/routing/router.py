"""Topic → who hears it: the data path of one feed, pure.

Sessions that hold the same subscription in the same codec form a *group*: a batch is joined once a group, however many
members share the bytes. `routes` know the groups that hear a message of some kind and symbol, wildcards folded in, so a
message costs a look-up, whatever the number of symbols. Order is kept: bodies are appended in upstream's order and
flushed before anything else happens.

A few kinds are looked into on their way: news goes by its `symbols`, and order books are kept (`books`), so that who
joins late hears a whole one first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from typing import NamedTuple, Protocol

from proxy.alpaca.codec import FRAME_BYTES, Codec, Malformed, Raw
from proxy.alpaca.endpoints import CHANNEL_OF_KIND, WILDCARD, Endpoint
from proxy.alpaca.market import CONTROL
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic, channel_of, covers, known
from proxy.alpaca.transcode import transcode
from proxy.routing import order_books as books
from proxy.routing.order_books import Books
from proxy.routing.route_cache import RouteCache

# A group of more topics is asked one topic at a time, when a route is made, instead of being entered under each: so a
# join with thousands of symbols does not hold up everybody's data.
LARGE = 500

_NEWS = "n"
_WILDCARDS = frozenset((channel, WILDCARD) for channel in CHANNEL_OF_KIND.values())
_INSPECTED = frozenset((_NEWS, books.KIND))


class Member(Protocol):
    """A session, as far as routing knows it. `name` is its client's; `curious` that its allowlist has `*` for channels,
    those that this code does not know included; `outages` counts those of its feed that it lived through."""

    name: str
    codec: Codec
    accepts_unknown: bool
    outages: int
    put: Callable[[bytes, int], None]


class Group:
    """The members that hear the same messages in the same codec, and the bodies gathered for them."""

    __slots__ = ("_channels", "accepts_unknown", "bodies", "codec", "members", "subscription")

    def __init__(self, subscription: Subscription, codec: Codec, accepts_unknown: bool) -> None:
        self.subscription = subscription
        self.codec = codec
        self.accepts_unknown = accepts_unknown
        self.members: list[Member] = []
        self.bodies: list[Raw | bytes] = []
        self._channels: frozenset[str] | None = None

    def __repr__(self) -> str:
        return f"<Group {len(self.members)} members, {len(self.subscription)} topics, {self.codec.name}>"

    @property
    def channels(self) -> frozenset[str]:
        """Those in which it may hear kinds that no documented channel carries. Seldom asked for, and thousands of
        topics are looked at to find them."""
        if self._channels is None:
            self._channels = frozenset(map(channel_of, self.subscription)) if self.accepts_unknown else frozenset()
        return self._channels


class Route(NamedTuple):
    """The groups that hear a message: those of the feed's own codec, and those it must be transcoded for."""

    same: tuple[Group, ...]
    other: tuple[Group, ...]


class Delivery(NamedTuple):
    """A data frame's payload, how many messages are in it, and who gets it. `text`: it travels in a text frame."""

    members: Sequence[Member]
    text: bool
    payload: bytes
    messages: int


class Routing(Protocol):
    """Who hears what: `Router` on market data, `orders.OrderRouter` on trading."""

    received: int
    unrouted: int

    def set_subscription(self, member: Member, subscription: Subscription) -> list[Delivery]: ...
    def subscriptions(self) -> list[tuple[Member, Subscription]]: ...
    def remove(self, member: Member) -> None: ...
    def prune_books(self, acked: Set[Topic]) -> None: ...
    def book(self, symbol: str, codec: Codec) -> Raw | bytes | None: ...
    def take(self, frame: bytes) -> Raw | bytes | None: ...
    def flush(self) -> list[Delivery]: ...


class Router:
    """The groups of one feed, whose upstream speaks `codec`."""

    def __init__(self, endpoint: Endpoint, codec: Codec) -> None:
        self.endpoint = endpoint
        self.codec = codec
        self.received = 0  # messages
        self.unrouted = 0  # of them, those that nobody wanted
        self.untranslatable = 0
        self._groups: dict[tuple[Subscription, str, bool], Group] = {}
        self._home: dict[Member, Group] = {}
        self._holders: dict[Topic, dict[Group, None]] = {}
        self._large: dict[Group, None] = {}
        self._routes = RouteCache(self.find)
        self._books = Books(codec)
        self._touched: list[Group] = []
        self._frames: list[bytes] = []
        self._count = 0

    def __repr__(self) -> str:
        return f"<Router {self.endpoint.feed} {len(self._home)} members in {len(self._groups)} groups>"

    def set_subscription(self, member: Member, subscription: Subscription) -> list[Delivery]:
        """From now on the member hears this subscription, and nothing else; the order books that it begins with."""
        before = self._home[member].subscription if member in self._home else NO_TOPICS
        self._join(member, subscription)
        codec = member.codec
        gained = [self.book(symbol, codec) for symbol in self._books.gained(before, subscription)]
        if not (bodies := [body for body in gained if body is not None]):
            return []
        return [Delivery([member], codec.text, payload, messages) for payload, messages in codec.batches(bodies)]

    def _join(self, member: Member, subscription: Subscription) -> None:
        self.remove(member)
        if not subscription:
            return
        key = (subscription, member.codec.name, member.accepts_unknown)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(subscription, member.codec, member.accepts_unknown)
            if len(subscription) > LARGE:
                self._large[group] = None
            for topic in self._entered(group):
                self._holders.setdefault(topic, {})[group] = None
            self._routes.change(subscription)
        group.members.append(member)
        self._home[member] = group

    def remove(self, member: Member) -> None:
        """The member hears nothing any more."""
        group = self._home.pop(member, None)
        if group is None:
            return
        group.members.remove(member)
        if group.members:
            return
        del self._groups[group.subscription, group.codec.name, group.accepts_unknown]
        for topic in self._entered(group):
            holders = self._holders[topic]
            del holders[group]
            if not holders:
                del self._holders[topic]
        self._large.pop(group, None)
        self._routes.change(group.subscription)

    def _entered(self, group: Group) -> Subscription:
        """The topics under which the group is entered in `_holders`."""
        return group.subscription & _WILDCARDS if group in self._large else group.subscription

    def subscriptions(self) -> list[tuple[Member, Subscription]]:
        """Who hears what."""
        return [(member, group.subscription) for member, group in self._home.items()]

    def prune_books(self, acked: Set[Topic]) -> None:
        """Alpaca sends these topics and no more: what is remembered of others is of no use."""
        self._books.keep(acked)

    def book(self, symbol: str, codec: Codec) -> Raw | bytes | None:
        """The body that tells a pair's order book in full, as it now is; None if it is not known."""
        body = self._books.whole(symbol)
        return body if body is None or codec is self.codec else self._translated(books.KIND, body, codec)

    def take(self, frame: bytes) -> Raw | None:
        """Gathers a data frame's messages for those who hear them; `flush` must follow before any `hold` or `drop`.

        A control message is given back: Alpaca sends each alone in its frame. Raises Malformed.
        """
        raws, heads = self.codec.split(frame)
        if len(heads) == 1 and heads[0].T in CONTROL:
            return raws[0]
        self._frames.append(frame)
        self._count += len(raws)
        routes, touched = self._routes, self._touched
        for raw, head in zip(raws, heads, strict=True):
            kind = head.T
            same, other = routes[kind][head.S] if kind not in _INSPECTED else self._inspect(kind, head.S, raw)
            for group in same:
                if not group.bodies:
                    touched.append(group)
                group.bodies.append(raw)
            if other:
                self._transcoded(kind, raw, other)
            elif not same:
                self.unrouted += 1
        return None

    def flush(self) -> list[Delivery]:
        """The batches that `take` gathered, one a group (more if a frame would grow too large)."""
        deliveries: list[Delivery] = []
        whole = self._frames[0] if len(self._frames) == 1 and len(self._frames[0]) <= FRAME_BYTES else None
        for group in self._touched:
            bodies, group.bodies = group.bodies, []
            text = group.codec.text
            if whole is not None and len(bodies) == self._count and group.codec is self.codec:
                deliveries.append(Delivery(group.members, text, whole, self._count))
            else:
                for payload, messages in group.codec.batches(bodies):
                    deliveries.append(Delivery(group.members, text, payload, messages))
        self.received += self._count
        self._touched.clear()
        self._frames.clear()
        self._count = 0
        return deliveries

    def _transcoded(self, kind: str, raw: Raw, groups: Iterable[Group]) -> None:
        """The message in the other codecs, once for each."""
        bodies: dict[Codec, Raw | bytes | None] = {}
        for group in groups:
            codec = group.codec
            if codec not in bodies:
                bodies[codec] = self._translated(kind, raw, codec)
            if (body := bodies[codec]) is not None:
                if not group.bodies:
                    self._touched.append(group)
                group.bodies.append(body)

    def _translated(self, kind: str, raw: Raw | bytes, codec: Codec) -> Raw | bytes | None:
        try:
            return transcode(kind, raw, self.codec, codec)
        except Malformed:
            self.untranslatable += 1
            return None

    def find(self, kind: str, symbol: str) -> Route:
        """Who hears such a message, computed afresh."""
        channel = CHANNEL_OF_KIND.get(kind)
        if channel is None:
            return _route(self._unknown_kind(kind, symbol), self.codec)
        return _route(self._receivers(channel, (symbol,)), self.codec)

    def _inspect(self, kind: str, symbol: str, raw: Raw) -> Route:
        """Who hears a message that must be read on its way."""
        if kind == _NEWS:
            return self._news(raw)
        self._books.apply(symbol, raw)
        return self._routes[kind][symbol]

    def _news(self, raw: Raw) -> Route:
        """News goes by its `symbols`, once to each group; without any it reaches the wildcard alone."""
        return _route(self._receivers("news", self.codec.news_symbols(raw)), self.codec)

    def _receivers(self, channel: str, symbols: Iterable[str]) -> Iterable[Group]:
        """The groups that hold the channel's wildcard or any of these symbols, each once."""
        found = {**self._holders.get((channel, WILDCARD), {})}
        for symbol in symbols:
            topic = known(channel, symbol)
            found |= self._holders.get(topic, {})
            found |= dict.fromkeys([group for group in self._large if topic in group.subscription])
        return found

    def _unknown_kind(self, kind: str, symbol: str) -> Iterable[Group]:
        """A kind that no documented channel carries: nothing in it tells which channel it belongs to. Those hear it who
        hold its symbol, or everything, and whose allowlist has `*` for the feed or its channels."""
        if kind in CONTROL:  # not alone in its frame, as it should be; SDKs would take it for an answer to themselves
            return []
        return [
            group
            for group in self._groups.values()
            if any(covers(group.subscription, (channel, symbol)) for channel in group.channels)
        ]


def _route(groups: Iterable[Group], codec: Codec) -> Route:
    same: list[Group] = []
    other: list[Group] = []
    for group in groups:
        (same if group.codec is codec else other).append(group)
    return Route(tuple(same), tuple(other))
