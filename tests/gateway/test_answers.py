"""Alpaca's answers to a request: refusals, transient errors, no answer, partial and batched answers.

Every test is a conversation over real sockets with a scripted Alpaca, at the proxy's own time limits. Only the random
part of the waits between connections is fixed, at a fifth of their bound.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import gevent
import pytest

from proxy.alpaca.client_protocol import Backoff, Phase
from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.simulator import AccountPlan, Simulator
from tests.gateway.scripted import Answer, Peer, Request, ScriptedAlpaca
from tests.harness import CONFIG, Client, Harness, trade, wait_for

Start = Callable[..., Harness]

IEX, SIP, CRYPTO, STREAM = "/v2/iex", "/v2/sip", "/v1beta3/crypto/us", "/stream"
MARKET = (IEX, SIP, CRYPTO, "/v2/otc", "/v2/delayed_sip", "/v1beta1/boats", "/v1beta1/overnight")
FEEDS = {IEX: "iex", SIP: "sip", CRYPTO: "crypto", STREAM: "trading"}
EVERYTHING = (
    "{" + ", ".join(f'{feed}: "*"' for feed in (*FEEDS.values(), "otc", "delayed_sip", "boats", "overnight")) + "}"
)
CLIENTS = f"""
  alpha: {{key: alpha, secret: alpha, allow: {EVERYTHING}}}
  beta: {{key: beta, secret: beta, allow: {EVERYTHING}}}
"""


def account(key: str = "key", url: str = "{url}") -> str:
    """The YAML line of the account, with JSON on iex; by default, the harness fills in the simulator's URL."""
    urls = f'data_url: "{url}", trading_url: "{url}"'
    return f"  main: {{{{key: {key}, secret: secret, {urls}, codec: {{{{iex: json}}}}}}}}"


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a proxy at its default values: `start(ScriptedAlpaca())`, or in front of a simulator."""
    monkeypatch.setattr(random, "random", lambda: 0.2)
    with ExitStack() as stack:

        def start(alpaca: ScriptedAlpaca | None = None, *, clients: str = CLIENTS, **options: Any) -> Harness:
            """Without `alpaca`, the account is that of the simulator, or at the `url`."""
            settings = {name: options.pop(name) for name in ("key", "url") if name in options}
            if alpaca is not None:
                settings["url"] = stack.enter_context(alpaca).url
            proxy = Harness(clients, accounts=account(**settings), simulator=Simulator(**options))
            stack.callback(proxy.close)
            return proxy

        yield start


def after_a_reconnect(fault: Callable[[Peer], object], times: int) -> Answer:
    """Answer the first requests after a reconnect with the fault, `times` for each path; grant all others."""
    faults: Counter[str] = Counter()

    def answer(peer: Peer, request: Request) -> None:
        if peer.number > 1 and faults[peer.path] < times:
            faults[peer.path] += 1
            fault(peer)
        else:
            peer.grant(request)

    return answer


def ask(client: Client, path: str, symbol: str) -> None:
    """Subscribe to a symbol's trades, or listen to the orders."""
    if path == STREAM:
        assert client.listen("trade_updates") == {"streams": ["trade_updates"]}
    else:
        assert client.subscribe(trades=[symbol])["trades"] == [symbol]


def update(number: int) -> dict[str, Any]:
    """An order update with this number as its quantity."""
    order = {"id": f"id-{number}", "client_order_id": f"mine-{number}", "qty": str(number)}
    return {"stream": "trade_updates", "data": {"event": "new", "order": order}}


def receives(alpaca: ScriptedAlpaca, client: Client, path: str, symbol: str) -> None:
    """Publish a message, which the client must receive next; its subscription must be as before."""
    before, data = len(client.frames), len(client.data)
    alpaca.publish(path, [update(1) if path == STREAM else trade(symbol, 1)])
    client.gather(data + 1)
    assert len(client.frames) == before + 1
    ask(client, path, symbol)


TRANSIENT_ERRORS: dict[str, Callable[[Peer], object]] = {
    IEX: lambda peer: peer.refuse(500),
    SIP: lambda peer: peer.refuse(500, "something new"),
    CRYPTO: Peer.end,
    STREAM: lambda peer: peer.refuse(500),
}


@pytest.mark.parametrize(("sessions", "times"), [(1, 1), (2, 2)])
def test_a_transient_error_after_a_reconnect_costs_nothing(start: Start, sessions: int, times: int) -> None:
    """An error 500 in JSON and msgpack, a close and the trading stream's error, in answer to the resubscription."""
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    clients = {
        path: [(proxy.client(name, path), symbol) for name, symbol in (("alpha", "A"), ("beta", "B"))[:sessions]]
        for path in FEEDS
    }
    for path, members in clients.items():
        for client, symbol in members:
            ask(client, path, symbol)
    wanted = {path: alpaca.held(path) for path in FEEDS}
    faults = {path: after_a_reconnect(TRANSIENT_ERRORS[path], times) for path in FEEDS}
    alpaca.answer = lambda peer, request: faults[peer.path](peer, request)
    for peer in [alpaca.peer(path) for path in FEEDS]:
        peer.end()
    wait_for(lambda: all(alpaca.opened(path) > 1 for path in FEEDS), "no reconnect")
    for path, members in clients.items():
        wait_for(lambda path=path: alpaca.held(path) == wanted[path], f"{path} was not restored")
        for client, symbol in members:
            receives(alpaca, client, path, symbol)
        assert alpaca.opened(path) == 2 + (times if path == CRYPTO else 0)


@pytest.mark.slow
def test_no_answer_to_the_resubscription_costs_half_a_minute(start: Start) -> None:
    """The connection is replaced after 30 s."""
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    clients = {path: proxy.client("alpha", path) for path in FEEDS}
    for path, client in clients.items():
        ask(client, path, "A")
    wanted = {path: alpaca.held(path) for path in FEEDS}
    alpaca.answer = after_a_reconnect(lambda peer: None, 1)
    for peer in [alpaca.peer(path) for path in FEEDS]:
        peer.end()
    began = time.monotonic()
    for path, client in clients.items():
        wait_for(lambda path=path: alpaca.held(path) == wanted[path], f"{path} was not restored", 40)
        assert 29 < time.monotonic() - began < 36
        receives(alpaca, client, path, "A")
        assert alpaca.opened(path) == 3


def _when_ended(proxy: Harness, path: str) -> None:
    feed = next(upstream for upstream in proxy.gateway.upstreams.values() if upstream.endpoint.path == path)
    wait_for(lambda: feed._source is None or feed._source.ended, "not closed", 20)


@pytest.mark.slow
def test_a_subscribe_while_an_idle_connection_closes_is_served_at_once(start: Start) -> None:
    """On seven feeds, each at another moment of the close, which Alpaca answers after two seconds."""
    alpaca = ScriptedAlpaca(close_seconds=2.0)
    proxy = start(alpaca)
    clients = {path: proxy.client("alpha", path) for path in MARKET}
    for client in clients.values():
        client.subscribe(trades=["A"])
        client.unsubscribe(trades=["A"])
    first = {path: alpaca.peer(path) for path in MARKET}

    def come_back(number: int, path: str) -> float:
        if number == 0:
            _when_ended(proxy, path)
        else:
            assert first[path].closing.wait(20)
            gevent.sleep(0.1 * (number - 1))
        began = time.monotonic()
        assert clients[path].subscribe(trades=["A"])["trades"] == ["A"]
        wait_for(lambda: alpaca.opened(path) == 2 and any(peer.held for peer in alpaca.live(path)), path, 5)
        return time.monotonic() - began

    served = [gevent.spawn(come_back, number, path) for number, path in enumerate(MARKET)]
    took = [greenlet.get(timeout=30) for greenlet in served]
    assert max(took) < 3, took
    for path, client in clients.items():
        alpaca.publish(path, [trade("A", 7)])
        assert client.numbers("A", 7) == [7]


def removal(request: Request) -> bool:
    """Whether a request only takes away: an unsubscribe, or a listen to one stream."""
    return request["action"] == "unsubscribe" or request.get("data", {}).get("streams") == ["trade_updates"]


def refusing_removals(times: int) -> Answer:
    """Refuse the first removals on each path: with 400 on iex, else with 500."""
    refused: Counter[str] = Counter()

    def answer(peer: Peer, request: Request) -> None:
        if removal(request) and refused[peer.path] < times:
            refused[peer.path] += 1
            peer.refuse(400 if peer.path == IEX else 500)
        else:
            peer.grant(request)

    return answer


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_refused_removal_is_asked_for_again(start: Start, times: int) -> None:
    """The topics stay acked meanwhile, and no client receives anything."""
    alpaca = ScriptedAlpaca(refusing_removals(times))
    proxy = start(alpaca)
    paths = {IEX: "iex", SIP: "sip", STREAM: "trading"}
    clients = {path: proxy.client("alpha", path) for path in paths}
    for path in (IEX, SIP):
        clients[path].subscribe(trades=["A", "B"])
        assert clients[path].unsubscribe(trades=["B"])["trades"] == ["A"]
    assert clients[STREAM].listen("trade_updates", "account_updates")["streams"] == ["account_updates", "trade_updates"]
    assert clients[STREAM].listen("trade_updates")["streams"] == ["trade_updates"]
    before = {path: len(client.frames) for path, client in clients.items()}
    removed = {IEX: ("trades", "B"), SIP: ("trades", "B"), STREAM: ("account_updates", "*")}
    for path, feed in paths.items():
        for count in range(1, times + 1):
            wait_for(lambda path=path, count=count: len(alpaca.times(path, removal)) >= count, "not asked for again")
            wait_for(lambda path=path, feed=feed: removed[path] in proxy.upstream(feed).acked, "not acked any more")
    wanted = {IEX: {"trades": {"A"}}, SIP: {"trades": {"A"}}, STREAM: {"streams": {"trade_updates"}}}
    for path, feed in paths.items():
        wait_for(lambda path=path: alpaca.held(path) == wanted[path], f"{path}: not removed", 30)
        wait_for(lambda path=path, feed=feed: removed[path] not in proxy.upstream(feed).acked)
        asked = alpaca.times(path, removal)
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert len(gaps) == times
        assert all(gap > 1.9 * 2**number for number, gap in enumerate(gaps)), gaps
        receives(alpaca, clients[path], path, "A")
        assert len(clients[path].frames) == before[path] + 2
        assert alpaca.opened(path) == 1


@pytest.mark.parametrize("left_out", ["trade_updates", "account_updates"])
def test_a_stream_that_alpaca_leaves_out_is_absent_from_the_acknowledgement(start: Start, left_out: str) -> None:
    alpaca = ScriptedAlpaca(lambda peer, request: peer.grant(request, without=[left_out]))
    client = start(alpaca).client("alpha", STREAM)
    streams = {"account_updates", "trade_updates"}
    assert client.listen(*streams) == {"streams": sorted(streams - {left_out})}


@pytest.mark.parametrize("path", [IEX, SIP])
def test_symbols_that_alpaca_leaves_out_are_absent_from_the_acknowledgement(start: Start, path: str) -> None:
    """Of 300 symbols it grants 100."""
    symbols = [f"S{number}" for number in range(300)]
    granted, left_out = symbols[::3], [*symbols[1::3], *symbols[2::3]]
    alpaca = ScriptedAlpaca(lambda peer, request: peer.grant(request, without=left_out))
    proxy = start(alpaca)
    client = proxy.client("alpha", path)
    assert client.subscribe(trades=symbols)["trades"] == sorted(granted)
    feed = proxy.upstream(FEEDS[path])
    assert feed.acked == feed.reconciler.wanted == {("trades", symbol) for symbol in granted}
    alpaca.publish(path, [trade("S3", 1)])
    assert client.numbers("S3", 1) == [1]
    assert len(alpaca.requests(path)) == 1


@pytest.mark.parametrize("held", [False, True])
def test_a_state_that_is_no_answer_does_not_confirm_the_request(start: Start, held: bool) -> None:
    """Alpaca sends the state before the request, and the answer 0.6 s later."""
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    clients = {path: proxy.client("alpha", path) for path in (IEX, SIP, STREAM)}
    for path, client in clients.items() if held else ():
        ask(client, path, "A")
    answered: dict[str, float] = {}

    def answer(peer: Peer, request: Request) -> None:
        peer.send_json(peer.state())
        gevent.sleep(0.6)
        answered[peer.path] = time.monotonic()
        peer.grant(request)

    alpaca.answer = answer
    for path in (IEX, SIP):
        clients[path].send_json({"action": "subscribe", "trades": ["B"]})
    streams = ["account_updates", "trade_updates"] if held else ["account_updates"]
    clients[STREAM].send_json({"action": "listen", "data": {"streams": streams}})
    wait_for(lambda: len(answered) == 3)
    alpaca.answer = Peer.grant
    for path in (IEX, SIP):
        assert clients[path].answer()[0]["trades"] == (["A", "B"] if held else ["B"])
    assert clients[STREAM].answer()["data"] == {"streams": streams}
    assert all(len(alpaca.requests(path)) == 1 + held for path in clients)


def test_an_answer_that_leaves_out_all_that_was_asked_for(start: Start) -> None:
    """Such an answer equals the state before the request, so it counts only after 1 s without another."""
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    clients = {path: proxy.client("alpha", path) for path in (IEX, SIP, STREAM)}
    for path in (IEX, SIP):
        ask(clients[path], path, "A")

    def answer(peer: Peer, request: Request) -> None:
        if peer.path == SIP:
            peer.send_json(peer.state())
            gevent.sleep(0.2)
        peer.grant(request, without=["B", "trade_updates"])

    alpaca.answer = answer
    for path in (IEX, SIP):
        clients[path].send_json({"action": "subscribe", "trades": ["B"]})
    assert clients[STREAM].listen("trade_updates") == {"streams": []}
    for path in (IEX, SIP):
        assert clients[path].answer()[0]["trades"] == ["A"]
        receives(alpaca, clients[path], path, "A")
    assert clients[STREAM].listen() == {"streams": []}


@pytest.mark.parametrize("path", [IEX, SIP])
def test_an_acknowledgement_in_one_frame_with_data(start: Start, path: str) -> None:
    """Data of held topics before and after it is delivered in order; the client's acknowledgement is alone."""
    alpaca = ScriptedAlpaca()
    client = start(alpaca).client("alpha", path)
    client.subscribe(trades=["A"])

    def answer(peer: Peer, request: Request) -> None:
        peer.apply(request)
        peer.send_json([trade("A", 1), *peer.state(), trade("A", 2)])

    alpaca.answer = answer
    assert client.subscribe(trades=["B"])["trades"] == ["A", "B"]
    assert client.numbers("A", 2) == [1, 2]


@pytest.mark.parametrize("held", [1, 8000])
@pytest.mark.parametrize("path", [IEX, SIP])
def test_data_of_a_new_topic_in_one_frame_with_its_acknowledgement(start: Start, path: str, held: int) -> None:
    """A message that follows the acknowledgement in its frame is delivered.

    An acknowledgement names all topics of the connection, so it takes long to read if another client holds thousands.
    """
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    proxy.client("beta", path).subscribe(trades=[f"S{number}" for number in range(held)])
    wait_for(lambda: len(proxy.upstream(FEEDS[path]).acked) == held)

    def answer(peer: Peer, request: Request) -> None:
        peer.apply(request)
        peer.send_json([*peer.state(), trade("B", 1)])
        peer.publish(trade("B", 2))

    alpaca.answer = answer
    client = proxy.client("alpha", path)
    assert client.subscribe(trades=["B"])["trades"] == ["B"]
    assert client.numbers("B", 2) == [1, 2]


@pytest.mark.parametrize("path", [IEX, SIP])
@pytest.mark.parametrize("code", [400, 405])
def test_an_error_in_one_frame_with_data(start: Start, path: str, code: int) -> None:
    alpaca = ScriptedAlpaca()
    client = start(alpaca).client("alpha", path)
    client.subscribe(trades=["A"])

    def answer(peer: Peer, request: Request) -> None:
        peer.send_json([trade("A", 1), {"T": "error", "code": code, "msg": "no"}, trade("A", 2)])

    alpaca.answer = answer
    assert client.subscribe(trades=["B"]) == {"T": "error", "code": code, "msg": "no"}
    assert client.numbers("A", 2) == [1, 2]
    assert client.subscribe()["trades"] == ["A"]


def json_error(peer: Peer, code: int, msg: str) -> None:
    """Send an error as JSON text, whatever the connection's codec."""
    peer.codec = "json"
    peer.refuse(code, msg)
    peer.codec = "msgpack"


def logged(proxy: Harness, event: str) -> list[dict[str, Any]]:
    """The fields of the recent log events of this name."""
    return [dict(entry.fields) for entry in proxy.gateway.snapshot().events if entry.name == event]


def test_an_error_in_json_on_a_connection_in_msgpack(start: Start) -> None:
    """The error is logged with its text, and sent to the session of the request."""
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    alpha, beta = proxy.client("alpha", SIP), proxy.client("beta", SIP)
    alpha.subscribe(trades=["A"])
    alpaca.answer = lambda peer, request: json_error(peer, 405, "symbol limit of 30 exceeded")
    assert beta.subscribe(trades=["B"]) == {"T": "error", "code": 405, "msg": "symbol limit of 30 exceeded"}
    [fields] = logged(proxy, "upstream.refused")
    assert fields["reason"] == "symbol limit of 30 exceeded"
    assert str(fields["code"]) == "405"
    assert proxy.upstream("sip").malformed == 0
    receives(alpaca, alpha, SIP, "A")
    assert beta.subscribe() == {}


def test_a_log_in_refused_in_json_on_a_connection_in_msgpack(start: Start) -> None:
    def refuse(peer: Peer) -> None:
        peer.send_json([{"T": "success", "msg": "connected"}])
        peer.receive()
        json_error(peer, 406, "connection limit exceeded")
        peer.receive()

    alpaca = ScriptedAlpaca()
    alpaca.log_in = refuse
    proxy = start(alpaca)
    client = proxy.client("alpha", SIP)
    client.send_json({"action": "subscribe", "trades": ["A"]})
    wait_for(lambda: proxy.upstream("sip").last_error == "Alpaca says 406 connection limit exceeded")
    assert proxy.upstream("sip").malformed == 0


def behind(start: Start, first: Harness) -> Harness:
    """A second proxy, whose account is the client alpha of the first."""
    host, port = first.address
    clients = '\n  inner: {key: inner, secret: inner, allow: {iex: "*"}}\n'
    proxy = start(clients=clients, url=f"ws://{host}:{port}", key="alpha")
    return proxy


def status(proxy: Harness) -> tuple[int, int, list[str]]:
    """From /status.json: the feed's wanted and acked topics, and what each session holds."""
    host, port = proxy.gateway.admin.address[:2]
    with urlopen(f"http://{host}:{port}/status.json", timeout=5) as response:
        document = json.load(response)
    [feed] = document["feeds"]
    holds = [session["holds"] for client in document["clients"] for session in client["sessions"]]
    return feed["wanted"], feed["acked"], holds


OUTER = '\n  alpha: {key: alpha, secret: secret, allow: {iex: {trades: "*"}}}\n'


def test_a_late_refusal_passes_through_two_proxies(start: Start) -> None:
    """Alpaca refuses after 2.6 s, when both proxies have acknowledged: the client gets the error, then its state."""
    first = start(clients=OUTER, plan=AccountPlan(symbol_limit=2))
    second = behind(start, first)
    inner = second.client("inner")
    assert inner.subscribe(trades=["A"])["trades"] == ["A"]
    first.simulator.slow_acks(2.6)
    began = time.monotonic()
    assert inner.subscribe(trades=["B", "C"])["trades"] == ["A", "B", "C"]
    acknowledged = time.monotonic() - began
    assert inner.answer() == [{"T": "error", "code": 405, "msg": "symbol limit exceeded"}]
    assert time.monotonic() - began > 2.6 > 2.1 > acknowledged
    assert inner.answer()[0]["trades"] == ["A"]
    wait_for(lambda: status(second) == status(first) == (1, 1, ["trades A"]), f"{status(second)} {status(first)}")
    first.publish("iex", "A", 3)
    assert inner.numbers("A", 3) == [1, 2, 3]
    assert first.simulator.subscribed("iex") == {"trades": {"A"}}
    assert second.upstream().connects == first.upstream().connects == 1


@pytest.mark.slow
def test_a_late_refusal_behind_two_proxies_does_not_answer_another_request(start: Start) -> None:
    """The first proxy sends the state after a refusal while another request of the same connection waits there."""
    first = start(clients=OUTER.replace('{trades: "*"}', '"*"'), plan=AccountPlan(symbol_limit=2))
    second = behind(start, first)
    greedy, modest = second.client("inner"), second.client("inner")
    greedy.subscribe(trades=["A"])
    first.simulator.slow_acks(2.6)
    began = time.monotonic()
    assert greedy.subscribe(trades=["B", "C"])["trades"] == ["A", "B", "C"]
    wait_for(lambda: time.monotonic() - began > 2.45)
    assert modest.subscribe(bars=["D"]) == {"bars": ["D"]}
    assert greedy.answer()[0]["code"] == 405
    assert greedy.answer()[0]["trades"] == ["A"]
    wait_for(lambda: first.simulator.subscribed("iex") == {"trades": {"A"}, "bars": {"D"}})
    wait_for(lambda: status(second)[:2] == status(first)[:2] == (2, 2), f"{status(second)} {status(first)}")


def test_a_late_refusal_in_two_segments_does_not_answer_another_request(start: Start) -> None:
    """The error and the beginning of its state arrive first, as they can across a network."""
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    alpha, beta = proxy.client("alpha"), proxy.client("beta")
    alpha.subscribe(trades=["A", "B"])

    def answer(peer: Peer, request: Request) -> None:
        if "B" in request["trades"]:
            peer.refuse(405)
            return
        peer.held["trades"].discard("B")
        error, state = peer.frame_of(peer.error(405)), peer.frame_of(peer.state())
        peer.socket.sendall(error + state[:20])
        gevent.sleep(0.05)
        peer.socket.sendall(state[20:])
        gevent.sleep(0.3)
        peer.grant(request)

    alpaca.answer = answer
    assert beta.subscribe(trades=["C"]) == {"trades": ["C"], "corrections": ["C"], "cancelErrors": ["C"]}
    assert alpha.answer()[0]["code"] == 405
    assert alpha.answer()[0]["trades"] == ["A"]
    assert proxy.upstream().acked == {("trades", "A"), ("trades", "C")}


def narrowed(first: Harness) -> Config:
    """The configuration of the first proxy, with one symbol in its allowlist."""
    text = CONFIG.format(
        clients=OUTER.replace('"*"', "[A]"),
        accounts=account().format(url=first.simulator.url),
        listen="",
        admin="",
        admin_port=0,
        more="",
    )
    config = configuration.parse(text, "proxy.yaml", os.environ, Path())
    return config.model_copy(update={"listen": first.gateway.config.listen, "admin": first.gateway.config.admin})


def test_a_narrowed_allowlist_prunes_the_subscription_behind_a_second_proxy(start: Start) -> None:
    """The second proxy asks again for the topic that was taken away; the refusal goes to its session."""
    first = start(clients=OUTER)
    second = behind(start, first)
    inner = second.client("inner")
    assert inner.subscribe(trades=["A", "B"])["trades"] == ["A", "B"]
    assert first.gateway.reload(narrowed(first)).changed == ("alpha",)
    [error] = inner.answer()
    assert error["code"] == 409
    assert error["msg"].startswith("insufficient subscription")
    assert inner.answer()[0]["trades"] == ["A"]
    wait_for(lambda: status(second) == status(first) == (1, 1, ["trades A"]), f"{status(second)} {status(first)}")
    first.publish("iex", "A", 3)
    assert inner.numbers("A", 3) == [1, 2, 3]
    assert inner.silent()
    assert second.upstream().connects == first.upstream().connects == 1


def test_an_account_with_an_oauth_token(start: Start) -> None:
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca, key="oauth")
    orders, data = proxy.client("alpha", STREAM), proxy.client("alpha", IEX)
    ask(orders, STREAM, "")
    ask(data, IEX, "A")
    assert alpaca.peer(STREAM).login == {"action": "authenticate", "data": {"oauth_token": "secret"}}
    assert alpaca.peer(IEX).login == {"action": "auth", "key": "oauth", "secret": "secret"}


def test_an_array_on_the_trading_stream(start: Start) -> None:
    """Its members are delivered one by one; one of them is the acknowledgement."""
    alpaca = ScriptedAlpaca()
    client = start(alpaca).client("alpha", STREAM)
    ask(client, STREAM, "")

    def answer(peer: Peer, request: Request) -> None:
        peer.apply(request)
        peer.send_json([update(1), peer.state(), update(2)])

    alpaca.answer = answer
    assert client.listen("trade_updates", "account_updates")["streams"] == ["account_updates", "trade_updates"]
    alpaca.peer(STREAM).send_json([update(3), {"stream": "account_updates", "data": {"cash": "1"}}, update(4)])
    assert client.gather(5) == [
        update(1),
        update(2),
        update(3),
        {"stream": "account_updates", "data": {"cash": "1"}},
        update(4),
    ]


@pytest.mark.parametrize("path", [IEX, SIP, STREAM])
def test_an_exception_in_one_sessions_put_costs_that_session(
    start: Start, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    unlucky, other = proxy.client("alpha", path), proxy.client("beta", path)
    for client in (unlucky, other):
        ask(client, path, "A")
    [session] = [session for session in proxy.gateway.server.sessions if session.name == "alpha"]

    def fail(frame: bytes, messages: int) -> None:
        raise RuntimeError("injected")

    for part in (session.outbox, *session.subscribers):
        monkeypatch.setattr(part, "put", fail)
    receives(alpaca, other, path, "A")
    assert unlucky.closed()[0] is None
    receives(alpaca, other, path, "A")
    assert alpaca.opened(path) == 1
    [error] = proxy.bugs
    assert "injected" in error
    proxy.bugs.clear()
    ask(proxy.client("alpha", path), path, "A")


def test_a_feed_that_comes_live_wakes_those_that_wait_for_the_same_host(start: Start) -> None:
    """The host is down until one feed waits for 2 s; the other feed connects first."""
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    for path in (IEX, SIP):
        ask(proxy.client("alpha", path), path, "A")
    patient, quick = proxy.upstream("iex"), proxy.upstream("sip")
    patient._backoff._random, quick._backoff._random = lambda: 1.0, lambda: 0.1
    alpaca.stop()
    wait_for(lambda: patient.phase is Phase.WAITING and patient._backoff._bound == 4, "no second failure")
    due = patient._next_attempt_at
    assert due is not None
    alpaca.start()
    wait_for(lambda: quick.phase is Phase.LIVE, "not live")
    live = proxy.gateway._clock()
    wait_for(lambda: patient.phase is Phase.LIVE, "not woken")
    assert proxy.gateway._clock() - live < min(1.0, due - live)
    assert Backoff.NETWORK_MOST == 5
    for path in (IEX, SIP):
        wait_for(lambda path=path: alpaca.held(path) == {"trades": {"A"}})


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("path", [IEX, SIP])
def test_a_request_that_brings_a_close_is_refused_in_the_end(start: Start, path: str) -> None:
    """Alpaca closes whenever X is requested; the other client has its data again after each close."""
    alpaca = ScriptedAlpaca()
    proxy = start(alpaca)
    healthy, poison = proxy.client("alpha", path), proxy.client("beta", path)
    ask(healthy, path, "A")
    closes = 0

    def answer(peer: Peer, request: Request) -> None:
        nonlocal closes
        if "X" in request.get("trades", ()):
            closes += 1
            peer.end()
        else:
            peer.grant(request)

    alpaca.answer = answer
    done = False

    def publish() -> None:
        while not done:
            for peer in alpaca.live(path):
                peer.publish(trade("A", peer.number))
            gevent.sleep(0.02)

    flow = gevent.spawn(publish)
    assert healthy.numbers("A", 1)[-1] == 1
    began = time.monotonic()
    assert poison.subscribe(trades=["X"])["trades"] == ["X"]
    acknowledged = time.monotonic() - began
    assert poison.answer(90) == [{"T": "error", "code": 400, "msg": "invalid syntax"}]
    refused = time.monotonic() - began
    assert poison.answer()[0]["trades"] == []
    wait_for(lambda: alpaca.held(path) == {"trades": {"A"}}, "not restored")
    last = alpaca.peer(path).number
    served = [*dict.fromkeys(healthy.numbers("A", last))]
    done = True
    flow.join()
    assert acknowledged < 2.1
    assert refused < 75
    assert alpaca.opened(path) == last == closes + 1
    assert healthy.subscribe()["trades"] == ["A"]
    order = [(asked.peer.number, *asked.request["trades"]) for asked in alpaca.asked]
    assert served == [*range(1, last + 1)], f"a connection without data of the other client: {order}"
