"""The tally against a plain count."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.topics import Subscription
from proxy.routing import topic_ref_counts as ref_counts
from proxy.routing.topic_ref_counts import TopicRefCounts

HOLDINGS = st.frozensets(st.tuples(st.sampled_from(["trades", "quotes"]), st.sampled_from("AB*")))


@pytest.mark.parametrize(("many", "wholes"), [(1, 1), (1, 2), (1, 16), (3, 2), (3, 16), (500, 16)])
@given(steps=st.lists(st.tuples(HOLDINGS, st.sampled_from(["come", "go", "give up"])), max_size=60))
def test_it_knows_who_is_the_first_to_hold_a_topic_and_who_the_last(
    many: int, wholes: int, steps: list[tuple[Subscription, str]]
) -> None:
    """However large the sets are that are counted as a whole, and however many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ref_counts, "MANY", many)
        patch.setattr(ref_counts, "MAX_WHOLE_SETS", wholes)
        ours, count, held = TopicRefCounts(), Counter[tuple[str, str]](), list[Subscription]()
        for topics, step in steps:
            if step == "come":
                held.append(topics)
                assert ours.add(topics) == {topic for topic in topics if not count[topic]}
                count.update(topics)
            elif held:
                before = held.pop(0)
                given = before & topics if step == "give up" else before
                count.subtract(given)
                gone = {topic for topic in given if not count[topic]}
                if given == before:
                    assert ours.remove(before) == gone
                else:
                    assert ours.shrink(before, given) == gone
                    held.append(before - given)
            assert ours.topics == set(+count)
        for topics in held:
            ours.remove(topics)
        assert repr(ours) == "<TopicRefCounts 0 topics, 0 of them counted>"
        assert not ours._wholes
