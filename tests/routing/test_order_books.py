"""Each subscriber to an order book has the same book as Alpaca at every step.

It does not matter how late it has joined.
"""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.alpaca.codec import JSON, MSGPACK, Codec
from proxy.alpaca.endpoints import endpoint
from proxy.alpaca.plain_pairs import PLAIN_PAIRS
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic
from proxy.routing import order_books
from proxy.routing.router import Delivery, Router
from tests.routing.taking import take
from tests.routing.test_router import Member as RouterMember

PAIRS = ("BTC/USD", "ETH/USD", "SOL/USD")
SYMBOLS = (*PAIRS, "*")
TIME = "2024-03-12T10:39:39.445492807Z"
PRICES, SIZES = st.integers(1, 6), st.sampled_from((0, 1, 2.5))
LEVELS = st.lists(st.tuples(PRICES, SIZES), max_size=4)

Sides = tuple[dict[float, float], dict[float, float]]


def topics(*symbols: str) -> Subscription:
    return frozenset(("orderbooks", symbol) for symbol in symbols)


def update(pair: str, sides: Any, whole: bool) -> dict[str, Any]:
    bids, asks = ([{"p": price, "s": size} for price, size in side] for side in sides)
    return {"T": "o", "S": pair, "t": TIME, "b": bids, "a": asks, **({"r": True} if whole else {})}


def apply(book: Sides | None, message: dict[str, Any]) -> Sides | None:
    """Return the book after a message, as Alpaca documents it."""
    if message.get("r"):
        book = {}, {}
    for side, levels in zip(book or (), (message["b"], message["a"]), strict=False):
        for level in levels:
            side.pop(level["p"], None)
            if level["s"]:
                side[level["p"]] = level["s"]
    return book


class Member(RouterMember):
    """A client that builds order books from the messages that it receives."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec)
        self.books: dict[str, Sides | None] = {}

    def receive(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if any(member is self for member in delivery.members):
                payload = delivery.payload
                messages = json.loads(payload) if delivery.text else msgpack.unpackb(payload)
                assert len(messages) == delivery.messages
                for message in messages:
                    pair = message["S"] if "/" in message["S"] else message["S"].replace("USD", "/USD")
                    assert ("/" in message["S"]) is (self.codec.base is self.codec)
                    self.books[pair] = apply(self.books.get(pair), message)


def make_router(codec: Codec = JSON) -> Router:
    served = endpoint("crypto")
    assert served is not None
    return Router(served, codec)


class LateJoiners(RuleBasedStateMachine):
    @initialize(codec=st.sampled_from((JSON, MSGPACK)))
    def begin(self, codec: Codec) -> None:
        self.codec = codec
        self.router = make_router(codec)
        self.members = [Member(c) for c in (JSON, MSGPACK, *PLAIN_PAIRS.values())]
        self.held: dict[Member, Subscription] = dict.fromkeys(self.members, NO_TOPICS)
        self.alpaca: dict[str, Sides] = {pair: ({}, {}) for pair in PAIRS}
        self.acked: frozenset[Topic] = NO_TOPICS

    def publish(self, *messages: dict[str, Any]) -> None:
        """Alpaca sends these messages in one frame."""
        assert not take(self.router, self.codec.encode(list(messages)))
        deliveries = self.router.flush()
        for member in self.members:
            member.receive(deliveries)

    def publish_whole(self, *pairs: str) -> None:
        for pair in pairs:
            self.publish(update(pair, [side.items() for side in self.alpaca[pair]], True))

    @rule(number=st.integers(0, 3), symbols=st.frozensets(st.sampled_from(SYMBOLS)), early=st.booleans())
    def set_subscription(self, number: int, symbols: frozenset[str], early: bool) -> None:
        """A client changes its subscription.

        Alpaca sends the whole books of new pairs, before or after the router has the subscription.
        """
        member, wanted = self.members[number], topics(*symbols)
        union = wanted.union(*(held for other, held in self.held.items() if other is not member))
        new = [pair for pair in PAIRS if self.covered(union, pair) and not self.covered(self.acked, pair)]
        if early:
            self.publish_whole(*new)
        self.acked = union
        self.router.acked_changed(union)
        before, self.held[member] = self.held[member], wanted
        for pair in PAIRS:
            if not (self.covered(before, pair) and self.covered(wanted, pair)):
                member.books.pop(pair, None)
        member.receive(self.router.set_subscription(member, wanted))
        if not early:
            assert not any(member.books.get(pair) for pair in new), "an outdated book"
            self.publish_whole(*new)

    @rule(pair=st.sampled_from(PAIRS), bids=LEVELS, asks=LEVELS)
    def difference(self, pair: str, bids: list[tuple[int, float]], asks: list[tuple[int, float]]) -> None:
        message = update(pair, (bids, asks), False)
        self.alpaca[pair] = apply(self.alpaca[pair], message) or ({}, {})
        if self.covered(self.acked, pair):
            self.publish(message)

    @rule()
    def remove_all(self) -> None:
        for member in self.members:
            self.router.remove(member)
            member.books.clear()
        self.held = dict.fromkeys(self.members, NO_TOPICS)
        self.acked = NO_TOPICS
        self.router.acked_changed(NO_TOPICS)

    @rule()
    def reconnect(self) -> None:
        self.router.acked_changed(NO_TOPICS)
        self.publish_whole(*(pair for pair in PAIRS if self.covered(self.acked, pair)))

    @invariant()
    def every_book_equals_alpacas(self) -> None:
        for member, held in self.held.items():
            for pair in PAIRS:
                expected = self.alpaca[pair] if self.covered(held, pair) else None
                assert member.books.get(pair) == expected

    @staticmethod
    def covered(subscription: Subscription, pair: str) -> bool:
        return bool(subscription & topics(pair, "*"))


TestLateJoiners = LateJoiners.TestCase
TestLateJoiners.settings = settings(stateful_step_count=30)


# Examples


def publish(router: Router, *messages: dict[str, Any]) -> None:
    assert not take(router, router.codec.encode(list(messages)))
    router.flush()


def join(router: Router, *symbols: str) -> list[dict[str, Any]]:
    """Add a member with these symbols and return the messages that it is sent first."""
    return [
        message
        for delivery in router.set_subscription(RouterMember(JSON), topics(*symbols))
        for message in json.loads(delivery.payload)
    ]


def test_a_whole_book_has_the_form_of_alpacas() -> None:
    router = make_router()
    publish(router, update("BTC/USD", ([(1, 2), (3, 0.5)], [(5, 1), (4, 1)]), True))
    publish(router, update("BTC/USD", ([(1, 0), (2, 7)], []), False) | {"t": "2024-03-12T10:39:40Z"})
    [message] = join(router, "BTC/USD")
    assert [*message] == ["T", "S", "t", "b", "a", "r"]
    expected = update("BTC/USD", ([(3, 0.5), (2, 7)], [(4, 1), (5, 1)]), True)
    assert message == expected | {"t": "2024-03-12T10:39:40Z"}


def test_nanoseconds_and_integers_are_kept() -> None:
    router = make_router(MSGPACK)
    time = msgpack.Timestamp(1_710_239_979, 445_492_807)
    publish(router, update("BTC/USD", ([(1, 2)], []), True) | {"t": TIME})
    assert not take(router, msgpack.packb([update("BTC/USD", ([(2, 2.5)], []), False) | {"t": time}]))
    native, foreign = (
        router.set_subscription(RouterMember(codec), topics("*"))[0].payload for codec in (MSGPACK, JSON)
    )
    assert msgpack.unpackb(native)[0]["t"] == time
    assert b'"b":[{"p":2,"s":2.5},{"p":1,"s":2}]' in foreign
    assert f'"t":"{TIME}"'.encode() in foreign


def test_a_whole_book_is_sent_once_to_each_member() -> None:
    router = make_router()
    publish(router, update("BTC/USD", ([(1, 2)], []), True))
    member = RouterMember(JSON)
    assert len(router.set_subscription(member, topics("BTC/USD"))) == 1
    assert router.set_subscription(member, topics("BTC/USD", "*")) == []
    assert router.set_subscription(member, topics("*")) == []


def test_differences_without_a_whole_book_are_ignored() -> None:
    router = make_router()
    publish(router, update("BTC/USD", ([(1, 2)], []), False))
    assert join(router, "BTC/USD") == []


@pytest.mark.parametrize("broken", [{"b": 7}, {"a": [{"p": "1", "s": 2}]}, {"b": [{}]}, {"r": "yes"}], ids=repr)
def test_a_book_is_removed_when_a_difference_cannot_be_applied(broken: dict[str, Any]) -> None:
    router = make_router()
    publish(router, update("BTC/USD", ([(1, 2)], []), True), update("ETH/USD", ([(1, 2)], []), True))
    publish(router, update("BTC/USD", ((), ()), False) | broken)
    assert [message["S"] for message in join(router, "*")] == ["ETH/USD"]


def test_books_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_books, "MAX_BOOKS", 2)
    monkeypatch.setattr(order_books, "MAX_LEVELS", 3)
    router = make_router()
    publish(router, *(update(f"{number}/USD", ([(1, 1)], []), True) for number in range(5)))
    assert [message["S"] for message in join(router, "*")] == ["0/USD", "1/USD"]
    publish(router, update("0/USD", ([(price, 1) for price in range(2, 9)], []), False))
    assert [message["S"] for message in join(router, "*")] == ["1/USD"]


def test_the_levels_of_all_books_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A book that exceeds the bound is removed.

    Levels that are removed make room for others.
    """
    monkeypatch.setattr(order_books, "MAX_ALL_LEVELS", 6)
    router = make_router()
    publish(router, update("0/USD", ([(1, 1), (2, 1), (3, 1)], []), True))
    publish(router, update("1/USD", ([(1, 1), (2, 1), (3, 1), (4, 1)], []), True))
    assert [message["S"] for message in join(router, "*")] == ["0/USD"]
    publish(router, update("0/USD", ([(2, 0), (3, 0)], []), False))
    publish(router, update("1/USD", ([(1, 1), (2, 1), (3, 1), (4, 1)], []), True))
    assert [message["S"] for message in join(router, "*")] == ["0/USD", "1/USD"]
    publish(router, update("1/USD", ([(7, 1)], []), True))
    assert router._books._levels == 2


@pytest.mark.parametrize("price", [2**53 + 1, -(2**61), 10**30])
def test_a_book_is_removed_when_a_number_is_out_of_range(price: int) -> None:
    """Larger integers could be chosen so that their hashes collide."""
    router = make_router()
    publish(router, update("0/USD", ([(1, 1)], []), True))
    publish(router, update("0/USD", ([(price, 1)], []), False))
    assert join(router, "*") == []


def test_a_book_is_removed_when_an_update_is_over_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_books, "MAX_UPDATE", 1000)
    router = make_router()
    publish(router, update("0/USD", ([(1, 1)], []), True))
    publish(router, update("0/USD", ([(price, 1) for price in range(200)], []), False))
    assert join(router, "*") == []
