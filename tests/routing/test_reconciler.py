"""The reconciler against a model of Alpaca, with any sequence of events.

`Alpaca` has a set of topics, a limit, symbols that it refuses, symbols that it leaves out of its answers and symbols at
which it closes the connection. In the state machine sessions subscribe, unsubscribe, leave and join, while Alpaca
answers, refuses, fails, closes, stays silent or reports a state that nothing has requested, in any order. Whatever
happens, each session is answered in order, its last told state is what it holds, and once Alpaca is well again, each
holds what it has requested, less verdicts, and Alpaca sends exactly the union.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.alpaca import market
from proxy.alpaca.client_protocol import Acknowledged
from proxy.alpaca.codec import JSON
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic
from proxy.routing.reconciler import (
    ACK_SECONDS,
    MAX_CLOSES,
    MAX_REMEMBERED,
    MAX_RETRY_SECONDS,
    WITHHELD_SECONDS,
    SubscriptionReconciler,
)
from proxy.routing.request_builder import REQUEST_BYTES, UpstreamRequest
from proxy.routing.subscriber import Error, PendingRequest
from tests.routing.sessions import FakeSession, Told, tell

SYMBOLS = ("A", "B", "C", "D", "X", "Y", "*")
CHANNELS = frozenset(("trades", "quotes"))
TOPICS = st.frozensets(st.tuples(st.sampled_from(sorted(CHANNELS)), st.sampled_from(SYMBOLS)), max_size=4)
NUMBERS = st.integers(0, 2)
SYMBOL_SETS = st.sampled_from([frozenset("X"), frozenset("XY"), frozenset[str](), frozenset[str]()])
LIMITS = st.sampled_from([3, 6, 100])

REFUSED = (400, "invalid syntax")
LIMIT_EXCEEDED = (405, "symbol limit exceeded")
NOT_IN_THE_PLAN = (409, "insufficient subscription")
HICCUP = (500, "internal error")


def trades(*symbols: str) -> Subscription:
    return frozenset(("trades", symbol) for symbol in symbols)


def many(count: int, prefix: str = "SYMBOL") -> Subscription:
    return trades(*(f"{prefix}{number:05}" for number in range(count)))


class Alpaca:
    """A model of Alpaca: the topics that it sends, and its rules."""

    def __init__(self, refused: Collection[str] = (), limit: int = 100_000) -> None:
        self.sent: set[Topic] = set()
        self.refused = refused
        self.limit = limit
        self.left_out: Collection[str] = ()
        self.closes_at: Collection[str] = ()

    def error(self, topics: Collection[Topic]) -> Error | None:
        """Return the refusal of a request that adds these topics."""
        if any(symbol in self.refused for _, symbol in topics):
            return REFUSED
        return LIMIT_EXCEEDED if len(self.sent | self.accepted(topics)) > self.limit else None

    def accepted(self, topics: Collection[Topic]) -> set[Topic]:
        """Return the topics without those that are left out; with a wildcard, Alpaca sends every symbol."""
        wildcards = {channel for channel, symbol in self.sent.union(topics) if symbol == "*"}
        return {topic for topic in topics if topic[1] not in self.left_out or topic[0] in wildcards}

    def state(self) -> Acknowledged:
        return Acknowledged(frozenset(self.sent), CHANNELS)


class World:
    """A reconciler, its sessions and Alpaca. `under_way` is the request that the connection has sent."""

    def __init__(self, alpaca: Alpaca | None = None) -> None:
        self.reconciler = SubscriptionReconciler()
        self.alpaca = alpaca or Alpaca()
        self.under_way: UpstreamRequest | None = None
        self.now = 0.0

    def session(self, name: str = "client", patient: bool = False) -> FakeSession:
        return FakeSession(self.reconciler, name, patient)

    def send(self) -> UpstreamRequest | None:
        """Send the next request, unless one is under way."""
        while self.reconciler.release():
            pass
        if self.under_way is None:
            self.under_way = self.reconciler.next_request(self.now)
        return self.under_way

    def reply(self) -> None:
        """Let Alpaca carry out and answer the request under way, by its rules."""
        request, self.under_way = self.under_way, None
        assert request is not None
        topics = frozenset(request.topics)
        if not request.add:
            self.alpaca.sent -= topics
        elif any(symbol in self.alpaca.closes_at for _, symbol in topics):
            self.under_way = request
            self.lose()
            return
        elif (error := self.alpaca.error(topics)) is not None:
            tell(self.reconciler.refused(request, error, self.now))
            return
        else:
            self.alpaca.sent |= self.alpaca.accepted(topics)
        tell(self.reconciler.answered(request, self.alpaca.state(), self.now))

    def fail(self, error: Error = HICCUP) -> None:
        """Let Alpaca answer with an error that says nothing about the request."""
        request, self.under_way = self.under_way, None
        assert request is not None
        tell(self.reconciler.refused(request, error, self.now))

    def lose(self) -> None:
        """Lose the connection, in answer to the request if one is under way."""
        request, self.under_way = self.under_way, None
        if request is not None:
            tell(self.reconciler.failed(request, self.now, closed=True))
        self.alpaca.sent.clear()
        self.reconciler.lost()

    def report(self, topics: Subscription, error: Error | None = None) -> None:
        """Let another proxy upstream take topics away without a request."""
        wildcards = {channel for channel, symbol in self.alpaca.sent - topics if symbol == "*"}
        self.alpaca.sent -= {topic for topic in topics if topic[0] not in wildcards}
        tell(self.reconciler.reported(self.alpaca.state(), error, self.now, self.under_way))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        tell(self.reconciler.overdue(self.now))

    def settle(self) -> None:
        """Send requests and replies, in time, until there is no difference left."""
        for _ in range(2000):
            if self.send() is not None:
                self.reply()
            elif self.reconciler.wanted == self.reconciler.acked:
                return
            else:
                self.wait(1.0)
        raise AssertionError("it never comes to an end")


@dataclass(eq=False)
class Request:
    """A request of a client in the machine.

    `lost`: topics that the client lost after it had made the request, which brings them only if they were not confirmed
    before.
    """

    add: Subscription
    remove: Subscription
    made_at: float
    lost: Subscription = NO_TOPICS


@dataclass(eq=False)
class Client:
    """A session in the machine, and what it should hold: `asked`, less what was refused, left out or taken away."""

    session: FakeSession
    asked: Subscription = NO_TOPICS
    unanswered: deque[Request] = field(default_factory=deque)

    def lose(self, topics: Subscription) -> None:
        self.asked -= topics
        for request in self.unanswered:
            request.lost |= topics


class ReconcilerMachine(RuleBasedStateMachine):
    @initialize(refused=SYMBOL_SETS, limit=LIMITS)
    def begin(self, refused: frozenset[str], limit: int) -> None:
        self.world = World(Alpaca(refused, limit))
        self.clients = [Client(self.world.session(name)) for name in ("first", "second")]
        self.clients.append(Client(self.world.session("node", patient=True)))
        self.at_risk = NO_TOPICS  # topics that Alpaca has refused, left out or taken away at some time

    def teardown(self) -> None:
        """After all sessions have left, the reconciler is empty."""
        if not hasattr(self, "world"):
            return
        for client in self.clients:
            client.session.leave()
        self.world.settle()
        self.world.settle()
        assert repr(self.world.reconciler) == "<SubscriptionReconciler 0 wanted, 0 acked, 0 open>"
        assert not self.world.alpaca.sent

    # What clients are told

    def check(self) -> None:
        """Each request is answered once, in order; what a client loses besides, Alpaca does not send."""
        for client in self.clients:
            for told in client.session.told:
                if told.request is not None:
                    self._answer(client, told)
                elif told.state is not None:
                    lost = client.asked - told.state - told.withheld
                    assert lost <= self.at_risk
                    client.lose(lost)
                    assert told.state == client.asked - told.withheld
            client.session.told.clear()
            subscriber = client.session.subscriber
            assert subscriber.held == client.asked - subscriber.withheld
            if None not in client.session.queue:  # else the answer to a revocation follows in its order
                assert client.session.state == subscriber.held

    def _answer(self, client: Client, told: Told) -> None:
        request = client.unanswered.popleft()
        if told.error is not None:
            returned = told.error == HICCUP and client.session.subscriber.patient
            assert returned or self.at_risk & request.add or told.error == NOT_IN_THE_PLAN
            return
        assert told.state is not None
        if client.session.subscriber.patient and not self.world.reconciler.closed:
            confirmed = self.world.reconciler.acked | client.session.subscriber.confirmed
            assert request.add - request.lost <= confirmed | self.at_risk, "acknowledged before Alpaca has confirmed"
        brought = request.add - request.lost | request.add & told.state
        asked = (client.asked | brought) - (request.remove - request.add)
        left_out = asked - told.state - told.withheld
        assert left_out <= request.add & self.at_risk
        client.asked = asked - left_out
        assert told.state == client.asked - told.withheld

    # Events of sessions

    @rule(number=NUMBERS, add=TOPICS)
    def subscribe(self, number: int, add: Subscription) -> None:
        self.request(self.clients[number], add, NO_TOPICS)

    @rule(number=NUMBERS, remove=TOPICS)
    def unsubscribe(self, number: int, remove: Subscription) -> None:
        self.request(self.clients[number], NO_TOPICS, remove)

    @rule(number=NUMBERS, add=TOPICS)
    def replace(self, number: int, add: Subscription) -> None:
        self.request(self.clients[number], add, self.clients[number].session.subscriber.wanted - add)

    def request(self, client: Client, add: Subscription, remove: Subscription) -> None:
        client.unanswered.append(Request(add, remove, self.world.now))
        client.session.request(add, remove, self.world.now)
        self.check()

    @rule(number=NUMBERS, topics=TOPICS)
    def revoke(self, number: int, topics: Subscription) -> None:
        client = self.clients[number]
        client.lose(topics)
        for request in client.unanswered:
            request.add -= topics
        client.session.revoke(topics)
        self.check()

    @rule(number=NUMBERS)
    def leave_and_join_again(self, number: int) -> None:
        session = self.clients[number].session
        session.leave()
        assert not session.subscriber.wanted
        self.clients[number] = Client(self.world.session("another", session.subscriber.patient))

    @rule(number=NUMBERS, topics=TOPICS)
    def move_from_another_account(self, number: int, topics: Subscription) -> None:
        self.leave_and_join_again(number)
        client = self.clients[number]
        client.asked = client.session.state = topics
        if self.world.reconciler.closed:
            self.at_risk |= topics
        tell(self.world.reconciler.adopt(client.session.subscriber, topics))
        self.check()

    # Events of Alpaca

    @rule(steps=st.integers(1, 5))
    def send_and_reply(self, steps: int) -> None:
        for _ in range(steps):
            if self.world.under_way is None:
                self.send()
            else:
                self.reply()

    def send(self) -> None:
        world, reconciler = self.world, self.world.reconciler
        wanted = frozenset(reconciler.wanted)
        request = world.send()
        if request is None:
            return
        assert request.topics
        if request.add:
            assert wanted.issuperset(request.topics), "requested though no session wants it"
            assert reconciler.acked.isdisjoint(request.topics), "requested again"
        else:
            assert wanted.isdisjoint(request.topics), "removed though a session wants it"

    def reply(self) -> None:
        request, alpaca = self.world.under_way, self.world.alpaca
        assert request is not None
        topics = frozenset(request.topics)
        if request.add and (alpaca.error(topics) or alpaca.left_out or alpaca.closes_at):
            wanting = [client.session.subscriber.wanted for client in self.clients]
            self.at_risk |= topics.union(*(wanted for wanted in wanting if not wanted.isdisjoint(topics)))
        self.world.reply()
        self.check()

    @rule()
    def fail(self) -> None:
        if self.world.under_way is not None:
            self.world.fail()
            self.check()

    @rule(refused=SYMBOL_SETS, limit=LIMITS)
    def reconnect(self, refused: frozenset[str], limit: int) -> None:
        """Alpaca's rules may be different on the next connection."""
        self.at_risk |= self.in_answer()
        self.world.lose()
        self.world.alpaca.refused, self.world.alpaca.limit = refused, limit
        self.check()

    def in_answer(self) -> Subscription:
        """The topics that are at risk if the connection is closed now: a third close is a verdict."""
        return NO_TOPICS.union(*(client.session.subscriber.wanted for client in self.clients))

    @rule(left_out=SYMBOL_SETS, closes_at=SYMBOL_SETS)
    def change_the_rules(self, left_out: frozenset[str], closes_at: frozenset[str]) -> None:
        self.world.alpaca.left_out, self.world.alpaca.closes_at = left_out, closes_at

    @rule(topics=TOPICS, error=st.sampled_from([None, REFUSED, HICCUP]))
    def report(self, topics: Subscription, error: Error | None) -> None:
        self.at_risk |= topics
        self.world.report(topics, error)
        self.check()

    @rule()
    def refuse_the_feed_or_serve_it_again(self) -> None:
        if self.world.reconciler.closed:
            self.world.reconciler.open()
            return
        self.at_risk |= self.in_answer()
        self.world.lose()
        tell(self.world.reconciler.close(*NOT_IN_THE_PLAN))
        self.check()
        assert not any(client.unanswered for client in self.clients), "a request is still unanswered"

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5, 40.0]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)
        self.check()
        for client in self.clients:
            if not client.session.subscriber.patient:
                assert all(self.world.now - request.made_at < ACK_SECONDS for request in client.unanswered)

    @rule()
    def recover(self) -> None:
        """Once Alpaca answers as it should, each client has what it asked for, and Alpaca sends exactly the union."""
        self.change_the_rules(frozenset(), frozenset())
        for _ in range(2000):
            if self.world.under_way is not None:
                self.reply()
                continue
            self.send()
            if self.world.under_way is None:
                if self.world.reconciler.wanted == self.world.reconciler.acked:
                    break
                self.wait(1.0)
        else:
            raise AssertionError("it never comes to an end")
        for client in self.clients:
            assert not client.unanswered
            assert client.session.subscriber.held == client.session.subscriber.wanted == client.asked
        assert self.world.alpaca.sent == NO_TOPICS.union(*(client.asked for client in self.clients))

    # Invariants

    @invariant()
    def wanted_is_the_union(self) -> None:
        reconciler = self.world.reconciler
        assert reconciler.wanted == NO_TOPICS.union(*(client.session.subscriber.wanted for client in self.clients))
        assert reconciler.idle is not bool(reconciler.wanted)
        assert dict(reconciler.channels) == dict(Counter(channel for channel, _ in reconciler.wanted))

    @invariant()
    def withheld_topics_are_wanted(self) -> None:
        for client in self.clients:
            subscriber = client.session.subscriber
            assert subscriber.withheld <= subscriber.wanted
            assert subscriber.withheld <= {
                topic for topic, absence in self.world.reconciler._absent.items() if absence.told
            }

    @invariant()
    def acked_is_what_alpaca_sends(self) -> None:
        under_way = self.world.under_way
        removed = () if under_way is None or under_way.add else under_way.topics
        assert self.world.reconciler.acked <= self.world.alpaca.sent.difference(removed)

    @invariant()
    def the_differences_are_those_of_wanted_and_acked(self) -> None:
        """They are stored, not computed, since they may have thousands of topics."""
        reconciler = self.world.reconciler
        assert reconciler._missing.keys() == reconciler.wanted - reconciler.acked
        assert reconciler._surplus == reconciler.acked - reconciler.wanted


TestReconcilerMachine = ReconcilerMachine.TestCase
TestReconcilerMachine.settings = settings(stateful_step_count=40)


# Single scenarios


def sessions(world: World, *names: str) -> list[FakeSession]:
    return [world.session(name) for name in names]


def test_only_the_refused_request_gets_the_error() -> None:
    """The requests are sent again one by one, oldest first."""
    world = World(Alpaca(refused="X"))
    good, bad, late = sessions(world, "good", "bad", "late")
    for session, symbols in ((good, "AB"), (bad, "AX"), (late, "C")):
        session.request(trades(*symbols))
    world.settle()
    assert (good.news(), bad.news(), late.news()) == ([trades("A", "B")], [REFUSED], [trades("C")])
    assert world.alpaca.sent == trades("A", "B", "C")
    assert world.send() is None, "the refused topics are not requested again"


def test_a_refusal_after_a_reconnect() -> None:
    """Of what a session had confirmed, only the refused topic is lost: the error comes first, then the state."""
    world = World()
    one, two = sessions(world, "one", "two")
    one.request(trades("A"))
    two.request(trades("A"))
    two.request(trades("X", "C", "D", "E"))
    world.settle()
    assert [one.news(), two.news()] == [[trades("A")], [trades("A"), trades("A", "X", "C", "D", "E")]]
    world.lose()
    world.alpaca.refused = "X"
    world.settle()
    assert one.news() == []
    assert two.news() == [(REFUSED, trades("A", "C", "D", "E"))]
    assert world.alpaca.sent == trades("A", "C", "D", "E")


@pytest.mark.parametrize("error", [HICCUP, (599, "something new")])
@pytest.mark.parametrize("when", ["at first", "after a reconnect"])
def test_an_error_that_is_no_verdict_costs_nothing(error: Error, when: str) -> None:
    """The requests are sent again, one by one, and no session is told."""
    world = World()
    one, two = sessions(world, "one", "two")
    for session, symbols in ((one, "AB"), (two, "C")):
        session.request(trades(*symbols), now=world.now)
    if when == "after a reconnect":
        world.settle()
        world.lose()
    for _ in range(2):
        world.send()
        world.fail(error)
        world.wait(1.0)
    world.settle()
    assert [one.state, two.state] == [trades("A", "B"), trades("C")]
    assert not any(isinstance(news, tuple) for news in one.news() + two.news())
    assert world.alpaca.sent == trades("A", "B", "C")


def test_a_poison_request_beside_a_healthy_session() -> None:
    """Alpaca closes whenever it comes: the healthy session has its data, the poison one is told 400 at last."""
    world = World()
    world.alpaca.closes_at = "X"
    healthy, poison = sessions(world, "healthy", "poison")
    healthy.request(trades("A"))
    poison.request(trades("B", "X"))
    closes = 0
    for _ in range(60):
        if world.send() is None:
            world.wait(1.0)
            continue
        closes += any(symbol == "X" for _, symbol in world.under_way.topics) if world.under_way else 0
        world.reply()
    assert closes == 1 + MAX_CLOSES, "once together with the other, then alone"
    assert healthy.news() == [trades("A")]
    assert poison.news() == [trades("B", "X"), ((400, "invalid syntax"), NO_TOPICS)]
    assert world.alpaca.sent == trades("A")
    assert world.now < 2 * MAX_RETRY_SECONDS


def test_closes_are_no_verdict_while_nothing_is_confirmed() -> None:
    world = World()
    world.alpaca.closes_at = "A"
    session = world.session()
    session.request(trades("A"))
    for _ in range(100):
        if world.send() is None:
            world.wait(10.0)
        else:
            world.reply()
    assert session.state == trades("A")
    world.alpaca.closes_at = ""
    world.settle()
    assert world.alpaca.sent == session.state == trades("A")


def test_a_request_that_fails_holds_up_no_other() -> None:
    world = World()
    failing, other = sessions(world, "failing", "other")
    failing.request(trades("X"))
    world.send()
    for _ in range(5):  # alone from the second time on, with growing waits
        world.fail()
        world.wait(MAX_RETRY_SECONDS)
        world.send()
    world.fail()
    other.request(trades("A"), now=world.now)
    world.settle()
    assert other.news() == [trades("A")]
    assert world.alpaca.sent == trades("A", "X")


def test_a_node_is_told_only_what_alpaca_has_said() -> None:
    """Its request waits as long as Alpaca does not answer; a client's is acknowledged meanwhile."""
    world = World()
    node, client = world.session("node", patient=True), world.session("client")
    node.request(trades("A"), now=world.now)
    client.request(trades("A"), now=world.now)
    world.send()
    for _ in range(10):
        world.wait(ACK_SECONDS)
    assert (node.news(), client.news()) == ([], [trades("A")])
    world.reply()
    assert (node.news(), client.news()) == ([trades("A")], [])


def test_a_request_of_a_node_without_a_verdict_is_returned_to_it() -> None:
    """It holds up the requests of the node's other clients; the node asks again for each of them."""
    world = World()
    node, client = world.session("node", patient=True), world.session("client")
    node.request(trades("A"), now=world.now)
    client.request(trades("B"), now=world.now)
    world.send()
    world.fail()
    assert (node.news(), client.news()) == ([HICCUP], [])
    assert world.reconciler.wanted == trades("B")
    node.request(trades("A"), now=world.now)
    world.settle()
    assert node.news() == [trades("A")]


def test_a_request_is_blamed_for_the_close_of_the_connection_that_carried_it() -> None:
    world = World()
    node, client = world.session("node", patient=True), world.session("client")
    for others in (False, True):
        carried = node.request(trades("A"))
        world.send()
        waiting = client.request(trades("B"))
        world.lose()
        assert (carried.blamed, waiting.blamed) == (True, False)
        assert carried.others_confirmed is others, "on the connection that was closed"
        node.leave()
        node = world.session("node", patient=True)
        world.settle()


def test_closes_are_a_verdict_if_others_are_served_elsewhere() -> None:
    """A node has one client only, but the node to Alpaca was served on each connection that was closed."""
    world = World()
    session = world.session()
    session.request(trades("X"))
    for _ in range(MAX_CLOSES + 1):
        assert session.news() == []
        world.wait(MAX_RETRY_SECONDS)
        session.news()
        request, world.under_way = world.send(), None
        assert request is not None
        tell(world.reconciler.failed(request, world.now, closed=True, others_confirmed=True))
        world.reconciler.lost()
    assert session.news() == [(REFUSED, NO_TOPICS)]
    assert world.reconciler.idle


def test_a_request_may_fail_for_days() -> None:
    world = World()
    session = world.session()
    session.request(trades("A"))
    for _ in range(3000):
        if world.send() is None:
            world.wait(MAX_RETRY_SECONDS)
        else:
            world.fail()
    world.settle()
    assert session.state == world.alpaca.sent == trades("A")


def test_an_answer_that_leaves_a_topic_out_is_told_as_it_is() -> None:
    world = World()
    world.alpaca.left_out = "B"
    session = world.session()
    session.request(trades("A", "B", "C"))
    world.settle()
    assert session.news() == [trades("A", "C")]
    assert world.reconciler.wanted == trades("A", "C")


def test_a_topic_left_out_after_a_provisional_acknowledgement() -> None:
    world = World()
    world.alpaca.left_out = "B"
    session = world.session()
    session.request(trades("A", "B"), now=world.now)
    world.wait(ACK_SECONDS)
    world.settle()
    assert session.news() == [trades("A", "B"), (None, trades("A"))]


def test_a_confirmed_topic_that_is_left_out_later() -> None:
    """It is requested again; its session is told after 30 s, and again when it is back."""
    world = World()
    session = world.session()
    session.request(trades("A", "B"))
    world.settle()
    world.lose()
    world.alpaca.left_out = "B"
    began = world.now
    requests = 0
    while world.now < began + 2 * WITHHELD_SECONDS:
        if world.send() is None:
            world.wait(0.25)
            continue
        requests += ("trades", "B") in (world.under_way.topics if world.under_way else ())
        world.reply()
    assert 4 <= requests <= 9, "with a wait that grows"
    assert session.news() == [trades("A", "B"), (None, trades("A"))]
    world.alpaca.left_out = ""
    world.lose()
    world.settle()
    assert session.news() == [(None, trades("A", "B"))]


def test_a_removal_that_is_refused_is_sent_again() -> None:
    world = World()
    session = world.session()
    session.request(trades("A", "B"))
    world.settle()
    session.request(NO_TOPICS, trades("A"))
    for _ in range(3):
        assert world.send() == UpstreamRequest(False, (("trades", "A"),))
        world.fail()
        assert world.reconciler.acked == trades("A", "B"), "Alpaca goes on sending it"
        assert world.send() is None
        world.wait(MAX_RETRY_SECONDS)
    world.send()
    world.reply()
    assert world.reconciler.acked == world.alpaca.sent == trades("B")


@pytest.mark.parametrize("error", [None, HICCUP, LIMIT_EXCEEDED])
def test_another_proxy_takes_topics_away(error: Error | None) -> None:
    """With a verdict, sessions lose them at once; otherwise they are requested again."""
    world = World()
    one, two = sessions(world, "one", "two")
    one.request(trades("A", "B"))
    two.request(trades("B"))
    world.settle()
    assert one.news() == [trades("A", "B")]
    assert two.news() == [trades("B")]
    world.report(trades("B"), error)
    if error == LIMIT_EXCEEDED:
        assert one.news() == [(error, trades("A"))]
        assert two.news() == [(error, NO_TOPICS)]
        assert world.send() is None
    else:
        world.settle()
        assert one.news() == two.news() == []
        assert world.alpaca.sent == trades("A", "B")


def test_a_late_refusal_of_a_merged_request_at_another_proxy() -> None:
    """It takes the topics of all sessions in it; the session that asked for the refused one loses that alone."""
    world = World()
    one, two = sessions(world, "one", "two")
    one.request(trades("A", "B", "X"))
    two.request(trades("C", "D"))
    world.settle()
    world.alpaca.refused = "X"
    world.report(trades("A", "B", "C", "D", "X"), REFUSED)
    world.settle()
    assert one.news() == [trades("A", "B", "X"), (REFUSED, trades("A", "B"))]
    assert two.news() == [trades("C", "D")]
    assert world.alpaca.sent == trades("A", "B", "C", "D")


def test_a_withheld_topic_that_is_lost_and_requested_again() -> None:
    world = World()
    session = world.session()
    session.request(trades("A", "B"))
    world.settle()
    world.lose()
    world.alpaca.left_out = "B"
    for _ in range(200):
        if world.send() is None:
            world.wait(0.5)
        else:
            world.reply()
    assert session.news() == [trades("A", "B"), (None, trades("A"))]
    world.alpaca.left_out, world.alpaca.refused = "", "B"
    world.lose()
    world.settle()
    assert session.news() == [(REFUSED, trades("A"))]
    world.alpaca.refused = ""
    session.request(trades("B"), now=world.now)
    world.settle()
    assert session.news() == [trades("A", "B")]


def test_a_session_that_unsubscribes_all_the_time_delays_no_other() -> None:
    world = World(Alpaca(refused="X"))
    churn, bad, good = sessions(world, "churn", "bad", "good")
    churn.request(many(500))
    world.settle()
    bad.request(trades("X"), now=world.now)
    good.request(trades("A"), now=world.now)
    for symbol in range(40):
        churn.request(NO_TOPICS, trades(f"SYMBOL{symbol:05}"), now=world.now)
        world.send()
        world.reply()
        world.wait(0.2)
    assert good.state == world.alpaca.sent & trades("A") == trades("A")
    assert bad.state == NO_TOPICS
    assert any(REFUSED in (news, news[0] if isinstance(news, tuple) else None) for news in bad.news())


def test_drops_of_the_network_are_no_verdict_on_a_large_request() -> None:
    """The parts of it that were confirmed in between are not the requests of others."""
    world = World()
    session = world.session()
    session.request(many(5000), now=world.now)
    for _ in range(8):
        for _ in range(2):
            while world.send() is None:
                world.wait(1.0)
            if world.under_way and len(world.alpaca.sent) < 2000:
                world.reply()
        world.lose()
    world.settle()
    assert session.state == world.alpaca.sent == many(5000)


def test_what_alpaca_sends_stays_when_the_symbol_limit_is_reached() -> None:
    world = World()
    one, two = sessions(world, "one", "two")
    one.request(trades("A", "B", "C", "D"))
    two.request(trades("C"))
    world.settle()
    world.lose()
    world.alpaca.limit = 3
    world.settle()
    assert one.state | two.state == world.alpaca.sent
    assert len(world.alpaca.sent) == 3
    assert two.state == trades("C")


def test_a_refusal_of_a_request_that_was_given_up_is_not_assigned_to_another() -> None:
    """The session leaves or unsubscribes while the request is under way; the other must not get the error."""
    for event in ("left", "given up"):
        world = World(Alpaca(refused="XY"))
        refused, other = sessions(world, "refused", "other")
        refused.request(trades("X"))
        other.request(trades("A"))
        request = world.send()
        assert request is not None
        assert set(request.topics) == trades("X", "A")
        if event == "left":
            refused.leave()
        else:
            refused.revoke(trades("X"))
        world.reply()
        world.settle()
        assert other.news() == [trades("A")]
        other.request(trades("Y"))
        world.settle()
        assert other.news() == [REFUSED], "the next refusal is assigned"


def test_a_late_refusal_while_a_later_request_repeats_a_topic() -> None:
    """The refusal comes after the acknowledgement, during the later request."""
    world = World(Alpaca(refused="XY"))
    session, other = sessions(world, "session", "other")
    session.request(trades("A", "X"))
    world.wait(ACK_SECONDS)
    assert session.news() == [trades("A", "X")]
    session.request(trades("A", "Y"), now=world.now)
    other.request(trades("B"), now=world.now)
    world.settle()
    assert session.news() == [(REFUSED, NO_TOPICS), REFUSED]
    assert other.news() == [trades("B")]
    assert not session.subscriber.wanted


def test_a_request_in_several_parts_is_refused_as_a_whole() -> None:
    world = World(Alpaca(refused="X"))
    session = world.session()
    session.request(many(5000) | trades("X"))
    world.settle()
    assert session.news() == [REFUSED]
    assert not world.reconciler.wanted
    assert not world.alpaca.sent


@pytest.mark.parametrize("symbol", ["S{:05}", "S{:05}" + "x" * 58, "é☃{:05}", '"\\{:05}', "\x00\x1f{:05}"])
def test_upstream_requests_are_bounded_in_bytes(symbol: str) -> None:
    """In either codec, with any escapes; all but the last are close to the bound."""
    world = World()
    channels = ("trades", "quotes", "some undocumented channel")
    wanted = frozenset((channel, symbol.format(number)) for channel in channels for number in range(1000))
    session = world.session()
    session.request(wanted)
    for add in (True, False):
        requested: set[Topic] = set()
        sizes = []
        while request := world.send():
            assert request.add is add
            requested |= set(request.topics)
            sizes.append(len(JSON.encode(market.change(add, request.topics))))
            assert len(msgpack.packb(market.change(add, request.topics))) <= REQUEST_BYTES
            world.reply()
        assert requested == wanted
        assert max(sizes) <= REQUEST_BYTES
        assert min(sizes[:-1]) > REQUEST_BYTES - 500
        session.leave()


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    world = World()
    large, small = sessions(world, "large", "small")
    large.request(many(10_000))
    world.send()
    small.request(trades("SPY"))
    world.reply()
    request = world.send()
    assert request is not None
    assert ("trades", "SPY") in request.topics
    assert len(request.topics) > 100  # the remaining bytes are used
    world.reply()
    assert small.news() == [trades("SPY")]


def test_large_requests_take_turns() -> None:
    world = World()
    for session in sessions(world, *"abc"):
        session.request(many(3000, session.subscriber.name))
    first_letters = []
    while request := world.send():
        first_letters.append(request.topics[0][1][0])
        world.reply()
    assert first_letters[:4] == ["a", "b", "c", "a"]


def test_requests_that_go_alone_and_new_ones_take_turns() -> None:
    world = World(Alpaca(refused="X"))
    clients = sessions(world, *"abcdef")
    for session in clients:
        session.request(trades(session.subscriber.name.upper(), *("X" if session is clients[0] else "")))
    world.send()
    world.reply()
    new = world.session("new")
    new.request(trades("NEW"))
    for _ in range(2):
        world.send()
        world.reply()
    assert new.news() == [trades("NEW")]


def test_additions_go_before_removals_unless_the_limit_is_exceeded() -> None:
    world = World(Alpaca(limit=1))
    session = world.session()
    session.request(trades("A"))
    world.settle()
    session.request(NO_TOPICS, trades("A"))
    session.request(trades("B"))
    for expected in (
        UpstreamRequest(True, (("trades", "B"),)),
        UpstreamRequest(False, (("trades", "A"),)),
        UpstreamRequest(True, (("trades", "B"),)),
    ):
        assert world.send() == expected
        world.reply()
    assert session.news() == [trades("A"), NO_TOPICS, trades("B")]
    session.request(NO_TOPICS, trades("B"))
    session.request(trades("C"))
    assert world.send() == UpstreamRequest(True, (("trades", "C"),)), "removals go first only once"


@pytest.mark.parametrize("refused", [True, False])
def test_a_request_that_replaces_topics_adds_and_removes_or_does_neither(refused: bool) -> None:
    """As `listen` does; a request made in the meantime is not lost with it."""
    world = World(Alpaca(refused="X" if refused else ""))
    session = world.session()
    session.request(trades("A", "B"))
    world.settle()
    assert session.news() == [trades("A", "B")]
    session.request(trades("X"), trades("A", "B"))
    session.request(trades("A"))
    world.settle()
    assert session.news() == ([REFUSED, trades("A", "B")] if refused else [trades("X"), trades("A", "X")])
    assert world.reconciler.wanted == world.alpaca.sent == session.subscriber.held


def test_a_topic_that_is_being_removed_is_not_acknowledged() -> None:
    """Data would be missing between an acknowledgement at once and the next addition."""
    world = World()
    one, two = sessions(world, "one", "two")
    one.request(trades("A"))
    world.settle()
    one.leave()
    assert world.send() == UpstreamRequest(False, (("trades", "A"),))
    two.request(trades("A"))
    world.reply()
    assert two.news() == []
    assert world.send() == UpstreamRequest(True, (("trades", "A"),))
    world.reply()
    assert two.news() == [trades("A")]


def test_acked_topics_are_acknowledged_at_once() -> None:
    world = World()
    one, two = sessions(world, "one", "two")
    one.request(trades("A", "B"))
    world.settle()
    for add, remove in ((trades("A"), NO_TOPICS), (NO_TOPICS, NO_TOPICS), (NO_TOPICS, trades("C"))):
        two.request(add, remove)
        assert two.news() == [trades("A")]
    assert world.send() is None


def test_each_request_has_its_own_outcome() -> None:
    """A topic of a refused request is not refused to another request."""
    world = World(Alpaca(refused="X"))
    session = world.session()
    for symbols in ("AX", "A", "X"):
        session.request(trades(*symbols))
    world.settle()
    assert session.news() == [REFUSED, trades("A"), REFUSED]
    assert world.alpaca.sent == session.subscriber.wanted == trades("A")


def test_a_provisional_acknowledgement_is_not_a_confirmation() -> None:
    """A repeated request waits for Alpaca again, until Alpaca has confirmed."""
    world = World()
    session = world.session()
    session.request(trades("A"), now=world.now)
    world.wait(ACK_SECONDS)
    assert session.news() == [trades("A")]
    session.request(trades("A"), now=world.now)
    assert session.news() == []
    world.settle()
    assert session.news() == [trades("A")]
    for _ in range(100):
        session.request(trades("A"), now=world.now)
    assert session.news() == [trades("A")] * 100
    assert repr(world.reconciler) == "<SubscriptionReconciler 1 wanted, 1 acked, 0 open>", "nothing is left of them"


def test_what_is_confirmed_is_one_set_whatever_the_number_of_requests() -> None:
    world = World()
    session = world.session()
    for number in range(3000):
        session.request(trades(f"S{number}"))
        world.settle()
    assert len(session.subscriber.confirmed) == len(session.state) == 3000
    assert not session.subscriber.remembered
    assert repr(world.reconciler) == "<SubscriptionReconciler 3000 wanted, 3000 acked, 0 open>"


def test_resent_topics_are_not_lost_with_a_refusal() -> None:
    """Python's SDKs resend all topics at every change; the new symbol may be refused, the others stay."""
    world = World(Alpaca(refused="X"))
    session = world.session()
    session.request(trades("A", "B"))
    world.settle()
    session.request(trades("A", "B", "X"))
    world.settle()
    assert session.news() == [trades("A", "B"), REFUSED]
    assert world.alpaca.sent == session.subscriber.held == trades("A", "B")


def test_many_requests_during_an_outage() -> None:
    """The open requests stay few, and all topics are requested in the end."""
    world = World()
    session = world.session()
    for number in range(500):
        session.request(trades("A", f"S{number}", f"S{number + 1}"), now=world.now)
        world.wait(10.0)
        assert len(session.subscriber.remembered) <= MAX_REMEMBERED
    everything = trades("A", *(f"S{number}" for number in range(501)))
    assert world.reconciler.wanted == session.state == everything
    session.news()
    world.settle()
    assert session.news() == []
    assert world.alpaca.sent == everything


def test_a_feed_that_is_not_in_the_plan_refuses_every_request_until_it_is() -> None:
    """Provisional requests are refused too; topics confirmed once are not."""
    world = World()
    confirmed, provisional, waiting, later = sessions(world, "confirmed", "provisional", "waiting", "later")
    confirmed.request(trades("K"))
    world.settle()
    assert confirmed.news() == [trades("K")]
    world.lose()
    for symbol in "RS":
        provisional.request(trades(symbol), now=world.now)
        world.wait(ACK_SECONDS)
    assert provisional.news() == [trades("R"), trades("R", "S")]
    waiting.request(trades("A"), now=world.now)
    waiting.request(NO_TOPICS, trades("C"), now=world.now)
    waiting.request(trades("B"), now=world.now)
    assert not world.reconciler.closed
    tell(world.reconciler.close(*NOT_IN_THE_PLAN))
    assert confirmed.news() == []
    assert provisional.news() == [(NOT_IN_THE_PLAN, NO_TOPICS)]
    assert waiting.news() == [NOT_IN_THE_PLAN, NO_TOPICS, NOT_IN_THE_PLAN]
    assert world.reconciler.closed
    later.request(trades("B"))
    later.request(NO_TOPICS, trades("B"))
    assert later.news() == [NOT_IN_THE_PLAN, NO_TOPICS]
    assert world.reconciler.wanted == trades("K")
    world.reconciler.open()
    later.request(trades("B"))
    world.settle()
    assert later.news() == [trades("B")]
    assert world.alpaca.sent == trades("K", "B")


def test_a_request_is_wanted_while_its_topics_are_taken_up() -> None:
    """A session that moves to another account between two chunks of its request takes all of it along."""
    world = World()
    session = world.session()
    topics = many(20_000)
    request = PendingRequest(session.subscriber, topics, NO_TOPICS, 0.0)
    session.queue.append(request)
    wanted = [session.subscriber.wanted for _ in world.reconciler.request(request)]
    assert len(wanted) > 1
    assert {*wanted, session.subscriber.wanted} == {topics}


def test_a_subscriber_from_another_account() -> None:
    """A topic that the new account refuses is lost, and nothing else."""
    world = World(Alpaca(refused="X"))
    session = world.session()
    assert world.reconciler.adopt(session.subscriber, trades("A", "B", "X", "Y")) == []
    assert session.subscriber.held == trades("A", "B", "X", "Y")
    world.settle()
    assert session.news() == [(REFUSED, trades("A", "B", "Y"))]
    assert world.alpaca.sent == trades("A", "B", "Y")
    assert world.reconciler.adopt(world.session().subscriber, NO_TOPICS) == []


def test_a_subscriber_from_another_account_on_a_closed_feed() -> None:
    world = World()
    world.reconciler.close(*NOT_IN_THE_PLAN)
    session = world.session()
    tell(world.reconciler.adopt(session.subscriber, trades("A", "B")))
    assert session.news() == [(NOT_IN_THE_PLAN, NO_TOPICS)]
    assert world.reconciler.idle


def test_revoked_topics_are_in_no_answer() -> None:
    """Neither in the state, nor in a request that is not answered yet; the answer comes in order."""
    world = World()
    session = world.session()
    session.request(trades("A", "B"))
    world.settle()
    session.request(trades("C", "D"))
    session.news()
    session.revoke(trades("B", "C"))
    assert session.news() == []
    assert session.subscriber.held == trades("A")
    world.settle()
    assert session.news() == [trades("A", "D"), (None, trades("A", "D"))]
    assert world.alpaca.sent == trades("A", "D")
    session.request(trades("B"))
    world.settle()
    assert session.news() == [trades("A", "B", "D")]


def test_reprs() -> None:
    world = World()
    session = world.session("momentum")
    session.request(trades("A", "B"))
    assert repr(session.subscriber) == "<Subscriber momentum 0 topics, 1 waiting>"
    assert repr(world.reconciler) == "<SubscriptionReconciler 2 wanted, 0 acked, 1 open>"
