"""The ledger against a small Alpaca: whatever sessions do and whatever Alpaca answers, the books are right.

`Alpaca` holds a set, a limit and some symbols that it refuses; a request that breaks a rule is refused whole. The state
machine lets sessions ask, give up, leave and come, and lets Alpaca answer, fall silent, change its rules or drop the
connection, in any order.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.protocol import market
from proxy.protocol.codec import JSON
from proxy.protocol.topics import NOTHING, Subscription, Topic
from proxy.routing import tally
from proxy.routing.claims import Answer, Seat
from proxy.routing.ledger import MOST_CLAIMS, PATIENCE, Ledger
from proxy.routing.request import REQUEST_BYTES, Request

SYMBOLS = ("A", "B", "C", "D", "X", "Y", "*")
TOPICS = st.frozensets(st.tuples(st.sampled_from(["trades", "quotes"]), st.sampled_from(SYMBOLS)), max_size=4)
NUMBERS = st.integers(0, 2)
POISON = st.sampled_from([{"X"}, {"X", "Y"}, set[str]()])
LIMITS = st.sampled_from([3, 6, 100])

LIMIT_EXCEEDED = (405, "symbol limit exceeded")
NOT_IN_THE_PLAN = (409, "insufficient subscription")


class Alpaca:
    """The other side: what it holds, and the rules by which it refuses."""

    def __init__(self, poison: Collection[str], limit: int) -> None:
        self.held: set[Topic] = set()
        self.poison = poison
        self.limit = limit

    def refuses(self, topics: Collection[Topic]) -> bool:
        """Whether a request to add these is refused."""
        return any(symbol in self.poison for _, symbol in topics) or len(self.held.union(topics)) > self.limit

    def answer(self, request: Request) -> bool:
        """Whether the request is carried out."""
        if not request.add:
            self.held.difference_update(request.topics)
        elif self.refuses(request.topics):
            return False
        else:
            self.held.update(request.topics)
        return True


@dataclass(eq=False)
class Asked:
    """A request of a session. `guilty`: Alpaca has refused something that it would refuse of this one by itself;
    `gone`: what the session has given up, or lost of other requests, since it asked."""

    add: Subscription
    remove: Subscription
    at: float
    denied: tuple[int, str] | None = None
    guilty: bool = False
    gone: Subscription = NOTHING


@dataclass(eq=False)
class Session:
    """What a session has been told, and what it waits for. `sure`: what Alpaca has confirmed of what it was told."""

    seat: Seat
    told: Subscription = NOTHING
    sure: Subscription = NOTHING
    waits: deque[Asked] = field(default_factory=deque)
    past: list[Asked] = field(default_factory=list)


class Books(RuleBasedStateMachine):
    @initialize(poison=POISON, limit=LIMITS, many=st.sampled_from([1, 2, tally.MANY]))
    def begin(self, poison: set[str], limit: int, many: int) -> None:
        """`many`: how large the sets are that are counted as a whole."""
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(tally, "MANY", many)
        self.ledger = Ledger()
        self.alpaca = Alpaca(poison, limit)
        self.now = 0.0
        self.sessions = [Session(Seat("first")), Session(Seat("second")), Session(Seat("third"))]
        self.making_room = False
        self.denials = 0

    # What is told

    def take(self, answers: list[Answer]) -> None:
        """One answer to each request, in their order; a late refusal besides."""
        for answer in answers:
            [session] = [session for session in self.sessions if session.seat is answer.seat]
            if answer.error is not None and answer.state is not None:
                self._late(session, answer)
                continue
            asked = session.waits.popleft()
            session.past.append(asked)
            assert answer.error is None or asked.denied == answer.error or (asked.guilty and asked.denied is None)
            if answer.error is None:
                self._acknowledged(session, asked, answer.state)
        assert all(session.told == session.seat.shown for session in self.sessions)

    def _acknowledged(self, session: Session, asked: Asked, state: Subscription | None) -> None:
        assert asked.denied is None
        new = (asked.add & session.seat.holds) - session.told - asked.gone
        assert new <= self.there() or self.now - asked.at >= PATIENCE, "an acknowledgement that is not true"
        assert state is not None
        assert state - asked.gone == (session.told | asked.add) - asked.remove - asked.gone
        session.told = state
        session.sure &= state

    def _late(self, session: Session, answer: Answer) -> None:
        """Refused after it was acknowledged: something that was asked for in one request is lost, and nothing else."""
        state = answer.state
        assert state is not None
        assert state <= session.told
        lost = session.told - state
        if answer.error == NOT_IN_THE_PLAN:
            unsure = [asked.add for asked in session.past if not asked.add <= session.sure]
            assert lost <= NOTHING.union(*unsure)
            assert state <= session.sure
        else:
            assert any(lost <= asked.add and self.alpaca.refuses(asked.add) for asked in session.past)
        session.told = state
        session.sure &= state
        for asked in session.waits:
            asked.gone |= lost

    def there(self) -> set[Topic]:
        """What Alpaca holds, and will hold when it has carried out the request under way."""
        request = self.ledger.request
        return self.alpaca.held.difference(() if request is None or request.add else request.topics)

    # What sessions do

    @rule(number=NUMBERS, add=TOPICS)
    def subscribe(self, number: int, add: Subscription) -> None:
        self.change(self.sessions[number], add, NOTHING)

    @rule(number=NUMBERS, remove=TOPICS)
    def unsubscribe(self, number: int, remove: Subscription) -> None:
        self.change(self.sessions[number], NOTHING, remove)

    @rule(number=NUMBERS, add=TOPICS)
    def replace(self, number: int, add: Subscription) -> None:
        self.change(self.sessions[number], add, self.sessions[number].seat.holds)

    def change(self, session: Session, add: Subscription, remove: Subscription) -> None:
        for asked in session.waits:
            asked.gone |= remove
        session.waits.append(Asked(add, remove - add, self.now, guilty=self.ledger.closed))
        self.take(self.ledger.change(session.seat, add, remove, self.now))

    @rule(number=NUMBERS)
    def ask_for_what_the_allowlist_denies(self, number: int) -> None:
        session = self.sessions[number]
        self.denials += 1
        error = (409, f"denied {self.denials}")
        session.waits.append(Asked(NOTHING, NOTHING, self.now, denied=error))
        self.take(self.ledger.deny(session.seat, *error, self.now))

    @rule(number=NUMBERS)
    def leave_and_come_again(self, number: int) -> None:
        gone, self.sessions[number] = self.sessions[number], Session(Seat("another"))
        self.ledger.leave(gone.seat)
        assert gone.seat.holds == NOTHING

    @rule(number=NUMBERS, requests=st.lists(TOPICS.filter(bool), max_size=3))
    def come_from_another_account(self, number: int, requests: list[Subscription]) -> None:
        self.ledger.leave(self.sessions[number].seat)
        session = self.sessions[number] = Session(Seat("moved"), told=NOTHING.union(*requests))
        session.past = [Asked(add, NOTHING, self.now) for add in requests]
        self.take(self.ledger.adopt(session.seat, requests))

    # What Alpaca does

    @rule(steps=st.integers(1, 5))
    def talk(self, steps: int) -> None:
        for _ in range(steps):
            if self.ledger.request is None:
                self.send()
            else:
                self.answer()

    def send(self) -> None:
        wanted, there = self.ledger.wanted, self.there()
        request = self.ledger.next_request()
        assert self.ledger.request is None or self.ledger.next_request() is None, "two requests under way"
        if request is None:
            assert wanted == self.ledger.acked == there
        elif request.add:
            assert request.topics
            assert there.isdisjoint(request.topics)
            assert wanted.issuperset(request.topics), "asked for though nobody wants it, or after a refusal"
            self.making_room = False
        else:
            assert request.topics
            assert there.issuperset(request.topics)
            assert wanted.isdisjoint(request.topics)
            assert wanted <= there or self.making_room, "removed before what is missing was added"

    def answer(self) -> None:
        request = self.ledger.request
        assert request is not None
        if self.alpaca.answer(request):
            self.take(self.ledger.confirmed())
            return
        self.making_room = True
        for session in self.sessions:
            for asked in session.waits:
                asked.guilty = asked.guilty or self.alpaca.refuses(asked.add)
        self.take(self.ledger.refused(*LIMIT_EXCEEDED))

    @rule(poison=POISON, limit=LIMITS)
    def drop(self, poison: set[str], limit: int) -> None:
        """The rules may have changed when the connection is there again."""
        self.lose(Alpaca(poison, limit))
        assert self.ledger.request is None

    @rule()
    def refuse_the_feed_or_serve_it_again(self) -> None:
        if self.ledger.closed:
            self.ledger.open()
            return
        self.lose(Alpaca(self.alpaca.poison, self.alpaca.limit))
        for session in self.sessions:
            for asked in session.waits:
                asked.guilty = bool(asked.add)
        self.take(self.ledger.close(*NOT_IN_THE_PLAN))
        assert not any(session.waits for session in self.sessions), "nobody is left to wait"
        assert all(session.told <= session.sure for session in self.sessions), "what was never confirmed is refused"

    def lose(self, then: Alpaca) -> None:
        for session in self.sessions:
            session.sure |= session.told & self.there()
        self.alpaca = then
        self.ledger.lost()

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.ledger.overdue(self.now))
        for session in self.sessions:
            assert all(self.now - asked.at < PATIENCE for asked in session.waits), "nobody waits longer"

    @rule()
    def settle(self) -> None:
        """Alpaca answers everything until there is nothing more to say."""
        for _ in range(200):
            if self.ledger.request is not None:
                self.answer()
            self.send()
            if self.ledger.request is None:
                break
        else:
            raise AssertionError("it never comes to an end")
        assert self.ledger.acked == self.ledger.wanted == self.alpaca.held
        for session in self.sessions:
            assert not session.waits
            assert session.seat.holds == session.told
            assert not any(symbol in self.alpaca.poison for _, symbol in session.told)

    def teardown(self) -> None:
        """Who leaves leaves nothing behind."""
        if not hasattr(self, "ledger"):
            return
        try:
            for number in range(3):
                self.leave_and_come_again(number)
            self.settle()
            assert repr(self.ledger) == "<Ledger 0 wanted, 0 acked, 0 claims>"
        finally:
            self.patch.undo()

    @invariant()
    def wanted_is_the_union(self) -> None:
        assert self.ledger.wanted == NOTHING.union(*(session.seat.holds for session in self.sessions))
        assert self.ledger.idle is not bool(self.ledger.wanted)
        assert dict(self.ledger.channels) == dict(Counter(channel for channel, _ in self.ledger.wanted))

    @invariant()
    def acked_is_what_alpaca_holds(self) -> None:
        assert self.ledger.acked == self.there()

    @invariant()
    def the_differences_are_those_of_wanted_and_acked(self) -> None:
        """They are kept, not computed: thousands of topics may be in them."""
        assert self.ledger._missing.keys() == self.ledger.wanted - self.ledger.acked
        assert self.ledger._surplus == self.ledger.acked - self.ledger.wanted


TestBooks = Books.TestCase
TestBooks.settings = settings(stateful_step_count=40)


# The same, in single steps


def trades(*symbols: str) -> Subscription:
    return frozenset(("trades", symbol) for symbol in symbols)


def many(count: int, prefix: str = "SYMBOL") -> Subscription:
    return trades(*(f"{prefix}{number:05}" for number in range(count)))


def settle(ledger: Ledger, refuse: Collection[str] = ()) -> list[Answer]:
    """Carries out everything; requests that name one of these symbols are refused whole."""
    answers: list[Answer] = []
    for _ in range(1000):
        request = ledger.next_request()
        if request is None:
            return answers
        bad = request.add and any(symbol in refuse for _, symbol in request.topics)
        answers += ledger.refused(*LIMIT_EXCEEDED) if bad else ledger.confirmed()
    raise AssertionError("it never comes to an end")


Told = tuple[str, tuple[int, str] | None, Subscription | None]


def told(answers: list[Answer]) -> list[Told]:
    return [(answer.seat.member, answer.error, answer.state) for answer in answers]


def test_a_refusal_finds_its_author_and_nobody_else_hears_of_it() -> None:
    """The claims are asked for one by one, oldest first."""
    ledger = Ledger()
    good, bad, late = Seat("good"), Seat("bad"), Seat("late")
    for seat, symbols in ((good, "AB"), (bad, "AX"), (late, "C")):
        assert ledger.change(seat, trades(*symbols), NOTHING, 0.0) == []
    assert told(settle(ledger, {"X"})) == [
        ("good", None, trades("A", "B")),
        ("bad", LIMIT_EXCEEDED, None),
        ("late", None, trades("C")),
    ]
    assert ledger.wanted == ledger.acked == trades("A", "B", "C")
    assert settle(ledger) == [], "the refused topics are not asked for again"


def test_after_a_reconnect_a_refusal_still_finds_its_author() -> None:
    """It comes as the error, then the state as it now is; what the author was told of other requests stays."""
    ledger = Ledger()
    one, two = Seat("one"), Seat("two")
    ledger.change(one, trades("A"), NOTHING, 0.0)
    ledger.change(two, trades("A"), NOTHING, 0.0)
    ledger.change(two, trades("X", "C"), NOTHING, 0.0)
    settle(ledger)
    ledger.lost()
    assert told(settle(ledger, {"X"})) == [("two", LIMIT_EXCEEDED, trades("A"))]
    assert ledger.wanted == ledger.acked == trades("A")


def test_a_reconnect_asks_for_everything_together() -> None:
    """Even if claims were being asked for one by one."""
    ledger = Ledger()
    for symbol in "ABX":
        ledger.change(Seat(symbol), trades(symbol), NOTHING, 0.0)
    ledger.next_request()
    ledger.refused(*LIMIT_EXCEEDED)
    assert ledger.next_request() == Request(True, (("trades", "A"),))
    ledger.lost()
    request = ledger.next_request()
    assert request is not None
    assert set(request.topics) == trades("A", "B", "X")


def test_who_is_left_when_the_author_goes_is_not_blamed() -> None:
    """The author leaves while its request is under way; the answer must not hit who shared it."""
    for gone in ("left", "given up"):
        ledger = Ledger()
        author, other = Seat("author"), Seat("other")
        ledger.change(author, trades("X"), NOTHING, 0.0)
        ledger.change(other, trades("A"), NOTHING, 0.0)
        request = ledger.next_request()
        assert request is not None
        assert set(request.topics) == trades("X", "A")
        if gone == "left":
            ledger.leave(author)
        else:
            ledger.change(author, NOTHING, trades("X"), 0.0)
        assert ledger.refused(*LIMIT_EXCEEDED) == []
        assert told(settle(ledger, {"X"})) == [("other", None, trades("A"))]
        ledger.change(other, trades("Y"), NOTHING, 0.0)
        assert told(settle(ledger, {"Y"})) == [("other", LIMIT_EXCEEDED, None)], "the next refusal finds its author"


def test_what_is_given_up_on_trial_is_not_blamed() -> None:
    ledger = Ledger()
    first, second = Seat("first"), Seat("second")
    ledger.change(first, trades("A", "X"), NOTHING, 0.0)
    ledger.change(second, trades("B"), NOTHING, 0.0)
    ledger.next_request()
    ledger.refused(*LIMIT_EXCEEDED)
    request = ledger.next_request()
    assert request is not None
    assert set(request.topics) == trades("A", "X")
    assert ledger.change(first, NOTHING, trades("X"), 0.0) == []
    assert ledger.refused(*LIMIT_EXCEEDED) == []
    assert told(settle(ledger, {"X"})) == [
        ("first", None, trades("A", "X")),  # to the first request; the answer to the second comes with it
        ("first", None, trades("A")),
        ("second", None, trades("B")),
    ]


def test_a_late_refusal_leaves_what_later_requests_ask_for() -> None:
    """Something refused after it was acknowledged, while the session waits for a part of it again."""
    ledger = Ledger()
    seat, other = Seat("seat"), Seat("other")
    ledger.change(seat, trades("A", "X"), NOTHING, 0.0)
    assert told(ledger.overdue(PATIENCE)) == [("seat", None, trades("A", "X"))]
    ledger.change(seat, trades("A", "Y"), NOTHING, PATIENCE)
    ledger.change(other, trades("B"), NOTHING, PATIENCE)
    assert told(settle(ledger, {"X", "Y"})) == [
        ("seat", LIMIT_EXCEEDED, NOTHING),
        ("seat", LIMIT_EXCEEDED, None),
        ("other", None, trades("B")),
    ]
    assert seat.shown == seat.holds == NOTHING


def test_a_request_of_many_pieces_is_refused_whole() -> None:
    ledger = Ledger()
    seat = Seat("seat")
    ledger.change(seat, many(5000) | trades("X"), NOTHING, 0.0)
    assert told(settle(ledger, {"X"})) == [("seat", LIMIT_EXCEEDED, None)]
    assert not ledger.acked
    assert not ledger.wanted


@pytest.mark.parametrize(
    "symbol",
    [
        "S{:05}",
        "S{:05}" + "x" * 58,
        "é☃{:05}",
        '"\\{:05}',
        "\x00\x1f{:05}",
    ],
)
def test_requests_are_small(symbol: str) -> None:
    """In either codec, whatever the symbols need to be written; each piece is as large as it may be."""
    ledger = Ledger()
    channels = ("trades", "quotes", "something that nobody knows")
    wanted = frozenset((channel, symbol.format(number)) for channel in channels for number in range(1000))
    seat = Seat("seat")
    ledger.change(seat, wanted, NOTHING, 0.0)
    for add in (True, False):
        asked: set[Topic] = set()
        sizes = []
        while request := ledger.next_request():
            assert request.add is add
            asked |= set(request.topics)
            sizes.append(len(JSON.encode(market.change(add, request.topics))))
            assert len(msgpack.packb(market.change(add, request.topics))) <= REQUEST_BYTES
            ledger.confirmed()
        assert asked == wanted
        assert max(sizes) <= REQUEST_BYTES
        assert min(sizes[:-1]) > REQUEST_BYTES - 500
        ledger.leave(seat)


def test_a_small_request_is_not_stuck_behind_a_large_one() -> None:
    ledger = Ledger()
    large, small = Seat("large"), Seat("small")
    ledger.change(large, many(10_000), NOTHING, 0.0)
    ledger.next_request()
    ledger.change(small, trades("SPY"), NOTHING, 0.0)
    ledger.confirmed()
    request = ledger.next_request()
    assert request is not None
    assert ("trades", "SPY") in request.topics
    assert len(request.topics) > 100  # the rest of its room is not wasted
    assert told(ledger.confirmed()) == [("small", None, trades("SPY"))]


def test_large_requests_take_turns() -> None:
    ledger = Ledger()
    seats = [Seat(name) for name in "abc"]
    for seat in seats:
        ledger.change(seat, many(3000, seat.member), NOTHING, 0.0)
    first_letters = []
    while request := ledger.next_request():
        first_letters.append(request.topics[0][1][0])
        ledger.confirmed()
    assert first_letters[:4] == ["a", "b", "c", "a"]


def test_additions_go_before_removals_but_make_room_when_there_is_none() -> None:
    ledger = Ledger()
    seat = Seat("seat")
    ledger.change(seat, trades("A"), NOTHING, 0.0)
    settle(ledger)
    ledger.change(seat, NOTHING, trades("A"), 0.0)
    ledger.change(seat, trades("B"), NOTHING, 0.0)
    assert ledger.next_request() == Request(True, (("trades", "B"),))
    assert ledger.refused(*LIMIT_EXCEEDED) == []
    assert ledger.next_request() == Request(False, (("trades", "A"),))
    ledger.confirmed()
    assert ledger.next_request() == Request(True, (("trades", "B"),))
    assert told(ledger.confirmed()) == [("seat", None, trades("B"))]
    ledger.change(seat, NOTHING, trades("B"), 0.0)
    ledger.change(seat, trades("C"), NOTHING, 0.0)
    assert ledger.next_request() == Request(True, (("trades", "C"),)), "the room was made once"


@pytest.mark.parametrize("refused", [True, False])
def test_a_request_that_replaces_does_both_or_nothing(refused: bool) -> None:
    """As `listen` does on the trading stream; what is asked for meanwhile is not lost with it."""
    ledger = Ledger()
    seat = Seat("seat")
    ledger.change(seat, trades("A", "B"), NOTHING, 0.0)
    settle(ledger)
    assert ledger.change(seat, trades("X"), trades("A", "B"), 0.0) == []
    assert ledger.change(seat, trades("A"), NOTHING, 0.0) == []
    answers = settle(ledger, {"X"} if refused else ())
    if refused:
        assert told(answers) == [("seat", LIMIT_EXCEEDED, None), ("seat", None, trades("A", "B"))]
    else:
        assert told(answers) == [("seat", None, trades("X")), ("seat", None, trades("A", "X"))]
    assert ledger.wanted == ledger.acked == seat.holds == seat.shown


def test_what_is_being_removed_is_not_there_for_who_asks_now() -> None:
    """An acknowledgement before Alpaca has added it again would be of a gap."""
    ledger = Ledger()
    one, two = Seat("one"), Seat("two")
    ledger.change(one, trades("A"), NOTHING, 0.0)
    settle(ledger)
    ledger.leave(one)
    assert ledger.next_request() == Request(False, (("trades", "A"),))
    assert ledger.change(two, trades("A"), NOTHING, 0.0) == []
    assert ledger.confirmed() == []
    assert ledger.next_request() == Request(True, (("trades", "A"),))
    assert told(ledger.confirmed()) == [("two", None, trades("A"))]


def test_a_removal_that_is_refused_is_let_be() -> None:
    ledger = Ledger()
    seat = Seat("seat")
    ledger.change(seat, trades("A"), NOTHING, 0.0)
    settle(ledger)
    assert told(ledger.change(seat, NOTHING, trades("A"), 0.0)) == [("seat", None, NOTHING)]
    assert ledger.next_request() == Request(False, (("trades", "A"),))
    assert ledger.change(seat, trades("A"), NOTHING, 0.0) == []
    assert ledger.refused(500, "internal error") == []
    assert told(settle(ledger)) == [("seat", None, trades("A"))]
    ledger.leave(seat)
    assert ledger.next_request() == Request(False, (("trades", "A"),))
    assert ledger.refused(500, "internal error") == []
    assert ledger.next_request() is None


def test_what_alpaca_has_confirmed_already_is_acknowledged_at_once() -> None:
    ledger = Ledger()
    one, two = Seat("one"), Seat("two")
    ledger.change(one, trades("A", "B"), NOTHING, 0.0)
    settle(ledger)
    assert told(ledger.change(two, trades("A"), NOTHING, 0.0)) == [("two", None, trades("A"))]
    assert told(ledger.change(two, NOTHING, NOTHING, 0.0)) == [("two", None, trades("A"))]
    assert told(ledger.change(two, NOTHING, trades("C"), 0.0)) == [("two", None, trades("A"))]
    assert ledger.next_request() is None


def test_each_request_stands_for_itself() -> None:
    """What a refused one asked for too is not refused with it."""
    ledger = Ledger()
    seat = Seat("seat")
    ledger.change(seat, trades("A", "X"), NOTHING, 0.0)
    ledger.change(seat, trades("A"), NOTHING, 0.0)
    ledger.change(seat, trades("X"), NOTHING, 0.0)
    assert told(settle(ledger, {"X"})) == [
        ("seat", LIMIT_EXCEEDED, None),
        ("seat", None, trades("A")),
        ("seat", LIMIT_EXCEEDED, None),
    ]
    assert ledger.acked == seat.holds == trades("A")


def test_what_is_only_remembered_is_not_confirmed() -> None:
    """Who asks for it again waits for Alpaca again; once it has confirmed, there is nothing more to ask."""
    ledger = Ledger()
    seat = Seat("seat")
    ledger.change(seat, trades("A"), NOTHING, 0.0)
    assert told(ledger.overdue(PATIENCE)) == [("seat", None, trades("A"))]
    assert ledger.change(seat, trades("A"), NOTHING, PATIENCE) == []
    assert told(settle(ledger)) == [("seat", None, trades("A"))]
    for _ in range(100):
        assert told(ledger.change(seat, trades("A"), NOTHING, PATIENCE)) == [("seat", None, trades("A"))]
    assert len(seat.claims) == 2


def test_who_resends_all_it_has_does_not_risk_it() -> None:
    """Python's SDKs do so at every change: the one symbol that is new may be refused, the others stay."""
    ledger = Ledger()
    seat = Seat("seat")
    ledger.change(seat, trades("A", "B"), NOTHING, 0.0)
    settle(ledger)
    for _ in range(100):
        assert told(ledger.change(seat, trades("A", "B"), NOTHING, 0.0)) == [("seat", None, trades("A", "B"))]
    assert len(seat.claims) == 1
    ledger.change(seat, trades("A", "B", "X"), NOTHING, 0.0)
    assert told(settle(ledger, {"X"})) == [("seat", LIMIT_EXCEEDED, None)]
    assert ledger.acked == seat.shown == trades("A", "B")


def test_asking_on_and_on_while_alpaca_is_away() -> None:
    """What is kept of it stays small, and all of it is asked for in the end."""
    ledger = Ledger()
    seat, other = Seat("seat"), Seat("other")
    ledger.change(other, trades("A"), NOTHING, 0.0)
    ledger.overdue(PATIENCE)
    for number in range(500):
        ledger.change(seat, trades("A", f"S{number}", f"S{number + 1}"), NOTHING, 10.0 * number)
        ledger.overdue(10.0 * number + PATIENCE)
        assert len(seat.claims) <= MOST_CLAIMS
    everything = trades("A", *(f"S{number}" for number in range(501)))
    assert ledger.wanted == seat.holds == seat.shown == everything
    assert settle(ledger) == []
    assert ledger.acked == everything
    ledger.leave(other)
    assert told(ledger.change(seat, NOTHING, everything - trades("A"), 9999.0)) == [("seat", None, trades("A"))]
    settle(ledger)
    assert ledger.acked == trades("A")
    ledger.leave(seat)
    settle(ledger)
    assert repr(ledger) == "<Ledger 0 wanted, 0 acked, 0 claims>"


def test_a_feed_that_is_not_in_the_plan_refuses_every_request_until_it_is() -> None:
    """What was acknowledged for the remembered state is refused too; what Alpaca has confirmed once is not."""
    ledger = Ledger()
    confirmed, remembered, waiting, later = Seat("confirmed"), Seat("remembered"), Seat("waiting"), Seat("later")
    ledger.change(confirmed, trades("K"), NOTHING, 0.0)
    settle(ledger)
    ledger.lost()
    for symbol in ("R", "S"):
        ledger.change(remembered, trades(symbol), NOTHING, -PATIENCE)
        assert told(ledger.overdue(0.0)) == [("remembered", None, remembered.holds)]
    ledger.change(waiting, trades("A"), NOTHING, 0.0)
    ledger.change(waiting, NOTHING, trades("C"), 0.0)
    ledger.change(waiting, trades("B"), NOTHING, 0.0)
    assert not ledger.closed
    assert told(ledger.close(*NOT_IN_THE_PLAN)) == [
        ("remembered", NOT_IN_THE_PLAN, NOTHING),
        ("waiting", NOT_IN_THE_PLAN, None),
        ("waiting", None, NOTHING),
        ("waiting", NOT_IN_THE_PLAN, None),
    ]
    assert ledger.closed
    assert told(ledger.change(later, trades("B"), NOTHING, 0.0)) == [("later", NOT_IN_THE_PLAN, None)]
    assert told(ledger.change(later, NOTHING, trades("B"), 0.0)) == [("later", None, NOTHING)]
    assert ledger.wanted == trades("K")
    ledger.open()
    ledger.change(later, trades("B"), NOTHING, 0.0)
    assert told(settle(ledger)) == [("later", None, trades("B"))]
    assert ledger.acked == trades("K", "B")


def test_what_was_confirmed_after_its_acknowledgement_is_confirmed() -> None:
    ledger = Ledger()
    seat = Seat("seat")
    ledger.change(seat, trades("A"), NOTHING, -PATIENCE)
    ledger.overdue(0.0)
    settle(ledger)
    ledger.lost()
    assert ledger.close(*NOT_IN_THE_PLAN) == []
    assert seat.shown == seat.holds == trades("A")


def test_a_seat_from_another_account_is_refused_request_by_request() -> None:
    ledger = Ledger()
    seat = Seat("seat")
    assert ledger.adopt(seat, [trades("A", "B"), trades("X", "Y")]) == []
    assert seat.shown == trades("A", "B", "X", "Y")
    assert told(settle(ledger, {"X"})) == [("seat", LIMIT_EXCEEDED, trades("A", "B"))]
    assert ledger.acked == seat.holds == trades("A", "B")
    assert ledger.adopt(Seat("holds nothing"), []) == []


def test_a_seat_from_another_account_where_alpaca_does_not_serve_the_feed() -> None:
    ledger = Ledger()
    ledger.close(*NOT_IN_THE_PLAN)
    assert told(ledger.adopt(Seat("seat"), [trades("A"), trades("B")])) == [("seat", NOT_IN_THE_PLAN, NOTHING)]
    assert ledger.adopt(Seat("holds nothing"), []) == []
    assert ledger.idle


def test_answers_when_nothing_is_under_way() -> None:
    """Alpaca may say anything at any time."""
    ledger = Ledger()
    ledger.change(Seat("seat"), trades("A"), NOTHING, 0.0)
    assert ledger.confirmed() == ledger.refused(*LIMIT_EXCEEDED) == []
    assert ledger.next_request() == Request(True, (("trades", "A"),))


def test_seats_and_ledgers_name_themselves() -> None:
    ledger = Ledger()
    seat = Seat("momentum")
    ledger.change(seat, trades("A", "B"), NOTHING, 0.0)
    assert repr(seat) == "<Seat momentum 0 topics, 1 waiting>"
    assert repr(ledger) == "<Ledger 2 wanted, 0 acked, 1 claims>"


# What it costs


def seconds(work: Callable[[], object]) -> float:
    """Of CPU."""
    began = time.process_time()
    work()
    return time.process_time() - began


def test_a_change_costs_what_its_topics_cost_however_many_hold_them() -> None:
    """8,000 topics, held by 200 seats already: a few passes over a set, and nothing in it waits for the 200."""
    ledger = Ledger()
    topics = many(8000)
    for number in range(200):
        ledger.change(Seat(f"seat {number}"), frozenset(topics), NOTHING, 0.0)
    counting = min(seconds(lambda: dict.fromkeys(topics, 0) | dict.fromkeys(topics, 1)) for _ in range(7))
    asking = 0.0
    while not asking or ledger.request:
        ledger.confirmed()
        asking = max(asking, seconds(ledger.next_request))
    assert asking < 60 * counting

    def come_and_go() -> None:
        seat = Seat("new")
        assert ledger.change(seat, topics, NOTHING, 0.0)
        ledger.leave(seat)

    assert min(seconds(come_and_go) for _ in range(7)) < 40 * counting
