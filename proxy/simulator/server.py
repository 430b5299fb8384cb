"""The simulator as a server: it listens, keeps its connections, publishes to them, and can be told to fail.

    with Simulator(plan=Plan(symbol_limit=30)) as alpaca:
        connect(f"{alpaca.url}/v2/iex")
        alpaca.publish("iex", [{"T": "t", "S": "AAPL", …}])

All of it runs in greenlets of one thread; its methods may be called from any greenlet.
"""

from __future__ import annotations

import ssl
import time
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

import gevent
from gevent.event import Event

from proxy.alpaca import timestamps
from proxy.observe.logs import Log
from proxy.simulator import upgrade, wire
from proxy.simulator.account_plan import AccountPlan, AccountSlots
from proxy.simulator.conversation import error
from proxy.simulator.exchange import Exchange
from proxy.simulator.faults import GARBAGE, Drop, Faults, Step, status_line
from proxy.simulator.market import Market
from proxy.simulator.outcomes import Admitted, Joined, Outcome, Received
from proxy.simulator.peer import Peer
from proxy.transport.connection import ClientConnection
from proxy.transport.listener import Environ, HttpResponse, Listener

KEPT = 10_000  # requests and attempts remembered of each feed
STALL_SECONDS = 60
MARKET_SECONDS = 0.02
YIELD_FRAMES = 64  # so many may be queued in one go before their writers have a turn
DROP_SECONDS = 2
STOP_SECONDS = 2

JsonObject = dict[str, Any]


class Simulator:
    """A stand-in for Alpaca at one address.

    `keys` are the accounts' keys and secrets (default: `key` and `secret`). With a `market` every feed is alive, the
    same for the same `seed`; without, nothing is published but what `publish` is given. `start` raises OSError when the
    address cannot be had; a simulator that was stopped starts again at its old port.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        keys: Mapping[str, str] | None = None,
        plan: AccountPlan | None = None,
        market: Market | None = None,
        seed: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self.faults = Faults()
        self.slots = AccountSlots(
            dict({"key": "secret"} if keys is None else keys), plan or AccountPlan(), time.monotonic
        )
        self._exchange = None if market is None else Exchange(market, seed)
        self._trader: Any = None
        self._listener: Listener | None = None
        self._peers: dict[int, Peer] = {}
        self._born = 0
        self._opened: dict[str, int] = defaultdict(int)
        self._peak: dict[str, int] = defaultdict(int)
        self._attempts: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._requests: dict[str, deque[JsonObject]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._sequence: dict[tuple[str, str], int] = defaultdict(int)
        self._accepted = Event()  # set, and replaced, when stalled upgrades may look again

    def __repr__(self) -> str:
        return f"<Simulator {self.url} connections={len(self._peers)}>"

    def __enter__(self) -> Simulator:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"{'wss' if self._tls else 'ws'}://{self._host}:{self._port}"

    def start(self) -> None:
        """Listens from now on."""
        self._listener = Listener(
            (self._host, self._port),
            serve=self._serve,
            refuse=self._refuse,
            answer=_answer,
            tls=self._tls,
            log=Log("listener"),
        )
        self._listener.start()
        self._port = self._listener.server_port
        if self._exchange is not None:
            self._trader = gevent.spawn(self._trade, self._exchange)

    def stop(self) -> None:
        """Ends every connection without a word and listens no more."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            gevent.killall([self._trader] if self._trader is not None else [])
            listener.close()
            self._wake_stalled()
            self._end([*self._peers.values()], Drop.FIN)
            listener.stop(timeout=STOP_SECONDS)

    # What is said

    def publish(self, feed: str, messages: Sequence[JsonObject], *, together: bool = True) -> None:
        """Delivers exactly these messages to those who subscribed to them: `together` in one frame to each connection,
        or each in its own. Timestamps are RFC 3339 text; msgpack connections get them as such."""
        for at, batch in enumerate([messages] if together else [[message] for message in messages]):
            self._deliver(feed, batch)
            if at % YIELD_FRAMES == 0:
                gevent.sleep(0)

    def publish_trades(self, feed: str, symbol: str, count: int, *, batch: int = 1) -> None:
        """Delivers `count` trades whose `i` goes on from the last one by ones, beginning with 1: none is missing."""
        at = self._sequence[feed, symbol]
        self._sequence[feed, symbol] += count
        numbers = range(at + 1, at + count + 1)
        for start in range(0, count, batch):
            now = timestamps.rfc3339(time.time_ns())
            self.publish(feed, [_trade(symbol, number, now) for number in numbers[start : start + batch]])

    def publish_order(self, data: JsonObject) -> None:
        """Delivers an order update to those who listen to `trade_updates`."""
        self.publish("trading", [{"stream": "trade_updates", "data": data}])

    def publish_raw(self, feed: str, payload: bytes) -> None:
        """Sends these bytes as one data frame to every connection of a feed, whatever it subscribed."""
        for peer in self.connections(feed):
            peer.put_payload(payload)
        gevent.sleep(0)

    def error(self, feed: str, code: int, msg: str | None = None) -> None:
        """Sends an error that nobody asked for."""
        for peer in self.connections(feed):
            peer.put_payload(wire.encode(error(code, msg), peer.codec))

    # What is seen

    def connections(self, feed: str) -> list[Peer]:
        """Those logged in now."""
        return [peer for peer in self._peers.values() if peer.feed == feed and peer.live]

    def opened(self, feed: str) -> int:
        """How many ever logged in."""
        return self._opened[feed]

    def peak(self, feed: str) -> int:
        """How many were logged in at once, at most."""
        return self._peak[feed]

    def attempts(self, feed: str) -> list[float]:
        """When upgrades were asked for, refused or not: seconds of time.monotonic()."""
        return list(self._attempts[feed])

    def requests(self, feed: str) -> list[JsonObject]:
        """Each message of a client, in order, with `connection`, the number of its connection; secrets left out."""
        return list(self._requests[feed])

    def subscribed(self, feed: str) -> dict[str, set[str]]:
        """What is subscribed now, all connections together; channels without a symbol are absent."""
        union: dict[str, set[str]] = {}
        for peer in self.connections(feed):
            for channel, symbols in peer.session.held.items():
                union.setdefault(channel, set()).update(symbols)
        return union

    # What goes wrong

    def drop(self, feed: str, how: str = "close") -> None:
        """Ends all connections of a feed: with a close frame (`close`), a FIN alone (`fin`) or a RST (`rst`)."""
        self._end(self._of(feed), Drop(how))

    def mute(self, feed: str) -> None:
        """Makes the feed's present connections half open: their sockets stay, nothing is read or written any more."""
        for peer in self._of(feed):
            peer.mute()

    def unmute(self, feed: str) -> None:
        for peer in self._of(feed):
            peer.unmute()

    def stall(self, step: str, feed: str) -> None:
        """Makes a step hang from now on: `upgrade`, `greeting`, `auth` or `subscribe`. `accept` goes on with it."""
        self.faults.stalled.add((feed, Step(step)))

    def refuse_upgrade(self, feed: str, status: int) -> None:
        """Answers requests with this HTTP status in place of 101, until `accept`."""
        status_line(status)
        self.faults.upgrades[feed] = status

    def fail_auth(self, feed: str, code: int) -> None:
        """Refuses every login with this code, until `accept`."""
        self.slots.auth_refusals[feed] = code

    def accept(self, feed: str) -> None:
        """Takes back what was refused or stalled on this feed."""
        self.faults.accept(feed)
        self.slots.auth_refusals.pop(feed, None)
        self._wake_stalled()
        for peer in self._of(feed):
            peer.release()

    def refuse_symbols(self, symbols: Collection[str], code: int = 405) -> None:
        """Refuses whole any subscribe that names one of these from now on; the last call counts."""
        self.slots.symbol_refusals = dict.fromkeys(symbols, code)

    def slow_acks(self, seconds: float) -> None:
        """Lets every subscribe and unsubscribe wait for this long before it is heard."""
        self.faults.ack_seconds = seconds

    def garbage(self, feed: str, kind: str) -> None:
        """Writes what no Alpaca should to every connection of a feed; the kinds are those of `faults.GARBAGE`.

        Raises KeyError for any other.
        """
        made = GARBAGE[kind]
        for peer in self.connections(feed):
            peer.put(made(peer.codec))

    # How it is done

    def _wake_stalled(self) -> None:
        self._accepted.set()
        self._accepted = Event()

    def _of(self, feed: str) -> list[Peer]:
        return [peer for peer in self._peers.values() if peer.feed == feed]

    def _end(self, peers: Sequence[Peer], how: Drop) -> None:
        for peer in peers:
            peer.drop(how)
        gevent.wait([peer.ended for peer in peers], timeout=DROP_SECONDS)

    def _deliver(self, feed: str, messages: Sequence[JsonObject]) -> None:
        """One frame to each connection, of what it wants; nothing here waits. Trading knows no arrays."""
        if feed == "trading" and len(messages) > 1:
            for message in messages:
                self._deliver(feed, [message])
            return
        payloads: dict[tuple[str, tuple[int, ...]], bytes] = {}
        for peer in self.connections(feed):
            chosen = tuple(at for at, message in enumerate(messages) if peer.session.wants(message))
            if not chosen:
                continue
            payload = payloads.get((peer.codec, chosen))
            if payload is None:
                payload = peer.encode([messages[at] for at in chosen])
                payloads[peer.codec, chosen] = payload
            peer.put_payload(payload)

    def _refuse(self, environ: Environ) -> HttpResponse | None:
        """The answer to an upgrade that is not to be, or None."""
        endpoint = upgrade.endpoint(environ)
        if endpoint is None:
            return status_line(404), "There is no stream at this path."
        feed = endpoint.feed
        self._attempts[feed].append(time.monotonic())
        deadline = time.monotonic() + STALL_SECONDS
        while self.faults.stalls(feed, Step.UPGRADE) and time.monotonic() < deadline and self._listener is not None:
            self._accepted.wait(deadline - time.monotonic())
        if (status := self.faults.upgrades.get(feed)) is not None:
            return status_line(status), "Refused, as the simulator was told."
        return None

    def _serve(self, connection: ClientConnection, environ: Environ) -> None:
        if self._listener is None:
            return
        self._listener.admit(environ)
        self._born += 1
        endpoint = upgrade.endpoint(environ)
        assert endpoint is not None  # `_refuse` let it pass
        peer = Peer(
            self._born,
            connection,
            upgrade.session(environ, endpoint, self.slots),
            faults=self.faults,
            request_bytes=self.slots.plan.request_bytes,
            auth_seconds=self.slots.plan.auth_seconds,
            report=self._report,
        )
        self._peers[peer.number] = peer
        try:
            peer.run(upgrade.credentials(environ))
        finally:
            del self._peers[peer.number]

    def _report(self, peer: Peer, outcome: Outcome) -> None:
        if isinstance(outcome, Received):
            self._requests[peer.feed].append({"connection": peer.number, **outcome.request})
        elif isinstance(outcome, Admitted):
            self._opened[peer.feed] += 1
            self._peak[peer.feed] = max(self._peak[peer.feed], len(self.connections(peer.feed)))
        elif isinstance(outcome, Joined) and self._exchange is not None:
            now = time.time_ns()
            for channel, symbol in outcome.topics:
                if books := self._exchange.follow(peer.feed, channel, symbol, now):
                    peer.put_payload(wire.encode_data(books, peer.codec))

    def _trade(self, exchange: Exchange) -> None:
        """Lets the market go on, on the feeds where somebody is."""
        while True:
            live = sorted({peer.feed for peer in self._peers.values() if peer.live})
            for feed, messages in exchange.advance(time.time_ns(), live):
                self._deliver(feed, messages)
            gevent.sleep(MARKET_SECONDS)


def _answer(environ: Environ) -> HttpResponse:
    return status_line(426), "This is a stand-in for Alpaca's streams: connect with a WebSocket."


def _trade(symbol: str, number: int, now: str) -> JsonObject:
    return {"T": "t", "S": symbol, "i": number, "x": "V", "p": 100.25, "s": 100, "c": ["@"], "z": "C", "t": now}
