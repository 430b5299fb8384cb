from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
from websockets.sync.client import connect

from tests.harness import Client
from tests.sdk.algorithm import Algorithm
from tests.sdk.environments import FOLLOWERS, SDKS, Environments, Sdk, cache
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STREAMS, Message


@pytest.fixture(scope="session")
def environments(request: pytest.FixtureRequest) -> Iterator[Environments]:
    """Every SDK that this run needs is being installed from the first test on."""
    environments = Environments(cache())
    wanted = [item.callspec.params.get("sdk") for item in request.session.items if hasattr(item, "callspec")]
    environments.prepare(sdk for sdk in SDKS if sdk in wanted)
    yield environments
    environments.close()


class Live:
    """An algorithm on one SDK, live on all the streams that it knows, and what it lives on."""

    def __init__(self, sdk: Sdk, stand: Stand, algorithm: Algorithm) -> None:
        self.sdk = sdk
        self.stand = stand
        self.algorithm = algorithm
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
        renamed = {"S": self.symbol(stream)} if stream in self.sdk.symbols else {}
        return {channel: message | renamed for channel, message in messages.items()}

    def asked(self, stream: str) -> list[str]:
        """The channels of a stream that are asked for by name; two others come with trades."""
        return [channel for channel in self.sdk.streams[stream] if channel not in FOLLOWERS]

    def settled(self, stream: str) -> bool:
        """Whether Alpaca has been asked for the algorithm's subscriptions of a stream."""
        known = STREAMS[stream]
        return self.stand.subscribed(known.feed, {channel: [known.symbol] for channel in self.asked(stream)})

    def why(self, stream: str) -> str:
        """For a test that fails because a stream is not settled."""
        held = self.stand.simulator.subscribed(STREAMS[stream].feed)
        return f"{stream} is subscribed to {held} alone; {self.algorithm.story()}"

    @contextmanager
    def witness(self, stream: str, channel: str) -> Iterator[Client]:
        """Another algorithm that holds one channel of a stream."""
        known = STREAMS[stream]
        codec = "msgpack" if stream == "options" else "json"
        with connect(self.stand.url + known.path, compression=None, close_timeout=1) as ws:
            client = Client(ws, codec, trading=False)
            client.hear()
            client.log_in("algo", "algo-secret")
            assert client.subscribe(**{channel: [known.symbol]})[channel] == [known.symbol]
            yield client


@pytest.fixture(scope="session")
def live(
    request: pytest.FixtureRequest, environments: Environments, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    sdk: Sdk = request.param
    command = environments.command(sdk)
    with Stand(tmp_path_factory.mktemp(str(sdk))) as stand, Algorithm(command) as algorithm:
        algorithm.ready()
        live = Live(sdk, stand, algorithm)
        for stream in sdk.streams:
            live.open(stream)
        for stream in sdk.streams:
            wait_for(partial(live.settled, stream), partial(live.why, stream))
        yield live
