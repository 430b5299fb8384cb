"""Cooperative computations, and the LRU cache of their results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import cooperative, lru_cache
from proxy.alpaca.cooperative import chunks, run_to_end, sorted_in_chunks
from proxy.alpaca.lru_cache import LruCache


@pytest.mark.parametrize("size", [1, 2, 3, 2000])
@given(texts=st.lists(st.text(max_size=3), max_size=30))
def test_chunks_and_sorted_in_chunks(size: int, texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooperative, "CHUNK_SIZE", size)
        assert [text for chunk in chunks(texts) for text in chunk] == texts
        assert all(0 < len(chunk) <= size for chunk in chunks(texts))
        assert run_to_end(sorted_in_chunks(texts)) == sorted(texts)
        pauses = sum(1 for _ in sorted_in_chunks(texts))
        assert pauses >= len(texts) // size, "it yields after each chunk"


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=60))
def test_the_most_recently_used_are_kept(uses: list[tuple[int, bool]]) -> None:
    """`uses` are keys, and whether they are stored or looked up."""
    cache = LruCache[str]()
    expected: dict[int, str] = {}
    for key, stored in uses:
        if stored:
            cache.put(key, str(key))
            expected.pop(key, None)
            expected = dict([*expected.items()][-lru_cache.MAX_ENTRIES + 1 :]) | {key: str(key)}
        else:
            value = expected.pop(key, None)
            expected |= {key: value} if value else {}
            assert cache.get(key) == value
        assert len(cache) == len(expected) <= lru_cache.MAX_ENTRIES
    assert repr(cache) == f"<LruCache of {len(expected)}>"
    cache.clear()
    assert len(cache) == 0
