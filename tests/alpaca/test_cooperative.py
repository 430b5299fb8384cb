"""Work in steps, and what is remembered of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import cooperative as steps
from proxy.alpaca import lru_cache as memory
from proxy.alpaca.cooperative import chunks, run_to_end, sorted_in_chunks
from proxy.alpaca.lru_cache import LruCache


@pytest.mark.parametrize("size", [1, 2, 3, 2000])
@given(texts=st.lists(st.text(max_size=3), max_size=30))
def test_in_order(size: int, texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "CHUNK_SIZE", size)
        assert [text for piece in chunks(texts) for text in piece] == texts
        assert all(0 < len(piece) <= size for piece in chunks(texts))
        assert run_to_end(sorted_in_chunks(texts)) == sorted(texts)
        pauses = sum(1 for _ in sorted_in_chunks(texts))
        assert pauses >= len(texts) // size, "it pauses after each piece"


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=60))
def test_the_last_that_were_asked_for_are_kept(asked: list[tuple[int, bool]]) -> None:
    kept = LruCache[str]()
    expected: dict[int, str] = {}
    for key, made in asked:
        if made:
            kept.put(key, str(key))
            expected.pop(key, None)
            expected = dict([*expected.items()][-memory.KEPT + 1 :]) | {key: str(key)}
        else:
            found = expected.pop(key, None)
            expected |= {key: found} if found else {}
            assert kept.get(key) == found
        assert len(kept) == len(expected) <= memory.KEPT
    assert repr(kept) == f"<LruCache of {len(expected)}>"
    kept.clear()
    assert len(kept) == 0
