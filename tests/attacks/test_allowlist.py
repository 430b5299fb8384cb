"""A client receives only messages that its allowlist permits.

That holds for new allowlists after a reload too.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import gevent
import msgpack
import pytest

from tests.attacks.rogue import Connection, Rogue
from tests.attacks.target import CALM_SECONDS, Target, long, send
from tests.harness import CLOSE, PING, Process, Wire, trade, wait_for

pytestmark = pytest.mark.attack

Start = Callable[..., Target]


def messages(wire: Wire) -> list[dict[str, object]]:
    """Return the messages of the next data frame."""
    while True:
        opcode, payload = wire.receive()
        assert opcode != CLOSE
        if opcode != PING:
            decoded = json.loads(payload) if payload[:1] == b"[" else msgpack.unpackb(payload)
            return [*decoded]


@pytest.mark.parametrize("packed", [False, long(True)])
@pytest.mark.parametrize("upstream", [long("json"), "msgpack"])
@pytest.mark.parametrize("patterns", [long("[AAPL]"), "[AA*, TSLA]"])
def test_unknown_kinds(target: Start, tmp_path: Path, patterns: str, upstream: str, packed: bool) -> None:
    """Unknown kinds are received if the channel `*` permits the symbol.

    The kinds are those that no documented channel carries. The command `explain` agrees.
    """

    def attack(line: Connection) -> None:
        for symbol in ("MSFT", "AAPL", "*", ""):
            line.send_json([{"T": "zz", "S": symbol}])
        line.send_json([{"T": "zz"}])
        line.send_json([{"T": "zz", "S": "MSFT"}, trade("AAPL", 1), {"T": "zz", "S": "MSFT"}, trade("MSFT", 2)])

    with Rogue(attack) as rogue:
        allow = f'iex: {{trades: ["*"], "*": {patterns}}}'
        proxy = target(rogue.url, allow=allow, account=f"codec: {{iex: {upstream}}}")
        wire = proxy.client(msgpack=packed)
        send(wire, {"action": "subscribe", "trades": ["*"]}, packed)
        rogue.ready()
        assert messages(wire)[0]["T"] == "subscription"
        rogue.strike(5)
        received: list[dict[str, object]] = []
        while not received or received[-1].get("i") != 2:
            received += messages(wire)
    assert [(message["T"], message.get("S")) for message in received] == [("zz", "AAPL"), ("t", "AAPL"), ("t", "MSFT")]
    for symbol, code in (("MSFT", 1), ("AAPL", 0)):
        arguments = ("explain", "victim", "iex", "zz", symbol, "-c", str(proxy.file))
        with Process(*arguments, folder=tmp_path) as explaining:
            assert explaining.end() == code


def narrow(proxy: Target, old: str, new: str) -> float:
    """Reload with a changed configuration.

    Return the time at which the proxy has logged the reload.
    """
    proxy.file.write_text(proxy.file.read_text().replace(old, new))
    proxy.process.popen.send_signal(signal.SIGHUP)
    wait_for(lambda: any(event["event"].endswith(".reload") for event in proxy.process.events), "no reload", 5)
    return time.monotonic()


WIDE = "[AAPL, MSFT, MORE*]"
NARROW = "[AAPL, MORE*]"


def test_a_symbol_that_is_taken_away(target: Start) -> None:
    """Its messages stop at once.

    Meanwhile, requests of the client wait for Alpaca's answer.
    """
    sent: dict[int, float] = {}

    def attack(line: Connection) -> None:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            number = len(sent)
            sent[number] = time.monotonic()
            line.send_json([trade("MSFT", number), trade("AAPL", number)])
            gevent.sleep(0.001)

    with Rogue(attack) as rogue:
        proxy = target(rogue.url, allow=f"iex: {{trades: {WIDE}}}")
        wire = proxy.client()
        wire.send_json({"action": "subscribe", "trades": ["AAPL", "MSFT"]})
        rogue.ready()
        assert messages(wire)[0]["trades"] == ["AAPL", "MSFT"]
        flowing = gevent.spawn(rogue.strike, 5)
        for number in range(30):
            wire.send_json({"action": "subscribe", "trades": [f"MORE{number}"]})
        gevent.sleep(0.3)
        reloaded = narrow(proxy, WIDE, NARROW)
        last = {"AAPL": -1, "MSFT": -1}
        while last["AAPL"] < 0 or sent[last["AAPL"]] < reloaded + 2:
            for message in messages(wire):
                if message["T"] == "t":
                    last[str(message["S"])] = int(str(message["i"]))
        flowing.join()
    assert sent[last["MSFT"]] - reloaded <= CALM_SECONDS


def test_a_pending_subscription_for_what_is_taken_away(target: Start) -> None:
    """It is not acknowledged: the answer in its place has the state without it."""
    allowed = "AAPL", "MORE1", "MORE2"

    def attack(line: Connection) -> None:
        for _ in range(3):
            line.send_json([{"T": "subscription", "trades": ["AAPL", "MSFT", "MORE1", "MORE2"]}])
            line.send_json([trade(symbol, 1) for symbol in ("MSFT", *allowed)])
            gevent.sleep(0.1)

    with Rogue(attack) as rogue:
        proxy = target(rogue.url, allow=f"iex: {{trades: {WIDE}}}")
        wire = proxy.client()
        wire.send_json({"action": "subscribe", "trades": ["AAPL"]})
        rogue.ready()
        assert messages(wire)[0]["trades"] == ["AAPL"]
        for symbol in ("MORE1", "MSFT", "MORE2"):
            wire.send_json({"action": "subscribe", "trades": [symbol]})
        gevent.sleep(0.3)
        narrow(proxy, WIDE, NARROW)
        rogue.strike(2)
        answers = []
        trades = []
        with gevent.Timeout(3.5, False):
            while True:
                for message in messages(wire):
                    (trades if message["T"] == "t" else answers).append(message)
    assert answers
    assert [answer for answer in answers if "MSFT" in answer.get("trades", ())] == []
    assert {message["S"] for message in trades} <= {*allowed}


def test_a_reload_that_revokes_many_symbols(target: Start) -> None:
    """Other clients are served without a delay."""
    symbols = [f"MORE{number:05}" for number in range(20_000)]

    def attack(line: Connection) -> None:
        """Send nothing more."""

    with Rogue(attack) as rogue:
        proxy = target(rogue.url, allow=f"iex: {{quotes: {WIDE}}}")
        for _ in range(3):
            wire = proxy.client()
            wire.send_json({"action": "subscribe", "quotes": symbols})
            proxy.read(wire)
        rogue.ready()
        gevent.sleep(1)
        cost = proxy.cost(lambda: narrow(proxy, WIDE, "[AAPL]"), 2, tries=1)
    assert cost.excess <= CALM_SECONDS, repr(cost)
