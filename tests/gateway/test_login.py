"""Log-in of clients: refusals, connection slots, deadlines.

Requests that are no WebSocket upgrade are tested as well.
"""

from __future__ import annotations

import base64
import gc
import http.client
import json
import time
import weakref
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from websockets.exceptions import InvalidStatus

from proxy.alpaca import market
from proxy.downstream import auth_throttle, client_session
from proxy.simulator import AccountPlan
from tests.harness import AUTHENTICATED, BINARY, CONNECTED, TEXT, Harness, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  alpha:
    key: alpha
    secret: alpha
    max_connections: 2
    allow: {iex: {trades: [AAPL, "B*"]}, trading: {trade_updates: "*"}}
  hashed:
    key: hashed key
    secret: sha256:5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8
    allow: {iex: {trades: ["*"]}, crypto: "*"}
"""
AUTH = {"action": "auth", "key": "alpha", "secret": "alpha"}
WRONG = AUTH | {"secret": "wrong"}
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}


def _error(code: int) -> list[dict[str, Any]]:
    return [{"T": "error", "code": code, "msg": market.ERRORS[code]}]


def test_a_client_is_greeted_and_then_logs_in(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.dial()
    assert client.receive() == CONNECTED
    assert client.ask({"action": "subscribe", "trades": ["AAPL"]}) == _error(401)
    assert client.ask(AUTH) == AUTHENTICATED
    assert client.ask(AUTH) == _error(403)
    assert client.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]


def test_a_hashed_secret(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.dial()
    client.receive()
    client.log_in("hashed key", "password")


@pytest.mark.parametrize(
    "headers",
    [
        {"APCA-API-KEY-ID": "alpha", "APCA-API-SECRET-KEY": "alpha"},
        {"Authorization": "Basic " + base64.b64encode(b"alpha:alpha").decode()},
    ],
)
def test_header_credentials_are_greeted_and_authenticated_in_two_frames(start: Start, headers: dict[str, str]) -> None:
    proxy = start(CLIENTS)
    client = proxy.dial(headers=headers)
    assert client.receive() == CONNECTED
    assert client.receive() == AUTHENTICATED
    assert client.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]


@pytest.mark.parametrize("path", ["/v2/iex", "/stream"])
def test_msgpack_in_text_frames(start: Start, path: str) -> None:
    """websocket-client's `send(bytes)` sends them; msgpack is seldom UTF-8."""
    proxy = start(CLIENTS)
    wire = proxy.wire(path=path, headers="Content-Type: application/msgpack\r\n")
    symbols = [f"B{number}" for number in range(200)]  # their number is a byte over 127
    if path == "/stream":
        requests = [
            {"action": "authenticate", "data": {"key_id": "alpha", "secret_key": "alpha"}},
            {"action": "listen", "data": {"streams": ["trade_updates", *symbols]}},
        ]
    else:
        requests = [{"action": "auth", "key": "alpha", "secret": "alpha"}, {"action": "subscribe", "trades": symbols}]
        assert wire.receive()[0] == BINARY
    for request in requests:
        wire.send(TEXT, msgpack.packb(request))
        opcode, payload = wire.receive()
        assert opcode == BINARY
        reply = msgpack.unpackb(payload)
    assert "subscription" in str(reply) or reply["data"] == {"streams": ["trade_updates"]}


@pytest.mark.parametrize(("secret", "sent"), [("sécret☃", "sécret☃"), ("sécret", "s\udce9cret")])
def test_header_credentials_beyond_ascii(start: Start, secret: str, sent: str) -> None:
    """A secret may be any text.

    A header carries it as UTF-8 or (the single byte 0xE9) as Latin-1.
    """
    proxy = start(f'  alpha: {{key: alpha, secret: "{secret}", allow: {{iex: "*"}}}}')
    client = proxy.wire(headers=f"APCA-API-KEY-ID: alpha\r\nAPCA-API-SECRET-KEY: {sent}\r\n")
    assert json.loads(client.receive()[1]) == CONNECTED
    assert json.loads(client.receive()[1]) == AUTHENTICATED


@pytest.mark.parametrize(
    "headers",
    [
        {"APCA-API-KEY-ID": "alpha", "APCA-API-SECRET-KEY": "wrong"},
        {"Authorization": "Basic nonsense"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff").decode()},
    ],
)
def test_wrong_header_credentials(start: Start, headers: dict[str, str]) -> None:
    client = start(CLIENTS).dial(headers=headers)
    assert client.receive() == CONNECTED
    assert client.receive() == _error(402)
    assert client.ask(AUTH) == AUTHENTICATED


@pytest.mark.parametrize(
    "request_",
    [WRONG, AUTH | {"key": "nobody"}, {"action": "auth"}, AUTH | {"secret": ""}],
)
def test_an_unknown_key_and_a_wrong_secret_look_the_same(start: Start, request_: dict[str, str]) -> None:
    client = start(CLIENTS).dial()
    client.receive()
    assert client.ask(request_) == _error(402)
    assert client.ask(AUTH) == AUTHENTICATED  # the socket stays


def test_refusals_are_delayed_longer_each_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an SDK that reconnects at once would do so hundreds of times a second."""
    for name, seconds in (("FIRST", 0.1), ("STEP", 0.1), ("MOST", 0.25)):
        monkeypatch.setattr(auth_throttle, name, seconds)
    proxy = start(CLIENTS)
    waits = []
    for _ in range(4):
        client = proxy.dial()
        client.receive()
        began = time.monotonic()
        assert client.ask(WRONG) == _error(402)
        waits.append(time.monotonic() - began)
    for waited, least in zip(waits, (0.1, 0.2, 0.25, 0.25), strict=True):
        assert least <= waited < least + 0.09


def test_the_delays_of_refusals_are_as_documented() -> None:
    assert (auth_throttle.FIRST, auth_throttle.MOST) == (1.0, 2.5)


def test_a_delayed_refusal_delays_no_other_client(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_throttle, "FIRST", 30)
    monkeypatch.setattr(auth_throttle, "MOST", 30)
    proxy = start(CLIENTS)
    guesser = proxy.dial()
    guesser.send_json(WRONG)
    witness = proxy.client("alpha")
    witness.subscribe(trades=["AAPL"])
    with proxy.undisturbed(witness):
        proxy.client("alpha").subscribe(trades=["AAPL"])


def test_a_feed_that_the_allowlist_does_not_name(start: Start) -> None:
    client = start(CLIENTS).dial("/v1beta1/news")
    client.receive()
    assert client.ask(AUTH) == _error(409)


def test_a_refusal_lists_the_topics_that_are_not_allowed(start: Start) -> None:
    """All or nothing: allowed topics of a refused request are not subscribed either."""
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["BAC"])
    refusal = client.subscribe(trades=["AAPL", "MSFT", "*"], quotes=["SPY"])
    assert refusal["code"] == 409
    assert refusal["msg"] == "insufficient subscription: quotes SPY, trades * MSFT"
    assert client.subscribe()["trades"] == ["BAC"]
    assert proxy.simulator.subscribed("iex") == {"trades": {"BAC"}}


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ("{", 400),
        ("[]", 400),
        ({"action": "dance"}, 400),
        ({"action": "subscribe", "trades": "AAPL"}, 400),
        ({"action": "subscribe", "trades": [""]}, 400),
        ({"action": "subscribe", "trades": ["A*B"]}, 400),
        ({"action": "subscribe", "trades": ["A" * 65]}, 400),
        ({"action": "subscribe", "trades": [1]}, 400),
        ({"action": "subscribe", "news": ["AAPL"]}, 410),
        ({"action": "subscribe", "orderbooks": ["AAPL"]}, 410),
    ],
)
def test_invalid_requests(start: Start, request_: Any, code: int) -> None:
    client = start(CLIENTS).client("alpha")
    client.ws.send(request_ if isinstance(request_, str) else json.dumps(request_))
    assert client.answer() == _error(code)
    assert client.subscribe() == {}


def test_max_connections_applies_to_each_client_and_feed(start: Start) -> None:
    proxy = start(CLIENTS)
    first, _ = proxy.client("alpha"), proxy.client("alpha")
    third = proxy.dial()
    third.receive()
    assert third.ask(AUTH) == _error(406)
    proxy.client("alpha", "/stream")  # another feed has its own slots
    proxy.dial().receive()
    first.ws.close()
    wait_for(lambda: len(proxy.gateway.server.states()) == 2)
    assert third.ask(AUTH) == AUTHENTICATED


def test_a_slot_is_free_as_soon_as_its_session_ends(start: Start) -> None:
    """A program that crashes and reconnects at once must not be refused."""
    proxy = start(CLIENTS.replace("max_connections: 2", "max_connections: 1"))
    for crash in range(10):
        wire = proxy.wire().log_in("alpha", trades=["AAPL"])
        if crash % 2:
            wire.crash()
        else:
            wire.socket.close()
        wait_for(lambda: not proxy.gateway.server.sessions)


def test_a_client_that_does_not_log_in_is_disconnected(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client_session.LOGIN_SECONDS == 10
    monkeypatch.setattr(client_session, "LOGIN_SECONDS", 0.1)
    client = start(CLIENTS).dial()
    assert client.receive() == CONNECTED
    assert client.receive() == _error(404)
    assert client.closed() == (1008, "auth timeout")


def test_many_log_ins_in_one_message_do_not_extend_the_deadline(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their refusals are delayed one after the other.

    Meanwhile the ended connection would keep its slot.
    """
    monkeypatch.setattr(client_session, "LOGIN_SECONDS", 0.3)
    monkeypatch.setattr(auth_throttle, "MOST", 0.2)
    proxy = start(CLIENTS)
    client = proxy.wire()
    client.send(TEXT, json.dumps({"action": "auth", "key": "nobody", "secret": "none"}).encode() * 256)
    client.socket.close()
    wait_for(lambda: proxy.gateway.server.unauthenticated == 0, seconds=5)


def test_a_refused_client_is_disconnected_at_the_deadline(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_session, "LOGIN_SECONDS", 0.3)
    client = start(CLIENTS).dial()
    client.receive()
    assert client.ask(WRONG) == _error(402)
    assert client.closed() == (1008, "auth timeout")
    assert len(client.frames) == 2  # no 404 after the 402


def test_409_from_alpaca_at_login_answers_every_subscribe(start: Start) -> None:
    proxy = start(CLIENTS, plan=AccountPlan(feeds=["crypto"]))
    first, second = proxy.client("alpha"), proxy.client("alpha")
    assert first.subscribe(trades=["AAPL"]) == _error(409)[0]
    assert second.subscribe(trades=["BAC"]) == _error(409)[0]
    assert second.subscribe() == {}
    assert len(proxy.simulator.attempts("iex")) == 1


LISTED = "origins: [app.example.com, 'https://Desk.example:8443', 'https://shop.example:443', bücher.example, 'a.b.']"


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "http://127.0.0.1",
        "https://[::1]:1",
        "https://app.example.com",
        "http://app.example.com:3000",
        "https://APP.example.com.",
        "https://desk.example:8443",
        "https://shop.example",
        "http://xn--bcher-kva.example",
        "http://a.b",
    ],
)
def test_allowed_origins(start: Start, origin: str) -> None:
    proxy = start(CLIENTS, config={"listen": LISTED})
    assert proxy.dial(headers={"Origin": origin}).receive() == CONNECTED


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "https://sub.app.example.com",
        "https://app.example.com.evil.com",
        "https://app.example.com@evil.com",
        "https://desk.example",
        "http://desk.example:8443",
        "http://shop.example",
        "https://shop.example:8443",
        "http://localhost.evil.com",
        "app.example.com",
        "null",
        "",
    ],
)
def test_refused_origins(start: Start, origin: str) -> None:
    proxy = start(CLIENTS, config={"listen": LISTED})
    with pytest.raises(InvalidStatus) as refused:
        proxy.dial(headers={"Origin": origin})
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("path", ["/v2/iex/", "//v2/iex", "/v2//iex//", "//", "/iex/?x=//", "/delayed_sip", "/us-1/"])
def test_slashes_are_forgiven_and_bare_feed_names_are_aliases(start: Start, path: str) -> None:
    proxy = start('  alpha: {key: alpha, secret: alpha, allow: {iex: "*", delayed_sip: "*", crypto-us-1: "*"}}')
    assert proxy.client("alpha", path).subscribe(trades=["AAPL"])["trades"] == ["AAPL"]


def test_unknown_paths(start: Start) -> None:
    proxy = start(CLIENTS)
    for path in ("/v2/nonsense", "/v2", "/v2/iex/../sip"):
        with pytest.raises(InvalidStatus) as refused:
            proxy.dial(path)
        assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/v2/iex", 426, "WebSocket"),
        ("HEAD", "/v2/iex", 426, ""),
        ("GET", "/", 426, "WebSocket"),
    ],
)
def test_plain_http(start: Start, method: str, path: str, status: int, word: str) -> None:
    connection = http.client.HTTPConnection(*start(CLIENTS).address, timeout=5)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read().decode()
    assert response.status == status
    assert word in body
    assert len(body.splitlines()) == (method != "HEAD")
    connection.close()


@pytest.mark.parametrize("body", [None, '{"symbol": "AAPL", "qty": "1"}' * 100], ids=["get", "post"])
@pytest.mark.parametrize("upgrade", [{}, UPGRADE], ids=["plain", "upgrade"])
def test_rest_paths_are_answered_as_alpaca_answers_rest_calls(
    start: Start, upgrade: dict[str, str], body: str | None
) -> None:
    """SDKs show the `message` of an error that has Alpaca's form."""
    connection = http.client.HTTPConnection(*start(CLIENTS).address, timeout=5)
    connection.request("GET" if body is None else "POST", "/v2/orders", body, upgrade if body is None else {})
    response = connection.getresponse()
    error = json.loads(response.read())
    assert (response.status, response.getheader("Content-Type")) == (404, "application/json")
    assert error.keys() == {"code", "message"}
    assert error["code"] == 40410000
    assert "REST calls to Alpaca directly" in error["message"]
    connection.close()


@pytest.mark.parametrize("path", ["/v2/iex", "/stream"])
def test_nothing_is_left_of_a_session(start: Start, path: str) -> None:
    """Reference counting frees it; the collector seldom visits old objects."""
    proxy = start('\n  one: {key: one, secret: one, when_slow: conflate, allow: {iex: "*", trading: "*"}}\n')

    def join_and_leave() -> list[weakref.ref[object]]:
        client = proxy.client("one", path)
        if path == "/stream":
            client.listen("trade_updates", "T.AAPL")
        else:
            client.subscribe(trades=["AAPL"])
        [session] = proxy.gateway.server.sessions
        parts = [session, session.protocol, session.outbox, session._connection, session._inbound, *session.subscribers]
        client.ws.close()
        return [weakref.ref(part) for part in parts]

    join_and_leave()
    gc.collect()
    gc.disable()
    try:
        parts = join_and_leave()
        wait_for(lambda: not any(part() for part in parts), "a reference cycle keeps a part alive")
    finally:
        gc.enable()
