"""The hub budget: its share, and no waiting while it is not used up."""

from __future__ import annotations

import time

import gevent
import pytest

from proxy.downstream import hub_budget
from proxy.downstream.hub_budget import SLICE_SECONDS, HubBudget


class Time:
    """A clock, and a `gevent.sleep` that advances it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(hub_budget.gevent, "sleep", clock.sleep)
    return clock


def work(budget: HubBudget, clock: Time, seconds: float) -> None:
    began = budget.reserve()
    clock.now += seconds
    budget.charge(began)


def test_rare_slices_do_not_wait(clock: Time) -> None:
    budget = HubBudget(1 / 3, clock)
    for _ in range(10):
        work(budget, clock, SLICE_SECONDS)
        clock.now += 2 * SLICE_SECONDS
    assert clock.slept == []


@pytest.mark.parametrize("seconds", [SLICE_SECONDS / 10, SLICE_SECONDS, 10 * SLICE_SECONDS])
def test_a_greenlet_that_works_all_the_time_gets_the_share(clock: Time, seconds: float) -> None:
    budget, began = HubBudget(1 / 4, clock), clock.now
    for _ in range(1000):
        work(budget, clock, seconds)
    assert 1000 * seconds / (clock.now - began) == pytest.approx(1 / 4, rel=0.01)


def test_a_long_slice_is_charged_up_to_a_limit(clock: Time) -> None:
    budget = HubBudget(1 / 3, clock)
    work(budget, clock, 60.0)
    work(budget, clock, SLICE_SECONDS)
    assert sum(clock.slept) <= 3 * hub_budget.MAX_CHARGE_SECONDS


def test_many_greenlets_are_all_served_and_let_others_run() -> None:
    """In real time: 100 greenlets with one slice each, beside one that only yields."""
    budget = HubBudget(1 / 3, time.monotonic)
    order: list[int] = []

    def worker(number: int) -> None:
        began = budget.reserve()
        while time.monotonic() < began + SLICE_SECONDS:
            pass
        order.append(number)
        budget.charge(began)

    workers = [gevent.spawn(worker, number) for number in range(100)]
    yields = 0
    while not all(worker.ready() for worker in workers):
        yields += 1
        gevent.sleep(0.0001)
    assert sorted(order) == list(range(100))
    assert yields >= 50
