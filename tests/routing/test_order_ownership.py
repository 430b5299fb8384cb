"""The owners of orders, compared with those of a small model, for any orders, allowlists and times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing import order_ownership
from proxy.routing.allowlists import OrderPatterns
from proxy.routing.order_ownership import FAMILY_CHARACTERS, KEEP_SECONDS, MAX_ID, Orders

UPDATES = ("trade_updates", "*")
ACCOUNT = ("account_updates", "*")


def encode(message: Any) -> bytes:
    return json.dumps(message).encode()


# Owners


class Owners:
    """The owners of one account's orders; `allow` is by client, and may be replaced."""

    def __init__(self, **allow: list[str]) -> None:
        self.allow(**allow)
        self.orders = Orders(lambda: self._clients)

    def allow(self, **allow: list[str]) -> None:
        self._clients = {name: OrderPatterns(entries) for name, entries in allow.items()}

    def of(self, id_: str = "", client_order_id: str = "", now: float = 0.0, /, **more: Any) -> set[str]:
        """The clients that receive an update of this order."""
        order = {"id": id_, "client_order_id": client_order_id, "status": "new", **more}
        return {*self.receivers(encode({"event": "any", "order": order}), now)}

    def receivers(self, update: bytes, now: float) -> frozenset[str]:
        return self.orders.owners(update, now) | self.orders.permitted_all()


def test_an_order_without_id_is_matched_by_its_client_order_id() -> None:
    owners = Owners(desk=["desk-*"])
    assert owners.of("", "desk-1") == {"desk"}
    assert owners.of("", "other") == set()
    assert repr(owners.orders) == "<Orders 0 open, 0 final>"


@pytest.mark.parametrize("update", [b"null", b"7", b"{}", b'{"order":null}', b'{"order":[]}'])
def test_an_update_without_an_order_is_permitted_by_the_wildcard_alone(update: bytes) -> None:
    owners = Owners(all=["*"], desk=["desk-*", "symbol:*"])
    assert owners.receivers(update, 0.0) == {"all"}
    assert owners.orders.owners(update, 0.0) == set()


def test_symbols_are_compared_without_slashes() -> None:
    owners = Owners(one=["symbol:BTCUSD"], other=["symbol:ETH/USD"], some=["symbol:ET*"], any=["symbol:*"])
    assert owners.of("1", symbol="BTC/USD") == {"one", "any"}
    assert owners.of("2", symbol="ETHUSD") == owners.of("3", symbol="ETH/USD") == {"other", "some", "any"}
    assert owners.of("4", symbol="") == owners.of("5") == set()


def test_a_client_order_id_is_no_symbol_and_no_wildcard() -> None:
    owners = Owners(one=["symbol:TSLA"], prefix=["s*"])
    assert owners.of("1", "symbol:TSLA") == {"prefix"}
    assert owners.of("2", symbol="TSLA") == {"one"}
    assert owners.of("3", "*", symbol="*") == set()


def test_a_leg_of_several_gives_the_whole_order_to_the_client_of_its_symbol() -> None:
    """A multi-leg order has no symbol of its own; its fills report the legs beside the order."""
    owners = Owners(one=["symbol:AAPL2*"])
    legs = [{"order_id": "a", "symbol": "AAPL240315C00172500"}, {"order_id": "b", "symbol": "SPY240315C00172500"}]
    update = {"event": "fill", "order": {"id": "1", "symbol": "", "legs": None}, "legs": legs}
    assert owners.receivers(encode(update), 0.0) == {"one"}
    assert owners.of("b") == {"one"}


def test_ownership_ends_with_the_pattern_that_gave_it() -> None:
    """A reload has removed one client's pattern; the other keeps its orders, under any pattern that matches."""
    owners = Owners(wide=["desk*"], desk=["desk-*"])
    assert owners.of("1", "desk-1") == {"wide", "desk"}
    owners.allow(wide=["else-*"], desk=["desk-*"])
    assert owners.of("2", "invented", replaces="1") == {"desk"}
    owners.allow(desk=["des*"])
    assert owners.of("2", "invented") == {"desk"}


def test_a_narrowed_allowlist_keeps_what_its_other_patterns_have_inherited() -> None:
    owners = Owners(desk=["*", "a-*", "b-*", "symbol:TSLA"])
    assert owners.of("1", "a-1", symbol="AAPL", legs=[{"id": "2", "client_order_id": "b-1", "symbol": "TSLA"}])
    assert owners.of("3", "invented", replaces="2") == {"desk"}
    for entry in ("a-*", "b-1", "symbol:TSL*"):
        owners.allow(desk=[entry])
        assert owners.of("3") == {"desk"}
    owners.allow(desk=["c-*"])
    assert owners.of("3") == set()


def test_relatives_that_are_learned_later_join_two_families() -> None:
    owners = Owners(one=["a-*"], two=["b-*"])
    assert owners.of("1", "a-1") == {"one"}
    assert owners.of("2", "b-1") == {"two"}
    assert owners.of("3") == set()
    assert owners.of("1", "a-1", replaced_by="3") == {"one"}
    assert owners.of("3") == {"one"}
    assert owners.of("4", legs=[{"id": "2"}, {"id": "3"}]) == {"one", "two"}
    assert owners.of("1") == owners.of("2") == {"one", "two"}


@pytest.mark.parametrize(
    "status", ["new", "held", "partially_filled", "done_for_day", "pending_cancel", "invented", None]
)
def test_an_open_order_is_kept_as_long_as_it_is_open(status: str | None) -> None:
    """The legs of a bracket over a weekend; their parent is long filled."""
    owners = Owners(one=["one-*"])
    leg = {"id": "leg", "client_order_id": "invented", "status": status}
    owners.of("parent", "one-1", status="filled", legs=[leg])
    later = 10 * KEEP_SECONDS
    assert owners.of("parent", "lost", later) == set()
    assert owners.of("leg", "invented", later, status="filled") == {"one"}
    assert owners.of("leg", "invented", later + KEEP_SECONDS - 1) == {"one"}


@pytest.mark.parametrize("status", ["filled", "canceled", "expired", "rejected", "replaced"])
def test_a_final_order_is_kept_for_a_day(status: str) -> None:
    for late in (False, True):
        owners = Owners(one=["one-*"])
        owners.of("1", "one-1", 5.0)
        owners.of("1", "one-1", 5.0 + 3 * KEEP_SECONDS, status=status)
        now = 5.0 + 4 * KEEP_SECONDS - (0 if late else 1)
        assert owners.of("2", "", now, replaces="1") == (set() if late else {"one"})


def test_a_copy_of_an_order_in_its_parent_may_be_older_than_the_order() -> None:
    owners = Owners(one=["one-*"])
    copy = {"id": "leg", "status": "held"}
    owners.of("parent", "one-1", status="filled", legs=[copy])
    owners.of("leg", status="filled")
    owners.of("parent", "one-1", status="filled", legs=[copy])
    assert owners.of("leg", "", KEEP_SECONDS) == set()


def test_the_oldest_final_orders_give_way_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_ownership, "KEEP_ORDERS", 3)
    owners = Owners(one=["one-*"])
    owners.of("open", "one-1")
    for number in range(5):
        owners.of(f"{number}", "one-2", status="filled")
    assert owners.of("open") == {"one"}
    assert [owners.of("", replaces=f"{number}") for number in (4, 3, 1)] == [{"one"}, {"one"}, set()]
    for number in range(5):
        owners.of(f"later {number}")
    assert owners.of("open") == set()


def test_an_order_that_is_replaced_again_and_again_keeps_its_owners() -> None:
    """Its family keeps the first ids, and later ones only for the owners that they add."""
    owners = Owners(one=["one-*"], two=["two-*"])
    owners.of("0", "one-1")
    for number in range(1, 1000):
        owners.of(f"{number}", f"invented {number}", replaces=f"{number - 1}")
    assert owners.of("1000", "two-1", replaces="999") == {"one", "two"}
    assert owners.of("1001", "", replaces="1000") == {"one", "two"}
    family = owners.orders._family_of("1001")
    assert family is not None
    assert sum(len(text) for match in family.matches for text in match) < FAMILY_CHARACTERS + 2 * MAX_ID


# Few enough that orders are named again and again.
NAMES = ("one", "two", "three")
ORDER_IDS = "abcdefghijkl"
IDS = st.sampled_from([*ORDER_IDS])
ENTRIES = st.sampled_from(["*", "x-*", "x-1", "y-*", "symbol:*", "symbol:A*", "symbol:B/C", "symbol:BC"])
ALLOW = st.dictionaries(st.sampled_from(NAMES), st.lists(ENTRIES, min_size=1, max_size=2))
STATUSES = st.sampled_from(["new", "held", "filled", "canceled", "replaced", "done_for_day", None])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "client_order_id": st.sampled_from(["x-1", "x-2", "y-1", "", "symbol:A"]),
    "symbol": st.sampled_from(["A", "AA", "B/C", "BC", ""]),
    "replaces": st.none() | st.none() | IDS,
    "replaced_by": st.none() | st.none() | IDS,
    "status": STATUSES,
}
LEGS = st.none() | st.none() | st.lists(st.fixed_dictionaries({"id": IDS}, optional=FIELDS), max_size=2)
ORDER = st.fixed_dictionaries({"id": IDS | st.just("")}, optional=FIELDS | {"legs": LEGS})
HOURS = st.sampled_from([0.0, 0.0, 0.0, 13.0, 24.0])
STEPS = st.lists(st.tuples(HOURS, st.none() | ALLOW, ORDER), min_size=5, max_size=20)

Step = tuple[float, dict[str, list[str]] | None, dict[str, Any]]
Named = tuple[str, tuple[str, str], bool, bool]


class Model:
    """Families as sets: what is known of each order, and what matches the family."""

    def __init__(self) -> None:
        self.allow: dict[str, list[str]] = {}
        self._families: list[tuple[dict[str, tuple[bool, float]], set[tuple[str, str]]]] = []

    def owners(self, order: dict[str, Any], now: float) -> set[str]:
        """The owners of an order's update, by everything that updates have told before."""
        for known, _ in self._families:
            for id_ in [id_ for id_, (is_open, named_at) in known.items() if not is_open and now - named_at >= 86_400]:
                del known[id_]
        named = [*self._named(order, True)]
        ids = {id_ for id_, *_ in named}
        related = [family for family in self._families if ids & {*family[0]}]
        self._families = [family for family in self._families if family not in related and family[0]]
        known = {id_: state for family in related for id_, state in family[0].items()}
        matches = {match for family in related for match in family[1]} | {match for _, match, _, _ in named}
        for id_, _, is_open, certain in named:
            if id_:
                known[id_] = is_open if certain or id_ not in known else known[id_][0], now
        self._families.append((known, matches))
        return {name for name, entries in self.allow.items() if any(self._matches(entries, *pair) for pair in matches)}

    def _named(self, order: Mapping[str, Any], own: bool) -> Iterator[Named]:
        final = order.get("status") in ("filled", "canceled", "expired", "rejected", "replaced")
        match = order.get("client_order_id", ""), order.get("symbol", "").replace("/", "")
        yield order["id"], match, not final, final or own
        yield order.get("replaces") or "", ("", ""), False, False
        yield order.get("replaced_by") or "", ("", ""), True, False
        for leg in order.get("legs") or ():
            yield from self._named(leg, False)

    @staticmethod
    def _matches(entries: list[str], client_order_id: str, symbol: str) -> bool:
        for entry in entries:
            kind, _, pattern = entry.replace("/", "").rpartition(":")
            text = symbol if kind else client_order_id
            if text and (text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern) and entry != "*":
                return True
        return False


@given(ALLOW, STEPS)
def test_owners_are_those_of_the_model(allow: dict[str, list[str]], steps: list[Step]) -> None:
    """At each update, and at the end for every order."""
    owners, model, now = Owners(), Model(), 0.0
    last: list[Step] = [(0.0, None, {"id": id_}) for id_ in ORDER_IDS]
    for hours, changed, order in [(0.0, allow, {"id": ""}), *steps, *last]:
        now += hours * 3600
        if changed is not None:
            model.allow = changed
            owners.allow(**changed)
        expected = model.owners(order, now)
        received = owners.receivers(encode({"order": order}), now)
        assert received == expected | {name for name, entries in model.allow.items() if "*" in entries}
