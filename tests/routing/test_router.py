"""The router against ten lines that ask, for each message and each member, whether the one hears the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.alpaca.codec import FRAME_BYTES, JSON, MSGPACK, Codec, Malformed
from proxy.alpaca.endpoints import CHANNEL_OF_KIND, endpoint
from proxy.alpaca.legacy import LEGACY
from proxy.alpaca.plain_pairs import PLAIN_PAIRS
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.routing import route_cache as routes
from proxy.routing import router as module
from proxy.routing.router import Delivery, Router

CODECS = (JSON, MSGPACK)
CHANNELS = ("trades", "quotes", "bars", "news", "auctions")
SYMBOLS = ("A", "B", "C")
TOPICS = st.frozensets(st.tuples(st.sampled_from(CHANNELS), st.sampled_from([*SYMBOLS, "*"])), max_size=4)
KINDS = ("t", "q", "b", "c", "x", "n", "z", "error")  # z: nobody knows it


def nobody(frame: bytes, messages: int) -> None:
    raise AssertionError("the router decides; it puts nothing")


class Member:
    """A session as the router knows it."""

    def __init__(self, codec: Codec, accepts_unknown: bool = False) -> None:
        self.name = codec.name
        self.codec = codec
        self.accepts_unknown = accepts_unknown
        self.put: Callable[[bytes, int], None] = nobody


def hears(member: Member, subscription: Subscription, message: dict[str, Any]) -> bool:
    kind = message["T"]
    symbols = {*message["symbols"], "*"} if kind == "n" else {message.get("S", ""), "*"}
    if kind in CHANNEL_OF_KIND:
        return any((CHANNEL_OF_KIND[kind], symbol) in subscription for symbol in symbols)
    return member.accepts_unknown and kind != "error" and any(symbol in symbols for _, symbol in subscription)


def reads(codec: Codec, payload: bytes) -> Any:
    return json.loads(payload) if codec is JSON else msgpack.unpackb(payload)


def array(codec: Codec, bodies: Sequence[bytes]) -> bytes:
    """The shortest frame of these bodies."""
    return b"[" + b",".join(bodies) + b"]" if codec is JSON else bytes((0x90 + len(bodies),)) + b"".join(bodies)


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(KINDS))
    if kind == "n":
        return {"T": kind, "symbols": draw(st.lists(st.sampled_from(SYMBOLS), max_size=3))}
    return {"T": kind} if draw(st.integers(0, 9)) == 0 else {"T": kind, "S": draw(st.sampled_from(SYMBOLS))}


def router_of(feed: str, codec: Codec) -> Router:
    known = endpoint(feed)
    assert known is not None
    return Router(known, codec)


class RouteCache(RuleBasedStateMachine):
    @initialize(
        codec=st.sampled_from(CODECS), large=st.sampled_from((0, 2, module.LARGE)), spared=st.sampled_from((0, 2))
    )
    def begin(self, codec: Codec, large: int, spared: int) -> None:
        self.codec = codec
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "LARGE", large)
        self.patch.setattr(routes, "KEEP_RATIO", spared)
        self.router = router_of("iex", codec)
        self.members = [Member(c, accepts_unknown) for c in (*CODECS, *CODECS) for accepts_unknown in (True, False)]
        self.held: dict[Member, Subscription] = dict.fromkeys(self.members, NO_TOPICS)
        self.received = self.unrouted = self.number = 0

    @rule(number=st.integers(0, 7), subscription=TOPICS)
    def set_subscription(self, number: int, subscription: Subscription) -> None:
        member = self.members[number]
        self.router.set_subscription(member, subscription)
        self.held[member] = subscription

    @rule(number=st.integers(0, 7))
    def remove(self, number: int) -> None:
        self.router.remove(self.members[number])
        self.held[self.members[number]] = NO_TOPICS

    @rule(frames=st.lists(st.lists(messages(), max_size=4), min_size=1, max_size=3))
    def data(self, frames: list[list[dict[str, Any]]]) -> None:
        """Frames that have come together."""
        expected: dict[Member, list[dict[str, Any]]] = {member: [] for member in self.members}
        bodies: dict[Member, list[bytes]] = {member: [] for member in self.members}
        sent = []
        for frame in frames:
            if [message["T"] for message in frame] == ["error"]:
                continue  # a control message; see below
            raws = []
            for message in frame:
                self.number += 1
                numbered = message | {"i": self.number}
                raws.append(json.dumps(numbered).encode() if self.codec is JSON else msgpack.packb(numbered))
                hearing = [member for member in self.members if hears(member, self.held[member], message)]
                self.unrouted += not hearing
                for member in hearing:
                    expected[member].append(numbered)
                    bodies[member].append(raws[-1])
            self.received += len(raws)
            sent.append(array(self.codec, raws))
        for payload in sent:
            assert self.router.take(payload) is None
        heard: dict[Member, list[dict[str, Any]]] = {member: [] for member in self.members}
        for delivery in self.router.flush():
            for member in hearers(delivery):
                assert isinstance(member, Member)
                found = reads(member.codec, delivery.payload)
                assert len(found) == delivery.messages > 0
                assert delivery.text is (member.codec is JSON)
                heard[member] += found
                if member.codec is self.codec:
                    assert delivery.payload == array(self.codec, bodies[member]), "another body than Alpaca's"
                    assert delivery.payload is sent[0] or sent != [delivery.payload], "copied for nothing"
        assert heard == expected

    @rule()
    def control(self) -> None:
        for kind in ("success", "error", "subscription"):
            body = JSON.encode({"T": kind}) if self.codec is JSON else MSGPACK.encode({"T": kind})
            given_back = self.router.take(array(self.codec, [body]))
            assert given_back is not None
            assert bytes(given_back) == body
            assert self.router.flush() == []

    @invariant()
    def counts(self) -> None:
        assert (self.router.received, self.router.unrouted, self.router.untranslatable) == (
            self.received,
            self.unrouted,
            0,
        )
        holding = {member: held for member, held in self.held.items() if held}
        assert {id(member): held for member, held in self.router.subscriptions()} == {
            id(m): h for m, h in holding.items()
        }
        groups = {(held, member.codec, member.accepts_unknown) for member, held in holding.items()}
        assert repr(self.router) == f"<Router iex {len(holding)} members in {len(groups)} groups>"

    def teardown(self) -> None:
        self.patch.undo()


TestRoutes = RouteCache.TestCase
TestRoutes.settings = settings(stateful_step_count=25)


# The same, in single steps


def send(router: Router, *frames: bytes) -> list[Delivery]:
    for frame in frames:
        assert router.take(frame) is None
    return router.flush()


def hearers(delivery: Delivery) -> list[object]:
    return [*delivery.members]


def holding(router: Router, codec: Codec, *topics: tuple[str, str], accepts_unknown: bool = False) -> Member:
    member = Member(codec, accepts_unknown)
    router.set_subscription(member, frozenset(topics))
    return member


ODD = b'[ {"S":"A", "T":"t", "p":1.50 } ,\n{"T":"q","S":"A","as":1e2} ]'


def test_a_frame_of_which_everything_is_heard_is_passed_on_as_it_is() -> None:
    router = router_of("iex", JSON)
    holding(router, JSON, ("trades", "*"), ("quotes", "A"))
    [delivery] = send(router, ODD)
    assert delivery.payload is ODD
    assert delivery.messages == 2


def test_parts_of_frames_keep_their_bytes_and_their_order() -> None:
    router = router_of("iex", JSON)
    holding(router, JSON, ("trades", "*"))
    [delivery] = send(router, ODD, ODD)
    assert delivery.payload == b'[{"S":"A", "T":"t", "p":1.50 },{"S":"A", "T":"t", "p":1.50 }]'
    assert delivery.messages == 2


def test_members_with_the_same_subscription_share_their_bytes() -> None:
    router = router_of("iex", JSON)
    members = [holding(router, JSON, ("trades", "A")) for _ in range(100)]
    [delivery] = send(router, ODD)
    assert hearers(delivery) == members


def test_a_wildcard_and_the_symbol_are_heard_once() -> None:
    router = router_of("iex", MSGPACK)
    for codec in CODECS:
        holding(router, codec, ("trades", "*"), ("trades", "A"))
    assert [delivery.messages for delivery in send(router, MSGPACK.encode([{"T": "t", "S": "A"}]))] == [1, 1]


def test_corrections_and_cancel_errors_follow_the_trades() -> None:
    router = router_of("iex", JSON)
    trades, quotes = holding(router, JSON, ("trades", "A")), holding(router, JSON, ("quotes", "A"))
    [delivery] = send(router, b'[{"T":"c","S":"A"},{"T":"x","S":"A"},{"T":"c","S":"B"}]')
    assert hearers(delivery) == [trades]
    assert delivery.messages == 2
    assert quotes not in hearers(delivery)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_large_frames_are_cut(codec: Codec) -> None:
    """Python's SDKs close at 1 MiB; Alpaca's own frame is no exception, if it has grown so large."""
    router = router_of("iex", codec)
    for c in CODECS:
        holding(router, c, ("trades", "*"))
    batch = [{"T": "t", "S": "A", "x": "x" * 1000, "i": number} for number in range(2000)]
    for frames in ([batch], [batch[:900], batch[900:]]):
        deliveries = send(router, *(codec.encode(frame) for frame in frames))
        for c in CODECS:
            mine = [delivery for delivery in deliveries if delivery.text is c.text]
            assert [message for delivery in mine for message in reads(c, delivery.payload)] == batch
            assert sum(delivery.messages for delivery in mine) == len(batch)
            assert max(len(delivery.payload) for delivery in mine) <= FRAME_BYTES


def test_a_message_that_has_no_equal_costs_nobody_another_one() -> None:
    router = router_of("iex", MSGPACK)
    native, foreign = (holding(router, codec, ("trades", "*")) for codec in (MSGPACK, JSON))
    frame = msgpack.packb([{"T": "t", "S": "A", "p": float("nan")}, {"T": "t", "S": "A", "p": 1.5}])
    deliveries = send(router, frame)
    assert [(hearers(delivery), delivery.messages) for delivery in deliveries] == [([native], 2), ([foreign], 1)]
    assert router.untranslatable == 1


def test_a_control_message_among_data_reaches_no_client() -> None:
    """It would take it for an answer to itself."""
    router = router_of("iex", JSON)
    holding(router, JSON, ("trades", "*"), ("anything", "*"), accepts_unknown=True)
    [delivery] = send(router, b'[{"T":"t","S":"A"},{"T":"error","code":406,"msg":"x"},{"T":"success"}]')
    assert delivery.payload == b'[{"T":"t","S":"A"}]'


def test_messages_without_kind_or_symbol() -> None:
    """They reach the curious who hold everything."""
    router = router_of("iex", JSON)
    everything = holding(router, JSON, ("trades", "*"), accepts_unknown=True)
    holding(router, JSON, ("trades", "*"))
    holding(router, JSON, ("trades", "A"), accepts_unknown=True)
    [delivery] = send(router, b'[{"T":7},{},{"S":"B"}]')
    assert hearers(delivery) == [everything]
    assert delivery.messages == 3


def test_old_shapes_are_one_message_a_frame() -> None:
    router = router_of("iex", MSGPACK)
    old, plain = holding(router, LEGACY, ("trades", "A")), holding(router, JSON, ("trades", "A"))
    trade = {"T": "t", "S": "A", "t": msgpack.Timestamp(1, 5)}
    deliveries = send(router, msgpack.packb([trade, {"T": "c", "S": "A"}, trade]))
    mine = [delivery for delivery in deliveries if hearers(delivery) == [old]]
    assert [delivery.text for delivery in mine] == [False, False]
    data = {"ev": "T", "T": "A", "t": 1_000_000_005}
    assert [json.loads(delivery.payload) for delivery in mine] == [{"stream": "T.A", "data": data}] * 2
    assert [delivery.messages for delivery in deliveries if hearers(delivery) == [plain]] == [3]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_plain_pairs_hear_their_own_names(codec: Codec) -> None:
    router = router_of("crypto", codec)
    holding(router, PLAIN_PAIRS["json"], ("trades", "BTC/USD"))
    holding(router, PLAIN_PAIRS["msgpack"], ("trades", "BTC/USD"))
    holding(router, codec, ("trades", "BTC/USD"))
    frame = codec.encode([{"T": "t", "S": "BTC/USD", "x": "BTC/USD"}])
    found = {delivery.payload: delivery.text for delivery in send(router, frame)}
    old = {"T": "t", "S": "BTCUSD", "x": "BTC/USD"}
    assert found == {frame: codec.text, JSON.encode([old]): True, MSGPACK.encode([old]): False}


def test_routes_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of the kind that has most; kinds that nobody knows may be many too."""
    monkeypatch.setattr(routes, "MAX_ROUTES", 10)
    monkeypatch.setattr(routes, "EVICTED", 3)
    monkeypatch.setattr(routes, "MAX_KINDS", 4)
    router = router_of("iex", JSON)
    holding(router, JSON, ("trades", "*"), accepts_unknown=True)
    for number in range(100):
        for kind in ("t", "c", f"kind{number}"):
            assert send(router, JSON.encode([{"T": kind, "S": f"S{number}"}]))
            assert router._routes.count() <= 10
            assert len(router._routes) <= 4
        assert f"S{number}" in router._routes["c"]


def test_routes_that_are_let_go_of_are_freed_a_few_at_a_time() -> None:
    """A turn that freed a hundred thousand at once would hold everybody up."""
    router = router_of("iex", JSON)
    holding(router, JSON, ("trades", "*"))
    frame = JSON.encode([{"T": "t", "S": f"S{number}"} for number in range(1000)])
    send(router, frame)
    holding(router, JSON, ("trades", "*"), ("quotes", "*"))
    assert router._routes.count() == 0
    [freed] = router._routes._freed
    assert len(freed) == 1000
    send(router, frame)
    assert router._routes._freed == []


def test_a_small_change_spares_the_routes_of_other_topics() -> None:
    router = router_of("iex", JSON)
    holding(router, JSON, ("trades", "*"))
    send(router, JSON.encode([{"T": "t", "S": f"S{number}"} for number in range(100)]))
    late = holding(router, JSON, ("trades", "S1"), ("quotes", "S2"))
    assert router._routes.count() == 99
    router.remove(late)
    assert router._routes.count() == 99


@pytest.mark.parametrize("frame", [b"", b"{", b'{"T":"t","S":"A"}', b"[{]", b"null"])
def test_what_is_no_frame(frame: bytes) -> None:
    router = router_of("iex", JSON)
    holding(router, JSON, ("trades", "*"))
    assert router.take(b'[{"T":"t","S":"A"}]') is None
    with pytest.raises(Malformed):
        router.take(frame)
    [delivery] = router.flush()
    assert (delivery.messages, router.received) == (1, 1)


def test_a_group_names_itself() -> None:
    router = router_of("iex", JSON)
    holding(router, JSON, ("trades", "A"), ("quotes", "A"))
    [group] = router.find("t", "A").same
    assert repr(group) == "<Group 1 members, 2 topics, json>"
