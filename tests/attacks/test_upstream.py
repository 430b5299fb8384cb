"""Attacks by a broken or malicious Alpaca.

Their cost is measured at the clients of another account.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.attacks.payloads import array, colliding_map, colliding_prices, encoded, filled, with_map
from tests.attacks.rogue import Connection, Rogue, frame
from tests.attacks.target import CALM_SECONDS, Target, long, send
from tests.harness import BINARY, PING, Wire

pytestmark = pytest.mark.attack

Start = Callable[..., Target]

MIB = 1 << 20
KEYS_BYTES = MIB // 4
MOST_MIB = 200
CRYPTO, OPTIONS, TRADING = "/v1beta3/crypto/us", "/v1beta1/opra", "/stream"


def subscribe(proxy: Target, path: str = "/v2/iex", channel: str = "trades", *, msgpack: bool = False) -> Wire:
    """Subscribe as the victim, and discard what it receives.

    The proxy then connects to the bad account.
    """
    wire = proxy.client(path=path, msgpack=msgpack)
    if path == TRADING:
        wire.send_json({"action": "listen", "data": {"streams": ["trade_updates"]}})
    else:
        send(wire, {"action": "subscribe", channel: ["*"]}, msgpack)
    return proxy.read(wire)


def keys_in(kind: str) -> bytes:
    """Return a frame of one message that contains a map with colliding keys."""
    keys = colliding_map(KEYS_BYTES)
    moment = "2023-04-06T11:54:26.838232225Z"
    match kind:
        case "control":
            return array(with_map({"T": "success", "msg": "hello"}, "more", keys))
        case "acknowledgement":
            return array(with_map({"T": "subscription"}, "trades", keys))
        case "error":
            return array(with_map({"T": "error", "code": 406}, "msg", keys))
        case "trade":
            return array(with_map({"T": "t", "S": "AAPL", "t": moment}, "more", keys))
        case "time":
            return array(with_map({"T": "t", "S": "AAPL"}, "t", keys))
        case "unknown kind":
            return array(with_map({"T": "zz", "S": "AAPL"}, "more", keys))
        case "order book":
            return array(with_map({"T": "o", "S": "BTC/USD", "t": moment, "r": True}, "b", array(keys)))
        case "time of an order book":
            return array(with_map({"T": "o", "S": "BTC/USD", "r": True, "b": [], "a": []}, "t", keys))
        case _:
            return array(keys)


@pytest.mark.parametrize(
    "kind",
    [
        "control",
        long("acknowledgement"),
        long("error"),
        long("trade"),
        long("time"),
        long("unknown kind"),
        long("message"),
        long("order book"),
        long("time of an order book"),
    ],
)
def test_colliding_msgpack_keys(target: Start, kind: str) -> None:
    """Alpaca's msgpack is decoded by type, wherever the map is.

    The victim uses JSON, so the message is transcoded.
    """
    payload = keys_in(kind)
    with Rogue(lambda line: line.send(payload)) as rogue:
        proxy = target(rogue.url)
        subscribe(proxy, *((CRYPTO, "orderbooks") if "book" in kind else ("/v2/iex", "trades")))
        rogue.ready()
        cost = proxy.cost(lambda: rogue.strike(1), 1.5)
    assert cost.excess <= CALM_SECONDS, repr(cost)


def test_colliding_msgpack_keys_on_the_trading_stream(target: Start) -> None:
    """Order updates are decoded as JSON, so msgpack is malformed."""
    data = with_map({"event": "fill"}, "order", colliding_map(KEYS_BYTES))
    payload = with_map({"stream": "trade_updates"}, "data", data)
    with Rogue(lambda line: line.socket.sendall(frame(BINARY, payload))) as rogue:
        proxy = target(rogue.url)
        subscribe(proxy, TRADING)
        rogue.ready()
        cost = proxy.cost(lambda: rogue.strike(1), 1.5)
    assert cost.excess <= CALM_SECONDS, repr(cost)


def test_colliding_prices_of_an_order_book(target: Start) -> None:
    """The hash of an integer has no salt either.

    JSON does not limit the size of integers.
    """
    levels = [{"p": price, "s": 1} for price in colliding_prices(9000)]
    book = json.dumps([{"T": "o", "S": "BTC/USD", "t": "2023-04-06T11:54:26Z", "b": levels, "a": [], "r": True}])
    with Rogue(lambda line: line.send(book.encode())) as rogue:
        proxy = target(rogue.url, account="codec: {crypto: json}")
        subscribe(proxy, CRYPTO, "orderbooks")
        rogue.ready()
        cost = proxy.cost(lambda: rogue.strike(1), 2)
    assert cost.excess <= CALM_SECONDS, repr(cost)


@pytest.mark.parametrize("head", [long("status"), long("header"), "headers"])
def test_an_upgrade_answer_that_does_not_end(target: Start, head: str) -> None:
    """A status line or a header without a newline, and headers without an end.

    The memory is bounded, and other clients are served meanwhile.
    """
    begin, more = {
        "status": (b"HTTP/1.1 101 ", b"x"),
        "header": (b"HTTP/1.1 101 Switching Protocols\r\nX: ", b"x"),
        "headers": (b"HTTP/1.1 101 Switching Protocols\r\n", b"X: y\r\n"),
    }[head]
    flood = more * (16 * 1024 // len(more))
    sent = 0

    def attack(line: Connection) -> None:
        nonlocal sent
        line.socket.sendall(begin)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            line.socket.sendall(flood)
            sent += len(flood)

    with Rogue(attack, at_upgrade=True) as rogue:
        proxy = target(rogue.url)
        subscribe(proxy)
        rogue.ready()
        cost = proxy.cost(lambda: rogue.strike(3), 3)
    assert sent > len(flood)
    assert cost.excess <= CALM_SECONDS, repr(cost)
    assert cost.grown < MOST_MIB, repr(cost)


def assert_cheap(target: Start, attack: Callable[[Connection], None]) -> None:
    """Two seconds of the attack neither delay the witness nor take much memory."""
    with Rogue(attack) as rogue:
        proxy = target(rogue.url)
        subscribe(proxy)
        rogue.ready()
        cost = proxy.cost(lambda: rogue.strike(2), 2)
    assert cost.excess <= CALM_SECONDS, repr(cost)
    assert cost.grown < MOST_MIB, repr(cost)


def test_many_small_fragments(target: Start) -> None:
    """A message of 14 MiB that continues with single bytes.

    Appending one does not copy the others.
    """

    def attack(line: Connection) -> None:
        line.socket.sendall(frame(BINARY, bytes(14 * MIB), first=0))
        for _ in range(20):
            line.socket.sendall(frame(0, b"x", first=0) * 1000)

    assert_cheap(target, attack)


def test_fragments_of_a_message_that_never_ends(target: Start) -> None:
    """The number of empty fragments is bounded.

    They do not count toward the size of the message.
    """

    def attack(line: Connection) -> None:
        line.socket.sendall(frame(BINARY, b"", first=0))
        until = time.monotonic() + 3
        while time.monotonic() < until:
            line.socket.sendall(frame(0, b"", first=0) * 50_000)

    assert_cheap(target, attack)


FRAME_BYTES = 16 * MIB - 64
TIME = b'"t":"2023-04-06T11:54:26Z"'


def levels(size: int) -> bytes:
    """Return an order book in which each level has a new price."""
    each = b",".join(b'{"p":%d,"s":1}' % price for price in range(size // 21))
    return b'[{"T":"o","S":"BTC/USD",%b,"r":true,"a":[],"b":[%b]}]' % (TIME, each)


def full_frame(kind: str) -> bytes:
    """Return one JSON frame of 16 MB."""
    start, unit, end = {
        "objects": (b"[", b"{}", b"]"),
        "trades": (b"[", b'{"T":"t","S":"A"}', b"]"),
        "unasked trades": (b"[", b'{"T":"t","S":""}', b"]"),
        "success": (b'[{"T":"success","x":[', b"[]", b"]}]"),
        "acknowledgement": (b'[{"T":"subscription","trades":[', b'"A"', b"]}]"),
        "conditions": (b'[{"T":"t","S":"AAPL",%b,"c":[' % TIME, b'"@"', b"]}]"),
        "unknown kind": (b'[{"T":"zz","S":"AAPL","x":[', b"[]", b"]}]"),
        "symbols of news": (b'[{"T":"n","id":1,"symbols":[', b'"A"', b"]}]"),
        "legs": (b'{"stream":"trade_updates","data":{"order":{"id":"a","legs":[', b'{"id":"b"}', b"]}}}"),
        "relatives": (b'{"stream":"trade_updates","data":{"order":{"id":"a","x":[', b"[]", b"]}}}"),
    }[kind]
    return filled(unit, FRAME_BYTES, start=start, end=end)


@pytest.mark.parametrize(
    ("kind", "path", "channel", "packed"),
    [
        ("objects", "/v2/iex", "trades", False),
        long("objects", "/v2/iex", "trades", True),
        long("trades", "/v2/iex", "trades", False),
        long("unasked trades", "/v2/iex", "quotes", False),
        long("success", "/v2/iex", "trades", False),
        long("acknowledgement", "/v2/iex", "trades", False),
        long("conditions", "/v2/iex", "trades", False),
        long("unknown kind", "/v2/iex", "trades", False),
        long("symbols of news", "/v1beta1/news", "news", False),
        long("levels", CRYPTO, "orderbooks", False),
        ("legs", TRADING, "", False),
        long("relatives", TRADING, "", False),
    ],
)
def test_one_frame_of_many_objects(target: Start, kind: str, path: str, channel: str, packed: bool) -> None:
    """16 MB that take many times as much memory when decoded.

    The victim uses msgpack, so that JSON is transcoded.
    """
    if packed:
        payload = b"\xdd" + (FRAME_BYTES - 5).to_bytes(4, "big") + b"\x80" * (FRAME_BYTES - 5)
    else:
        payload = levels(FRAME_BYTES) if kind == "levels" else full_frame(kind)
    with Rogue(lambda line: line.send(payload)) as rogue:
        codec = "" if packed else "codec: {iex: json, crypto: json, news: json}"
        proxy = target(rogue.url, account=codec)
        subscribe(proxy, path, channel, msgpack=path != TRADING)
        rogue.ready()
        cost = proxy.cost(lambda: rogue.strike(2), 2)
    assert cost.excess <= CALM_SECONDS, repr(cost)
    assert cost.grown < MOST_MIB, repr(cost)


SYMBOL_BYTES = MIB - 200


@pytest.mark.parametrize("where", ["S", long("T")])
def test_symbols_of_a_megabyte(target: Start, where: str) -> None:
    """They are not subscribed to, and their routes are not cached."""

    def attack(line: Connection) -> None:
        for number in range(350):
            text = f"{number:08}" + "x" * SYMBOL_BYTES
            line.send_json([{"T": "t", "S": "AAPL", where: text}])

    with Rogue(attack) as rogue:
        proxy = target(rogue.url)
        subscribe(proxy)
        rogue.ready()
        grown = proxy.grows(lambda: rogue.strike(6), 6)
    assert grown < MOST_MIB


def test_pings_whose_pongs_are_not_read(target: Start) -> None:
    """The queue of frames to Alpaca is bounded."""

    def attack(line: Connection) -> None:
        flood = frame(PING, bytes(125)) * 4000
        until = time.monotonic() + 6
        while time.monotonic() < until:
            line.socket.sendall(flood)

    with Rogue(attack) as rogue:
        proxy = target(rogue.url)
        subscribe(proxy)
        rogue.ready()
        grown = proxy.grows(lambda: rogue.strike(6), 6)
    assert grown < 24


@pytest.mark.parametrize("key", ["id", long("client_order_id"), long("replaces"), long("leg")])
def test_order_ids_of_100_kilobytes(target: Start, key: str) -> None:
    """3,000 updates, whose order ids would be kept for ownership."""

    def attack(line: Connection) -> None:
        for number in range(3000):
            text = f"{number:08}" + "x" * 100_000
            order = {"id": f"{number}", "client_order_id": f"{number}"}
            order |= {"legs": [{"id": text}]} if key == "leg" else {key: text}
            line.send_json({"stream": "trade_updates", "data": {"event": "new", "order": order}})

    with Rogue(attack) as rogue:
        proxy = target(rogue.url)
        subscribe(proxy, TRADING)
        rogue.ready()
        grown = proxy.grows(lambda: rogue.strike(8), 8)
    assert grown < MOST_MIB


@pytest.mark.parametrize("codec", [long("json"), "msgpack"])
def test_full_order_books(target: Start, codec: str) -> None:
    """Books of 10,000 levels on each side, which are kept for clients that join late."""
    levels = [{"p": 20_000.5 + price, "s": 1.5 + price} for price in range(10_000)]

    def attack(line: Connection) -> None:
        book = {"T": "o", "S": "0000/USD", "t": "2023-04-06T11:54:26Z", "b": levels, "a": levels, "r": True}
        body = encoded([book], codec)
        for number in range(160):
            line.send(body.replace(b"0000", b"%04d" % number))

    with Rogue(attack) as rogue:
        proxy = target(rogue.url, account=f"codec: {{crypto: {codec}}}")
        subscribe(proxy, CRYPTO)
        rogue.ready()
        grown = proxy.grows(lambda: rogue.strike(8), 8)
    assert grown < MOST_MIB


def test_endless_refusals(target: Start) -> None:
    """Error texts of 8 MB are neither kept nor logged in full."""

    def attack(line: Connection) -> None:
        for _ in range(40):
            line.send_json([{"T": "error", "code": 500, "msg": "x" * 8 * MIB}])

    with Rogue(attack) as rogue:
        proxy = target(rogue.url)
        subscribe(proxy)
        rogue.ready()
        grown = proxy.grows(lambda: rogue.strike(5), 5)
        assert max(map(len, proxy.process.lines)) < 64 * 1024
    assert grown < MOST_MIB
