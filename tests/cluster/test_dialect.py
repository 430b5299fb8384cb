"""The dialect of links between nodes: messages are read as they were meant, and nothing else breaks the parser."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.client_protocol import MAX_TEXT, Acknowledged
from proxy.alpaca.codec import CODECS, JSON, MSGPACK, Codec, Malformed
from proxy.alpaca.cooperative import run_to_end
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.cluster import dialect
from proxy.cluster.dialect import (
    MAX_BLAMED,
    MAX_INTEGER,
    Auth,
    Authenticated,
    Away,
    Connected,
    Failure,
    LeaderMessage,
    Live,
    Request,
    State,
    Unknown,
    Waiting,
)

CODEC = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
HEX = "0123456789abcdef" * 2
AAPL: Subscription = frozenset([("trades", "AAPL")])


def read(codec: Codec, message: Any) -> LeaderMessage:
    [body] = codec.items_of(codec.encode(message))
    return dialect.leader_message(codec, body)


@CODEC
def test_messages_of_the_leader(codec: Codec) -> None:
    away = Away("lost", False, (409, "no"), (7,), True)
    for message, meant in [
        (dialect.connected(1, "node-1", HEX), Connected(1, "node-1", HEX)),
        (dialect.authenticated(HEX * 2), Authenticated(HEX * 2)),
        (dialect.live(2**53), Live(2**53)),
        (dialect.waiting("406 …"), Waiting("406 …")),
        (dialect.waiting("x" * 1000, (409, "y" * 1000)), Waiting("x" * MAX_TEXT, (409, "y" * MAX_TEXT))),
        (dialect.away(away), away),
        (dialect.away(Away("")), Away("")),
        (dialect.failure(405, "too much", 3), Failure(3, 405, "too much")),
        (dialect.failure(402, "auth failed"), Failure(None, 402, "auth failed")),
        ([{"T": "success", "msg": "away", "leading": 7}], Away("")),
        ([{"T": "success", "msg": "something new"}], Unknown()),
        ([{"T": "something new"}], Unknown()),
        ([{}], Unknown()),
    ]:
        assert read(codec, message) == meant


@CODEC
def test_states(codec: Codec) -> None:
    channels = ("trades", "quotes", "corrections", "invented")
    state = run_to_end(dialect.state(channels, AAPL, 5))
    assert state == [{"T": "subscription", "id": 5, "trades": ["AAPL"], "quotes": [], "invented": []}]
    stated = Acknowledged(AAPL, {"trades", "quotes", "invented"})
    assert read(codec, state) == State(5, stated)
    error = (409, "no")
    assert read(codec, run_to_end(dialect.state(channels, AAPL, error=error))) == State(None, stated, error)


@CODEC
def test_messages_of_the_edge(codec: Codec) -> None:
    auth = Auth(1, "edge", "account", HEX, HEX * 2)
    assert dialect.edge_message(codec, codec.encode(dialect.auth(auth))) == auth
    assert HEX * 2 not in repr(auth)
    for alone in (False, True):
        request = dialect.edge_message(codec, codec.encode(dialect.request(9, True, AAPL, alone)))
        assert isinstance(request, Request)
        assert (request.id, request.alone) == (9, alone)
        assert codec.texts_of(request.fields["trades"]) == ["AAPL"]
        assert codec.text_of(request.fields["action"]) == "subscribe"


def test_versions() -> None:
    assert dialect.negotiate(dialect.offered()) == dialect.VERSIONS[0]
    assert dialect.negotiate("3, 2,1") == 1
    for offer in ("", "2", "1.0", "-1", "x", ",".join("9" * 100_000), "2," * 16 + "1"):
        assert dialect.negotiate(offer) is None


def test_proofs() -> None:
    """A proof is of one side, for one log-in to one feed of one account."""
    given = {"version": 1, "challenge": HEX, "nonce": HEX, "account": "account", "path": "/v2/iex"}
    own = dialect.proof(b"secret", dialect.EDGE, **given)
    assert dialect.same(own, dialect.proof(b"secret", dialect.EDGE, **given))
    others = [dialect.proof(b"secret", dialect.LEADER, **given), dialect.proof(b"other", dialect.EDGE, **given)]
    for name, value in [("version", 2), ("challenge", "0" * 32), ("nonce", "0" * 32), ("account", "a"), ("path", "/")]:
        others.append(dialect.proof(b"secret", dialect.EDGE, **{**given, name: value}))
    others.append(dialect.proof(b"secret", dialect.EDGE, **{**given, "account": "accoun", "path": "t/v2/iex"}))
    assert len({own, *others}) == len(others) + 1
    assert not any(dialect.same(own, other) for other in [*others, "", "ü"])


@CODEC
@pytest.mark.parametrize(
    "message",
    [
        {"T": "success", "msg": "connected", "version": 1, "node": "a b", "challenge": HEX},
        {"T": "success", "msg": "connected", "version": 1, "node": "n" * 129, "challenge": HEX},
        {"T": "success", "msg": "connected", "version": -1, "node": "n", "challenge": HEX},
        {"T": "success", "msg": "connected", "version": True, "node": "n", "challenge": HEX},
        {"T": "success", "msg": "connected", "version": 1, "node": "n", "challenge": HEX + "\n"},
        {"T": "success", "msg": "connected", "version": 1, "node": "n"},
        {"T": "success", "msg": "authenticated"},
        {"T": "success", "msg": "authenticated", "proof": [HEX * 2]},
        {"T": "success", "msg": "live", "token": "1"},
        {"T": "success", "msg": "live", "token": MAX_INTEGER + 1},
        {"T": "success", "msg": "live", "token": 1.5},
        {"T": "success", "msg": "waiting", "refused": [409]},
        {"T": "success", "msg": "away", "blamed": [1] * (MAX_BLAMED + 1)},
        {"T": "success", "msg": "away", "blamed": ["1"]},
        {"T": "subscription", "id": "1", "trades": []},
        {"T": "subscription", "id": None, "trades": []},
        {"T": "error", "id": 1, "msg": "no code"},
    ],
)
def test_malformed_messages_of_the_leader(codec: Codec, message: Any) -> None:
    with pytest.raises(Malformed):
        read(codec, [message])


AUTH = {"action": "auth", "version": 1, "node": "edge", "account": "a", "nonce": HEX, "proof": HEX * 2}


@CODEC
@pytest.mark.parametrize(
    "message",
    [
        [],
        {},
        {"action": "subscribe"},
        {"action": "subscribe", "id": -1},
        {"action": "subscribe", "id": [1]},
        *({**AUTH, name: value} for name, value in [("nonce", HEX[1:]), ("proof", HEX), ("node", ""), ("account", 7)]),
        *({name: value for name, value in AUTH.items() if name != left_out} for left_out in AUTH),
    ],
)
def test_malformed_messages_of_the_edge(codec: Codec, message: Any) -> None:
    with pytest.raises(Malformed):
        dialect.edge_message(codec, codec.encode(message))


def test_the_size_of_a_links_topics_is_bounded() -> None:
    small = frozenset(("trades", f"S{number}") for number in range(50_000))
    large = frozenset(("trades", f"{number:064}") for number in range(50_000))
    assert not dialect.is_too_much(small, NO_TOPICS)
    assert dialect.is_too_much(small, large)
    frame = JSON.encode(run_to_end(dialect.state(["trades"], small, 1)))
    assert len(frame) < dialect.MAX_STATE_BYTES


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [
        *("T", "msg", "action", "id", "code", "version", "node", "challenge", "proof", "account", "nonce", "token"),
        *("reason", "refused", "blamed", "others", "leading", "error", "alone", "trades", "corrections"),
    ]
)
WORDS = st.sampled_from(
    [
        *("success", "error", "subscription", "connected", "authenticated", "live", "waiting", "away"),
        *("auth", "subscribe", "unsubscribe"),
    ]
)
MESSAGES = st.dictionaries(NAMES, WORDS | VALUES, max_size=10)


@CODEC
@given(message=MESSAGES | VALUES)
def test_any_value_is_read_or_malformed(codec: Codec, message: Any) -> None:
    payload = packed(message) if codec is MSGPACK else json.dumps(message, default=repr).encode()
    reads_or_refuses(codec, payload)


@CODEC
@given(payload=st.binary(max_size=200))
def test_any_bytes_are_read_or_malformed(codec: Codec, payload: bytes) -> None:
    reads_or_refuses(codec, payload)


@CODEC
@given(message=MESSAGES, cut=st.integers(0, 100), flip=st.integers(0, 100))
def test_damaged_messages_are_read_or_malformed(codec: Codec, message: Any, cut: int, flip: int) -> None:
    payload = bytearray(packed(message) if codec is MSGPACK else json.dumps(message, default=repr).encode())
    payload[flip % len(payload)] ^= 0xFF
    reads_or_refuses(codec, bytes(payload))
    reads_or_refuses(codec, bytes(payload[: max(1, cut % len(payload))]))


def packed(message: Any) -> bytes:
    return msgpack.packb(message, default=repr, datetime=False) if fits(message) else msgpack.packb(repr(message))


def fits(value: Any) -> bool:
    """Whether msgpack has room for all integers of a value."""
    if isinstance(value, dict):
        return all(map(fits, value.values()))
    if isinstance(value, list):
        return all(map(fits, value))
    return not isinstance(value, int) or -(2**63) <= value < 2**64


def reads_or_refuses(codec: Codec, payload: bytes) -> None:
    for parse in (dialect.leader_message, dialect.edge_message):
        try:
            message = parse(codec, payload)
        except Malformed:
            continue
        for name in ("reason", "msg", "node", "account"):
            assert len(getattr(message, name, "")) <= MAX_TEXT
        for name in ("id", "version", "token", "code"):
            number = getattr(message, name, None)
            assert number is None or 0 <= number <= MAX_INTEGER
        assert len(getattr(message, "blamed", ())) <= MAX_BLAMED
