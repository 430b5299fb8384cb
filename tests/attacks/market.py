"""An Alpaca of its own process that sends much: `python tests/attacks/market.py RATE SHARE SYMBOLS CONDITIONS`.

It sends RATE messages a second from the first log-in on, in frames as they come; SHARE of them are trades, the rest
quotes, of SYMBOLS symbols at random. The trades are numbered (`i`) and have so many CONDITIONS, the quotes have the
monotonic time at which they were sent (`n`). It prints its address as {"event": "simulating", "at": URL}.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
import msgpack  # noqa: E402

from proxy.simulator import Simulator  # noqa: E402
from tests.harness import quote, trade  # noqa: E402

FEED = "iex"
PAUSE_SECONDS = 0.004
MOST = 200  # messages of a frame


def flow(alpaca: Simulator, rate: int, share: float, symbols: int, conditions: int) -> None:
    chance = random.Random(1)
    stamp = {"t": msgpack.Timestamp.from_unix_nano(time.time_ns())}
    listed = {"c": ["@"] * conditions}
    sent = trades = 0
    began = time.monotonic()
    while True:
        now = time.monotonic()
        batch = []
        while sent < (now - began) * rate and len(batch) < MOST:
            symbol = f"S{chance.randrange(symbols)}"
            if chance.random() < share:
                trades += 1
                batch.append(trade(symbol, trades) | stamp | listed)
            else:
                batch.append(quote(symbol, n=now) | stamp)
            sent += 1
        if batch:
            alpaca.publish_raw(FEED, msgpack.packb(batch))
        gevent.sleep(PAUSE_SECONDS if len(batch) < MOST else 0)


def main() -> None:
    rate, share, symbols, conditions = sys.argv[1:]
    with Simulator(keys={"bad": "bad"}) as alpaca:
        print(json.dumps({"event": "simulating", "at": alpaca.url}), flush=True)
        while not alpaca.connections(FEED):
            gevent.sleep(0.01)
        flow(alpaca, int(rate), float(share), int(symbols), int(conditions))


if __name__ == "__main__":
    main()
