"""The simulator over real sockets, with an independent client and decoders."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from proxy.alpaca import endpoints as feeds
from proxy.simulator import AccountPlan, Market, Simulator

ROOT = Path(__file__).resolve().parents[2]
MSGPACK = {"Content-Type": "application/msgpack"}
CONNECTED = [{"T": "success", "msg": "connected"}]
AUTHENTICATED = [{"T": "success", "msg": "authenticated"}]
STAMP = "2023-04-06T11:54:26.838232225Z"
TRADE = {"T": "t", "S": "AAPL", "i": 628, "x": "K", "p": 162.92, "s": 3, "c": ["@", "F"], "z": "C", "t": STAMP}
MARKET_FEEDS = [*(feed for feed in feeds.feed_names() if feed != "trading"), "crypto-eu-1"]

Dial = Callable[..., Any]
WaitFor = Callable[..., None]


@pytest.mark.parametrize("feed", MARKET_FEEDS)
def test_every_market_feed_in_msgpack(simulator: Simulator, dial: Dial, feed: str) -> None:
    endpoint = feeds.endpoint(feed)
    assert endpoint is not None
    client = dial(simulator, endpoint.path + "?exchanges=", MSGPACK).log_in()
    channel = endpoint.channels[0]
    [ack] = client.subscribe(**{channel: ["AAPL"]})
    assert ack["T"] == "subscription"
    assert ack[channel] == ["AAPL"]
    assert simulator.subscribed(feed) == {channel: {"AAPL"}}


@pytest.mark.parametrize("path", ["/v2/nonsense", "/", "/iex", "/us", "/v2/iex/", "/v1beta1/crypto"])
def test_other_paths_are_404(simulator: Simulator, dial: Dial, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        dial(simulator, path)
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize("path", ["/stream", "/stream/"])
def test_trading_sends_json_in_binary_frames(simulator: Simulator, dial: Dial, path: str) -> None:
    client = dial(simulator, path)
    assert client.ask({"action": "authenticate", "data": {"key_id": "key", "secret_key": "secret"}})["data"] == {
        "status": "authorized",
        "action": "authenticate",
    }
    client.ask({"action": "listen", "data": {"streams": ["trade_updates"]}})
    simulator.publish_order({"event": "new", "order": {"id": "1", "legs": None}})
    frame = client.ws.recv(timeout=5)
    assert frame == b'{"stream":"trade_updates","data":{"event":"new","order":{"id":"1","legs":null}}}'


@pytest.mark.parametrize(
    "headers",
    [
        {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"},
        {"Authorization": "Basic " + base64.b64encode(b"key:secret").decode()},
        {"Authorization": "Bearer token"},
    ],
)
def test_header_credentials_are_answered_in_two_frames(dial: Dial, headers: dict[str, str]) -> None:
    with Simulator(keys={"key": "secret", "oauth": "token"}) as simulator:
        client = dial(simulator, "/v2/iex", headers)
        assert client.receive() == CONNECTED
        assert client.receive() == AUTHENTICATED


def test_wrong_header_credentials(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex", {"Authorization": "Basic nonsense"})
    assert client.receive() == CONNECTED
    assert client.receive() == [{"T": "error", "code": 402, "msg": "auth failed"}]


@pytest.mark.parametrize(
    ("path", "content_type", "packed"),
    [
        ("/v2/iex", None, False),
        ("/v2/iex", "application/json", False),
        ("/v2/iex", "application/msgpack", True),
        ("/v1beta1/opra", None, True),
        ("/v1beta1/opra", "application/msgpack", True),
        ("/v1beta1/opra", "application/json", False),
    ],
)
def test_the_codec_follows_the_content_type(
    simulator: Simulator, dial: Dial, path: str, content_type: str | None, packed: bool
) -> None:
    frame = dial(simulator, path, {"Content-Type": content_type} if content_type else {}).ws.recv(timeout=5)
    assert isinstance(frame, bytes) is packed
    assert (msgpack.unpackb(frame) if isinstance(frame, bytes) else json.loads(frame)) == CONNECTED


def test_json_data_equals_the_published_data(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    client.subscribe(trades=["AAPL"])
    simulator.publish("iex", [TRADE, TRADE | {"S": "MSFT"}, TRADE | {"i": 629}])
    frame = client.ws.recv(timeout=5)
    assert isinstance(frame, str)
    assert json.loads(frame) == [TRADE, TRADE | {"i": 629}]
    assert frame.startswith('[{"T":"t","S":"AAPL","i":628,')


def test_msgpack_data_has_timestamps_and_integers(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex", MSGPACK).log_in()
    client.subscribe(trades=["*"])
    simulator.publish("iex", [TRADE])
    [trade] = client.receive()
    assert list(trade) == list(TRADE)
    assert trade.pop("t") == msgpack.Timestamp(1680782066, 838232225)
    assert trade == {key: value for key, value in TRADE.items() if key != "t"}
    assert (type(trade["i"]), type(trade["s"]), type(trade["p"])) == (int, int, float)


def test_news_times_are_timestamps_in_msgpack(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v1beta1/news", MSGPACK).log_in()
    client.subscribe(news=["*"])
    simulator.publish("news", [{"T": "n", "id": 1, "symbols": [], "created_at": "2022-01-05T22:00:37Z"}])
    assert client.receive()[0]["created_at"] == msgpack.Timestamp(1641420037, 0)


def test_publish_in_separate_frames(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    client.subscribe(trades=["AAPL"])
    simulator.publish("iex", [TRADE, TRADE], together=False)
    assert client.receive() == client.receive() == [TRADE]


def test_published_trades_are_numbered_from_one(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    client.subscribe(trades=["AAPL"])
    simulator.publish_trades("iex", "AAPL", 5, batch=2)
    simulator.publish_trades("iex", "AAPL", 1)
    frames = [[trade["i"] for trade in client.receive()] for _ in range(4)]
    assert frames == [[1, 2], [3, 4], [5], [6]]


def test_twenty_thousand_messages_a_second(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    client.subscribe(trades=["AAPL"])
    start = time.monotonic()
    simulator.publish_trades("iex", "AAPL", 20_000, batch=10)
    assert time.monotonic() - start < 1
    numbers = [trade["i"] for _ in range(2_000) for trade in client.receive()]
    assert numbers == list(range(1, 20_001))


def test_raw_bytes_and_errors_go_to_every_connection(simulator: Simulator, dial: Dial) -> None:
    text, packed = dial(simulator, "/v2/iex").log_in(), dial(simulator, "/v2/sip", MSGPACK).log_in()
    simulator.publish_raw("iex", b'[{"T":"zz"}]')
    simulator.publish_raw("sip", b"\x90")
    simulator.error("iex", 500)
    simulator.error("sip", 406, "go away")
    assert (text.receive(), text.receive()) == ([{"T": "zz"}], [{"T": "error", "code": 500, "msg": "internal error"}])
    assert (packed.receive(), packed.receive()) == ([], [{"T": "error", "code": 406, "msg": "go away"}])


def test_counters_and_recorded_requests(simulator: Simulator, dial: Dial, wait_for: WaitFor) -> None:
    first = dial(simulator, "/v2/iex").log_in()
    second = dial(simulator, "/v2/iex")
    assert second.receive() == CONNECTED
    assert second.ask({"action": "auth", "key": "key", "secret": "secret"})[0]["code"] == 406
    assert (len(simulator.connections("iex")), simulator.opened("iex"), simulator.peak("iex")) == (1, 1, 1)
    first.subscribe(trades=["AAPL"])
    first.ws.close()
    wait_for(lambda: not simulator.connections("iex"))
    assert second.ask({"action": "auth", "key": "key", "secret": "secret"}) == AUTHENTICATED
    assert (simulator.opened("iex"), simulator.peak("iex"), len(simulator.attempts("iex"))) == (2, 1, 2)
    assert simulator.requests("iex") == [
        {"connection": 1, "action": "auth", "key": "key"},
        {"connection": 2, "action": "auth", "key": "key"},
        {"connection": 1, "action": "subscribe", "trades": ["AAPL"]},
        {"connection": 2, "action": "auth", "key": "key"},
    ]
    assert simulator.subscribed("iex") == {}


def test_login_timeout(dial: Dial) -> None:
    with Simulator(plan=AccountPlan(auth_seconds=0.1)) as simulator:
        idle, active = dial(simulator, "/v2/iex"), dial(simulator, "/v2/iex").log_in()
        assert idle.receive() == CONNECTED
        assert idle.receive() == [{"T": "error", "code": 404, "msg": "auth timeout"}]
        with pytest.raises(ConnectionClosedError) as closed:
            idle.receive()
        assert closed.value.rcvd is None
        assert active.subscribe(trades=["AAPL"])[0]["trades"] == ["AAPL"]


def test_a_fragmented_request(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex", MSGPACK).log_in()
    client.ws.send(iter([msgpack.packb({"action": "subscribe", "trades": ["AAPL"]})]))
    assert client.receive()[0]["trades"] == ["AAPL"]


def test_a_request_over_the_limit_is_closed_with_1009(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    client.send_json({"action": "subscribe", "trades": ["AAPL"] * 4000})
    with pytest.raises(ConnectionClosedError) as closed:
        client.receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


def test_pings_and_close_frames_are_answered(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    assert client.ws.ping().wait(5)
    client.ws.close(4000, "bye")
    assert client.ws.close_code == 4000


def test_a_half_closed_connection_ends(simulator: Simulator, dial: Dial, wait_for: WaitFor) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    client.ws.socket.shutdown(socket.SHUT_WR)
    wait_for(lambda: not simulator.connections("iex"))
    with pytest.raises(ConnectionClosed):
        client.receive()


def test_a_slow_client_gets_407_and_does_not_delay_others(simulator: Simulator, dial: Dial, wait_for: WaitFor) -> None:
    slow = dial(simulator, "/v2/sip", max_queue=1, max_size=None).log_in()
    slow.subscribe(trades=["*"])
    quick = dial(simulator, "/v2/iex").log_in()
    quick.subscribe(trades=["*"])
    big = TRADE | {"c": ["x" * 1_000_000]}
    for number in range(40):
        simulator.publish("sip", [big])
        simulator.publish("iex", [TRADE | {"i": number}])
        assert quick.receive()[0]["i"] == number
    wait_for(lambda: not simulator.connections("sip"))
    frames = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            frames.append(slow.receive())
    assert frames[-1] == [{"T": "error", "code": 407, "msg": "slow client"}]
    assert all(message == big for frame in frames[:-1] for message in frame)
    assert len(frames) < 40


def test_restart_on_the_same_port(dial: Dial) -> None:
    simulator = Simulator()
    for number in (1, 2):
        with simulator:
            client = dial(simulator, "/v2/iex").log_in()
            assert simulator.opened("iex") == number
        with pytest.raises(ConnectionClosed):
            client.receive()
    with pytest.raises(OSError, match="refused"):
        dial(simulator, "/v2/iex")


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # gevent leaves a socket that it could not bind to the garbage collector
def test_an_address_in_use_is_an_error(simulator: Simulator) -> None:
    port = int(simulator.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        Simulator(port=port).start()


def test_a_market_sends_order_books_first(dial: Dial) -> None:
    with Simulator(market=Market(rate=500, bar_seconds=0.2), seed=1) as simulator:
        client = dial(simulator, "/v1beta3/crypto/us").log_in()
        client.subscribe(orderbooks=["BTC/USD", "NEW/USD"], trades=["*"], bars=["*"])
        books = [client.receive()[0], client.receive()[0]]
        assert [(book["T"], book["S"], book["r"]) for book in books] == [("o", "BTC/USD", True), ("o", "NEW/USD", True)]
        seen: set[tuple[str, str]] = set()
        deadline = time.monotonic() + 5
        while not {("b", "BTC/USD"), ("t", "NEW/USD"), ("o", "NEW/USD")} <= seen:
            assert time.monotonic() < deadline
            seen |= {(message["T"], message["S"]) for message in client.receive()}
        assert ("o", "ETH/USD") not in seen


def test_order_updates_have_a_frame_each(dial: Dial) -> None:
    with Simulator(market=Market(order_seconds=0.01)) as simulator:
        client = dial(simulator, "/stream")
        client.ask({"action": "auth", "key": "key", "secret": "secret"})
        client.ask({"action": "listen", "data": {"streams": ["trade_updates"]}})
        updates = [client.receive() for _ in range(10)]
        assert {update["stream"] for update in updates} == {"trade_updates"}
        assert updates[0]["data"]["event"] == "new"


def test_the_program_serves_until_sigterm() -> None:
    program = (
        "from gevent import monkey; monkey.patch_all()\n"
        "from proxy.simulator import run\n"
        "run(ready=lambda simulator: print(simulator.url, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ws://127.0.0.1:")
            process.terminate()
            assert process.wait(timeout=5) == 0
        finally:
            process.kill()
