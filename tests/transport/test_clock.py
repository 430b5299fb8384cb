"""The clock that ignores gaps while the process was suspended."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.transport.clock import GAP_SECONDS, Clock


@given(st.lists(st.one_of(st.floats(0, 4.9), st.floats(5.1, 1e6))))
def test_gaps_count_as_no_time(steps: list[float]) -> None:
    assert GAP_SECONDS == 5
    machine = [1000.0]
    clock = Clock(lambda: machine[-1])
    expected = clock()
    for step in steps:
        machine.append(machine[-1] + step)
        expected += step if step < GAP_SECONDS else 0
        assert abs(clock() - expected) < 1e-3
