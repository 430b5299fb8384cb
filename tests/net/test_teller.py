"""Who is told what, in which order, and in whose turn."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from proxy.logs import Log
from proxy.net import turn
from proxy.net.teller import SHORT, Teller
from proxy.protocol.topics import NOTHING, Subscription
from proxy.routing.claims import Answer, Seat

LONG: Subscription = frozenset(("trades", f"S{number}") for number in range(SHORT + 1))


class Told:
    """What has been told. Whoever is named `broken` cannot be told anything."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.pauses = 0
        self.teller = Teller(self.tell, Log("upstream"))

    def tell(self, answer: Answer) -> Iterator[None]:
        if answer.seat.member == "broken":
            raise RuntimeError("a bug")
        for _ in range(self.pauses):
            yield
        self.answers.append(answer)

    def finish(self) -> None:
        """Lets the teller's greenlet come to its end."""
        with gevent.Timeout(5):
            while repr(self.teller) != "<Teller 0 sessions due>":
                gevent.sleep(0)


@pytest.fixture
def told() -> Told:
    return Told()


def short(seat: Seat) -> Answer:
    return Answer(seat, None, NOTHING)


def long(seat: Seat) -> Answer:
    return Answer(seat, None, LONG)


def test_what_is_short_is_told_at_once(told: Told) -> None:
    answers = [short(Seat("one")), Answer(Seat("two"), (405, "symbol limit exceeded"), None)]
    told.teller.take(answers)
    assert told.answers == answers


def test_a_session_hears_its_answers_in_their_order_and_others_need_not_wait(told: Told) -> None:
    one, two = Seat("one"), Seat("two")
    first, second, other = long(one), short(one), short(two)
    told.teller.take([first])
    told.teller.take([second, other])
    assert told.answers == [other]
    told.finish()
    assert told.answers == [other, first, second]
    third = short(one)
    told.teller.take([third])
    assert told.answers[-1] is third, "nothing is due any more"


def test_many_answers_are_told_in_many_turns(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "TURN_SECONDS", 0.0)
    answers = [short(Seat(number)) for number in range(20)]
    told.teller.take(answers)
    heard = []
    with gevent.Timeout(5):
        while len(told.answers) < len(answers):
            heard.append(len(told.answers))
            gevent.sleep(0.000_01)
    assert told.answers == answers
    assert len(set(heard)) > 2, "nobody else had a turn between them"


def test_what_takes_several_turns_is_told_in_its_order(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes for a session that is just being told waits for its turn."""
    monkeypatch.setattr(turn, "TURN_SECONDS", 0.0)
    told.pauses = 3
    one, two = Seat("one"), Seat("two")
    first, second, third, other = long(one), short(one), short(one), long(two)
    told.teller.take([first, other])
    for answer in (second, third):
        gevent.sleep(0.000_01)
        assert told.answers == [], "it is being told"
        told.teller.take([answer])
    told.finish()
    assert told.answers == [first, other, second, third], "nobody waits for all that another has asked for"


def test_who_has_left_is_not_told_any_more(told: Told) -> None:
    one, two = Seat("one"), Seat("two")
    told.teller.take([long(one), long(two)])
    one.member = None
    told.finish()
    assert [answer.seat for answer in told.answers] == [two]


def test_a_bug_costs_one_answer(told: Told) -> None:
    answers = [long(Seat("broken")), long(Seat("one"))]
    told.teller.take(answers)
    told.finish()
    assert told.answers == answers[1:]
    told.teller.take(answers[1:])
    told.finish()
    assert len(told.answers) == 2, "it goes on"
