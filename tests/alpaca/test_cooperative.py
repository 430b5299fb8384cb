"""Computations that yield between chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import cooperative
from proxy.alpaca.cooperative import chunks, run_to_end, sorted_in_chunks


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
