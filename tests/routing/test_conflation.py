"""Conflation drops outdated messages only, and keeps the order of the rest."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.codec import FRAME_BYTES, JSON, MSGPACK, Codec, Malformed
from proxy.alpaca.legacy import LEGACY as LEGACIES
from proxy.alpaca.transcode import transcode
from proxy.routing.conflation import BOOK_BYTES, MESSAGE_BYTES, NEWEST, Backlog
from proxy.routing.order_books import Books
from tests.harness import quote, trade

Message = dict[str, Any]

EVERYTHING = 1 << 30
SYMBOLS = st.sampled_from(("A", "B"))
MESSAGES = st.one_of(
    st.fixed_dictionaries({"T": st.sampled_from("tqbudslicxo"), "S": SYMBOLS}),
    st.fixed_dictionaries({"T": st.just("n"), "symbols": st.lists(SYMBOLS, max_size=2)}),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(MESSAGES, min_size=1, max_size=5)),
        st.tuples(st.just("reply"), st.none()),
        st.tuples(st.just("take"), st.sampled_from((1, 300, EVERYTHING))),
    ),
    max_size=30,
)
LEVELS = st.lists(st.fixed_dictionaries({"p": st.integers(1, 3), "s": st.integers(0, 3)}), min_size=1, max_size=3)
UPDATES = st.fixed_dictionaries(
    {
        "T": st.just("o"),
        "S": SYMBOLS,
        "b": LEVELS,
        "a": LEVELS,
        "r": st.booleans(),
        "pad": st.sampled_from(("", "x" * 900)),
    }
)
BOOK_STEPS = st.lists(
    st.one_of(st.lists(UPDATES, min_size=1, max_size=4), st.sampled_from((100, 2000, EVERYTHING))), max_size=40
)


def decode(codec: Codec, payload: bytes) -> list[Message]:
    messages: list[Message] = json.loads(payload) if codec is JSON else msgpack.unpackb(payload)
    return messages


def backlog_of(codec: Codec, whole_book: Any = lambda pair: None) -> Backlog:
    """A backlog whose frames are their payloads."""
    return Backlog(codec, whole_book, lambda payload: payload)


def taken(backlog: Backlog, codec: Codec, size: int = EVERYTHING) -> list[Message]:
    """The messages of the frames that are taken next; each frame has the number that is said."""
    messages = []
    for payload, count in backlog.take(size):
        decoded = decode(codec, payload)
        assert count == (0 if decoded[0]["T"] == "subscription" else len(decoded))
        messages += decoded
    return messages


def newest(messages: list[Message]) -> list[Message]:
    """The messages without those of which a later one has the same topic, if that replaces them."""
    last = {(message["T"], message.get("S")): at for at, message in enumerate(messages)}
    return [m for at, m in enumerate(messages) if m["T"] not in NEWEST or last[m["T"], m.get("S")] == at]


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
@given(STEPS)
def test_only_outdated_messages_are_dropped(codec: Codec, steps: list[tuple[str, Any]]) -> None:
    """The messages taken are those of the model: the newest of each topic that is replaced, everything else, in order.

    Everything that is pending when a first message is taken is taken before any later one.
    """
    backlog = backlog_of(codec)
    pending: list[Message] = []  # of the model
    leaving: list[Message] = []
    added = dropped = left = number = 0
    for action, value in [*steps, ("take", EVERYTHING), ("take", EVERYTHING)]:
        if action == "add":
            frame = [message | {"i": (number := number + 1)} for message in value]
            gone = backlog.add(codec.encode(frame))
            before = len(pending)
            pending = newest(pending + frame)
            assert gone == before + len(frame) - len(pending)
            added, dropped = added + len(frame), dropped + gone
        elif action == "reply":
            reply = [{"T": "subscription", "i": (number := number + 1)}]
            backlog.add_whole(codec.encode(reply), 0)
            pending += reply
        else:
            if not leaving:
                leaving, pending = pending, []
            messages = taken(backlog, codec, value)
            assert messages == leaving[: len(messages)]
            assert messages or not leaving
            del leaving[: len(messages)]
            left += sum(message["T"] != "subscription" for message in messages)
        assert backlog.messages == added - dropped - left
    assert (bool(backlog), backlog.size, backlog.messages) == (False, 0, 0)


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
@given(BOOK_STEPS)
def test_the_book_of_a_client_is_alpacas(codec: Codec, steps: list[Any]) -> None:
    """Whenever nothing is pending, and whichever of the updates the whole book has replaced."""
    books = Books(codec)
    backlog = backlog_of(codec, books.whole)
    sent: list[Message] = []
    received: list[Message] = []
    dropped = 0
    for step in [*steps, EVERYTHING, EVERYTHING]:
        if isinstance(step, list):
            for update in step:
                books.apply(update["S"], codec.encode(update))
            dropped += backlog.add(codec.encode(step))
            sent += step
        else:
            received += taken(backlog, codec, step)
        if not backlog:
            assert levels(received) == levels(sent)
    assert len(received) + dropped == len(sent)


def levels(messages: list[Message]) -> dict[tuple[str, str], dict[int, int]]:
    """The sizes by price of each side of each pair's book; of pairs whose book is known."""
    book: dict[tuple[str, str], dict[int, int]] = {}
    for message in messages:
        for side in ("b", "a"):
            at = message["S"], side
            if message.get("r"):
                book[at] = {}
            if at in book:
                book[at] = {p: s for p, s in {**book[at], **{x["p"]: x["s"] for x in message[side]}}.items() if s}
    return book


def test_updates_that_outweigh_the_book_are_replaced() -> None:
    """The whole book has the place of the last of them; later updates follow, until they outweigh it again."""
    whole = {"T": "o", "S": "A", "r": True, "pad": "x" * 3 * BOOK_BYTES}
    backlog = backlog_of(JSON, lambda pair: JSON.encode(whole))
    update = {"T": "o", "S": "A", "pad": "x" * (BOOK_BYTES // 2)}
    first, second = {"T": "t", "S": "A", "i": 1}, {"T": "t", "S": "A", "i": 2}
    assert [backlog.add(JSON.encode([update])), backlog.add(JSON.encode([first, update, second]))] == [0, 1]
    assert backlog.add(JSON.encode([update] * 5)) == 0
    assert taken(backlog, JSON) == [first, second, whole, *[update] * 5]
    assert backlog.add(JSON.encode([update] * 5)) == 4
    assert backlog.add(JSON.encode([update] * 7)) == 7
    assert taken(backlog, JSON) == [whole]


def test_without_a_book_its_updates_stay() -> None:
    backlog = backlog_of(JSON)
    update = {"T": "o", "S": "A", "pad": "x" * BOOK_BYTES}
    assert [backlog.add(JSON.encode([update])) for _ in range(5)] == [0] * 5
    assert taken(backlog, JSON) == [update] * 5


def test_a_frequent_topic_gets_its_turn() -> None:
    """Though it is always newer than the rest, and only a part is taken at a time."""
    backlog = backlog_of(JSON)
    backlog.add(JSON.encode([quote(f"S{number}") for number in range(100)]))
    messages: list[Message] = []
    for number in range(100):
        backlog.add(JSON.encode([quote("SPY", n=number), *[quote(f"S{at}") for at in range(number, number + 10)]]))
        messages += taken(backlog, JSON, 1000)
    numbers = [message["n"] for message in messages if message["S"] == "SPY"]
    assert len(numbers) > 3


@pytest.mark.parametrize("payload", [b"", b"{", b'{"stream":"trade_updates"}', b"\xff"])
def test_a_payload_that_is_no_array_is_not_added(payload: bytes) -> None:
    backlog = backlog_of(JSON)
    with pytest.raises(Malformed):
        backlog.add(payload)
    assert not backlog


def test_quotes_of_the_legacy_stream_are_conflated() -> None:
    """Each is alone in its frame; order updates of the same connection are none of these."""
    backlog = backlog_of(LEGACIES["json"])
    bodies = [
        transcode(m["T"], JSON.encode(m), JSON, LEGACIES["json"])
        for m in (quote("A"), trade("A", 1), quote("B"), quote("A"))
    ]
    assert [backlog.add(bytes(body or b"")) for body in bodies] == [0, 0, 0, 1]
    with pytest.raises(Malformed):
        backlog.add(b'{"stream":"trade_updates","data":{}}')
    streams = [json.loads(payload)["stream"] for payload, _ in backlog.take(EVERYTHING)]
    assert streams == ["T.A", "Q.B", "Q.A"]


def test_small_messages_count_for_the_memory_that_holds_them() -> None:
    backlog = backlog_of(JSON)
    backlog.add(b"[" + b",".join([b"{}"] * 1000) + b"]")
    assert backlog.size == 1000 * MESSAGE_BYTES
    backlog.clear()
    assert (backlog.size, backlog.messages, bool(backlog)) == (0, 0, False)


def test_frames_are_smaller_than_the_limit_of_the_sdks() -> None:
    """Python's SDKs close the connection at a message over 1 MiB."""
    backlog = backlog_of(JSON)
    for number in range(200):
        backlog.add(JSON.encode([{"T": "n", "id": number, "content": "x" * 20_000}]))
    frames = [payload for payload, _ in backlog.take(EVERYTHING)]
    assert max(map(len, frames)) <= FRAME_BYTES
    assert [message["id"] for frame in frames for message in json.loads(frame)] == [*range(200)]
