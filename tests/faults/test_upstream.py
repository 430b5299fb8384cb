"""Faults of Alpaca and of the network to it, each injected for real.

The assertions are about the algorithms: no connection ends, no message is missing before and after the fault, and
another feed is not affected.
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
import msgpack
import pytest

from proxy.alpaca.client_protocol import Backoff, Phase
from proxy.routing import reconciler
from proxy.simulator import AccountPlan, Simulator
from proxy.upstream import alpaca_connection, websocket
from tests.harness import SECONDS, Client, Harness, certificate, trade, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*"}}
  beta: {key: beta, secret: beta, allow: {iex: "*"}}
"""
TIMEOUTS = (alpaca_connection.PING_SECONDS, alpaca_connection.MUTE_SECONDS)
WANTED = {"trades": {"AAPL", "MSFT"}, "quotes": {"SPY"}}


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten timeouts of ten seconds to 0.1 s, and the others accordingly."""
    monkeypatch.setattr(alpaca_connection, "LOGIN_SECONDS", 0.1)
    monkeypatch.setattr(alpaca_connection, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(websocket, "DIAL_STEP_SECONDS", 0.1)
    monkeypatch.setattr(alpaca_connection, "PING_SECONDS", 0.1)
    monkeypatch.setattr(alpaca_connection, "MUTE_SECONDS", 0.2)
    monkeypatch.setattr(reconciler, "ACK_SECONDS", 0.05)
    monkeypatch.setattr(Backoff, "next", lambda self, refusal: 0.02)


@dataclass
class Scene:
    proxy: Harness
    alpha: Client
    beta: Client

    def failed(self, times: int = 2) -> None:
        """Wait until the connection is lost and was attempted more than `times` times."""
        simulator = self.proxy.simulator
        wait_for(lambda: len(simulator.attempts("iex")) > times and self.proxy.upstream().phase is not Phase.LIVE)

    def lost(self) -> None:
        wait_for(lambda: self.proxy.upstream().phase is not Phase.LIVE)


@contextmanager
def fault(proxy: Harness, codec: str = "msgpack") -> Iterator[Scene]:
    """Check a fault of the feed iex, with two algorithms on it and one on crypto."""
    alpha, beta = proxy.client("alpha"), proxy.client("beta", codec="msgpack")
    witness = proxy.client("alpha", "/v1beta3/crypto/us")
    alpha.subscribe(trades=["AAPL"], quotes=["SPY"])
    beta.subscribe(trades=["AAPL", "MSFT"])
    witness.subscribe(trades=["BTC/USD"])
    # Wait for Alpaca as well: with the short ACK_SECONDS, clients may be acknowledged before it confirms.
    wait_for(lambda: proxy.simulator.subscribed("iex") == WANTED)
    wait_for(lambda: proxy.simulator.subscribed("crypto") == {"trades": {"BTC/USD"}})
    proxy.publish("iex", "AAPL", 10)
    alpha.numbers("AAPL", 10)
    beta.numbers("AAPL", 10)
    received = len(alpha.frames), len(beta.frames)
    with proxy.undisturbed(witness, feed="crypto", symbol="BTC/USD"):
        yield Scene(proxy, alpha, beta)
        # The fault is over: a busy machine must not cause timeouts from here on. The fixture restores the values.
        alpaca_connection.LOGIN_SECONDS, alpaca_connection.MUTE_SECONDS = 10.0, TIMEOUTS[1]
        wait_for(lambda: proxy.simulator.subscribed("iex") == WANTED, "the subscriptions were not restored")
    proxy.publish("iex", "AAPL", 10)
    for client, before in zip((alpha, beta), received, strict=True):
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
    """Nothing listens at its address any more: the kernel refuses connections."""
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
    """The socket stays open, and nothing arrives, not even pongs."""
    assert TIMEOUTS[0] + TIMEOUTS[1] <= 30
    proxy = start(CLIENTS)
    with fault(proxy):
        proxy.simulator.mute("iex")
        wait_for(lambda: "no sign of life" in proxy.upstream().last_error)
        proxy.simulator.unmute("iex")
        wait_for(lambda: len(proxy.simulator.connections("iex")) == 1 and proxy.simulator.opened("iex") == 2)


def test_a_quiet_market_is_no_fault(start: Start) -> None:
    proxy = start(CLIENTS)
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    source = proxy.source()
    assert source is not None
    before = source.received_at
    wait_for(lambda: source.received_at > before + 0.5)
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
    """Confirmed topics flow on.

    The request is not repeated, and after the timeout the connection is replaced.
    """
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
    """409: the log-in is retried every five minutes.

    Topics that Alpaca has confirmed are kept. Others are refused, also for a client that was acknowledged meanwhile.
    """
    assert Backoff.NOT_SERVED == 300
    monkeypatch.setattr(Backoff, "NOT_SERVED", 0.2)
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


def test_the_account_is_still_in_use(start: Start) -> None:
    """The log-in is refused with 406 while a dead connection occupies the account.

    Alpaca keeps a connection for a while that ended without a close frame.
    """
    proxy = start(CLIENTS, plan=AccountPlan(ghost_seconds=0.5))
    with fault(proxy):
        proxy.simulator.drop("iex", "rst")
        wait_for(lambda: "406" in proxy.upstream().last_error)
        wait_for(lambda: any("406" in str(e) and "hint" in e.fields for e in proxy.gateway.snapshot().events))


def test_no_fast_retry_after_a_refusal(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a 406, the next attempt starts at least one second after the last."""
    monkeypatch.undo()
    proxy = start(CLIENTS, plan=AccountPlan(connections=0))
    client = proxy.client("alpha")
    assert client.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    wait_for(lambda: len(proxy.simulator.attempts("iex")) >= 2)
    first, second = proxy.simulator.attempts("iex")[:2]
    assert second - first >= 1


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("kind", ["not-json", "truncated", "unknown-kind"])
def test_malformed_message_is_skipped(start: Start, kind: str, codec: str) -> None:
    """A message that cannot be decoded is skipped, and the connection stays."""
    proxy = start(CLIENTS, config=_with_codec(codec))
    with fault(proxy):
        for _ in range(5):
            proxy.simulator.garbage("iex", kind)
        wait_for(lambda: proxy.upstream().malformed == 5 or kind == "unknown-kind")
        assert proxy.simulator.opened("iex") == 1


def test_a_text_that_is_not_utf8(start: Start) -> None:
    """Alpaca promises text, and msgpack does not: the message is passed on all the same."""
    proxy = start(CLIENTS, config=_with_codec("msgpack"))
    alpha, beta = proxy.client("alpha"), proxy.client("beta", codec="msgpack")
    for client in (alpha, beta):
        client.subscribe(trades=["AAPL"])
    body = msgpack.packb({"T": "t", "S": "AAPL", "i": 1, "x": b"caf\xe9", "z": "C"}, use_bin_type=False)
    proxy.simulator.publish_raw("iex", b"\x91" + body)
    assert alpha.gather(1) == [{"T": "t", "S": "AAPL", "i": 1, "x": "caf\ufffd", "z": "C"}]
    assert beta.ws.recv(timeout=SECONDS) == b"\x91" + body
    state = proxy.upstream().state()
    assert (state.irregular["invalid_text"], state.irregular["untranslatable"], state.malformed) == (1, 0, 0)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("kind", ["oversize", "masked", "bad-utf8"])
def test_invalid_frame_ends_the_connection(start: Start, kind: str, codec: str) -> None:
    """After a frame that breaks RFC 6455 or a bound, the connection is replaced.

    Clients are not affected.
    """
    proxy = start(CLIENTS, config=_with_codec(codec))
    with fault(proxy):
        proxy.simulator.garbage("iex", kind)
        wait_for(lambda: proxy.simulator.opened("iex") == 2)


def test_an_unknown_kind_reaches_clients_that_accept_it(start: Start) -> None:
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
def test_an_error_without_a_request(start: Start, code: int) -> None:
    proxy = start(CLIENTS)
    with fault(proxy):
        proxy.simulator.error("iex", code)
        proxy.simulator.publish("iex", [trade("MSFT", 1)])


@pytest.mark.parametrize("then", ["close", "fin"])
def test_alpaca_finds_us_slow(start: Start, then: str) -> None:
    """407 in the middle of the data, then the end; no client receives the error."""
    proxy = start(CLIENTS)
    with fault(proxy):
        proxy.simulator.error("iex", 407)
        proxy.simulator.drop("iex", then)
        wait_for(lambda: proxy.simulator.opened("iex") == 2)


@contextmanager
def second_account(start: Start, url: str) -> Iterator[tuple[Harness, Callable[[], str]]]:
    """A second account whose Alpaca is at this URL, beside one that works.

    Its clients are served all the same. Yields the proxy and a function that returns the connection's last error.
    """
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


def test_a_name_that_cannot_be_resolved(start: Start) -> None:
    with second_account(start, "wss://stream.alpaca.invalid") as (_, last_error):
        wait_for(lambda: "resolve" in last_error() or "not known" in last_error() or "resolution" in last_error())


def test_a_host_whose_first_address_is_dead(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at the first address (IPv6): the next is tried at once."""
    with socket.socket(socket.AF_INET6) as holder:
        holder.bind(("::1", 0))  # and does not listen
        dead = holder.getsockname()
        proxy = start(CLIENTS)
        port = int(proxy.simulator.url.rpartition(":")[2])
        addresses = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", dead),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        original = gevent.socket.getaddrinfo
        lookups = 0

        def getaddrinfo(host: str, service: int, *more: int) -> list[object]:
            nonlocal lookups
            lookups += service == port
            return addresses if service == port else original(host, service, *more)

        monkeypatch.setattr(gevent.socket, "getaddrinfo", getaddrinfo)
        with fault(proxy):
            proxy.simulator.drop("iex", "rst")
            wait_for(lambda: proxy.simulator.opened("iex") == 2)
        assert lookups >= 3


def test_a_tls_handshake_that_stalls(start: Start) -> None:
    """The peer accepts and sends nothing: the attempt times out and is repeated."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        with second_account(start, f"wss://127.0.0.1:{mute.getsockname()[1]}") as (_, last_error):
            first, _ = mute.accept()
            assert first.recv(1) == b"\x16"  # a TLS handshake record
            wait_for(lambda: "timed out" in last_error())
            again, _ = mute.accept()
        first.close()
        again.close()


def test_a_self_signed_certificate(start: Start, tmp_path: Path) -> None:
    """No key is sent to a server without a valid certificate for its name."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificate(tmp_path))
    with Simulator(tls=server) as impostor, second_account(start, impostor.url) as (_, last_error):
        wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in last_error())
        assert impostor.requests("iex") == []


def test_dropped_in_the_middle_of_a_request(start: Start) -> None:
    proxy = start(CLIENTS)
    with fault(proxy) as scene:
        proxy.simulator.slow_acks(0.05)
        for _ in range(5):
            scene.alpha.send_json({"action": "subscribe", "trades": ["TSLA"]})
            scene.alpha.send_json({"action": "unsubscribe", "trades": ["TSLA"]})
            wait_for(proxy.requests)
            proxy.simulator.drop("iex", "rst")
            for _ in range(2):
                scene.alpha.answer()
        proxy.simulator.slow_acks(0)


def _with_codec(codec: str) -> dict[str, str]:
    return {"accounts": f'  main: {{{{key: key, secret: secret, data_url: "{{url}}", codec: {{{{iex: {codec}}}}}}}}}'}
