"""Faults of one algorithm, by accident or on purpose.

The assertions are about the other algorithms: every message reaches them, once and in order, and their connections
stay open.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest

from proxy.alpaca import market
from proxy.downstream import client_session
from proxy.downstream import session as session_module
from proxy.transport import connection, http_request, listener
from tests import harness
from tests.harness import BINARY, CLOSE, PING, PONG, TEXT, Client, Harness, Wire, quote, trade, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  witness: {key: witness, secret: witness, outbox: 64MiB, allow: {iex: "*"}}
  other: {key: other, secret: other, allow: {iex: "*"}}
  rogue: {key: rogue, secret: rogue, max_connections: 1, outbox: 256KiB, allow: {iex: "*"}}
  many: {key: many, secret: many, max_connections: 1000, allow: {iex: {trades: [AAPL, FAT]}}}
  newest: {key: newest, secret: newest, outbox: 256KiB, when_slow: conflate, allow: {iex: "*"}}
"""
NAMES = ("witness", "rogue")
FAT = "x" * 20_000  # padding: a few hundred such messages exceed the kernel's socket buffers


@pytest.fixture
def proxy(start: Start) -> Harness:
    return start(CLIENTS)


@pytest.fixture
def witness(proxy: Harness) -> Iterator[Client]:
    """An algorithm that must get all trades of AAPL despite another's fault."""
    client = proxy.client("witness")
    client.subscribe(trades=["AAPL"])
    with proxy.undisturbed(client):
        yield client
    wait_for(lambda: len(proxy.gateway.server.sessions) <= 1, "the other sessions have not ended")
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}}, "topics were not unsubscribed")
    assert proxy.gateway._outboxes.pending == 0
    assert proxy.simulator.opened("iex") == 1


def stuck(proxy: Harness, key: str = "rogue", **channels: list[str]) -> Wire:
    """A client that logs in and then reads nothing more."""
    return proxy.wire(buffer=4096).log_in(key, **channels)


def lost(proxy: Harness) -> int:
    """The messages that `rogue` has lost as a slow client, in all its sessions."""
    return proxy.gateway.snapshot().totals["rogue", "iex"].lost.get("slow", 0)


def pour(proxy: Harness, symbol: str = "FAT", count: int = 500) -> None:
    """Publish trades of 20 KB each, numbered from 1; 500 are ten megabytes."""
    for number in range(1, count + 1):
        proxy.simulator.publish("iex", [trade(symbol, number, pad=FAT)])
        if number % 10 == 0:
            gevent.sleep(0.001)


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("start_of_frame", [b"", b"\x81", b"\x81\xfe\x40\x00", b"\x81\x85abcdhel", b"\x01\x80abcd"])
def test_crash_in_the_middle_of_a_frame(proxy: Harness, how: str, start_of_frame: bytes) -> None:
    for _ in range(3):
        wire = proxy.wire().log_in("rogue", trades=["AAPL", "MSFT"])
        wire.socket.sendall(start_of_frame)
        if how == "rst":
            wire.crash()
        else:
            wire.socket.close()
        wait_for(lambda: len(proxy.gateway.server.sessions) == 1)


@pytest.mark.usefixtures("witness")
def test_stops_reading(proxy: Harness) -> None:
    """The messages that fit are delivered without a gap, then error 407 and a close.

    The client can connect again.
    """
    slow = stuck(proxy, trades=["FAT"])
    pour(proxy)
    wait_for(lambda: lost(proxy))
    *data, last, close = slow.rest()
    numbers = [message["i"] for _, payload in data for message in json.loads(payload)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 0 < len(numbers) < 500
    assert last == (TEXT, b'[{"T":"error","code":407,"msg":"slow client"}]')
    assert close[0] == CLOSE
    assert close[1][:2] == (1008).to_bytes(2, "big")
    wait_for(lambda: len(proxy.gateway.server.sessions) == 1)
    totals = proxy.gateway.snapshot().totals["rogue", "iex"]
    assert (totals.delivered, totals.lost) == (len(numbers), {"slow": 500 - len(numbers)})


@pytest.mark.usefixtures("witness")
def test_stops_reading_for_ever(proxy: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Error 407 cannot be delivered.

    The connection is ended all the same, and the client can reconnect at once.
    """
    monkeypatch.setattr(session_module, "CLOSE_FLUSH_SECONDS", 0.2)
    slow = stuck(proxy, trades=["FAT"])
    pour(proxy)
    wait_for(lambda: lost(proxy))
    again = proxy.client("rogue")
    again.subscribe(trades=["FAT"])
    again.ws.close()
    wait_for(lambda: len(proxy.gateway.server.sessions) == 1)
    with suppress(ConnectionError):
        slow.socket.settimeout(0)
        slow.socket.close()


@pytest.mark.usefixtures("witness")
def test_reads_slowly_and_wants_the_newest(proxy: Harness) -> None:
    """Of quotes only the newest is kept; no trade is left out.

    The session is not disconnected.
    """
    slow = stuck(proxy, "newest", quotes=["SPY", "QQQ"], trades=["SPY"])
    for number in range(1, 401):
        tick = [quote(symbol, n=number, pad=FAT) for symbol in ("SPY", "QQQ")]
        proxy.simulator.publish("iex", [*tick, trade("SPY", number)])
        if number % 10 == 0:
            gevent.sleep(0.001)
    [session] = [c for c in proxy.gateway.server.sessions if c.name == "newest"]
    wait_for(lambda: session.outbox.conflated > 0)
    messages: list[dict[str, Any]] = []
    while len(messages) < 3 or [m["i"] for m in messages if m["T"] == "t"][-1] < 400:
        messages += json.loads(slow.receive()[1])
    assert [m["i"] for m in messages if m["T"] == "t"] == list(range(1, 401))
    for symbol in ("SPY", "QQQ"):
        numbers = [m["n"] for m in messages if m["T"] == "q" and m["S"] == symbol]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 400
        assert len(numbers) < 400
    assert session.outbox.closing is None
    slow.socket.close()


@pytest.mark.usefixtures("witness")
def test_floods_with_pings(proxy: Harness) -> None:
    """Only the newest ping counts (RFC 6455 §5.5.3), so the flood costs no memory.

    The last one is answered.
    """
    wire = proxy.wire().log_in("rogue", trades=["MSFT"])
    burst = b"".join(Wire.frame(PING, b"%d" % number) for number in range(20_000))
    sender = gevent.spawn(wire.socket.sendall, burst + Wire.frame(PING, b"last"))
    answered = 0
    while (frame := wire.receive()) != (PONG, b"last"):
        assert frame[0] == PONG
        answered += 1
    sender.join()
    assert answered <= 20_000
    wire.crash()


@pytest.mark.usefixtures("witness")
def test_floods_with_requests(proxy: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads no acknowledgements, so that its outbox overflows.

    Each acknowledgement lists its whole subscription.
    """
    monkeypatch.setattr(session_module, "CLOSE_FLUSH_SECONDS", 0.2)
    wire = stuck(proxy, trades=[f"S{number}" for number in range(500)])
    request = Wire.frame(TEXT, b'{"action":"subscribe"}') * 50

    def flood() -> None:
        with suppress(OSError):
            while True:
                wire.socket.sendall(request)

    flooding = gevent.spawn(flood)
    wait_for(flooding.ready, "the connection was not aborted")
    wire.crash()


@pytest.mark.usefixtures("witness")
def test_requests_too_fast_and_reads_every_reply(proxy: Harness) -> None:
    """The proxy reads the client more slowly.

    A thousand requests at once get a thousand replies, none an error.
    """
    wire = proxy.wire().log_in("rogue", trades=["MSFT"])
    requests = [{"action": action, "quotes": ["SPY"]} for action in ("subscribe", "unsubscribe")] * 500
    sender = gevent.spawn(
        wire.socket.sendall, b"".join(Wire.frame(TEXT, json.dumps(request).encode()) for request in requests)
    )
    for request in requests:
        opcode, payload = wire.receive()
        assert opcode == TEXT
        [reply] = json.loads(payload)
        assert (reply["T"], reply["trades"]) == ("subscription", ["MSFT"])
        assert reply["quotes"] == (["SPY"] if request["action"] == "subscribe" else [])
    sender.join()
    wire.crash()


@pytest.mark.usefixtures("witness")
def test_half_a_request_for_ever(proxy: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of the upgrade must arrive within ten seconds (here 0.2 s).

    Half a WebSocket message may wait as long as the client answers pings.
    """
    assert http_request.HEAD_SECONDS == 10
    monkeypatch.setattr(http_request, "HEAD_SECONDS", 0.2)
    half = proxy.wire().log_in("rogue", trades=["MSFT"])
    half.send(TEXT, b'{"action":"subscr', first=0)
    sockets = [socket.create_connection(proxy.address, 5) for _ in range(100)]
    for sock in sockets:
        sock.sendall(b"GET /v2/iex HTTP/1.1\r\nHost: x\r\nUpgrade: web")
    for sock in sockets:
        assert sock.recv(1) == b""
        sock.close()
    half.send(0, b'ibe","trades":["TSLA"]}')
    assert json.loads(half.receive()[1])[0]["trades"] == ["MSFT", "TSLA"]
    half.crash()


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("authenticated", [False, True])
def test_messages_of_every_size(proxy: Harness, authenticated: bool) -> None:
    """The limit is exactly 64 KiB before log-in and 1 MiB after it.

    Larger messages are closed with 1009.
    """
    limit = (1 << 20) if authenticated else (64 << 10)
    for size in (limit, limit + 1):
        wire = proxy.wire()
        wire.receive()
        if authenticated:
            wire.send_json({"action": "auth", "key": "rogue", "secret": "rogue"})
            wire.receive()
        with suppress(ConnectionError):
            wire.send(TEXT, b'{"action":"none","filler":"'.ljust(size - 2, b"x") + b'"}')
        if size == limit:
            assert wire.receive()[0] == TEXT  # 400, or 401
            wire.crash()
            wait_for(lambda: _alone(proxy))
            continue
        opcode, payload = next(wire.rest())
        assert (opcode, int.from_bytes(payload[:2], "big")) == (CLOSE, 1009)
        wire.socket.close()


@pytest.mark.usefixtures("witness")
def test_ten_thousand_symbols_in_one_request(proxy: Harness) -> None:
    """The proxy splits the request into ones that Alpaca accepts.

    It acknowledges when all of them are confirmed.
    """
    client = proxy.client("other")
    symbols = [f"S{number:05}" for number in range(10_000)]
    assert client.subscribe(trades=symbols)["trades"] == symbols
    assert proxy.simulator.subscribed("iex")["trades"] == {*symbols, "AAPL"}
    requests = [request for request in proxy.simulator.requests("iex") if request.get("trades")]
    assert len(requests) > 3
    proxy.simulator.publish("iex", [trade("S00000", 1), trade("S09999", 2)])
    assert client.receive() == [trade("S00000", 1), trade("S09999", 2)]
    client.ws.close()


@pytest.mark.usefixtures("witness")
def test_more_topics_than_a_session_may_hold(proxy: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The topics of a session are bounded.

    A request beyond that gets 405 and changes nothing.
    """
    assert market.MAX_TOPICS == 50_000
    monkeypatch.setattr(market, "MAX_TOPICS", 100)
    monkeypatch.setattr(market, "UNMEASURED_TOPICS", 50)
    client = proxy.client("other")
    first, second = ([f"{letter}{number:03}" for number in range(60)] for letter in "AB")
    assert client.subscribe(trades=first)["trades"] == first
    assert client.subscribe(trades=second) == {"T": "error", "code": 405, "msg": "symbol limit exceeded"}
    assert client.subscribe(trades=first, quotes=second[:40])["quotes"] == second[:40]
    assert client.unsubscribe(trades=first)["quotes"] == second[:40]
    assert client.subscribe(trades=second)["trades"] == second
    client.ws.close()


@pytest.mark.usefixtures("witness")
def test_an_acknowledgement_over_1_mib(proxy: Harness) -> None:
    """Trades are listed in it three times.

    A request that would make it larger than an SDK accepts gets 405.
    """
    client = proxy.client("other")
    groups = [[f"S{group}{number:05}" for number in range(11_000)] for group in range(4)]
    for group in groups[:3]:
        client.send_json({"action": "subscribe", "trades": group})
        assert len(client.receive()[0]["trades"]) % len(group) == 0
    assert client.subscribe(trades=groups[3]) == {"T": "error", "code": 405, "msg": "symbol limit exceeded"}
    assert len(client.subscribe(quotes=["SPY"])["trades"]) == 33_000
    assert max(map(len, client.frames)) < 1 << 20
    client.ws.close()


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("character", ["\u0000", '"', "\\", "é", "😀"])
def test_symbols_whose_encoding_is_longer_than_their_text(proxy: Harness, character: str) -> None:
    """Requests to Alpaca stay within its size limit for any characters in symbols."""
    client = proxy.client("other")
    symbols = [character * 60 + f"{number:04}" for number in range(1000)]
    client.send_json({"action": "subscribe", "trades": symbols})
    client.answer()
    client.ws.close()
    wait_for(lambda: _alone(proxy) and proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})


@pytest.mark.slow
@pytest.mark.usefixtures("witness")
def test_five_hundred_connections_in_a_second(proxy: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them log in and receive data; then all of them disconnect at once."""
    monkeypatch.setattr(harness, "CALM_SECONDS", 0.5)  # the clients run in this process and take time from the proxy
    wires: list[Wire] = []

    def join() -> None:
        while True:
            try:
                wires.append(proxy.wire().log_in("many", trades=["AAPL"]))
            except (ConnectionError, EOFError):
                gevent.sleep(0.05)  # refused, too many connections have not logged in: retry, as SDKs do
            else:
                return

    gevent.joinall([gevent.spawn(join) for _ in range(500)], timeout=20)
    assert len(wires) == 500
    for wire in wires[::50]:
        numbers = [message["i"] for _ in range(5) for message in json.loads(wire.receive()[1])]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for wire in wires:
        wire.crash()


@pytest.mark.usefixtures("witness")
def test_half_open(proxy: Harness) -> None:
    """The algorithm's machine has lost power: the kernel ends the connection when nothing was acknowledged for 90 s."""
    wire = proxy.wire().log_in("rogue", trades=["MSFT"])
    [session] = [c for c in proxy.gateway.server.sessions if c.name == "rogue"]
    raw = session._connection._raw
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 90_000
    wire.socket.close()


@pytest.mark.usefixtures("witness")
def test_half_open_where_the_kernel_has_no_such_time_limit(proxy: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only bytes from the client count as a sign of life."""
    monkeypatch.setattr(client_session, "USER_TIMEOUT", None)
    silent, busy = proxy.wire().log_in("rogue", trades=["MSFT"]), proxy.client("many")
    assert client_session.GONE_SECONDS == 90
    sessions = [c for c in proxy.gateway.server.sessions if c.name in ("rogue", "many")]
    for session in sessions:
        session._received_at -= 89
    assert busy.subscribe() == {}
    for session in sessions:
        session.tick(proxy.gateway._clock() + 1.5)
    assert list(silent.rest()) == []
    assert busy.subscribe() == {}
    busy.ws.close()


@pytest.mark.usefixtures("witness")
def test_more_unauthenticated_connections_than_allowed(proxy: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new connection displaces the oldest.

    Sessions that have logged in and connections that have ended do not count.
    """
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED_PER_ADDRESS", 5)
    silent = [socket.create_connection(proxy.address, 5) for _ in range(5)]
    wait_for(lambda: proxy.gateway.server.unauthenticated == 5)
    with socket.create_connection(proxy.address, 5):
        assert silent[0].recv(1) == b""
    for sock in silent:
        sock.close()
    wait_for(lambda: proxy.gateway.server.unauthenticated == 0)
    clients = [proxy.client("many") for _ in range(10)]
    for client in clients:
        client.ws.close()


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x05hello", 1002),  # not masked
        (b"\xc1\x80abcd", 1002),  # a reserved bit
        (b"\x83\x80abcd", 1002),  # a reserved opcode
        (b"\x80\x80abcd", 1002),  # a continuation of nothing
        (b"\x89\xfe\x00\x7e" + bytes(4 + 126), 1002),  # a control frame that is too long
        (Wire.frame(TEXT, b"\xff\xfe"), 1007),
        (b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4 + 4096), 1009),  # a terabyte
        (Wire.frame(BINARY, bytes(2 << 20)), 1009),
        (Wire.frame(TEXT, b"a", first=0) + Wire.frame(0, b"a", first=0) * 300, 1009),  # endless fragments
    ],
)
def test_frames_that_break_rfc_6455_or_a_limit(proxy: Harness, sent: bytes, code: int) -> None:
    wire = proxy.wire().log_in("rogue", trades=["MSFT"])
    with suppress(ConnectionError):
        wire.socket.sendall(sent)
    frames = list(wire.rest())
    wire.socket.close()
    assert [opcode for opcode, _ in frames][-1:] in ([CLOSE], [])  # a RST may overtake the close frame
    if frames:
        assert int.from_bytes(frames[-1][1][:2], "big") == code


def test_all_outboxes_together_are_bounded(start: Start) -> None:
    """The session with the fullest outbox is closed below its own bound.

    The others receive everything.
    """
    clients = "".join(
        f"  {name}: {{key: {name}, secret: {name}, outbox: 4MiB, allow: {{iex: '*'}}}}\n" for name in NAMES
    )
    proxy = start(clients, config={"more": "limits: {outboxes: 4MiB}"})
    client = proxy.client("witness")
    client.subscribe(trades=["AAPL"])
    with proxy.undisturbed(client):
        wires = [stuck(proxy, "rogue", trades=["FAT"]) for _ in range(2)]
        sessions = [c for c in proxy.gateway.server.sessions if c.name == "rogue"]
        number = 0
        while not any(session.outbox.slow for session in sessions):
            number += 1
            proxy.simulator.publish("iex", [trade("FAT", number, pad=FAT)])
            gevent.sleep(0.001)
        assert sum(session.outbox.slow for session in sessions) == 1
        assert all(session.outbox.pending < 3 << 20 for session in sessions)
        for wire in wires:
            wire.crash()
    wait_for(lambda: proxy.gateway._outboxes.pending == 0)


@pytest.mark.parametrize("many", [50, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_hundreds_of_sessions_stop_reading(start: Start, many: int) -> None:
    """The bytes pending for all of them together stay under the bound.

    A client that reads gets everything.
    """
    proxy = start(CLIENTS)
    client = proxy.client("witness")
    client.subscribe(trades=["AAPL"])
    proxy.gateway._outboxes.limit = limit = many * 8 * 1024  # less than one message for each
    with proxy.undisturbed(client):
        wires = [stuck(proxy, "many", trades=["FAT"]) for _ in range(many)]
        sessions = [*proxy.gateway.server.sessions]
        fullest = number = 0
        while sum(session.outbox.slow for session in sessions) < many // 5:
            number += 1
            proxy.simulator.publish("iex", [trade("FAT", number, pad=FAT)])
            fullest = max(fullest, proxy.gateway._outboxes.pending)
            gevent.sleep(0.001)
        assert fullest <= limit
        for wire in wires:
            wire.crash()
        wait_for(lambda: _alone(proxy))
    assert proxy.gateway._outboxes.pending == 0
    assert proxy.gateway.snapshot().totals["many", "iex"].lost["slow"] > 0


@pytest.mark.usefixtures("witness")
def test_joins_and_leaves_in_a_hurry(proxy: Harness) -> None:
    """Connections end before, during and after their log-in and first request."""
    login = json.dumps({"action": "auth", "key": "many", "secret": "many"}).encode()
    request = json.dumps({"action": "subscribe", "trades": ["AAPL"]}).encode()
    whole = Wire.frame(TEXT, login) + Wire.frame(TEXT, request) + Wire.frame(CLOSE, b"\x03\xe8")
    for end in range(0, len(whole) + 1, 3):
        wire = proxy.wire()
        wire.socket.sendall(whole[:end])
        if end % 2:
            wire.crash()
        else:
            wire.socket.close()


@pytest.mark.usefixtures("witness")
def test_leaves_before_the_reply_to_its_request(proxy: Harness) -> None:
    proxy.simulator.slow_acks(0.05)
    for symbol in itertools.islice(itertools.cycle(("MSFT", "TSLA")), 6):
        client = proxy.client("many")
        client.send_json({"action": "subscribe", "trades": ["AAPL"]})
        other = proxy.client("rogue")
        other.send_json({"action": "subscribe", "trades": [symbol]})
        client.ws.close()
        other.ws.close()
        wait_for(lambda: _alone(proxy))
    proxy.simulator.slow_acks(0)
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})


@pytest.mark.usefixtures("witness")
def test_requests_faster_than_replies_can_be_made(proxy: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reply lists thousands of topics.

    The proxy reads the client no faster than it replies, and other clients do not wait for its requests.
    """
    monkeypatch.setattr(client_session, "MAX_PENDING_REQUESTS", 4)
    symbols = [f"S{number}" for number in range(8000)]
    rogue, other = proxy.client("rogue"), proxy.client("other")
    rogue.subscribe(trades=symbols)
    [session] = [c for c in proxy.gateway.server.sessions if c.name == "rogue"]
    most = 0
    with gevent.Timeout(30):
        for symbol in symbols[:90]:
            rogue.send_json({"action": "unsubscribe", "trades": [symbol]})
            most = max(most, len(session.requests))
        assert other.subscribe(trades=symbols)["trades"] == sorted(symbols)
        assert len(rogue.data) == 0
        for left in range(len(symbols) - 1, len(symbols) - 91, -1):
            most = max(most, len(session.requests))
            assert len(rogue.answer()[0]["trades"]) == left
    assert most <= 4
    rogue.ws.close()
    other.ws.close()


def test_reads_are_small() -> None:
    """A client that never stops sending is read in slices of a few milliseconds."""
    assert connection.READ_BYTES <= 8 * 1024


def _alone(proxy: Harness) -> bool:
    return len(proxy.gateway.server.sessions) == 1
