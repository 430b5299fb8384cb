"""Order updates as server-sent events, over real sockets."""

from __future__ import annotations

import base64
import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gevent
import pytest

from proxy.alpaca import timestamps
from proxy.alpaca.client_protocol import Phase
from proxy.config import model as configuration
from proxy.downstream import auth_throttle, event_stream
from proxy.routing import order_history, reconciler
from proxy.transport import frames
from proxy.transport.connection import USER_TIMEOUT
from proxy.upstream import supervisor
from tests.absent import absent
from tests.events import PATH, EventReader, keys
from tests.fronts import caddy, nginx
from tests.gateway.scripted import ScriptedAlpaca
from tests.gateway.test_trading import order
from tests.harness import ACCOUNT, Harness, wait_for

Start = Callable[..., Harness]
Open = Callable[..., EventReader]

CLIENTS = """
  momentum: {key: momentum, secret: momentum, allow: {trading: {trade_updates: ["momentum-*"]}}}
  meanrev: {key: meanrev, secret: meanrev, allow: {trading: {trade_updates: ["meanrev-*"]}}}
  desk: {key: desk, secret: desk, max_connections: 3, allow: {trading: "*"}}
  small: {key: small, secret: small, outbox: 128KiB, allow: {trading: "*"}}
  none: {key: none, secret: none, allow: {trading: {trade_updates: []}}}
  data: {key: data, secret: data, allow: {crypto: "*"}}
"""
AT = "2026-03-02T15:04:05.123456789Z"


@pytest.fixture
def proxy(start: Start) -> Harness:
    return start(CLIENTS)


@pytest.fixture
def read(proxy: Harness) -> Iterator[Open]:
    """Open an event stream: `read("momentum", since=…)`. It is closed after the test."""
    with ExitStack() as stack:

        def read(key: str, *, at: Harness | None = None, path: str = PATH, **query: str) -> EventReader:
            target = f"{path}?{urlencode(query)}" if query else path
            reader = EventReader((at or proxy).address, target, keys(key))
            return stack.enter_context(reader).opened()

        yield read


@pytest.fixture
def events() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The logged events: name and fields."""
    found: list[tuple[str, dict[str, Any]]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((record.getMessage(), dict(getattr(record, "fields", {}))))

    handler = Handler()
    logging.getLogger("proxy").addHandler(handler)
    yield found
    logging.getLogger("proxy").removeHandler(handler)


def publish(proxy: Harness, number: int, client: str = "momentum", **more: Any) -> dict[str, Any]:
    """Publish an order update of a client, without `at` unless `more` has one."""
    update = {"event": "new", "order": order(str(number), f"{client}-{number}"), "timestamp": AT} | more
    proxy.simulator.publish_order(update)
    return update


def receive(proxy: Harness, count: int, **more: Any) -> None:
    """Publish updates with numbers from 0 on, and wait until the proxy has them."""
    for number in range(count):
        publish(proxy, number, **more)
        wait_for(lambda expected=number + 1: proxy.upstream("trading").router.received >= expected)


def numbers(updates: list[dict[str, Any]]) -> list[int]:
    return [int(update["order"]["id"]) for update in updates]


def times(updates: list[dict[str, Any]]) -> list[int]:
    return [timestamps.nanoseconds(update["at"]) for update in updates]


# The request


BASIC = base64.b64encode(b"desk:desk").decode()


@pytest.mark.parametrize(
    "headers", [keys("desk"), {"Authorization": f"Basic {BASIC}"}, {"Authorization": f"bearer {BASIC}"}]
)
@pytest.mark.parametrize("path", [PATH, "/v2beta1/events/trades", "//v2/events/trades/"])
def test_each_path_and_each_form_of_credentials(proxy: Harness, path: str, headers: dict[str, str]) -> None:
    with EventReader(proxy.address, path, headers) as reader:
        reader.opened()
        update = publish(proxy, 1)
        received = reader.next()
        assert {name: value for name, value in received.items() if name != "at"} == update


def test_the_head_keeps_reverse_proxies_from_collecting_events(read: Open) -> None:
    headers = read("desk").headers
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["connection"] == "close"


@pytest.mark.parametrize(
    ("headers", "status", "code", "fields"),
    [
        (keys("desk", "wrong"), 401, 40110000, {"client": "desk", "reason": "wrong_secret"}),
        (keys("nobody"), 401, 40110000, {"key": "nobody", "reason": "unknown_key"}),
        ({}, 401, 40110000, {"reason": "unknown_key"}),
        ({"Authorization": "Bearer canary"}, 401, 40110000, {"reason": "unknown_key"}),
        (
            keys("data"),
            403,
            40310000,
            {"client": "data", "reason": "feed_not_allowed", "rule": "clients.data.allow"},
        ),
        (keys("none"), 403, 40310000, {"client": "none", "reason": "feed_not_allowed", "rule": "clients.none.allow"}),
    ],
)
def test_refusals(
    proxy: Harness,
    events: list[Any],
    headers: dict[str, str],
    status: int,
    code: int,
    fields: dict[str, str],
) -> None:
    """They have Alpaca's form, and are logged and counted as refused log-ins."""
    with EventReader(proxy.address, PATH, headers) as reader:
        assert reader.refused() == (status, code)
        assert reader.headers["connection"] == "close"
    [logged] = [logged for name, logged in events if name == "listener.refused"]
    assert {"code": status, "feed": "trading", "path": PATH, **fields}.items() <= logged.items()
    refused = {key: count for key, count in proxy.gateway.server.refusals.refused.items() if count}
    assert refused == {(fields.get("client", ""), "trading", fields["reason"]): 1}
    assert proxy.gateway.upstreams == {}
    assert "canary" not in str(events)


def test_max_connections_counts_streams_and_websockets_together(proxy: Harness, read: Open) -> None:
    readers = [read("desk"), read("desk")]
    websocket = proxy.client("desk", "/stream")
    with EventReader(proxy.address, PATH, keys("desk")) as reader:
        assert reader.refused() == (429, 42910000)
    denied = proxy.dial("/stream").ask({"action": "auth", "key": "desk", "secret": "desk"})
    assert denied["data"]["status"] == "unauthorized"
    readers[0].socket.close()
    wait_for(lambda: len(proxy.gateway.server.sessions) < 4)
    read("desk")
    websocket.ws.close()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("since=yesterday", "since is not an RFC 3339 time"),
        ("since=2026-01-01&until=2026-13-01", "until is not an RFC 3339 time"),
        ("until=2026-01-01", "since is required with until"),
        ("since_id=01HCMKNJK1Y0R7VF6Q6CAC3SH7", "use since and until"),
        (f"since={'9' * 8000}", "since is not an RFC 3339 time"),
    ],
)
def test_times_that_cannot_be_read(proxy: Harness, query: str, words: str) -> None:
    with EventReader(proxy.address, f"{PATH}?{query}", keys("desk")) as reader:
        reader.begin()
        assert reader.status == 400
        error = reader.error()
        assert error["code"] == 40010001
        assert words in error["message"]


@pytest.mark.parametrize(
    ("request_", "status"), [("POST {target} HTTP/1.1", 405), ("GET {target} HTTP/1.0", 400)], ids=["POST", "HTTP/1.0"]
)
def test_other_requests(proxy: Harness, request_: str, status: int) -> None:
    """With HTTP/1.0 there are no chunks, so a cut could not be told from an end."""
    with EventReader(proxy.address, PATH, keys("desk"), request=request_) as reader:
        reader.begin()
        assert reader.status == status


def test_a_page_of_another_origin(proxy: Harness) -> None:
    with EventReader(proxy.address, PATH, keys("desk") | {"Origin": "https://evil.example"}) as reader:
        assert reader.refused() == (403, 40310000)


def test_refusals_wait_as_refused_log_ins_do(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST", "MOST"):
        monkeypatch.setattr(auth_throttle, name, 0.2)
    proxy = start(CLIENTS)
    for headers in (keys("desk", "wrong"), keys("data")):
        began = time.monotonic()
        with EventReader(proxy.address, PATH, headers) as reader:
            reader.refused()
        assert time.monotonic() - began >= 0.2


# Updates


def test_each_client_receives_its_own_updates(proxy: Harness, read: Open) -> None:
    """As sessions on `/stream` do, replacements included."""
    readers = {name: read(name) for name in ("momentum", "meanrev", "desk")}
    publish(proxy, 1, "momentum")
    publish(proxy, 2, "meanrev")
    proxy.simulator.publish_order({"event": "new", "order": order("3", "invented", replaces="1")})
    proxy.simulator.publish_order({"event": "new", "order": order("4", "by hand")})
    publish(proxy, 5, "meanrev")
    publish(proxy, 6, "momentum")
    assert numbers(readers["desk"].gather(6)) == [1, 2, 3, 4, 5, 6]
    assert numbers(readers["momentum"].gather(3)) == [1, 3, 6]
    assert numbers(readers["meanrev"].gather(2)) == [2, 5]


def test_updates_of_the_account_are_no_events(proxy: Harness, read: Open) -> None:
    reader = read("desk")
    proxy.client("desk", "/stream").listen("account_updates", "trade_updates")
    proxy.simulator.publish("trading", [{"stream": "account_updates", "data": {"cash": "1"}}])
    publish(proxy, 1)
    assert numbers([reader.next()]) == [1]


def test_a_time_of_alpacas_is_kept_with_every_byte(proxy: Harness, read: Open) -> None:
    reader = read("momentum")
    body = b'{ "order":{"client_order_id":"momentum-1","id":"9","qty":"1.50"},  "at":"2026-01-02T10:00:00.5-05:00" }'
    proxy.simulator.publish_raw("trading", b'{"stream":"trade_updates","data":%b}' % body)
    reader.next()
    assert reader.lines == [b"data: " + body]


def test_an_event_is_one_line(proxy: Harness, read: Open) -> None:
    reader = read("momentum")
    body = b'{"order":\n {"client_order_id":"momentum-1",\r\n"id":"9", "note":"a\\nb"}\n}'
    proxy.simulator.publish_raw("trading", b'{"stream":"trade_updates",\n"data":%b}' % body)
    assert reader.next()["order"] == {"client_order_id": "momentum-1", "id": "9", "note": "a\nb"}
    assert [line[:6] for line in reader.lines] == [b"data: "]


def test_times_rise(proxy: Harness, read: Open) -> None:
    """The time of arrival, where Alpaca names none or one that cannot be; later than the last in any case."""
    reader = read("momentum")
    before = time.time_ns()
    given = [None, None, "nonsense", "9999-12-31T23:59:59.999999999Z", 5, "2001-01-01T00:00:00Z", None]
    for number, at in enumerate(given):
        update = {"event": "new", "order": order(str(number), "momentum-1")} | ({} if at is None else {"at": at})
        message = {"stream": "trade_updates", "data": update}
        proxy.simulator.publish_raw("trading", json.dumps(message).encode())
    received = times(reader.gather(len(given)))
    assert received == sorted({*received})
    assert before < received[0]
    assert received[-1] < time.time_ns()
    publish(proxy, 8, at="2999-01-02T00:00:00Z")
    publish(proxy, 9, at="2999-01-02T00:00:00Z")
    reader.gather(len(given) + 2)
    assert [event["at"] for event in reader.events[-2:]] == ["2999-01-02T00:00:00Z", "2999-01-02T00:00:00.000000001Z"]


def test_an_update_that_is_no_object(proxy: Harness, read: Open) -> None:
    """It can carry no time. A WebSocket session has it as it came."""
    reader = read("desk")
    desk = proxy.client("desk", "/stream")
    desk.listen("trade_updates")
    proxy.simulator.publish_raw("trading", b'{"stream":"trade_updates","data":null}')
    publish(proxy, 1)
    assert desk.receive()["data"] is None
    assert numbers([reader.next()]) == [1]
    assert proxy.upstream("trading").router.irregular["untranslatable"] == 1


def test_a_client_in_msgpack_beside_it(proxy: Harness, read: Open) -> None:
    packed = proxy.client("desk", "/stream", "msgpack")
    packed.listen("trade_updates")
    reader = read("desk")
    update = publish(proxy, 1)
    assert packed.receive()["data"] == update
    assert numbers([reader.next()]) == [1]


@pytest.mark.slow
def test_heartbeats(proxy: Harness, read: Open) -> None:
    reader = read("desk")
    began = time.monotonic()
    assert (reader.read_line(), reader.read_line()) == (b":heartbeat", b"")
    assert 14 < time.monotonic() - began < 17
    reader.read_line()
    assert 29 < time.monotonic() - began < 33


def test_a_heartbeat_is_between_events(proxy: Harness, read: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.02)
    reader = read("desk")
    for number in range(200):
        publish(proxy, number)
        gevent.sleep(0.001)
    assert numbers(reader.gather(200)) == [*range(200)]
    assert b":heartbeat" in reader.lines


# The history


def test_since(proxy: Harness, read: Open) -> None:
    """The updates since a time, that time included, and then those that arrive."""
    first = read("momentum")
    for number in range(1, 6):
        publish(proxy, number, "momentum" if number != 3 else "meanrev")
    seen = first.gather(4)
    again = read("momentum", since=seen[1]["at"])
    assert again.gather(3) == seen[1:]
    publish(proxy, 6)
    assert first.next() == again.next()
    assert numbers(again.events) == [2, 4, 5, 6]


def test_go_on_after_the_last_one(proxy: Harness, read: Open) -> None:
    """No other session has kept the feed meanwhile."""
    first = read("momentum")
    publish(proxy, 1)
    last = times([first.next()])[0]
    first.socket.close()
    wait_for(lambda: not proxy.gateway.server.sessions)
    publish(proxy, 2)
    again = read("momentum", since=timestamps.rfc3339(last + 1))
    publish(proxy, 3)
    assert numbers(again.gather(2)) == [2, 3]


def test_without_since_nothing_old(proxy: Harness, read: Open) -> None:
    first = read("momentum")
    publish(proxy, 1)
    first.next()
    second = read("momentum")
    publish(proxy, 2)
    assert numbers([second.next()]) == [2]


def test_the_history_is_kept_without_an_event_stream(proxy: Harness, read: Open) -> None:
    websocket = proxy.client("desk", "/stream")
    websocket.listen("trade_updates")
    publish(proxy, 1)
    websocket.receive()
    assert numbers([read("momentum", since="2020-01-01").next()]) == [1]


def test_the_history_obeys_the_rules_of_now(proxy: Harness, read: Open) -> None:
    """A reload has given another client the orders."""
    desk = read("desk")
    publish(proxy, 1)
    desk.next()
    text = proxy_text(proxy).replace('["meanrev-*"]', '["momentum-*"]').replace('["momentum-*"]', '["x-*"]', 1)
    reload(proxy, text)
    assert numbers([read("meanrev", since="2020-01-01").next()]) == [1]
    momentum = read("momentum", since="2020-01-01")
    publish(proxy, 2, "x")
    assert numbers([momentum.next()]) == [2]


@pytest.mark.parametrize("path", [PATH, "/v2beta1/events/trades"])
def test_until_ends_the_response(proxy: Harness, read: Open, path: str) -> None:
    first = read("momentum")
    for number in range(1, 5):
        publish(proxy, number)
    seen = first.gather(4)
    bounded = read("momentum", path=path, since=seen[0]["at"], until=seen[2]["at"])
    assert bounded.rest() == "ended"
    assert bounded.events == seen[:3]
    assert read("momentum", since="2020-01-01", until="2020-01-02").rest() == "ended"


def test_until_in_the_future(proxy: Harness, read: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "UNTIL_SECONDS", 0.1)
    until = timestamps.rfc3339(time.time_ns() + 300_000_000)
    by_time = read("desk", since="2020-01-01", until=until)
    by_update = read("desk", since="2020-01-01", until="2999-01-02T00:00:00Z")
    publish(proxy, 1)
    publish(proxy, 2, at="2999-01-01T00:00:00Z")
    publish(proxy, 3, at="2999-01-02T00:00:01Z")
    assert by_update.rest() == "ended"
    assert numbers(by_update.events) == [1, 2]
    assert by_time.rest() == "ended"
    assert numbers(by_time.events) == [1]


def test_a_history_larger_than_the_outbox(proxy: Harness, read: Open) -> None:
    """It is read as fast as the client takes it, and what arrives meanwhile follows in its order."""
    desk = proxy.client("desk", "/stream")
    desk.listen("trade_updates")
    receive(proxy, 100, note="x" * 12_000)
    desk.gather(100)
    reader = read("small", since="2020-01-01")
    session = next(s for s in proxy.gateway.server.sessions if s.name == "small")
    for number in range(100, 200):
        publish(proxy, number, note="x" * 100)
        assert session.outbox.pending < session.outbox.limit
    assert numbers(reader.gather(200)) == [*range(200)]
    assert times(reader.events) == sorted({*times(reader.events)})


def test_a_reader_slower_than_the_history_goes_by(
    proxy: Harness, read: Open, monkeypatch: pytest.MonkeyPatch, events: list[Any]
) -> None:
    monkeypatch.setattr(order_history, "KEEP_UPDATES", 150)
    desk = proxy.client("desk", "/stream")
    desk.listen("trade_updates")
    receive(proxy, 150, note="x" * 100_000)
    desk.gather(150)
    target = f"{PATH}?since=2020-01-01"
    with EventReader(proxy.address, target, keys("small"), buffer=4096) as reader:
        reader.opened()
        for number in range(150):
            publish(proxy, number)
        desk.gather(300)
        [session] = [session for session in proxy.gateway.server.sessions if session.name == "small"]
        assert not session._live
        assert reader.rest() == "cut"
        assert numbers(reader.events) == [*range(len(reader.events))]
    wait_for(lambda: ("session.closed", "slow client") in [(name, f.get("reason")) for name, f in events])


# The end


def test_a_slow_reader_is_cut_and_others_do_not_notice(proxy: Harness, read: Open, events: list[Any]) -> None:
    others = [read("momentum"), read("desk")]
    websocket = proxy.client("desk", "/stream")
    websocket.listen("trade_updates")
    with EventReader(proxy.address, PATH, keys("small"), buffer=4096) as slow:
        slow.opened()
        [session] = [session for session in proxy.gateway.server.sessions if session.name == "small"]
        number = 0
        while not session.outbox.slow:
            publish(proxy, number, note="x" * 100_000)
            for other in others:
                assert numbers([other.next()]) == [number]
            websocket.receive()
            number += 1
            assert number < 500
        assert slow.rest() == "cut"
        assert slow.lines[-2:] == [b": you are reading too slowly", b""]
        assert numbers(slow.events) == [*range(len(slow.events))]
    wait_for(lambda: ("session.closed", "slow client") in [(name, fields.get("reason")) for name, fields in events])
    assert proxy.gateway.server.totals_now()["small", "trading"].lost["slow"] > 0


def test_the_end_of_the_proxy_cuts(start: Start) -> None:
    proxy = start(CLIENTS)
    with EventReader(proxy.address, PATH, keys("desk")) as reader:
        reader.opened()
        publish(proxy, 1)
        wait_for(lambda: proxy.upstream("trading").router.received)
        stopping = gevent.spawn(proxy.gateway.stop, 2)
        assert reader.rest() == "cut"
        assert numbers(reader.events) == [1]
        reader.socket.close()
        stopping.get()


CHANGES = {
    "removed": ("  desk: {key: desk", "  other: {key: other"),
    "secret": ("secret: desk,", "secret: new,"),
    "wider": ('["momentum-*"]', '["momentum-*", "more-*"]'),
}


@pytest.mark.parametrize(("client", "change"), [("desk", "removed"), ("desk", "secret"), ("momentum", "wider")])
def test_a_reload_that_changes_its_client_cuts(proxy: Harness, read: Open, client: str, change: str) -> None:
    reader, other = read(client), read("meanrev")
    before, after = CHANGES[change]
    reload(proxy, proxy_text(proxy).replace(before, after))
    assert reader.rest() == "cut"
    publish(proxy, 1, "meanrev")
    assert numbers([other.next()]) == [1]


def test_a_reload_of_the_limits_does_not(proxy: Harness, read: Open) -> None:
    reader = read("desk")
    reload(proxy, proxy_text(proxy) + "limits: {message: 2MiB}\ndefault_feed: sip\n")
    publish(proxy, 1)
    assert numbers([reader.next()]) == [1]


def test_a_close_by_the_gateway_cuts_after_what_is_pending(proxy: Harness, read: Open) -> None:
    """Whatever the reason: order updates that may be missing, for example."""
    reader = read("desk")
    publish(proxy, 1)
    reader.next()
    [session] = proxy.gateway.server.sessions
    publish(proxy, 2)
    wait_for(lambda: session.outbox.delivered == 2)
    session.close(1012, "order updates may be missing")
    assert reader.rest() == "cut"
    assert numbers(reader.events) == [1, 2]


@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_a_client_that_leaves(proxy: Harness, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-closed connection counts as left. Its topic is given up when it has not come back for a while."""
    monkeypatch.setattr(event_stream, "RETURN_SECONDS", 0.3)
    reader = EventReader(proxy.address, PATH, keys("desk")).opened()
    assert proxy.simulator.subscribed("trading") == {"trade_updates": {"*"}}
    if how == "half":
        reader.socket.shutdown(socket.SHUT_WR)
        assert reader.rest() == "cut"
    elif how == "reset":
        reader.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    reader.socket.close()
    wait_for(lambda: not proxy.gateway.server.sessions)
    assert proxy.simulator.subscribed("trading") == {"trade_updates": {"*"}}
    wait_for(lambda: proxy.simulator.subscribed("trading") == {})
    assert proxy.gateway._outboxes.open == set()


@pytest.mark.skipif(USER_TIMEOUT is None, reason="needs TCP_USER_TIMEOUT")
def test_the_kernel_ends_a_connection_whose_client_is_gone(proxy: Harness, read: Open) -> None:
    """As that of any session: `faults/test_clients.py::test_half_open` waits for it."""
    read("desk")
    [session] = proxy.gateway.server.sessions
    assert session._connection._raw.getsockopt(socket.IPPROTO_TCP, USER_TIMEOUT) == 90_000


def test_what_the_client_sends_is_dropped(proxy: Harness, read: Open) -> None:
    """A second request on the same connection, say."""
    reader = read("desk")
    reader.socket.sendall(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 1000)
    publish(proxy, 1)
    assert numbers([reader.next()]) == [1]
    assert len(proxy.gateway.server.sessions) == 1


def test_a_client_that_comes_back_at_once_again_and_again(proxy: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Go's SDK does if it cannot decode an update: beyond `max_connections` at once, each stream waits."""
    monkeypatch.setattr(event_stream, "OPENING_SECONDS", 0.2)
    began = time.monotonic()
    waits = []
    for _ in range(5):
        with EventReader(proxy.address, PATH, keys("desk")) as reader:
            reader.opened()
        waits.append(time.monotonic() - began)
        wait_for(lambda: not proxy.gateway.server.sessions)
    assert waits[2] < 0.2
    assert 0.3 < waits[4] < 0.8
    rate = event_stream.OpeningRate()
    assert max(rate.delay(0.0, 16) for _ in range(1000)) == event_stream.MAX_OPENING_SECONDS


# Alpaca is away


def test_an_outage(proxy: Harness, read: Open) -> None:
    """The stream stays open and is subscribed again."""
    reader = read("desk")
    proxy.simulator.refuse_upgrade("trading", 500)
    proxy.simulator.drop("trading", "fin")
    wait_for(lambda: proxy.upstream("trading").phase is Phase.WAITING)
    proxy.simulator.accept("trading")
    wait_for(lambda: proxy.simulator.subscribed("trading") == {"trade_updates": {"*"}})
    publish(proxy, 1)
    assert numbers([reader.next()]) == [1]


def test_a_stream_that_is_opened_in_an_outage(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "ACK_SECONDS", 0.2)
    proxy = start(CLIENTS)
    proxy.simulator.refuse_upgrade("trading", 503)
    began = time.monotonic()
    with EventReader(proxy.address, PATH, keys("desk")) as reader:
        reader.opened()
        assert time.monotonic() - began >= 0.2
        proxy.simulator.accept("trading")
        wait_for(lambda: proxy.simulator.subscribed("trading") == {"trade_updates": {"*"}})
        publish(proxy, 1)
        assert numbers([reader.next()]) == [1]


def test_the_response_begins_when_the_stream_is_subscribed(proxy: Harness) -> None:
    """So a client that has read the status misses no update."""
    proxy.simulator.stall("auth", "trading")
    with EventReader(proxy.address, PATH, keys("desk")) as reader:
        wait_for(lambda: proxy.simulator.attempts("trading"))
        wait_for(lambda: proxy.gateway.server.sessions)
        [session] = proxy.gateway.server.sessions
        session.report(None)  # another request's
        gevent.sleep(0.1)
        assert not reader.has_begun()
        proxy.simulator.accept("trading")
        reader.opened()
        assert proxy.simulator.subscribed("trading") == {"trade_updates": {"*"}}


def test_alpaca_refuses_the_stream(start: Start, events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is absent from its acknowledgement: 403, which waits as other refusals do."""
    monkeypatch.setattr(supervisor, "DOUBT_SECONDS", 0.1)
    with ScriptedAlpaca(lambda peer, request: peer.send_json(peer.state())) as alpaca:
        proxy = start(CLIENTS, config={"accounts": ACCOUNT.replace("{url}", alpaca.url)})
        with EventReader(proxy.address, PATH, keys("desk")) as reader:
            assert reader.refused() == (403, 40310000)
    assert ("session.refused", "feed_not_allowed") in [(name, fields.get("reason")) for name, fields in events]


# Observation


def test_it_is_part_of_the_status_and_of_the_metrics(proxy: Harness, read: Open) -> None:
    reader = read("desk")
    publish(proxy, 1)
    reader.next()
    host, port = proxy.gateway.admin.address
    with urllib.request.urlopen(f"http://{host}:{port}/status.json", timeout=5) as response:
        status = json.load(response)
    [client] = [client for client in status["clients"] if client["client"] == "desk"]
    assert (client["feed"], client["connects"]) == ("trading", 1)
    [session] = client["sessions"]
    assert (session["codec"], session["delivered"], session["shown"]) == ("sse", 1, {"trade_updates": ["*"]})
    assert session["account"] == "main"
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as response:
        text = response.read().decode()
    assert re.search(r'^alpaca_proxy_client_sessions\{client="desk",feed="trading"\} 1', text, re.MULTILINE)
    assert re.search(r'^alpaca_proxy_client_messages_total\{client="desk",feed="trading"\} 1', text, re.MULTILINE)
    reader.socket.close()
    wait_for(lambda: not proxy.gateway.server.sessions)
    assert proxy.gateway.server.totals_now()["desk", "trading"].delivered == 1
    assert proxy.gateway.server.unauthenticated == 0


def test_its_begin_and_its_end_are_logged(proxy: Harness, read: Open, events: list[Any]) -> None:
    reader = read("desk")
    publish(proxy, 1)
    reader.next()
    reader.socket.close()
    wait_for(lambda: "session.closed" in [name for name, _ in events])
    logged = [(name, fields) for name, fields in events if name.startswith("session.")]
    assert [name for name, _ in logged] == ["session.authenticated", "session.closed"]
    assert logged[1][1]["reason"] == "client went away"
    assert logged[1][1]["delivered"] == 1


# Other programs


def test_tls(start: Start, certificate: tuple[Path, Path]) -> None:
    proxy = start(CLIENTS, config={"listen": f"tls: {{cert: {certificate[0]}, key: {certificate[1]}}}"})
    trust = ssl.create_default_context(cafile=str(certificate[0]))

    def wrap(sock: socket.socket) -> ssl.SSLSocket:
        return trust.wrap_socket(sock, server_hostname="127.0.0.1")

    with EventReader(proxy.address, PATH, keys("desk"), wrap=wrap) as reader:
        reader.opened()
        publish(proxy, 1)
        assert numbers([reader.next()]) == [1]
        [session] = proxy.gateway.server.sessions
        session.close(frames.GOING_AWAY, "")
        assert reader.rest() == "cut"


def curl(url: str, *options: str) -> subprocess.Popen[str]:
    command = ["curl", "--no-buffer", "--silent", "--show-error", "--max-time", "20", "--user", "desk:desk", *options]
    return subprocess.Popen([*command, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_curl(proxy: Harness) -> None:
    """Each event arrives at once; curl tells a cut (18) from an end (0)."""
    if shutil.which("curl") is None:
        absent("this test runs curl: apt-get install curl")
    url = f"http://{proxy.address[0]}:{proxy.address[1]}{PATH}"
    with curl(url) as cut:
        wait_for(lambda: proxy.simulator.subscribed("trading") == {"trade_updates": {"*"}})
        [session] = proxy.gateway.server.sessions
        wait_for(lambda: session._begun)
        publish(proxy, 1)
        assert cut.stdout is not None
        assert json.loads(cut.stdout.readline().removeprefix("data: "))["order"]["id"] == "1"
        session.close(frames.GOING_AWAY, "")
        assert cut.wait() == 18
    with curl(f"{url}?since=2020-01-01&until={AT}", "--include") as ended:
        output, _ = ended.communicate()
    assert ended.returncode == 0
    assert "HTTP/1.1 200 OK" in output
    with curl(url, "--user", "desk:wrong") as refused:
        assert json.loads(refused.communicate()[0])["code"] == 40110000


@pytest.mark.slow
@pytest.mark.parametrize("front", [nginx, caddy], ids=lambda front: front.__name__)
def test_behind_a_reverse_proxy(
    start: Start, tmp_path: Path, certificate: tuple[Path, Path], front: Callable[..., Any]
) -> None:
    """It hands on each event at once, and a cut as a cut."""
    proxy = start(CLIENTS, config={"listen": "trusted: [127.0.0.1]"})
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with front(tmp_path, proxy.address, *certificate) as port:
        reader = EventReader(
            ("127.0.0.1", port),
            PATH,
            keys("desk"),
            wrap=lambda sock: context.wrap_socket(sock, server_hostname="localhost"),
        )
        with reader:
            reader.opened()
            for number in range(3):
                publish(proxy, number)
                assert numbers([reader.next(2)]) == [number]
            [session] = proxy.gateway.server.sessions
            session.close(frames.GOING_AWAY, "")
            assert reader.rest() == ("ended" if front is caddy and caddy_version() < (2, 7, 6) else "cut")


def caddy_version() -> tuple[int, ...]:
    output = subprocess.run(["caddy", "version"], capture_output=True, text=True, check=True).stdout
    version = re.match(r"v?(\d+)\.(\d+)\.(\d+)", output)
    assert version is not None
    return tuple(map(int, version.groups()))


# Reload


def proxy_text(proxy: Harness) -> str:
    """The configuration of the harness."""
    accounts = ACCOUNT.format(url=proxy.simulator.url)
    return f"listen: {{port: 0}}\nadmin: {{port: 0}}\naccounts:\n{accounts}\nclients:\n{CLIENTS}"


def reload(proxy: Harness, text: str) -> None:
    plan = proxy.gateway.reload(configuration.parse(text, "proxy.yaml", {}, Path()))
    assert not plan.restart
