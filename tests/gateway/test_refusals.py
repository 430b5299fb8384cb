"""A refusal is delayed, counted, and logged with its client and its reason."""

from __future__ import annotations

import http.client
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from proxy.downstream import auth_throttle, refusals
from proxy.transport import listener
from tests.harness import CONNECTED, Client, Harness, wait_for

Start = Callable[..., Harness]

ACCOUNT = '  main: {{key: PKACCOUNTKEY1234, secret: account-secret, data_url: "{url}", trading_url: "{url}"}}'
CLIENTS = """
  alpha:
    key: alpha-key
    secret: alpha-secret
    max_connections: 1
    allow: {iex: {trades: [AAPL, "B*"]}, trading: {trade_updates: "*"}}
  orders: {key: orders, secret: orders, allow: {iex: {trades: [AAPL]}}}
"""


@pytest.fixture
def proxy(start: Start) -> Harness:
    return start(CLIENTS, config={"accounts": ACCOUNT}, keys={"PKACCOUNTKEY1234": "account-secret"})


@pytest.fixture
def events() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The logged refusals: name and fields, without address and wait."""
    found: list[tuple[str, dict[str, Any]]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "refused" in record.getMessage():
                fields = {k: v for k, v in record.fields.items() if k not in ("address", "wait")}  # type: ignore[attr-defined]
                found.append((record.getMessage(), fields))

    handler = Handler()
    logging.getLogger("proxy").addHandler(handler)
    yield found
    logging.getLogger("proxy").removeHandler(handler)


def metric(proxy: Harness, name: str) -> dict[tuple[str, str, str], int]:
    """The values of a metric other than 0, by client, feed and reason."""
    connection = http.client.HTTPConnection(*proxy.gateway.admin.address, timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    pattern = rf'^alpaca_proxy_{name}_total{{client="(.*)",feed="(.*)",reason="(.*)"}} (.*)$'
    return {(c, f, r): int(float(n)) for c, f, r, n in re.findall(pattern, text, re.MULTILINE) if float(n)}


def request(proxy: Harness, path: str, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection(*proxy.address, timeout=5)
    connection.request("GET", path, headers=headers or {})
    status = connection.getresponse().status
    connection.close()
    return status


def log_in(client: Client, key: str, secret: str) -> Any:
    return client.ask({"action": "auth", "key": key, "secret": secret})[0]["code"]


def test_refused_log_ins(proxy: Harness, events: list[Any]) -> None:
    client = proxy.dial()
    client.receive()
    assert log_in(client, "alfa-key", "alpha-secret") == 402
    assert log_in(client, "alpha-key", "alfa-secret") == 402
    elsewhere = proxy.dial("/v1beta3/crypto/us")
    elsewhere.receive()
    assert log_in(elsewhere, "alpha-key", "alpha-secret") == 409
    client.log_in("alpha-key", "alpha-secret")
    late = proxy.dial()
    late.receive()
    assert log_in(late, "alpha-key", "alpha-secret") == 406
    name = "session.refused"
    assert events == [
        (name, {"feed": "iex", "code": 402, "reason": "unknown_key", "key": "alfa-key"}),
        (name, {"feed": "iex", "code": 402, "reason": "wrong_secret", "client": "alpha"}),
        (
            name,
            {"feed": "crypto", "code": 409, "reason": "feed_not_allowed", "client": "alpha"}
            | {"rule": "clients.alpha.allow"},
        ),
        (
            name,
            {"feed": "iex", "code": 406, "reason": "connection_limit", "client": "alpha"}
            | {"rule": "clients.alpha.max_connections"},
        ),
    ]
    assert metric(proxy, "refusals") == {
        ("", "iex", "unknown_key"): 1,
        ("alpha", "iex", "wrong_secret"): 1,
        ("alpha", "crypto", "feed_not_allowed"): 1,
        ("alpha", "iex", "connection_limit"): 1,
    }


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("PKACCOUNTKEY1234", "…1234"),  # the account's own key
        ("AKANOTHERACCOUNT5678", "…5678"),  # a key of Alpaca's that is not configured
        ("account-secret", "…"),
        ("alpha-secret", "(perhaps a secret)"),
        ("Uo2Gz1o3GcR7mCqk0FYBVQnE4xGZ2rUyQh9KqYcZ", "(perhaps a secret)"),
        ("", None),
        ("name\n", "name\n"),
    ],
)
def test_a_key_is_shown_unless_it_may_be_a_secret(
    proxy: Harness, events: list[Any], key: str, shown: str | None
) -> None:
    """Keys and secrets are easily confused, in the programs that send them too."""
    client = proxy.dial()
    client.receive()
    assert log_in(client, key, "anything") == 402
    assert events[0][1].get("key") == shown


def test_refused_requests(proxy: Harness, events: list[Any]) -> None:
    client = proxy.dial()
    client.receive()
    client.log_in("alpha-key", "alpha-secret")
    many = [f"X{number:02}" for number in range(30)]
    client.subscribe(trades=["AAPL", "MSFT"], quotes=["*"])
    client.subscribe(trades=many)
    client.subscribe(news=["AAPL"])
    client.ask({"action": "subscribe", "trades": "AAPL"})
    common = {"client": "alpha", "feed": "iex"}
    denied = common | {"code": 409, "reason": "not_allowed", "rule": "clients.alpha.allow.iex"}
    assert [fields for _, fields in events][:2] == [
        denied | {"topics": "quotes *, trades MSFT"},
        events[1][1] | denied,
    ]
    assert re.fullmatch(r"trades( X\d\d){20} and 10 more", events[1][1]["topics"])
    assert [fields for _, fields in events][2:] == [
        common | {"code": 410, "reason": "foreign_channel", "topics": "news AAPL"},
        common | {"code": 400, "reason": "invalid_syntax", "topics": "trades"},
    ]
    assert {name for name, _ in events} == {"session.request_refused"}
    assert metric(proxy, "requests_refused") == {
        ("alpha", "iex", "not_allowed"): 2,
        ("alpha", "iex", "foreign_channel"): 1,
        ("alpha", "iex", "invalid_syntax"): 1,
    }


def test_refused_streams(proxy: Harness, events: list[Any]) -> None:
    """On `/stream` they are absent from the acknowledgement, or named in an error."""
    client = proxy.client("orders", "/stream")
    assert client.listen("trade_updates") == {"streams": []}
    assert "error" in client.listen("T.TSLA")
    rule = {"client": "orders", "code": 409, "reason": "not_allowed"}
    assert [fields for _, fields in events] == [
        rule | {"feed": "trading", "topics": "trade_updates *", "rule": "clients.orders.allow.trading"},
        rule | {"feed": "iex", "topics": "trades TSLA", "rule": "clients.orders.allow.iex"},
    ]


def test_refused_http_requests(proxy: Harness, events: list[Any]) -> None:
    keys = {"APCA-API-KEY-ID": "alpha-key", "APCA-API-SECRET-KEY": "alpha-secret"}
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    assert request(proxy, "/v2/orders?secret=canary", keys) == 404
    assert request(proxy, "/v1beta3/crypto/zz-9") == 426
    assert request(proxy, "/v2/iex", upgrade | {"Origin": "https://evil.example"}) == 403
    assert request(proxy, "/v2/iex", upgrade | {"Sec-WebSocket-Key": "short"}) == 400
    name = "listener.refused"
    assert events == [
        (name, {"code": 404, "reason": "unknown_path", "client": "alpha", "path": "/v2/orders"}),
        (name, {"code": 426, "reason": "no_upgrade", "feed": "crypto-zz-9", "path": "/v1beta3/crypto/zz-9"}),
        (
            name,
            {"code": 403, "reason": "origin", "feed": "iex", "path": "/v2/iex", "origin": "https://evil.example"}
            | {"rule": "listen.origins"},
        ),
        (name, {"code": 400, "reason": "malformed", "feed": "iex", "path": "/v2/iex"}),
    ]
    assert metric(proxy, "refusals") == {
        ("alpha", "", "unknown_path"): 1,
        ("", "", "no_upgrade"): 1,  # a client cannot make up feeds that become labels
        ("", "iex", "origin"): 1,
        ("", "iex", "malformed"): 1,
    }


def test_tls_at_a_port_without_tls(proxy: Harness, events: list[Any]) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number|record"):
        ssl.create_default_context().wrap_socket(socket.create_connection(proxy.address), server_hostname="localhost")
    [(name, fields)] = events
    assert (name, fields["reason"]) == ("listener.refused", "tls_without_tls_port")
    assert "ws://" in fields["hint"]
    assert metric(proxy, "refusals") == {("", "", "tls_without_tls_port"): 1}


@pytest.mark.parametrize("size", [0, 30_000])
def test_a_rest_call_with_tls(
    start: Start, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Its body is dropped during the wait, without TLS being asked, and the answer is sent all the same."""
    monkeypatch.setattr(auth_throttle, "FIRST", 0.3)
    monkeypatch.setattr(auth_throttle, "MOST", 0.3)
    proxy = start(CLIENTS, config={"listen": f"tls: {{cert: {certificate[0]}, key: {certificate[1]}}}"})
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    connection = http.client.HTTPSConnection(*proxy.address, timeout=5, context=trust)
    connection.request("POST", "/v2/orders", b"x" * size)
    response = connection.getresponse()
    assert response.status == 404
    assert b"REST" in response.read()
    connection.close()


def test_plain_http_at_a_port_with_tls(start: Start, certificate: tuple[Path, Path], events: list[Any]) -> None:
    proxy = start(CLIENTS, config={"listen": f"tls: {{cert: {certificate[0]}, key: {certificate[1]}}}"})
    with pytest.raises(ConnectionError):
        request(proxy, "/v2/iex")
    [(name, fields)] = events
    assert (name, fields["reason"]) == ("listener.refused", "plain_at_tls_port")
    assert "wss://" in fields["hint"]


def test_refusals_by_http_wait_as_log_ins_do(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted together, by address, and a log-in resets the count."""
    assert (auth_throttle.FIRST, auth_throttle.MOST) != (1.0, 2.5)  # shortened by the fixture
    for name, seconds in (("FIRST", 0.2), ("STEP", 0.2), ("MOST", 0.5)):
        monkeypatch.setattr(auth_throttle, name, seconds)
    proxy = start(CLIENTS)

    def seconds(path: str = "/v2/orders") -> float:
        began = time.monotonic()
        request(proxy, path)
        return time.monotonic() - began

    waits = [seconds(), seconds("/v2/iex"), seconds(), seconds()]
    for wait, expected in zip(waits, (0.2, 0.4, 0.5, 0.5), strict=True):
        assert expected - 0.01 < wait < expected + 0.15
    client = proxy.dial()
    client.receive()
    client.log_in("alpha-key", "alpha-secret")
    assert seconds() < 0.35


def test_a_client_that_leaves_frees_its_place(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of them would otherwise hold sockets for as long as refusals wait."""
    for name in ("FIRST", "MOST"):
        monkeypatch.setattr(auth_throttle, name, 30)
    proxy = start(CLIENTS)
    sockets = [socket.create_connection(proxy.address) for _ in range(20)]
    for sock in sockets:
        sock.sendall(b"POST /v2/orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + bytes(50_000))
    wait_for(lambda: proxy.gateway.server._listener._waiting["127.0.0.1"] == 20)
    for sock in sockets:
        sock.close()
    wait_for(lambda: not proxy.gateway.server._listener._waiting, seconds=3)
    wait_for(lambda: proxy.gateway.server.unauthenticated == 0, seconds=3)


def test_refusals_that_wait_leave_places_for_log_ins(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST", "MOST"):
        monkeypatch.setattr(auth_throttle, name, 30)
    assert listener.MAX_WAITING_PER_ADDRESS == 128 < listener.MAX_UNAUTHENTICATED_PER_ADDRESS
    proxy = start(CLIENTS)
    early = proxy.dial()
    sockets = [socket.create_connection(proxy.address) for _ in range(160)]
    for sock in sockets:
        sock.sendall(b"GET /v2/orders HTTP/1.1\r\nHost: localhost\r\n\r\n")
        sock.settimeout(5)
    wait_for(lambda: proxy.gateway.server.unauthenticated == 1 + listener.MAX_WAITING_PER_ADDRESS)
    gevent.sleep(0.2)
    assert proxy.gateway.server.unauthenticated == 1 + listener.MAX_WAITING_PER_ADDRESS
    assert early.receive() == CONNECTED
    early.log_in("alpha-key", "alpha-secret")
    for sock in sockets:
        sock.close()


def test_what_a_stranger_makes_up_is_merged(proxy: Harness, events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that all differ would otherwise be as many lines."""
    monkeypatch.setattr(auth_throttle, "FIRST", 0.0)
    monkeypatch.setattr(auth_throttle, "STEP", 0.0)
    for number in range(refusals.DISTINCT + 10):
        assert request(proxy, f"/{number}" + 200 * "x") == 404
    paths = [fields["path"] for _, fields in events]
    assert len({*paths}) == refusals.DISTINCT + 1
    assert {*paths[refusals.DISTINCT :]} == {refusals.MANY}
    assert max(map(len, paths)) == refusals.SHOWN_TEXT + 1
