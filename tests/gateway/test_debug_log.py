"""The log at level debug: requests and answers, bounded, and without keys and secrets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.downstream.request_log import ANSWER_CHARACTERS
from proxy.observe import logs
from tests.harness import CONNECTED, Harness

Start = Callable[..., Harness]

CLIENTS = '  alpha: {key: alpha, secret: alpha, allow: {iex: {trades: "*", quotes: [AAPL]}, trading: "*"}}'


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.set_up("json", "debug", stream)
    yield stream
    logs.set_up("json", "info", io.StringIO())


def shown(out: io.StringIO, *names: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    return [event for event in events if event["level"] == "debug" and event["event"] in names]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_requests_and_answers(start: Start, out: io.StringIO, codec: str) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha", codec=codec)
    client.subscribe(trades=["AAPL"], quotes=["AAPL"])
    client.subscribe(quotes=["TSLA"])
    client.unsubscribe(quotes=["AAPL"])
    requests = shown(out, "session.request")
    assert [(event["action"], event.get("topics")) for event in requests] == [
        ("auth", None),
        ("subscribe", "quotes AAPL, trades AAPL"),
        ("subscribe", "quotes TSLA"),
        ("unsubscribe", "quotes AAPL"),
    ]
    answers = [json.loads(event["message"])[0] for event in shown(out, "session.answer")]
    assert [answer["T"] for answer in answers] == ["success", "success", "subscription", "error", "subscription"]
    assert answers[3] == {"T": "error", "code": 409, "msg": "insufficient subscription: quotes TSLA"}
    assert {event.get("client") for event in requests[1:]} == {"alpha"}
    upstream = [(event["action"], event["topics"]) for event in shown(out, "upstream.request")]
    assert upstream == [("add", 2), ("remove", 1)]
    assert shown(out, "upstream.confirmed")


def test_requests_of_the_trading_stream(start: Start, out: io.StringIO) -> None:
    client = start(CLIENTS).client("alpha", "/stream")
    client.listen("trade_updates", "T.AAPL")
    client.listen()
    assert [(event["action"], event.get("topics")) for event in shown(out, "session.request")] == [
        ("auth", None),
        ("listen", "trade_updates *, trades AAPL"),
        ("listen", "none"),
    ]


def test_long_requests_and_answers_are_cut(start: Start, out: io.StringIO) -> None:
    proxy = start(CLIENTS)
    for codec in ("json", "msgpack"):
        proxy.client("alpha", codec=codec).subscribe(trades=[f"{codec}{number}" for number in range(8000)])
    assert [event["topics"].partition(" and ")[2] for event in shown(out, "session.request") if "topics" in event] == [
        "7,988 more",
        "7,988 more",
    ]
    answers = [event["message"] for event in shown(out, "session.answer")]
    assert len(max(answers, key=len)) == ANSWER_CHARACTERS + 1
    assert answers[-1].endswith(" bytes")
    assert max(map(len, out.getvalue().splitlines())) < 1024  # a pipe takes the line whole or not at all


def test_no_credentials(start: Start, out: io.StringIO) -> None:
    """A secret may also stand where the key belongs, or in a message that is no request."""
    proxy = start(CLIENTS.replace("secret: alpha", "secret: canary"))
    for text in (
        '{"action":"auth","key":"anyone","secret":"canary-secret"}',
        '{"action":"auth","key":"canary","secret":"a secret in the place of the key"}',
        '{"action":"auth","key":"anyone","secret":"canary-unterminated',
        '{"action":"canary-action"}',
    ):
        client = proxy.dial()
        assert client.receive() == CONNECTED
        client.ws.send(text)
        client.answer()
    headers = {"APCA-API-KEY-ID": "anyone", "APCA-API-SECRET-KEY": "canary-secret"}
    proxy.dial(headers=headers).answer()
    assert len(shown(out, "session.request")) >= 1
    assert "canary" not in out.getvalue()


def test_info_shows_none(start: Start, out: io.StringIO) -> None:
    logs.set_up("json", "info", out)
    start(CLIENTS).client("alpha").subscribe(trades=["AAPL"])
    assert shown(out, "session.request", "session.answer", "upstream.request") == []
