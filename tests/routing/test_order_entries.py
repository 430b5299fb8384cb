"""Entries of the history of order updates between nodes: what one node writes, another one reads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.codec import Malformed
from proxy.routing import order_entries
from proxy.routing.order_history import Part

PARTS = (Part.WHOLE, Part.FIRST, Part.REST)
TEXTS = st.text(max_size=20)


@given(
    at=st.integers(0, 2**62),
    part=st.sampled_from(PARTS),
    is_replay=st.booleans(),
    matches=st.lists(st.tuples(TEXTS, TEXTS), max_size=4),
    data=st.dictionaries(TEXTS, st.integers(), max_size=3),
)
def test_an_entry_is_read_as_it_was_written(
    at: int, part: Part, is_replay: bool, matches: list[tuple[str, str]], data: dict[str, int]
) -> None:
    body = json.dumps(data).encode()
    entry = order_entries.parse(order_entries.encode(body, at, part, matches, is_replay=is_replay))
    assert (entry.at, entry.part, entry.is_replay, entry.matches) == (at, part, is_replay, matches)
    assert bytes(entry.data) == body


def test_a_repeat_is_an_entry_like_any_other() -> None:
    entry = order_entries.parse(order_entries.encode(b"{}", 1, Part.REPEAT, ()))
    assert entry.part is Part.WHOLE


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"at":1}',
        b'{"at":-1,"data":{}}',
        b'{"at":%d,"data":{}}' % (10**30),
        b'{"at":"1","data":{}}',
        b'{"at":1,"part":"repeat","data":{}}',
        b'{"at":1,"family":[["a"]],"data":{}}',
        b'{"at":1,"family":[["a",1]],"data":{}}',
        b'{"at":1,"family":[["%b",""]],"data":{}}' % (b"a" * 300),
    ],
)
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        order_entries.parse(body)
