"""The lag of messages and the age of the last one, from samples and ticks."""

from __future__ import annotations

import json

import pytest

from proxy.alpaca.codec import JSON
from proxy.upstream.feed_stats import SAMPLE_SECONDS, FeedStats

EPOCH = 1_700_000_000.0
EPOCH_TEXT = "2023-11-14T22:13:20Z"


class Clock:
    """A monotonic clock and Unix time, both set by a test."""

    def __init__(self) -> None:
        self.now = 50.0

    def steady(self) -> float:
        return self.now

    def wall(self) -> float:
        return EPOCH + self.now - 50.0


def trade(time: str) -> bytes:
    return json.dumps([{"T": "t", "S": "AAPL", "t": time}]).encode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stats(clock: Clock) -> FeedStats:
    return FeedStats(clock.steady, clock.wall)


def test_lag_ends_when_the_message_is_received_not_when_it_is_sampled(stats: FeedStats, clock: Clock) -> None:
    clock.now += 0.25
    received_at = clock.now
    clock.now += 3.0
    stats.sample(trade(EPOCH_TEXT), JSON, received_at)
    assert stats.lags.turn()[0] == pytest.approx(0.25)


def test_a_message_from_the_future_has_a_negative_lag(stats: FeedStats, clock: Clock) -> None:
    stats.sample(trade("2023-11-14T22:13:22Z"), JSON, clock.now)
    assert stats.lags.turn()[0] == pytest.approx(-2.0)
    assert stats.lags.state().sum == 0


def test_the_next_sample_is_due_later_even_if_a_frame_has_no_event_time(stats: FeedStats, clock: Clock) -> None:
    for frame in (trade(EPOCH_TEXT), b'[{"T":"b","t":"2023-11-14T22:13:00Z"}]', b"nonsense"):
        clock.now += 1
        stats.sample(frame, JSON, clock.now)
        assert stats.due == clock.now + SAMPLE_SECONDS


def test_age_counts_from_the_tick_that_saw_a_new_message(stats: FeedStats) -> None:
    stats.tick(0, 60.0)
    assert stats.age(61.0) is None
    stats.tick(5, 62.0)
    stats.tick(5, 63.0)
    assert stats.age(64.0) == 2.0
    stats.tick(1, 65.0)  # a new router counts from 0
    assert stats.age(65.0) == 0.0
