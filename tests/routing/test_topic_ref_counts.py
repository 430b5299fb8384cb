"""Reference counts of topics, checked against a plain counter."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.topics import Subscription
from proxy.routing import topic_ref_counts as ref_counts
from proxy.routing.topic_ref_counts import TopicRefCounts

HOLDINGS = st.frozensets(st.tuples(st.sampled_from(["trades", "quotes"]), st.sampled_from("AB*")))


@pytest.mark.parametrize(("many", "whole_sets"), [(1, 1), (1, 2), (1, 16), (3, 2), (3, 16), (500, 16)])
@given(steps=st.lists(st.tuples(HOLDINGS, st.sampled_from(["add", "remove", "shrink"])), max_size=60))
def test_the_first_and_the_last_reference_of_each_topic(
    many: int, whole_sets: int, steps: list[tuple[Subscription, str]]
) -> None:
    """With any number of whole sets, of any size.

    `many` is the size from which sets are counted as a whole, `whole_sets` the most that are.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ref_counts, "MANY", many)
        patch.setattr(ref_counts, "MAX_WHOLE_SETS", whole_sets)
        counts, count, held = TopicRefCounts(), Counter[tuple[str, str]](), list[Subscription]()
        for topics, step in steps:
            if step == "add":
                held.append(topics)
                assert counts.add(topics) == {topic for topic in topics if not count[topic]}
                count.update(topics)
            elif held:
                before = held.pop(0)
                removed = before & topics if step == "shrink" else before
                count.subtract(removed)
                gone = {topic for topic in removed if not count[topic]}
                if removed == before:
                    assert counts.remove(before) == gone
                else:
                    assert counts.shrink(before, removed) == gone
                    held.append(before - removed)
            assert counts.topics == set(+count)
        for topics in held:
            counts.remove(topics)
        assert repr(counts) == "<TopicRefCounts 0 topics, 0 of them counted>"
        assert not counts._whole_sets
