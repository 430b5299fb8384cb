"""A client of another account that measures the delay of its messages.

It runs in a process of its own. The process is both ends: Alpaca's simulator, which publishes a numbered trade every
few milliseconds, and the client that receives the trades through the proxy. So the load of the attacking process does
not affect the measurement. Commands are lines of stdin, answers are lines of JSON:

    dial HOST PORT    connects the client, logs in and subscribes: {"event": "dialed"}
    watch             starts a period: {"event": "watching"}
    worst             ends it: {"event": "worst", "waited": …, "late": …, "lost": …}

`waited` is the longest delay of a message in this period in seconds, including messages that have not arrived; `late`
is the longest time by which this process itself was woken too late; `lost` is whether the client's connection has
ended.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from collections import deque  # noqa: E402

import gevent  # noqa: E402
from gevent.fileobject import FileObjectPosix  # noqa: E402

from proxy.simulator import Simulator  # noqa: E402
from tests.harness import PING, PONG, TEXT, Wire  # noqa: E402

FEED, SYMBOL = "iex", "AAPL"
PAUSE_SECONDS = 0.005


class Witness:
    def __init__(self, alpaca: Simulator) -> None:
        self._alpaca = alpaca
        self._sent: deque[tuple[int, float]] = deque()
        self._began = self._waited = self._late = 0.0
        self._lost = False

    def dial(self, address: tuple[str, int]) -> None:
        wire = Wire(address).log_in("witness", trades=[SYMBOL])
        wire.socket.settimeout(None)
        gevent.spawn(self._publish)
        gevent.spawn(self._receive, wire)

    def watch(self) -> None:
        self._began = time.monotonic()
        self._waited = self._late = 0.0

    def worst(self) -> dict[str, object]:
        now = time.monotonic()
        if self._sent:
            self._arrived(self._sent[0][1], now)
        return {"waited": self._waited, "late": self._late, "lost": self._lost}

    def _publish(self) -> None:
        number = 0
        while True:
            number += 1
            began = time.monotonic()
            if not self._lost:
                self._sent.append((number, began))
            self._alpaca.publish_trades(FEED, SYMBOL, 1)
            gevent.sleep(PAUSE_SECONDS)
            self._late = max(self._late, time.monotonic() - max(began, self._began) - PAUSE_SECONDS)

    def _receive(self, wire: Wire) -> None:
        try:
            while True:
                opcode, payload = wire.receive()
                now = time.monotonic()
                if opcode == PING:
                    wire.send(PONG, payload)
                elif opcode == TEXT:
                    for message in json.loads(payload):
                        self._received(message.get("i", 0), now)
        except (EOFError, OSError):
            self._lost = True

    def _received(self, number: int, now: float) -> None:
        while self._sent and self._sent[0][0] <= number:
            self._arrived(self._sent.popleft()[1], now)

    def _arrived(self, sent: float, now: float) -> None:
        self._waited = max(self._waited, now - max(sent, self._began))


def answer(event: str, **more: object) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


def main() -> None:
    with Simulator() as alpaca:
        witness = Witness(alpaca)
        gc.disable()
        answer("simulating", at=alpaca.url)
        for line in FileObjectPosix(0, "r"):
            command, *arguments = line.split()
            if command == "dial":
                witness.dial((arguments[0], int(arguments[1])))
                answer("dialed")
            elif command == "watch":
                witness.watch()
                answer("watching")
            else:
                answer("worst", **witness.worst())


if __name__ == "__main__":
    main()
