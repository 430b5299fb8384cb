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

from proxy.alpaca import market
from proxy.alpaca.codec import JSON
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic
from proxy.routing import topic_ref_counts as ref_counts
from proxy.routing.pending_requests import RequestOutcome, SubscriberRequests
from proxy.routing.reconciler import ACK_SECONDS, MAX_REQUESTS, SubscriptionReconciler
from proxy.routing.request_builder import REQUEST_BYTES, UpstreamRequest

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

    def answer(self, request: UpstreamRequest) -> bool:
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
    gone: Subscription = NO_TOPICS


@dataclass(eq=False)
class Session:
    """What a session has been told, and what it waits for. `sure`: what Alpaca has confirmed of what it was told."""

    requests: SubscriberRequests
    told: Subscription = NO_TOPICS
    sure: Subscription = NO_TOPICS
    waits: deque[Asked] = field(default_factory=deque)
    past: list[Asked] = field(default_factory=list)


class Books(RuleBasedStateMachine):
    @initialize(poison=POISON, limit=LIMITS, many=st.sampled_from([1, 2, ref_counts.MANY]))
    def begin(self, poison: set[str], limit: int, many: int) -> None:
        """`many`: how large the sets are that are counted as a whole."""
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(ref_counts, "MANY", many)
        self.reconciler = SubscriptionReconciler()
        self.alpaca = Alpaca(poison, limit)
        self.now = 0.0
        self.sessions = [
            Session(SubscriberRequests("first")),
            Session(SubscriberRequests("second")),
            Session(SubscriberRequests("third")),
        ]
        self.making_room = False
        self.denials = 0

    # What is told

    def take(self, answers: list[RequestOutcome]) -> None:
        """One answer to each request, in their order; a late refusal besides."""
        for answer in answers:
            [session] = [session for session in self.sessions if session.requests is answer.requests]
            if answer.error is not None and answer.state is not None:
                self._late(session, answer)
                continue
            asked = session.waits.popleft()
            session.past.append(asked)
            assert answer.error is None or asked.denied == answer.error or (asked.guilty and asked.denied is None)
            if answer.error is None:
                self._acknowledged(session, asked, answer.state)
        assert all(session.told == session.requests.acknowledged for session in self.sessions)

    def _acknowledged(self, session: Session, asked: Asked, state: Subscription | None) -> None:
        assert asked.denied is None
        new = (asked.add & session.requests.holds) - session.told - asked.gone
        assert new <= self.there() or self.now - asked.at >= ACK_SECONDS, "an acknowledgement that is not true"
        assert state is not None
        assert state - asked.gone == (session.told | asked.add) - asked.remove - asked.gone
        session.told = state
        session.sure &= state

    def _late(self, session: Session, answer: RequestOutcome) -> None:
        """Refused after it was acknowledged: something that was asked for in one request is lost, and nothing else."""
        state = answer.state
        assert state is not None
        assert state <= session.told
        lost = session.told - state
        if answer.error == NOT_IN_THE_PLAN:
            unsure = [asked.add for asked in session.past if not asked.add <= session.sure]
            assert lost <= NO_TOPICS.union(*unsure)
            assert state <= session.sure
        else:
            assert any(lost <= asked.add and self.alpaca.refuses(asked.add) for asked in session.past)
        session.told = state
        session.sure &= state
        for asked in session.waits:
            asked.gone |= lost

    def there(self) -> set[Topic]:
        """What Alpaca holds, and will hold when it has carried out the request under way."""
        request = self.reconciler.request
        return self.alpaca.held.difference(() if request is None or request.add else request.topics)

    # What sessions do

    @rule(number=NUMBERS, add=TOPICS)
    def subscribe(self, number: int, add: Subscription) -> None:
        self.change(self.sessions[number], add, NO_TOPICS)

    @rule(number=NUMBERS, remove=TOPICS)
    def unsubscribe(self, number: int, remove: Subscription) -> None:
        self.change(self.sessions[number], NO_TOPICS, remove)

    @rule(number=NUMBERS, add=TOPICS)
    def replace(self, number: int, add: Subscription) -> None:
        self.change(self.sessions[number], add, self.sessions[number].requests.holds)

    def change(self, session: Session, add: Subscription, remove: Subscription) -> None:
        for asked in session.waits:
            asked.gone |= remove
        session.waits.append(Asked(add, remove - add, self.now, guilty=self.reconciler.closed))
        self.take(self.reconciler.change(session.requests, add, remove, self.now))

    @rule(number=NUMBERS)
    def ask_for_what_the_allowlist_denies(self, number: int) -> None:
        session = self.sessions[number]
        self.denials += 1
        error = (409, f"denied {self.denials}")
        session.waits.append(Asked(NO_TOPICS, NO_TOPICS, self.now, denied=error))
        self.take(self.reconciler.deny(session.requests, *error, self.now))

    @rule(number=NUMBERS)
    def leave_and_come_again(self, number: int) -> None:
        gone, self.sessions[number] = self.sessions[number], Session(SubscriberRequests("another"))
        self.reconciler.leave(gone.requests)
        assert gone.requests.holds == NO_TOPICS

    @rule(number=NUMBERS, requests=st.lists(TOPICS.filter(bool), max_size=3))
    def come_from_another_account(self, number: int, requests: list[Subscription]) -> None:
        self.reconciler.leave(self.sessions[number].requests)
        session = self.sessions[number] = Session(SubscriberRequests("moved"), told=NO_TOPICS.union(*requests))
        session.past = [Asked(add, NO_TOPICS, self.now) for add in requests]
        self.take(self.reconciler.adopt(session.requests, requests))

    # What Alpaca does

    @rule(steps=st.integers(1, 5))
    def talk(self, steps: int) -> None:
        for _ in range(steps):
            if self.reconciler.request is None:
                self.send()
            else:
                self.answer()

    def send(self) -> None:
        wanted, there = self.reconciler.wanted, self.there()
        request = self.reconciler.next_request()
        assert self.reconciler.request is None or self.reconciler.next_request() is None, "two requests under way"
        if request is None:
            assert wanted == self.reconciler.acked == there
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
        request = self.reconciler.request
        assert request is not None
        if self.alpaca.answer(request):
            self.take(self.reconciler.confirmed())
            return
        self.making_room = True
        for session in self.sessions:
            for asked in session.waits:
                asked.guilty = asked.guilty or self.alpaca.refuses(asked.add)
        self.take(self.reconciler.refused(*LIMIT_EXCEEDED))

    @rule(poison=POISON, limit=LIMITS)
    def remove(self, poison: set[str], limit: int) -> None:
        """The rules may have changed when the connection is there again."""
        self.lose(Alpaca(poison, limit))
        assert self.reconciler.request is None

    @rule()
    def refuse_the_feed_or_serve_it_again(self) -> None:
        if self.reconciler.closed:
            self.reconciler.open()
            return
        self.lose(Alpaca(self.alpaca.poison, self.alpaca.limit))
        for session in self.sessions:
            for asked in session.waits:
                asked.guilty = bool(asked.add)
        self.take(self.reconciler.close(*NOT_IN_THE_PLAN))
        assert not any(session.waits for session in self.sessions), "nobody is left to wait"
        assert all(session.told <= session.sure for session in self.sessions), "what was never confirmed is refused"

    def lose(self, then: Alpaca) -> None:
        for session in self.sessions:
            session.sure |= session.told & self.there()
        self.alpaca = then
        self.reconciler.lost()

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.reconciler.overdue(self.now))
        for session in self.sessions:
            assert all(self.now - asked.at < ACK_SECONDS for asked in session.waits), "nobody waits longer"

    @rule()
    def settle(self) -> None:
        """Alpaca answers everything until there is nothing more to say."""
        for _ in range(200):
            if self.reconciler.request is not None:
                self.answer()
            self.send()
            if self.reconciler.request is None:
                break
        else:
            raise AssertionError("it never comes to an end")
        assert self.reconciler.acked == self.reconciler.wanted == self.alpaca.held
        for session in self.sessions:
            assert not session.waits
            assert session.requests.holds == session.told
            assert not any(symbol in self.alpaca.poison for _, symbol in session.told)

    def teardown(self) -> None:
        """Who leaves leaves nothing behind."""
        if not hasattr(self, "reconciler"):
            return
        try:
            for number in range(3):
                self.leave_and_come_again(number)
            self.settle()
            assert repr(self.reconciler) == "<SubscriptionReconciler 0 wanted, 0 acked, 0 requests>"
        finally:
            self.patch.undo()

    @invariant()
    def wanted_is_the_union(self) -> None:
        assert self.reconciler.wanted == NO_TOPICS.union(*(session.requests.holds for session in self.sessions))
        assert self.reconciler.idle is not bool(self.reconciler.wanted)
        assert dict(self.reconciler.channels) == dict(Counter(channel for channel, _ in self.reconciler.wanted))

    @invariant()
    def acked_is_what_alpaca_holds(self) -> None:
        assert self.reconciler.acked == self.there()

    @invariant()
    def the_differences_are_those_of_wanted_and_acked(self) -> None:
        """They are kept, not computed: thousands of topics may be in them."""
        assert self.reconciler._missing.keys() == self.reconciler.wanted - self.reconciler.acked
        assert self.reconciler._surplus == self.reconciler.acked - self.reconciler.wanted


TestBooks = Books.TestCase
TestBooks.settings = settings(stateful_step_count=40)


# The same, in single steps


def trades(*symbols: str) -> Subscription:
    return frozenset(("trades", symbol) for symbol in symbols)


def many(count: int, prefix: str = "SYMBOL") -> Subscription:
    return trades(*(f"{prefix}{number:05}" for number in range(count)))


def settle(reconciler: SubscriptionReconciler, refuse: Collection[str] = ()) -> list[RequestOutcome]:
    """Carries out everything; requests that name one of these symbols are refused whole."""
    answers: list[RequestOutcome] = []
    for _ in range(1000):
        request = reconciler.next_request()
        if request is None:
            return answers
        bad = request.add and any(symbol in refuse for _, symbol in request.topics)
        answers += reconciler.refused(*LIMIT_EXCEEDED) if bad else reconciler.confirmed()
    raise AssertionError("it never comes to an end")


Told = tuple[str, tuple[int, str] | None, Subscription | None]


def told(answers: list[RequestOutcome]) -> list[Told]:
    return [(answer.requests.member, answer.error, answer.state) for answer in answers]


def test_a_refusal_finds_its_author_and_nobody_else_hears_of_it() -> None:
    """The claims are asked for one by one, oldest first."""
    reconciler = SubscriptionReconciler()
    good, bad, late = SubscriberRequests("good"), SubscriberRequests("bad"), SubscriberRequests("late")
    for requests, symbols in ((good, "AB"), (bad, "AX"), (late, "C")):
        assert reconciler.change(requests, trades(*symbols), NO_TOPICS, 0.0) == []
    assert told(settle(reconciler, {"X"})) == [
        ("good", None, trades("A", "B")),
        ("bad", LIMIT_EXCEEDED, None),
        ("late", None, trades("C")),
    ]
    assert reconciler.wanted == reconciler.acked == trades("A", "B", "C")
    assert settle(reconciler) == [], "the refused topics are not asked for again"


def test_after_a_reconnect_a_refusal_still_finds_its_author() -> None:
    """It comes as the error, then the state as it now is; what the author was told of other requests stays."""
    reconciler = SubscriptionReconciler()
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    reconciler.change(one, trades("A"), NO_TOPICS, 0.0)
    reconciler.change(two, trades("A"), NO_TOPICS, 0.0)
    reconciler.change(two, trades("X", "C"), NO_TOPICS, 0.0)
    settle(reconciler)
    reconciler.lost()
    assert told(settle(reconciler, {"X"})) == [("two", LIMIT_EXCEEDED, trades("A"))]
    assert reconciler.wanted == reconciler.acked == trades("A")


def test_a_reconnect_asks_for_everything_together() -> None:
    """Even if claims were being asked for one by one."""
    reconciler = SubscriptionReconciler()
    for symbol in "ABX":
        reconciler.change(SubscriberRequests(symbol), trades(symbol), NO_TOPICS, 0.0)
    reconciler.next_request()
    reconciler.refused(*LIMIT_EXCEEDED)
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "A"),))
    reconciler.lost()
    request = reconciler.next_request()
    assert request is not None
    assert set(request.topics) == trades("A", "B", "X")


def test_who_is_left_when_the_author_goes_is_not_blamed() -> None:
    """The author leaves while its request is under way; the answer must not hit who shared it."""
    for gone in ("left", "given up"):
        reconciler = SubscriptionReconciler()
        author, other = SubscriberRequests("author"), SubscriberRequests("other")
        reconciler.change(author, trades("X"), NO_TOPICS, 0.0)
        reconciler.change(other, trades("A"), NO_TOPICS, 0.0)
        request = reconciler.next_request()
        assert request is not None
        assert set(request.topics) == trades("X", "A")
        if gone == "left":
            reconciler.leave(author)
        else:
            reconciler.change(author, NO_TOPICS, trades("X"), 0.0)
        assert reconciler.refused(*LIMIT_EXCEEDED) == []
        assert told(settle(reconciler, {"X"})) == [("other", None, trades("A"))]
        reconciler.change(other, trades("Y"), NO_TOPICS, 0.0)
        assert told(settle(reconciler, {"Y"})) == [("other", LIMIT_EXCEEDED, None)], "the next refusal finds its author"


def test_what_is_given_up_on_trial_is_not_blamed() -> None:
    reconciler = SubscriptionReconciler()
    first, second = SubscriberRequests("first"), SubscriberRequests("second")
    reconciler.change(first, trades("A", "X"), NO_TOPICS, 0.0)
    reconciler.change(second, trades("B"), NO_TOPICS, 0.0)
    reconciler.next_request()
    reconciler.refused(*LIMIT_EXCEEDED)
    request = reconciler.next_request()
    assert request is not None
    assert set(request.topics) == trades("A", "X")
    assert reconciler.change(first, NO_TOPICS, trades("X"), 0.0) == []
    assert reconciler.refused(*LIMIT_EXCEEDED) == []
    assert told(settle(reconciler, {"X"})) == [
        ("first", None, trades("A", "X")),  # to the first request; the answer to the second comes with it
        ("first", None, trades("A")),
        ("second", None, trades("B")),
    ]


def test_a_late_refusal_leaves_what_later_requests_ask_for() -> None:
    """Something refused after it was acknowledged, while the session waits for a part of it again."""
    reconciler = SubscriptionReconciler()
    requests, other = SubscriberRequests("seat"), SubscriberRequests("other")
    reconciler.change(requests, trades("A", "X"), NO_TOPICS, 0.0)
    assert told(reconciler.overdue(ACK_SECONDS)) == [("seat", None, trades("A", "X"))]
    reconciler.change(requests, trades("A", "Y"), NO_TOPICS, ACK_SECONDS)
    reconciler.change(other, trades("B"), NO_TOPICS, ACK_SECONDS)
    assert told(settle(reconciler, {"X", "Y"})) == [
        ("seat", LIMIT_EXCEEDED, NO_TOPICS),
        ("seat", LIMIT_EXCEEDED, None),
        ("other", None, trades("B")),
    ]
    assert requests.acknowledged == requests.holds == NO_TOPICS


def test_a_request_of_many_pieces_is_refused_whole() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("seat")
    reconciler.change(requests, many(5000) | trades("X"), NO_TOPICS, 0.0)
    assert told(settle(reconciler, {"X"})) == [("seat", LIMIT_EXCEEDED, None)]
    assert not reconciler.acked
    assert not reconciler.wanted


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
    reconciler = SubscriptionReconciler()
    channels = ("trades", "quotes", "something that nobody knows")
    wanted = frozenset((channel, symbol.format(number)) for channel in channels for number in range(1000))
    requests = SubscriberRequests("seat")
    reconciler.change(requests, wanted, NO_TOPICS, 0.0)
    for add in (True, False):
        asked: set[Topic] = set()
        sizes = []
        while request := reconciler.next_request():
            assert request.add is add
            asked |= set(request.topics)
            sizes.append(len(JSON.encode(market.change(add, request.topics))))
            assert len(msgpack.packb(market.change(add, request.topics))) <= REQUEST_BYTES
            reconciler.confirmed()
        assert asked == wanted
        assert max(sizes) <= REQUEST_BYTES
        assert min(sizes[:-1]) > REQUEST_BYTES - 500
        reconciler.leave(requests)


def test_a_small_request_is_not_stuck_behind_a_large_one() -> None:
    reconciler = SubscriptionReconciler()
    large, small = SubscriberRequests("large"), SubscriberRequests("small")
    reconciler.change(large, many(10_000), NO_TOPICS, 0.0)
    reconciler.next_request()
    reconciler.change(small, trades("SPY"), NO_TOPICS, 0.0)
    reconciler.confirmed()
    request = reconciler.next_request()
    assert request is not None
    assert ("trades", "SPY") in request.topics
    assert len(request.topics) > 100  # the rest of its room is not wasted
    assert told(reconciler.confirmed()) == [("small", None, trades("SPY"))]


def test_large_requests_take_turns() -> None:
    reconciler = SubscriptionReconciler()
    seats = [SubscriberRequests(name) for name in "abc"]
    for requests in seats:
        reconciler.change(requests, many(3000, requests.member), NO_TOPICS, 0.0)
    first_letters = []
    while request := reconciler.next_request():
        first_letters.append(request.topics[0][1][0])
        reconciler.confirmed()
    assert first_letters[:4] == ["a", "b", "c", "a"]


def test_additions_go_before_removals_but_make_room_when_there_is_none() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("seat")
    reconciler.change(requests, trades("A"), NO_TOPICS, 0.0)
    settle(reconciler)
    reconciler.change(requests, NO_TOPICS, trades("A"), 0.0)
    reconciler.change(requests, trades("B"), NO_TOPICS, 0.0)
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "B"),))
    assert reconciler.refused(*LIMIT_EXCEEDED) == []
    assert reconciler.next_request() == UpstreamRequest(False, (("trades", "A"),))
    reconciler.confirmed()
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "B"),))
    assert told(reconciler.confirmed()) == [("seat", None, trades("B"))]
    reconciler.change(requests, NO_TOPICS, trades("B"), 0.0)
    reconciler.change(requests, trades("C"), NO_TOPICS, 0.0)
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "C"),)), "the room was made once"


@pytest.mark.parametrize("refused", [True, False])
def test_a_request_that_replaces_does_both_or_nothing(refused: bool) -> None:
    """As `listen` does on the trading stream; what is asked for meanwhile is not lost with it."""
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("seat")
    reconciler.change(requests, trades("A", "B"), NO_TOPICS, 0.0)
    settle(reconciler)
    assert reconciler.change(requests, trades("X"), trades("A", "B"), 0.0) == []
    assert reconciler.change(requests, trades("A"), NO_TOPICS, 0.0) == []
    answers = settle(reconciler, {"X"} if refused else ())
    if refused:
        assert told(answers) == [("seat", LIMIT_EXCEEDED, None), ("seat", None, trades("A", "B"))]
    else:
        assert told(answers) == [("seat", None, trades("X")), ("seat", None, trades("A", "X"))]
    assert reconciler.wanted == reconciler.acked == requests.holds == requests.acknowledged


def test_what_is_being_removed_is_not_there_for_who_asks_now() -> None:
    """An acknowledgement before Alpaca has added it again would be of a gap."""
    reconciler = SubscriptionReconciler()
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    reconciler.change(one, trades("A"), NO_TOPICS, 0.0)
    settle(reconciler)
    reconciler.leave(one)
    assert reconciler.next_request() == UpstreamRequest(False, (("trades", "A"),))
    assert reconciler.change(two, trades("A"), NO_TOPICS, 0.0) == []
    assert reconciler.confirmed() == []
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "A"),))
    assert told(reconciler.confirmed()) == [("two", None, trades("A"))]


def test_a_removal_that_is_refused_is_let_be() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("seat")
    reconciler.change(requests, trades("A"), NO_TOPICS, 0.0)
    settle(reconciler)
    assert told(reconciler.change(requests, NO_TOPICS, trades("A"), 0.0)) == [("seat", None, NO_TOPICS)]
    assert reconciler.next_request() == UpstreamRequest(False, (("trades", "A"),))
    assert reconciler.change(requests, trades("A"), NO_TOPICS, 0.0) == []
    assert reconciler.refused(500, "internal error") == []
    assert told(settle(reconciler)) == [("seat", None, trades("A"))]
    reconciler.leave(requests)
    assert reconciler.next_request() == UpstreamRequest(False, (("trades", "A"),))
    assert reconciler.refused(500, "internal error") == []
    assert reconciler.next_request() is None


def test_what_alpaca_has_confirmed_already_is_acknowledged_at_once() -> None:
    reconciler = SubscriptionReconciler()
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    reconciler.change(one, trades("A", "B"), NO_TOPICS, 0.0)
    settle(reconciler)
    assert told(reconciler.change(two, trades("A"), NO_TOPICS, 0.0)) == [("two", None, trades("A"))]
    assert told(reconciler.change(two, NO_TOPICS, NO_TOPICS, 0.0)) == [("two", None, trades("A"))]
    assert told(reconciler.change(two, NO_TOPICS, trades("C"), 0.0)) == [("two", None, trades("A"))]
    assert reconciler.next_request() is None


def test_each_request_stands_for_itself() -> None:
    """What a refused one asked for too is not refused with it."""
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("seat")
    reconciler.change(requests, trades("A", "X"), NO_TOPICS, 0.0)
    reconciler.change(requests, trades("A"), NO_TOPICS, 0.0)
    reconciler.change(requests, trades("X"), NO_TOPICS, 0.0)
    assert told(settle(reconciler, {"X"})) == [
        ("seat", LIMIT_EXCEEDED, None),
        ("seat", None, trades("A")),
        ("seat", LIMIT_EXCEEDED, None),
    ]
    assert reconciler.acked == requests.holds == trades("A")


def test_what_is_only_remembered_is_not_confirmed() -> None:
    """Who asks for it again waits for Alpaca again; once it has confirmed, there is nothing more to ask."""
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("seat")
    reconciler.change(requests, trades("A"), NO_TOPICS, 0.0)
    assert told(reconciler.overdue(ACK_SECONDS)) == [("seat", None, trades("A"))]
    assert reconciler.change(requests, trades("A"), NO_TOPICS, ACK_SECONDS) == []
    assert told(settle(reconciler)) == [("seat", None, trades("A"))]
    for _ in range(100):
        assert told(reconciler.change(requests, trades("A"), NO_TOPICS, ACK_SECONDS)) == [("seat", None, trades("A"))]
    assert len(requests.pending) == 2


def test_who_resends_all_it_has_does_not_risk_it() -> None:
    """Python's SDKs do so at every change: the one symbol that is new may be refused, the others stay."""
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("seat")
    reconciler.change(requests, trades("A", "B"), NO_TOPICS, 0.0)
    settle(reconciler)
    for _ in range(100):
        assert told(reconciler.change(requests, trades("A", "B"), NO_TOPICS, 0.0)) == [("seat", None, trades("A", "B"))]
    assert len(requests.pending) == 1
    reconciler.change(requests, trades("A", "B", "X"), NO_TOPICS, 0.0)
    assert told(settle(reconciler, {"X"})) == [("seat", LIMIT_EXCEEDED, None)]
    assert reconciler.acked == requests.acknowledged == trades("A", "B")


def test_asking_on_and_on_while_alpaca_is_away() -> None:
    """What is kept of it stays small, and all of it is asked for in the end."""
    reconciler = SubscriptionReconciler()
    requests, other = SubscriberRequests("seat"), SubscriberRequests("other")
    reconciler.change(other, trades("A"), NO_TOPICS, 0.0)
    reconciler.overdue(ACK_SECONDS)
    for number in range(500):
        reconciler.change(requests, trades("A", f"S{number}", f"S{number + 1}"), NO_TOPICS, 10.0 * number)
        reconciler.overdue(10.0 * number + ACK_SECONDS)
        assert len(requests.pending) <= MAX_REQUESTS
    everything = trades("A", *(f"S{number}" for number in range(501)))
    assert reconciler.wanted == requests.holds == requests.acknowledged == everything
    assert settle(reconciler) == []
    assert reconciler.acked == everything
    reconciler.leave(other)
    assert told(reconciler.change(requests, NO_TOPICS, everything - trades("A"), 9999.0)) == [
        ("seat", None, trades("A"))
    ]
    settle(reconciler)
    assert reconciler.acked == trades("A")
    reconciler.leave(requests)
    settle(reconciler)
    assert repr(reconciler) == "<SubscriptionReconciler 0 wanted, 0 acked, 0 requests>"


def test_a_feed_that_is_not_in_the_plan_refuses_every_request_until_it_is() -> None:
    """What was acknowledged for the remembered state is refused too; what Alpaca has confirmed once is not."""
    reconciler = SubscriptionReconciler()
    confirmed, remembered, waiting, later = (
        SubscriberRequests("confirmed"),
        SubscriberRequests("remembered"),
        SubscriberRequests("waiting"),
        SubscriberRequests("later"),
    )
    reconciler.change(confirmed, trades("K"), NO_TOPICS, 0.0)
    settle(reconciler)
    reconciler.lost()
    for symbol in ("R", "S"):
        reconciler.change(remembered, trades(symbol), NO_TOPICS, -ACK_SECONDS)
        assert told(reconciler.overdue(0.0)) == [("remembered", None, remembered.holds)]
    reconciler.change(waiting, trades("A"), NO_TOPICS, 0.0)
    reconciler.change(waiting, NO_TOPICS, trades("C"), 0.0)
    reconciler.change(waiting, trades("B"), NO_TOPICS, 0.0)
    assert not reconciler.closed
    assert told(reconciler.close(*NOT_IN_THE_PLAN)) == [
        ("remembered", NOT_IN_THE_PLAN, NO_TOPICS),
        ("waiting", NOT_IN_THE_PLAN, None),
        ("waiting", None, NO_TOPICS),
        ("waiting", NOT_IN_THE_PLAN, None),
    ]
    assert reconciler.closed
    assert told(reconciler.change(later, trades("B"), NO_TOPICS, 0.0)) == [("later", NOT_IN_THE_PLAN, None)]
    assert told(reconciler.change(later, NO_TOPICS, trades("B"), 0.0)) == [("later", None, NO_TOPICS)]
    assert reconciler.wanted == trades("K")
    reconciler.open()
    reconciler.change(later, trades("B"), NO_TOPICS, 0.0)
    assert told(settle(reconciler)) == [("later", None, trades("B"))]
    assert reconciler.acked == trades("K", "B")


def test_what_was_confirmed_after_its_acknowledgement_is_confirmed() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("seat")
    reconciler.change(requests, trades("A"), NO_TOPICS, -ACK_SECONDS)
    reconciler.overdue(0.0)
    settle(reconciler)
    reconciler.lost()
    assert reconciler.close(*NOT_IN_THE_PLAN) == []
    assert requests.acknowledged == requests.holds == trades("A")


def test_a_seat_from_another_account_is_refused_request_by_request() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("seat")
    assert reconciler.adopt(requests, [trades("A", "B"), trades("X", "Y")]) == []
    assert requests.acknowledged == trades("A", "B", "X", "Y")
    assert told(settle(reconciler, {"X"})) == [("seat", LIMIT_EXCEEDED, trades("A", "B"))]
    assert reconciler.acked == requests.holds == trades("A", "B")
    assert reconciler.adopt(SubscriberRequests("holds nothing"), []) == []


def test_a_seat_from_another_account_where_alpaca_does_not_serve_the_feed() -> None:
    reconciler = SubscriptionReconciler()
    reconciler.close(*NOT_IN_THE_PLAN)
    assert told(reconciler.adopt(SubscriberRequests("seat"), [trades("A"), trades("B")])) == [
        ("seat", NOT_IN_THE_PLAN, NO_TOPICS)
    ]
    assert reconciler.adopt(SubscriberRequests("holds nothing"), []) == []
    assert reconciler.idle


def test_answers_when_nothing_is_under_way() -> None:
    """Alpaca may say anything at any time."""
    reconciler = SubscriptionReconciler()
    reconciler.change(SubscriberRequests("seat"), trades("A"), NO_TOPICS, 0.0)
    assert reconciler.confirmed() == reconciler.refused(*LIMIT_EXCEEDED) == []
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "A"),))


def test_seats_and_ledgers_name_themselves() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("momentum")
    reconciler.change(requests, trades("A", "B"), NO_TOPICS, 0.0)
    assert repr(requests) == "<SubscriberRequests momentum 0 topics, 1 waiting>"
    assert repr(reconciler) == "<SubscriptionReconciler 2 wanted, 0 acked, 1 requests>"


# What it costs


def seconds(work: Callable[[], object]) -> float:
    """Of CPU."""
    began = time.process_time()
    work()
    return time.process_time() - began


def test_a_change_costs_what_its_topics_cost_however_many_hold_them() -> None:
    """8,000 topics, held by 200 seats already: a few passes over a set, and nothing in it waits for the 200."""
    reconciler = SubscriptionReconciler()
    topics = many(8000)
    for number in range(200):
        reconciler.change(SubscriberRequests(f"seat {number}"), frozenset(topics), NO_TOPICS, 0.0)
    counting = min(seconds(lambda: dict.fromkeys(topics, 0) | dict.fromkeys(topics, 1)) for _ in range(7))
    asking = 0.0
    while not asking or reconciler.request:
        reconciler.confirmed()
        asking = max(asking, seconds(reconciler.next_request))
    assert asking < 60 * counting

    def come_and_go() -> None:
        requests = SubscriberRequests("new")
        assert reconciler.change(requests, topics, NO_TOPICS, 0.0)
        reconciler.leave(requests)

    assert min(seconds(come_and_go) for _ in range(7)) < 40 * counting
