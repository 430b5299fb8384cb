"""Every SDK on every stream that it knows: it connects, hears each kind of message in the classes of its own, gives up
a subscription, and lives on when Alpaca's connection breaks and when the proxy is killed and comes back.

Each has a proxy of its own. What is mostly waiting befalls all of them at the same time.
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

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120, func_only=True)]  # in fixtures every wait has its own end

CASES = [(sdk, stream) for sdk in SDKS for stream in sdk.streams]
# No SDK stops hearing its order updates, and a program on one never stops hearing anything.
GIVEN_UP = [(sdk, stream) for sdk, stream in CASES if stream != "trading" and not sdk.program]
each_stream = pytest.mark.parametrize(("sdk", "stream"), CASES, ids=[f"{sdk}-{stream}" for sdk, stream in CASES])
each_given_up = pytest.mark.parametrize(
    ("sdk", "stream"), GIVEN_UP, ids=[f"{sdk}-{stream}" for sdk, stream in GIVEN_UP]
)
each_sdk = pytest.mark.parametrize("sdk", SDKS, ids=str)
each_of_stocks = pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.stocks in sdk.streams], ids=str)

# The classes that handlers are given, by the kind of the message.
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

BURST = 2000  # messages; half of them in frames of their own
PRICES = {"trades": "p", "quotes": "bp"}
RECONNECT_SECONDS = 30


@pytest.fixture(scope="module", params=["close", "rst"])
def loss(request: pytest.FixtureRequest, lives: Lives) -> dict[tuple[Sdk, str], tuple[int, int]]:
    """Alpaca's connections break, all of them. Until then they had been opened so often, and so many sessions been
    authenticated."""
    until = {
        (live.sdk, stream): (live.stand.simulator.opened(STREAMS[stream].feed), live.connects(stream))
        for live in lives.all()
        for stream in live.sdk.streams
    }
    for live in lives.all():
        for feed in {STREAMS[stream].feed for stream in live.sdk.streams}:
            live.stand.simulator.drop(feed, request.param)
    return until


@pytest.fixture(scope="module", params=[signal.SIGTERM, signal.SIGKILL])
def restart(request: pytest.FixtureRequest, lives: Lives) -> None:
    """The proxies end and start again, one after the other: while one is away its SDK calls without a pause."""
    for live in lives.all():
        live.stand.proxy.kill(request.param)
        live.stand.proxy.start()


@each_stream
def test_hears_every_kind_as_it_was_published(live: Live, stream: str) -> None:
    for channel, message in live.publish_all(stream, live.sdk.streams[stream]).items():
        heard = receive(live, stream, channel, message)
        assert heard["class"] == CLASSES[live.sdk.name].get(kind(message), "Object")
    assert live.algorithm.count("log", stream=stream, level="ERROR") == 0, live.algorithm.story()


@each_of_stocks
def test_hears_a_burst_whole_and_in_order(live: Live) -> None:
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


@each_given_up
def test_hears_nothing_of_what_it_gave_up(live: Live, stream: str) -> None:
    """Another algorithm goes on hearing it, so the proxy does get what this one must not."""
    feed, simulator = STREAMS[stream].feed, live.stand.simulator
    channel = live.asked(stream)[0]
    live.algorithm.unsubscribe(stream, channel, live.symbol(stream))
    wait_for(lambda: live.topic(stream) not in simulator.subscribed(feed).get(channel, ()), "still subscribed")

    with live.witness(stream, channel) as witness:
        missed = live.publish(stream, channel)
        wait_for(lambda: witness.receive() and witness.data, "the other algorithm heard nothing")
        live.algorithm.subscribe(stream, channel, live.symbol(stream))
        hear_again(live, stream, channel)

    assert not [e for e in live.algorithm.messages(stream, channel) if differences(live.sdk, missed, e["fields"]) == []]


@each_stream
def test_lives_through_the_loss_of_alpacas_connection(
    live: Live, stream: str, loss: dict[tuple[Sdk, str], tuple[int, int]]
) -> None:
    feed, simulator = STREAMS[stream].feed, live.stand.simulator
    opened, connects = loss[live.sdk, stream]
    wait_for(lambda: simulator.opened(feed) > opened and live.settled(stream), "Alpaca was not asked again")
    channel = live.asked(stream)[-1]
    receive(live, stream, channel, live.publish(stream, channel))
    assert live.connects(stream) == connects


@each_sdk
@pytest.mark.usefixtures("restart")
def test_comes_back_when_the_proxy_does(live: Live) -> None:
    for stream in live.sdk.streams:
        wait_for(partial(live.settled, stream), partial(live.why, stream), RECONNECT_SECONDS)
        for channel, message in live.publish_all(stream, live.sdk.streams[stream]).items():
            receive(live, stream, channel, message)
    assert not live.algorithm.over
    for stream in live.sdk.streams:
        expected = live.expected_sessions(stream)
        assert expected <= live.sessions(stream) <= expected * (2 if live.sdk.leaky else 1)


def hear_again(live: Live, stream: str, channel: str) -> None:
    """Publishes until the algorithm hears it, which is once its request has come through."""

    def heard() -> bool:
        message = live.publish(stream, channel)
        gevent.sleep(0.05)
        events = live.algorithm.messages(stream, channel)
        return bool(events) and differences(live.sdk, message, events[-1]["fields"]) == []

    wait_for(heard, lambda: f"{stream} hears no {channel} again; {live.algorithm.story()}")


def receive(live: Live, stream: str, channel: str, message: Message) -> dict[str, Any]:
    """The event of this very message, which must come."""
    return live.algorithm.wait(
        lambda event: (
            event["event"] == "message"
            and event["stream"] == stream
            and event["channel"] == channel
            and differences(live.sdk, message, event["fields"]) == []
        ),
        f"{stream} hears {message}",
    )


def kind(message: Message) -> str:
    name: str = message.get("T") or message["stream"]
    return name


def differences(sdk: Sdk, message: Message, fields: Mapping[str, Any]) -> list[str]:
    """Where an SDK's fields are not what was published: another value, or none. What the message does not have may be
    None; of an order update the fields are a choice."""
    sent = message if "T" in message else {**message["data"]["order"], **message["data"]}
    missing = (set(sent) if "T" in message else ORDER_FIELDS) - {*fields, *sdk.unread, "T", "r"}
    return [f"{name} is missing" for name in sorted(missing)] + [
        f"{name}: {sent.get(name)!r} became {heard!r}"
        for name, heard in fields.items()
        if not same(sent.get(name), heard)
    ]


def same(sent: Any, heard: Any) -> bool:
    """Whether it is the same value, at the precision that an SDK has for times and for large numbers."""
    if sent == heard:
        return True
    if isinstance(sent, int) and isinstance(heard, int) and sent > EXACT:
        return float(sent) == float(heard)
    if isinstance(sent, int) and isinstance(heard, str):
        return str(sent) == heard
    if sent is None and heard == []:
        return True
    if isinstance(sent, str) and isinstance(heard, (int, float)):
        return float(sent) == heard
    if isinstance(sent, str) and isinstance(heard, str) and "T" in heard:
        return nanoseconds(sent, digits(heard)) == nanoseconds(heard, digits(heard))
    return False


_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


def digits(stamp: str) -> int:
    found = _TIME.fullmatch(stamp)
    return len(found[2] or "") if found else 0


def nanoseconds(stamp: str, digits: int) -> tuple[datetime, str] | None:
    """An instant, cut to so many digits of a second."""
    found = _TIME.fullmatch(stamp)
    if found is None:
        return None
    offset = "+00:00" if found[3] == "Z" else found[3]
    moment = datetime.fromisoformat(found[1] + offset).astimezone(timezone.utc)
    return moment, (found[2] or "").ljust(digits, "0")[:digits]
