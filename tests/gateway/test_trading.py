"""The trading stream: both ways to log in, `listen`, owners of order updates."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from proxy.alpaca.client_protocol import Phase
from proxy.routing import reconciler
from proxy.simulator import AccountPlan
from tests.harness import Client, Harness, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  momentum: {key: momentum, secret: momentum, allow: {trading: {trade_updates: ["momentum-*", "shared-1"]}}}
  meanrev: {key: meanrev, secret: meanrev, allow: {trading: {trade_updates: ["meanrev-*"]}}}
  tesla: {key: tesla, secret: tesla, allow: {trading: {trade_updates: ["symbol:TSLA", "symbol:BTC/*"]}}}
  desk: {key: desk, secret: desk, allow: {trading: "*"}}
  none: {key: none, secret: none, allow: {trading: {trade_updates: []}}}
  data: {key: data, secret: data, allow: {crypto: "*"}}
"""
LISTENING = ("momentum", "meanrev", "tesla", "desk")


def order(id_: str, client_order_id: str = "invented", **more: Any) -> dict[str, Any]:
    """An order; the default client order id stands for one that Alpaca has generated."""
    return {"id": id_, "client_order_id": client_order_id, "replaces": None, "replaced_by": None, "legs": None} | more


@pytest.fixture
def proxy(start: Start) -> Harness:
    return start(CLIENTS)


@pytest.fixture
def listeners(proxy: Harness) -> dict[str, Client]:
    """All clients that may use the stream, listening."""
    clients = {name: proxy.client(name, "/stream") for name in LISTENING}
    for client in clients.values():
        assert client.listen("trade_updates") == {"streams": ["trade_updates"]}
    return clients


def recipients(proxy: Harness, listeners: dict[str, Client], update: dict[str, Any]) -> set[str]:
    """Publish an order update.

    Return the clients that received it, other than the desk, which gets all.
    """
    before = {name: len(client.data) for name, client in listeners.items()}
    proxy.simulator.publish_order({"event": "new", "order": update})
    assert listeners["desk"].receive()["data"]["order"] == update
    for name in ("momentum", "meanrev", "tesla"):
        listeners[name].silent()
    return {name for name, client in listeners.items() if len(client.data) > before[name]} - {"desk"}


@pytest.mark.parametrize("path", ["/stream", "/stream/"])
@pytest.mark.parametrize(
    "request_",
    [
        {"action": "authenticate", "data": {"key_id": "momentum", "secret_key": "momentum"}},
        {"action": "auth", "key": "momentum", "secret": "momentum"},
    ],
)
def test_both_ways_to_log_in(proxy: Harness, path: str, request_: dict[str, Any]) -> None:
    """There is no greeting: the client sends first.

    JSON comes in binary frames, as from Alpaca.
    """
    client = proxy.dial(path)
    assert client.ask(request_) == {
        "stream": "authorization",
        "data": {"status": "authorized", "action": "authenticate"},
    }
    assert client.listen("trade_updates", "nonsense") == {"streams": ["trade_updates"]}
    assert client.listen() == {"streams": []}


def test_msgpack(proxy: Harness, listeners: dict[str, Client]) -> None:
    """With the Content-Type header, replies and updates are msgpack; their times stay the texts that Alpaca sends."""
    packed = proxy.client("desk", "/stream", "msgpack")
    assert packed.listen("trade_updates", "account_updates") == {"streams": ["account_updates", "trade_updates"]}
    update = order(
        "1", "momentum-1", created_at="2022-04-19T13:45:04.981350886-04:00", qty="1790.86", legs=[{"id": "2"}]
    )
    proxy.simulator.publish_order({"event": "new", "order": update, "at": "2022-04-19T17:45:05Z", "n": 1 << 60})
    message = packed.receive()
    assert message == listeners["desk"].receive() == listeners["momentum"].receive()
    assert message["data"]["order"] == update
    assert packed.listen() == {"streams": []}
    assert packed.ask({"action": "nothing"})["data"] == {"error": "invalid syntax"}


def test_an_update_that_msgpack_cannot_express_is_counted(proxy: Harness, listeners: dict[str, Client]) -> None:
    packed = proxy.client("desk", "/stream", "msgpack")
    packed.listen("trade_updates")
    proxy.simulator.publish_order({"event": "new", "order": order("1"), "n": 1 << 70})
    proxy.simulator.publish_order({"event": "fill", "order": order("1")})
    assert packed.receive()["data"]["event"] == "fill"
    assert [listeners["desk"].receive()["data"]["event"] for _ in range(2)] == ["new", "fill"]
    assert proxy.upstream("trading").router.irregular["untranslatable"] == 1


HEADERS = [
    {"APCA-API-KEY-ID": "desk", "APCA-API-SECRET-KEY": "desk"},
    {"Authorization": "Basic " + base64.b64encode(b"desk:desk").decode()},
]


@pytest.mark.parametrize("headers", HEADERS)
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_header_credentials_are_authorized_at_once(proxy: Harness, headers: dict[str, str], codec: str) -> None:
    client = proxy.dial("/stream", codec, headers=headers)
    authorized = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
    assert client.receive() == authorized
    assert client.listen("trade_updates") == {"streams": ["trade_updates"]}
    client.log_in("desk")  # again, as a program does that sends both


def test_wrong_header_credentials_are_refused_and_another_log_in_may_follow(proxy: Harness) -> None:
    client = proxy.dial("/stream", headers=HEADERS[0] | {"APCA-API-SECRET-KEY": "wrong"})
    assert client.receive()["data"] == {"status": "unauthorized", "action": "authenticate"}
    client.log_in("desk")


@pytest.mark.parametrize("key", ["nobody", "data"])
def test_refused_log_ins(proxy: Harness, key: str) -> None:
    """An unknown key, and a client whose allowlist names other feeds."""
    client = proxy.dial("/stream")
    unauthorized = {"stream": "authorization", "data": {"status": "unauthorized", "action": "authenticate"}}
    assert client.ask({"action": "auth", "key": key, "secret": key}) == unauthorized
    assert client.listen("trade_updates") == {"status": "unauthorized", "action": "listen"}
    client.log_in("momentum")  # the connection stays open


def test_an_update_goes_to_the_clients_of_its_client_order_id(proxy: Harness, listeners: dict[str, Client]) -> None:
    assert recipients(proxy, listeners, order("1", "momentum-1")) == {"momentum"}
    assert recipients(proxy, listeners, order("2", "meanrev-1")) == {"meanrev"}
    assert recipients(proxy, listeners, order("3", "shared-1")) == {"momentum"}
    assert recipients(proxy, listeners, order("4", "shared-12")) == set()
    assert recipients(proxy, listeners, order("5", "by hand")) == set()


def test_an_update_goes_to_the_clients_of_its_symbol(proxy: Harness, listeners: dict[str, Client]) -> None:
    """However the order was placed; with its legs, and with their replacements."""
    assert recipients(proxy, listeners, order("1", "momentum-1", symbol="TSLA")) == {"momentum", "tesla"}
    assert recipients(proxy, listeners, order("2", symbol="TSLAX")) == set()
    assert recipients(proxy, listeners, order("3", symbol="BTC/USD")) == {"tesla"}
    assert recipients(proxy, listeners, order("4", symbol="BTCUSD")) == {"tesla"}
    assert recipients(proxy, listeners, order("5", symbol="", legs=[order("6", symbol="TSLA")])) == {"tesla"}
    assert recipients(proxy, listeners, order("7", replaces="6")) == {"tesla"}


def test_updates_that_belong_to_nobody_are_counted(proxy: Harness, listeners: dict[str, Client]) -> None:
    """The desk, which may see everything, owns none of them."""
    for number, client_order_id in enumerate(("momentum-1", "by hand", "symbol:TSLA", "*")):
        recipients(proxy, listeners, order(f"{number}", client_order_id, symbol="AAPL"))
    router = proxy.upstream("trading").router
    wait_for(lambda: not router._awaiting_owner, "owners are still looked up")  # that of the last one may be
    [state] = [feed for feed in proxy.gateway.snapshot().feeds if feed.feed == "trading"]
    assert state.unowned == 3


def test_a_replacement_belongs_to_the_client_of_the_original(proxy: Harness, listeners: dict[str, Client]) -> None:
    """Alpaca generates the id of each; the chain is followed in both directions."""
    assert recipients(proxy, listeners, order("a", "momentum-1")) == {"momentum"}
    assert recipients(proxy, listeners, order("b", replaces="a")) == {"momentum"}
    assert recipients(proxy, listeners, order("b", replaced_by="c")) == {"momentum"}
    assert recipients(proxy, listeners, order("c")) == {"momentum"}
    assert recipients(proxy, listeners, order("d")) == set()


def test_the_legs_of_a_bracket(proxy: Harness, listeners: dict[str, Client]) -> None:
    legs = [order("take"), order("stop")]
    assert recipients(proxy, listeners, order("parent", "meanrev-7", legs=legs)) == {"meanrev"}
    for leg in legs:
        assert recipients(proxy, listeners, leg) == {"meanrev"}
    assert recipients(proxy, listeners, order("take2", replaces="take")) == {"meanrev"}


def test_ownership_outlives_a_reconnect_and_the_session(proxy: Harness, listeners: dict[str, Client]) -> None:
    assert recipients(proxy, listeners, order("a", "momentum-1")) == {"momentum"}
    listeners["momentum"].ws.close()
    proxy.simulator.drop("trading", "rst")
    wait_for(lambda: proxy.simulator.subscribed("trading") == {"trade_updates": {"*"}})
    again = listeners["momentum"] = proxy.client("momentum", "/stream")
    again.listen("trade_updates")
    assert recipients(proxy, listeners, order("b", replaces="a")) == {"momentum"}


@pytest.mark.parametrize("data", [{"event": "new", "order": None}, {"event": "new"}, None])
def test_an_update_without_an_order_has_no_owner(
    proxy: Harness, listeners: dict[str, Client], data: dict[str, Any] | None
) -> None:
    proxy.simulator.publish("trading", [{"stream": "trade_updates", "data": data}])
    assert listeners["desk"].receive()["data"] == data
    assert listeners["momentum"].silent()


def test_an_update_keeps_its_bytes(proxy: Harness, listeners: dict[str, Client]) -> None:
    update = b'{ "stream":"trade_updates","data":{"order":{"client_order_id":"momentum-1","id":"9","qty":"1.50"} }}'
    proxy.simulator.publish_raw("trading", update)
    listeners["momentum"].receive()
    assert listeners["momentum"].frames[-1] == update


def test_listen_replaces_the_streams(proxy: Harness) -> None:
    desk = proxy.client("desk", "/stream")
    assert desk.listen("trade_updates", "account_updates") == {"streams": ["account_updates", "trade_updates"]}
    assert desk.listen("account_updates") == {"streams": ["account_updates"]}
    wait_for(lambda: proxy.simulator.subscribed("trading") == {"account_updates": {"*"}})
    proxy.simulator.publish("trading", [{"stream": "account_updates", "data": {"cash": "1"}}])
    assert desk.receive()["data"] == {"cash": "1"}


def test_a_stream_that_is_not_allowed_is_absent(proxy: Harness) -> None:
    assert proxy.client("momentum", "/stream").listen("account_updates", "trade_updates") == {
        "streams": ["trade_updates"]
    }
    assert proxy.simulator.subscribed("trading") == {"trade_updates": {"*"}}


def test_a_stream_without_allowed_orders_is_absent(proxy: Harness) -> None:
    assert proxy.client("none", "/stream").listen("trade_updates") == {"streams": []}


def test_an_outage(proxy: Harness, listeners: dict[str, Client]) -> None:
    proxy.simulator.refuse_upgrade("trading", 500)
    proxy.simulator.drop("trading", "fin")
    wait_for(lambda: proxy.upstream("trading").phase is Phase.WAITING)
    proxy.simulator.accept("trading")
    wait_for(lambda: proxy.simulator.subscribed("trading") == {"trade_updates": {"*"}})
    assert recipients(proxy, listeners, order("1", "momentum-1")) == {"momentum"}
    assert proxy.simulator.peak("trading") == 1


def test_an_account_without_a_free_connection(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Alpaca refuses the log-in, requests are acknowledged all the same."""
    monkeypatch.setattr(reconciler, "ACK_SECONDS", 0.1)
    proxy = start(CLIENTS, plan=AccountPlan(connections=0))
    desk = proxy.client("desk", "/stream")
    assert desk.listen("trade_updates") == {"streams": ["trade_updates"]}
    wait_for(lambda: proxy.upstream("trading").last_error == "Alpaca says 406 exceeded")
