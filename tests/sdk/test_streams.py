"""Every SDK on every stream that it has.

It connects, receives each kind of message in its own classes, unsubscribes, and recovers when Alpaca's connection
breaks and when the proxy is killed and restarted. Each SDK has its own proxy. Faults that mostly take waiting are
injected for all SDKs at the same time.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any

import gevent
import pytest

from tests.sdk.conftest import Live, Lives
from tests.sdk.sdks import SDKS, Sdk
from tests.sdk.stand import wait_for
from tests.sdk.tape import STREAMS, Message

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120, func_only=True)]  # waits in fixtures have their own timeouts

CASES = [(sdk, stream) for sdk in SDKS for stream in sdk.streams]
# No SDK can unsubscribe from order updates, and a program on one never unsubscribes.
UNSUBSCRIBABLE = [(sdk, stream) for sdk, stream in CASES if stream != "trading" and not sdk.program]
each_stream = pytest.mark.parametrize(("sdk", "stream"), CASES, ids=[f"{sdk}-{stream}" for sdk, stream in CASES])
each_unsubscribable = pytest.mark.parametrize(
    ("sdk", "stream"), UNSUBSCRIBABLE, ids=[f"{sdk}-{stream}" for sdk, stream in UNSUBSCRIBABLE]
)
each_sdk = pytest.mark.parametrize("sdk", SDKS, ids=str)
each_of_stocks = pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.stocks in sdk.streams], ids=str)

# The classes that handlers receive, by SDK and kind of message.
CLASSES: Mapping[str, Mapping[str, str]] = {
    "alpaca-py": {
        "t": "Trade",
        "q": "Quote",
        "b": "Bar",
        "u": "Bar",
        "d": "Bar",
        "s": "TradingStatus",
        "c": "TradeCorrection",
        "x": "TradeCancel",
        "o": "Orderbook",
        "n": "News",
        "trade_updates": "TradeUpdate",
    },
    "javascript": {},
    "StreamConn": {"t": "Trade", "q": "Quote", "b": "Agg", "trade_updates": "Entity"},
    "alpaca-trade-api": {
        "t": "Trade",
        "q": "Quote",
        "b": "Bar",
        "u": "Bar",
        "d": "Bar",
        "s": "StatusV2",
        "l": "LULDV2",
        "c": "CorrectionV2",
        "x": "CancelErrorV2",
        "o": "OrderbookV2",
        "n": "NewsV2",
        "trade_updates": "Entity",
    },
    "pylivetrader": {"trade_updates": "Entity"},
    "alpaca-backtrader-api": {"q": "dict", "b": "dict", "trade_updates": "Entity"},
}

EXACT = 2**53  # JavaScript's numbers are exact up to here
ORDER_FIELDS = {"event", "price", "qty", "timestamp", "client_order_id", "symbol", "side", "status"}

BURST = 2000  # messages; half of them in one frame, the others in single frames
PRICES = {"trades": "p", "quotes": "bp"}
RECONNECT_SECONDS = 30


@pytest.fixture(scope="module", params=["close", "rst"])
def loss(request: pytest.FixtureRequest, lives: Lives) -> dict[tuple[Sdk, str], tuple[int, int]]:
    """Drop all of Alpaca's connections.

    For each SDK and stream: how often its feed had been opened, and how many sessions had authenticated before.
    """
    before = {
        (live.sdk, stream): (live.stand.simulator.opened(STREAMS[stream].feed), live.connects(stream))
        for live in lives.all()
        for stream in live.sdk.streams
    }
    for live in lives.all():
        for feed in {STREAMS[stream].feed for stream in live.sdk.streams}:
            live.stand.simulator.drop(feed, request.param)
    return before


@pytest.fixture(scope="module", params=[signal.SIGTERM, signal.SIGKILL])
def restart(request: pytest.FixtureRequest, lives: Lives) -> None:
    """Restart the proxies one by one.

    While a proxy is down, its SDK tries to connect without a pause.
    """
    for live in lives.all():
        live.stand.proxy.kill(request.param)
        live.stand.proxy.start()


@each_stream
def test_receives_every_kind_as_published(live: Live, stream: str) -> None:
    for channel, message in live.publish_all(stream, live.sdk.streams[stream]).items():
        event = receive(live, stream, channel, message)
        assert event["class"] == CLASSES[live.sdk.name].get(kind(message), "Object")
    assert live.algorithm.count("log", stream=stream, level="ERROR") == 0, live.algorithm.story()


@each_of_stocks
def test_receives_a_burst_complete_and_in_order(live: Live) -> None:
    stream = live.sdk.stocks
    channel = live.sdk.streams[stream][0]
    message, price = STREAMS[stream].channels[channel], PRICES[channel]
    numbers = range(10_000, 10_000 + BURST)
    live.stand.simulator.publish("iex", [message(number) for number in numbers[: BURST // 2]], together=False)
    live.stand.simulator.publish("iex", [message(number) for number in numbers[BURST // 2 :]])
    expected = [message(number)[price] for number in numbers]
    receive(live, stream, channel, message(numbers[-1]))
    prices = [event["fields"][price] for event in live.algorithm.messages(stream, channel)]
    assert [price for price in prices if price >= expected[0]] == expected


@each_unsubscribable
def test_receives_nothing_after_unsubscribing(live: Live, stream: str) -> None:
    """Another algorithm stays subscribed, so the proxy still receives the messages."""
    feed, simulator = STREAMS[stream].feed, live.stand.simulator
    channel = live.requested(stream)[0]
    live.algorithm.unsubscribe(stream, channel, live.symbol(stream))
    wait_for(lambda: live.topic(stream) not in simulator.subscribed(feed).get(channel, ()), "still subscribed")

    with live.witness(stream, channel) as witness:
        missed = live.publish(stream, channel)
        wait_for(lambda: witness.receive() and witness.data, "the other algorithm received nothing")
        live.algorithm.subscribe(stream, channel, live.symbol(stream))
        wait_until_received(live, stream, channel)

    assert not [e for e in live.algorithm.messages(stream, channel) if differences(live.sdk, missed, e["fields"]) == []]


@each_stream
def test_keeps_its_sessions_when_alpacas_connection_is_lost(
    live: Live, stream: str, loss: dict[tuple[Sdk, str], tuple[int, int]]
) -> None:
    feed, simulator = STREAMS[stream].feed, live.stand.simulator
    opened, connects = loss[live.sdk, stream]
    wait_for(lambda: simulator.opened(feed) > opened and live.settled(stream), "the subscription was not restored")
    channel = live.requested(stream)[-1]
    receive(live, stream, channel, live.publish(stream, channel))
    assert live.connects(stream) == connects


@each_sdk
@pytest.mark.usefixtures("restart")
def test_reconnects_to_a_restarted_proxy(live: Live) -> None:
    for stream in live.sdk.streams:
        wait_for(partial(live.settled, stream), partial(live.unsettled, stream), RECONNECT_SECONDS)
        for channel, message in live.publish_all(stream, live.sdk.streams[stream]).items():
            receive(live, stream, channel, message)
    assert not live.algorithm.over
    for stream in live.sdk.streams:
        expected = live.expected_sessions(stream)
        assert expected <= live.sessions(stream) <= expected * (2 if live.sdk.leaky else 1)


def wait_until_received(live: Live, stream: str, channel: str) -> None:
    """Publish until the algorithm receives a message."""

    def received() -> bool:
        message = live.publish(stream, channel)
        gevent.sleep(0.05)
        events = live.algorithm.messages(stream, channel)
        return bool(events) and differences(live.sdk, message, events[-1]["fields"]) == []

    wait_for(received, lambda: f"no {channel} received on {stream}; {live.algorithm.story()}")


def receive(live: Live, stream: str, channel: str, message: Message) -> dict[str, Any]:
    """The event of exactly this message, which must come."""
    return live.algorithm.wait(
        lambda event: (
            event["event"] == "message"
            and event["stream"] == stream
            and event["channel"] == channel
            and differences(live.sdk, message, event["fields"]) == []
        ),
        f"{stream} receives {message}",
    )


def kind(message: Message) -> str:
    name: str = message.get("T") or message["stream"]
    return name


def differences(sdk: Sdk, message: Message, fields: Mapping[str, Any]) -> list[str]:
    """The missing fields of an SDK's object and those that differ, as texts.

    Fields that the message lacks may be None. Of an order update, only ORDER_FIELDS must be present.
    """
    sent = message if "T" in message else {**message["data"]["order"], **message["data"]}
    missing = (set(sent) if "T" in message else ORDER_FIELDS) - {*fields, *sdk.unread, "T", "r"}
    return [f"{name} is missing" for name in sorted(missing)] + [
        f"{name}: {sent.get(name)!r} became {value!r}"
        for name, value in fields.items()
        if not same(sent.get(name), value)
    ]


def same(sent: Any, received: Any) -> bool:
    """Whether two values are equal at the SDK's precision of times and numbers."""
    if sent == received:
        return True
    if isinstance(sent, int) and isinstance(received, int) and sent > EXACT:
        return float(sent) == float(received)
    if isinstance(sent, int) and isinstance(received, str):
        return str(sent) == received
    if sent is None and received == []:
        return True
    if isinstance(sent, str) and isinstance(received, (int, float)):
        return float(sent) == received
    if isinstance(sent, str) and isinstance(received, str) and "T" in received:
        return nanoseconds(sent, digits(received)) == nanoseconds(received, digits(received))
    return False


_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


def digits(stamp: str) -> int:
    """The number of fractional digits of the seconds."""
    match = _TIME.fullmatch(stamp)
    return len(match[2] or "") if match else 0


def nanoseconds(stamp: str, digits: int) -> tuple[datetime, str] | None:
    """A time in UTC to the second, and its fraction cut to `digits` digits.

    Returns None for text that is no time.
    """
    match = _TIME.fullmatch(stamp)
    if match is None:
        return None
    offset = "+00:00" if match[3] == "Z" else match[3]
    moment = datetime.fromisoformat(match[1] + offset).astimezone(timezone.utc)
    return moment, (match[2] or "").ljust(digits, "0")[:digits]
