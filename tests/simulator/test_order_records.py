"""Orders and fills that the simulator keeps for its REST calls."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.alpaca import timestamps
from proxy.simulator.order_records import FINAL, OrderRecords

NOW = timestamps.nanoseconds("2026-03-02T15:00:00.123456789Z")
STAMP = timestamps.rfc3339(NOW)
EARLIER = "2026-03-02T14:00:00.5Z"
SECOND = 1_000_000_000


@pytest.fixture
def records() -> OrderRecords:
    return OrderRecords()


def update(event: str, order: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"event": event, "order": order, **more}


def state(records: OrderRecords, order_id: str) -> dict[str, Any]:
    record = records.get(order_id)
    assert record is not None
    return record.order


def legs(records: OrderRecords, order_id: str) -> dict[str, str]:
    return {leg.order["id"]: leg.order["status"] for leg in records.legs(order_id)}


def test_a_minimal_order_gets_the_fields_of_rest(records: OrderRecords) -> None:
    given = {"id": "1", "client_order_id": "momentum-1"}
    records.add(update("new", given), NOW)
    order = state(records, "1")
    assert order["status"] == "new"
    assert order["created_at"] == order["submitted_at"] == order["updated_at"] == STAMP
    assert order["filled_qty"] == "0"
    assert order["canceled_at"] is order["legs"] is order["replaces"] is None
    assert given == {"id": "1", "client_order_id": "momentum-1"}  # the published update is unchanged


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ("new", "new"), ("fill", "filled"), ("partial_fill", "partially_filled"), ("canceled", "canceled"),
        ("expired", "expired"), ("replaced", "replaced"), ("rejected", "rejected"), ("done_for_day", "done_for_day"),
        ("pending_cancel", "pending_cancel"), ("order_cancel_rejected", "accepted"), ("trade_bust", "accepted"),
    ],
)  # fmt: skip
def test_the_status_and_its_time_follow_the_event(records: OrderRecords, event: str, status: str) -> None:
    records.place({"id": "1", "status": "accepted"}, (), NOW)
    records.add(update(event, {"id": "1"}, timestamp=EARLIER), NOW)
    order = state(records, "1")
    assert order["status"] == status
    assert {name for name in FINAL.values() if order[name]} == {FINAL[status] for _ in "1" if status in FINAL}
    if status in FINAL:
        assert order[FINAL[status]] == EARLIER


def test_what_an_update_gives_is_kept(records: OrderRecords) -> None:
    given = {"id": "1", "status": "canceled", "canceled_at": EARLIER, "submitted_at": EARLIER, "updated_at": EARLIER}
    records.add(update("canceled", given), NOW)
    assert {name: state(records, "1")[name] for name in given} == given
    assert records.orders()[0].submitted == timestamps.nanoseconds(EARLIER)


def test_later_updates_keep_the_fields_that_they_lack(records: OrderRecords) -> None:
    records.add(update("new", {"id": "1", "symbol": "AAPL", "qty": "3", "status": "new"}), NOW)
    records.add(update("canceled", {"id": "1"}), NOW + SECOND)
    order = state(records, "1")
    assert (order["symbol"], order["status"], order["submitted_at"]) == ("AAPL", "canceled", STAMP)
    assert order["updated_at"] == order["canceled_at"] == timestamps.rfc3339(NOW + SECOND)


def test_fills(records: OrderRecords) -> None:
    order = {"id": "1", "symbol": "AAPL", "side": "buy", "qty": "10"}
    part = {**order, "filled_qty": "4", "status": "partially_filled"}
    records.add(update("partial_fill", part, price="1.5", qty="4", timestamp=EARLIER, execution_id="x"), NOW)
    records.add(update("fill", {**order, "filled_qty": "10"}, price="1.6", qty="6"), NOW)
    first, second = (fill.activity for fill in records.fills())
    assert first == {
        "id": "20260302140000500::x",
        "activity_type": "FILL",
        "transaction_time": EARLIER,
        "type": "partial_fill",
        "price": "1.5",
        "qty": "4",
        "side": "buy",
        "symbol": "AAPL",
        "leaves_qty": "6",
        "order_id": "1",
        "cum_qty": "4",
        "order_status": "partially_filled",
    }
    assert second["id"].startswith("20260302150000123::")
    assert (second["transaction_time"], second["type"], second["order_status"]) == (STAMP, "fill", "filled")
    assert (second["cum_qty"], second["leaves_qty"]) == ("10", "0")


def test_fills_of_minimal_orders_add_up(records: OrderRecords) -> None:
    records.place({"id": "1", "qty": "1.5"}, (), NOW)
    for event, qty in (("partial_fill", "0.25"), ("partial_fill", "0.5"), ("fill", "0.75")):
        records.add(update(event, {"id": "1"}, price="2", qty=qty), NOW)
    activities = [fill.activity for fill in records.fills()]
    assert [each["cum_qty"] for each in activities] == ["0.25", "0.75", "1.5"]
    assert [each["leaves_qty"] for each in activities] == ["1.25", "0.75", "0"]
    assert len({each["id"] for each in activities}) == 3
    assert state(records, "1")["filled_avg_price"] == "2"


def test_an_execution_is_one_activity(records: OrderRecords) -> None:
    for _ in range(2):
        fill = update("fill", {"id": "1", "filled_qty": "1"}, execution_id="x", timestamp=EARLIER)
        records.add(fill, NOW)
    assert len(records.fills()) == 1


def test_legs_that_an_order_carries(records: OrderRecords) -> None:
    """A repeated old state of a leg does not replace the newer one; a newer one does."""
    old = [{"id": "2", "status": "held", "updated_at": EARLIER}, {"id": "3", "updated_at": EARLIER}]
    records.add(update("new", {"id": "1", "legs": old}), NOW)
    assert legs(records, "1") == {"2": "held", "3": "held"}
    records.add(update("new", {"id": "2"}), NOW)
    records.add(update("fill", {"id": "1", "legs": old}), NOW)
    assert legs(records, "1") == {"2": "new", "3": "held"}
    newer = {"id": "3", "status": "canceled", "updated_at": timestamps.rfc3339(NOW + SECOND)}
    records.add(update("new", {"id": "1", "legs": [newer]}), NOW)
    assert legs(records, "1") == {"2": "new", "3": "canceled"}
    assert state(records, "1")["legs"] is None
    assert records.is_leg("2")
    assert not records.is_leg("1")


def test_legs_that_are_placed(records: OrderRecords) -> None:
    """The parent's updates need not carry them. A leg keeps its parent."""
    records.place({"id": "1"}, [{"id": "2"}, {"id": "3", "status": "new"}], NOW)
    records.add(update("fill", {"id": "1"}), NOW)
    records.place({"id": "4"}, [{"id": "2"}, {"id": "4"}], NOW)
    assert legs(records, "1") == {"2": "held", "3": "new"}
    assert legs(records, "4") == {}


@pytest.mark.parametrize(
    "data",
    [
        {}, {"event": "new"}, {"event": "new", "order": "1"}, {"event": "new", "order": {"id": 1}},
        {"order": {"id": "1"}},
    ],
)  # fmt: skip
def test_data_without_an_order_is_left_out(records: OrderRecords, data: dict[str, Any]) -> None:
    records.add(data, NOW)
    assert records.orders() == []
    with pytest.raises(ValueError, match="id"):
        records.place({"symbol": "AAPL"}, (), NOW)


def test_values_of_the_wrong_types_are_recorded(records: OrderRecords) -> None:
    order = {"id": "1", "status": ["new"], "submitted_at": 7, "qty": "much", "filled_qty": {}, "legs": [1, {"id": 2}]}
    records.add(update("partial_fill", order, qty=[], price=1.5, timestamp="soon", execution_id=4), NOW)
    assert state(records, "1")["status"] == "partially_filled"
    assert records.fills()[0].time == records.orders()[0].submitted == NOW


def test_the_oldest_make_room(records: OrderRecords) -> None:
    records = OrderRecords(max_orders=3, max_fills=2)
    records.place({"id": "1"}, [{"id": "2"}], NOW)
    for number in (3, 4):
        records.add(update("fill", {"id": str(number)}), NOW)
    assert [record.order["id"] for record in records.orders()] == ["2", "3", "4"]
    assert not records.is_leg("2")
    assert records.get("1") is None
    records.place({"id": "3"}, [{"id": "4"}, {"id": "2"}], NOW)
    records.add(update("fill", {"id": "5"}), NOW)
    assert legs(records, "3") == {"4": "filled"}
    assert [fill.activity["order_id"] for fill in records.fills()] == ["4", "5"]
