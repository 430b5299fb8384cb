from __future__ import annotations

import re
import shlex
import ssl
import subprocess
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.lock import BoundedSemaphore
from websockets.sync.client import connect

from tests.harness import Client
from tests.sdk.algorithm import Algorithm
from tests.sdk.environments import ROOT, Environments, cache
from tests.sdk.sdks import FOLLOWERS, SDKS, Sdk
from tests.sdk.stand import START_AT_ONCE, Stand, wait_for
from tests.sdk.table import Table
from tests.sdk.tape import STREAMS, Message

# A client of the tests' own says nothing by itself, and takes whatever comes.
QUIET: dict[str, Any] = {"compression": None, "close_timeout": 1, "ping_interval": None, "max_queue": None}


class Live:
    """An algorithm on one SDK, live on all the streams that it knows, and what it lives on."""

    def __init__(self, sdk: Sdk, stand: Stand, algorithm: Algorithm, trust: ssl.SSLContext | None = None) -> None:
        self.sdk = sdk
        self.stand = stand
        self.algorithm = algorithm
        self._trust = trust
        self._number = 100

    def symbol(self, stream: str) -> str:
        """What this SDK calls the symbol of a stream."""
        return self.sdk.symbols.get(stream, STREAMS[stream].symbol)

    def open(self, stream: str) -> None:
        """Opens a stream with all of its channels."""
        topics = {channel: [self.symbol(stream)] for channel in self.sdk.streams[stream]}
        self.algorithm.open(stream, self.stand.url + STREAMS[stream].path, topics)

    def publish(self, stream: str, channel: str) -> Message:
        """Publishes the next message of a channel, and returns it as it should be heard."""
        return self.publish_all(stream, [channel])[channel]

    def publish_all(self, stream: str, channels: Sequence[str]) -> dict[str, Message]:
        """The same for several, which come in one frame."""
        self._number += 1
        known = STREAMS[stream]
        messages = {channel: known.channels[channel](self._number) for channel in channels}
        self.stand.simulator.publish(known.feed, list(messages.values()))
        renamed = {"S": self.symbol(stream)} if stream == "crypto" else {}
        return {channel: message | renamed for channel, message in messages.items()}

    def asked(self, stream: str) -> list[str]:
        """The channels of a stream that are asked for by name; two others come with trades."""
        return [channel for channel in self.sdk.streams[stream] if channel not in FOLLOWERS]

    def settled(self, stream: str) -> bool:
        """Whether Alpaca has been asked for the algorithm's subscriptions of a stream."""
        held = self.stand.simulator.subscribed(STREAMS[stream].feed)
        return all(self.topic(stream) in held.get(channel, ()) for channel in self.asked(stream))

    def topic(self, stream: str) -> str:
        """What Alpaca calls what this SDK asks for."""
        symbol = self.symbol(stream)
        return {"BTCUSD": "BTC/USD"}.get(symbol, symbol)

    def connects(self, stream: str) -> int:
        """How many sessions ever authenticated where this stream's sessions count."""
        return self.stand.connects(STREAMS[stream].counts_for or STREAMS[stream].feed)

    def sessions(self, stream: str) -> int:
        """How many are open there now."""
        return self.stand.sessions(STREAMS[stream].counts_for or STREAMS[stream].feed)

    def expected_sessions(self, stream: str) -> int:
        """How many should be: one of each of its streams that count there, or of each of a program's channels."""
        feed = STREAMS[stream].counts_for or STREAMS[stream].feed
        counted = [each for each in self.sdk.streams if (STREAMS[each].counts_for or STREAMS[each].feed) == feed]
        return sum(len(self.sdk.streams[each]) if self.sdk.program else 1 for each in counted)

    def why(self, stream: str) -> str:
        """For a test that fails because a stream is not settled."""
        held = self.stand.simulator.subscribed(STREAMS[stream].feed)
        return f"{stream} is subscribed to {held} alone; {self.algorithm.story()}"

    @contextmanager
    def witness(self, stream: str, channel: str) -> Iterator[Client]:
        """Another algorithm that holds one channel of a stream, whatever it is called by this SDK."""
        known = STREAMS["stocks" if stream == "legacy" else stream]
        codec = "msgpack" if stream == "options" else "json"
        with connect(self.stand.url + known.path, ssl=self._trust, **QUIET) as ws:
            client = Client(ws, codec, trading=False)
            client.receive()
            client.log_in("algo", "algo-secret")
            assert client.subscribe(**{channel: [known.symbol]})[channel] == [known.symbol]
            yield client


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of this machine's own, for 127.0.0.1."""

    cert: Path
    key: Path

    @property
    def variables(self) -> dict[str, str]:
        """What makes a program trust it."""
        return {"NODE_EXTRA_CA_CERTS": str(self.cert)}

    @property
    def context(self) -> ssl.SSLContext:
        """What trusts it."""
        return ssl.create_default_context(cafile=str(self.cert))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Made as README says."""
    folder = tmp_path_factory.mktemp("tls")
    command = [word for word in shlex.split(recipe("sh", "openssl")) if word != "\n"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return Certificate(folder / "server.crt", folder / "server.key")


def recipe(language: str, word: str) -> str:
    """The code in README that is in this language and begins with this word."""
    readme = (ROOT / "README.md").read_text("utf-8")
    [found] = re.findall(rf"^```{language}\n({re.escape(word)}.*?)^```", readme, re.MULTILINE | re.DOTALL)
    code: str = found
    return code


class Lives:
    """A `Live` for each SDK. They begin at the same time, each as soon as it is installed."""

    def __init__(self, environments: Environments, certificate: Certificate, folders: pytest.TempPathFactory) -> None:
        self._environments = environments
        self._certificate = certificate
        self._folders = folders
        self._stack = ExitStack()
        self._starting = BoundedSemaphore(START_AT_ONCE)
        self._sending: dict[Sdk, gevent.Greenlet] = {}

    def begin(self, sdks: Sequence[Sdk]) -> None:
        for sdk in sdks:
            self._sending[sdk] = gevent.spawn(self._begin, sdk)

    def of(self, sdk: Sdk) -> Live:
        """Fails the test that asks if it cannot be had."""
        begun = self._sending[sdk]
        begun.join()
        if not begun.successful():
            pytest.fail(f"{sdk} cannot begin: {begun.exception}", pytrace=False)
        live: Live = begun.value
        return live

    def all(self) -> list[Live]:
        """Those that can be had."""
        gevent.joinall([*self._sending.values()])
        return [begun.value for begun in self._sending.values() if begun.successful()]

    def close(self) -> None:
        gevent.joinall([*self._sending.values()])
        self._stack.close()

    def _begin(self, sdk: Sdk) -> Live:
        driver = self._environments.driver(sdk)
        tls = (self._certificate.cert, self._certificate.key) if sdk.tls else None
        with self._starting:
            algorithm = self._stack.enter_context(Algorithm(driver, self._certificate.variables))
            stand = self._stack.enter_context(Stand(self._folders.mktemp(str(sdk)), tls=tls))
            algorithm.ready()
        live = Live(sdk, stand, algorithm, self._certificate.context if sdk.tls else None)
        for stream in sdk.streams:
            live.open(stream)
        for stream in sdk.streams:
            wait_for(partial(live.settled, stream), partial(live.why, stream))
        return live


def wanted(session: pytest.Session) -> list[Sdk]:
    """The SDKs that tests of this run are about."""
    asked = {sdk_of(item) for item in session.items}
    return [sdk for sdk in SDKS if sdk in asked]


def sdk_of(item: pytest.Item) -> Sdk | None:
    sdk: Sdk | None = item.callspec.params.get("sdk") if hasattr(item, "callspec") else None
    return sdk


@pytest.fixture(scope="session")
def environments(request: pytest.FixtureRequest) -> Iterator[Environments]:
    """Every SDK that this run needs is being installed from the first test that needs one on."""
    environments = Environments(cache())
    environments.prepare(wanted(request.session))
    yield environments
    environments.close()


@pytest.fixture(scope="module")
def lives(
    request: pytest.FixtureRequest,
    environments: Environments,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lives]:
    lives = Lives(environments, certificate, tmp_path_factory)
    lives.begin(wanted(request.session))
    yield lives
    lives.close()


@pytest.fixture
def live(lives: Lives, sdk: Sdk) -> Live:
    """An algorithm on this SDK, live on all of its streams."""
    return lives.of(sdk)


@pytest.fixture(scope="session", autouse=True)
def early(request: pytest.FixtureRequest) -> None:
    """SDKs are being installed while tests run that need none of them."""
    if wanted(request.session):
        request.getfixturevalue("environments")


MODULES = ("streams", "refusals", "together", "recipes")  # in this order, after those that need nothing installed


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: MODULES.index(module) if (module := module_of(item)) in MODULES else -1)


def module_of(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_")


TABLE = pytest.StashKey[Table]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("sdk") and (report.when == "call" or report.failed):
        table = item.config.stash.setdefault(TABLE, Table())
        sdk, kind = sdk_of(item), module_of(item)
        if sdk is None:
            table.record(kind, [""], report.passed)
        elif kind == "streams":
            table.record(str(sdk), stream_of(item) or sdk.streams, report.passed)
        else:
            table.record(str(sdk), [kind], report.passed)
    return report


def stream_of(item: pytest.Item) -> list[str]:
    """The one stream that a test is about, if it is about one."""
    stream = item.callspec.params.get("stream") if hasattr(item, "callspec") else None
    return [] if stream is None else [stream]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash.get(TABLE, None)
    if table is None:
        return
    terminalreporter.section("SDKs")
    for line in table.lines():
        terminalreporter.write_line(line)
