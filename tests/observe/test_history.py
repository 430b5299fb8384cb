"""Rates and lag, second by second; the tests pass the time and do not wait."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe.history import (
    LAG_BOUNDS,
    LAG_SECONDS,
    MAX_SAMPLES,
    RATE_SECONDS,
    SECONDS,
    History,
    Lags,
    client_columns,
    columns,
    quantile,
)
from proxy.observe.snapshot import Key

IEX: Key = ("main", "iex")
NEWS: Key = ("main", "news")
ALPHA: Key = ("alpha", "iex")


def add_second(
    history: History, now: float, received: dict[Key, int], delivered: dict[Key, int] | None = None, **lags: Lags
) -> None:
    """Add the second that ends at `now`."""
    by_key = {("main", feed): lag for feed, lag in lags.items()}
    history.add(now, received=received, delivered=delivered or {}, lags=by_key, delay=0.0)


@given(st.lists(st.floats(-10, 1e4), min_size=1, max_size=200).map(sorted), st.floats(0.001, 1))
def test_a_quantile_is_the_smallest_value_with_the_share_at_or_below_it(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


def test_without_samples_there_is_no_quantile() -> None:
    assert quantile([], 0.5) is None
    assert Lags().turn() == (None, None)


def test_quantiles_of_a_second_and_of_the_last_minute() -> None:
    lags = Lags()
    for lag in range(1, 101):
        lags.add(lag / 1000)
    assert lags.turn() == (0.05, 0.099)
    lags.add(5.0)
    assert lags.turn() == (5.0, 5.0)
    assert (lags.state().p50, lags.state().p99) == (0.051, 0.1)
    for _ in range(LAG_SECONDS):
        assert lags.turn() == (None, None)
    assert (lags.state().p50, lags.state().p99) == (None, None)


@given(st.lists(st.floats(-5, 5000)))
def test_the_histogram_is_cumulative_and_counts_every_sample(samples: list[float]) -> None:
    lags = Lags()
    for sample in samples:
        lags.add(sample)
    state = lags.state()
    assert [bound for bound, _ in state.samples] == [*LAG_BOUNDS, math.inf]
    for bound, count in state.samples:
        assert count == sum(sample <= bound for sample in samples)
    assert state.sum == pytest.approx(sum(max(sample, 0) for sample in samples))


def test_samples_of_one_second_are_bounded() -> None:
    lags = Lags()
    for number in range(10 * MAX_SAMPLES):
        lags.add(number)
    p50, p99 = lags.turn()
    assert p99 is not None
    assert p50 is not None
    assert 9 * MAX_SAMPLES <= p50 < p99 < 10 * MAX_SAMPLES
    assert lags.state().samples[-1][1] == 10 * MAX_SAMPLES


def test_rates_of_each_second_and_of_the_last_seconds() -> None:
    history = History(100.0)
    add_second(history, 101.0, {IEX: 10})
    add_second(history, 102.0, {IEX: 40})
    add_second(history, 104.0, {IEX: 100})  # late: two seconds in one
    assert [second.feeds[IEX].received for second in history.seconds] == [10, 30, 30]
    assert history.received == {IEX: 25}
    for now in range(105, 105 + RATE_SECONDS):
        add_second(history, now, {IEX: 100})
    assert history.received == {IEX: 0}


def test_new_and_restarted_counters_start_at_zero() -> None:
    history = History(0.0)
    add_second(history, 1.0, {IEX: 100})
    add_second(history, 2.0, {IEX: 150, NEWS: 4})
    assert history.seconds[-1].feeds[NEWS].received == 4
    add_second(history, 3.0, {IEX: 30, NEWS: 4})  # reconfigured: a new router counts from 0
    assert history.seconds[-1].feeds[IEX].received == 30
    assert min(history.received.values()) >= 0
    add_second(history, 4.0, {IEX: 30})  # its account is gone
    assert NEWS not in history.seconds[-1].feeds
    assert columns(history.seconds, NEWS)[0] == [0, 4, 0, 0]


def test_delivered_by_client_and_in_total() -> None:
    history = History(0.0)
    add_second(history, 1.0, {}, {ALPHA: 10, ("beta", "iex"): 20})
    add_second(history, 2.0, {}, {ALPHA: 10, ("beta", "iex"): 50})
    assert [second.delivered for second in history.seconds] == [30, 30]
    assert history.delivered == {ALPHA: 5, ("beta", "iex"): 25}


def test_lag_belongs_to_the_same_second_as_the_rate() -> None:
    history, lags = History(0.0), Lags()
    lags.add(0.25)
    add_second(history, 1.0, {IEX: 1}, iex=lags)
    add_second(history, 2.0, {IEX: 2}, iex=lags)
    assert columns(history.seconds, IEX) == ([1, 1], [0.25, None], [0.25, None])


def test_history_is_bounded_and_numbers_continue() -> None:
    history = History(0.0)
    for now in range(1, 2 * SECONDS + 1):
        add_second(history, float(now), {IEX: now})
    numbers = [second.number for second in history.seconds]
    assert numbers == [*range(SECONDS + 1, 2 * SECONDS + 1)]


def test_returned_values_do_not_change() -> None:
    history = History(0.0)
    add_second(history, 1.0, {IEX: 1})
    seconds, received = tuple(history.seconds), history.received
    add_second(history, 2.0, {IEX: 5})
    assert [second.number for second in seconds] == [1]
    assert received == {IEX: 1}


def test_a_span_of_zero_gives_no_division_by_zero() -> None:
    history = History(1.0)
    add_second(history, 1.0, {IEX: 0})
    assert history.received == {IEX: 0}


def test_clients_second_by_second() -> None:
    """Idle clients take no memory; a client's columns have a zero for each of their seconds."""
    history = History(0.0)
    beta = ("beta", "iex")
    for now, count, waiting in ((1.0, 5, 0), (2.0, 5, 700), (3.0, 8, 0)):
        delivered, pending = {ALPHA: count, beta: 0}, {ALPHA: waiting, beta: 0}
        history.add(now, received={}, delivered=delivered, lags={}, delay=0, pending=pending)
    assert client_columns(history.seconds, ALPHA) == ([5, 0, 3], [0, 700, 0])
    assert client_columns(history.seconds, beta) == ([0, 0, 0], [0, 0, 0])
    assert [(second.clients, second.pending) for second in history.seconds] == [
        ({ALPHA: 5}, {}),
        ({}, {ALPHA: 700}),
        ({ALPHA: 3}, {}),
    ]
