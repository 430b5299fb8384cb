"""After a reload the proxy is what a fresh start with that file would be, for every session that stays.

Each example has two worlds with the same simulators of Alpaca. In one, a proxy has sessions and is reloaded; in the
other, a proxy is started with the new configuration, and the sessions that stay log in and subscribe to what the new
configuration leaves them. Then both get the same requests and the same messages, and are compared.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy import gateway as gateway_module
from proxy.alpaca.endpoints import feed_of_path
from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.downstream.client_session import ClientSession
from proxy.routing.allowlists import Client as Settings
from proxy.simulator import AccountPlan, Simulator
from tests.harness import CONNECTED, STAMP, Client, Harness, quote, trade, wait_for

Json = dict[str, Any]
Topic = tuple[str, str]

STOCKS, PAIRS = ("AAPL", "AMZN", "MSFT"), ("BTC/USD", "ETH/USD")
SYMBOLS = {"iex": STOCKS, "sip": STOCKS, "crypto": PAIRS}
CHANNELS = {"iex": ("trades", "quotes", "bars"), "sip": ("trades", "bars"), "crypto": ("trades", "orderbooks")}
PATHS = {"iex": "/v2/iex", "sip": "/v2/sip", "crypto": "/v1beta3/crypto/us", "/": "/", "trading": "/stream"}
KEYS = {f"key{number}": f"secret{number}" for number in range(4)}
LEGACY = {"T": "trades", "Q": "quotes", "AM": "bars"}
STREAMS = ("trade_updates", "account_updates", "T.AAPL", "Q.AAPL", "AM.MSFT", "T.*", "T.BTC/USD")
NOTHING = {"action": "nothing"}  # every session answers it with one error, after everything before
NEW_SYMBOL = "P"  # of a request that is under way: no other session has it
WAIT_SECONDS = 5.0
FORWARDED = "203.0.113.9"


class Session(NamedTuple):
    """A session of an example: its client, its requests before the reload, and one after it.

    `place` is a feed or `/`, `changes` are requests: whether they add, and topics by channel or streams. Without
    `logs_in`, it authenticates only after the reload. `waits`: one request more is under way at the reload.
    """

    client: str
    place: str
    codec: str
    logs_in: bool
    waits: bool
    changes: list[tuple[bool, Any]]
    afterwards: Any


def entries(symbols: Sequence[str]) -> st.SearchStrategy[Any]:
    patterns = (*symbols, "*", "A*", "P*", symbols[0][:2] + "*")
    return st.one_of(st.just("*"), st.lists(st.sampled_from(patterns), unique=True, min_size=1, max_size=3))


def channels(feed: str) -> st.SearchStrategy[Any]:
    """An allowlist of a feed; None: nothing."""
    if feed == "trading":
        orders = st.lists(st.sampled_from(["p-*", "q-*", "*"]), unique=True, max_size=2)
        listed = st.fixed_dictionaries({}, optional={"trade_updates": orders, "account_updates": st.just("*")})
    else:
        symbols = entries(SYMBOLS[feed])
        names = CHANNELS[feed]
        listed = st.fixed_dictionaries({names[0]: symbols}, optional=dict.fromkeys((*names[1:], "*"), symbols))
    return st.one_of(st.just("*"), listed, listed, st.none())


ALLOW = st.fixed_dictionaries({feed: channels(feed) for feed in (*SYMBOLS, "trading")}).map(
    lambda allow: {feed: listed for feed, listed in allow.items() if listed is not None}
)
ACCOUNT = st.fixed_dictionaries(
    {
        "key": st.sampled_from(sorted(KEYS)),
        "at": st.sampled_from([0, 0, 1]),  # the number of its simulator
        "silence": st.sampled_from(["60s", "off"]),
    },
    optional={"codec": st.just({"iex": "json", "crypto": "json"})},
)
CLIENT = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["", "", "", "-new"]),
        "secret": st.sampled_from(["one", "one", "one", "two"]),
        "allow": ALLOW,
        "max_connections": st.sampled_from([6, 16]),
        "when_slow": st.sampled_from(["disconnect", "conflate"]),
        "outbox": st.sampled_from(["64KiB", "8MiB"]),
        "account": st.tuples(st.sampled_from(["one", "default", "by feed"]), *[st.sampled_from([0, 1])] * 5),
    }
)
TOP = st.fixed_dictionaries(
    {
        "default_feed": st.sampled_from(["iex", "iex", "sip", "crypto"]),
        "limits": st.sampled_from([{}, {"message": "64KiB"}, {"outboxes": "16MiB"}]),
        "origins": st.sampled_from([[], ["one.example"]]),
        "trusted": st.sampled_from([[], ["127.0.0.1"]]),
        "token": st.sampled_from([None, "one", "two"]),
        "hosts": st.sampled_from([[], ["one.example"]]),
        "level": st.sampled_from(["info", "warning"]),
    }
)


def narrowed(feed: str, listed: Any) -> st.SearchStrategy[Any]:
    """A part of the allowlist of a feed; None: nothing."""
    if feed == "trading":
        return st.sampled_from([listed, {"account_updates": "*"}, {"trade_updates": ["q-*"]}, None])
    channel, symbol = CHANNELS[feed][0], SYMBOLS[feed][0]
    return st.sampled_from([listed, {channel: [symbol]}, {"*": [symbol]}, {channel: [symbol[:2] + "*"]}, None])


@st.composite
def accounts(draw: st.DrawFn) -> Json:
    names = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=2, unique=True))
    drawn = {name: draw(ACCOUNT) for name in names}
    unique = {entry["key"]: name for name, entry in drawn.items()}
    return {name: drawn[name] for name in unique.values()}


@st.composite
def edits(draw: st.DrawFn, old: Json) -> Json:
    """A configuration of which some parts are those of `old`."""
    new = {"top": draw(TOP) if draw(st.booleans()) else old["top"], "accounts": old["accounts"], "clients": {}}
    if draw(st.booleans()):
        new["accounts"] = draw(accounts())
    for name in ("p", "q", "r"):
        before = old["clients"].get(name)
        fate = draw(st.sampled_from(["keep", "edit", "narrow", "narrow", "redraw", "remove"]))
        if before is None or fate == "redraw":
            new["clients"][name] = draw(CLIENT)
        elif fate == "keep":
            new["clients"][name] = before
        elif fate == "edit":
            setting = draw(st.sampled_from(["allow", "account", "outbox", "when_slow"]))
            new["clients"][name] = before | {setting: draw(CLIENT)[setting]}
        elif fate == "narrow":
            kept = {feed: draw(narrowed(feed, listed)) for feed, listed in before["allow"].items()}
            new["clients"][name] = before | {"allow": {feed: listed for feed, listed in kept.items() if listed}}
            if draw(st.booleans()):
                new["clients"][name]["account"] = draw(CLIENT)["account"]
    if not new["clients"]:
        new["clients"]["p"] = draw(CLIENT)
    return new


def change(feed: str) -> st.SearchStrategy[Any]:
    """Topics of a request, by channel; on `/stream`, streams."""
    if feed == "trading":
        return st.lists(st.sampled_from(STREAMS), min_size=1, max_size=3, unique=True)
    symbols = st.lists(st.sampled_from((*SYMBOLS[feed], "*")), min_size=1, max_size=2, unique=True)
    return st.dictionaries(st.sampled_from(CHANNELS[feed]), symbols, min_size=1, max_size=2)


@st.composite
def sessions(draw: st.DrawFn, config: Json) -> Session:
    """A session that the configuration permits, where that is possible."""
    name = draw(st.sampled_from(sorted(config["clients"])))
    allow, default_feed = config["clients"][name]["allow"], config["top"]["default_feed"]
    places = [*allow, *(["/", "trading"] if default_feed in allow else [])] or ["iex"]
    place = draw(st.sampled_from(places))
    changes = change(default_feed if place == "/" else place)
    return Session(
        name,
        place,
        draw(st.sampled_from(["json", "msgpack"])),
        draw(st.sampled_from([True, True, True, False])),
        draw(st.booleans()),
        draw(st.lists(st.tuples(st.sampled_from([True, True, True, False]), changes), min_size=1, max_size=4)),
        draw(changes),
    )


class Example(NamedTuple):
    old: Json
    new: Json
    sessions: list[Session]


@st.composite
def examples(draw: st.DrawFn) -> Example:
    old = {"top": draw(TOP), "accounts": draw(accounts()), "clients": {name: draw(CLIENT) for name in ("p", "q")}}
    return Example(old, draw(edits(old)), draw(st.lists(sessions(old), min_size=3, max_size=6)))


def _accounts_of(client: Json, names: list[str]) -> Any:
    """The account setting of a client, valid for what it may use."""
    kind, *choices = client["account"]
    chosen = [names[choice % len(names)] for choice in choices]
    if kind == "one" or not client["allow"]:
        return chosen[0]
    by_feed = dict(zip(sorted(client["allow"]), chosen[1:], strict=False))
    return by_feed | {"default": chosen[0]} if kind == "default" else by_feed


def parsed(drawn: Json, simulators: list[Simulator]) -> Config:
    """The configuration that was drawn, with the addresses of these simulators."""
    top, names = drawn["top"], [*drawn["accounts"]]
    clients = {}
    for name, entry in drawn["clients"].items():
        clients[name] = entry | {"key": name + entry["key"], "account": _accounts_of(entry, names)}
        if [*entry["allow"]] == ["trading"]:
            clients[name]["when_slow"] = "disconnect"  # anything else would be refused
    document = {
        "listen": {"port": 0, "origins": top["origins"], "trusted": top["trusted"]},
        "admin": {"port": 0, "hosts": top["hosts"]} | ({"token": top["token"]} if top["token"] else {}),
        "log": {"level": top["level"]},
        "limits": top["limits"],
        "default_feed": top["default_feed"],
        "accounts": {
            name: {key: value for key, value in entry.items() if key != "at"}
            | {"secret": KEYS[entry["key"]]}
            | dict.fromkeys(("data_url", "trading_url"), simulators[entry["at"]].url)
            for name, entry in drawn["accounts"].items()
        },
        "clients": clients,
    }
    return configuration.parse(json.dumps(document), "proxy.yaml", {}, Path())


class World:
    """A proxy before two simulators, and its sessions."""

    def __init__(self, drawn: Json, stack: ExitStack) -> None:
        plan = AccountPlan(connections=2)  # an account may be renamed, or two may swap their keys
        self.simulators = [stack.enter_context(Simulator(keys=KEYS, plan=plan)) for _ in range(2)]
        unused = Simulator()
        self.proxy = Harness("", simulator=unused, config=parsed(drawn, self.simulators))
        stack.callback(self.proxy.close)
        self.gateway = self.proxy.gateway

    def open(self, session: Session, log_in: bool) -> Client:
        headers = {"X-Forwarded-For": FORWARDED}
        client = self.proxy.dial(PATHS[session.place], session.codec, headers=headers)
        if session.place != "trading":
            assert client.receive() == CONNECTED
        if log_in:
            settings = self.gateway.config.clients[session.client]
            assert self.log_in(client, settings.key, settings.secret.reveal()) in (True, None)
        return client

    def log_in(self, client: Client, key: str, secret: str) -> Any:
        """Whether it succeeds; on the market feeds, the error."""
        if client._trading:
            data = {"key_id": key, "secret_key": secret}
            return client.ask({"action": "authenticate", "data": data})["data"]["status"] == "authorized"
        [reply] = client.ask({"action": "auth", "key": key, "secret": secret})
        return reply if reply["T"] == "error" else None

    def session(self, client: Client) -> ClientSession:
        port = client.ws.local_address[1]
        [session] = [each for each in self.gateway.server.sessions if f":{port}" in each.address]
        return session

    def settle(self) -> None:
        """Wait until Alpaca has confirmed what is wanted, and nothing else is connected."""
        wait_for(self._settled, "not settled", WAIT_SECONDS)

    def _settled(self) -> bool:
        upstreams = self.gateway.upstreams.values()
        for upstream in upstreams:
            source, reconciler = upstream._source, upstream.reconciler
            if reconciler.wanted != reconciler.acked or reconciler._open:
                return False
            if reconciler.wanted and (source is None or not source.live):
                return False
            if source is not None and (not source.live or source.request is not None):
                return False
        return sum(upstream._source is not None for upstream in upstreams) == len(self._connections())

    def _connections(self) -> list[Any]:
        """The connections to Alpaca, each with the number of its simulator and its feed."""
        return [
            (number, feed, peer)
            for number, simulator in enumerate(self.simulators)
            for feed in (*SYMBOLS, "trading")
            for peer in simulator.connections(feed)
        ]

    def stall(self) -> None:
        for simulator in self.simulators:
            for feed in SYMBOLS:
                simulator.stall("subscribe", feed)

    def accept(self) -> None:
        for simulator in self.simulators:
            for feed in SYMBOLS:
                simulator.accept(feed)

    def publish(self) -> None:
        """Send a message of each kind and symbol on every connection, subscribed or not."""
        before = self._received()
        count = 0
        for number, feed, peer in self._connections():
            messages = orders(number) if feed == "trading" else market_data(number)
            count += len(messages)
            for batch in [[message] for message in messages] if feed == "trading" else [messages]:
                peer.put_payload(peer.encode(batch))
        wait_for(lambda: self._received() == before + count, "not received", WAIT_SECONDS)

    def publish_books(self) -> None:
        for number, feed, peer in self._connections():
            if feed == "crypto":
                peer.put_payload(peer.encode([book(symbol, number) for symbol in PAIRS]))

    def _received(self) -> int:
        return sum(upstream.router.received for upstream in self.gateway.upstreams.values())

    def wanted(self) -> dict[tuple[str, str], set[Topic]]:
        return {at: {*feed.reconciler.wanted} for at, feed in self.gateway.upstreams.items() if feed.reconciler.wanted}

    def shown(self) -> list[Any]:
        """The settings that hold, as far as they can be seen from outside, and the sessions on the status page."""
        sessions = sorted(
            (state.client, state.feed, state.codec, sorted(state.held), state.account, FORWARDED in state.address)
            for state in self.gateway.snapshot().sessions
        )
        answers = [
            status(self.gateway.admin.address, "/status.json", {"Authorization": f"Bearer {token}", "Host": host})
            for token, host in (("", "localhost"), ("one", "localhost"), ("two", "one.example"))
        ]
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        upgrade |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Origin": "https://one.example"}
        answers.append(status(self.proxy.address, "/v2/iex", upgrade))
        server = self.gateway.server
        limits = server.message_limit, server.outboxes.limit
        return [sessions, answers, limits, server.default_feed, [*server.directory]]


def status(address: tuple[str, int], path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(*address, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def market_data(number: int) -> list[Json]:
    """Messages of several kinds, one of them unknown, of each symbol; `number` is that of the simulator."""
    bar = dict.fromkeys(("o", "h", "l", "c", "n", "vw"), 1) | {"v": number, "t": STAMP}
    found = []
    for symbol in (*STOCKS, *PAIRS, "PP"):
        found += [trade(symbol, number), quote(symbol, bs=number), {"T": "b", "S": symbol, **bar}]
        found += [{"T": "zz", "S": symbol, "i": number}, {"T": "x", "S": symbol, "i": number, "t": STAMP}]
    return found


def orders(number: int) -> list[Json]:
    ids = ("p-1", "q-1", "other")
    updates = [{"event": "new", "order": {"id": f"{id_}-{number}", "client_order_id": id_}} for id_ in ids]
    messages = [{"stream": "trade_updates", "data": update} for update in updates]
    return [*messages, {"stream": "account_updates", "data": {"id": number}}]


def book(symbol: str, number: int) -> Json:
    return {"T": "o", "S": symbol, "t": STAMP, "b": [{"p": 1, "s": 1 + number}], "a": [{"p": 2, "s": 1}], "r": True}


def talk(client: Client, *requests: Any) -> tuple[list[Json], list[Json]]:
    """Send the requests; return the control messages up to the answer to the last one, and the data before it."""
    for request in (*requests, NOTHING):
        client.send_json(request)
    control: list[Json] = []
    data: list[Json] = []
    while True:
        message = client.receive(WAIT_SECONDS)
        for part in message if isinstance(message, list) else [message]:
            is_control = part["T"] in ("subscription", "error") if "T" in part else part["stream"] == "listening"
            if not is_control:
                data.append(part)
            elif part.get("code") == 400 or "invalid syntax" in str(part.get("data")):
                return control, data
            else:
                control.append(part)


def request(session: Session, change: Any, add: bool = True) -> Json:
    if session.place == "trading":
        return {"action": "listen" if add else "unlisten", "data": {"streams": change}}
    return {"action": "subscribe" if add else "unsubscribe", **change}


def state_request(session: Session) -> Json:
    """A request that changes nothing; the answer is the state."""
    return request(session, ["T.none"], add=False) if session.place == "trading" else {"action": "subscribe"}


def topics_of(session: Session, state: Json) -> set[Topic]:
    """The topics of an acknowledgement."""
    if session.place != "trading":
        channels = {channel: symbols for channel, symbols in state.items() if channel not in IMPLIED}
        return {(channel, symbol) for channel, symbols in channels.items() for symbol in symbols}
    names = [stream.partition(".") for stream in state["data"]["streams"]]
    return {(LEGACY[name], symbol) if dot else (name, "*") for name, dot, symbol in names}


IMPLIED = ("T", "corrections", "cancelErrors")


def request_for(session: Session, topics: set[Topic]) -> Json:
    """One request for these topics."""
    if session.place == "trading":
        short = {channel: name for name, channel in LEGACY.items()}
        names = sorted(f"{short[channel]}.{symbol}" if channel in short else channel for channel, symbol in topics)
        return request(session, names)
    channels: dict[str, list[str]] = {}
    for channel, symbol in sorted(topics):
        channels.setdefault(channel, []).append(symbol)
    return request(session, channels)


def permits(client: Settings, config: Config, session: Session, topic: Topic) -> bool:
    """Whether the allowlist permits a topic at this session."""
    channel, symbol = topic
    if session.place == "trading" and channel.endswith("_updates"):
        entries = client.allow.entries("trading")
        return bool(entries.get(channel) or entries.get("*"))
    feed = config.default_feed if session.place in ("trading", "/") else session.place
    return client.allow.permits(feed, channel, symbol)


def may_use(client: Settings | None, config: Config, session: Session) -> bool:
    """Whether the client may log in at this session's path."""
    feed = feed_of_path(PATHS[session.place], config.default_feed)
    if client is None or feed is None:
        return False
    return client.allow.names(feed) or (feed == "trading" and client.allow.names(config.default_feed))


def end_of(old: Config, new: Config, session: Session) -> str:
    """The reason with which the reload closes a session; empty if it stays."""
    if session.logs_in:
        before, after = old.directory.named(session.client), new.directory.named(session.client)
        assert before is not None
        if after is None:
            return "this client was reconfigured: removed"
        if after.key != before.key:
            return "this client was reconfigured: key changed"
        if after.digest != before.digest:
            return "this client was reconfigured: secret changed"
        feed = feed_of_path(PATHS[session.place], old.default_feed)
        if not (after.allow.names(feed) or (feed == "trading" and after.allow.names(new.default_feed))):
            return f"this client may no longer use {feed}"
    return "default_feed changed" if session.place == "/" and old.default_feed != new.default_feed else ""


class Reloaded(NamedTuple):
    """A session after the reload, and what it wanted before."""

    session: Session
    client: Client
    wanted: set[Topic]
    waits: bool


def prepare(world: World, example: Example) -> list[Reloaded]:
    """Open the sessions that the old configuration permits, and leave some requests unanswered."""
    config = world.gateway.config
    found = []
    for session in example.sessions:
        if not may_use(config.directory.named(session.client), config, session):
            continue
        client = world.open(session, session.logs_in)
        state: list[Json] = []
        if session.logs_in:
            for add, change in session.changes:
                talk(client, request(session, change, add))
            state, _ = talk(client, state_request(session))
        found.append(Reloaded(session, client, topics_of(session, state[0]) if state else set(), False))
    world.settle()
    world.publish_books()
    for item in found:
        if item.session.logs_in:
            talk(item.client)
    world.stall()
    for at, item in enumerate(found):
        topic = ("trades", NEW_SYMBOL + str(at))
        client = config.directory.named(item.session.client)
        assert client is not None
        if item.session.logs_in and item.session.waits and permits(client, config, item.session, topic):
            item.client.send_json(request_for(item.session, {topic}))
            proxied = world.session(item.client)
            wait_for(lambda proxied=proxied: proxied.requests, "no request is under way", WAIT_SECONDS)
            found[at] = item._replace(wanted=item.wanted | {topic}, waits=True)
    return found


def check(example: Example) -> None:
    """Compare a reload and a fresh start."""
    with ExitStack() as stack:
        reloaded, fresh = World(example.old, stack), World(example.new, stack)
        old, new = reloaded.gateway.config, parsed(example.new, reloaded.simulators)
        staying = []
        opened = prepare(reloaded, example)
        reloaded.gateway.reload(new)
        reloaded.accept()
        for item in opened:
            if reason := end_of(old, new, item.session):
                assert item.client.closed(WAIT_SECONDS) == (1008, reason)
            else:
                staying.append(item)
        wait_for(lambda: len(reloaded.gateway.server.sessions) == len(staying), "a closed session stays", WAIT_SECONDS)
        reloaded.settle()
        pairs = [(item, stay(item, new, reloaded, fresh)) for item in staying]
        for item, other in pairs:
            assert follow_up(reloaded, item, item.client) == follow_up(fresh, item, other)
        reloaded.settle()
        fresh.settle()
        assert reloaded.wanted() == fresh.wanted()
        assert [each.subscribed(feed) for each in reloaded.simulators for feed in PATHS] == [
            each.subscribed(feed) for each in fresh.simulators for feed in PATHS
        ]
        reloaded.publish()
        fresh.publish()
        for item, other in pairs:
            control, data = talk(item.client)
            expected_control, expected = talk(other)
            assert control == expected_control == []
            if item.session.place == "trading":  # of two connections to Alpaca, whose order is not defined
                data, expected = sorted(data, key=str), sorted(expected, key=str)
            assert data == expected
            assert settings_of(reloaded.session(item.client)) == settings_of(fresh.session(other))
        assert reloaded.shown() == fresh.shown()


def stay(item: Reloaded, new: Config, reloaded: World, fresh: World) -> Client:
    """Check what a session was told by the reload, and open one with the same state in the fresh proxy."""
    other = fresh.open(item.session, item.session.logs_in)
    if not item.session.logs_in:
        return other
    settings = new.directory.named(item.session.client)
    assert settings is not None
    left = {topic for topic in item.wanted if permits(settings, new, item.session, topic)}
    told, data = talk(item.client)
    assert len(told) == item.waits + (left != item.wanted), told
    [state], more = talk(item.client, state_request(item.session))
    assert topics_of(item.session, state) == left
    for message in data + more:  # of the books that it has got at another account
        assert message["T"] == "o"
        assert message["r"]
        assert {("orderbooks", message["S"]), ("orderbooks", "*")} & left
        account = new.accounts[settings.account("crypto")]
        assert message["b"] == book("", [each.url for each in reloaded.simulators].index(account.data_url))["b"]
    if left:
        [answer], _ = talk(other, request_for(item.session, left))
        assert answer == state
    return other


def follow_up(world: World, item: Reloaded, client: Client) -> Any:
    """The answers that a session receives after the reload, to a log-in if it has not logged in, and to a request."""
    answers = []
    config = world.gateway.config
    if not item.session.logs_in:
        entry = config.clients.get(item.session.client)
        key, secret = (entry.key, entry.secret.reveal()) if entry is not None else ("none", "none")
        answers.append(world.log_in(client, key, secret))
        if answers[0] not in (True, None):
            return answers
    return [*answers, talk(client, request(item.session, item.session.afterwards))[0]]


def settings_of(session: ClientSession) -> Any:
    outbox = session.outbox
    feeds = {(part.feed.endpoint.feed, part.feed.settings.login.account) for part in session.subscribers if part.held}
    return session.client, outbox.limit, outbox._conflates, session._inbound.limit, feeds


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The formats and levels of the log that a reload has set."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(gateway_module.logs, "set_up", lambda *settings: calls.append(settings))
    return calls


# No failure is made smaller: each attempt would wait for what does not come.
@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate], suppress_health_check=[*HealthCheck])
@given(example=examples())
def test_a_reload_is_a_fresh_start(quick: None, logged: list[tuple[str, str]], example: Example) -> None:
    check(example)
