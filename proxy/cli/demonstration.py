"""`demo`: the simulator or a replay, the proxy and two sample algorithms in one process.

It needs no account and no files. Its last line is the result of a check: both algorithms received messages, neither
lost a stream or received a message outside its allowlist, and no feed ever had a second upstream connection.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from proxy.alpaca.client_protocol import Phase
from proxy.alpaca.codec import JSON
from proxy.alpaca.endpoints import CHANNEL_OF_KIND, Dialect, endpoint
from proxy.cli.terminal import StatusLine, fitted, wrapped
from proxy.config import model as configuration
from proxy.gateway import Gateway
from proxy.observe import logs
from proxy.observe.version import describe
from proxy.simulator import Market as SimulatedMarket
from proxy.simulator import Simulator
from proxy.transport import frames
from proxy.transport.errors import ProxyError
from proxy.upstream.websocket import UpstreamConnection, dial

if TYPE_CHECKING:
    from proxy.recording.timeline import Recording

CONFIG = """\
listen: {{port: {listen}}}
admin: {{port: {admin}}}
log: {{format: human, level: warning}}
accounts:
  simulated: {{key: key, secret: secret, data_url: "{url}", trading_url: "{url}"}}
clients:
  momentum: {{key: momentum, secret: momentum, allow: {momentum}}}
  meanrev: {{key: meanrev, secret: meanrev, allow: {meanrev}}}
  demo: {{key: demo, secret: demo, allow: {demo}}}
"""

# It fits a terminal of 80 columns and 24 rows, with the line before it, the status below it and two rows to spare. The
# lines to paste begin at the margin and have an empty line after `async def`, as Python's prompt requires.
INTRODUCTION = """\
{version}
{market}, no Alpaca account used. Ctrl-C ends it.

  momentum     may see {momentum}
  meanrev      may see {meanrev}
  status page  {http}/

Join as a third, from another terminal, with alpaca-py (key demo, secret demo):
from alpaca.data.live import StockDataStream
async def show(trade): print(trade)

url = "{ws}/v2/iex"
stream = StockDataStream("demo", "demo", url_override=url)
stream.subscribe_trades(show, "AAPL", "TSLA")
stream.run()

Or with websocat {ws}/v2/iex:
{{"action":"auth","key":"demo","secret":"demo"}}
{{"action":"subscribe","trades":["AAPL"],"quotes":["*"]}}
"""

LISTEN = {"action": "listen", "data": {"streams": ["trade_updates"]}}


class Algorithm:
    """A sample algorithm: subscriptions by path, and counts of received messages."""

    def __init__(self, name: str, subscriptions: dict[str, dict[str, Any]], allowed: set[tuple[str, str]]) -> None:
        self.name = name
        self.received: Counter[tuple[str, str]] = Counter()
        self.prices: dict[str, float] = {}
        self.lost = ""  # why a stream ended, if any has
        self.subscriptions = subscriptions
        self._allowed = allowed

    @property
    def unexpected(self) -> list[tuple[str, str]]:
        """Received topics outside the allowlist."""
        return [topic for topic in self.received if topic not in self._allowed and (topic[0], "*") not in self._allowed]

    def line(self, prices: int) -> str:
        """Return a short progress text with at most so many prices."""
        shown = [f"{symbol} {price:,.2f}" for symbol, price in sorted(self.prices.items())[:prices]]
        return "  ".join([f"{self.name} {self.received.total()} messages", *shown])

    def follow(self, url: str, path: str) -> None:
        """Read one stream, as an SDK does, until the connection is lost."""
        try:
            connection = dial(url + path, {}, lambda opcode, payload: connection.write(opcode, payload))
            trading = path == "/stream"
            self._log_in(connection, trading)
            request = self.subscriptions[path]
            connection.write(frames.TEXT, JSON.encode(request))
            while True:
                for frame in connection.receive():
                    self._read(json.loads(frame))
        except ProxyError as error:
            self.lost = f"{path}: {error}"

    def _log_in(self, connection: UpstreamConnection, trading: bool) -> None:
        if trading:
            request = {"action": "authenticate", "data": {"key_id": self.name, "secret_key": self.name}}
        else:
            request = {"action": "auth", "key": self.name, "secret": self.name}
        connection.write(frames.TEXT, JSON.encode(request))

    def _read(self, value: Any) -> None:
        if isinstance(value, dict):
            if value.get("stream") == "trade_updates":
                order = value["data"]["order"]
                self.received["order", order["client_order_id"]] += 1
            return
        for message in value:
            kind, symbol = message["T"], message.get("S", "")
            if symbol:
                self.received[kind, symbol] += 1
                self.prices[symbol] = message.get("p") or message.get("bp") or message.get("c") or 0.0


@dataclass(frozen=True, slots=True)
class Market:
    """What the demo shows: its name, its data, the algorithms, and what each may see, in words and as `allow`."""

    name: str
    simulator: Simulator
    algorithms: list[Algorithm]
    words: Mapping[str, str]
    allow: Mapping[str, str]

    @classmethod
    def simulated(cls) -> Market:
        momentum: dict[str, dict[str, Any]] = {
            "/v2/iex": {"action": "subscribe", "trades": ["AAPL", "MSFT"], "bars": ["*"]},
            "/stream": LISTEN,
        }
        meanrev: dict[str, dict[str, Any]] = {
            "/v2/iex": {"action": "subscribe", "quotes": ["SPY"]},
            "/v1beta3/crypto/us": {"action": "subscribe", "quotes": ["BTC/USD", "ETH/USD"]},
        }
        trades = {(kind, symbol) for kind in "tcx" for symbol in ("AAPL", "MSFT")}
        return cls(
            "A simulated market",
            Simulator(market=SimulatedMarket(foreign_orders=0)),  # else their owners would be looked up all the time
            [
                Algorithm("momentum", momentum, {*trades, ("b", "*"), ("order", "*")}),
                Algorithm("meanrev", meanrev, {("q", "SPY"), ("q", "BTC/USD"), ("q", "ETH/USD")}),
            ],
            {
                "momentum": "trades of AAPL and MSFT, all bars, and its own orders",
                "meanrev": "quotes of SPY, BTC/USD and ETH/USD, and its own orders",
            },
            {
                "momentum": '{iex: {trades: [AAPL, MSFT], bars: ["*"]}, trading: {trade_updates: ["momentum-*"]}}',
                "meanrev": (
                    "{iex: {quotes: [SPY]}, crypto: {quotes: [BTC/USD, ETH/USD]}, "
                    'trading: {trade_updates: ["meanrev-*"]}}'
                ),
                "demo": '{iex: "*", crypto: "*", news: "*"}',
            },
        )

    @classmethod
    def recorded(cls, recordings: Sequence[Recording]) -> Market:
        """Return a replay without an end, of which both algorithms see everything in JSON."""
        from proxy.recording.replay import (
            Pace,
            Replay,
        )  # loads the compression, which the simulated market does not need
        from proxy.recording.timeline import windows

        subscriptions: dict[str, dict[str, Any]] = {}
        for recording in recordings:
            feed = endpoint(recording.feed)
            if feed is None or feed.options:
                continue  # which these algorithms cannot read
            if feed.dialect is Dialect.TRADING:
                subscriptions[feed.path] = LISTEN
            else:
                subscriptions[feed.path] = {"action": "subscribe", **{channel: ["*"] for channel in feed.channels}}
        allowed = {(kind, "*") for kind in (*CHANNEL_OF_KIND, "order")}
        feeds = dict.fromkeys(recording.feed for recording in recordings)
        words, allow = " and ".join(feeds), ", ".join(f'{feed}: "*"' for feed in feeds)
        return cls(
            f"A replay of {sum(recording.messages for recording in recordings):,} messages",
            Simulator(source=Replay(recordings, windows(recordings), Pace(loop=True))),
            [Algorithm(name, subscriptions, allowed) for name in ("momentum", "meanrev")],
            dict.fromkeys(("momentum", "meanrev"), words),
            dict.fromkeys(("momentum", "meanrev", "demo"), f"{{{allow}}}"),
        )


class Demo:
    """The demo; it runs until a signal, or for a number of seconds."""

    def __init__(self, market: Market, seconds: float | None = None) -> None:
        self._market = market
        self._seconds = seconds
        self._stopped = Event()
        self._status = StatusLine(sys.stdout, os.environ)

    def run(self) -> bool:
        """Run the demo; return whether its checks passed. Raises StartError."""
        with self._market.simulator as simulator:
            ports = {"listen": _port_or_any(8765), "admin": _port_or_any(8766)}
            text = CONFIG.format(url=simulator.url, **ports, **self._market.allow)
            config = configuration.parse(text, "demo", {}, Path())
            logs.set_up(config.log.format, config.log.level, before_line=self._status.clear)
            gateway = Gateway(config)
            gateway.start()
            try:
                return self._run_algorithms(simulator, gateway)
            finally:
                gateway.stop(seconds=1)

    def _run_algorithms(self, simulator: Simulator, gateway: Gateway) -> bool:
        ws = "ws://{}:{}".format(*gateway.server.address)
        http = "http://{}:{}".format(*gateway.admin.address)
        market = self._market
        introduction = INTRODUCTION.format(version=describe(), market=market.name, ws=ws, http=http, **market.words)
        width = self._status.width
        print(*(fitted(line, width) for line in introduction.split("\n")), sep="\n", flush=True)
        algorithms = market.algorithms
        greenlets = [
            gevent.spawn(algorithm.follow, ws, path) for algorithm in algorithms for path in algorithm.subscriptions
        ]
        handlers = [gevent.signal_handler(number, self._stopped.set) for number in (signal.SIGINT, signal.SIGTERM)]
        deadline = None if self._seconds is None else time.monotonic() + self._seconds
        try:
            while not self._stopped.wait(1.0 if deadline is None else max(0.0, min(1.0, deadline - time.monotonic()))):
                live = [up.endpoint.feed for up in gateway.upstreams.values() if up.phase is Phase.LIVE]
                self._status.show(_progress(algorithms, live, self._status.width))
                if deadline is not None and time.monotonic() >= deadline:
                    break
        finally:
            for handler in handlers:
                handler.cancel()
            gevent.killall(greenlets)
        self._status.end()
        failures = _failures(algorithms, simulator, gateway)
        print(wrapped(_result(algorithms, failures), self._status.width), flush=True)
        return not failures


def _progress(algorithms: Sequence[Algorithm], live: Sequence[str], width: int | None) -> str:
    """Return the status: with the time and two prices of each algorithm if that fits, else with less."""
    time_of_day, feeds = time.strftime("%H:%M:%S  "), f"live: {' '.join(live)}"
    for prices in (2, 1):
        text = time_of_day + "  |  ".join([*(algorithm.line(prices) for algorithm in algorithms), feeds])
        if width is None or len(text) <= width:
            return text
    return " | ".join([*(algorithm.line(0) for algorithm in algorithms), feeds])


def _failures(algorithms: list[Algorithm], simulator: Simulator, gateway: Gateway) -> list[str]:
    """Return the checks that failed."""
    failures = [f"{algorithm.name} received nothing" for algorithm in algorithms if not algorithm.received]
    failures += [f"{algorithm.name} lost {algorithm.lost}" for algorithm in algorithms if algorithm.lost]
    failures += [f"{a.name} received {kind} {symbol}" for a in algorithms for kind, symbol in a.unexpected]
    for upstream in gateway.upstreams.values():
        if (peak := simulator.peak(upstream.endpoint.feed)) != 1:
            failures.append(f"{upstream.endpoint.feed} had {peak} upstream connections")
    return failures


def _result(algorithms: list[Algorithm], failures: Sequence[str]) -> str:
    """Return the last line of the output."""
    if failures:
        return f"demo failed: {', '.join(failures)}"
    return f"demo ok: {', '.join(algorithm.line(0) for algorithm in algorithms)}, 1 upstream connection per feed"


def _port_or_any(port: int) -> int:
    """Return the port, or 0 (any free port) if it is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port
