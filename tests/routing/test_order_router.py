"""The router of the trading feed: members, ownership, and what is held, sent and left out around an outage.

Updates are alone in their frames and in arrays; other messages are returned. What Alpaca's records say comes from a
reader that the tests play.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import order_records, timestamps
from proxy.alpaca.codec import BODY_BYTES, JSON, Codec, Malformed
from proxy.alpaca.endpoints import endpoint
from proxy.alpaca.order_records import RecordedUpdate
from proxy.routing.allowlists import OrderPatterns, SymbolPatterns
from proxy.routing.order_history import OrderHistory
from proxy.routing.order_ownership import Orders
from proxy.routing.order_router import OrderRouter, Recovery
from proxy.routing.router import Delivery
from tests.routing.taking import take

UPDATES = ("trade_updates", "*")
ACCOUNT = ("account_updates", "*")
SECOND = 10**9
NOON = timestamps.nanoseconds("2026-11-27T17:00:00Z")


class Member:
    """A session that listens to order updates."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.codec: Codec = JSON
        self.accepts_unknown: SymbolPatterns | None = None
        self.outages = 0
        self.put: Callable[[bytes, int], None] = lambda frame, messages: None

    def abort(self) -> None:
        raise AssertionError("the router does not end members")


class Reader:
    """Alpaca's records, played by a test: what the router asks for is noted."""

    def __init__(self) -> None:
        self.now = NOON  # Alpaca's time
        self.offset = 0
        self.clock = 0.0
        self.recoveries: list[Recovery | None] = []
        self.lookups: list[str] = []
        self.abandoned: list[str] = []
        self.can_look_up = True

    def local_time(self) -> int:
        return self.now - self.offset

    def clock_offset(self) -> int:
        return self.offset

    def stream_is_up(self, recovery: Recovery | None) -> None:
        self.recoveries.append(recovery)

    def abandon(self, reason: str) -> None:
        self.abandoned.append(reason)

    def look_up(self, order_id: str) -> bool:
        if self.can_look_up:
            self.lookups.append(order_id)
        return self.can_look_up


def make_router(*clients: str, reader: Reader, **patterns: list[str]) -> OrderRouter:
    """A router whose stream is up, with a listening member for each client.

    By default a client owns the orders whose client_order_id begins with its name.
    """
    served = endpoint("trading")
    assert served is not None
    allow = {name: OrderPatterns(patterns.get(name, [f"{name}*"])) for name in (*clients, *patterns)}
    orders = Orders(lambda: allow)
    history = OrderHistory(lambda body, now: orders.known_receivers(body), lambda: NOON)
    router = OrderRouter(served, orders, lambda: reader.clock, history)
    router.reader = reader
    router.acked_changed(frozenset([UPDATES]))
    for name in allow:
        router.set_subscription(Member(name), frozenset([UPDATES]))
    return router


@pytest.fixture
def router() -> OrderRouter:
    """A router without look-ups."""
    reader = Reader()
    reader.can_look_up = False
    return make_router("alpha", "beta", reader=reader)


def update(owner: str, number: int = 1) -> dict[str, Any]:
    order = {"id": f"{owner}-{number}", "client_order_id": f"{owner}-{number}"}
    return {"stream": "trade_updates", "data": {"event": "new", "order": order}}


def encode(message: Any) -> bytes:
    return json.dumps(message).encode()


def received(deliveries: list[Delivery]) -> list[tuple[list[str], Any]]:
    assert all(delivery.messages == 1 and not delivery.text for delivery in deliveries)
    return [([member.name for member in delivery.members], json.loads(delivery.payload)) for delivery in deliveries]


def test_an_update_reaches_its_owner_with_its_bytes(router: OrderRouter) -> None:
    frame = b' { "stream":"trade_updates",\n"data": {"order":{"client_order_id":"beta-7"}, "price":"1.50"} }'
    assert take(router, frame) == []
    [delivery] = router.flush()
    assert delivery.payload == frame
    assert [member.name for member in delivery.members] == ["beta"]
    assert (router.received, router.unrouted) == (1, 0)


def test_an_array_is_the_same_as_its_elements(router: OrderRouter) -> None:
    messages = [update("alpha"), update("gamma"), update("beta"), update("alpha", 2)]
    assert take(router, encode(messages)) == []
    together = received(router.flush())
    assert together == [(["alpha"], messages[0]), (["beta"], messages[2]), (["alpha"], messages[3])]
    for message in messages:
        assert take(router, encode(message)) == []
    assert received(router.flush()) == together
    assert (router.received, router.unrouted) == (8, 2)
    assert take(router, b"[]") == []
    assert router.flush() == []


def test_other_messages_are_returned(router: OrderRouter) -> None:
    """In their order, alone or in an array with updates."""
    authorized = {"stream": "authorization", "data": {"status": "authorized"}}
    listening = {"stream": "listening", "data": {"streams": ["trade_updates"]}}
    returned = take(router, encode([authorized, update("alpha"), listening]))
    assert [json.loads(bytes(body)) for body in returned] == [authorized, listening]
    assert received(router.flush()) == [(["alpha"], update("alpha"))]
    assert take(router, encode(listening)) == [encode(listening)]
    assert router.flush() == []
    assert router.received == 1


def test_updates_of_the_account_reach_every_member_that_listens(router: OrderRouter) -> None:
    message = {"stream": "account_updates", "data": {"cash": "1"}}
    assert take(router, encode(message)) == []
    assert router.flush() == []
    listener = Member("gamma")
    router.set_subscription(listener, frozenset([ACCOUNT]))
    take(router, encode([message]))
    assert received(router.flush()) == [(["gamma"], message)]
    router.revoke(listener, frozenset([ACCOUNT]))
    take(router, encode(message))
    assert router.flush() == []
    assert (router.received, router.unrouted) == (3, 2)


@pytest.mark.parametrize("frame", [b"", b"{", b"[{]", b"nonsense", b"[1,", b"\x80"])
def test_malformed_frames(router: OrderRouter, frame: bytes) -> None:
    with pytest.raises(Malformed):
        take(router, frame)
    assert router.flush() == []


@pytest.mark.parametrize("frame", [b"7", b"null", b'"text"', b'{"stream":7}', b'[7,{"stream":null}]'])
def test_messages_of_no_stream_are_returned(router: OrderRouter, frame: bytes) -> None:
    assert take(router, frame)
    assert router.flush() == []


def test_a_frame_over_the_bound_is_dropped_and_counted(router: OrderRouter) -> None:
    assert take(router, encode(update("alpha") | {"x": "y" * BODY_BYTES})) == []
    assert router.flush() == []
    assert router.irregular["oversized"] == 1


# Recovery after an outage


def at(seconds: float) -> str:
    """Alpaca's time so many seconds after noon."""
    return timestamps.rfc3339(NOON + int(seconds * SECOND))


def live(event: str, order_id: str, seconds: float, filled: str = "0", **order: Any) -> bytes:
    """An update as Alpaca sends it; the client_order_id is the order's id."""
    fields = {"id": order_id, "client_order_id": order_id, "filled_qty": filled, "status": event, **order}
    return encode({"stream": "trade_updates", "data": {"event": event, "order": fields, "timestamp": at(seconds)}})


def fill(order_id: str, seconds: float, filled: str, event: str = "partial_fill") -> RecordedUpdate:
    """A fill in Alpaca's records."""
    activity = {"id": f"{seconds}::1", "order_id": order_id, "type": event, "cum_qty": filled, "qty": "1", "price": "2"}
    found = order_records.fill_of(encode({**activity, "transaction_time": at(seconds), "order_status": event}))
    return order_records.filled(found, order_records.order_of(encode({"id": order_id, "client_order_id": order_id})))


def canceled(order_id: str, seconds: float) -> RecordedUpdate:
    order = {"id": order_id, "client_order_id": order_id, "status": "canceled", "canceled_at": at(seconds)}
    record = order_records.ended(order_records.order_of(encode(order)))
    assert record is not None
    return record


def sent(router: OrderRouter) -> list[tuple[str, str, str, str]]:
    """What was sent since the last call: to whom, event, order and cumulated quantity; marked if it is recovered."""
    lines = []
    for members, message in received(router.flush()):
        data = message["data"]
        mark = "recovered " if data.get("recovered") else ""
        lines.append(
            (",".join(members), mark + data["event"], data["order"]["id"], data["order"].get("filled_qty", ""))
        )
    return lines


def lose(router: OrderRouter, reader: Reader, seconds: float) -> Recovery:
    """An outage of the stream that ends so many seconds after noon; returns the recovery that the router asks for."""
    router.acked_changed(frozenset())
    reader.now = NOON + int(seconds * SECOND)
    router.acked_changed(frozenset([UPDATES]))
    recovery = reader.recoveries[-1]
    assert recovery is not None
    return recovery


def end(router: OrderRouter, *records: RecordedUpdate) -> None:
    """End the recovery with these records."""
    assert router.recovery is not None
    for _ in router.recover(router.recovery, records):
        pass


def fail(router: OrderRouter) -> None:
    """End the recovery without records."""
    assert router.recovery is not None
    for _ in router.recover(router.recovery, None):
        pass


def test_what_was_missed_is_sent_once_and_before_anything_newer_of_its_order() -> None:
    reader = Reader()
    router = make_router("alpha", "beta", reader=reader)
    assert reader.recoveries == [None]  # nothing was missed before the start
    reader.now += 100 * SECOND
    take(router, live("partial_fill", "alpha-1", 1, "10"))
    assert sent(router) == [("alpha", "partial_fill", "alpha-1", "10")]

    recovery = lose(router, reader, 200)
    assert (recovery.since, recovery.until) == (NOON + SECOND, NOON + 200 * SECOND)
    assert recovery.read_since == NOON  # a minute before, but not before the stream's start
    assert {member.name for member in recovery.members} == {"alpha", "beta"}
    reader.now += 10 * SECOND
    take(router, live("partial_fill", "alpha-1", 201, "30"))
    take(router, live("new", "beta-9", 201, created_at=at(200.5)))
    assert sent(router) == [("beta", "new", "beta-9", "0")]  # created after the outage: nothing of it was missed

    end(
        router,
        fill("alpha-1", 1, "10.0"),
        fill("alpha-1", 150, "20"),
        fill("alpha-1", 201, "30"),
        canceled("beta-1", 160),
    )
    assert sent(router) == [
        ("alpha", "recovered partial_fill", "alpha-1", "20"),
        ("beta", "recovered canceled", "beta-1", ""),
        ("alpha", "partial_fill", "alpha-1", "30"),
    ]
    assert router.recovered == 2
    take(router, live("fill", "alpha-1", 202, "40"))
    assert sent(router) == [("alpha", "fill", "alpha-1", "40")]


def test_a_recovered_update_has_what_alpaca_records_of_it() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    lose(router, reader, 200)
    end(router, fill("alpha-1", 150, "20", "fill"))
    [(_, message)] = received(router.flush())
    assert message == {
        "stream": "trade_updates",
        "data": {
            "event": "fill",
            "order": {"id": "alpha-1", "client_order_id": "alpha-1", "filled_qty": "20", "status": "fill"},
            "price": "2",
            "qty": "1",
            "timestamp": at(150),
            "recovered": True,
        },
    }


def test_a_live_update_that_equals_a_recovered_one_is_left_out() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    lose(router, reader, 200)
    end(router, fill("alpha-1", 199, "20"), canceled("alpha-2", 199))
    assert len(sent(router)) == 2
    take(router, live("partial_fill", "alpha-1", 199, "20.00"))
    take(router, live("canceled", "alpha-2", 199))
    assert sent(router) == []
    take(router, live("canceled", "alpha-1", 203, "20"))
    assert sent(router) == [("alpha", "canceled", "alpha-1", "20")]


def test_after_a_start_an_idle_close_and_a_loss_without_listeners_nothing_is_recovered() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    [(member, _)] = router.subscriptions()
    router.remove(member)
    router.acked_changed(frozenset())
    router.acked_changed(frozenset([UPDATES]))
    router.set_subscription(member, frozenset([UPDATES]))
    assert reader.recoveries == [None, None]


def test_the_records_are_read_from_a_minute_before_the_last_update() -> None:
    """Which is Alpaca's time, however wrong this machine's clock is."""
    reader = Reader()
    router = make_router("alpha", reader=reader)
    reader.now += 500 * SECOND
    take(router, live("new", "alpha-1", 300))
    assert lose(router, reader, 600).read_since == NOON + 240 * SECOND
    take(router, live("new", "alpha-2", 600))
    take(router, live("new", "alpha-3", 400))  # late
    end(router)
    assert lose(router, reader, 700).read_since == NOON + 540 * SECOND
    end(router)
    reader.now += 100 * SECOND
    reader.offset = 30 * SECOND  # this machine's clock turns out to be late
    assert lose(router, reader, 900).read_since == NOON + 670 * SECOND


def test_a_recovery_that_fails_sends_what_was_held() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    lose(router, reader, 200)
    take(router, live("fill", "alpha-1", 201, "30"))
    assert sent(router) == []
    fail(router)
    assert sent(router) == [("alpha", "fill", "alpha-1", "30")]
    assert router.recovery is None
    assert lose(router, reader, 300).read_since == NOON + 200 * SECOND  # what was not read before is not read any more


def test_a_session_that_listens_later_receives_nothing_that_was_missed_before() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    lose(router, reader, 200)
    late = Member("alpha")
    router.set_subscription(late, frozenset([UPDATES]))
    take(router, live("fill", "alpha-1", 201, "30"))
    end(router, fill("alpha-1", 150, "20"))
    assert sent(router) == [
        ("alpha", "recovered partial_fill", "alpha-1", "20"),
        ("alpha,alpha", "fill", "alpha-1", "30"),
    ]


def test_a_loss_during_the_recovery_is_recovered_from_the_first_one_on() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    first = lose(router, reader, 200)
    take(router, live("partial_fill", "alpha-1", 200, "10"))
    second = lose(router, reader, 300)
    assert (second.since, second.until) == (first.since, NOON + 300 * SECOND)
    end(router, fill("alpha-1", 150, "5"), fill("alpha-1", 250, "15"))
    assert [line[3] for line in sent(router)] == ["5", "10", "15"]


def test_too_many_new_updates_during_a_recovery_end_it() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    lose(router, reader, 200)
    for number in range(12):
        take(router, live("partial_fill", "alpha-1", 201, str(number), note="x" * 1_000_000))
    assert len(reader.abandoned) == 1
    assert sent(router) == []
    fail(router)
    assert [line[3] for line in sent(router)] == [str(number) for number in range(12)]


# Owners that are looked up


def learn_leg(router: OrderRouter) -> None:
    parent = {"id": "alpha-1", "client_order_id": "alpha-1", "legs": [{"id": "leg"}]}
    router.orders.learn(JSON.fields(encode(parent)), 0.0)


def test_an_update_without_an_owner_waits_for_its_look_up_but_not_with_the_wildcard() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader, all=["*"])
    take(router, live("new", "leg", 1))
    take(router, live("partial_fill", "leg", 2, "5"))
    take(router, live("new", "alpha-2", 2))
    assert reader.lookups == ["leg"]
    assert sent(router) == [
        ("all", "new", "leg", "0"),
        ("all", "partial_fill", "leg", "5"),
        ("alpha,all", "new", "alpha-2", "0"),
    ]
    router.orders.learn(
        JSON.fields(encode({"id": "alpha-1", "client_order_id": "alpha-1", "legs": [{"id": "leg"}]})), 0
    )
    router.looked_up("leg")
    assert sent(router) == [("alpha", "new", "leg", "0"), ("alpha", "partial_fill", "leg", "5")]
    take(router, live("fill", "leg", 3, "9"))
    assert sent(router) == [("alpha,all", "fill", "leg", "9")]
    assert router.unowned == 0


def test_an_owner_is_looked_up_once() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    take(router, live("new", "foreign", 1))
    router.looked_up("foreign")
    take(router, live("fill", "foreign", 2, "1"))
    assert (reader.lookups, sent(router), router.unowned, router.unrouted) == (["foreign"], [], 2, 1)


def test_nothing_waits_without_a_look_up() -> None:
    reader = Reader()
    reader.can_look_up = False
    router = make_router("alpha", reader=reader, all=["*"])
    take(router, live("new", "foreign", 1))
    assert sent(router) == [("all", "new", "foreign", "0")]
    assert router.unowned == 1


def test_no_owner_is_looked_up_for_clients_that_are_permitted_everything() -> None:
    reader = Reader()
    router = make_router(reader=reader, all=["*"])
    take(router, live("new", "foreign", 1))
    assert (reader.lookups, sent(router)) == ([], [("all", "new", "foreign", "0")])


def test_event_streams_read_each_update_at_the_place_where_it_was_sent() -> None:
    """An update that waited for its owner is in the history of the wildcard before, and of the owner after, others."""
    reader = Reader()
    router = make_router("alpha", reader=reader, all=["*"])
    take(router, live("new", "leg", 1))
    take(router, live("new", "alpha-2", 2))
    router.orders.learn(
        JSON.fields(encode({"id": "alpha-1", "client_order_id": "alpha-1", "legs": [{"id": "leg"}]})), 0
    )
    router.looked_up("leg")
    read = {
        name: [json.loads(update.body)["order"]["id"] for update in router.history.read(name, 0, 0.0)[0]]
        for name in ("alpha", "all")
    }
    assert read == {"alpha": ["alpha-2", "leg"], "all": ["leg", "alpha-2"]}


def test_an_observer_receives_what_it_matches_and_owns_nothing() -> None:
    """The recorder may name a symbol: the owner of a leg of that symbol is looked up all the same."""
    reader = Reader()
    router = make_router("alpha", reader=reader, observer=["symbol:AAPL"])
    router.orders.observers = frozenset(["observer"])
    take(router, live("new", "leg", 1, symbol="AAPL"))
    assert reader.lookups == ["leg"]
    learn_leg(router)
    router.looked_up("leg")
    take(router, live("fill", "stranger", 2, symbol="AAPL"))
    router.looked_up("stranger")
    assert sent(router) == [("alpha,observer", "new", "leg", "0"), ("observer", "fill", "stranger", "0")]
    assert router.unowned == 1


# Around a recovery


def test_a_second_outage_after_a_quiet_hour_sends_nothing_again() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    reader.now += 7200 * SECOND
    for number, event in ((5, "partial_fill"), (10, "fill")):
        take(router, live(event, "alpha-1", 60, str(number)))
    assert len(sent(router)) == 2
    lose(router, reader, 7200)
    take(router, live("new", "alpha-2", 7201))
    end(router, fill("alpha-1", 60, "5"), fill("alpha-1", 60, "10"), canceled("alpha-3", 7100))
    assert sent(router) == [("alpha", "new", "alpha-2", "0"), ("alpha", "recovered canceled", "alpha-3", "")]


def test_an_order_that_is_new_between_two_outages_is_recovered_after_the_second() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    lose(router, reader, 200)
    take(router, live("new", "alpha-1", 201))
    lose(router, reader, 300)
    end(router, fill("alpha-1", 250, "10"))
    assert [line[1] for line in sent(router)] == ["new", "recovered partial_fill"]


def test_a_session_that_begins_to_listen_during_a_recovery_receives_what_is_live() -> None:
    """Although the records had it first, so that the others have received it from there."""
    reader = Reader()
    router = make_router("alpha", reader=reader)
    lose(router, reader, 200)
    late = Member("alpha")
    router.set_subscription(late, frozenset([UPDATES]))
    end(router, fill("alpha-1", 150, "5"), fill("alpha-1", 201, "10"))
    assert [line[0] for line in sent(router)] == ["alpha", "alpha"]
    take(router, live("partial_fill", "alpha-1", 201, "10"))
    [delivery] = router.flush()
    assert delivery.members == [late]


def test_an_older_recovery_changes_nothing_of_a_newer_one() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    first = lose(router, reader, 200)
    sending = router.recover(first, [fill("alpha-1", 150, "5"), fill("alpha-1", 160, "10")])
    next(sending)
    lose(router, reader, 300)
    for _ in sending:
        pass
    assert router.recovery is reader.recoveries[-1]
    end(router, fill("alpha-1", 150, "5"), fill("alpha-1", 160, "10"), fill("alpha-1", 250, "15"))
    assert [line[3] for line in sent(router)] == ["5", "10", "15"]


def test_a_session_receives_nothing_of_an_outage_before_it_listened() -> None:
    """The first recovery had not ended when the stream was lost again."""
    reader = Reader()
    router = make_router("alpha", reader=reader)
    lose(router, reader, 200)
    late = Member("alpha")
    router.set_subscription(late, frozenset([UPDATES]))
    lose(router, reader, 300)
    end(router, fill("alpha-1", 150, "5"), fill("alpha-1", 250, "10"))
    assert [line[0] for line in sent(router)] == ["alpha", "alpha,alpha"]


def test_a_session_that_was_told_that_it_listens_while_alpaca_was_away_misses_nothing() -> None:
    reader = Reader()
    router = make_router(reader=reader, alpha=["alpha*"])
    [(member, _)] = router.subscriptions()
    router.remove(member)
    router.acked_changed(frozenset())  # lost, without a listener
    reader.now += 50 * SECOND
    router.set_subscription(member, frozenset([UPDATES]))  # acknowledged as remembered
    reader.now += 50 * SECOND
    router.acked_changed(frozenset([UPDATES]))
    recovery = router.recovery
    assert recovery is not None
    assert recovery.since == NOON + 50 * SECOND
    end(router, fill("alpha-1", 70, "5"))
    assert len(sent(router)) == 1


def test_a_repeat_is_left_out_for_a_minute() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    lose(router, reader, 200)
    end(router, fill("alpha-1", 150, "5"))
    assert len(sent(router)) == 1
    for seconds, count in ((59.9, 0), (60.0, 1)):
        reader.clock = seconds
        take(router, live("partial_fill", "alpha-1", 150, "5"))
        assert len(sent(router)) == count


def test_done_for_day_comes_again_the_next_day() -> None:
    reader = Reader()
    router = make_router("alpha", reader=reader)
    reader.now += 86_400 * SECOND
    take(router, live("done_for_day", "alpha-1", 60))
    lose(router, reader, 86_500)
    order = {"id": "alpha-1", "client_order_id": "alpha-1", "status": "done_for_day", "updated_at": at(86_460)}
    record = order_records.ended(order_records.order_of(encode(order)))
    assert record is not None
    end(router, record)
    assert [line[1] for line in sent(router)] == ["done_for_day", "recovered done_for_day"]


# Any outages

EVENTS = st.tuples(
    st.sampled_from(["alpha-1", "alpha-2", "beta-1"]), st.sampled_from(["part", "lose", "part", "recover"])
)


@given(st.lists(st.tuples(EVENTS, st.booleans()), max_size=30))
def test_every_fill_is_sent_once_and_in_order_through_any_outages(steps: list[tuple[tuple[str, str], bool]]) -> None:
    """Each step is a fill, the begin or the end of an outage, or the end of a recovery."""
    reader = Reader()
    router = make_router("alpha", "beta", reader=reader)
    quantity = dict.fromkeys(["alpha-1", "alpha-2", "beta-1"], 0)
    records: list[RecordedUpdate] = []
    heard: list[tuple[str, str, str, str]] = []
    is_up, late = True, []
    for number, ((order_id, step), delayed) in enumerate(steps, 1):
        reader.now = NOON + number * SECOND
        if step == "part":
            quantity[order_id] += 1
            records.append(fill(order_id, number, str(quantity[order_id])))
            if is_up:
                frame = live("partial_fill", order_id, number, str(quantity[order_id]))
                if delayed:  # recorded before it is sent
                    late.append(frame)
                else:
                    for earlier in [*late, frame]:
                        take(router, earlier)
                    late.clear()
        elif step == "lose" and is_up:
            is_up, late = False, []
            router.acked_changed(frozenset())
        elif not is_up:
            is_up = True
            router.acked_changed(frozenset([UPDATES]))
        elif step == "recover" and router.recovery is not None:
            end(router, *records)
        heard += sent(router)
    if not is_up:
        router.acked_changed(frozenset([UPDATES]))
    for frame in late:
        take(router, frame)
    if router.recovery is not None:
        end(router, *records)
    heard += sent(router)
    for order_id, last in quantity.items():
        told = [line for line in heard if line[2] == order_id]
        assert [line[3] for line in told] == [str(number) for number in range(1, last + 1)]
        assert {line[0] for line in told} <= {order_id.split("-")[0]}
