"""The reconciler against a model of Alpaca, with any sequence of events.

`Alpaca` has a set of topics, a limit and some symbols that it refuses; a request that breaks a rule is refused as a
whole. In the state machine sessions subscribe, unsubscribe, leave and join, and Alpaca replies, stays silent, changes
its rules or drops the connection, in any order.
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
    """A model of Alpaca: the topics it holds, and its rules for refusals."""

    def __init__(self, poison: Collection[str], limit: int) -> None:
        self.held: set[Topic] = set()
        self.poison = poison
        self.limit = limit

    def refuses(self, topics: Collection[Topic]) -> bool:
        """Whether a request that adds these topics is refused."""
        return any(symbol in self.poison for _, symbol in topics) or len(self.held.union(topics)) > self.limit

    def carry_out(self, request: UpstreamRequest) -> bool:
        """Carry out the request unless it is refused; return whether it was carried out."""
        if not request.add:
            self.held.difference_update(request.topics)
        elif self.refuses(request.topics):
            return False
        else:
            self.held.update(request.topics)
        return True


@dataclass(eq=False)
class Request:
    """A request of a session.

    `may_be_refused`: Alpaca has refused a request, and would refuse this one on its own. `given_up`: topics that the
    session has since given up, or lost with other requests.
    """

    add: Subscription
    remove: Subscription
    at: float
    denied: tuple[int, str] | None = None
    may_be_refused: bool = False
    given_up: Subscription = NO_TOPICS


@dataclass(eq=False)
class Session:
    """A session: the state last sent to it, the confirmed part, and its requests."""

    requests: SubscriberRequests
    state: Subscription = NO_TOPICS
    confirmed: Subscription = NO_TOPICS
    unanswered: deque[Request] = field(default_factory=deque)
    answered: list[Request] = field(default_factory=list)


class ReconcilerMachine(RuleBasedStateMachine):
    @initialize(poison=POISON, limit=LIMITS, many=st.sampled_from([1, 2, ref_counts.MANY]))
    def begin(self, poison: set[str], limit: int, many: int) -> None:
        """`many` is the size from which sets are counted as a whole."""
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

    # Outcomes

    def check(self, outcomes: list[RequestOutcome]) -> None:
        """Each request has one outcome, in order; a late refusal may come in addition."""
        for outcome in outcomes:
            [session] = [session for session in self.sessions if session.requests is outcome.requests]
            if outcome.error is not None and outcome.state is not None:
                self._late_refusal(session, outcome)
                continue
            request = session.unanswered.popleft()
            session.answered.append(request)
            assert (
                outcome.error is None
                or request.denied == outcome.error
                or (request.may_be_refused and request.denied is None)
            )
            if outcome.error is None:
                self._acknowledged(session, request, outcome.state)
        assert all(session.state == session.requests.acknowledged for session in self.sessions)

    def _acknowledged(self, session: Session, request: Request, state: Subscription | None) -> None:
        assert request.denied is None
        new = (request.add & session.requests.holds) - session.state - request.given_up
        assert new <= self.held_by_alpaca() or self.now - request.at >= ACK_SECONDS, (
            "acknowledged before it was confirmed"
        )
        assert state is not None
        assert state - request.given_up == (session.state | request.add) - request.remove - request.given_up
        session.state = state
        session.confirmed &= state

    def _late_refusal(self, session: Session, outcome: RequestOutcome) -> None:
        """A refusal after the acknowledgement takes the topics of one request."""
        state = outcome.state
        assert state is not None
        assert state <= session.state
        lost = session.state - state
        if outcome.error == NOT_IN_THE_PLAN:
            unconfirmed = [request.add for request in session.answered if not request.add <= session.confirmed]
            assert lost <= NO_TOPICS.union(*unconfirmed)
            assert state <= session.confirmed
        else:
            assert any(lost <= request.add and self.alpaca.refuses(request.add) for request in session.answered)
        session.state = state
        session.confirmed &= state
        for request in session.unanswered:
            request.given_up |= lost

    def held_by_alpaca(self) -> set[Topic]:
        """The topics that Alpaca holds, without those that the request under way removes."""
        request = self.reconciler.request
        return self.alpaca.held.difference(() if request is None or request.add else request.topics)

    # Events of sessions

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
        for request in session.unanswered:
            request.given_up |= remove
        session.unanswered.append(Request(add, remove - add, self.now, may_be_refused=self.reconciler.closed))
        self.check(self.reconciler.change(session.requests, add, remove, self.now))

    @rule(number=NUMBERS)
    def subscribe_to_topics_that_the_allowlist_denies(self, number: int) -> None:
        session = self.sessions[number]
        self.denials += 1
        error = (409, f"denied {self.denials}")
        session.unanswered.append(Request(NO_TOPICS, NO_TOPICS, self.now, denied=error))
        self.check(self.reconciler.deny(session.requests, *error, self.now))

    @rule(number=NUMBERS)
    def leave_and_join_again(self, number: int) -> None:
        left, self.sessions[number] = self.sessions[number], Session(SubscriberRequests("another"))
        self.reconciler.leave(left.requests)
        assert left.requests.holds == NO_TOPICS

    @rule(number=NUMBERS, requests=st.lists(TOPICS.filter(bool), max_size=3))
    def move_from_another_account(self, number: int, requests: list[Subscription]) -> None:
        self.reconciler.leave(self.sessions[number].requests)
        session = self.sessions[number] = Session(SubscriberRequests("moved"), state=NO_TOPICS.union(*requests))
        session.answered = [Request(add, NO_TOPICS, self.now) for add in requests]
        self.check(self.reconciler.adopt(session.requests, requests))

    # Events of Alpaca

    @rule(steps=st.integers(1, 5))
    def send_requests_and_reply(self, steps: int) -> None:
        for _ in range(steps):
            if self.reconciler.request is None:
                self.send()
            else:
                self.reply()

    def send(self) -> None:
        wanted, there = self.reconciler.wanted, self.held_by_alpaca()
        request = self.reconciler.next_request()
        assert self.reconciler.request is None or self.reconciler.next_request() is None, "two requests under way"
        if request is None:
            assert wanted == self.reconciler.acked == there
        elif request.add:
            assert request.topics
            assert there.isdisjoint(request.topics)
            assert wanted.issuperset(request.topics), "requested though no session wants it, or again after a refusal"
            self.making_room = False
        else:
            assert request.topics
            assert there.issuperset(request.topics)
            assert wanted.isdisjoint(request.topics)
            assert wanted <= there or self.making_room, "removals sent before additions"

    def reply(self) -> None:
        request = self.reconciler.request
        assert request is not None
        if self.alpaca.carry_out(request):
            self.check(self.reconciler.confirmed())
            return
        self.making_room = True
        for session in self.sessions:
            for unanswered in session.unanswered:
                unanswered.may_be_refused = unanswered.may_be_refused or self.alpaca.refuses(unanswered.add)
        self.check(self.reconciler.refused(*LIMIT_EXCEEDED))

    @rule(poison=POISON, limit=LIMITS)
    def reconnect(self, poison: set[str], limit: int) -> None:
        """Alpaca's rules may be different on the next connection."""
        self.lose(Alpaca(poison, limit))
        assert self.reconciler.request is None

    @rule()
    def refuse_the_feed_or_serve_it_again(self) -> None:
        if self.reconciler.closed:
            self.reconciler.open()
            return
        self.lose(Alpaca(self.alpaca.poison, self.alpaca.limit))
        for session in self.sessions:
            for request in session.unanswered:
                request.may_be_refused = bool(request.add)
        self.check(self.reconciler.close(*NOT_IN_THE_PLAN))
        assert not any(session.unanswered for session in self.sessions), "a request is still unanswered"
        assert all(session.state <= session.confirmed for session in self.sessions), (
            "an unconfirmed topic is still held"
        )

    def lose(self, then: Alpaca) -> None:
        for session in self.sessions:
            session.confirmed |= session.state & self.held_by_alpaca()
        self.alpaca = then
        self.reconciler.lost()

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.check(self.reconciler.overdue(self.now))
        for session in self.sessions:
            assert all(self.now - request.at < ACK_SECONDS for request in session.unanswered), (
                "a request has waited longer"
            )

    @rule()
    def settle(self) -> None:
        """Send requests and replies until there is no difference left."""
        for _ in range(200):
            if self.reconciler.request is not None:
                self.reply()
            self.send()
            if self.reconciler.request is None:
                break
        else:
            raise AssertionError("it never comes to an end")
        assert self.reconciler.acked == self.reconciler.wanted == self.alpaca.held
        for session in self.sessions:
            assert not session.unanswered
            assert session.requests.holds == session.state
            assert not any(symbol in self.alpaca.poison for _, symbol in session.state)

    def teardown(self) -> None:
        """After all sessions have left, the reconciler is empty."""
        if not hasattr(self, "reconciler"):
            return
        try:
            for number in range(3):
                self.leave_and_join_again(number)
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
        assert self.reconciler.acked == self.held_by_alpaca()

    @invariant()
    def the_differences_are_those_of_wanted_and_acked(self) -> None:
        """They are stored, not computed, since they may have thousands of topics."""
        assert self.reconciler._missing.keys() == self.reconciler.wanted - self.reconciler.acked
        assert self.reconciler._surplus == self.reconciler.acked - self.reconciler.wanted


TestReconcilerMachine = ReconcilerMachine.TestCase
TestReconcilerMachine.settings = settings(stateful_step_count=40)


# Single scenarios


def trades(*symbols: str) -> Subscription:
    return frozenset(("trades", symbol) for symbol in symbols)


def many(count: int, prefix: str = "SYMBOL") -> Subscription:
    return trades(*(f"{prefix}{number:05}" for number in range(count)))


def settle(reconciler: SubscriptionReconciler, refuse: Collection[str] = ()) -> list[RequestOutcome]:
    """Send all requests; those that add one of the symbols in `refuse` are refused."""
    outcomes: list[RequestOutcome] = []
    for _ in range(1000):
        request = reconciler.next_request()
        if request is None:
            return outcomes
        refused = request.add and any(symbol in refuse for _, symbol in request.topics)
        outcomes += reconciler.refused(*LIMIT_EXCEEDED) if refused else reconciler.confirmed()
    raise AssertionError("it never comes to an end")


Outcome = tuple[str, tuple[int, str] | None, Subscription | None]


def outcomes_of(outcomes: list[RequestOutcome]) -> list[Outcome]:
    return [(outcome.requests.member, outcome.error, outcome.state) for outcome in outcomes]


def test_only_the_refused_request_gets_the_error() -> None:
    """The pending requests are retried one by one, oldest first."""
    reconciler = SubscriptionReconciler()
    good, bad, late = SubscriberRequests("good"), SubscriberRequests("bad"), SubscriberRequests("late")
    for requests, symbols in ((good, "AB"), (bad, "AX"), (late, "C")):
        assert reconciler.change(requests, trades(*symbols), NO_TOPICS, 0.0) == []
    assert outcomes_of(settle(reconciler, {"X"})) == [
        ("good", None, trades("A", "B")),
        ("bad", LIMIT_EXCEEDED, None),
        ("late", None, trades("C")),
    ]
    assert reconciler.wanted == reconciler.acked == trades("A", "B", "C")
    assert settle(reconciler) == [], "the refused topics are not requested again"


def test_a_refusal_after_a_reconnect() -> None:
    """The session gets the error, then its state with the topics of other requests."""
    reconciler = SubscriptionReconciler()
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    reconciler.change(one, trades("A"), NO_TOPICS, 0.0)
    reconciler.change(two, trades("A"), NO_TOPICS, 0.0)
    reconciler.change(two, trades("X", "C"), NO_TOPICS, 0.0)
    settle(reconciler)
    reconciler.lost()
    assert outcomes_of(settle(reconciler, {"X"})) == [("two", LIMIT_EXCEEDED, trades("A"))]
    assert reconciler.wanted == reconciler.acked == trades("A")


def test_after_a_reconnect_all_topics_are_requested_together() -> None:
    """Even if pending requests were being retried one by one."""
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


def test_a_refusal_of_a_request_that_was_given_up_is_not_assigned_to_another() -> None:
    """The session leaves or unsubscribes while the request is under way.

    The other session whose topics are in the request must not get the error.
    """
    for event in ("left", "given up"):
        reconciler = SubscriptionReconciler()
        refused, other = SubscriberRequests("refused"), SubscriberRequests("other")
        reconciler.change(refused, trades("X"), NO_TOPICS, 0.0)
        reconciler.change(other, trades("A"), NO_TOPICS, 0.0)
        request = reconciler.next_request()
        assert request is not None
        assert set(request.topics) == trades("X", "A")
        if event == "left":
            reconciler.leave(refused)
        else:
            reconciler.change(refused, NO_TOPICS, trades("X"), 0.0)
        assert reconciler.refused(*LIMIT_EXCEEDED) == []
        assert outcomes_of(settle(reconciler, {"X"})) == [("other", None, trades("A"))]
        reconciler.change(other, trades("Y"), NO_TOPICS, 0.0)
        assert outcomes_of(settle(reconciler, {"Y"})) == [("other", LIMIT_EXCEEDED, None)], (
            "the next refusal is assigned"
        )


def test_a_refusal_of_topics_given_up_during_a_retry_is_ignored() -> None:
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
    assert outcomes_of(settle(reconciler, {"X"})) == [
        ("first", None, trades("A", "X")),  # of the first request; the outcome of the second follows at once
        ("first", None, trades("A")),
        ("second", None, trades("B")),
    ]


def test_a_late_refusal_while_a_later_request_repeats_a_topic() -> None:
    """The refusal comes after the acknowledgement, during the later request."""
    reconciler = SubscriptionReconciler()
    requests, other = SubscriberRequests("subscriber"), SubscriberRequests("other")
    reconciler.change(requests, trades("A", "X"), NO_TOPICS, 0.0)
    assert outcomes_of(reconciler.overdue(ACK_SECONDS)) == [("subscriber", None, trades("A", "X"))]
    reconciler.change(requests, trades("A", "Y"), NO_TOPICS, ACK_SECONDS)
    reconciler.change(other, trades("B"), NO_TOPICS, ACK_SECONDS)
    assert outcomes_of(settle(reconciler, {"X", "Y"})) == [
        ("subscriber", LIMIT_EXCEEDED, NO_TOPICS),
        ("subscriber", LIMIT_EXCEEDED, None),
        ("other", None, trades("B")),
    ]
    assert requests.acknowledged == requests.holds == NO_TOPICS


def test_a_request_in_several_parts_is_refused_as_a_whole() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("subscriber")
    reconciler.change(requests, many(5000) | trades("X"), NO_TOPICS, 0.0)
    assert outcomes_of(settle(reconciler, {"X"})) == [("subscriber", LIMIT_EXCEEDED, None)]
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
def test_upstream_requests_are_bounded_in_bytes(symbol: str) -> None:
    """In either codec, with any escapes; all but the last are close to the bound."""
    reconciler = SubscriptionReconciler()
    channels = ("trades", "quotes", "some undocumented channel")
    wanted = frozenset((channel, symbol.format(number)) for channel in channels for number in range(1000))
    requests = SubscriberRequests("subscriber")
    reconciler.change(requests, wanted, NO_TOPICS, 0.0)
    for add in (True, False):
        requested: set[Topic] = set()
        sizes = []
        while request := reconciler.next_request():
            assert request.add is add
            requested |= set(request.topics)
            sizes.append(len(JSON.encode(market.change(add, request.topics))))
            assert len(msgpack.packb(market.change(add, request.topics))) <= REQUEST_BYTES
            reconciler.confirmed()
        assert requested == wanted
        assert max(sizes) <= REQUEST_BYTES
        assert min(sizes[:-1]) > REQUEST_BYTES - 500
        reconciler.leave(requests)


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    reconciler = SubscriptionReconciler()
    large, small = SubscriberRequests("large"), SubscriberRequests("small")
    reconciler.change(large, many(10_000), NO_TOPICS, 0.0)
    reconciler.next_request()
    reconciler.change(small, trades("SPY"), NO_TOPICS, 0.0)
    reconciler.confirmed()
    request = reconciler.next_request()
    assert request is not None
    assert ("trades", "SPY") in request.topics
    assert len(request.topics) > 100  # the remaining bytes are used
    assert outcomes_of(reconciler.confirmed()) == [("small", None, trades("SPY"))]


def test_large_requests_take_turns() -> None:
    reconciler = SubscriptionReconciler()
    for requests in [SubscriberRequests(name) for name in "abc"]:
        reconciler.change(requests, many(3000, requests.member), NO_TOPICS, 0.0)
    first_letters = []
    while request := reconciler.next_request():
        first_letters.append(request.topics[0][1][0])
        reconciler.confirmed()
    assert first_letters[:4] == ["a", "b", "c", "a"]


def test_additions_go_before_removals_unless_the_limit_is_exceeded() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("subscriber")
    reconciler.change(requests, trades("A"), NO_TOPICS, 0.0)
    settle(reconciler)
    reconciler.change(requests, NO_TOPICS, trades("A"), 0.0)
    reconciler.change(requests, trades("B"), NO_TOPICS, 0.0)
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "B"),))
    assert reconciler.refused(*LIMIT_EXCEEDED) == []
    assert reconciler.next_request() == UpstreamRequest(False, (("trades", "A"),))
    reconciler.confirmed()
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "B"),))
    assert outcomes_of(reconciler.confirmed()) == [("subscriber", None, trades("B"))]
    reconciler.change(requests, NO_TOPICS, trades("B"), 0.0)
    reconciler.change(requests, trades("C"), NO_TOPICS, 0.0)
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "C"),)), "removals go first only once"


@pytest.mark.parametrize("refused", [True, False])
def test_a_request_that_replaces_topics_adds_and_removes_or_does_neither(refused: bool) -> None:
    """As `listen` does; a request made in the meantime is not lost with it."""
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("subscriber")
    reconciler.change(requests, trades("A", "B"), NO_TOPICS, 0.0)
    settle(reconciler)
    assert reconciler.change(requests, trades("X"), trades("A", "B"), 0.0) == []
    assert reconciler.change(requests, trades("A"), NO_TOPICS, 0.0) == []
    outcomes = settle(reconciler, {"X"} if refused else ())
    if refused:
        assert outcomes_of(outcomes) == [("subscriber", LIMIT_EXCEEDED, None), ("subscriber", None, trades("A", "B"))]
    else:
        assert outcomes_of(outcomes) == [("subscriber", None, trades("X")), ("subscriber", None, trades("A", "X"))]
    assert reconciler.wanted == reconciler.acked == requests.holds == requests.acknowledged


def test_a_topic_that_is_being_removed_is_not_acknowledged() -> None:
    """Data would be missing between an acknowledgement at once and the next addition."""
    reconciler = SubscriptionReconciler()
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    reconciler.change(one, trades("A"), NO_TOPICS, 0.0)
    settle(reconciler)
    reconciler.leave(one)
    assert reconciler.next_request() == UpstreamRequest(False, (("trades", "A"),))
    assert reconciler.change(two, trades("A"), NO_TOPICS, 0.0) == []
    assert reconciler.confirmed() == []
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "A"),))
    assert outcomes_of(reconciler.confirmed()) == [("two", None, trades("A"))]


def test_a_refused_removal_is_ignored() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("subscriber")
    reconciler.change(requests, trades("A"), NO_TOPICS, 0.0)
    settle(reconciler)
    assert outcomes_of(reconciler.change(requests, NO_TOPICS, trades("A"), 0.0)) == [("subscriber", None, NO_TOPICS)]
    assert reconciler.next_request() == UpstreamRequest(False, (("trades", "A"),))
    assert reconciler.change(requests, trades("A"), NO_TOPICS, 0.0) == []
    assert reconciler.refused(500, "internal error") == []
    assert outcomes_of(settle(reconciler)) == [("subscriber", None, trades("A"))]
    reconciler.leave(requests)
    assert reconciler.next_request() == UpstreamRequest(False, (("trades", "A"),))
    assert reconciler.refused(500, "internal error") == []
    assert reconciler.next_request() is None


def test_acked_topics_are_acknowledged_at_once() -> None:
    reconciler = SubscriptionReconciler()
    one, two = SubscriberRequests("one"), SubscriberRequests("two")
    reconciler.change(one, trades("A", "B"), NO_TOPICS, 0.0)
    settle(reconciler)
    assert outcomes_of(reconciler.change(two, trades("A"), NO_TOPICS, 0.0)) == [("two", None, trades("A"))]
    assert outcomes_of(reconciler.change(two, NO_TOPICS, NO_TOPICS, 0.0)) == [("two", None, trades("A"))]
    assert outcomes_of(reconciler.change(two, NO_TOPICS, trades("C"), 0.0)) == [("two", None, trades("A"))]
    assert reconciler.next_request() is None


def test_each_request_has_its_own_outcome() -> None:
    """A topic of a refused request is not refused to another request."""
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("subscriber")
    reconciler.change(requests, trades("A", "X"), NO_TOPICS, 0.0)
    reconciler.change(requests, trades("A"), NO_TOPICS, 0.0)
    reconciler.change(requests, trades("X"), NO_TOPICS, 0.0)
    assert outcomes_of(settle(reconciler, {"X"})) == [
        ("subscriber", LIMIT_EXCEEDED, None),
        ("subscriber", None, trades("A")),
        ("subscriber", LIMIT_EXCEEDED, None),
    ]
    assert reconciler.acked == requests.holds == trades("A")


def test_a_provisional_acknowledgement_is_not_a_confirmation() -> None:
    """A repeated request waits for Alpaca again, until Alpaca has confirmed."""
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("subscriber")
    reconciler.change(requests, trades("A"), NO_TOPICS, 0.0)
    assert outcomes_of(reconciler.overdue(ACK_SECONDS)) == [("subscriber", None, trades("A"))]
    assert reconciler.change(requests, trades("A"), NO_TOPICS, ACK_SECONDS) == []
    assert outcomes_of(settle(reconciler)) == [("subscriber", None, trades("A"))]
    for _ in range(100):
        assert outcomes_of(reconciler.change(requests, trades("A"), NO_TOPICS, ACK_SECONDS)) == [
            ("subscriber", None, trades("A"))
        ]
    assert len(requests.pending) == 2


def test_resent_topics_are_not_lost_with_a_refusal() -> None:
    """Python's SDKs resend all topics at every change.

    The new symbol may be refused; the others stay.
    """
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("subscriber")
    reconciler.change(requests, trades("A", "B"), NO_TOPICS, 0.0)
    settle(reconciler)
    for _ in range(100):
        assert outcomes_of(reconciler.change(requests, trades("A", "B"), NO_TOPICS, 0.0)) == [
            ("subscriber", None, trades("A", "B"))
        ]
    assert len(requests.pending) == 1
    reconciler.change(requests, trades("A", "B", "X"), NO_TOPICS, 0.0)
    assert outcomes_of(settle(reconciler, {"X"})) == [("subscriber", LIMIT_EXCEEDED, None)]
    assert reconciler.acked == requests.acknowledged == trades("A", "B")


def test_many_requests_during_an_outage() -> None:
    """The pending requests stay few, and all topics are requested in the end."""
    reconciler = SubscriptionReconciler()
    requests, other = SubscriberRequests("subscriber"), SubscriberRequests("other")
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
    assert outcomes_of(reconciler.change(requests, NO_TOPICS, everything - trades("A"), 9999.0)) == [
        ("subscriber", None, trades("A"))
    ]
    settle(reconciler)
    assert reconciler.acked == trades("A")
    reconciler.leave(requests)
    settle(reconciler)
    assert repr(reconciler) == "<SubscriptionReconciler 0 wanted, 0 acked, 0 requests>"


def test_a_feed_that_is_not_in_the_plan_refuses_every_request_until_it_is() -> None:
    """Provisional requests are refused too; requests confirmed once are not."""
    reconciler = SubscriptionReconciler()
    confirmed, provisional, waiting, later = (
        SubscriberRequests("confirmed"),
        SubscriberRequests("provisional"),
        SubscriberRequests("waiting"),
        SubscriberRequests("later"),
    )
    reconciler.change(confirmed, trades("K"), NO_TOPICS, 0.0)
    settle(reconciler)
    reconciler.lost()
    for symbol in ("R", "S"):
        reconciler.change(provisional, trades(symbol), NO_TOPICS, -ACK_SECONDS)
        assert outcomes_of(reconciler.overdue(0.0)) == [("provisional", None, provisional.holds)]
    reconciler.change(waiting, trades("A"), NO_TOPICS, 0.0)
    reconciler.change(waiting, NO_TOPICS, trades("C"), 0.0)
    reconciler.change(waiting, trades("B"), NO_TOPICS, 0.0)
    assert not reconciler.closed
    assert outcomes_of(reconciler.close(*NOT_IN_THE_PLAN)) == [
        ("provisional", NOT_IN_THE_PLAN, NO_TOPICS),
        ("waiting", NOT_IN_THE_PLAN, None),
        ("waiting", None, NO_TOPICS),
        ("waiting", NOT_IN_THE_PLAN, None),
    ]
    assert reconciler.closed
    assert outcomes_of(reconciler.change(later, trades("B"), NO_TOPICS, 0.0)) == [("later", NOT_IN_THE_PLAN, None)]
    assert outcomes_of(reconciler.change(later, NO_TOPICS, trades("B"), 0.0)) == [("later", None, NO_TOPICS)]
    assert reconciler.wanted == trades("K")
    reconciler.open()
    reconciler.change(later, trades("B"), NO_TOPICS, 0.0)
    assert outcomes_of(settle(reconciler)) == [("later", None, trades("B"))]
    assert reconciler.acked == trades("K", "B")


def test_a_confirmation_after_a_provisional_acknowledgement_counts() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("subscriber")
    reconciler.change(requests, trades("A"), NO_TOPICS, -ACK_SECONDS)
    reconciler.overdue(0.0)
    settle(reconciler)
    reconciler.lost()
    assert reconciler.close(*NOT_IN_THE_PLAN) == []
    assert requests.acknowledged == requests.holds == trades("A")


def test_a_subscriber_from_another_account_is_refused_request_by_request() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("subscriber")
    assert reconciler.adopt(requests, [trades("A", "B"), trades("X", "Y")]) == []
    assert requests.acknowledged == trades("A", "B", "X", "Y")
    assert outcomes_of(settle(reconciler, {"X"})) == [("subscriber", LIMIT_EXCEEDED, trades("A", "B"))]
    assert reconciler.acked == requests.holds == trades("A", "B")
    assert reconciler.adopt(SubscriberRequests("holds nothing"), []) == []


def test_a_subscriber_from_another_account_on_a_closed_feed() -> None:
    reconciler = SubscriptionReconciler()
    reconciler.close(*NOT_IN_THE_PLAN)
    assert outcomes_of(reconciler.adopt(SubscriberRequests("subscriber"), [trades("A"), trades("B")])) == [
        ("subscriber", NOT_IN_THE_PLAN, NO_TOPICS)
    ]
    assert reconciler.adopt(SubscriberRequests("holds nothing"), []) == []
    assert reconciler.idle


def test_replies_without_a_request_under_way_are_ignored() -> None:
    """Alpaca may send a reply at any time."""
    reconciler = SubscriptionReconciler()
    reconciler.change(SubscriberRequests("subscriber"), trades("A"), NO_TOPICS, 0.0)
    assert reconciler.confirmed() == reconciler.refused(*LIMIT_EXCEEDED) == []
    assert reconciler.next_request() == UpstreamRequest(True, (("trades", "A"),))


def test_reprs() -> None:
    reconciler = SubscriptionReconciler()
    requests = SubscriberRequests("momentum")
    reconciler.change(requests, trades("A", "B"), NO_TOPICS, 0.0)
    assert repr(requests) == "<SubscriberRequests momentum 0 topics, 1 waiting>"
    assert repr(reconciler) == "<SubscriptionReconciler 2 wanted, 0 acked, 1 requests>"


# CPU time


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of `work`."""
    began = time.process_time()
    work()
    return time.process_time() - began


def test_the_cpu_time_of_a_change_does_not_depend_on_the_number_of_subscribers() -> None:
    """8,000 topics that 200 subscribers hold already.

    A change takes a few passes over a set, and no loop over the 200.
    """
    reconciler = SubscriptionReconciler()
    topics = many(8000)
    for number in range(200):
        reconciler.change(SubscriberRequests(f"subscriber {number}"), frozenset(topics), NO_TOPICS, 0.0)
    baseline = min(seconds(lambda: dict.fromkeys(topics, 0) | dict.fromkeys(topics, 1)) for _ in range(7))
    longest = 0.0
    while not longest or reconciler.request:
        reconciler.confirmed()
        longest = max(longest, seconds(reconciler.next_request))
    assert longest < 60 * baseline

    def join_and_leave() -> None:
        requests = SubscriberRequests("new")
        assert reconciler.change(requests, topics, NO_TOPICS, 0.0)
        reconciler.leave(requests)

    assert min(seconds(join_and_leave) for _ in range(7)) < 40 * baseline


def test_revoked_topics_are_in_no_answer() -> None:
    """Neither in the state, nor in a request that is not answered yet; the answer comes in order."""
    reconciler, requests = SubscriptionReconciler(), SubscriberRequests("session")
    reconciler.change(requests, trades("A", "B"), NO_TOPICS, 0.0)
    settle(reconciler)
    assert requests.acknowledged == trades("A", "B")
    assert reconciler.change(requests, trades("C", "D"), NO_TOPICS, 1.0) == []
    assert reconciler.revoke(requests, trades("B", "C"), 2.0) == []
    assert requests.acknowledged == trades("A")
    assert requests.revoked == trades("B", "C")
    assert [outcome.state for outcome in settle(reconciler)] == [trades("A", "D")] * 2
    assert (reconciler.acked, reconciler.wanted) == (trades("A", "D"), trades("A", "D"))
    reconciler.change(requests, trades("B"), NO_TOPICS, 3.0)
    assert requests.revoked == trades("C")
    assert [outcome.state for outcome in settle(reconciler)] == [trades("A", "B", "D")]
