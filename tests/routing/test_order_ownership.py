"""The router of the trading feed: updates alone in their frames and in arrays, and what is no update."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy.alpaca.codec import BODY_BYTES, JSON, Codec, Malformed
from proxy.alpaca.endpoints import endpoint
from proxy.routing.allowlists import SymbolPatterns
from proxy.routing.order_ownership import OrderRouter, Orders
from proxy.routing.router import Delivery
from tests.routing.taking import take

UPDATES = ("trade_updates", "*")
ACCOUNT = ("account_updates", "*")


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


@pytest.fixture
def router() -> OrderRouter:
    """A router with the members alpha and beta, each the owner of the orders whose id begins with its name."""
    served = endpoint("trading")
    assert served is not None
    orders = Orders(lambda id_: [name for name in ("alpha", "beta") if id_.startswith(name)])
    router = OrderRouter(served, orders, lambda: 0.0)
    for name in ("alpha", "beta"):
        router.set_subscription(Member(name), frozenset([UPDATES]))
    return router


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
