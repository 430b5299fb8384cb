"""Whoever hears a pair's order book has Alpaca's own book at every step, however late it joined."""

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
from proxy.routing import order_books as module
from proxy.routing.router import Delivery, Router
from tests.routing.test_router import Member as Silent

PAIRS = ("BTC/USD", "ETH/USD", "SOL/USD")
SYMBOLS = (*PAIRS, "*")
STAMP = "2024-03-12T10:39:39.445492807Z"
PRICES, SIZES = st.integers(1, 6), st.sampled_from((0, 1, 2.5))
LEVELS = st.lists(st.tuples(PRICES, SIZES), max_size=4)

Sides = tuple[dict[float, float], dict[float, float]]


def topics(*symbols: str) -> Subscription:
    return frozenset(("orderbooks", symbol) for symbol in symbols)


def update(pair: str, sides: Any, whole: bool) -> dict[str, Any]:
    bids, asks = ([{"p": price, "s": size} for price, size in side] for side in sides)
    return {"T": "o", "S": pair, "t": STAMP, "b": bids, "a": asks, **({"r": True} if whole else {})}


def follow(book: Sides | None, message: dict[str, Any]) -> Sides | None:
    """The book after a message, as Alpaca documents it."""
    if message.get("r"):
        book = {}, {}
    for side, levels in zip(book or (), (message["b"], message["a"]), strict=False):
        for level in levels:
            side.pop(level["p"], None)
            if level["s"]:
                side[level["p"]] = level["s"]
    return book


class Member(Silent):
    """A client, and the books that it has made of what it heard."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec)
        self.books: dict[str, Sides | None] = {}

    def receive(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if any(member is self for member in delivery.members):
                payload = delivery.payload
                heard = json.loads(payload) if delivery.text else msgpack.unpackb(payload)
                assert len(heard) == delivery.messages
                for message in heard:
                    pair = message["S"] if "/" in message["S"] else message["S"].replace("USD", "/USD")
                    assert ("/" in message["S"]) is (self.codec.base is self.codec)
                    self.books[pair] = follow(self.books.get(pair), message)


class LateJoiners(RuleBasedStateMachine):
    @initialize(codec=st.sampled_from((JSON, MSGPACK)))
    def begin(self, codec: Codec) -> None:
        self.codec = codec
        known = endpoint("crypto")
        assert known is not None
        self.router = Router(known, codec)
        self.members = [Member(c) for c in (JSON, MSGPACK, *PLAIN_PAIRS.values())]
        self.held: dict[Member, Subscription] = dict.fromkeys(self.members, NO_TOPICS)
        self.alpaca: dict[str, Sides] = {pair: ({}, {}) for pair in PAIRS}
        self.acked: frozenset[Topic] = NO_TOPICS

    def told(self, *messages: dict[str, Any]) -> None:
        """Alpaca says something."""
        assert self.router.take(self.codec.encode(list(messages))) is None
        deliveries = self.router.flush()
        for member in self.members:
            member.receive(deliveries)

    def whole(self, *pairs: str) -> None:
        for pair in pairs:
            self.told(update(pair, [side.items() for side in self.alpaca[pair]], True))

    @rule(number=st.integers(0, 3), symbols=st.frozensets(st.sampled_from(SYMBOLS)), early=st.booleans())
    def set_subscription(self, number: int, symbols: frozenset[str], early: bool) -> None:
        """A client changes what it holds. Alpaca confirms what is new and tells its books, before or after that."""
        member, wanted = self.members[number], topics(*symbols)
        union = wanted.union(*(held for other, held in self.held.items() if other is not member))
        fresh = [pair for pair in PAIRS if self.covered(union, pair) and not self.covered(self.acked, pair)]
        if early:
            self.whole(*fresh)
        self.acked = union
        self.router.prune_books(union)
        before, self.held[member] = self.held[member], wanted
        for pair in PAIRS:
            if not (self.covered(before, pair) and self.covered(wanted, pair)):
                member.books.pop(pair, None)
        member.receive(self.router.set_subscription(member, wanted))
        if not early:
            assert not any(member.books.get(pair) for pair in fresh), "a book of the past"
            self.whole(*fresh)

    @rule(pair=st.sampled_from(PAIRS), bids=LEVELS, asks=LEVELS)
    def moves(self, pair: str, bids: list[tuple[int, float]], asks: list[tuple[int, float]]) -> None:
        message = update(pair, (bids, asks), False)
        self.alpaca[pair] = follow(self.alpaca[pair], message) or ({}, {})
        if self.covered(self.acked, pair):
            self.told(message)

    @rule()
    def all_leave(self) -> None:
        for member in self.members:
            self.router.remove(member)
            member.books.clear()
        self.held = dict.fromkeys(self.members, NO_TOPICS)
        self.acked = NO_TOPICS
        self.router.prune_books(NO_TOPICS)

    @rule()
    def reconnects(self) -> None:
        self.router.prune_books(NO_TOPICS)
        self.whole(*(pair for pair in PAIRS if self.covered(self.acked, pair)))

    @invariant()
    def every_book_is_alpacas(self) -> None:
        for member, held in self.held.items():
            for pair in PAIRS:
                expected = self.alpaca[pair] if self.covered(held, pair) else None
                assert member.books.get(pair) == expected

    @staticmethod
    def covered(subscription: Subscription, pair: str) -> bool:
        return bool(subscription & topics(pair, "*"))


TestLateJoiners = LateJoiners.TestCase
TestLateJoiners.settings = settings(stateful_step_count=30)


# The same, in single steps


def router(codec: Codec = JSON) -> Router:
    known = endpoint("crypto")
    assert known is not None
    return Router(known, codec)


def flows(router: Router, *messages: dict[str, Any]) -> None:
    assert router.take(router.codec.encode(list(messages))) is None
    router.flush()


def joins(router: Router, *symbols: str) -> list[dict[str, Any]]:
    return [
        message
        for each in router.set_subscription(Silent(JSON), topics(*symbols))
        for message in json.loads(each.payload)
    ]


def test_a_whole_book_is_told_as_alpaca_tells_it() -> None:
    feed = router()
    flows(feed, update("BTC/USD", ([(1, 2), (3, 0.5)], [(5, 1), (4, 1)]), True))
    flows(feed, update("BTC/USD", ([(1, 0), (2, 7)], []), False) | {"t": "2024-03-12T10:39:40Z"})
    [message] = joins(feed, "BTC/USD")
    assert [*message] == ["T", "S", "t", "b", "a", "r"]
    expected = update("BTC/USD", ([(3, 0.5), (2, 7)], [(4, 1), (5, 1)]), True)
    assert message == expected | {"t": "2024-03-12T10:39:40Z"}


def test_nanoseconds_and_integers_are_kept() -> None:
    feed = router(MSGPACK)
    stamp = msgpack.Timestamp(1_710_239_979, 445_492_807)
    flows(feed, update("BTC/USD", ([(1, 2)], []), True) | {"t": STAMP})
    assert feed.take(msgpack.packb([update("BTC/USD", ([(2, 2.5)], []), False) | {"t": stamp}])) is None
    native, foreign = (feed.set_subscription(Silent(codec), topics("*"))[0].payload for codec in (MSGPACK, JSON))
    assert msgpack.unpackb(native)[0]["t"] == stamp
    assert b'"b":[{"p":2,"s":2.5},{"p":1,"s":2}]' in foreign
    assert f'"t":"{STAMP}"'.encode() in foreign


def test_who_holds_it_already_is_not_told_again() -> None:
    feed = router()
    flows(feed, update("BTC/USD", ([(1, 2)], []), True))
    member = Silent(JSON)
    assert len(feed.set_subscription(member, topics("BTC/USD"))) == 1
    assert feed.set_subscription(member, topics("BTC/USD", "*")) == []
    assert feed.set_subscription(member, topics("*")) == []


def test_differences_of_an_unknown_book_are_no_book() -> None:
    feed = router()
    flows(feed, update("BTC/USD", ([(1, 2)], []), False))
    assert joins(feed, "BTC/USD") == []


@pytest.mark.parametrize("broken", [{"b": 7}, {"a": [{"p": "1", "s": 2}]}, {"b": [{}]}, {"r": "yes"}], ids=repr)
def test_a_book_that_cannot_be_followed_is_forgotten(broken: dict[str, Any]) -> None:
    feed = router()
    flows(feed, update("BTC/USD", ([(1, 2)], []), True), update("ETH/USD", ([(1, 2)], []), True))
    flows(feed, update("BTC/USD", ((), ()), False) | broken)
    assert [message["S"] for message in joins(feed, "*")] == ["ETH/USD"]


def test_books_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BOOKS", 2)
    monkeypatch.setattr(module, "MAX_LEVELS", 3)
    feed = router()
    flows(feed, *(update(f"{number}/USD", ([(1, 1)], []), True) for number in range(5)))
    assert [message["S"] for message in joins(feed, "*")] == ["0/USD", "1/USD"]
    flows(feed, update("0/USD", ([(price, 1) for price in range(2, 9)], []), False))
    assert [message["S"] for message in joins(feed, "*")] == ["1/USD"]
