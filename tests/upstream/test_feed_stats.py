"""How late messages come and when the last one came, from a look now and then."""

from __future__ import annotations

import json

import pytest

from proxy.alpaca.codec import JSON
from proxy.upstream.feed_stats import SAMPLE_SECONDS, FeedStats

EPOCH = 1_700_000_000.0
MADE = "2023-11-14T22:13:20Z"  # is EPOCH


class Clock:
    """Seconds since some time, and since 1970."""

    def __init__(self) -> None:
        self.now = 50.0

    def steady(self) -> float:
        return self.now

    def wall(self) -> float:
        return EPOCH + self.now - 50.0


def tick(made: str) -> bytes:
    return json.dumps([{"T": "t", "S": "AAPL", "t": made}]).encode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> FeedStats:
    return FeedStats(clock.steady, clock.wall)


def test_lag_is_measured_to_when_the_message_was_heard_and_not_to_when_it_is_looked_at(
    watch: FeedStats, clock: Clock
) -> None:
    clock.now += 0.25
    received_at = clock.now
    clock.now += 3.0
    watch.sample(tick(MADE), JSON, received_at)
    assert watch.lags.turn()[0] == pytest.approx(0.25)


def test_a_message_from_the_future_has_a_lag_below_0(watch: FeedStats, clock: Clock) -> None:
    watch.sample(tick("2023-11-14T22:13:22Z"), JSON, clock.now)
    assert watch.lags.turn()[0] == pytest.approx(-2.0)
    assert watch.lags.state().sum == 0


def test_the_next_look_is_a_while_away_whether_or_not_there_was_anything_to_see(watch: FeedStats, clock: Clock) -> None:
    for frame in (tick(MADE), b'[{"T":"b","t":"2023-11-14T22:13:00Z"}]', b"nonsense"):
        clock.now += 1
        watch.sample(frame, JSON, clock.now)
        assert watch.due == clock.now + SAMPLE_SECONDS


def test_age_is_that_of_the_tick_which_saw_something_new(watch: FeedStats) -> None:
    watch.tick(0, 60.0)
    assert watch.age(61.0) is None
    watch.tick(5, 62.0)
    watch.tick(5, 63.0)
    assert watch.age(64.0) == 2.0
    watch.tick(1, 65.0)  # a new router counts from 0
    assert watch.age(65.0) == 0.0
