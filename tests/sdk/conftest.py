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
from tests.sdk.sdks import IMPLIED_CHANNELS, PROGRAMS, SDKS, Sdk
from tests.sdk.stand import START_AT_ONCE, Stand, wait_for
from tests.sdk.table import OTHERS, Table
from tests.sdk.tape import STREAMS, Message

# The tests' own client sends nothing unasked and queues everything it receives.
QUIET: dict[str, Any] = {"compression": None, "close_timeout": 1, "ping_interval": None, "max_queue": None}


class Live:
    """A running algorithm on one SDK, subscribed on all its streams, with its stand."""

    def __init__(self, sdk: Sdk, stand: Stand, algorithm: Algorithm, trust: ssl.SSLContext | None = None) -> None:
        self.sdk = sdk
        self.stand = stand
        self.algorithm = algorithm
        self._trust = trust
        self._number = 100

    def symbol(self, stream: str) -> str:
        """The symbol of a stream in this SDK's spelling."""
        return self.sdk.symbols.get(stream, STREAMS[stream].symbol)

    def open(self, stream: str) -> None:
        """Open a stream with all of its channels."""
        topics = {channel: [self.symbol(stream)] for channel in self.sdk.streams[stream]}
        self.algorithm.open(stream, self.stand.url + STREAMS[stream].path, topics)

    def publish(self, stream: str, channel: str) -> Message:
        """Publish the next message of a channel; return it as the SDK should receive it."""
        return self.publish_all(stream, [channel])[channel]

    def publish_all(self, stream: str, channels: Sequence[str]) -> dict[str, Message]:
        """Publish the next message of each channel in one frame.

        Return them as the SDK should receive them.
        """
        self._number += 1
        tape = STREAMS[stream]
        messages = {channel: tape.channels[channel](self._number) for channel in channels}
        self.stand.simulator.publish(tape.feed, list(messages.values()))
        symbol = {"S": self.symbol(stream)} if stream == "crypto" else {}
        return {channel: message | symbol for channel, message in messages.items()}

    def requested(self, stream: str) -> list[str]:
        """The channels of a stream that are requested by name.

        IMPLIED_CHANNELS come with trades.
        """
        return [channel for channel in self.sdk.streams[stream] if channel not in IMPLIED_CHANNELS]

    def settled(self, stream: str) -> bool:
        """Whether Alpaca has all of the algorithm's subscriptions of a stream."""
        subscribed = self.stand.simulator.subscribed(STREAMS[stream].feed)
        return all(self.topic(stream) in subscribed.get(channel, ()) for channel in self.requested(stream))

    def topic(self, stream: str) -> str:
        """The symbol of a stream in Alpaca's spelling."""
        symbol = self.symbol(stream)
        return {"BTCUSD": "BTC/USD"}.get(symbol, symbol)

    def connects(self, stream: str) -> int:
        """The number of log-ins so far on the feed that this stream counts for."""
        return self.stand.connects(STREAMS[stream].counts_for or STREAMS[stream].feed)

    def sessions(self, stream: str) -> int:
        """The number of open sessions on the feed that this stream counts for."""
        return self.stand.sessions(STREAMS[stream].counts_for or STREAMS[stream].feed)

    def expected_sessions(self, stream: str) -> int:
        """The expected number: one for each stream that counts for the feed.

        For a program it is one for each channel.
        """
        feed = STREAMS[stream].counts_for or STREAMS[stream].feed
        counted = [name for name in self.sdk.streams if (STREAMS[name].counts_for or STREAMS[name].feed) == feed]
        return sum(len(self.sdk.streams[name]) if self.sdk.program else 1 for name in counted)

    def unsettled(self, stream: str) -> str:
        """The failure message for a stream that is not settled."""
        subscribed = self.stand.simulator.subscribed(STREAMS[stream].feed)
        return f"{stream} is subscribed only to {subscribed}; {self.algorithm.story()}"

    @contextmanager
    def witness(self, stream: str, channel: str) -> Iterator[Client]:
        """Another client that is subscribed to one channel of a stream."""
        tape = STREAMS["stocks" if stream == "legacy" else stream]
        codec = "msgpack" if stream == "options" else "json"
        with connect(self.stand.url + tape.path, ssl=self._trust, **QUIET) as ws:
            client = Client(ws, codec, trading=False)
            client.receive()
            client.log_in("algo", "algo-secret")
            assert client.subscribe(**{channel: [tape.symbol]})[channel] == [tape.symbol]
            yield client


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1."""

    cert: Path
    key: Path

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that make Node trust it."""
        return {"NODE_EXTRA_CA_CERTS": str(self.cert)}

    @property
    def context(self) -> ssl.SSLContext:
        """A client's TLS context that trusts it."""
        return ssl.create_default_context(cafile=str(self.cert))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate made with the command of docs/sdks.md."""
    folder = tmp_path_factory.mktemp("tls")
    command = [word for word in shlex.split(recipe("sh", "openssl")) if word != "\n"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return Certificate(folder / "server.crt", folder / "server.key")


def recipe(language: str, word: str) -> str:
    """The code block of docs/sdks.md in this language that begins with this word."""
    page = (ROOT / "docs" / "sdks.md").read_text("utf-8")
    [block] = re.findall(rf"^```{language}\n({re.escape(word)}.*?)^```", page, re.MULTILINE | re.DOTALL)
    code: str = block
    return code


class Lives:
    """A `Live` for each SDK.

    They start concurrently, each as soon as its SDK is installed.
    """

    def __init__(self, environments: Environments, certificate: Certificate, folders: pytest.TempPathFactory) -> None:
        self._environments = environments
        self._certificate = certificate
        self._folders = folders
        self._stack = ExitStack()
        self._starting = BoundedSemaphore(START_AT_ONCE)
        self._started: dict[Sdk, gevent.Greenlet] = {}

    def begin(self, sdks: Sequence[Sdk]) -> None:
        for sdk in sdks:
            self._started[sdk] = gevent.spawn(self._start, sdk)

    def of(self, sdk: Sdk) -> Live:
        """The SDK's `Live`; the calling test fails if it could not be started."""
        start = self._started[sdk]
        start.join()
        if not start.successful():
            pytest.fail(f"{sdk} cannot start: {start.exception}", pytrace=False)
        live: Live = start.value
        return live

    def all(self) -> list[Live]:
        """Every `Live` that could be started."""
        gevent.joinall([*self._started.values()])
        return [start.value for start in self._started.values() if start.successful()]

    def close(self) -> None:
        gevent.joinall([*self._started.values()])
        self._stack.close()

    def _start(self, sdk: Sdk) -> Live:
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
            wait_for(partial(live.settled, stream), partial(live.unsettled, stream))
        return live


def wanted(session: pytest.Session) -> list[Sdk]:
    """The SDKs that the selected tests need."""
    needed = {sdk_of(item) for item in session.items}
    return [sdk for sdk in SDKS if sdk in needed]


def sdk_of(item: pytest.Item) -> Sdk | None:
    """The SDK that a test is parametrized with, if any."""
    sdk: Sdk | None = item.callspec.params.get("sdk") if hasattr(item, "callspec") else None
    return sdk


@pytest.fixture(scope="session")
def environments(request: pytest.FixtureRequest) -> Iterator[Environments]:
    """The environments of all SDKs that this run needs.

    Their installation starts here.
    """
    environments = Environments(cache())
    environments.prepare(wanted(request.session))
    if any(module_of(item) == "orders" for item in request.session.items):
        environments.prepare([sdk for sdk in SDKS if sdk.name == "alpaca-py"][:1])
    if any(module_of(item) == "programs" for item in request.session.items):
        environments.prepare(PROGRAMS)
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
    """The running algorithm on this SDK."""
    return lives.of(sdk)


@pytest.fixture(scope="session", autouse=True)
def start_installing_early(request: pytest.FixtureRequest) -> None:
    """Start to install SDKs at once, while tests run that need none of them."""
    if wanted(request.session):
        request.getfixturevalue("environments")


MODULES = (
    "streams",
    "refusals",
    "together",
    "recipes",
    "programs",
    "examples",
)  # run in this order, after those that need no SDK


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
        if kind == "programs":
            table.record(OTHERS, stream_of(item), report.passed)
        elif sdk is None:
            table.record(kind, [""], report.passed)
        elif kind == "streams":
            table.record(str(sdk), stream_of(item) or sdk.streams, report.passed)
        else:
            table.record(str(sdk), [kind], report.passed)
    return report


def stream_of(item: pytest.Item) -> list[str]:
    """The stream that a test is parametrized with, as a list of one or none."""
    stream = item.callspec.params.get("stream") if hasattr(item, "callspec") else None
    return [] if stream is None else [stream]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash.get(TABLE, None)
    if table is None:
        return
    terminalreporter.section("SDKs")
    for line in table.lines():
        terminalreporter.write_line(line)
