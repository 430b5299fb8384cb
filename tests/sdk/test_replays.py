"""The conversations of the SDKs that cannot run here, byte for byte as their sources have them: Go's, C#'s and Java's.

Go reads strictly: each answer within 3 seconds, an array of exactly one, `T` the first key of every map, integers where
it wants integers; after `subscribe` the very next message must be the acknowledgement or an error. C# sends JSON in
binary frames, two documents in one if it is in a hurry. Java compares the texts of errors.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import msgpack
import pytest

from tests.harness import BINARY, CLOSE, PING, PONG, TEXT, Wire
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120)]

CLIENTS = """\
  algo:
    key: algo
    secret: secret
    max_connections: 100
    allow: {iex: "*", crypto: "*", news: "*", indicative: "*", opra: "*", trading: "*"}
  single:
    key: single
    secret: secret
    max_connections: 1
    allow: {iex: "*"}
"""
PATIENCE = 3.0  # Go's, for each answer
LOGIN_SECONDS = 10.0

GO = (
    "Content-Type: application/msgpack\r\nUser-Agent: APCA-GO/3.9.0\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
)
CSHARP = "User-Agent: Alpaca-dotNET-SDK/7.2\r\n"
JAVA = "User-Agent: okhttp/4.12.0\r\nSec-WebSocket-Extensions: permessage-deflate\r\nAccept-Encoding: gzip\r\n"

CONNECTED = [{"T": "success", "msg": "connected"}]
AUTHENTICATED = [{"T": "success", "msg": "authenticated"}]
AUTH = {"action": "auth", "key": "algo", "secret": "secret"}
STOCK_KEYS = (
    "trades",
    "quotes",
    "bars",
    "updatedBars",
    "dailyBars",
    "statuses",
    "lulds",
    "corrections",
    "cancelErrors",
)

# Fields that Go decodes as integers; a float there loses the rest of the batch.
INTEGERS = {
    "t": ("i", "s"),
    "q": ("bs", "as"),
    "b": ("v", "n"),
    "u": ("v", "n"),
    "d": ("v", "n"),
    "c": ("oi", "os", "ci", "cs"),
    "x": ("i", "s"),
}


class Peer:
    """A client at the level of frames. What it hears is kept in `heard`."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.heard: list[tuple[int, bytes]] = []

    def hear(self) -> tuple[int, bytes]:
        """The next frame that carries a message; pings are answered."""
        while True:
            opcode, payload = self.wire.hear()
            if opcode == PING:
                self.wire.send(PONG, payload)
            elif opcode != PONG:
                self.heard.append((opcode, payload))
                return opcode, payload


class Go(Peer):
    """Go's client: msgpack in binary frames, nothing else."""

    def ask(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        self.wire.send(BINARY, msgpack.packb(request))
        return self.answer()

    def answer(self) -> list[dict[str, Any]]:
        """The next message, which must be an array of one and come in time."""
        began = time.monotonic()
        [only] = self.read()
        assert time.monotonic() - began < PATIENCE
        return [only]

    def read(self) -> list[dict[str, Any]]:
        """The next message, decoded as strictly as Go does."""
        opcode, payload = self.hear()
        assert opcode == BINARY
        return [self._map(pairs) for pairs in msgpack.unpackb(payload, object_pairs_hook=list)]

    def start(self, **subscribed: list[str]) -> list[dict[str, Any]]:
        """What `Connect` does; the acknowledgement."""
        assert self.answer() == CONNECTED
        assert self.ask(AUTH) == AUTHENTICATED
        return self.change("subscribe", **subscribed)

    def change(self, action: str, **subscribed: list[str]) -> list[dict[str, Any]]:
        """Every channel is named each time, nil where nothing is wanted; the order is that of a Go map: any."""
        channels = (
            "trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "imbalances", "lulds", "orderbooks",
            "news", "pricing",
        )  # fmt: skip
        return self.ask({channel: subscribed.get(channel) for channel in channels} | {"action": action})

    @staticmethod
    def _map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert pairs[0][0] == "T"
        message = {name: dict(value) if _is_map(value) else value for name, value in pairs}
        for name in INTEGERS.get(message["T"], ()):
            assert isinstance(message.get(name, 0), int), f"{name} of {message}"
        if "t" in message:
            assert isinstance(message["t"], msgpack.Timestamp)
        return message


def _is_map(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], tuple)


class Json(Peer):
    """C#'s and Java's client: JSON, in the frames that it sends it in."""

    opcode = TEXT

    def say(self, *requests: dict[str, Any]) -> None:
        """Several requests become one message, as C# lets them when calls are rapid."""
        self.wire.send(self.opcode, "".join(map(json.dumps, requests)).encode())

    def ask(self, request: dict[str, Any]) -> Any:
        self.say(request)
        return self.read()

    def read(self) -> Any:
        """The next message; market data is in text frames, trading in binary ones."""
        opcode, payload = self.hear()
        message = json.loads(payload)
        assert opcode == (TEXT if isinstance(message, list) else BINARY)
        return message

    def start(self) -> None:
        assert self.read() == CONNECTED
        assert self.ask(AUTH) == AUTHENTICATED


class CSharp(Json):
    opcode = BINARY


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with Stand(tmp_path_factory.mktemp("replays"), CLIENTS) as stand:
        yield stand


@pytest.fixture
def dial(stand: Stand) -> Iterator[Callable[..., Wire]]:
    with ExitStack() as stack:

        def dial(path: str, headers: str, at: Stand = stand) -> Wire:
            wire = Wire(("127.0.0.1", at.proxy.port), path, headers)
            stack.callback(wire.socket.close)
            return wire

        yield dial


Dial = Callable[..., Wire]

# Somebody who says nothing, from the first test on: the last test sees what becomes of it.


@pytest.fixture(scope="module", autouse=True)
def silent(stand: Stand) -> Iterator[tuple[float, Json]]:
    """Somebody who does not log in, since when. It sits there while the other tests run."""
    wire = Wire(("127.0.0.1", stand.proxy.port), "/v2/iex", JAVA)
    yield time.monotonic(), Json(wire)
    wire.socket.close()


@pytest.mark.parametrize(
    ("path", "subscribed", "keys"),
    [
        ("/v2/iex", {"trades": ["AAPL"]}, STOCK_KEYS),
        ("/iex", {"quotes": ["AAPL"]}, STOCK_KEYS),  # with DATA_PROXY_WS
        ("/v1beta3/crypto/us", {"orderbooks": ["BTC/USD"]}, ("trades", "quotes", "orderbooks", "bars")),
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


def test_go_hears_its_acknowledgement_before_any_data(stand: Stand, dial: Dial) -> None:
    """Though data flows to others without a pause."""
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


@pytest.fixture(scope="module")
def transcoding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A proxy that speaks JSON with Alpaca where it can, so that msgpack is made by itself."""
    account = ", codec: {iex: json, crypto: json, news: json}"
    with Stand(tmp_path_factory.mktemp("transcoding"), CLIENTS, account=account) as stand:
        yield stand


@pytest.mark.parametrize("upstream", ["msgpack", "json"])
@pytest.mark.parametrize("stream", ["stocks", "crypto", "news"])
def test_go_reads_every_kind_of_message(
    stand: Stand, transcoding: Stand, dial: Dial, stream: str, upstream: str
) -> None:
    at = stand if upstream == "msgpack" else transcoding
    known = STREAMS[stream]
    client = Go(dial(known.path, GO, at))
    asked = [channel for channel in known.channels if channel not in ("corrections", "cancelErrors")]
    client.start(**{channel: [known.symbol] for channel in asked})
    published = [message(7) for message in known.channels.values()]
    at.simulator.publish(known.feed, published)
    heard: list[dict[str, Any]] = []
    while len(heard) < len(published):
        heard += client.read()
    for sent, got in zip(published, heard, strict=True):
        times = {"t", "created_at", "updated_at"}
        assert list(got) == list(sent)
        if stream == "crypto" and sent["T"] == "o":
            times |= {"b", "a"}  # lists of maps, which come as lists of pairs here
        assert {name: got[name] for name in got if name not in times} == {
            name: sent[name] for name in sent if name not in times
        }


def test_go_changes_what_it_hears_even_if_alpaca_is_slow(stand: Stand, dial: Dial) -> None:
    client = Go(dial("/v2/iex", GO))
    client.start(trades=["AAPL"])
    stand.simulator.slow_acks(PATIENCE + 1)
    try:
        assert client.change("subscribe", bars=["SLOW"])[0]["bars"] == ["SLOW"]
        assert client.change("unsubscribe", trades=["AAPL"])[0]["trades"] == []
    finally:
        stand.simulator.slow_acks(0)


def test_a_refusal_is_the_answer_to_gos_change(stand: Stand, dial: Dial) -> None:
    """Any acknowledgement completes a pending change, so that no other may come first."""
    client = Go(dial("/v2/iex", GO))
    client.start(trades=["AAPL"])
    stand.simulator.refuse_symbols(["TSLA"])
    assert client.change("subscribe", trades=["TSLA"]) == [{"T": "error", "code": 405, "msg": "symbol limit exceeded"}]
    assert client.change("subscribe", quotes=["MSFT"])[0]["trades"] == ["AAPL"]


def test_go_gets_the_place_on_the_socket_that_it_has(dial: Dial) -> None:
    """It asks again and again on the same one (406) while another still has the place."""
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
        if (answer := client.ask(single)) == AUTHENTICATED:
            break
        assert answer == refusal
        assert attempt < 4


def test_go_connects_while_alpaca_refuses(stand: Stand, dial: Dial) -> None:
    """An HTTP status of 400 and more would end it for good."""
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
    while (frame := client.wire.hear())[0] != PONG:
        pass
    assert frame == (PONG, b"0123")


def test_csharp_subscribes_in_chunks(dial: Dial) -> None:
    """A hundred streams to a message, one message after the other without waiting."""
    client = CSharp(dial("/v2/iex", CSHARP))
    client.start()
    symbols = [f"C{number:03}" for number in range(500)]
    for start in range(0, 500, 100):
        client.say({"action": "subscribe", "trades": symbols[start : start + 100]})
    acks = [client.read() for _ in range(5)]
    assert all(len(ack) == 1 and set(ack[0]) == {"T", *STOCK_KEYS} for ack in acks)
    assert acks[-1][0]["trades"] == acks[-1][0]["corrections"] == symbols


def test_two_requests_in_one_message_are_both_heard(dial: Dial) -> None:
    client = CSharp(dial("/v2/iex", CSHARP))
    client.start()
    client.say({"action": "subscribe", "quotes": ["AAPL"]}, {"action": "subscribe", "trades": ["MSFT"]})
    assert client.read()[0]["quotes"] == ["AAPL"]
    [ack] = client.read()
    assert (ack["quotes"], ack["trades"]) == (["AAPL"], ["MSFT"])


def test_csharp_logs_in_again_when_it_is_told_that_it_has_not(dial: Dial) -> None:
    client = CSharp(dial("/v2/iex", CSHARP))
    assert client.read() == CONNECTED
    assert client.ask({"action": "subscribe", "trades": ["AAPL"]})[0]["code"] == 401
    assert client.ask(AUTH) == AUTHENTICATED
    assert client.ask(AUTH)[0]["code"] == 403


def test_csharps_pongs_that_nobody_asked_for_do_no_harm(dial: Dial) -> None:
    client = CSharp(dial("/v1beta3/crypto/us?exchanges=CBSE,FTXU", CSHARP))
    client.start()
    client.wire.send(PONG, b"")
    assert client.ask({"action": "subscribe", "quotes": ["BTC/USD"]})[0]["quotes"] == ["BTC/USD"]


def test_csharp_has_options_in_msgpack_without_asking(stand: Stand, dial: Dial) -> None:
    client = Go(dial("/v1beta1/indicative", CSHARP))
    assert client.answer() == CONNECTED
    assert client.ask(AUTH) == AUTHENTICATED
    symbol = STREAMS["options"].symbol
    assert client.ask({"action": "subscribe", "quotes": [symbol]})[0]["quotes"] == [symbol]
    stand.simulator.publish("indicative", [STREAMS["options"].channels["quotes"](3)])
    assert client.read()[0]["bp"] == 3.46


@pytest.mark.parametrize(("client_of", "headers"), [(CSharp, CSHARP), (Json, JAVA)])
def test_trading_is_spoken_in_the_frames_of_either(
    stand: Stand, dial: Dial, client_of: type[Json], headers: str
) -> None:
    """It is in binary frames that Alpaca answers, whatever it was asked in."""
    client = client_of(dial("/stream", headers))
    data = {"key_id": "algo", "secret_key": "secret"}
    authorized = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
    assert client.ask({"action": "authenticate", "data": data}) == authorized
    listening = {"stream": "listening", "data": {"streams": ["trade_updates"]}}
    assert client.ask({"action": "listen", "data": {"streams": ["trade_updates"]}}) == listening
    wait_for(lambda: "trade_updates" in stand.simulator.subscribed("trading"), "Alpaca was not asked")
    update = STREAMS["trading"].channels["trade_updates"](5)
    stand.simulator.publish("trading", [update])
    assert client.read() == update


@pytest.mark.parametrize(
    ("request_", "code", "msg"),
    [
        (AUTH | {"secret": "wrong"}, 402, "auth failed"),
        ({"action": "subscribe", "trades": ["AAPL"]}, 401, "not authenticated"),
    ],
)
def test_java_knows_refusals_by_their_text(dial: Dial, request_: dict[str, Any], code: int, msg: str) -> None:
    client = Json(dial("/v2/iex", JAVA))
    assert client.read() == CONNECTED
    assert client.ask(request_) == [{"T": "error", "code": code, "msg": msg}]


def test_java_subscribes_what_it_was_told_it_had(dial: Dial) -> None:
    """After a reconnect it sends the acknowledged state back, but for the channels that follow trades."""
    client = Json(dial("/v2/iex", JAVA))
    client.start()
    [ack] = client.ask({"action": "subscribe", "trades": ["MSFT", "AAPL"], "bars": ["*"]})
    again = Json(dial("/v2/iex", JAVA))
    again.start()
    followers = ("T", "corrections", "cancelErrors")
    repeated = {channel: symbols for channel, symbols in ack.items() if symbols and channel not in followers}
    assert again.ask({"action": "subscribe", **repeated}) == [ack]


def test_java_is_told_that_its_time_is_over(silent: tuple[float, Json]) -> None:
    began, client = silent
    assert client.read() == CONNECTED
    assert client.read() == [{"T": "error", "code": 404, "msg": "auth timeout"}]
    assert client.hear()[0] == CLOSE
    assert time.monotonic() - began >= LOGIN_SECONDS - 1
