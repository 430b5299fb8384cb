"""Every scripted fault, from the client's side."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import gevent
import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from proxy.simulator import Simulator
from proxy.simulator.faults import GARBAGE

AUTH = {"action": "auth", "key": "key", "secret": "secret"}
TRADE = {"T": "t", "S": "AAPL", "i": 1, "x": "V", "p": 1.5, "s": 1, "c": [], "z": "C", "t": "2023-04-06T11:54:26Z"}
MSGPACK = {"Content-Type": "application/msgpack"}
MOMENT = 0.1  # long enough for a sent message to arrive

Dial = Callable[..., Any]
WaitFor = Callable[..., None]


def test_drop_with_a_close_frame(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    simulator.drop("iex")
    with pytest.raises(ConnectionClosed) as closed:
        client.receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    assert simulator.connections("iex") == []


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_drop_without_a_close_frame(simulator: Simulator, dial: Dial, how: str) -> None:
    client, other = dial(simulator, "/v2/iex").log_in(), dial(simulator, "/v2/sip").log_in()
    simulator.drop("iex", how)
    with pytest.raises(ConnectionClosedError) as closed:
        client.receive()
    assert closed.value.rcvd is None
    assert other.subscribe(trades=["AAPL"])[0]["trades"] == ["AAPL"]


def test_the_slot_is_free_after_a_drop(simulator: Simulator, dial: Dial) -> None:
    for how in ("close", "fin", "rst"):
        dial(simulator, "/v2/iex").log_in()
        simulator.drop("iex", how)
    assert (simulator.opened("iex"), simulator.peak("iex")) == (3, 1)


def test_mute_and_unmute(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    client.subscribe(trades=["AAPL"])
    simulator.mute("iex")
    simulator.publish("iex", [TRADE])
    pong = client.ws.ping()
    with pytest.raises(TimeoutError):
        client.receive(MOMENT)
    assert not pong.is_set()
    assert len(simulator.connections("iex")) == 1
    simulator.unmute("iex")
    assert client.receive() == [TRADE]
    assert pong.wait(5)


def test_a_muted_connection_ends_when_the_client_disconnects(
    simulator: Simulator, dial: Dial, wait_for: WaitFor
) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    simulator.mute("iex")
    client.ws.close()
    wait_for(lambda: not simulator.connections("iex"))
    dial(simulator, "/v2/iex").log_in()


def test_a_stalled_upgrade(simulator: Simulator, dial: Dial) -> None:
    simulator.stall("upgrade", "iex")
    with pytest.raises(TimeoutError):
        dial(simulator, "/v2/iex", open_timeout=MOMENT)
    assert len(simulator.attempts("iex")) == 1
    dial(simulator, "/v2/sip").log_in()
    gevent.spawn_later(MOMENT, simulator.accept, "iex")
    dial(simulator, "/v2/iex").log_in()


def test_a_stalled_greeting(simulator: Simulator, dial: Dial) -> None:
    simulator.stall("greeting", "iex")
    client = dial(simulator, "/v2/iex")
    client.send_json(AUTH)
    with pytest.raises(TimeoutError):
        client.receive(MOMENT)
    assert client.ws.ping().wait(5)
    simulator.accept("iex")
    assert [client.receive()[0]["msg"], client.receive()[0]["msg"]] == ["connected", "authenticated"]


def test_a_stalled_login(simulator: Simulator, dial: Dial) -> None:
    simulator.stall("auth", "iex")
    client = dial(simulator, "/v2/iex")
    client.receive()
    client.send_json(AUTH)
    client.send_json({"action": "subscribe", "trades": ["AAPL"]})
    with pytest.raises(TimeoutError):
        client.receive(MOMENT)
    assert simulator.opened("iex") == 0
    simulator.accept("iex")
    assert [client.receive()[0]["T"], client.receive()[0]["T"]] == ["success", "subscription"]


def test_a_stalled_subscribe(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    simulator.stall("subscribe", "iex")
    client.send_json({"action": "subscribe", "trades": ["AAPL"]})
    with pytest.raises(TimeoutError):
        client.receive(MOMENT)
    assert simulator.subscribed("iex") == {}
    simulator.accept("iex")
    assert client.receive()[0]["trades"] == ["AAPL"]


@pytest.mark.parametrize("status", [429, 404, 403, 502, 500, 302])
def test_a_refused_upgrade(simulator: Simulator, dial: Dial, status: int) -> None:
    simulator.refuse_upgrade("iex", status)
    with pytest.raises(InvalidStatus) as refused:
        dial(simulator, "/v2/iex")
    assert refused.value.response.status_code == status
    simulator.accept("iex")
    dial(simulator, "/v2/iex").log_in()


@pytest.mark.parametrize(
    ("fault", "arguments"),
    [
        (Simulator.refuse_upgrade, ("iex", 299)),
        (Simulator.stall, ("lunch", "iex")),
        (Simulator.drop, ("iex", "softly")),
        (Simulator.garbage, ("iex", "nice")),
    ],
)
def test_unknown_faults_are_errors(fault: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with pytest.raises((ValueError, KeyError)):
        fault(Simulator(), *arguments)


@pytest.mark.parametrize("code", [402, 406, 409, 500])
def test_a_refused_login(simulator: Simulator, dial: Dial, code: int) -> None:
    simulator.fail_auth("iex", code)
    client = dial(simulator, "/v2/iex")
    client.receive()
    assert client.ask(AUTH)[0]["code"] == code
    simulator.accept("iex")
    assert client.ask(AUTH) == [{"T": "success", "msg": "authenticated"}]


def test_a_refused_trading_login(simulator: Simulator, dial: Dial) -> None:
    simulator.fail_auth("trading", 402)
    assert dial(simulator, "/stream").ask(AUTH)["data"]["status"] == "unauthorized"


def test_refused_symbols(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    simulator.refuse_symbols({"BAD"})
    assert client.subscribe(trades=["AAPL", "BAD"]) == [{"T": "error", "code": 405, "msg": "symbol limit exceeded"}]
    assert client.subscribe(trades=["AAPL"])[0]["trades"] == ["AAPL"]
    simulator.refuse_symbols(())
    assert client.subscribe(trades=["BAD"])[0]["trades"] == ["AAPL", "BAD"]


def test_slow_acks(simulator: Simulator, dial: Dial) -> None:
    client = dial(simulator, "/v2/iex").log_in()
    simulator.slow_acks(2 * MOMENT)
    client.send_json({"action": "subscribe", "trades": ["AAPL"]})
    client.send_json({"action": "subscribe", "trades": ["MSFT"]})
    assert client.ws.ping().wait(5)
    with pytest.raises(TimeoutError):
        client.receive(MOMENT)
    assert client.receive()[0]["trades"] == ["AAPL"]
    assert client.receive()[0]["trades"] == ["AAPL", "MSFT"]


@pytest.mark.parametrize("headers", [{}, MSGPACK])
@pytest.mark.parametrize("kind", ["not-json", "truncated"])
def test_undecodable_garbage(simulator: Simulator, dial: Dial, headers: dict[str, str], kind: str) -> None:
    client = dial(simulator, "/v2/iex", headers).log_in()
    simulator.garbage("iex", kind)
    with pytest.raises((json.JSONDecodeError, msgpack.FormatError, ValueError)):
        client.receive()
    simulator.error("iex", 500)
    assert client.receive()[0]["code"] == 500


@pytest.mark.parametrize("headers", [{}, MSGPACK])
def test_message_of_an_unknown_kind(simulator: Simulator, dial: Dial, headers: dict[str, str]) -> None:
    client = dial(simulator, "/v2/iex", headers).log_in()
    simulator.garbage("iex", "unknown-kind")
    assert client.receive() == [{"T": "zz", "S": "AAPL", "new": [1]}]


@pytest.mark.parametrize(("kind", "code"), [("oversize", 1009), ("masked", 1002), ("bad-utf8", 1007)])
def test_garbage_that_violates_the_frame_format(simulator: Simulator, dial: Dial, kind: str, code: int) -> None:
    """A conforming client closes the connection with the matching code."""
    client = dial(simulator, "/v2/iex").log_in()
    simulator.garbage("iex", kind)
    with pytest.raises(ConnectionClosedError) as closed:
        client.receive()
    assert closed.value.sent is not None
    assert closed.value.sent.code == code


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_garbage_is_one_frame(kind: str, codec: str) -> None:
    frame = GARBAGE[kind](codec)
    size = frame[1] & 0x7F
    if kind == "oversize":
        assert struct.unpack("!Q", frame[2:10]) == (64 << 20,)
    else:
        assert len(frame) == 2 + size + (4 if frame[1] & 0x80 else 0)


def test_json_garbage_is_invalid_json() -> None:
    for kind in ("not-json", "truncated"):
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(GARBAGE[kind]("json")[2:])
