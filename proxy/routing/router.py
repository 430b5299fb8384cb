"""Topic → groups of sessions: the data path of one feed, pure.

Sessions with the same subscription and codec form a *group*: a batch is joined once for a group, and all members share
its bytes. The route of a kind and symbol is the tuple of groups that receive it, including those with a wildcard. It is
cached, so a message costs one look-up, whatever the number of symbols. Bodies are appended in the order in which they
were received, and flushed before any subscription changes.

The content of two kinds is inspected: news is routed by its `symbols`, and order books are kept (`order_books`), so
that a session that joins late receives the whole book first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple, Protocol

from proxy.alpaca import large_frames
from proxy.alpaca.codec import BODY_BYTES, CONTROL_BYTES, FRAME_BYTES, Codec, Malformed, Raw
from proxy.alpaca.endpoints import CHANNEL_OF_KIND, WILDCARD, Endpoint
from proxy.alpaca.market import CONTROL
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic, channel_of, covers
from proxy.alpaca.transcode import InvalidText, transcode, with_valid_text
from proxy.routing import order_books as books
from proxy.routing.allowlists import SymbolPatterns
from proxy.routing.order_books import Books
from proxy.routing.route_cache import RouteCache

# A group with more topics is not indexed by topic; instead, its set is checked when a route is computed. So a subscribe
# to thousands of symbols does not block the hub.
LARGE = 500

_NEWS = "n"
_WILDCARDS = frozenset((channel, WILDCARD) for channel in CHANNEL_OF_KIND.values())
_INSPECTED = frozenset((_NEWS, books.KIND))


class Member(Protocol):
    """The part of a session's `Subscriber` that routing uses.

    `name` is the client's. `accepts_unknown` are the patterns of the allowlist's channel `*`, which apply to kinds
    without a documented channel; None if the allowlist has no channel `*`. `outages` counts the outages of the feed.
    """

    name: str
    codec: Codec
    accepts_unknown: SymbolPatterns | None
    outages: int
    put: Callable[[bytes, int], None]

    def abort(self) -> None:
        """End the member after an internal error in `put`."""


class Group:
    """The members with the same subscription and codec, and bodies for them, which are in `body_codec`."""

    __slots__ = ("_channels", "accepts_unknown", "bodies", "body_codec", "codec", "members", "subscription")

    def __init__(self, subscription: Subscription, codec: Codec, accepts_unknown: SymbolPatterns | None) -> None:
        self.subscription = subscription
        self.codec = codec
        self.body_codec = codec.body_codec
        self.accepts_unknown = accepts_unknown
        self.members: list[Member] = []
        self.bodies: list[Raw | bytes] = []
        self._channels: frozenset[str] | None = None

    def __repr__(self) -> str:
        return f"<Group {len(self.members)} members, {len(self.subscription)} topics, {self.codec.name}>"

    @property
    def channels(self) -> frozenset[str]:
        """The channels of the subscription.

        They are computed once, since there may be thousands of topics.
        """
        if self._channels is None:
            self._channels = frozenset(map(channel_of, self.subscription))
        return self._channels


class Route(NamedTuple):
    """The groups that receive a message, by codec.

    `same` take bodies of the feed's own codec, for `other` the message must be transcoded.
    """

    same: tuple[Group, ...]
    other: tuple[Group, ...]


class Delivery(NamedTuple):
    """A data frame's payload, its number of messages, and its receivers.

    `text`: it is sent in a text frame.
    """

    members: Sequence[Member]
    text: bool
    payload: bytes
    messages: int


class Taken(NamedTuple):
    """The part of a frame that `take` leaves over: a control message, and the frame of the messages after it."""

    control: Raw | bytes | None
    rest: bytes | None


ALL = Taken(None, None)


class Routing(Protocol):
    """`Router` for market data, `order_router.OrderRouter` for trading."""

    received: int
    unrouted: int

    @property
    def irregular(self) -> Mapping[str, int]: ...
    @property
    def unowned(self) -> int | None: ...
    @property
    def recovered(self) -> int | None: ...

    def set_subscription(self, member: Member, subscription: Subscription) -> list[Delivery]: ...
    def subscription_of(self, member: Member) -> Subscription: ...
    def subscriptions(self) -> list[tuple[Member, Subscription]]: ...
    def revoke(self, member: Member, topics: Subscription) -> None: ...
    def remove(self, member: Member) -> None: ...
    def acked_changed(self, acked: Set[Topic]) -> None: ...
    def book(self, symbol: str, codec: Codec) -> Raw | bytes | None: ...
    def books(self, member: Member) -> Iterator[Delivery]: ...
    def pieces(self, frame: bytes) -> Iterator[bytes | None]: ...
    def take(self, frame: bytes) -> Taken: ...
    def flush(self) -> list[Delivery]: ...


class Router:
    """The groups of one feed, whose upstream connection uses `codec`."""

    def __init__(self, endpoint: Endpoint, codec: Codec) -> None:
        self.endpoint = endpoint
        self.codec = codec
        self.received = 0  # messages
        self.unrouted = 0  # messages that no session received
        self._untranslatable = 0
        self._invalid_text = 0  # messages with a text that is not UTF-8, which was replaced
        self._oversized = 0
        self._groups: dict[tuple[Subscription, str, SymbolPatterns | None], Group] = {}
        self._group_of: dict[Member, Group] = {}
        self._groups_by_topic: dict[Topic, dict[Group, None]] = {}
        self._large_groups: dict[Group, None] = {}
        self._routes = RouteCache(self.find)
        self._wildcard_routes: dict[str, Route] = {}  # by channel, of a symbol that no group names
        self._books = Books(codec)
        # Between `take` and `flush`:
        self._touched: list[Group] = []  # the groups with bodies
        self._frames: list[bytes] = []
        self._count = 0  # messages

    def __repr__(self) -> str:
        return f"<Router {self.endpoint.feed} {len(self._group_of)} members in {len(self._groups)} groups>"

    @property
    def irregular(self) -> Mapping[str, int]:
        """The numbers of messages that could not be passed on regularly, by reason."""
        return {
            "untranslatable": self._untranslatable,
            "invalid_text": self._invalid_text,
            "oversized": self._oversized,
            "long_symbol": self._routes.long_names,
        }

    @property
    def unowned(self) -> None:
        """None: market data has no owners."""

    @property
    def recovered(self) -> None:
        """None: Alpaca sends market data once."""

    def set_subscription(self, member: Member, subscription: Subscription) -> list[Delivery]:
        """Replace the member's subscription.

        Return the order books that must be sent to it first.
        """
        group = self._group_of.get(member)
        before = NO_TOPICS if group is None else group.subscription
        if before == subscription and (group is None or group.accepts_unknown == member.accepts_unknown):
            return []
        self._join(member, subscription)
        codec = member.codec
        gained = [self.book(symbol, codec) for symbol in self._books.gained(before, subscription)]
        if not (bodies := [body for body in gained if body is not None]):
            return []
        return [Delivery([member], codec.text, payload, messages) for payload, messages in codec.batches(bodies)]

    def books(self, member: Member) -> Iterator[Delivery]:
        """Yield the order books of all pairs that the member receives, each as it is when it is yielded."""
        codec = member.codec
        for symbol in self._books.gained(NO_TOPICS, self.subscription_of(member)):
            if (body := self.book(symbol, codec)) is not None:
                yield Delivery([member], codec.text, codec.join([body]), 1)

    def _join(self, member: Member, subscription: Subscription) -> None:
        self.remove(member)
        if not subscription:
            return
        key = (subscription, member.codec.name, member.accepts_unknown)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(subscription, member.codec, member.accepts_unknown)
            if len(subscription) > LARGE:
                self._large_groups[group] = None
            for topic in self._indexed_topics(group):
                self._groups_by_topic.setdefault(topic, {})[group] = None
            self._change_routes(subscription)
        group.members.append(member)
        self._group_of[member] = group

    def revoke(self, member: Member, topics: Subscription) -> None:
        """Remove these topics from the member's subscription."""
        group = self._group_of.get(member)
        if group is not None and not topics.isdisjoint(group.subscription):
            self._join(member, group.subscription - topics)

    def remove(self, member: Member) -> None:
        """Remove a member."""
        group = self._group_of.pop(member, None)
        if group is None:
            return
        group.members.remove(member)
        if group.members:
            return
        del self._groups[group.subscription, group.codec.name, group.accepts_unknown]
        for topic in self._indexed_topics(group):
            groups = self._groups_by_topic[topic]
            del groups[group]
            if not groups:
                del self._groups_by_topic[topic]
        self._large_groups.pop(group, None)
        self._change_routes(group.subscription)

    def _change_routes(self, subscription: Subscription) -> None:
        self._wildcard_routes.clear()
        self._routes.change(subscription)

    def _indexed_topics(self, group: Group) -> Subscription:
        """Return the topics under which the group is in `_groups_by_topic`."""
        return group.subscription & _WILDCARDS if group in self._large_groups else group.subscription

    def subscription_of(self, member: Member) -> Subscription:
        """Return a member's subscription; members with equal ones share it."""
        return self._group_of[member].subscription if member in self._group_of else NO_TOPICS

    def subscriptions(self) -> list[tuple[Member, Subscription]]:
        """Return each member's subscription."""
        return [(member, group.subscription) for member, group in self._group_of.items()]

    def acked_changed(self, acked: Set[Topic]) -> None:
        """Remove the order books of topics that Alpaca no longer sends."""
        self._books.keep(acked)

    def book(self, symbol: str, codec: Codec) -> Raw | bytes | None:
        """Return the body of a message with a pair's whole order book, or None.

        None if the book is not kept.
        """
        body = self._books.whole(symbol)
        codec = codec.body_codec
        return body if body is None or codec is self.codec else self._translated(books.KIND, body, codec)

    def pieces(self, frame: bytes) -> Iterator[bytes | None]:
        """Split a large frame into small ones for `take`. Raises Malformed.

        None is a pause. A message over CONTROL_BYTES is left out without a look into it.
        """
        for piece in large_frames.pieces(frame, self.codec):
            if piece is not None and len(piece) > CONTROL_BYTES:
                self._oversized += 1
            else:
                yield piece

    def take(self, frame: bytes) -> Taken:
        """Gather a data frame's messages by group, up to a control message. Raises Malformed.

        `flush` must follow before `set_subscription` or `remove`.
        """
        raws, heads = self.codec.split(frame)
        count = len(raws)
        if count == 1:
            if heads[0].T in CONTROL:
                return Taken(raws[0], None)
            if len(frame) > BODY_BYTES:
                self._oversized += 1
                return ALL
        self._frames.append(frame)
        self._count += count
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
                if kind in CONTROL:
                    return self._split_at(frame, raw)
                self.unrouted += 1
        return ALL

    def _split_at(self, frame: bytes, control: Raw) -> Taken:
        """Take a frame for its messages before a control message. Alpaca sends those alone, but does not promise it."""
        raws = self.codec.split(frame)[0]
        position = next(position for position, raw in enumerate(raws) if bytes(raw) == bytes(control))
        self._count -= len(raws) - position
        self._frames[-1:] = [b"", b""]  # it must not be passed on whole
        rest = raws[position + 1 :]
        return Taken(control, self.codec.join(rest) if rest else None)

    def flush(self) -> list[Delivery]:
        """Return the batches that `take` gathered.

        There is one for each group, or several if a frame would be too large.
        """
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
        """Append the message to groups with other codecs, transcoded once for each."""
        bodies: dict[Codec, Raw | bytes | None] = {}
        for group in groups:
            codec = group.body_codec
            if codec not in bodies:
                bodies[codec] = self._translated(kind, raw, codec)
            if (body := bodies[codec]) is not None:
                if not group.bodies:
                    self._touched.append(group)
                group.bodies.append(body)

    def _translated(self, kind: str, raw: Raw | bytes, codec: Codec) -> Raw | bytes | None:
        try:
            try:
                return transcode(kind, raw, self.codec, codec)
            except InvalidText:
                self._invalid_text += 1
                return transcode(kind, with_valid_text(raw, self.codec), self.codec, codec)
        except Malformed:
            self._untranslatable += 1
            return None

    def find(self, kind: str, symbol: str) -> Route:
        """Compute the route of a kind and symbol."""
        channel = CHANNEL_OF_KIND.get(kind)
        if channel is None:
            return _route(self._unknown_kind(kind, symbol), self.codec)
        if self._large_groups or (channel, symbol) in self._groups_by_topic:
            return _route(self._receivers(channel, (symbol,)), self.codec)
        # Most symbols have the same route: that of the groups with the wildcard.
        if (route := self._wildcard_routes.get(channel)) is None:
            route = self._wildcard_routes[channel] = _route(self._receivers(channel, ()), self.codec)
        return route

    def _inspect(self, kind: str, symbol: str, raw: Raw) -> Route:
        """Return the route of a message of an inspected kind.

        An order book message is applied to its book.
        """
        if kind == _NEWS:
            return self._news(raw)
        self._books.apply(symbol, raw)
        return self._routes[kind][symbol]

    def _news(self, raw: Raw) -> Route:
        """Return the route of a news message, by its `symbols`.

        Without any, it is sent to the groups with the wildcard.
        """
        return _route(self._receivers("news", self.codec.news_symbols(raw)), self.codec)

    def _receivers(self, channel: str, symbols: Iterable[str]) -> Iterable[Group]:
        """Return the groups that hold the wildcard or any of the symbols, each once."""
        groups = {**self._groups_by_topic.get((channel, WILDCARD), {})}
        for symbol in symbols:
            topic = channel, symbol
            groups |= self._groups_by_topic.get(topic, {})
            groups |= dict.fromkeys([group for group in self._large_groups if topic in group.subscription])
        return groups

    def _unknown_kind(self, kind: str, symbol: str) -> Iterable[Group]:
        """Return the groups that receive a kind without a documented channel.

        They hold the symbol, or `*`, on any channel, and the patterns of their allowlist's channel `*` permit it.
        """
        if kind in CONTROL:  # a control message among data: an SDK would take it for a reply to its own request
            return []
        return [
            group
            for group in self._groups.values()
            if group.accepts_unknown is not None
            and group.accepts_unknown.permit(symbol)
            and any(covers(group.subscription, (channel, symbol)) for channel in group.channels)
        ]


def _route(groups: Iterable[Group], codec: Codec) -> Route:
    """Return the route to these groups, on a feed that uses `codec`.

    The recorder's groups, whose codec has the bodies of another, come after those of clients.
    """
    same: list[Group] = []
    other: list[Group] = []
    for group in sorted(groups, key=lambda group: group.body_codec is not group.codec):
        (same if group.body_codec is codec else other).append(group)
    return Route(tuple(same), tuple(other))
