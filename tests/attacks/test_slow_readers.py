"""Clients that read slowly and want the newest (`when_slow: conflate`), at the product's own values.

Each has what a real one would have: an outbox of 8 MiB, and the kernel's buffers. A third process is Alpaca.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import gevent
import pytest

from tests.attacks.target import Target, long
from tests.harness import CLOSE, PING, PONG, TEXT, Process, Wire, wait_for

pytestmark = pytest.mark.attack

PROGRAM = str(Path(__file__).with_name("market.py"))
NEWEST = '  newest: {key: newest, secret: newest, when_slow: conflate, account: bad, allow: {iex: "*"}}'
EXCESS_SECONDS = 0.03
AGE_SECONDS = 2.0
PONG_SECONDS = 30.0  # between two pongs; pings are sent every ten seconds, and wait in buffers

Proxy = Callable[..., Target]


@pytest.fixture
def proxy(target: Callable[..., Target], tmp_path: Path) -> Iterator[Proxy]:
    """Start a proxy with a client `newest`, whose Alpaca sends what the arguments of `market.py` say."""
    with ExitStack() as stack:

        def start(*, rate: int, share: float, symbols: int = 1000, conditions: int = 1) -> Target:
            market = Process(folder=tmp_path, program=(PROGRAM, *map(str, (rate, share, symbols, conditions))))
            stack.enter_context(market)
            host, port = market.address("simulating")
            return target(f"ws://{host}:{port}", clients=NEWEST)

        yield start


class SlowReader:
    """A client that subscribes to everything, and reads at a pace.

    `ages` has the time of arrival and the age of each quote, `quoted` the last arrival by symbol, `trades` the trades'
    numbers, and `pings` the times at which it has answered a ping. `closed`: the proxy has closed the connection.
    """

    def __init__(self, proxy: Target) -> None:
        self._wire = subscribed(proxy)
        self.trades: list[int] = []
        self.ages: list[tuple[float, float]] = []
        self.quoted: dict[str, float] = {}
        self.pings: list[float] = []
        self.closed = False

    def read(self, seconds: float, due: Callable[[int, int], float]) -> None:
        """Read for so long; `due` are the seconds that a number of bytes and of messages takes."""
        began = time.monotonic()
        size = messages = 0
        while not self.closed and time.monotonic() < began + seconds:
            opcode, payload = self._wire.receive()
            size += len(payload)
            if opcode == PING:
                self._wire.send(PONG, payload)
                self.pings.append(time.monotonic())
            elif opcode == CLOSE:
                self.closed = True
            elif opcode == TEXT:
                messages += self._received(payload)
            gevent.sleep(max(0.0, began + due(size, messages) - time.monotonic()))

    def _received(self, payload: bytes) -> int:
        now = time.monotonic()
        messages = json.loads(payload)
        for message in messages:
            if message["T"] == "t":
                self.trades.append(message["i"])
            elif message["T"] == "q":
                self.ages.append((now, now - message["n"]))
                self.quoted[message["S"]] = now
        return len(messages)

    def oldest(self, since: float) -> float:
        """The age of the oldest quote that has arrived since then."""
        return max(age for at, age in self.ages if at >= since)


def subscribed(proxy: Target) -> Wire:
    """A connection with everything subscribed, and none of the replies read."""
    wire = proxy.client("newest")
    wire.send_json({"action": "subscribe", "quotes": ["*"], "trades": ["*"]})
    return wire


@pytest.mark.long
@pytest.mark.timeout(150)
def test_a_backlog_of_megabytes_delays_no_other_client(proxy: Proxy) -> None:
    """A quarter of the messages are trades, which are kept: the outbox fills, and the client gets 407.

    The same market costs time for a client that keeps up, too; what is compared is the delay beside that one. The
    trades are long ones, so that the outbox is full soon while the machine has time to spare.
    """
    attacked = proxy(rate=5000, share=0.25, conditions=200)

    def read(size: int) -> None:
        wire = subscribed(attacked)
        with suppress(OSError):
            while wire.socket.recv(size):
                gevent.sleep(0.02)
        wire.socket.close()

    keeps_up = attacked.cost(lambda: read(1 << 20), 15, tries=1)
    attacked.close_clients()
    cost = attacked.cost(lambda: read(400), 15)  # 20 kB a second
    print(f"keeps up: {keeps_up}; slow: {cost}")
    assert cost.waited - max(cost.calm, keeps_up.waited) <= EXCESS_SECONDS
    wait_for(lambda: "slow client" in [event.get("reason") for event in attacked.process.events])


@pytest.mark.parametrize("symbols", [long(100), 1000])
def test_a_reader_at_half_the_rate_gets_new_quotes(proxy: Proxy, symbols: int) -> None:
    """None is older than two seconds, each symbol has its turn, and no trade is missing."""
    reader = SlowReader(proxy(rate=9000, share=0.05, symbols=symbols))
    began = time.monotonic()
    reader.read(15, lambda size, messages: messages / 4500)
    print(f"the oldest quote was {reader.oldest(began + 5):.2f} s old")
    assert not reader.closed
    assert reader.oldest(began + 5) < AGE_SECONDS
    assert len(reader.quoted) == symbols
    assert min(reader.quoted.values()) > time.monotonic() - 2 * AGE_SECONDS
    assert reader.trades == [*range(reader.trades[0], reader.trades[-1] + 1)]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_slow_reader_lives_as_long_as_it_reads(proxy: Proxy) -> None:
    """It reads 60 kB a second for five minutes, of a market of 1.2 MB a second.

    Its pings wait behind what lies in the kernel of either side. Measured: quotes up to 16 s old, and 19 s between two
    pongs, with a receive buffer that Linux has let grow to most of a megabyte.
    """
    reader = SlowReader(proxy(rate=9000, share=0.02))
    began = time.monotonic()
    reader.read(300, lambda size, messages: size / 60_000)
    gaps = [later - earlier for earlier, later in zip([began, *reader.pings], reader.pings, strict=False)]
    print(f"the oldest quote was {reader.oldest(began + 60):.1f} s old, between two pongs {max(gaps):.1f} s")
    assert not reader.closed
    assert len(gaps) > 20
    assert max(gaps) < PONG_SECONDS
