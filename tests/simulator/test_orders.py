"""The order updates of the synthetic market."""

from __future__ import annotations

from random import Random

from proxy.cli import demonstration
from proxy.simulator.market import SECOND, Market
from proxy.simulator.orders import STRATEGIES, OrderTape


def test_without_foreign_orders_each_order_leads_to_a_strategy() -> None:
    """By its own id, the order that it replaces, or the one whose leg it is."""
    tape = OrderTape(Market(foreign_orders=0), Random(1), 0)
    owned: set[str] = set()
    seen: set[str] = set()
    for second in range(600):
        for message in tape.advance(second * SECOND):
            order = message["data"]["order"]
            seen.add(order["id"])
            if order["client_order_id"].startswith(STRATEGIES) or order["replaces"] in owned:
                owned |= {order["id"], *(leg["id"] for leg in order["legs"] or ())}
    assert len(seen) > 100
    assert seen == owned


def test_the_demo_has_a_client_for_each_strategy() -> None:
    """The owner of any other order would be looked up by REST."""
    allowed = demonstration.Market.simulated().allow
    assert all(f'trade_updates: ["{strategy}-*"]' in allowed[strategy] for strategy in STRATEGIES)
