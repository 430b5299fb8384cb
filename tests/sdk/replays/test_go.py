"""Replay of the Go SDK's sessions, byte for byte."""

from __future__ import annotations

import base64
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from proxy.simulator import Simulator
from tests.harness import PING, PONG
from tests.sdk.replays.conftest import CLIENTS
from tests.sdk.replays.peers import (
    ACK_SECONDS,
    AUTH,
    AUTHENTICATED,
    CONNECTED,
    GO,
    JAVA,
    STOCK_KEYS,
    Dial,
    Go,
    GoEvents,
    Json,
)
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STAMP, STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    ("path", "subscribed", "keys"),
    [
        ("/v2/iex", {"trades": ["AAPL"]}, STOCK_KEYS),
        ("/iex", {"quotes": ["AAPL"]}, STOCK_KEYS),  # with DATA_PROXY_WS
        ("/v1beta3/crypto/us", {"orderbooks": ["BTC/USD"]}, ("trades", "quotes", "orderbooks", "bars")),
        ("/v1beta3/crypto/eu-1", {"trades": ["BTC/USD"]}, ("trades", "quotes", "orderbooks", "bars")),
        (
            "/v1beta1/crypto-perps/global",
            {"pricing": ["BTC-PERP"]},
            ("trades", "quotes", "orderbooks", "bars", "pricing"),
        ),
        ("/us", {"trades": ["BTC/USD"]}, ("trades", "quotes", "orderbooks", "bars")),  # with DATA_CRYPTO_PROXY_WS
        ("/v1beta1/opra", {"trades": ["AAPL291221C00250000"]}, ("trades", "quotes")),
        ("/opra", {"quotes": ["AAPL291221C00250000"]}, ("trades", "quotes")),
        ("/v1beta1/news", {"news": ["*"]}, ("news",)),
    ],
)
def test_go_starts_on_every_path_that_it_opens(
    dial: Dial, path: str, subscribed: dict[str, list[str]], keys: tuple[str, ...]
) -> None:
    [ack] = Go(dial(path, GO)).start(**subscribed)
    assert ack["T"] == "subscription"
    assert set(keys) <= set(ack)
    for channel, symbols in subscribed.items():
        assert ack[channel] == symbols


def test_go_gets_its_acknowledgement_before_any_data(stand: Stand, dial: Dial) -> None:
    """Data of the same topics flows to another client without a pause."""
    Go(dial("/v2/iex", GO)).start(trades=["FLOW"], quotes=["FLOW"])
    trade, quote = (STREAMS["stocks"].channels[channel](1) | {"S": "FLOW"} for channel in ("trades", "quotes"))
    over = False

    def flow() -> None:
        while not over:
            stand.simulator.publish("iex", [trade, quote])
            gevent.sleep(0)

    flowing = gevent.spawn(flow)
    try:
        for _ in range(25):
            client = Go(dial("/v2/iex", GO))
            assert client.start(trades=["FLOW"], quotes=["FLOW"])[0]["T"] == "subscription"
            assert {message["T"] for message in client.read()} <= {"t", "q"}
            client.wire.socket.close()
    finally:
        over = True
        flowing.join()


@pytest.mark.parametrize("upstream", ["msgpack", "json"])
@pytest.mark.parametrize("stream", ["stocks", "crypto", "news"])
def test_go_reads_every_kind_of_message(
    stand: Stand, transcoding: Stand, dial: Dial, stream: str, upstream: str
) -> None:
    at = stand if upstream == "msgpack" else transcoding
    tape = STREAMS[stream]
    client = Go(dial(tape.path, GO, at))
    requested = [channel for channel in tape.channels if channel not in ("corrections", "cancelErrors")]
    client.start(**{channel: [tape.symbol] for channel in requested})
    published = [message(7) for message in tape.channels.values()]
    at.simulator.publish(tape.feed, published)
    received: list[dict[str, Any]] = []
    while len(received) < len(published):
        received += client.read()
    for sent, got in zip(published, received, strict=True):
        assert set(got) == set(sent)
        for name in set(sent) - {"t", "created_at", "updated_at"}:
            assert got[name] == sent[name]


def test_go_reads_prices_of_perpetuals_and_unknown_kinds(stand: Stand, dial: Dial) -> None:
    """Unknown kinds are routed by symbol to clients that may have `*`; Go skips them."""
    client = Go(dial("/v1beta1/crypto-perps/global", GO))
    client.start(pricing=["BTC-PERP", "AAPL"])
    price = {"T": "p", "S": "BTC-PERP", "x": "G", "ip": 1.5, "mp": 2.5, "fr": 0.25, "oi": 7.5, "t": STAMP, "ft": STAMP}
    stand.simulator.publish("crypto-perps-global", [price])
    stand.simulator.garbage("crypto-perps-global", "unknown-kind")
    stand.simulator.publish("crypto-perps-global", [price])
    received: list[dict[str, Any]] = []
    while len(received) < 3:
        received += client.read()
    assert [message["T"] for message in received] == ["p", "zz", "p"]
    assert (received[0]["mp"], received[0]["oi"], received[1]["new"]) == (2.5, 7.5, [1])


def test_go_changes_its_subscription_while_alpaca_is_slow(stand: Stand, dial: Dial) -> None:
    client = Go(dial("/v2/iex", GO))
    client.start(trades=["AAPL"])
    stand.simulator.slow_acks(ACK_SECONDS + 1)
    try:
        assert client.change("subscribe", bars=["SLOW"])[0]["bars"] == ["SLOW"]
        assert client.change("unsubscribe", trades=["AAPL"])[0]["trades"] == []
    finally:
        stand.simulator.slow_acks(0)
        wait_for(lambda: stand.simulator.subscribed("iex") == {"bars": {"SLOW"}}, "requests are still pending")


def test_a_refusal_is_the_reply_to_gos_change(stand: Stand, dial: Dial) -> None:
    """Any acknowledgement completes Go's pending change, so the error comes first."""
    client = Go(dial("/v2/iex", GO))
    client.start(trades=["AAPL"])
    stand.simulator.refuse_symbols(["TSLA"])
    assert client.change("subscribe", trades=["TSLA"]) == [{"T": "error", "code": 405, "msg": "symbol limit exceeded"}]
    assert client.change("subscribe", quotes=["MSFT"])[0]["trades"] == ["AAPL"]


def test_go_logs_in_on_the_same_connection_after_406(dial: Dial) -> None:
    """It retries on the same connection while another session has the only slot."""
    holder = Json(dial("/v2/iex", JAVA))
    assert holder.read() == CONNECTED
    single = AUTH | {"key": "single"}
    assert holder.ask(single) == AUTHENTICATED
    client = Go(dial("/v2/iex", GO))
    assert client.answer() == CONNECTED
    refusal = [{"T": "error", "code": 406, "msg": "connection limit exceeded"}]
    assert client.ask(single) == refusal
    assert client.ask(single) == refusal
    holder.wire.socket.close()
    for attempt in itertools.count(1):
        gevent.sleep(0.5)
        if (reply := client.ask(single)) == AUTHENTICATED:
            break
        assert reply == refusal
        assert attempt < 4


def test_go_connects_while_alpaca_refuses(stand: Stand, dial: Dial) -> None:
    """Go would give up for good after an HTTP status of 400 or more."""
    stand.simulator.refuse_upgrade("news", 403)
    stand.simulator.drop("news")
    try:
        assert Go(dial("/v1beta1/news", GO)).start(news=["AAPL"])[0]["news"] == ["AAPL"]
    finally:
        stand.simulator.accept("news")


def test_gos_pings_are_answered(dial: Dial) -> None:
    client = Go(dial("/v2/iex", GO))
    client.start(trades=["AAPL"])
    client.wire.send(PING, b"0123")
    while (frame := client.wire.receive())[0] != PONG:
        pass
    assert frame == (PONG, b"0123")


# Order updates, as server-sent events


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stand]:
    """A stand whose proxy a test may end."""
    with Stand(tmp_path, CLIENTS) as stand:
        yield stand


def publish_orders(stand: Stand, numbers: range, pause: float = 0.0) -> None:
    for number in numbers:
        stand.simulator.publish("trading", [STREAMS["trading"].channels["trade_updates"](number)])
        gevent.sleep(pause)


@pytest.mark.parametrize("oauth", ["", base64.b64encode(b"algo:secret").decode()])
def test_gos_order_updates(stand: Stand, oauth: str) -> None:
    with GoEvents(stand.proxy.port, oauth=oauth) as client:
        wait_for(lambda: client.ready, lambda: f"not ready: {client.errors}")
        publish_orders(stand, range(100, 110))
        wait_for(lambda: len(client.updates) == 10, lambda: f"{client.numbers()} {client.errors}")
        assert client.numbers() == [*range(100, 110)]
        sent = STREAMS["trading"].channels["trade_updates"](109)["data"]
        assert client.updates[-1] == sent | {"at": client.updates[-1]["at"]}
        assert client.targets == ["/v2/events/trades"]


def test_go_is_cut_while_updates_flow_and_misses_none(own: Stand) -> None:
    """A reload changes its client, again and again, and no other session has the feed meanwhile."""
    file = own.proxy._file
    with GoEvents(own.proxy.port) as client:
        wait_for(lambda: client.ready, "not ready")
        flow = gevent.spawn(publish_orders, own, range(1000, 1600), 0.005)
        for limit in range(101, 106):
            gevent.sleep(0.4)
            file.write_text(file.read_text().replace(f"max_connections: {limit - 1}", f"max_connections: {limit}"))
            assert own.proxy._process is not None
            own.proxy._process.send_signal(signal.SIGHUP)
        flow.get()
        wait_for(lambda: len(client.updates) >= 600, lambda: f"{len(client.updates)} {client.errors}")
        gevent.sleep(0.2)
        assert client.numbers() == [*range(1000, 1600)]
        assert len(client.targets) >= 4
        assert all("?since=20" in target for target in client.targets[1:])
        assert not client.ended


def test_go_comes_back_after_a_restart_of_the_proxy(own: Stand) -> None:
    with GoEvents(own.proxy.port) as client:
        for number, how in enumerate((signal.SIGTERM, signal.SIGKILL)):
            wait_for(lambda: client.ready, lambda: f"not ready: {client.errors}")
            publish_orders(own, range(number, number + 1))
            wait_for(lambda expected=number + 1: len(client.updates) == expected, lambda: str(client.errors))
            client.ready = False
            own.proxy.kill(how)
            gevent.sleep(0.2)
            own.proxy.start()
        wait_for(lambda: client.ready, lambda: f"not ready: {client.errors}")
        assert not client.ended
        assert client.numbers() == [0, 1]


def test_go_is_refused_without_a_hot_loop(stand: Stand) -> None:
    with GoEvents(stand.proxy.port, secret="wrong") as client:
        gevent.sleep(4)
        assert 1 <= len(client.targets) <= 4
        assert "40110000" in client.errors[0]
        assert not client.ended


def test_a_clean_end_ends_go_for_good() -> None:
    """So the proxy does not end a stream that it has to give up: it cuts it."""
    with Simulator() as simulator:
        client = GoEvents(simulator._port, "key", "secret")
        wait_for(lambda: simulator._event_peers, "no stream")
        for peer in simulator._event_peers:
            peer.finish()
        wait_for(lambda: client.ended, "it goes on")
        assert client.errors == []
