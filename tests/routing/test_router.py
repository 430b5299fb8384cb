"""The router against a model of ten lines.

For each message and member, the model says whether the member receives it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.alpaca.codec import BODY_BYTES, CONTROL_BYTES, FRAME_BYTES, JSON, MSGPACK, Codec, Malformed
from proxy.alpaca.endpoints import CHANNEL_OF_KIND, endpoint
from proxy.alpaca.legacy import LEGACY
from proxy.alpaca.plain_pairs import PLAIN_PAIRS
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.routing import route_cache
from proxy.routing import router as router_module
from proxy.routing.allowlists import SymbolPatterns
from proxy.routing.router import Delivery, Router
from tests.routing.taking import take

CODECS = (JSON, MSGPACK)
CHANNELS = ("trades", "quotes", "bars", "news", "auctions")
SYMBOLS = ("A", "B", "C")
TOPICS = st.frozensets(st.tuples(st.sampled_from(CHANNELS), st.sampled_from([*SYMBOLS, "*"])), max_size=4)
KINDS = ("t", "q", "b", "c", "x", "n", "z", "error")  # z: unknown
EVERYTHING = SymbolPatterns(["*"])


def unused_put(frame: bytes, messages: int) -> None:
    raise AssertionError("the router returns deliveries; it does not call put")


class Member:
    """A session, with the attributes that the router uses."""

    def __init__(self, codec: Codec, accepts_unknown: SymbolPatterns | None = None) -> None:
        self.name = codec.name
        self.codec = codec
        self.accepts_unknown = accepts_unknown
        self.outages = 0
        self.put: Callable[[bytes, int], None] = unused_put

    def abort(self) -> None:
        raise AssertionError("the router does not end members")


def receives(member: Member, subscription: Subscription, message: dict[str, Any]) -> bool:
    """Return whether the member receives the message."""
    kind = message["T"]
    symbols = {*message["symbols"], "*"} if kind == "n" else {message.get("S", ""), "*"}
    if kind in CHANNEL_OF_KIND:
        return any((CHANNEL_OF_KIND[kind], symbol) in subscription for symbol in symbols)
    if member.accepts_unknown is None or kind == "error":
        return False
    return any(symbol in symbols for _, symbol in subscription)


def decode(codec: Codec, payload: bytes) -> Any:
    return json.loads(payload) if codec is JSON else msgpack.unpackb(payload)


def array(codec: Codec, bodies: Sequence[bytes]) -> bytes:
    """Return the shortest frame of these bodies."""
    return b"[" + b",".join(bodies) + b"]" if codec is JSON else bytes((0x90 + len(bodies),)) + b"".join(bodies)


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(KINDS))
    if kind == "n":
        return {"T": kind, "symbols": draw(st.lists(st.sampled_from(SYMBOLS), max_size=3))}
    return {"T": kind} if draw(st.integers(0, 9)) == 0 else {"T": kind, "S": draw(st.sampled_from(SYMBOLS))}


def make_router(feed: str, codec: Codec) -> Router:
    served = endpoint(feed)
    assert served is not None
    return Router(served, codec)


class RouterAgainstModel(RuleBasedStateMachine):
    @initialize(
        codec=st.sampled_from(CODECS),
        large=st.sampled_from((0, 2, router_module.LARGE)),
        keep_ratio=st.sampled_from((0, 2)),
    )
    def begin(self, codec: Codec, large: int, keep_ratio: int) -> None:
        self.codec = codec
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(router_module, "LARGE", large)
        self.patch.setattr(route_cache, "KEEP_RATIO", keep_ratio)
        self.router = make_router("iex", codec)
        self.members = [
            Member(c, accepts_unknown) for c in (*CODECS, *CODECS) for accepts_unknown in (EVERYTHING, None)
        ]
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
        """Route several frames before one flush."""
        expected: dict[Member, list[dict[str, Any]]] = {member: [] for member in self.members}
        bodies: dict[Member, list[bytes]] = {member: [] for member in self.members}
        sent: list[tuple[bytes, list[bytes]]] = []  # frames, and the control messages among their data
        for frame in frames:
            if [message["T"] for message in frame] == ["error"]:
                continue  # a control message; see `control`
            raws = []
            control = []
            for message in frame:
                self.number += 1
                numbered = message | {"i": self.number}
                raws.append(json.dumps(numbered).encode() if self.codec is JSON else msgpack.packb(numbered))
                if message["T"] == "error":
                    control.append(raws[-1])
                    continue
                self.received += 1
                receiving = [member for member in self.members if receives(member, self.held[member], message)]
                self.unrouted += not receiving
                for member in receiving:
                    expected[member].append(numbered)
                    bodies[member].append(raws[-1])
            sent.append((array(self.codec, raws), control))
        for payload, control in sent:
            assert [bytes(raw) for raw in take(self.router, payload)] == control
        received: dict[Member, list[dict[str, Any]]] = {member: [] for member in self.members}
        for delivery in self.router.flush():
            for member in receivers(delivery):
                assert isinstance(member, Member)
                decoded = decode(member.codec, delivery.payload)
                assert len(decoded) == delivery.messages > 0
                assert delivery.text is (member.codec is JSON)
                received[member] += decoded
                if member.codec is self.codec:
                    assert delivery.payload == array(self.codec, bodies[member]), "a body differs from Alpaca's"
                    assert delivery.payload is sent[0][0] or sent != [(delivery.payload, [])], "an unnecessary copy"
        assert received == expected

    @rule()
    def control(self) -> None:
        for kind in ("success", "error", "subscription"):
            body = JSON.encode({"T": kind}) if self.codec is JSON else MSGPACK.encode({"T": kind})
            [returned] = take(self.router, array(self.codec, [body]))
            assert bytes(returned) == body
            assert self.router.flush() == []

    @invariant()
    def counts(self) -> None:
        assert (self.router.received, self.router.unrouted, self.router.irregular["untranslatable"]) == (
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


TestRouterAgainstModel = RouterAgainstModel.TestCase
TestRouterAgainstModel.settings = settings(stateful_step_count=25)


# Examples


def route(router: Router, *frames: bytes) -> list[Delivery]:
    for frame in frames:
        assert not take(router, frame)
    return router.flush()


def receivers(delivery: Delivery) -> list[object]:
    return [*delivery.members]


def add_member(
    router: Router, codec: Codec, *topics: tuple[str, str], accepts_unknown: SymbolPatterns | None = None
) -> Member:
    member = Member(codec, accepts_unknown)
    router.set_subscription(member, frozenset(topics))
    return member


FORMATTED = b'[ {"S":"A", "T":"t", "p":1.50 } ,\n{"T":"q","S":"A","as":1e2} ]'


def test_a_frame_whose_messages_are_all_received_is_not_copied() -> None:
    router = make_router("iex", JSON)
    add_member(router, JSON, ("trades", "*"), ("quotes", "A"))
    [delivery] = route(router, FORMATTED)
    assert delivery.payload is FORMATTED
    assert delivery.messages == 2


def test_parts_of_frames_keep_their_bytes_and_their_order() -> None:
    router = make_router("iex", JSON)
    add_member(router, JSON, ("trades", "*"))
    [delivery] = route(router, FORMATTED, FORMATTED)
    assert delivery.payload == b'[{"S":"A", "T":"t", "p":1.50 },{"S":"A", "T":"t", "p":1.50 }]'
    assert delivery.messages == 2


def test_members_with_the_same_subscription_share_their_bytes() -> None:
    router = make_router("iex", JSON)
    members = [add_member(router, JSON, ("trades", "A")) for _ in range(100)]
    [delivery] = route(router, FORMATTED)
    assert receivers(delivery) == members


def test_a_message_that_matches_wildcard_and_symbol_is_received_once() -> None:
    router = make_router("iex", MSGPACK)
    for codec in CODECS:
        add_member(router, codec, ("trades", "*"), ("trades", "A"))
    assert [delivery.messages for delivery in route(router, MSGPACK.encode([{"T": "t", "S": "A"}]))] == [1, 1]


def test_corrections_and_cancel_errors_follow_the_trades() -> None:
    router = make_router("iex", JSON)
    trades, quotes = add_member(router, JSON, ("trades", "A")), add_member(router, JSON, ("quotes", "A"))
    [delivery] = route(router, b'[{"T":"c","S":"A"},{"T":"x","S":"A"},{"T":"c","S":"B"}]')
    assert receivers(delivery) == [trades]
    assert delivery.messages == 2
    assert quotes not in receivers(delivery)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_large_frames_are_split(codec: Codec) -> None:
    """The bound holds for a whole frame of Alpaca's too.

    Python's SDKs close the connection at 1 MiB.
    """
    router = make_router("iex", codec)
    for c in CODECS:
        add_member(router, c, ("trades", "*"))
    batch = [{"T": "t", "S": "A", "x": "x" * 1000, "i": number} for number in range(2000)]
    for frames in ([batch], [batch[:900], batch[900:]]):
        deliveries = route(router, *(codec.encode(frame) for frame in frames))
        for c in CODECS:
            in_codec = [delivery for delivery in deliveries if delivery.text is c.text]
            assert [message for delivery in in_codec for message in decode(c, delivery.payload)] == batch
            assert sum(delivery.messages for delivery in in_codec) == len(batch)
            assert max(len(delivery.payload) for delivery in in_codec) <= FRAME_BYTES


def test_a_message_that_cannot_be_transcoded_does_not_affect_the_others() -> None:
    router = make_router("iex", MSGPACK)
    native, foreign = (add_member(router, codec, ("trades", "*")) for codec in (MSGPACK, JSON))
    frame = msgpack.packb([{"T": "t", "S": "A", "p": float("nan")}, {"T": "t", "S": "A", "p": 1.5}])
    deliveries = route(router, frame)
    assert [(receivers(delivery), delivery.messages) for delivery in deliveries] == [([native], 2), ([foreign], 1)]
    assert router.irregular["untranslatable"] == 1


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_control_message_among_data_reaches_no_client(codec: Codec) -> None:
    """An SDK would take it for a reply to its own request. It is returned, as if it were alone in its frame."""
    router = make_router("iex", codec)
    add_member(router, codec, ("trades", "*"), ("anything", "*"), accepts_unknown=EVERYTHING)
    trade, error, success = {"T": "t", "S": "A"}, {"T": "error", "code": 406, "msg": "x"}, {"T": "success"}
    control = take(router, codec.encode([trade, error, success]))
    assert [bytes(raw) for raw in control] == [codec.encode(error), codec.encode(success)]
    [delivery] = router.flush()
    assert (delivery.payload, delivery.messages) == (codec.encode([trade]), 1)
    assert (router.received, router.unrouted) == (1, 0)
    assert len(take(router, codec.encode([error, success]))) == 2
    assert router.flush() == []
    assert (router.received, router.unrouted) == (1, 0)


NEWS = {"T": "n", "id": 1, "headline": "caf\xe9", "author": "b", "symbols": ["A"], "t": "2023-04-06T11:54:26Z"}


def test_a_text_that_is_not_utf8_is_replaced_for_json_and_counted() -> None:
    router = make_router("news", MSGPACK)
    native, json_, plain = (add_member(router, codec, ("news", "A")) for codec in (MSGPACK, JSON, JSON))
    body = msgpack.packb({**NEWS, "headline": b"caf\xe9"}, use_bin_type=False)
    frame = msgpack.packb([NEWS])[:1] + body
    deliveries = {id(receiver): delivery for delivery in route(router, frame) for receiver in receivers(delivery)}
    assert deliveries[id(native)].payload == frame, "in Alpaca's codec it keeps its bytes"
    [article] = json.loads(deliveries[id(json_)].payload)
    assert article == {**NEWS, "headline": "caf\ufffd"}
    assert deliveries[id(plain)] is deliveries[id(json_)]
    assert (router.irregular["invalid_text"], router.irregular["untranslatable"]) == (1, 0)


def test_a_text_that_is_not_utf8_in_json_in_a_binary_frame() -> None:
    router = make_router("news", JSON)
    native, other = (add_member(router, codec, ("news", "A")) for codec in (JSON, MSGPACK))
    frame = b"[" + json.dumps(NEWS, ensure_ascii=False).encode("latin-1") + b"]"
    deliveries = {id(receiver): delivery for delivery in route(router, frame) for receiver in receivers(delivery)}
    assert deliveries[id(native)].payload == frame
    [article] = msgpack.unpackb(deliveries[id(other)].payload)
    assert article["headline"] == "caf\ufffd"
    assert (router.irregular["invalid_text"], router.irregular["untranslatable"]) == (1, 0)


def test_a_message_that_stays_untranslatable_with_valid_text() -> None:
    """A second codec cannot have NaN; the message is counted for both reasons."""
    router = make_router("iex", MSGPACK)
    add_member(router, JSON, ("trades", "*"))
    frame = msgpack.packb([{"T": "t", "S": "A", "x": b"\xff", "p": float("nan")}], use_bin_type=False)
    assert route(router, frame) == []
    assert router.irregular["untranslatable"] == 1


def test_the_same_subscription_again_changes_nothing() -> None:
    """Neither routes nor groups; an allowlist that changes with it does."""
    router = make_router("iex", JSON)
    member = add_member(router, JSON, ("trades", "A"))
    route(router, FORMATTED)
    before = cached_routes(router)
    assert router.set_subscription(member, frozenset([("trades", "A")])) == []
    assert cached_routes(router) == before
    member.accepts_unknown = EVERYTHING
    router.set_subscription(member, frozenset([("trades", "A")]))
    [delivery] = route(router, b'[{"T":"zz","S":"A"}]')
    assert receivers(delivery) == [member]


def test_messages_without_kind_or_symbol() -> None:
    """They reach sessions that hold `*` and accept unknown kinds."""
    router = make_router("iex", JSON)
    everything = add_member(router, JSON, ("trades", "*"), accepts_unknown=EVERYTHING)
    add_member(router, JSON, ("trades", "*"))
    add_member(router, JSON, ("trades", "A"), accepts_unknown=EVERYTHING)
    [delivery] = route(router, b'[{"T":7},{},{"S":"B"}]')
    assert receivers(delivery) == [everything]
    assert delivery.messages == 3


def test_legacy_frames_have_one_message_each() -> None:
    router = make_router("iex", MSGPACK)
    legacy, current = add_member(router, LEGACY["json"], ("trades", "A")), add_member(router, JSON, ("trades", "A"))
    trade = {"T": "t", "S": "A", "t": msgpack.Timestamp(1, 5)}
    deliveries = route(router, msgpack.packb([trade, {"T": "c", "S": "A"}, trade]))
    to_legacy = [delivery for delivery in deliveries if receivers(delivery) == [legacy]]
    assert [delivery.text for delivery in to_legacy] == [True, True]
    data = {"ev": "T", "T": "A", "t": 1_000_000_005}
    assert [json.loads(delivery.payload) for delivery in to_legacy] == [{"stream": "T.A", "data": data}] * 2
    assert [delivery.messages for delivery in deliveries if receivers(delivery) == [current]] == [3]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_pairs_without_a_slash(codec: Codec) -> None:
    router = make_router("crypto", codec)
    add_member(router, PLAIN_PAIRS["json"], ("trades", "BTC/USD"))
    add_member(router, PLAIN_PAIRS["msgpack"], ("trades", "BTC/USD"))
    add_member(router, codec, ("trades", "BTC/USD"))
    frame = codec.encode([{"T": "t", "S": "BTC/USD", "x": "BTC/USD"}])
    texts = {delivery.payload: delivery.text for delivery in route(router, frame)}
    plain = {"T": "t", "S": "BTCUSD", "x": "BTC/USD"}
    assert texts == {frame: codec.text, JSON.encode([plain]): True, MSGPACK.encode([plain]): False}


def cached_routes(router: Router) -> int:
    return sum(map(len, router._routes.values()))


def test_the_route_cache_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest routes of the largest kind are removed.

    The number of unknown kinds is bounded too.
    """
    monkeypatch.setattr(route_cache, "MAX_BYTES", 4000)
    monkeypatch.setattr(route_cache, "EVICTED", 3)
    monkeypatch.setattr(route_cache, "MAX_KINDS", 4)
    router = make_router("iex", JSON)
    add_member(router, JSON, ("trades", "*"), accepts_unknown=EVERYTHING)
    for number in range(100):
        for kind in ("t", "c", f"kind{number}"):
            assert route(router, JSON.encode([{"T": kind, "S": f"S{number}"}]))
            assert router._routes.bytes == sum(
                route_cache.ROUTE_BYTES + sys.getsizeof(symbol)
                for kind_routes in router._routes.values()
                for symbol in kind_routes
            )
            assert router._routes.bytes <= 4000 + route_cache.ROUTE_BYTES + sys.getsizeof("S99")
            assert len(router._routes) <= 4
        assert f"S{number}" in router._routes["c"]


def test_a_symbol_over_the_limit_is_treated_as_missing() -> None:
    """It is not cached, and the message reaches the sessions that hold the wildcard."""
    router = make_router("iex", JSON)
    everything = add_member(router, JSON, ("trades", "*"), accepts_unknown=EVERYTHING)
    add_member(router, JSON, ("trades", "A" * 257))
    for number in range(3):
        for kind in ("t", "k" * 257):
            [delivery] = route(router, JSON.encode([{"T": kind, "S": "A" * 257 + str(number)}]))
            assert receivers(delivery) == [everything]
    assert router.irregular["long_symbol"] == 6 + 3
    assert {symbol for kind in router._routes.values() for symbol in kind} == {""}


def test_a_message_over_the_bound_is_not_passed_on() -> None:
    router = make_router("iex", JSON)
    add_member(router, JSON, ("trades", "*"))
    assert route(router, JSON.encode([{"T": "t", "S": "A", "x": "y" * BODY_BYTES}])) == []
    assert router.irregular["oversized"] == 1
    acknowledgement = JSON.encode([{"T": "subscription", "trades": ["A" * 20] * 60_000}])
    assert len(acknowledgement) > BODY_BYTES
    assert [take(router, piece) for piece in router.pieces(acknowledgement) if piece is not None] != [None]
    huge = JSON.encode([{"T": "subscription", "x": "y" * CONTROL_BYTES}, {"T": "t", "S": "A"}])
    assert [piece for piece in router.pieces(huge) if piece is not None] == [b'[{"T":"t","S":"A"}]']
    assert router.irregular["oversized"] == 2


def test_dropped_routes_are_freed_a_few_at_a_time() -> None:
    """Freeing a hundred thousand at once would block the hub."""
    router = make_router("iex", JSON)
    add_member(router, JSON, ("trades", "*"))
    frame = JSON.encode([{"T": "t", "S": f"S{number}"} for number in range(1000)])
    route(router, frame)
    add_member(router, JSON, ("trades", "*"), ("quotes", "*"))
    assert cached_routes(router) == 0
    [dropped] = router._routes._dropped
    assert len(dropped) == 1000
    route(router, frame)
    assert router._routes._dropped == []


def test_a_small_change_keeps_the_routes_of_other_topics() -> None:
    router = make_router("iex", JSON)
    add_member(router, JSON, ("trades", "*"))
    route(router, JSON.encode([{"T": "t", "S": f"S{number}"} for number in range(100)]))
    late = add_member(router, JSON, ("trades", "S1"), ("quotes", "S2"))
    assert cached_routes(router) == 99
    router.remove(late)
    assert cached_routes(router) == 99


@pytest.mark.parametrize(
    ("patterns", "symbols"),
    [(["*"], {"A", "B", ""}), (["A"], {"A"}), (["B*"], {"B"}), (["C"], set())],
    ids=repr,
)
def test_unknown_kinds_obey_the_patterns_of_the_channel_star(patterns: list[str], symbols: set[str]) -> None:
    """It is not enough that the session holds the symbol, or `*`, on another channel."""
    router = make_router("iex", JSON)
    add_member(router, JSON, ("trades", "*"), accepts_unknown=SymbolPatterns(patterns))
    add_member(router, JSON, ("trades", "*"))
    deliveries = route(router, b'[{"T":"zz","S":"A"},{"T":"zz","S":"B"},{"T":"zz"}]')
    assert {m.get("S", "") for delivery in deliveries for m in json.loads(delivery.payload)} == symbols


@pytest.mark.parametrize("frame", [b"", b"{", b'{"T":"t","S":"A"}', b"[{]", b"null"])
def test_a_malformed_frame_does_not_affect_the_one_before(frame: bytes) -> None:
    router = make_router("iex", JSON)
    add_member(router, JSON, ("trades", "*"))
    assert not take(router, b'[{"T":"t","S":"A"}]')
    with pytest.raises(Malformed):
        take(router, frame)
    [delivery] = router.flush()
    assert (delivery.messages, router.received) == (1, 1)


def test_the_repr_of_a_group() -> None:
    router = make_router("iex", JSON)
    add_member(router, JSON, ("trades", "A"), ("quotes", "A"))
    [group] = router.find("t", "A").same
    assert repr(group) == "<Group 1 members, 2 topics, json>"
