"""When a feed that was busy counts as silent.

Time passes in ticks of a quarter of a second, as in the gateway, or of a second.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.silence import SilenceDetector

LIMIT = 60.0


class Feed:
    """A detector with the count of messages and the time."""

    def __init__(self, limit: float | None = LIMIT, tick: float = 1.0) -> None:
        self.detector = SilenceDetector(limit)
        self.received = 0
        self.now = 1000.0
        self.reports: list[float] = []
        self._tick = tick

    def run(self, seconds: float, busy: Callable[[float], object] = lambda now: False) -> list[float]:
        """Let time pass; `busy` says whether a message comes. Return the times of the reports, from the start."""
        began, reports = self.now, []
        while self.now < began + seconds:
            self.received += bool(busy(self.now))
            if self.detector.tick(self.received, self.now):
                reports.append(self.now - began)
            self.now += self._tick
        self.reports += reports
        return reports

    def busy(self, seconds: float) -> None:
        assert self.run(seconds, lambda now: True) == []


def every(seconds: float) -> Callable[[float], bool]:
    return lambda now: now % seconds == 0


@pytest.mark.parametrize("tick", [0.25, 1.0])
@pytest.mark.parametrize("minutes", [1, 2, 5, 20])
def test_a_busy_feed_that_falls_silent_is_reported_once(minutes: int, tick: float) -> None:
    feed = Feed(tick=tick)
    feed.busy(minutes * 60 + 1)
    [after] = feed.run(3600)
    assert after == pytest.approx(LIMIT - tick, abs=tick)


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_gaps_of_up_to_five_seconds_are_no_silence(gap: int) -> None:
    feed = Feed()
    assert feed.run(300, every(gap)) == []
    assert len(feed.run(600)) == 1


def test_a_feed_with_longer_gaps_is_never_reported() -> None:
    feed = Feed()
    assert feed.run(300, every(6)) == feed.run(3600) == []


def test_a_feed_that_was_busy_for_less_than_a_minute_is_not_reported() -> None:
    feed = Feed()
    feed.busy(59)
    assert feed.run(3600) == []


def test_a_gap_in_the_last_five_minutes() -> None:
    """A feed that was observed for longer has to be busy for five minutes, and an older gap does not count."""
    for busy, reports in (290, 0), (310, 1):
        feed = Feed()
        feed.busy(400)
        assert feed.run(20) == []
        feed.busy(busy)
        assert len(feed.run(3600)) == reports


def test_a_gap_within_an_observation_of_less_than_five_minutes() -> None:
    feed = Feed()
    feed.busy(90)
    assert feed.run(20) == []
    feed.busy(90)
    assert feed.run(3600) == []


@given(
    minutes=st.integers(1, 30),
    offsets=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    limit=st.integers(5, 200),
    tick=st.sampled_from([0.25, 1.0]),
)
def test_minute_bars_alone_never_set_it_off(minutes: int, offsets: list[int], limit: int, tick: float) -> None:
    """They come once a minute, within a few seconds; whatever the limit, and when they end."""
    feed = Feed(limit, tick)
    assert feed.run(minutes * 60, lambda now: now % 60 in offsets) == []
    assert feed.run(600) == []


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400)), max_size=12), st.sampled_from([5, 60, 200]))
def test_at_most_once_in_five_minutes(phases: list[tuple[bool, int]], limit: int) -> None:
    feed = Feed(limit)
    for busy, seconds in phases:
        before = feed.now
        reports = feed.run(seconds, lambda now, busy=busy: busy)
        feed.reports[len(feed.reports) - len(reports) :] = [before + at for at in reports]
    assert all(later - earlier >= 300 for earlier, later in zip(feed.reports, feed.reports[1:], strict=False))


def test_it_is_reported_again_after_five_minutes_if_it_was_busy_again() -> None:
    feed = Feed()
    for _ in range(3):
        feed.busy(310)
        assert len(feed.run(70)) == 1
        feed.detector.restart()


def test_it_is_counted_anew_after_a_restart() -> None:
    """On a new connection, and when topics were given up."""
    feed = Feed()
    feed.busy(400)
    feed.detector.restart()
    assert feed.run(3600) == [], "a feed that sends nothing at all after the restart is not silent"
    feed.busy(59)
    feed.detector.restart()
    feed.busy(59)
    assert feed.run(600) == []
    feed.detector.restart()
    feed.busy(61)
    assert len(feed.run(600)) == 1


def test_a_feed_that_never_sent_anything_is_not_silent() -> None:
    assert Feed().run(3600) == []


def test_off() -> None:
    feed = Feed(None)
    feed.busy(400)
    assert feed.run(3600) == []


def test_a_limit_that_is_changed_by_a_reload() -> None:
    feed = Feed(None)
    feed.busy(400)
    assert feed.run(100) == []
    feed.detector.limit = 30
    assert feed.run(1) == [0]


def test_the_repr() -> None:
    feed = Feed()
    feed.busy(91)
    assert repr(feed.detector) == "<SilenceDetector 90 s busy>"
