"""The tally against a plain count."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol.topics import Subscription
from proxy.routing.tally import Tally

HOLDINGS = st.frozensets(st.tuples(st.sampled_from(["trades", "quotes"]), st.sampled_from("ABCD*")))


@given(st.lists(st.tuples(HOLDINGS, st.booleans())))
def test_it_knows_who_is_the_first_to_hold_a_topic_and_who_the_last(steps: list[tuple[Subscription, bool]]) -> None:
    tally, count, held = Tally(), Counter[tuple[str, str]](), list[Subscription]()
    for topics, comes in steps:
        if comes:
            held.append(topics)
            assert tally.add(topics) == {topic for topic in topics if not count[topic]}
            count.update(topics)
        elif held:
            topics = held.pop(0)
            count.subtract(topics)
            assert tally.remove(topics) == {topic for topic in topics if not count[topic]}
        assert tally.topics == set(+count)
    for topics in held:
        tally.remove(topics)
    assert repr(tally) == "<Tally 0 topics, 0 of them held more than once>"
