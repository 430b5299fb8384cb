"""The history of order updates: times that rise, windows, owners, bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.alpaca import order_events, timestamps
from proxy.alpaca.order_events import Window
from proxy.routing import order_history
from proxy.routing.order_history import Forgotten, OrderHistory, Update

SECOND = 1_000_000_000
START = timestamps.nanoseconds("2026-03-02T15:00:00Z")
CLIENTS = ("momentum", "meanrev")
OFFSETS = st.integers(-5, 5)


def owners(body: bytes, now: float) -> set[str]:
    return {json.loads(body)["owner"], "desk"}


def rest(history: OrderHistory, client: str, position: int, now: float = 0.0) -> Iterator[Update]:
    """All updates of a client from a position on."""
    while position < history.end:
        updates, position = history.read(client, position, now)
        yield from updates


class Histories(RuleBasedStateMachine):
    """A history beside a plain list of everything that was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.wall = START  # which may go backwards
        self.now = 0.0
        self.history = OrderHistory(owners, lambda: self.wall)
        self.recorded: list[tuple[int, float, dict[str, object]]] = []

    @rule(
        owner=st.sampled_from(CLIENTS),
        step=st.integers(-3, 3),
        at=st.one_of(
            st.none(),
            OFFSETS,
            st.sampled_from(["", "soon", "2026-13-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"]),
        ),
        size=st.sampled_from([0, 0, 100]),
    )
    def record(self, owner: str, step: int, at: int | str | None, size: int) -> None:
        self.wall += step
        update: dict[str, object] = {"owner": owner, "number": len(self.recorded), "note": "x" * size}
        named = None
        if at is not None:
            update["at"] = at if isinstance(at, str) else timestamps.rfc3339(START + at)
            named = START + at if isinstance(at, int) else None
        body = self.history.record(json.dumps(update).encode(), self.now)
        assert body is not None
        told = json.loads(body)
        time = timestamps.nanoseconds(told["at"])
        assert {**told, "at": None} == {**update, "at": None}
        assert time == order_events.time_of(body)
        last = self.recorded[-1][0] if self.recorded else 0
        assert time > last
        if at != "0001-01-01T00:00:00+14:00":
            assert time == max(self.wall if named is None else named, last + 1)
        self.recorded.append((time, self.now, told))

    @rule(seconds=st.sampled_from([1.0, order_history.KEEP_SECONDS / 3]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(value=st.sampled_from([b"null", b"[]", b"1", b"", b"{", b'"at"']))
    def record_no_object(self, value: bytes) -> None:
        assert self.history.record(value, self.now) is None

    @rule(since=OFFSETS, client=st.sampled_from((*CLIENTS, "desk", "nobody")))
    def read(self, since: int, client: str) -> None:
        """The updates that the plain list has since a time, as far as they are kept."""
        time = self.recorded[-1][0] + since if self.recorded else START
        self.history.read(client, self.history.end, self.now)  # forgets what is too old
        position = self.history.position(time)
        found = [json.loads(update.body) for update in rest(self.history, client, position, self.now)]
        expected = [
            update
            for at, _, update in self.recorded[self.history.begin :]
            if at >= time and client in (update["owner"], "desk")
        ]
        assert found == expected

    @precondition(lambda self: self.history.begin > 0)
    @rule()
    def read_what_is_forgotten(self) -> None:
        with pytest.raises(Forgotten):
            self.history.read("desk", self.history.begin - 1, self.now)

    @invariant()
    def bounds(self) -> None:
        history = self.history
        assert history.end == len(self.recorded)
        assert len(history) <= order_history.KEEP_UPDATES
        assert history.size <= order_history.KEEP_BYTES
        assert history.size == sum(len(u.body) + order_history.UPDATE_BYTES for u in history._updates)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a few steps reach."""
    monkeypatch.setattr(order_history, "KEEP_UPDATES", 12)
    monkeypatch.setattr(order_history, "KEEP_BYTES", 3500)
    monkeypatch.setattr(order_history, "READ_UPDATES", 3)


TestHistories = Histories.TestCase


def test_the_bounds_at_their_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert (order_history.KEEP_UPDATES, order_history.KEEP_BYTES) == (10_000, 16 << 20)
    assert order_history.KEEP_SECONDS == 86_400
    history = OrderHistory(owners, lambda: START)
    for number in range(10_100):
        history.record(b'{"owner":"desk","n":%d}' % number, 0.0)
    assert len(history) == 10_000
    assert json.loads(next(rest(history, "desk", history.begin)).body)["n"] == 100
    for _ in range(20):
        history.record(b'{"owner":"desk","x":"%b"}' % (b"x" * 1_000_000), 1.0)
    assert len(history) == 16
    history.record(b'{"owner":"desk"}', 1.0)
    history.record(b'{"owner":"desk"}', 86_402.0)
    assert len(history) == 1


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40), st.datetimes().map(str)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
UPDATES = st.tuples(
    st.dictionaries(st.sampled_from(["at", "order", "a\n"]), VALUES), st.sampled_from([None, 1]), st.booleans()
).map(lambda parts: json.dumps(parts[0], indent=parts[1], ensure_ascii=parts[2]).encode(errors="surrogatepass"))


def is_object(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=20).map(lambda more: b"{" + more), UPDATES))
def test_any_bytes(body: bytes) -> None:
    """Every object is recorded, as one line of JSON with a time."""
    history = OrderHistory(lambda *_: (), lambda: START)
    told = history.record(body, 0.0)
    assert told is not None or not is_object(body)
    assert told is None or (b"\n" not in told and b"\r" not in told and order_events.time_of(told) > 0)


@pytest.mark.parametrize(
    ("query", "window"),
    [
        ("", Window()),
        ("other=1", Window()),
        ("since=2026-03-02T15%3A00%3A00Z", Window(START)),
        ("since=2026-03-02T15:00:00.000000001Z", Window(START + 1)),
        ("since=2026-03-02T16:00:00%2B01:00&until=2026-03-02T16:00:01+01:00", Window(START, START + SECOND)),
        ("since=2026-03-02&until=", Window(START - 15 * 3600 * SECOND)),
    ],
)
def test_windows(query: str, window: Window) -> None:
    assert Window.of_query(query) == window


@given(st.text(max_size=60))
def test_any_query(query: str) -> None:
    problem = "since"
    try:
        window = Window.of_query(query)
    except ValueError as error:
        window, problem = Window(), str(error)
    assert "since" in problem or "until" in problem
    assert window.until is None or window.since is not None
