"""Who is told what, in which order, and in whose turn."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.observe.logs import Log
from proxy.routing.pending_requests import RequestOutcome, SubscriberRequests
from proxy.transport import time_slice as turn
from proxy.upstream.ack_dispatcher import SHORT, AckDispatcher

LONG: Subscription = frozenset(("trades", f"S{number}") for number in range(SHORT + 1))


class Told:
    """What has been told. Whoever is named `broken` cannot be told anything."""

    def __init__(self) -> None:
        self.replies: list[RequestOutcome] = []
        self.pauses = 0
        self.teller = AckDispatcher(self.tell, Log("upstream"))

    def tell(self, answer: RequestOutcome) -> Iterator[None]:
        if answer.requests.member == "broken":
            raise RuntimeError("a bug")
        for _ in range(self.pauses):
            yield
        self.replies.append(answer)

    def finish(self) -> None:
        """Lets the teller's greenlet come to its end."""
        with gevent.Timeout(5):
            while repr(self.teller) != "<AckDispatcher 0 sessions due>":
                gevent.sleep(0)


@pytest.fixture
def told() -> Told:
    return Told()


def short(requests: SubscriberRequests) -> RequestOutcome:
    return RequestOutcome(requests, None, NO_TOPICS)


def long(requests: SubscriberRequests) -> RequestOutcome:
    return RequestOutcome(requests, None, LONG)


def test_what_is_short_is_told_at_once(told: Told) -> None:
    replies = [
        short(SubscriberRequests("one")),
        RequestOutcome(SubscriberRequests("two"), (405, "symbol limit exceeded"), None),
    ]
    told.teller.take(replies)
    assert told.replies == replies


def test_a_session_hears_its_answers_in_their_order_and_others_need_not_wait(told: Told) -> None:
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    first, second, other = long(one), short(one), short(two)
    told.teller.take([first])
    told.teller.take([second, other])
    assert told.replies == [other]
    told.finish()
    assert told.replies == [other, first, second]
    third = short(one)
    told.teller.take([third])
    assert told.replies[-1] is third, "nothing is due any more"


def test_many_answers_are_told_in_many_turns(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "SLICE_SECONDS", 0.0)
    replies = [short(SubscriberRequests(number)) for number in range(20)]
    told.teller.take(replies)
    heard = []
    with gevent.Timeout(5):
        while len(told.replies) < len(replies):
            heard.append(len(told.replies))
            gevent.sleep(0.000_01)
    assert told.replies == replies
    assert len(set(heard)) > 2, "nobody else had a turn between them"


def test_what_takes_several_turns_is_told_in_its_order(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes for a session that is just being told waits for its turn."""
    monkeypatch.setattr(turn, "SLICE_SECONDS", 0.0)
    told.pauses = 3
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    first, second, third, other = long(one), short(one), short(one), long(two)
    told.teller.take([first, other])
    for answer in (second, third):
        gevent.sleep(0.000_01)
        assert told.replies == [], "it is being told"
        told.teller.take([answer])
    told.finish()
    assert told.replies == [first, other, second, third], "nobody waits for all that another has asked for"


def test_who_has_left_is_not_told_any_more(told: Told) -> None:
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    told.teller.take([long(one), long(two)])
    one.member = None
    told.finish()
    assert [answer.requests for answer in told.replies] == [two]


def test_a_bug_costs_one_answer(told: Told) -> None:
    replies = [long(SubscriberRequests("broken")), long(SubscriberRequests("one"))]
    told.teller.take(replies)
    told.finish()
    assert told.replies == replies[1:]
    told.teller.take(replies[1:])
    told.finish()
    assert len(told.replies) == 2, "it goes on"
