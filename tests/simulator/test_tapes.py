"""The synthetic market: the fields and the consistency of its messages."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.alpaca import endpoints as feeds
from proxy.alpaca import timestamps
from proxy.alpaca.endpoints import CHANNEL_OF_KIND
from proxy.simulator import wire
from proxy.simulator.exchange import Exchange
from proxy.simulator.market import MAX_SYMBOLS, SECOND, Bar, Market, Walk

START = 1_700_000_000 * SECOND
LIVELY = Market(rate=500, bar_seconds=2, news_seconds=0.5, order_seconds=0.2)

NUMBER = (int, float)
STAMP = "stamp"
TEXTS = "texts"
LEVELS = "levels"

# kind → its keys in Alpaca's documented order, with their types: stocks first, then the other feeds' differences.
BAR = {"o": NUMBER, "h": NUMBER, "l": NUMBER, "c": NUMBER, "v": int, "t": STAMP, "n": int, "vw": NUMBER}
STOCKS: dict[str, dict[str, Any]] = {
    "t": {"i": int, "x": str, "p": NUMBER, "s": int, "c": TEXTS, "z": str, "t": STAMP},
    "q": {
        "bx": str, "bp": NUMBER, "bs": int, "ax": str, "ap": NUMBER, "as": int, "c": TEXTS, "z": str, "t": STAMP,
    },
    "b": BAR,
    "u": BAR,
    "d": BAR,
    "s": {"sc": str, "sm": str, "rc": str, "rm": str, "t": STAMP, "z": str},
    "l": {"u": NUMBER, "d": NUMBER, "i": str, "t": STAMP, "z": str},
    "i": {"p": NUMBER, "z": str, "t": STAMP},
    "c": {
        "x": str, "oi": int, "op": NUMBER, "os": int, "oc": TEXTS,
        "ci": int, "cp": NUMBER, "cs": int, "cc": TEXTS, "t": STAMP, "z": str,
    },
    "x": {"i": int, "x": str, "p": NUMBER, "s": int, "a": str, "z": str, "t": STAMP},
}  # fmt: skip
CRYPTO_BAR = BAR | {"v": NUMBER}
CRYPTO: dict[str, dict[str, Any]] = {
    "t": {"p": NUMBER, "s": NUMBER, "t": STAMP, "i": int, "tks": str},
    "q": {"bp": NUMBER, "bs": NUMBER, "ap": NUMBER, "as": NUMBER, "t": STAMP},
    "b": CRYPTO_BAR,
    "u": CRYPTO_BAR,
    "d": CRYPTO_BAR,
    "o": {"t": STAMP, "b": LEVELS, "a": LEVELS},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "t": {"t": STAMP, "p": NUMBER, "s": int, "x": str, "c": str},
    "q": {"t": STAMP, "bx": str, "bp": NUMBER, "bs": int, "ax": str, "ap": NUMBER, "as": int, "c": str},
}
PRICING = {"x": str, "ip": NUMBER, "mp": NUMBER, "fr": NUMBER, "oi": NUMBER, "t": STAMP, "ft": STAMP}
ORDER = [
    "asset_class", "asset_id", "cancel_requested_at", "canceled_at", "client_order_id", "created_at",
    "expired_at", "extended_hours", "failed_at", "filled_at", "filled_avg_price", "filled_qty", "hwm", "id",
    "legs", "limit_price", "notional", "order_class", "order_type", "qty", "replaced_at", "replaced_by",
    "replaces", "side", "status", "stop_price", "submitted_at", "symbol", "time_in_force", "trail_percent",
    "trail_price", "type", "updated_at",
]  # fmt: skip
SHAPES = {
    "iex": STOCKS,
    "test": STOCKS,
    "crypto": CRYPTO,
    "crypto-perps-global": CRYPTO | {"p": PRICING},
    "opra": OPTIONS,
}


@cache
def run(feed: str, market: Market = LIVELY, seconds: float = 20, seed: int = 0, symbol: str = "*") -> list[Any]:
    """Return all messages of a feed in these seconds."""
    exchange = Exchange(market, seed)
    endpoint = feeds.endpoint(feed)
    assert endpoint is not None
    messages = exchange.follow(feed, endpoint.channels[0], symbol, START)
    for step in range(1, int(seconds * 50) + 1):
        for name, batch in exchange.advance(START + step * SECOND // 50, [feed]):
            assert name == feed
            messages += batch
    return messages


def matches(value: Any, shape: Any) -> bool:
    if shape == STAMP:
        return isinstance(value, str) and timestamps.nanoseconds(value) > START - 86_400 * SECOND
    if shape == TEXTS:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if shape == LEVELS:
        return isinstance(value, list) and all(list(level) == ["p", "s"] and level["s"] >= 0 for level in value)
    return isinstance(value, shape) and not isinstance(value, bool)


@pytest.mark.parametrize("feed", SHAPES)
def test_messages_have_the_documented_fields(feed: str) -> None:
    seen = set()
    for message in run(feed):
        kind = message["T"]
        shape = {"T": str, "S": str} | SHAPES[feed][kind]
        assert list(message) == list(shape)
        assert [key for key, kind_of in shape.items() if not matches(message[key], kind_of)] == []
        seen.add(kind)
    assert seen == set(SHAPES[feed])
    endpoint = feeds.endpoint(feed)
    assert endpoint is not None
    assert {CHANNEL_OF_KIND[kind] for kind in seen} <= set(endpoint.channels)


def test_news_has_the_documented_fields() -> None:
    articles = run("news", seconds=40)
    keys = [
        "T",
        "id",
        "headline",
        "summary",
        "author",
        "created_at",
        "updated_at",
        "url",
        "content",
        "symbols",
        "source",
    ]
    assert all(list(article) == keys and article["T"] == "n" for article in articles)
    assert all(matches(article["created_at"], STAMP) and matches(article["symbols"], TEXTS) for article in articles)
    assert {len(article["symbols"]) for article in articles} == {0, 1, 2}
    assert len({article["id"] for article in articles}) == len(articles) > 50


@pytest.mark.parametrize("feed", [*SHAPES, "news"])
def test_msgpack_keeps_types_and_encodes_timestamps(feed: str) -> None:
    for message in run(feed, seconds=5):
        [decoded] = msgpack.unpackb(wire.encode_data([message], wire.MSGPACK))
        assert list(decoded) == list(message)
        for key, value in message.items():
            if key in ("t", "ft", "created_at", "updated_at"):
                stamp = decoded[key]
                assert stamp.seconds * SECOND + stamp.nanoseconds == timestamps.nanoseconds(value)
            else:
                assert decoded[key] == value
                assert type(decoded[key]) is type(value)


@pytest.mark.parametrize("feed", ["iex", "crypto"])
def test_trade_numbers_have_no_gaps(feed: str) -> None:
    numbers = defaultdict(list)
    for message in run(feed):
        if message["T"] == "t":
            numbers[message["S"]].append(message["i"])
    for ids in numbers.values():
        assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert numbers["AAPL" if feed == "iex" else "BTC/USD"][0] == (1 if feed == "iex" else 3_447_222_699_101_865_076)


@pytest.mark.parametrize("feed", ["iex", "crypto"])
def test_bars_add_up_their_trades(feed: str) -> None:
    trades: dict[str, list[Any]] = defaultdict(list)
    bars = 0
    for message in run(feed):
        if message["T"] == "t":
            trades[message["S"]].append(message)
        elif message["T"] == "b":
            bar_trades, trades[message["S"]] = trades[message["S"]], []
            prices = [trade["p"] for trade in bar_trades]
            sizes = [trade["s"] for trade in bar_trades]
            assert (message["o"], message["h"], message["l"], message["c"]) == (
                prices[0], max(prices), min(prices), prices[-1],
            )  # fmt: skip
            assert message["n"] == len(bar_trades)
            assert message["v"] == pytest.approx(sum(sizes))
            value = sum(price * size for price, size in zip(prices, sizes, strict=True))
            assert message["vw"] == pytest.approx(value / sum(sizes), abs=1e-6)
            bars += 1
    assert bars > 20


def test_updated_bars_add_a_late_trade() -> None:
    bars = {}
    updated = 0
    for message in run("iex"):
        if message["T"] == "b":
            bars[message["S"]] = message
        elif message["T"] == "u":
            bar = bars[message["S"]]
            assert message["t"] == bar["t"]
            assert message["n"] == bar["n"] + 1
            assert message["v"] > bar["v"]
            updated += 1
    assert updated > 5


def test_corrections_and_cancels_refer_to_earlier_trades() -> None:
    trades = {}
    seen = set()
    for message in run("iex", seconds=40):
        if message["T"] == "t":
            trades[message["S"], message["i"]] = message
        elif message["T"] in "cx":
            number = message["oi" if message["T"] == "c" else "i"]
            trade = trades[message["S"], number]
            assert message["x"] == trade["x"]
            assert message["op" if message["T"] == "c" else "p"] == trade["p"]
            seen.add(message["T"])
    assert seen == {"c", "x"}


def test_quotes_are_not_crossed() -> None:
    for feed in ("iex", "crypto", "opra"):
        assert all(message["bp"] < message["ap"] for message in run(feed, seconds=10) if message["T"] == "q")


def test_book_differences_add_up_to_the_next_snapshot() -> None:
    exchange = Exchange(LIVELY, 3)
    [snapshot] = exchange.follow("crypto", "orderbooks", "BTC/USD", START)
    assert snapshot["r"] is True
    sides = {side: {level["p"]: level["s"] for level in snapshot[side]} for side in "ab"}
    for step in range(1, 500):
        for _, batch in exchange.advance(START + step * SECOND // 50, ["crypto"]):
            for message in batch:
                if message["T"] == "o" and message["S"] == "BTC/USD":
                    assert "r" not in message
                    for side in "ab":
                        sides[side].update({level["p"]: level["s"] for level in message[side]})
        sides = {side: {price: size for price, size in levels.items() if size} for side, levels in sides.items()}
        assert max(sides["b"]) < min(sides["a"])
    [whole] = exchange.follow("crypto", "orderbooks", "BTC/USD", START)
    assert {side: {level["p"]: level["s"] for level in whole[side]} for side in "ab"} == sides


def test_the_wildcard_gets_all_books() -> None:
    exchange = Exchange(LIVELY, 0)
    exchange.follow("crypto", "trades", "NEW/USD", START)
    books = exchange.follow("crypto", "orderbooks", "*", START)
    assert {"BTC/USD", "NEW/USD"} <= {book["S"] for book in books}
    assert all(book["r"] is True and book["a"] and book["b"] for book in books)


def test_unknown_symbols_get_data_up_to_a_limit() -> None:
    assert any(message["S"] == "ZZZZ" for message in run("iex", symbol="ZZZZ"))
    exchange = Exchange(LIVELY, 0)
    for number in range(2 * MAX_SYMBOLS):
        exchange.follow("opra", "trades", f"X{number}", START)
    messages = [
        message
        for step in range(1, 600)
        for _, batch in exchange.advance(START + step * SECOND // 10, ["opra"])
        for message in batch
    ]
    assert 100 < len({message["S"] for message in messages}) <= MAX_SYMBOLS


def test_equal_seeds_make_equal_markets() -> None:
    for feed in ("iex", "crypto", "news", "trading"):
        again = run.__wrapped__(feed, seconds=3)
        assert run(feed, seconds=3) == again
        assert run(feed, seconds=3, seed=1) != again


def test_the_rate_is_ticks_a_second() -> None:
    ticks = [message for message in run("opra", Market(rate=40), seconds=10) if message["T"] == "q"]
    assert len(ticks) == pytest.approx(400, abs=10)
    assert run("opra", Market(rate=0), seconds=10) == []
    assert 3 <= len([message for message in run("opra", Market(rate=0.5), seconds=10) if message["T"] == "q"]) <= 5


def test_a_feed_without_clients_does_not_advance() -> None:
    exchange = Exchange(Market(rate=100, bar_seconds=10_000), 0)
    exchange.follow("opra", "trades", "*", START)
    assert list(exchange.advance(START + SECOND, [])) == []
    assert list(exchange.advance(START + 3600 * SECOND, ["opra"])) == []
    [(_, messages)] = exchange.advance(START + 3600 * SECOND + SECOND // 10, ["opra"])
    assert 10 <= len(messages) <= 20


def updates(seconds: float = 120) -> list[Any]:
    messages = run("trading", seconds=seconds)
    assert {message["stream"] for message in messages} == {"trade_updates"}
    return [message["data"] for message in messages]


def test_orders_have_the_documented_fields() -> None:
    events = set()
    for update in updates():
        events.add(update["event"])
        order = update["order"]
        assert {"event", "order", "timestamp", "execution_id", "event_id", "at"} <= set(update)
        assert list(order) == ORDER
        assert all(value is None or isinstance(value, (str, bool, list)) for value in order.values())
        assert len(update["event_id"]) == 26
        assert ("price" in update) == ("position_qty" in update) == (update["event"] in ("fill", "partial_fill"))
        timestamps.nanoseconds(update["timestamp"])
    assert events == {"new", "partial_fill", "fill", "canceled", "replaced"}


def test_orders_have_the_prefixes_of_strategies() -> None:
    prefixes = {update["order"]["client_order_id"].partition("-")[0] for update in updates()}
    assert {"momentum", "meanrev"} < prefixes


def test_a_replacement_is_linked_both_ways() -> None:
    orders = {update["order"]["id"]: update["order"] for update in updates()}
    successors = [order for order in orders.values() if order["replaces"]]
    assert len(successors) > 2
    for order in successors:
        before = orders[order["replaces"]]
        assert before["replaced_by"] == order["id"]
        assert before["status"] == "replaced"
        assert not order["client_order_id"].startswith(("momentum", "meanrev"))


def test_legs_of_a_bracket_are_filled_and_canceled() -> None:
    all_updates = updates()
    orders = {update["order"]["id"]: update["order"] for update in all_updates}
    legs = [leg for order in orders.values() for leg in order["legs"] or ()]
    statuses = [orders[leg["id"]]["status"] for leg in legs if leg["id"] in orders]
    assert {"filled", "canceled"} <= set(statuses)


def test_fills_add_up() -> None:
    filled: dict[str, int] = defaultdict(int)
    for update in updates():
        if update["event"] in ("fill", "partial_fill"):
            order = update["order"]
            filled[order["id"]] += int(update["qty"])
            assert filled[order["id"]] == int(order["filled_qty"])
            assert (update["event"] == "fill") == (order["filled_qty"] == order["qty"])
    assert filled


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_a_walk_stays_near_its_start(seed: int) -> None:
    walk = Walk(Random(seed), 100.0, 0.0004, 2)
    for _ in range(2000):
        price = walk.move()
        assert price == round(price, 2)
    assert 70 < price < 140


def test_a_bar_without_trades_has_average_0() -> None:
    message = Bar(START, 5.5).message("b", "AAPL")
    assert (message["o"], message["v"], message["n"], message["vw"]) == (5.5, 0, 0, 0)
