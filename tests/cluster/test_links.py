"""Links between two real nodes, at default values, with a simulated Alpaca and real clients on both."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from websockets.sync.server import Server, ServerConnection, serve

from proxy.alpaca.client_protocol import Phase
from proxy.alpaca.codec import CODECS, JSON
from proxy.alpaca.endpoints import FOLLOWERS
from proxy.cluster import dialect, leader_link
from proxy.cluster.leader_link import Gone, LeaderGone
from proxy.cluster.node_server import NodeServer
from proxy.cluster.node_session import OUTBOX_BYTES
from proxy.routing.reconciler import ACK_SECONDS, MAX_CLOSES
from proxy.routing.router import Router
from proxy.simulator import AccountPlan
from proxy.transport import connection
from proxy.transport.clock import Clock
from proxy.upstream.source import LoginRefused
from tests.cluster.linked import ACCOUNT, SECRET, TOKEN, Pair, link_to
from tests.gateway.scripted import Peer, Request, ScriptedAlpaca
from tests.harness import CLOSE, STAMP, TEXT, Client, Wire, certificate, trade, wait_for

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*", news: "*", sip: "*"}}
  beta: {key: beta, secret: beta, allow: {iex: "*"}}
  strict: {key: strict, secret: strict, allow: {iex: "*"}, on_outage: close}
"""
Start = Callable[..., Pair]


def accounts(codec: str = "msgpack") -> str:
    urls = 'data_url: "{alpaca}", trading_url: "{alpaca}"'
    return f"  main: {{{{key: key, secret: secret, {urls}, codec: {{{{iex: {codec}}}}}}}}}"


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def start(codec: str = "msgpack", **options: Any) -> Pair:
            pair = Pair(CLIENTS, accounts=accounts(codec), **options)
            stack.callback(pair.close)
            return pair

        yield start


def subscribe(client: Client, **channels: list[str]) -> Any:
    """Subscribe; return the acknowledgement without the channels that follow trades, or the error."""
    answer = client.subscribe(**channels)
    return {channel: symbols for channel, symbols in answer.items() if channel not in FOLLOWERS}


def publish(pair: Pair, symbol: str, count: int, feed: str = "iex") -> int:
    return pair.leader.publish(feed, symbol, count)


@pytest.mark.parametrize("upstream", ["json", "msgpack"])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_client_of_the_edge_has_what_one_of_the_leader_has(start: Start, upstream: str, codec: str) -> None:
    pair = start(upstream)
    client, other = pair.edge.client("alpha", codec=codec), pair.leader.client("beta")
    began = time.monotonic()
    assert subscribe(client, trades=["AAPL", "MSFT"], quotes=["*"]) == {"trades": ["AAPL", "MSFT"], "quotes": ["*"]}
    assert time.monotonic() - began < 1, "acknowledged by Alpaca, not for want of an answer"
    assert subscribe(other, trades=["AAPL", "SPY"]) == {"trades": ["AAPL", "SPY"]}
    assert pair.simulator.subscribed("iex") == {"trades": {"AAPL", "MSFT", "SPY"}, "quotes": {"*"}}
    assert pair.following.link.token == TOKEN
    assert pair.following.link.leader == "leader"
    for symbol in ("AAPL", "SPY", "MSFT"):
        publish(pair, symbol, 50)
    invented = {"T": "invented", "S": "AAPL", "number": 12345678901234567890}
    pair.simulator.publish_raw("iex", CODECS[upstream].encode([invented]))
    assert client.numbers("AAPL", 50) == other.numbers("AAPL", 50) == [*range(1, 51)]
    assert client.numbers("MSFT", 50) == [*range(1, 51)]
    assert other.numbers("SPY", 50) == [*range(1, 51)]
    client.gather(101)
    assert client.data[-1] == invented
    assert client.unsubscribe(trades=["AAPL"], quotes=["*"])["trades"] == ["MSFT"]
    wait_for(lambda: pair.simulator.subscribed("iex") == {"trades": {"AAPL", "MSFT", "SPY"}})
    publish(pair, "AAPL", 1)
    other.numbers("AAPL", 51)
    assert client.silent()
    other.ws.close()
    wait_for(lambda: pair.simulator.subscribed("iex") == {"trades": {"MSFT"}})
    assert pair.simulator.peak("iex") == 1


def test_the_edge_only_has_what_its_clients_want(start: Start) -> None:
    pair = start()
    edge, other = pair.edge.client("alpha"), pair.leader.client("beta")
    edge.subscribe(trades=["A"])
    other.subscribe(trades=["*"])
    publish(pair, "B", 100)
    other.numbers("B", 100)
    publish(pair, "A", 1)
    edge.numbers("A", 1)
    assert pair.edge.upstream().router.received == 1


def book(number: int, **more: Any) -> dict[str, Any]:
    levels = [{"p": 100 - number % 7, "s": number}]
    return {"T": "o", "S": "BTC/USD", "t": STAMP, "b": levels, "a": [{"p": 101, "s": number}], **more}


def test_order_books_are_whole_first(start: Start) -> None:
    pair = start()
    early = pair.leader.client("alpha", "/v1beta3/crypto/us")
    early.subscribe(orderbooks=["BTC/USD"])
    pair.simulator.publish("crypto", [book(1, r=True)])
    for number in range(2, 20):
        pair.simulator.publish("crypto", [book(number)])
    early.gather(19)
    late = pair.edge.client("alpha", "/v1beta3/crypto/us", "msgpack")
    late.subscribe(orderbooks=["BTC/USD"], trades=["ETH/USD"])
    [whole] = late.gather(1)
    assert whole["r"] is True
    assert {level["s"] for level in whole["b"]} == set(range(13, 20))
    for number in range(20, 30):
        pair.simulator.publish("crypto", [book(number)])
    assert [message["b"][0]["s"] for message in late.gather(11)[1:]] == [*range(20, 30)]
    assert not any("r" in message for message in late.data[1:])
    later = pair.edge.client("alpha", "/v1beta3/crypto/us")
    later.subscribe(orderbooks=["BTC/USD"])
    assert later.gather(1)[0]["r"] is True
    assert {level["s"] for level in later.data[0]["b"]} == set(range(23, 30))
    for client in (late, later):
        client.unsubscribe(orderbooks=["BTC/USD"])
    wait_for(lambda: not pair.leading.nodes.sessions or len(pair.edge.upstream("crypto").acked) == 1)
    late.subscribe(orderbooks=["BTC/USD"])
    assert late.gather(12)[-1]["r"] is True, "the edge has dropped the book; the leader sends it anew"


def test_news(start: Start) -> None:
    pair = start()
    one, every = (pair.edge.client("alpha", "/v1beta1/news") for _ in range(2))
    one.subscribe(news=["AAPL"])
    every.subscribe(news=["*"])
    articles = [{"T": "n", "id": number, "headline": "…", "symbols": ["AAPL"] * (number % 2)} for number in range(10)]
    pair.simulator.publish("news", articles)
    assert [article["id"] for article in every.gather(10)] == [*range(10)]
    assert [article["id"] for article in one.gather(5)] == [1, 3, 5, 7, 9]


# Refusals


@pytest.mark.parametrize("code", [405, 409, 410])
def test_a_refusal_is_the_same_on_both_nodes(start: Start, code: int) -> None:
    pair = start()
    pair.simulator.refuse_symbols(["BAD"], code)
    clients = [pair.leader.client("alpha"), pair.edge.client("alpha"), pair.edge.client("beta")]
    bystander = clients.pop()
    assert subscribe(bystander, trades=["SPY"]) == {"trades": ["SPY"]}
    answers = []
    for client in clients:
        assert subscribe(client, trades=["GOOD"]) == {"trades": ["GOOD"]}
        began = time.monotonic()
        answers.append(subscribe(client, trades=["BAD", "FINE"]))
        assert time.monotonic() - began < 1
        assert subscribe(client, trades=["NEW"]) == {"trades": ["GOOD", "NEW"]}
    assert answers[0] == answers[1]
    assert answers[0]["code"] == code
    publish(pair, "SPY", 3)
    assert bystander.numbers("SPY", 3) == [1, 2, 3]


def test_one_client_of_the_edge_is_refused_the_others_are_not(start: Start) -> None:
    """Their topics travel in one request of the edge, which is refused as a whole."""
    pair = start()
    pair.simulator.refuse_symbols(["BAD"], 400)
    pair.simulator.slow_acks(0.2)
    one, two, three = (pair.edge.client(name) for name in ("alpha", "beta", "beta"))
    one.subscribe(trades=["FIRST"])
    for client, symbol in ((one, "A"), (two, "BAD"), (three, "C")):
        client.send_json({"action": "subscribe", "trades": [symbol]})
    assert one.answer()[0]["trades"] == ["A", "FIRST"]
    assert three.answer()[0]["trades"] == ["C"]
    assert two.answer()[0]["code"] == 400
    assert pair.simulator.subscribed("iex") == {"trades": {"FIRST", "A", "C"}}


@pytest.mark.slow
def test_an_error_that_is_no_verdict_holds_up_no_other_client(start: Start) -> None:
    """The leader returns the request; the edge retries it by itself."""
    pair = start()
    pair.simulator.refuse_symbols(["ODD"], 500)
    one, two = pair.edge.client("alpha"), pair.edge.client("beta")
    one.subscribe(trades=["FIRST"])
    one.send_json({"action": "subscribe", "trades": ["ODD"]})
    wait_for(lambda: any("ODD" in request["trades"] for request in pair.simulator.requests("iex")[1:]))
    for number in range(5):
        began = time.monotonic()
        assert f"S{number}" in subscribe(two, trades=[f"S{number}"])["trades"]
        assert time.monotonic() - began < 0.5
    assert one.answer()[0]["trades"] == ["FIRST", "ODD"], "remembered"
    pair.simulator.refuse_symbols([])
    wait_for(lambda: ("trades", "ODD") in pair.edge.upstream().acked)


def test_a_feed_that_alpaca_does_not_serve(start: Start) -> None:
    pair = start(plan=AccountPlan(feeds=["iex"]))
    answers = [side.client("alpha", "/v2/sip").subscribe(trades=["A"]) for side in (pair.edge, pair.leader)]
    assert answers == [{"T": "error", "code": 409, "msg": "insufficient subscription"}] * 2
    assert pair.edge.upstream("sip").phase is Phase.REFUSED
    with link_to(pair.leading.url, "sip", codec="msgpack") as link, pytest.raises(LoginRefused) as refusal:
        link.open()
    assert refusal.value.code == 409


@pytest.mark.slow
@pytest.mark.parametrize("code", [None, 405])
def test_an_acknowledgement_is_alpacas(start: Start, code: int | None) -> None:
    """Patience is the edge's own: the leader says nothing before Alpaca does, and a refusal then finds its request."""
    pair = start()
    client = pair.edge.client("alpha")
    client.subscribe(trades=["FIRST"])
    if code is not None:
        pair.simulator.refuse_symbols(["SLOW"], code)
    pair.simulator.slow_acks(3.0)
    began = time.monotonic()
    assert subscribe(client, trades=["SLOW"]) == {"trades": ["FIRST", "SLOW"]}
    assert ACK_SECONDS <= time.monotonic() - began < 2.0
    [session] = pair.leading.nodes.sessions
    assert len(session.requests) == 1, "the leader's end of the link waits for Alpaca"
    if code is not None:
        assert client.answer()[0]["code"] == code
        assert client.answer()[0]["trades"] == ["FIRST"]
    else:
        wait_for(lambda: ("trades", "SLOW") in pair.edge.upstream().acked)
    assert 2.9 < time.monotonic() - began < 4.0
    assert pair.edge.upstream().acked == pair.leader.upstream().acked


def test_a_state_without_a_request_is_no_answer(start: Start) -> None:
    """Alpaca's plan changes: the leader is told of a lost topic while a request of the edge is under way."""
    alpaca = ScriptedAlpaca()
    with alpaca:
        pair = start("json", url=alpaca.url)
        client = pair.edge.client("alpha")
        assert subscribe(client, trades=["A", "B"]) == {"trades": ["A", "B"]}
        peer = alpaca.peer("/v2/iex")
        requests: list[Request] = []
        alpaca.answer = lambda _, request: requests.append(request)
        client.send_json({"action": "subscribe", "trades": ["C"]})
        wait_for(lambda: requests)
        upstream = pair.edge.upstream()
        upstream_request = pair.following.link.request
        assert upstream_request is not None
        # What another proxy upstream says when its own configuration takes a topic away: an error and a state.
        peer.held["trades"].discard("B")
        peer.refuse(409, "insufficient subscription")
        peer.send_json(peer.state())
        assert client.answer()[0]["msg"] == "insufficient subscription"
        assert client.answer()[0]["trades"] == ["A"]
        assert pair.following.link.request is upstream_request, "it is still under way"
        alpaca.answer = Peer.grant
        peer.grant(requests[0])
        assert client.answer()[0]["trades"] == ["A", "C"]
        assert upstream.acked == {("trades", "A"), ("trades", "C")}


# Outages


def test_an_outage_of_the_leader(start: Start) -> None:
    pair = start()
    client, other, strict = pair.edge.client("alpha"), pair.edge.client("beta"), pair.edge.client("strict")
    client.subscribe(trades=["AAPL"])
    other.subscribe(trades=["MSFT"], quotes=["SPY"])
    strict.subscribe(trades=["AAPL"])
    publish(pair, "AAPL", 5)
    client.numbers("AAPL", 5)
    pair.simulator.drop("iex")
    assert strict.closed()[0] == 1012
    wait_for(lambda: pair.simulator.subscribed("iex") == {"trades": {"AAPL", "MSFT"}, "quotes": {"SPY"}})
    wait_for(lambda: pair.live() and len(pair.edge.upstream().acked) == 3)
    publish(pair, "AAPL", 5)
    assert client.numbers("AAPL", 10) == [*range(1, 11)]
    state = pair.edge.upstream().state()
    assert (state.outages, state.connects, len(pair.following.links)) == (1, 2, 2)
    assert 0 < state.outage_seconds < 20
    assert {totals.outages for (_, feed), totals in pair.edge.gateway.snapshot().totals.items() if feed == "iex"} == {1}
    assert pair.following.links[0].gone is Gone.AWAY
    assert not any(b"success" in frame or b"error" in frame for frame in client.frames[3:])
    assert pair.simulator.peak("iex") == 1


@pytest.mark.slow
def test_the_edge_waits_in_its_link_while_the_leader_has_no_connection(start: Start) -> None:
    pair = start()
    pair.simulator.refuse_upgrade("iex", 500)
    client = pair.edge.client("alpha")
    assert subscribe(client, trades=["AAPL"]) == {"trades": ["AAPL"]}, "remembered"
    wait_for(lambda: "500" in pair.following.link.reason)
    link = pair.following.link
    assert link.phase is pair.edge.upstream().phase is Phase.AUTHENTICATING
    wait_for(lambda: link.round_trip is not None)
    assert not link.mute(pair.following._clock())
    pair.simulator.accept("iex")
    wait_for(lambda: pair.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    publish(pair, "AAPL", 1)
    client.numbers("AAPL", 1)
    assert pair.following.links == [link]


def test_a_link_tells_its_states(start: Start) -> None:
    pair = start()
    pair.simulator.refuse_upgrade("iex", 500)
    states: list[tuple[Phase, bool]] = []

    def note() -> None:
        states.append((link.phase, "HTTP 500" in link.reason))
        if states[-1][1]:
            pair.simulator.accept("iex")

    with link_to(pair.leading.url, codec="msgpack", on_state=note) as link:
        link.open()
        assert link.token == TOKEN
        phases = [*dict.fromkeys(states)]
        assert phases == [(Phase.AUTHENTICATING, False), (Phase.AUTHENTICATING, True), (Phase.LIVE, False)]


def test_a_codec_that_changes_while_a_node_waits(start: Start) -> None:
    pair = start()
    pair.simulator.refuse_upgrade("iex", 500)

    def change() -> None:
        if "HTTP 500" in link.reason:
            supervisor = pair.leader.upstream()
            supervisor.settings = replace(supervisor.settings, codec=JSON)
            supervisor.router = Router(supervisor.endpoint, JSON)
            pair.simulator.accept("iex")

    with link_to(pair.leading.url, codec="msgpack", on_state=change) as link:
        with pytest.raises(LeaderGone, match="codec has changed"):
            link.open()
        assert link.gone is Gone.AWAY


def test_a_node_that_sends_nothing_for_long(start: Start) -> None:
    """A minute of silence is no end, since a node may be stopped or cut off for so long."""
    pair = start()
    pair.edge.client("alpha").subscribe(trades=["AAPL"])
    [session] = pair.leading.nodes.sessions
    session.tick(pair.leading._clock() + 60)
    assert not session.ended
    session.tick(pair.leading._clock() + connection.GONE_SECONDS + 1)
    wait_for(lambda: session not in pair.leading.nodes.sessions)
    assert session.ended == "no sign of life for 90 s"


@pytest.mark.slow
def test_a_leader_that_drains_or_leads_no_more(start: Start) -> None:
    pair = start()
    client = pair.edge.client("alpha")
    client.subscribe(trades=["AAPL"])
    pair.leading.leads = False
    pair.leading.nodes.stop_leading(pair.leader.upstream(), "another node leads")
    wait_for(lambda: pair.following.links[0].gone is not None)
    assert (pair.following.links[0].gone, pair.following.links[0].cause) == (Gone.NOT_LEADING, "another node leads")
    wait_for(lambda: len(pair.following.links) > 2)
    assert pair.following.links[1].gone is Gone.NOT_LEADING
    pair.leading.leads = True
    wait_for(lambda: pair.live() and pair.edge.upstream().acked == {("trades", "AAPL")})
    publish(pair, "AAPL", 1)
    client.numbers("AAPL", 1)
    last = pair.following.link
    pair.leading.nodes.drain()
    wait_for(lambda: last.gone is not None)
    assert (last.gone, last.cause) == (Gone.NOT_LEADING, "the node is shutting down")
    wait_for(lambda: not pair.leading.nodes.sessions)


def test_a_cut_link(start: Start) -> None:
    pair = start()
    client = pair.edge.client("alpha")
    client.subscribe(trades=["AAPL"])
    pair.forwarder.cut()
    wait_for(lambda: len(pair.following.links) == 2 and pair.live() and pair.edge.upstream().acked)
    assert pair.following.links[0].gone is Gone.LOST
    publish(pair, "AAPL", 1)
    client.numbers("AAPL", 1)
    assert pair.simulator.opened("iex") == 1


@pytest.mark.slow
def test_a_frozen_link_loses_nothing(start: Start) -> None:
    pair = start()
    client, other = pair.edge.client("alpha"), pair.leader.client("alpha")
    client.subscribe(trades=["AAPL"])
    other.subscribe(trades=["AAPL"])
    link, clock = pair.following.link, pair.following._clock
    wait_for(lambda: link.round_trip is not None)
    assert link.round_trip is not None
    assert 0 <= link.round_trip < 1
    pair.forwarder.freeze()
    frozen = time.monotonic()
    wait_for(lambda: link.mute(clock()), "the link is not mute", 4.0)
    assert time.monotonic() - frozen > leader_link.MUTE_SECONDS - 0.5
    while time.monotonic() - frozen < 6:
        publish(pair, "AAPL", 20)
        gevent.sleep(0.1)
    assert link.mute(clock())
    last = publish(pair, "AAPL", 1)
    other.numbers("AAPL", last)
    pair.forwarder.thaw()
    assert client.numbers("AAPL", last) == [*range(1, last + 1)]
    wait_for(lambda: not link.mute(clock()))
    assert pair.following.links == [link]
    assert pair.edge.upstream().stats.outages == 0


def test_stalls_of_ones_own_do_not_count_as_the_leaders_silence(start: Start) -> None:
    pair = start()
    with link_to(pair.leading.url, codec="msgpack") as link:
        link.open()
        now = link._clock()
        for tick in range(100):
            link.tick(now + tick)
            assert not link.mute(now + tick), "every tick is late"


def test_kernels_of_both_ends_outlast_a_cut(start: Start) -> None:
    pair = start()
    pair.edge.client("alpha").subscribe(trades=["AAPL"])
    [session] = pair.leading.nodes.sessions
    assert pair.following.link._connection is not None
    for sock in (session._connection._raw, pair.following.link._connection.sock):
        assert sock.getsockopt(6, 18) == connection.GONE_SECONDS * 1000  # TCP_USER_TIMEOUT
        try:
            assert sock.getsockopt(6, connection.RTO_MAX) == 1000
        except OSError:
            pytest.skip("this kernel has no TCP_RTO_MAX_MS")


@pytest.mark.slow
def test_a_node_that_reads_too_slowly(start: Start) -> None:
    """Its link is closed once 64 MiB wait; the others are not affected, and it comes back."""
    pair = start("json")
    client, other = pair.edge.client("alpha"), pair.leader.client("alpha")
    client.subscribe(trades=["AAPL"])
    other.subscribe(trades=["BIG"])
    client.subscribe(trades=["BIG"])
    [session] = pair.leading.nodes.sessions
    pair.forwarder.freeze()
    most = 0
    for number in range(400):
        pair.simulator.publish("iex", [trade("BIG", number, pad="x" * 500_000)])
        wait_for(lambda expected=number + 1: pair.leader.upstream().router.received >= expected)
        most = max(most, session.outbox.pending)
        other.gather(number + 1)
        other.frames.clear()
        if session.outbox.slow:
            break
    assert session.outbox.slow
    assert OUTBOX_BYTES / 2 < most <= OUTBOX_BYTES
    wait_for(lambda: session not in pair.leading.nodes.sessions)
    pair.forwarder.cut()
    pair.forwarder.thaw()
    wait_for(lambda: len(pair.following.links) == 2 and pair.live() and len(pair.edge.upstream().acked) == 2)
    publish(pair, "AAPL", 1)
    client.numbers("AAPL", 1)


@pytest.mark.slow
@pytest.mark.parametrize("count", [8_000, 30_000])
def test_thousands_of_topics(start: Start, count: int) -> None:
    pair = start()
    witness, client = pair.leader.client("beta"), pair.edge.client("alpha", codec="msgpack")
    witness.subscribe(trades=["WITNESS"])
    symbols = [f"S{number:05}" for number in range(count)]
    # Of 30,000, Alpaca's own answers take the time: each of the twenty states all topics so far.
    calm = pair.leader.undisturbed if count < 10_000 else lambda *_, **__: nullcontext()
    with calm(witness, symbol="WITNESS"):
        client.subscribe(trades=symbols)
        wait_for(lambda: len(pair.edge.upstream().acked) == count)
    publish(pair, symbols[-1], 1)
    client.numbers(symbols[-1], 1)
    with calm(witness, symbol="WITNESS"):
        pair.forwarder.cut()
        wait_for(lambda: not pair.edge.upstream().acked)
        wait_for(lambda: len(pair.edge.upstream().acked) == count)
    publish(pair, symbols[0], 1)
    client.numbers(symbols[0], 1)


# A request at which Alpaca closes the connection


@pytest.mark.slow
def test_a_poison_request_of_an_edge(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge has no other topic, and yet comes to its verdict: the leader's client was served in between."""
    monkeypatch.setattr("random.random", lambda: 0.2)

    def answer(peer: Peer, request: Request) -> None:
        peer.end() if "POISON" in request.get("trades", ()) else peer.grant(request)

    with ScriptedAlpaca(answer) as alpaca:
        pair = start("json", url=alpaca.url)
        healthy, client = pair.leader.client("beta"), pair.edge.client("alpha")
        assert subscribe(healthy, trades=["SPY"]) == {"trades": ["SPY"]}
        assert subscribe(client, trades=["POISON"]) == {"trades": ["POISON"]}, "remembered"
        assert client.answer(40)[0]["code"] == 400
        assert client.answer()[0]["trades"] == []
        poison = [request for request in alpaca.requests("/v2/iex") if "POISON" in request.get("trades", ())]
        assert MAX_CLOSES <= len(poison) <= MAX_CLOSES + 2
        wait_for(lambda: alpaca.held("/v2/iex") == {"trades": {"SPY"}})
        alpaca.publish("/v2/iex", [trade("SPY", 1)])
        healthy.numbers("SPY", 1)
        assert subscribe(client, trades=["SPY"]) == {"trades": ["SPY"]}


@pytest.mark.slow
def test_a_lost_link_says_nothing_about_the_request_under_way(start: Start) -> None:
    pair = start()
    client = pair.edge.client("alpha")
    client.subscribe(trades=["FIRST"])
    pair.simulator.stall("subscribe", "iex")
    client.send_json({"action": "subscribe", "trades": ["SLOW"]})
    wait_for(lambda: pair.following.link.request is not None)
    for number in range(2, 5):
        pair.forwarder.cut()
        wait_for(lambda expected=number: len(pair.following.links) == expected and pair.following.link.request)
    assert not any(request.alone or request.closes for request in pair.edge.upstream().reconciler._open)


# Log-ins


@pytest.mark.parametrize(
    ("options", "cause", "words"),
    [
        ({"secret": b"another"}, Gone.REJECTED, "402 auth failed"),
        ({"account": "another"}, Gone.NOT_LEADING, "421 not leading"),
        ({"codec": "json"}, Gone.REJECTED, "415 this account's codec is msgpack"),
    ],
)
def test_the_leader_refuses_a_log_in(start: Start, options: dict[str, Any], cause: Gone, words: str) -> None:
    pair = start()
    with link_to(pair.leading.url, **{"codec": "msgpack", **options}) as link:
        with pytest.raises(LeaderGone, match=words) as refusal:
            link.open()
        assert refusal.value.cause is link.gone is cause
    assert pair.simulator.opened("iex") == 0


def test_the_leader_refuses_an_upgrade(start: Start) -> None:
    """A client port is no port for nodes, and nothing at all may listen at the address."""
    pair = start()
    for status, cause in ((421, Gone.NOT_LEADING), (503, Gone.NOT_LEADING), (426, Gone.REJECTED), (415, Gone.REJECTED)):
        pair.simulator.refuse_upgrade("iex", status)
        with link_to(pair.simulator.url) as link, pytest.raises(LeaderGone, match=f"HTTP {status}") as refusal:
            link.open()
        assert refusal.value.cause is cause
    host, port = pair.leader.address
    with link_to(f"ws://{host}:{port}") as link, pytest.raises(LeaderGone, match="not the dialect of nodes") as refusal:
        link.open()
    assert refusal.value.cause is Gone.REJECTED
    with link_to("ws://127.0.0.1:1") as link, pytest.raises(LeaderGone) as refusal:
        link.open()
    assert refusal.value.cause is Gone.REFUSED
    pair.forwarder.freeze()
    began = time.monotonic()
    with link_to(pair.forwarder.url) as link, pytest.raises(LeaderGone) as refusal:
        link.open()
    assert refusal.value.cause is Gone.LOST
    assert time.monotonic() - began < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("", 426),
        ("Alpaca-Proxy-Node: 2, x\r\nContent-Type: application/json\r\n", 426),
        ("Alpaca-Proxy-Node: 1\r\n", 415),
        ("Alpaca-Proxy-Node: 3, 1\r\nContent-Type: application/json\r\n", 101),
    ],
)
def test_upgrades_at_the_port_for_nodes(start: Start, headers: str, status: int) -> None:
    pair = start()
    if status == 101:
        assert pair.wire(headers=headers).receive()[0] == TEXT
    else:
        with pytest.raises((AssertionError, ConnectionError)):
            pair.wire(headers=headers)
    with pytest.raises((AssertionError, ConnectionError)):
        pair.wire(path="/v2/nowhere", headers=headers)


def false_leader(script: Callable[[ServerConnection], None], stack: ExitStack) -> str:
    """Serve each connection with the script; return the URL."""
    server: Server = stack.enter_context(serve(script, "127.0.0.1", 0, compression=None))
    running = gevent.spawn(server.serve_forever)
    stack.callback(running.join)
    stack.callback(server.shutdown)
    return f"ws://127.0.0.1:{server.socket.getsockname()[1]}"


def greet(version: int = 1) -> str:
    return JSON.encode(dialect.connected(version, "false", "0" * 32)).decode()


def accepts_anything(connection: ServerConnection) -> None:
    connection.send(greet())
    connection.recv()
    connection.send(JSON.encode(dialect.authenticated("0" * 64)).decode())
    connection.send(JSON.encode(dialect.live(1)).decode())
    connection.recv()


def returns_the_proof(connection: ServerConnection) -> None:
    connection.send(greet())
    auth = dialect.edge_message(JSON, str(connection.recv()).encode())
    assert isinstance(auth, dialect.Auth)
    connection.send(JSON.encode(dialect.authenticated(auth.proof)).decode())
    connection.recv()


def is_live_at_once(connection: ServerConnection) -> None:
    connection.send(greet())
    connection.send(JSON.encode(dialect.live(1)).decode())
    connection.recv()


def speaks_another_version(connection: ServerConnection) -> None:
    connection.send(greet(9))
    connection.recv()


def sends_much(connection: ServerConnection) -> None:
    connection.send("[" + " " * 10_000_000 + "]")
    connection.recv()


@pytest.mark.parametrize(
    "script", [accepts_anything, returns_the_proof, is_live_at_once, speaks_another_version, sends_much]
)
def test_a_false_leader_is_not_believed(script: Callable[[ServerConnection], None]) -> None:
    def quietly(connection: ServerConnection) -> None:
        try:
            script(connection)
        except Exception:
            return

    with ExitStack() as stack, link_to(false_leader(quietly, stack)) as link:
        with pytest.raises(LeaderGone) as refusal:
            link.open()
        assert refusal.value.cause is Gone.REJECTED
        assert not link.live


def test_a_leader_that_says_nothing() -> None:
    with ExitStack() as stack:
        url = false_leader(lambda connection: gevent.sleep(2), stack)
        began = time.monotonic()
        with link_to(url) as link, pytest.raises(LeaderGone, match="no answer to the log-in") as refusal:
            link.open()
        assert refusal.value.cause is Gone.LOST
        assert time.monotonic() - began < 2


def test_a_link_with_tls(start: Start, tmp_path: Path) -> None:
    pair = start()
    pair.leader.client("alpha").subscribe(trades=["AAPL"])
    cert, key = certificate(tmp_path)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(cert, key)
    server = NodeServer(("127.0.0.1", 0), pair.leading, clock=Clock(), tls=own)
    server.start()
    try:
        url = f"wss://localhost:{server.address[1]}"
        with link_to(url, codec="msgpack", tls=ssl.create_default_context(cafile=cert)) as link:
            link.open()
            assert link.live
        with link_to(url, codec="msgpack") as link, pytest.raises(LeaderGone, match="certificate") as refusal:
            link.open()
        assert refusal.value.cause is Gone.LOST
        wait_for(lambda: not server.sessions)
    finally:
        server.stop()


# Rogue peers on the port for nodes


HEADERS = "Alpaca-Proxy-Node: 1\r\nContent-Type: application/json\r\n"


def log_in(wire: Wire, secret: bytes = SECRET) -> None:
    greeting = dialect.leader_message(JSON, wire.receive()[1][1:-1])
    assert isinstance(greeting, dialect.Connected)
    proof = dialect.proof(
        secret, dialect.EDGE, version=1, challenge=greeting.challenge, nonce="1" * 32, account=ACCOUNT, path="/v2/iex"
    )
    wire.send_json(dialect.auth(dialect.Auth(1, "rogue", ACCOUNT, "1" * 32, proof)))
    assert b"authenticated" in wire.receive()[1]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"action":"subscribe","id":1,"trades":["A"]}',
        b'{"action":"auth"}',
        b"[" * 60_000,
    ],
    ids=["empty", "array", "cut", "bytes", "subscribe", "auth", "deep"],
)
def test_a_rogue_that_has_not_logged_in(start: Start, payload: bytes) -> None:
    pair = start("json")
    witness = pair.edge.client("alpha")
    witness.subscribe(trades=["AAPL"])
    wire = pair.wire(headers=HEADERS)
    wire.receive()
    wire.send(TEXT, payload)
    assert [opcode for opcode, _ in wire.rest()][-1:] == [CLOSE]
    publish(pair, "AAPL", 1)
    witness.numbers("AAPL", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "requests",
    [
        [{"action": "subscribe"}],
        [{"action": "subscribe", "id": -1, "trades": ["A"]}],
        [{"action": "subscribe", "id": 2**70, "trades": ["A"]}],
        [{"action": "subscribe", "id": number, "trades": ["A"]} for number in range(2)],
        [{"action": "auth", "version": 1}],
        [{"action": "subscribe", "id": 1, "trades": ["A" * 70_000]}],
    ],
    ids=["no id", "negative", "huge id", "two at once", "auth again", "huge"],
)
def test_a_rogue_that_has_logged_in(start: Start, requests: list[Any]) -> None:
    pair = start("json")
    witness = pair.edge.client("alpha")
    witness.subscribe(trades=["AAPL"])
    pair.simulator.slow_acks(0.5)
    wire = pair.wire(headers=HEADERS)
    log_in(wire)
    for request in requests:
        wire.send_json(request)
    assert [opcode for opcode, _ in wire.rest()][-1:] == [CLOSE]
    wait_for(lambda: len(pair.leading.nodes.sessions) == 1)
    publish(pair, "AAPL", 1)
    witness.numbers("AAPL", 1)
    wait_for(lambda: pair.simulator.subscribed("iex") == {"trades": {"AAPL"}})


def test_invalid_requests_of_a_node_are_answered(start: Start) -> None:
    pair = start("json")
    wire = pair.wire(headers=HEADERS)
    log_in(wire)
    while b"live" not in wire.receive()[1]:
        pass
    for number, (code, symbols) in enumerate([(400, [""]), (410, ["A"])]):
        channel = "trades" if code == 400 else "orderbooks"
        wire.send_json({"action": "subscribe", "id": number, channel: symbols})
        assert dialect.leader_message(JSON, wire.receive()[1][1:-1]) == dialect.Failure(
            number, code, {400: "invalid syntax", 410: "invalid subscribe action for this feed"}[code]
        )


@pytest.mark.slow
def test_a_flood_of_peers_that_never_log_in(start: Start) -> None:
    """They have a limit and a deadline, and disturb no client."""
    pair = start()
    witness = pair.leader.client("beta")
    witness.subscribe(trades=["AAPL"])
    edge = pair.edge.client("alpha")
    edge.subscribe(trades=["AAPL"])
    with pair.leader.undisturbed(witness):
        for _ in range(300):
            pair.wire(headers=HEADERS)
        assert pair.leading.nodes.unauthenticated <= 256
    wait_for(lambda: len(pair.leading.nodes.sessions) == 1, "they are still there", 12)
    assert edge.numbers("AAPL", publish(pair, "AAPL", 1))


@pytest.mark.slow
def test_wrong_proofs_wait(start: Start) -> None:
    pair = start("json")
    began = time.monotonic()
    wires = [pair.wire(headers=HEADERS) for _ in range(20)]
    for wire in wires:
        with pytest.raises(AssertionError):
            log_in(wire, b"another")
    assert 0.5 <= time.monotonic() - began < 20 * 0.7
    assert pair.simulator.opened("iex") == 0


def test_reprs(start: Start) -> None:
    pair = start()
    client: Client = pair.edge.client("alpha")
    client.subscribe(trades=["AAPL"])
    [session] = pair.leading.nodes.sessions
    assert repr(session).startswith("<NodeSession edge iex 127.0.0.1:")
    assert repr(pair.leading.nodes).endswith("1 sessions>")
    assert repr(pair.following.link) == "<LeaderLink live >"
