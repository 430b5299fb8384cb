"""Order books through the whole proxy.

A late subscriber starts with the whole book, as at Alpaca.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy.simulator import Market
from tests.harness import STAMP, Harness, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  one: {key: one, secret: one, allow: {crypto: "*"}}
  two: {key: two, secret: two, allow: {crypto: {orderbooks: ["BTC/USD"]}}}
"""
PATH = "/v1beta3/crypto/us"
Book = tuple[dict[float, float], dict[float, float]]


def book_of(messages: list[dict[str, Any]], pair: str) -> Book | None:
    """A pair's bids and asks after these messages; None before the first whole book."""
    book: Book | None = None
    for message in messages:
        if message["T"] == "o" and message["S"] == pair:
            book = ({}, {}) if message.get("r") else book
            assert book is not None, "differences before the whole book"
            for side, levels in zip(book, (message["b"], message["a"]), strict=True):
                side.update({level["p"]: level["s"] for level in levels})
    if book is not None:
        book = tuple({price: size for price, size in side.items() if size} for side in book)
    return book


def changes(number: int, **more: Any) -> dict[str, Any]:
    """A message of BTC/USD's book with levels that depend on `number`.

    `r=True` makes it a whole book.
    """
    levels = [{"p": 100 - number % 7, "s": number}, {"p": 90 - number % 5, "s": 0 if number % 3 else number}]
    return {"T": "o", "S": "BTC/USD", "t": STAMP, "b": levels, "a": [{"p": 101 + number % 4, "s": number}], **more}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("path", [PATH, "/v1beta1/crypto"])
def test_a_late_joiner_has_alpacas_book(start: Start, codec: str, path: str) -> None:
    proxy = start(CLIENTS)
    early = proxy.client("one", PATH)
    early.subscribe(orderbooks=["BTC/USD"])
    proxy.simulator.publish("crypto", [changes(0, r=True)])
    for number in range(1, 20):
        proxy.simulator.publish("crypto", [changes(number)])
    early.gather(20)
    late = proxy.client("two", path, codec)
    late.send_json({"action": "subscribe", "orderbooks": ["BTC/USD"]})
    assert late.receive()[0]["T"] == "subscription"
    [first] = late.receive()
    pair = "BTC/USD" if path == PATH else "BTCUSD"
    assert (first["T"], first["S"], first["r"]) == ("o", pair, True)
    assert book_of(late.data, pair) == book_of(early.data, "BTC/USD")
    for number in range(20, 40):
        proxy.simulator.publish("crypto", [changes(number)])
        late.gather(number - 18)
        early.gather(number + 1)
        assert book_of(late.data, pair) == book_of(early.data, "BTC/USD")
    assert len(early.data) == 40, "a message was delivered twice"


def test_books_with_reconnects_and_late_joiners(start: Start) -> None:
    """Each client receives the whole book before its differences.

    Clients join and leave, and Alpaca drops the connection.
    """
    proxy = start(CLIENTS, market=Market(rate=400))
    first = proxy.client("one", PATH, "msgpack")
    first.subscribe(orderbooks=["*"])
    first.gather(50)
    for number in range(4):
        late = proxy.client("two", PATH, "json" if number % 2 else "msgpack")
        late.subscribe(orderbooks=["BTC/USD"])
        late.gather(5)
        assert book_of(late.data, "BTC/USD")
        if number == 1:
            connects = proxy.upstream("crypto").connects
            proxy.simulator.drop("crypto")
            wait_for(lambda before=connects: proxy.upstream("crypto").connects > before)
        late.gather(len(late.data) + 5)
        assert book_of(late.data, "BTC/USD")
        late.ws.close()


def test_a_book_is_discarded_with_its_last_subscriber(start: Start) -> None:
    proxy = start(CLIENTS)
    other, client = proxy.client("one", PATH), proxy.client("two", PATH)
    other.subscribe(trades=["BTC/USD"])
    client.subscribe(orderbooks=["BTC/USD"])
    proxy.simulator.publish("crypto", [changes(0, r=True)])
    client.gather(1)
    client.unsubscribe(orderbooks=["BTC/USD"])
    wait_for(lambda: ("orderbooks", "BTC/USD") not in proxy.upstream("crypto").reconciler.wanted)
    wait_for(lambda: not proxy.requests("crypto"))
    client.subscribe(orderbooks=["BTC/USD"])
    assert client.silent()


def test_a_slow_client_that_conflates_gets_the_whole_book(start: Start) -> None:
    """It replaces hundreds of differences; the resulting book equals Alpaca's."""
    proxy = start(
        CLIENTS + '  slow: {key: slow, secret: slow, outbox: 256KiB, when_slow: conflate, allow: {crypto: "*"}}\n'
    )
    witness = proxy.client("one", PATH)
    witness.subscribe(orderbooks=["BTC/USD"])
    slow = proxy.wire(path=PATH, buffer=4096).log_in("slow", orderbooks=["BTC/USD"])
    proxy.simulator.publish("crypto", [changes(0, r=True)])
    for number in range(1, 401):
        proxy.simulator.publish("crypto", [changes(number, pad="x" * 20_000)])
    witness.gather(401)
    [session] = [c for c in proxy.gateway.server.sessions if c.name == "slow"]
    wait_for(lambda: session.outbox.conflated > 0)
    proxy.simulator.publish("crypto", [changes(401)])
    witness.gather(402)
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1] != changes(401):
        messages += json.loads(slow.receive()[1])
    assert len(messages) < 400
    assert sum("r" in message for message in messages) > 1
    assert book_of(messages, "BTC/USD") == book_of(witness.data, "BTC/USD")
    assert session.outbox.closing is None
    slow.socket.close()
