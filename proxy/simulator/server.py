"""The simulator's server: listener, connections, publishing, scripted faults.

    with Simulator(plan=AccountPlan(symbol_limit=30)) as alpaca:
        connect(f"{alpaca.url}/v2/iex")
        alpaca.publish("iex", [{"T": "t", "S": "AAPL", …}])

It runs in greenlets of one thread; its methods may be called from any greenlet.
"""

from __future__ import annotations

import ssl
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl

import gevent
import msgspec
from gevent.event import Event

from proxy.alpaca import timestamps
from proxy.observe.logs import Log
from proxy.simulator import events, rest_faults, trading_rest, upgrade, wire
from proxy.simulator.account_plan import EVERY_FEED, AccountPlan, AccountSlots
from proxy.simulator.conversation import error
from proxy.simulator.events import EventHistory, EventPeer, TimedEvent
from proxy.simulator.exchange import DataSource, Exchange, SourceError
from proxy.simulator.fault_settings import FaultSettings
from proxy.simulator.faults import GARBAGE, REFUSALS, Drop, Faults, RestFault, Step, status_line
from proxy.simulator.market import Market
from proxy.simulator.order_records import OrderRecords
from proxy.simulator.outcomes import Admitted, Joined, Outcome, Received
from proxy.simulator.peer import Peer
from proxy.simulator.trading_rest import RestResponse, TradingRest
from proxy.transport import frames
from proxy.transport.connection import ClientConnection
from proxy.transport.listener import Environ, HttpResponse, Listener, StreamedResponse
from proxy.transport.time_slice import TimeSlice

MAX_RECORDS = 10_000  # requests, and attempts, recorded for each feed; and REST requests
STALL_SECONDS = 60
YIELD_FRAMES = 64  # frames that `publish` queues before it yields to the writers
DROP_SECONDS = 2
STOP_SECONDS = 2
FINISH_SECONDS = 60  # for which a slow client may read what is queued at the end
FAULTS_PATH = "/faults"

JsonObject = dict[str, Any]


class Simulator:
    """Stand-in for Alpaca at one address.

    `keys` are the accounts' keys and secrets (default: `key` and `secret`). With a `market` every feed has synthetic
    data, equal for equal seeds; with a `source` the data come from there, and `market_ended` is set at its end, with
    `market_error` if it was an error; without either, only the `publish…` methods send data. `start` raises OSError if
    the address cannot be bound; a simulator that was stopped starts again at its old port.
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
        source: DataSource | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self.faults = Faults()
        self.settings = FaultSettings() if market is None else FaultSettings(rate=market.rate)
        self.slots = AccountSlots(
            dict({"key": "secret"} if keys is None else keys), plan or AccountPlan(), time.monotonic
        )
        self._exchange = source if market is None else Exchange(market, seed)
        self.market_ended = Event()
        self.market_error: Exception | None = None
        self._market_greenlet: Any = None
        self._drop_greenlet: Any = None
        self._listener: Listener | None = None
        self._peers: dict[int, Peer] = {}
        self._event_peers: set[EventPeer] = set()
        self._event_history = EventHistory()
        self._order_records = OrderRecords()
        self._rest = TradingRest(self._order_records, self.slots)
        self._rest_requests: deque[tuple[float, str]] = deque(maxlen=MAX_RECORDS)
        self._rest_connections: set[ClientConnection] = set()  # of requests that fail by a fault
        self._connection_count = 0
        self._opened: dict[str, int] = defaultdict(int)
        self._peak: dict[str, int] = defaultdict(int)
        self._attempts: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MAX_RECORDS))
        self._requests: dict[str, deque[JsonObject]] = defaultdict(lambda: deque(maxlen=MAX_RECORDS))
        self._trade_counts: dict[tuple[str, str], int] = defaultdict(int)
        self._stalls_changed = Event()  # set, and replaced, to make stalled upgrades check again

    def __repr__(self) -> str:
        return f"<Simulator {self.url} connections={len(self._peers)}>"

    def __enter__(self) -> Simulator:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """URL of the listener, without a path."""
        return f"{'wss' if self._tls else 'ws'}://{self._host}:{self._port}"

    def start(self) -> None:
        """Start to listen, and to generate the market."""
        self._listener = Listener(
            (self._host, self._port),
            serve=self._serve,
            refuse=self._refuse,
            answer=self._answer,
            tls=self._tls,
            log=Log("listener"),
        )
        self._listener.start()
        self._port = self._listener.server_port
        self._restart_drops()
        if self._exchange is not None:
            self._market_greenlet = gevent.spawn(self._run_market, self._exchange)

    def stop(self) -> None:
        """Stop the listener, and end every connection without a close frame."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            gevent.killall([each for each in (self._market_greenlet, self._drop_greenlet) if each is not None])
            listener.close()
            self._wake_stalled()
            self._end([*self._peers.values()], Drop.FIN)
            self._end_events()
            for connection in self._rest_connections:
                connection.shut()
            listener.stop(timeout=STOP_SECONDS)

    def finish(self, stopped: Event | None = None) -> None:
        """Close every connection with 1000, once its client has read what is queued; return early if `stopped` is set.

        The slowest client may take FINISH_SECONDS.
        """
        closing = [gevent.spawn(self._finish_peer, peer) for peer in self._peers.values()]
        for event_peer in self._event_peers:
            event_peer.finish()
            closing.append(gevent.spawn(event_peer.ended.wait, DROP_SECONDS))
        closed = gevent.spawn(gevent.joinall, closing)
        gevent.wait([closed, *([] if stopped is None else [stopped])], count=1)
        gevent.killall([closed, *closing])

    def _finish_peer(self, peer: Peer) -> None:
        peer.wait_until_drained(FINISH_SECONDS)
        peer.close(frames.NORMAL, "the end")
        peer.ended.wait(DROP_SECONDS)

    # Publishing

    def publish(self, feed: str, messages: Sequence[JsonObject], *, together: bool = True) -> None:
        """Deliver exactly these messages to the connections that are subscribed to them.

        A connection gets them in one frame (`together`), or in a frame each. Timestamps are RFC 3339 text; msgpack
        connections get msgpack timestamps.
        """
        for at, batch in enumerate([messages] if together else [[message] for message in messages]):
            self._deliver(feed, batch)
            if at % YIELD_FRAMES == 0:
                gevent.sleep(0)

    def publish_trades(self, feed: str, symbol: str, count: int, *, batch: int = 1) -> None:
        """Deliver `count` trades; their `i` count from 1 and go on from call to call."""
        at = self._trade_counts[feed, symbol]
        self._trade_counts[feed, symbol] += count
        numbers = range(at + 1, at + count + 1)
        for start in range(0, count, batch):
            now = timestamps.rfc3339(time.time_ns())
            self.publish(feed, [_trade(symbol, number, now) for number in numbers[start : start + batch]])

    def publish_order(self, data: JsonObject) -> None:
        """Deliver an order update to the connections that listen to `trade_updates`, and to event streams."""
        self.publish("trading", [{"stream": "trade_updates", "data": data}])

    def record_order(self, data: JsonObject) -> None:
        """Record an order update as if it had been published while no connection was open.

        REST and the history of the event streams have it; nothing is delivered.
        """
        self._record_update(data)

    def place_order(self, order: JsonObject, legs: Sequence[JsonObject] = ()) -> None:
        """Record an order and its legs, for REST alone: there is no update.

        Missing fields are filled in. An order that is known is changed in the fields that are given, and gets these
        legs besides its own. Raises ValueError for an order without an `id`.
        """
        self._order_records.place(order, legs, time.time_ns())

    def publish_raw(self, feed: str, payload: bytes) -> None:
        """Send these bytes as one data frame to every connection of a feed."""
        for peer in self.connections(feed):
            peer.put_payload(payload)
        gevent.sleep(0)

    def error(self, feed: str, code: int, msg: str | None = None) -> None:
        """Send an unsolicited error to every connection of a feed."""
        for peer in self.connections(feed):
            peer.put_payload(wire.encode(error(code, msg), peer.codec))

    # Inspection

    def connections(self, feed: str) -> list[Peer]:
        """Return the connections that are logged in."""
        return [peer for peer in self._peers.values() if peer.feed == feed and peer.live]

    def opened(self, feed: str) -> int:
        """Return how many logins have succeeded."""
        return self._opened[feed]

    def peak(self, feed: str) -> int:
        """Return the highest number of connections that were logged in at once."""
        return self._peak[feed]

    def attempts(self, feed: str) -> list[float]:
        """Return the times of all upgrade requests: seconds of time.monotonic()."""
        return list(self._attempts[feed])

    def requests(self, feed: str) -> list[JsonObject]:
        """Return the clients' messages in order, without secrets.

        Each has `connection`, the number of its connection.
        """
        return list(self._requests[feed])

    def rest_requests(self) -> list[tuple[float, str]]:
        """Return the REST requests in order: seconds of time.monotonic(), and the path with its query."""
        return list(self._rest_requests)

    def subscribed(self, feed: str) -> dict[str, set[str]]:
        """Return the union of all connections' subscriptions; empty channels are absent."""
        union: dict[str, set[str]] = {}
        for peer in self.connections(feed):
            for channel, symbols in peer.session.held.items():
                union.setdefault(channel, set()).update(symbols)
        return union

    # Faults

    def drop(self, feed: str, how: str = "close") -> None:
        """End all connections of a feed, or of `EVERY_FEED`.

        `how` is a close frame (`close`), a FIN alone (`fin`) or a RST (`rst`).
        """
        self._end(self._peers_of(feed), Drop(how))
        if feed in ("trading", EVERY_FEED):
            self._end_events()

    def mute(self, feed: str) -> None:
        """Make the present connections half open: sockets stay, no reads and writes."""
        for peer in self._peers_of(feed):
            peer.mute()

    def unmute(self, feed: str) -> None:
        for peer in self._peers_of(feed):
            peer.unmute()

    def stall(self, step: str, feed: str) -> None:
        """Stall a step until `accept`: `upgrade`, `greeting`, `auth` or `subscribe`.

        `connection` makes the present connections half open, and those that are opened later.
        """
        self.faults.stalled.add((feed, Step(step)))
        self._release()

    def refuse_upgrade(self, feed: str, status: int) -> None:
        """Answer upgrade requests with this HTTP status until `accept`."""
        status_line(status)
        self.faults.upgrades[feed] = status

    def fail_auth(self, feed: str, code: int) -> None:
        """Refuse every login with this code until `accept`."""
        self.slots.auth_refusals[feed] = code

    def accept(self, feed: str) -> None:
        """Remove the refusals and stalls of this feed."""
        self.faults.accept(feed)
        self.slots.auth_refusals.pop(feed, None)
        self._release()

    def refuse_symbols(self, symbols: Collection[str], code: int = 405) -> None:
        """Refuse every subscribe with one of these symbols; a new call replaces them."""
        self.slots.symbol_refusals = dict.fromkeys(symbols, code)

    def slow_acks(self, seconds: float) -> None:
        """Delay every subscribe and unsubscribe by this long."""
        self.faults.ack_seconds = seconds

    def fail_rest(self, kind: str | None) -> None:
        """Fail every REST call from now on, in one of the ways of `RestFault`, or with None in no way.

        Raises ValueError for an unknown kind.
        """
        self.faults.rest = None if kind is None else RestFault(kind)

    def garbage(self, feed: str, kind: str) -> None:
        """Write invalid data to every connection of a feed.

        The kinds are those of `faults.GARBAGE`. Raises KeyError for an unknown kind.
        """
        make = GARBAGE[kind]
        for peer in self.connections(feed):
            peer.put(make(peer.codec))

    # Rehearsals

    def rehearse(self, settings: FaultSettings) -> None:
        """Apply these settings in place of the present ones, and of the faults of the methods above."""
        before, self.settings = self.settings, settings
        feeds = settings.feeds or (EVERY_FEED,)
        step = None if settings.refuse is None else REFUSALS[settings.refuse]
        codes = {} if settings.refuse is None else dict.fromkeys(feeds, settings.refuse)
        self.faults.upgrades = codes if step is Step.UPGRADE else {}
        self.slots.auth_refusals = codes if step is Step.AUTH else {}
        self.slots.subscribe_refusals = codes if step is Step.SUBSCRIBE else {}
        self.faults.stalled = set() if settings.stall is None else {(feed, settings.stall) for feed in feeds}
        self.faults.silent = set(feeds) if settings.silence else set()
        self.faults.rest = settings.rest
        if settings.symbol_limit != before.symbol_limit:
            self.slots.plan = replace(self.slots.plan, symbol_limit=settings.symbol_limit)
        if settings.rate != before.rate and self._exchange is not None:
            self._exchange.set_rate(settings.rate)
        if settings.drop != before.drop and self._listener is not None:
            self._restart_drops()
        self._release()

    def _restart_drops(self) -> None:
        gevent.killall([self._drop_greenlet] if self._drop_greenlet is not None else [])
        seconds = self.settings.drop
        self._drop_greenlet = None if seconds is None else gevent.spawn(self._run_drops, seconds)

    def _run_drops(self, seconds: float) -> None:
        while True:
            gevent.sleep(seconds)
            self._drop_now()

    def _drop_now(self) -> None:
        """End the connections of the settings' feeds as Alpaca does: without a close frame."""
        for feed in self.settings.feeds or (EVERY_FEED,):
            self.drop(feed, Drop.FIN.value)

    def _answer(self, environ: Environ) -> HttpResponse | StreamedResponse:
        """Answer a plain HTTP request."""
        if environ["PATH_INFO"] in events.PATHS:
            return self._answer_events(environ)
        if environ["PATH_INFO"] == FAULTS_PATH:
            return self._answer_faults(environ)
        if trading_rest.is_rest(environ["PATH_INFO"]):
            return self._answer_rest(environ)
        return status_line(426), "This is a simulator of Alpaca's streams: connect with a WebSocket."

    def _answer_events(self, environ: Environ) -> HttpResponse | StreamedResponse:
        """Answer a request for order updates as events. A stream takes no connection slot."""
        given = upgrade.credentials(environ)
        status = self.faults.upgrade_status("trading")
        if status is None and (given is None or not self.slots.knows(given.key, given.secret)):
            status = 401
        since, until = None, None
        try:
            since, until = events.window(environ["QUERY_STRING"])
        except ValueError:
            status = status or 400
        if status is not None:
            return status_line(status), events.error_body(status), "application/json"
        return partial(self._serve_events, since, until)

    def _answer_rest(self, environ: Environ) -> HttpResponse | StreamedResponse:
        """Answer a REST call, in the way of the fault that is active."""
        path, query, now = environ["PATH_INFO"], environ["QUERY_STRING"], time.time_ns()
        self._rest_requests.append((time.monotonic(), f"{path}?{query}" if query else path))
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        response = self._rest.answer(environ["REQUEST_METHOD"], path, query, headers, now)
        fault = self.faults.rest
        if fault is not None:
            response = rest_faults.altered(fault, response, now)
            if (serve := rest_faults.on_connection(fault)) is not None:
                return partial(self._serve_rest, serve, response)
        return status_line(response.status), response.body, response.content_type, response.headers

    def _serve_rest(
        self,
        serve: Callable[[RestResponse, ClientConnection], None],
        response: RestResponse,
        connection: ClientConnection,
    ) -> None:
        self._rest_connections.add(connection)
        try:
            serve(response, connection)
        finally:
            self._rest_connections.discard(connection)

    def _serve_events(self, since: int | None, until: int | None, connection: ClientConnection) -> None:
        peer = EventPeer(connection, until)
        for event in [] if since is None else self._event_history.since(since):
            peer.put(event)
        self._event_peers.add(peer)
        if self._exchange is not None:
            self._exchange.follow("trading", "trade_updates", "*", time.time_ns())
        try:
            peer.run()
        finally:
            self._event_peers.discard(peer)

    def _end_events(self) -> None:
        peers = [*self._event_peers]
        for peer in peers:
            peer.drop()
        gevent.wait([peer.ended for peer in peers], timeout=DROP_SECONDS)

    def _publish_events(self, messages: Sequence[JsonObject]) -> None:
        """Record order updates and, unless the feed is silent, send them to the event streams."""
        silent = self.faults.silences("trading")
        for message in messages:
            data = message.get("data")
            if message.get("stream") == "trade_updates" and isinstance(data, dict):
                event = self._record_update(data)
                for peer in () if silent else self._event_peers:
                    peer.put(event)

    def _record_update(self, data: JsonObject) -> TimedEvent:
        """Add an order update to the records, and to the history of the event streams, whose event is returned."""
        now = time.time_ns()
        self._order_records.add(data, now)
        return self._event_history.add(data, now)

    def _answer_faults(self, environ: Environ) -> HttpResponse:
        """Show, change (POST) or end (DELETE) the settings.

        The values are in the query, since the listener does not read bodies.
        """
        if "HTTP_ORIGIN" in environ or "HTTP_SEC_FETCH_SITE" in environ:
            return status_line(403), "Web pages may not set faults."
        texts = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
        match environ["REQUEST_METHOD"]:
            case "POST":
                once = texts.get("drop") == "now"
                if once:
                    del texts["drop"]
                try:
                    self.rehearse(self.settings.changed(texts))
                except ValueError as error:
                    return status_line(400), f"{error}."
                if once:
                    self._drop_now()
            case "DELETE":
                self.rehearse(FaultSettings())
            case "GET" | "HEAD":
                pass
            case _:
                return status_line(405), f"{FAULTS_PATH} supports GET, POST and DELETE."
        body = msgspec.json.encode(self.settings.document()).decode()
        return status_line(200), body, "application/json; charset=utf-8"

    # Internals

    def _release(self) -> None:
        """Let the connections go on whose steps are no longer stalled."""
        self._wake_stalled()
        for peer in [*self._peers.values()]:
            half_open = self.faults.stalls(peer.feed, Step.CONNECTION)
            if half_open is not peer.half_open:
                peer.half_open = half_open
                (peer.mute if half_open else peer.unmute)()
            peer.release()

    def _wake_stalled(self) -> None:
        self._stalls_changed.set()
        self._stalls_changed = Event()

    def _peers_of(self, feed: str) -> list[Peer]:
        return [peer for peer in self._peers.values() if feed in (peer.feed, EVERY_FEED)]

    def _end(self, peers: Sequence[Peer], how: Drop) -> None:
        for peer in peers:
            peer.drop(how)
        gevent.wait([peer.ended for peer in peers], timeout=DROP_SECONDS)

    def _deliver(self, feed: str, messages: Sequence[JsonObject]) -> None:
        """Queue for each connection one frame of its subscribed messages; never waits.

        Trading has no arrays, so each message has its own frame there. On a silent feed the messages are discarded.
        """
        if feed == "trading":
            if len(messages) > 1:
                for message in messages:
                    self._deliver(feed, [message])
                return
            self._publish_events(messages)
        if self.faults.silences(feed):
            return
        payloads: dict[tuple[str, tuple[int, ...]], bytes] = {}
        for peer in self.connections(feed):
            matching = tuple(at for at, message in enumerate(messages) if peer.session.wants(message))
            if not matching:
                continue
            payload = payloads.get((peer.codec, matching))
            if payload is None:
                payload = peer.encode([messages[at] for at in matching])
                payloads[peer.codec, matching] = payload
            peer.put_payload(payload)

    def _refuse(self, environ: Environ) -> HttpResponse | None:
        """Return the HTTP response that refuses an upgrade, or None to accept it."""
        endpoint = upgrade.endpoint(environ)
        if endpoint is None:
            return status_line(404), "There is no stream at this path."
        feed = endpoint.feed
        self._attempts[feed].append(time.monotonic())
        deadline = time.monotonic() + STALL_SECONDS
        while self.faults.stalls(feed, Step.UPGRADE) and time.monotonic() < deadline and self._listener is not None:
            self._stalls_changed.wait(deadline - time.monotonic())
        if (status := self.faults.upgrade_status(feed)) is not None:
            return status_line(status), "Refused by a scripted fault of the simulator."
        return None

    def _serve(self, connection: ClientConnection, environ: Environ) -> None:
        if self._listener is None:
            return
        self._listener.admit(environ)
        self._connection_count += 1
        endpoint = upgrade.endpoint(environ)
        assert endpoint is not None  # `_refuse` has checked the path
        peer = Peer(
            self._connection_count,
            connection,
            upgrade.session(environ, endpoint, self.slots),
            faults=self.faults,
            request_bytes=self.slots.plan.request_bytes,
            auth_seconds=self.slots.plan.auth_seconds,
            report=self._report,
        )
        self._peers[peer.number] = peer
        if self.faults.stalls(peer.feed, Step.CONNECTION):
            peer.half_open = True
            peer.mute()
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
                books = self._exchange.follow(peer.feed, channel, symbol, now)
                if books and not self.faults.silences(peer.feed):
                    peer.put_payload(wire.encode_data(books, peer.codec))

    def _run_market(self, exchange: DataSource) -> None:
        """Run the market to its end, or to an error."""
        try:
            self._advance_market(exchange)
        except Exception as error:
            self.market_error = error
        self.market_ended.set()
        if self.market_error is not None and not isinstance(self.market_error, SourceError):
            raise self.market_error  # gevent prints it

    def _advance_market(self, exchange: DataSource) -> None:
        """Advance the market on the feeds that have clients, and the orders always: they go on during an outage."""
        time_slice = TimeSlice()
        while not exchange.ended:
            live = Counter({"trading": len(self._event_peers)})
            for peer in self._peers.values():
                if peer.live:
                    live[peer.feed] += bool(peer.session.held)
            for feed, messages in exchange.advance(time.time_ns(), live):
                self._deliver(feed, messages)
                if exchange.patient:
                    self._wait_for_room(feed)
                time_slice.pause()
            gevent.sleep(exchange.pause(time.time_ns()))
            time_slice.begin(time.monotonic())

    def _wait_for_room(self, feed: str) -> None:
        for peer in self.connections(feed):
            peer.wait_for_room()


def _trade(symbol: str, number: int, now: str) -> JsonObject:
    return {"T": "t", "S": symbol, "i": number, "x": "V", "p": 100.25, "s": 100, "c": ["@"], "z": "C", "t": now}
