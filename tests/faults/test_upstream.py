"""What Alpaca and the way to it can do. Each fault is injected for real, and what is asserted is about the algorithms:
nobody's connection ends, no message is missing before and after it, and another feed does not notice.
"""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gevent
import pytest

from proxy.alpaca.client_protocol import Backoff, Phase
from proxy.routing import reconciler as reconciler
from proxy.simulator import AccountPlan, Simulator
from proxy.upstream import alpaca_connection as line
from proxy.upstream import supervisor as upstream
from proxy.upstream import websocket
from tests.harness import SECONDS, Client, Harness, certificate, trade, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*"}}
  beta: {key: beta, secret: beta, allow: {iex: "*"}}
"""
WITHIN = (line.PING_SECONDS, line.MUTE_SECONDS)
WANTED = {"trades": {"AAPL", "MSFT"}, "quotes": {"SPY"}}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes ten seconds takes a tenth of one."""
    monkeypatch.setattr(upstream, "STEP_SECONDS", 0.1)
    monkeypatch.setattr(upstream, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.1)
    monkeypatch.setattr(line, "PING_SECONDS", 0.1)
    monkeypatch.setattr(line, "MUTE_SECONDS", 0.2)
    monkeypatch.setattr(reconciler, "ACK_SECONDS", 0.05)
    monkeypatch.setattr(Backoff, "next", lambda self, refused: 0.02)


@dataclass
class Scene:
    proxy: Harness
    alpha: Client
    beta: Client

    def failed(self, times: int = 2) -> None:
        """Waits until the connection was lost and asked for again so many times."""
        simulator = self.proxy.simulator
        wait_for(lambda: len(simulator.attempts("iex")) > times and self.proxy.upstream().phase is not Phase.LIVE)

    def lost(self) -> None:
        wait_for(lambda: self.proxy.upstream().phase is not Phase.LIVE)


@contextmanager
def fault(proxy: Harness, codec: str = "msgpack") -> Iterator[Scene]:
    """Around a fault of the feed iex, with two algorithms on it and one on crypto."""
    alpha, beta = proxy.client("alpha"), proxy.client("beta", codec="msgpack")
    witness = proxy.client("alpha", "/v1beta3/crypto/us")
    alpha.subscribe(trades=["AAPL"], quotes=["SPY"])
    beta.subscribe(trades=["AAPL", "MSFT"])
    witness.subscribe(trades=["BTC/USD"])
    # What Alpaca is slow to confirm is acknowledged all the same, and soon here.
    wait_for(lambda: proxy.simulator.subscribed("iex") == WANTED)
    wait_for(lambda: proxy.simulator.subscribed("crypto") == {"trades": {"BTC/USD"}})
    proxy.publish("iex", "AAPL", 10)
    alpha.numbers("AAPL", 10)
    beta.numbers("AAPL", 10)
    said = len(alpha.frames), len(beta.frames)
    with proxy.undisturbed(witness, feed="crypto", symbol="BTC/USD"):
        yield Scene(proxy, alpha, beta)
        # The fault is over: from here on a busy machine must not look like another. `impatient` puts it back.
        upstream.STEP_SECONDS, line.MUTE_SECONDS = 10.0, WITHIN[1]
        wait_for(lambda: proxy.simulator.subscribed("iex") == WANTED, "not everything was asked for again")
    proxy.publish("iex", "AAPL", 10)
    for client, before in zip((alpha, beta), said, strict=True):
        assert client.numbers("AAPL", 20) == list(range(1, 21))
        assert all(b"success" not in frame and b"error" not in frame for frame in client.frames[before:])
        assert client.silent()
    assert proxy.simulator.peak("iex") == proxy.simulator.peak("crypto") == 1


@pytest.mark.parametrize("how", ["close", "fin", "rst"])
def test_connection_dropped(start: Start, how: str) -> None:
    proxy = start(CLIENTS)
    with fault(proxy):
        proxy.simulator.drop("iex", how)
        wait_for(lambda: proxy.simulator.opened("iex") == 2)
    snapshot = proxy.gateway.snapshot()
    outages = {(feed.feed, feed.outages) for feed in snapshot.feeds if 0 < feed.outage_seconds < SECONDS}
    assert outages == {("iex", 1)}
    assert {totals.outages for (_, feed), totals in snapshot.totals.items() if feed == "iex"} == {1}


def test_connection_dropped_again_and_again(start: Start) -> None:
    proxy = start(CLIENTS)
    with fault(proxy) as scene:
        for times, how in enumerate(itertools.islice(itertools.cycle(("fin", "rst", "close")), 15), 1):
            proxy.simulator.drop("iex", how)
            wait_for(lambda times=times: proxy.simulator.opened("iex") > times)
        wait_for(lambda: scene.proxy.upstream().connects == 16)


def test_alpaca_is_gone_for_a_while(start: Start) -> None:
    """Nothing listens there any more: connections are refused by the kernel."""
    proxy = start(CLIENTS)
    witness = proxy.client("alpha")
    witness.subscribe(trades=["AAPL"])
    proxy.simulator.stop()
    wait_for(lambda: "refused" in proxy.upstream().last_error)
    assert proxy.client("beta").subscribe(quotes=["SPY"]) == {"quotes": ["SPY"]}
    proxy.simulator.start()
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}, "quotes": {"SPY"}})
    proxy.publish("iex", "AAPL", 10)
    assert witness.numbers("AAPL", 10) == list(range(1, 11))


def test_connection_half_open(start: Start) -> None:
    """The socket is there and nothing comes, pongs included, while the market is quiet."""
    assert WITHIN[0] + WITHIN[1] <= 30
    proxy = start(CLIENTS)
    with fault(proxy):
        proxy.simulator.mute("iex")
        wait_for(lambda: "no sign of life" in proxy.upstream().last_error)
        proxy.simulator.unmute("iex")
        wait_for(lambda: len(proxy.simulator.connections("iex")) == 1 and proxy.simulator.opened("iex") == 2)


def test_a_quiet_market_is_not_a_mute_one(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    pings = proxy.upstream()
    heard = pings._connection and pings._connection.received_at
    wait_for(
        lambda: pings._connection is not None and heard is not None and pings._connection.received_at > heard + 0.5
    )
    assert proxy.simulator.opened("iex") == 1


@pytest.mark.parametrize("step", ["upgrade", "greeting", "auth"])
def test_log_in_stalls(start: Start, step: str) -> None:
    proxy = start(CLIENTS)
    with fault(proxy) as scene:
        proxy.simulator.stall(step, "iex")
        proxy.simulator.drop("iex", "fin")
        scene.failed()
        proxy.simulator.accept("iex")


def test_subscribe_stalls(start: Start) -> None:
    """What is acked already goes on flowing; the request is not repeated, and in the end the connection is replaced."""
    proxy = start(CLIENTS)
    witness, newcomer = proxy.client("alpha"), proxy.client("beta")
    witness.subscribe(trades=["AAPL"])
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    proxy.simulator.stall("subscribe", "iex")
    with proxy.undisturbed(witness):
        assert newcomer.subscribe(quotes=["SPY"]) == {"quotes": ["SPY"]}
        [peer] = proxy.simulator.connections("iex")
    wait_for(lambda: "no answer to a request" in proxy.upstream().last_error)
    assert len(peer._held) == 1
    proxy.simulator.accept("iex")
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}, "quotes": {"SPY"}})
    with proxy.undisturbed(witness):
        proxy.client("beta").subscribe(trades=["AAPL"])


@pytest.mark.parametrize("code", [401, 402, 404, 405, 406, 407, 500])
def test_log_in_refused(start: Start, code: int) -> None:
    proxy = start(CLIENTS)
    with fault(proxy) as scene:
        proxy.simulator.fail_auth("iex", code)
        proxy.simulator.drop("iex", "fin")
        scene.failed()
        wait_for(lambda: str(code) in proxy.upstream().last_error)
        proxy.simulator.accept("iex")


def test_log_in_refused_for_the_plan(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """409: asked again every five minutes. What Alpaca has confirmed is remembered; what it has not is refused, also to
    who was acknowledged meanwhile."""
    assert Backoff.REFUSED == 300
    monkeypatch.setattr(Backoff, "REFUSED", 0.2)
    proxy = start(CLIENTS)
    with fault(proxy):
        proxy.simulator.refuse_upgrade("iex", 503)
        proxy.simulator.drop("iex", "fin")
        newcomer = proxy.client("beta")
        assert newcomer.subscribe(trades=["TSLA"])["trades"] == ["TSLA"]
        proxy.simulator.accept("iex")
        proxy.simulator.fail_auth("iex", 409)
        assert newcomer.answer()[0]["code"] == 409
        assert newcomer.answer()[0]["trades"] == []
        assert newcomer.subscribe(trades=["TSLA"])["code"] == 409
        proxy.simulator.accept("iex")


@pytest.mark.parametrize("status", [302, 401, 403, 404, 407, 409, 429, 500, 502, 503])
def test_upgrade_refused(start: Start, status: int) -> None:
    proxy = start(CLIENTS)
    with fault(proxy) as scene:
        proxy.simulator.refuse_upgrade("iex", status)
        proxy.simulator.drop("iex", "fin")
        scene.failed()
        wait_for(lambda: f"HTTP {status}" in proxy.upstream().last_error)
        proxy.simulator.accept("iex")


def test_the_place_is_still_taken(start: Start) -> None:
    """A connection that died without a word keeps the account's place for a while: 406 until then."""
    proxy = start(CLIENTS, plan=AccountPlan(ghost_seconds=0.5))
    with fault(proxy):
        proxy.simulator.drop("iex", "rst")
        wait_for(lambda: "406" in proxy.upstream().last_error)
        wait_for(lambda: any("406" in str(e) and "hint" in e.fields for e in proxy.gateway.snapshot().events))


def test_after_a_refusal_alpaca_is_not_pressed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two logins within a second of a 406, which is counted from when Alpaca was asked."""
    monkeypatch.undo()
    proxy = start(CLIENTS, plan=AccountPlan(connections=0))
    client = proxy.client("alpha")
    assert client.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    wait_for(lambda: len(proxy.simulator.attempts("iex")) >= 2)
    first, second = proxy.simulator.attempts("iex")[:2]
    assert second - first >= 1


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("kind", ["not-json", "truncated", "unknown-kind"])
def test_garbage_that_costs_nothing(start: Start, kind: str, codec: str) -> None:
    """A message that cannot be read is left out, and the connection stays."""
    proxy = start(CLIENTS, config=_speaking(codec))
    with fault(proxy):
        for _ in range(5):
            proxy.simulator.garbage("iex", kind)
        wait_for(lambda: proxy.upstream().malformed == 5 or kind == "unknown-kind")
        assert proxy.simulator.opened("iex") == 1


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("kind", ["oversize", "masked", "bad-utf8"])
def test_garbage_that_costs_the_connection(start: Start, kind: str, codec: str) -> None:
    """What breaks RFC 6455 or a bound is no WebSocket any more: a new one is opened, and nobody notices."""
    proxy = start(CLIENTS, config=_speaking(codec))
    with fault(proxy):
        proxy.simulator.garbage("iex", kind)
        wait_for(lambda: proxy.simulator.opened("iex") == 2)


def test_a_kind_that_nobody_knows_reaches_the_curious(start: Start) -> None:
    clients = CLIENTS + "  strict: {key: strict, secret: strict, allow: {iex: {trades: [AAPL]}}}\n"
    proxy = start(clients)
    accepts_unknown, strict = proxy.client("alpha"), proxy.client("strict")
    accepts_unknown.subscribe(trades=["AAPL"])
    strict.subscribe(trades=["AAPL"])
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    proxy.simulator.garbage("iex", "unknown-kind")
    assert accepts_unknown.receive() == [{"T": "zz", "S": "AAPL", "new": [1]}]
    assert strict.silent()


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 500, 999])
def test_an_error_that_nobody_asked_for(start: Start, code: int) -> None:
    proxy = start(CLIENTS)
    with fault(proxy):
        proxy.simulator.error("iex", code)
        proxy.simulator.publish("iex", [trade("MSFT", 1)])


@pytest.mark.parametrize("then", ["close", "fin"])
def test_alpaca_finds_us_slow(start: Start, then: str) -> None:
    """407 in the middle of the data, then the end. It is no client's fault, so no client hears of it."""
    proxy = start(CLIENTS)
    with fault(proxy):
        proxy.simulator.error("iex", 407)
        proxy.simulator.drop("iex", then)
        wait_for(lambda: proxy.simulator.opened("iex") == 2)


@contextmanager
def elsewhere(start: Start, url: str) -> Iterator[tuple[Harness, Callable[[], str]]]:
    """An account whose Alpaca is at this URL, beside one that is well. Whoever uses it is served all the same; the
    trouble of its connection is to be asked for."""
    accounts = f"""\
  main: {{{{key: key, secret: secret, data_url: "{{url}}", trading_url: "{{url}}"}}}}
  far: {{{{key: far, secret: far, data_url: "{url}"}}}}"""
    clients = """
  alpha: {key: alpha, secret: alpha, account: main, allow: {iex: "*"}}
  gamma: {key: gamma, secret: gamma, account: far, allow: {iex: "*"}}
"""
    proxy = start(clients, config={"accounts": accounts})
    witness, gamma = proxy.client("alpha"), proxy.client("gamma")
    witness.subscribe(trades=["AAPL"])
    wait_for(lambda: proxy.simulator.subscribed("iex") == {"trades": {"AAPL"}})
    with proxy.undisturbed(witness):
        assert gamma.subscribe(quotes=["SPY"]) == {"quotes": ["SPY"]}
        yield proxy, lambda: proxy.upstream(account="far").last_error
        assert gamma.subscribe(bars=["SPY"]) == {"quotes": ["SPY"], "bars": ["SPY"]}
    assert "far" not in str(proxy.simulator.requests("iex"))


def test_a_name_that_nobody_knows(start: Start) -> None:
    with elsewhere(start, "wss://stream.alpaca.invalid") as (_, last_error):
        wait_for(lambda: "resolve" in last_error() or "not known" in last_error() or "resolution" in last_error())


def test_a_host_whose_first_address_is_dead(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv6 comes first, as where a name has both, and nothing is there: the next address is tried at once."""
    with socket.socket(socket.AF_INET6) as holder:
        holder.bind(("::1", 0))  # and does not listen
        dead = holder.getsockname()
        proxy = start(CLIENTS)
        port = int(proxy.simulator.url.rpartition(":")[2])
        places = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", dead),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        known = gevent.socket.getaddrinfo
        asked = 0

        def getaddrinfo(host: str, wanted: int, *more: int) -> list[object]:
            nonlocal asked
            asked += wanted == port
            return places if wanted == port else known(host, wanted, *more)

        monkeypatch.setattr(gevent.socket, "getaddrinfo", getaddrinfo)
        with fault(proxy):
            proxy.simulator.drop("iex", "rst")
            wait_for(lambda: proxy.simulator.opened("iex") == 2)
        assert asked >= 3


def test_a_tls_handshake_that_stalls(start: Start) -> None:
    """A peer that takes the connection and then says nothing: given up in time, and tried again."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        with elsewhere(start, f"wss://127.0.0.1:{mute.getsockname()[1]}") as (_, last_error):
            first, _ = mute.accept()
            assert first.recv(1) == b"\x16"  # its part of a handshake
            wait_for(lambda: "timed out" in last_error())
            again, _ = mute.accept()
        first.close()
        again.close()


def test_a_certificate_that_nobody_signed(start: Start, tmp_path: Path) -> None:
    """No key is sent to whoever cannot prove to be Alpaca."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificate(tmp_path))
    with Simulator(tls=server) as impostor, elsewhere(start, impostor.url) as (_, last_error):
        wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in last_error())
        assert impostor.requests("iex") == []


def test_dropped_in_the_middle_of_a_request(start: Start) -> None:
    proxy = start(CLIENTS)
    with fault(proxy) as scene:
        proxy.simulator.slow_acks(0.05)
        for _ in range(5):
            scene.alpha.send_json({"action": "subscribe", "trades": ["TSLA"]})
            scene.alpha.send_json({"action": "unsubscribe", "trades": ["TSLA"]})
            wait_for(lambda: proxy.upstream().reconciler.request is not None)
            proxy.simulator.drop("iex", "rst")
            for _ in range(2):
                scene.alpha.answer()
        proxy.simulator.slow_acks(0)


def _speaking(codec: str) -> dict[str, str]:
    return {"accounts": f'  main: {{{{key: key, secret: secret, data_url: "{{url}}", codec: {{{{iex: {codec}}}}}}}}}'}
