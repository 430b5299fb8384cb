"""Every SDK's reaction to refusals.

The refusals are: wrong secrets, no free connection slot, feeds and symbols that are not allowed, late log-ins, and
outages of Alpaca. No SDK may reconnect more than twice a second, leave sockets behind or crash, and its other
subscriptions must go on. docs/sdks.md lists the refusals after which each SDK reconnects.

All SDKs are refused at the same time, each by its own proxy, since the test mostly waits.
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

SECONDS = 13  # longer than the log-in deadline, so that sockets left open are detected
AT_ONCE = 12  # a refused socket stays open for up to 10 s, and each refusal takes at least 1 s
HEAL_SECONDS = 30

EACH_STREAM = [(sdk, stream) for sdk in REFUSED for stream in (sdk.stocks, "trading")]
EACH_CASE = [(sdk, stream, case) for sdk, stream in EACH_STREAM for case in REFUSALS]
RETRIES_406 = [(sdk, stream) for sdk, stream in EACH_STREAM if "406" not in sdk.gives_up.get(stream, ())]
each_sdk = pytest.mark.parametrize("sdk", REFUSED, ids=str)
each_case = pytest.mark.parametrize(("sdk", "stream", "case"), EACH_CASE, ids=str)


def single(stream: str) -> str:
    """The client whose only connection slot is taken."""
    return "single-trading" if stream == "trading" else "single-data"


class Refused:
    """One SDK, refused in every way; `taps` is by stream and case."""

    def __init__(self, sdk: Sdk, stand: Stand, algorithm: Algorithm, tls: ssl.SSLContext | None) -> None:
        self.sdk = sdk
        self.stand = stand
        self.algorithm = algorithm
        self.taps: dict[tuple[str, str], Tap] = {}
        self._tls = tls
        self._stack = ExitStack()
        self._slots = ExitStack()

    def open(self, stream: str, case: str, key: str = "algo", secret: str = "secret") -> None:
        """Open a stream through its own tap, with its first channel."""
        tap = self._stack.enter_context(Tap(self.stand.proxy.port, head_only=case == "404", tls=self._tls))
        self.taps[stream, case] = tap
        topics = {self.sdk.streams[stream][0]: [STREAMS[stream].symbol]}
        url = tap.url + STREAMS[stream].path
        self.algorithm.open(f"{stream} {case}", url, topics, kind=stream, key=key, secret=secret)

    def begin(self) -> None:
        """Open a stream for each case of refusal."""
        self.stand.simulator.refuse_upgrade("trading", 503)
        self.open("trading", "outage")
        for stream in (self.sdk.stocks, "trading"):
            self._take_slot(stream)
            self.open(stream, "402", secret="wrong")
            self.open(stream, "404")
            self.open(stream, "406", key=single(stream))
            self.open(stream, "409", key="elsewhere")

    def check_receives(self, stream: str, case: str, channel: str) -> None:
        """Publish until it receives a message on this stream."""
        tape, name = STREAMS[stream], f"{stream} {case}"
        before = len(self.algorithm.messages(name))

        def received() -> bool:
            self.stand.simulator.publish(tape.feed, [tape.channels[channel](1)])
            return len(self.algorithm.messages(name)) > before

        wait_for(received, lambda: f"{name} receives nothing; {self.algorithm.story()}")

    def end_refusals(self) -> None:
        """End Alpaca's outage and free the taken connection slots."""
        self.stand.simulator.accept("trading")
        self._slots.close()

    def close(self) -> None:
        self._slots.close()
        self._stack.close()

    def _take_slot(self, stream: str) -> None:
        """Take the only connection slot of the client `single(stream)`."""
        path = STREAMS[stream].path
        client = Client(self._slots.enter_context(connect(self.stand.url + path, **QUIET)), "json", path == "/stream")
        if path != "/stream":
            client.receive()
        client.log_in(single(stream), "secret")


@pytest.fixture(scope="module")
def refused_sdks(
    request: pytest.FixtureRequest,
    environments: Environments,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[Sdk, Refused]]:
    """Every installed SDK of this run, after SECONDS of refusals."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate.cert, certificate.key)
    with ExitStack() as stack:
        refused_sdks: dict[Sdk, Refused] = {}

        def start(sdk: Sdk) -> None:
            try:
                driver = environments.driver(sdk)
            except InstallError:
                return
            stand = stack.enter_context(Stand(tmp_path_factory.mktemp(f"refused-{sdk}"), CLIENTS))
            algorithm = stack.enter_context(Algorithm(driver, certificate.variables))
            algorithm.ready()
            refused_sdks[sdk] = Refused(sdk, stand, algorithm, tls if sdk.tls else None)
            stack.callback(refused_sdks[sdk].close)

        Pool(START_AT_ONCE).map(start, [sdk for sdk in wanted(request.session) if sdk in REFUSED])
        for refused in refused_sdks.values():
            refused.begin()
        gevent.sleep(SECONDS)
        for refused in refused_sdks.values():
            refused.end_refusals()
        yield refused_sdks


@pytest.fixture
def refused(refused_sdks: dict[Sdk, Refused], environments: Environments, sdk: Sdk) -> Refused:
    if sdk not in refused_sdks:
        with pytest.raises(InstallError) as error:
            environments.driver(sdk)
        pytest.fail(str(error.value), pytrace=False)
    return refused_sdks[sdk]


@each_case
def test_a_refused_login_causes_no_reconnect_storm(refused: Refused, stream: str, case: str) -> None:
    tap = refused.taps[stream, case]
    assert tap.spans, refused.algorithm.story()
    assert tap.most_within(1) <= 2
    assert tap.most_at_once() <= AT_ONCE


@each_case
def test_it_reconnects_unless_it_gives_up_at_alpaca_too(refused: Refused, stream: str, case: str) -> None:
    tap = refused.taps[stream, case]
    if case in refused.sdk.gives_up.get(stream, ()):
        wait_for(lambda: tap.open == 0, "a socket stays open", HEAL_SECONDS)
        assert len(tap.spans) == 1
    else:
        wait_for(lambda: len(tap.spans) > 1, refused.algorithm.story, HEAL_SECONDS)


@pytest.mark.parametrize(("sdk", "stream"), RETRIES_406, ids=str)
def test_a_slot_that_becomes_free_is_taken(refused: Refused, stream: str) -> None:
    feed = STREAMS[stream].counts_for or STREAMS[stream].feed
    wait_for(lambda: refused.stand.sessions(feed, single(stream)) == 1, refused.algorithm.story, HEAL_SECONDS)


@each_sdk
def test_an_outage_of_alpaca_does_not_disconnect_it(refused: Refused) -> None:
    """It connects once, during the outage, and receives messages after it."""
    simulator = refused.stand.simulator
    wait_for(lambda: "trade_updates" in simulator.subscribed("trading"), "nothing was subscribed", HEAL_SECONDS)
    refused.check_receives("trading", "outage", "trade_updates")
    assert len(refused.taps["trading", "outage"].spans) == 1


@pytest.mark.parametrize(("case", "key"), [("405", "algo"), ("unlisted", "narrow")])
@each_sdk
def test_a_refused_symbol_leaves_other_subscriptions(refused: Refused, case: str, key: str) -> None:
    """The plan's limit (405) and the allowlist (409) refuse a request.

    Earlier subscriptions go on.
    """
    simulator, stream = refused.stand.simulator, refused.sdk.stocks
    simulator.refuse_symbols(["TSLA"])
    refused.open(stream, case, key=key)
    refused.check_receives(stream, case, "trades")
    before = len(simulator.requests("iex"))
    refused.algorithm.subscribe(f"{stream} {case}", "quotes", "TSLA")
    if case == "405":
        wait_for(lambda: len(simulator.requests("iex")) > before, "no request was sent to Alpaca")
    refused.check_receives(stream, case, "trades")
    assert "quotes" not in simulator.subscribed("iex")
    assert len(refused.taps[stream, case].spans) == 1


@each_sdk
def test_it_has_not_crashed(refused: Refused) -> None:
    """An SDK that gives up for good does so without an exception."""
    assert not refused.algorithm.over
    for event in refused.algorithm.events:
        assert event["event"] != "over" or not event["error"], event
