"""How every SDK takes no for an answer: wrong secrets, places that are taken, feeds and symbols that it may not have,
log-ins that come too late, and Alpaca away. None may come back more than twice a second, or leave sockets behind, or be
killed by it; and what may go on does. docs/sdks.md shows who comes back after what.

All SDKs are refused at the same time, each by a proxy of its own, since most of it is waiting.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack

import gevent
import pytest
from gevent.pool import Pool
from websockets.sync.client import connect

from tests.harness import Client
from tests.sdk.algorithm import Algorithm
from tests.sdk.conftest import QUIET, Certificate, wanted
from tests.sdk.environments import Environments, InstallError
from tests.sdk.sdks import REFUSALS, REFUSED, Sdk
from tests.sdk.stand import START_AT_ONCE, Stand, wait_for
from tests.sdk.tap import Tap
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120, func_only=True)]

CLIENTS = """\
  algo:
    key: algo
    secret: secret
    allow: {iex: "*", trading: "*"}
  single-data:
    key: single-data
    secret: secret
    max_connections: 1
    allow: {iex: "*", trading: "*"}
  single-trading:
    key: single-trading
    secret: secret
    max_connections: 1
    allow: {iex: "*", trading: "*"}
  elsewhere:
    key: elsewhere
    secret: secret
    allow: {otc: "*"}
  narrow:
    key: narrow
    secret: secret
    allow: {iex: {trades: [AAPL]}}
"""

SECONDS = 13  # more than a log-in may take, so that what is left open shows
AT_ONCE = 12  # a socket that is refused stays open for up to 10 s, and the answer to each takes 1 s at least
HEAL_SECONDS = 30

EACH_STREAM = [(sdk, stream) for sdk in REFUSED for stream in (sdk.stocks, "trading")]
EACH_CASE = [(sdk, stream, case) for sdk, stream in EACH_STREAM for case in REFUSALS]
TAKES_PLACE = [(sdk, stream) for sdk, stream in EACH_STREAM if "406" not in sdk.gives_up.get(stream, ())]
each_sdk = pytest.mark.parametrize("sdk", REFUSED, ids=str)
each_case = pytest.mark.parametrize(("sdk", "stream", "case"), EACH_CASE, ids=str)


def single(stream: str) -> str:
    """The client that may have one connection, and has it already."""
    return "single-trading" if stream == "trading" else "single-data"


class Refused:
    """One SDK, refused in every way; `taps` by stream and case."""

    def __init__(self, sdk: Sdk, stand: Stand, algorithm: Algorithm, tls: ssl.SSLContext | None) -> None:
        self.sdk = sdk
        self.stand = stand
        self.algorithm = algorithm
        self.taps: dict[tuple[str, str], Tap] = {}
        self._tls = tls
        self._stack = ExitStack()
        self._places = ExitStack()

    def open(self, stream: str, case: str, key: str = "algo", secret: str = "secret") -> None:
        """Opens a stream through a tap of its own, with its first channel."""
        tap = self._stack.enter_context(Tap(self.stand.proxy.port, deaf=case == "404", tls=self._tls))
        self.taps[stream, case] = tap
        topics = {self.sdk.streams[stream][0]: [STREAMS[stream].symbol]}
        url = tap.url + STREAMS[stream].path
        self.algorithm.open(f"{stream} {case}", url, topics, kind=stream, key=key, secret=secret)

    def begin(self) -> None:
        """Lets it be refused."""
        self.stand.simulator.refuse_upgrade("trading", 503)
        self.open("trading", "outage")
        for stream in (self.sdk.stocks, "trading"):
            self._subscriber_at(stream)
            self.open(stream, "402", secret="wrong")
            self.open(stream, "404")
            self.open(stream, "406", key=single(stream))
            self.open(stream, "409", key="elsewhere")

    def hears(self, stream: str, case: str, channel: str) -> None:
        """Publishes until it hears something on this stream."""
        known, name = STREAMS[stream], f"{stream} {case}"
        before = len(self.algorithm.messages(name))

        def heard() -> bool:
            self.stand.simulator.publish(known.feed, [known.channels[channel](1)])
            return len(self.algorithm.messages(name)) > before

        wait_for(heard, lambda: f"{name} hears nothing; {self.algorithm.story()}")

    def relent(self) -> None:
        """Alpaca is there again, and the places that were taken are free."""
        self.stand.simulator.accept("trading")
        self._places.close()

    def close(self) -> None:
        self._places.close()
        self._stack.close()

    def _subscriber_at(self, stream: str) -> None:
        path = STREAMS[stream].path
        client = Client(self._places.enter_context(connect(self.stand.url + path, **QUIET)), "json", path == "/stream")
        if path != "/stream":
            client.receive()
        client.log_in(single(stream), "secret")


@pytest.fixture(scope="module")
def everyone(
    request: pytest.FixtureRequest,
    environments: Environments,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[Sdk, Refused]]:
    """Every SDK of this run that can be had, after it was refused for a while and is so no longer."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate.cert, certificate.key)
    with ExitStack() as stack:
        everyone: dict[Sdk, Refused] = {}

        def start(sdk: Sdk) -> None:
            try:
                driver = environments.driver(sdk)
            except InstallError:
                return
            stand = stack.enter_context(Stand(tmp_path_factory.mktemp(f"refused-{sdk}"), CLIENTS))
            algorithm = stack.enter_context(Algorithm(driver, certificate.variables))
            algorithm.ready()
            everyone[sdk] = Refused(sdk, stand, algorithm, tls if sdk.tls else None)
            stack.callback(everyone[sdk].close)

        Pool(START_AT_ONCE).map(start, [sdk for sdk in wanted(request.session) if sdk in REFUSED])
        for refused in everyone.values():
            refused.begin()
        gevent.sleep(SECONDS)
        for refused in everyone.values():
            refused.relent()
        yield everyone


@pytest.fixture
def refused(everyone: dict[Sdk, Refused], environments: Environments, sdk: Sdk) -> Refused:
    if sdk not in everyone:
        with pytest.raises(InstallError) as error:
            environments.driver(sdk)
        pytest.fail(str(error.value), pytrace=False)
    return everyone[sdk]


@each_case
def test_a_refused_login_is_no_storm(refused: Refused, stream: str, case: str) -> None:
    tap = refused.taps[stream, case]
    assert tap.spans, refused.algorithm.story()
    assert tap.most_within(1) <= 2
    assert tap.most_at_once() <= AT_ONCE


@each_case
def test_it_comes_back_unless_it_would_give_alpaca_up(refused: Refused, stream: str, case: str) -> None:
    tap = refused.taps[stream, case]
    if case in refused.sdk.gives_up.get(stream, ()):
        wait_for(lambda: tap.open == 0, "a socket stays open", HEAL_SECONDS)
        assert len(tap.spans) == 1
    else:
        wait_for(lambda: len(tap.spans) > 1, refused.algorithm.story, HEAL_SECONDS)


@pytest.mark.parametrize(("sdk", "stream"), TAKES_PLACE, ids=str)
def test_a_place_that_becomes_free_is_taken(refused: Refused, stream: str) -> None:
    feed = STREAMS[stream].counts_for or STREAMS[stream].feed
    wait_for(lambda: refused.stand.sessions(feed, single(stream)) == 1, refused.algorithm.story, HEAL_SECONDS)


@each_sdk
def test_alpaca_away_is_not_the_sdks_trouble(refused: Refused) -> None:
    """It connects once, while nothing can be had, and hears what comes when it can."""
    simulator = refused.stand.simulator
    wait_for(lambda: "trade_updates" in simulator.subscribed("trading"), "Alpaca was not asked", HEAL_SECONDS)
    refused.hears("trading", "outage", "trade_updates")
    assert len(refused.taps["trading", "outage"].spans) == 1


@pytest.mark.parametrize(("case", "key"), [("405", "algo"), ("unlisted", "narrow")])
@each_sdk
def test_a_refused_symbol_costs_nothing_else(refused: Refused, case: str, key: str) -> None:
    """The plan's limit (405) and the allowlist (409) refuse a request; what was had before goes on."""
    simulator, stream = refused.stand.simulator, refused.sdk.stocks
    simulator.refuse_symbols(["TSLA"])
    refused.open(stream, case, key=key)
    refused.hears(stream, case, "trades")
    asked = len(simulator.requests("iex"))
    refused.algorithm.subscribe(f"{stream} {case}", "quotes", "TSLA")
    if case == "405":
        wait_for(lambda: len(simulator.requests("iex")) > asked, "Alpaca was not asked")
    refused.hears(stream, case, "trades")
    assert "quotes" not in simulator.subscribed("iex")
    assert len(refused.taps[stream, case].spans) == 1


@each_sdk
def test_nothing_has_killed_it(refused: Refused) -> None:
    """Whoever gives up for good does so without an error of its own."""
    assert not refused.algorithm.over
    for event in refused.algorithm.events:
        assert event["event"] != "over" or not event["error"], event
