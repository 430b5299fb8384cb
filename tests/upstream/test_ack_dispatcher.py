"""The ack dispatcher: the order of outcomes, and yielding between them."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.observe.logs import Log
from proxy.routing.pending_requests import RequestOutcome, SubscriberRequests
from proxy.transport import time_slice
from proxy.upstream.ack_dispatcher import MAX_TOPICS_AT_ONCE, AckDispatcher

LONG: Subscription = frozenset(("trades", f"S{number}") for number in range(MAX_TOPICS_AT_ONCE + 1))


class Recorder:
    """A dispatcher and the outcomes that it has delivered.

    Delivery to the member `broken` fails.
    """

    def __init__(self) -> None:
        self.delivered: list[RequestOutcome] = []
        self.pauses = 0
        self.dispatcher = AckDispatcher(self.deliver, Log("upstream"))

    def deliver(self, outcome: RequestOutcome) -> Iterator[None]:
        if outcome.requests.member == "broken":
            raise RuntimeError("an internal error")
        for _ in range(self.pauses):
            yield
        self.delivered.append(outcome)

    def finish(self) -> None:
        """Wait until the dispatcher's greenlet has ended."""
        with gevent.Timeout(5):
            while repr(self.dispatcher) != "<AckDispatcher 0 sessions queued>":
                gevent.sleep(0)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def short(requests: SubscriberRequests) -> RequestOutcome:
    return RequestOutcome(requests, None, NO_TOPICS)


def long(requests: SubscriberRequests) -> RequestOutcome:
    return RequestOutcome(requests, None, LONG)


def test_short_outcomes_are_delivered_at_once(recorder: Recorder) -> None:
    outcomes = [
        short(SubscriberRequests("one")),
        RequestOutcome(SubscriberRequests("two"), (405, "symbol limit exceeded"), None),
    ]
    recorder.dispatcher.take(outcomes)
    assert recorder.delivered == outcomes


def test_outcomes_of_a_session_keep_their_order_and_others_do_not_wait(recorder: Recorder) -> None:
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    first, second, other = long(one), short(one), short(two)
    recorder.dispatcher.take([first])
    recorder.dispatcher.take([second, other])
    assert recorder.delivered == [other]
    recorder.finish()
    assert recorder.delivered == [other, first, second]
    third = short(one)
    recorder.dispatcher.take([third])
    assert recorder.delivered[-1] is third, "the queue is empty"


def test_other_greenlets_run_between_many_outcomes(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_slice, "SLICE_SECONDS", 0.0)
    outcomes = [short(SubscriberRequests(number)) for number in range(20)]
    recorder.dispatcher.take(outcomes)
    counts = []
    with gevent.Timeout(5):
        while len(recorder.delivered) < len(outcomes):
            counts.append(len(recorder.delivered))
            gevent.sleep(0.000_01)
    assert recorder.delivered == outcomes
    assert len(set(counts)) > 2, "no other greenlet ran between them"


def test_outcomes_that_take_several_time_slices_keep_their_order(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome for a session is queued while another one is being delivered to it."""
    monkeypatch.setattr(time_slice, "SLICE_SECONDS", 0.0)
    recorder.pauses = 3
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    first, second, third, other = long(one), short(one), short(one), long(two)
    recorder.dispatcher.take([first, other])
    for outcome in (second, third):
        gevent.sleep(0.000_01)
        assert recorder.delivered == [], "the first is still being delivered"
        recorder.dispatcher.take([outcome])
    recorder.finish()
    assert recorder.delivered == [first, other, second, third], "one outcome of each session in turn"


def test_outcomes_of_sessions_that_have_left_are_dropped(recorder: Recorder) -> None:
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    recorder.dispatcher.take([long(one), long(two)])
    one.member = None
    recorder.finish()
    assert [outcome.requests for outcome in recorder.delivered] == [two]


def test_an_internal_error_costs_one_outcome(recorder: Recorder) -> None:
    outcomes = [long(SubscriberRequests("broken")), long(SubscriberRequests("one"))]
    recorder.dispatcher.take(outcomes)
    recorder.finish()
    assert recorder.delivered == outcomes[1:]
    recorder.dispatcher.take(outcomes[1:])
    recorder.finish()
    assert len(recorder.delivered) == 2, "the dispatcher still works"


def test_an_internal_error_at_once_costs_one_outcome(recorder: Recorder) -> None:
    """Outcomes before and after it are delivered; one of a session that has left is not."""
    outcomes = [
        RequestOutcome(SubscriberRequests(member), None, NO_TOPICS) for member in ("one", "broken", None, "two")
    ]
    recorder.dispatcher.take(outcomes)
    assert recorder.delivered == [outcomes[0], outcomes[3]]
