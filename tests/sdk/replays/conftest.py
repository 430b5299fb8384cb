from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness import Wire
from tests.sdk.replays.peers import JAVA, LOGIN_SECONDS, Dial, Json
from tests.sdk.stand import SECONDS, Stand

CLIENTS = """\
  algo:
    key: algo
    secret: secret
    max_connections: 100
    allow:
      iex: "*"
      crypto: "*"
      crypto-eu-1: "*"
      crypto-perps-global: "*"
      news: "*"
      indicative: "*"
      opra: "*"
      trading: "*"
  single:
    key: single
    secret: secret
    max_connections: 1
    allow: {iex: "*"}
"""


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with Stand(tmp_path_factory.mktemp("replays"), CLIENTS) as stand:
        yield stand


@pytest.fixture(scope="session")
def transcoding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand whose proxy uses JSON with Alpaca and transcodes to msgpack."""
    account = ", codec: {iex: json, crypto: json, news: json}"
    with Stand(tmp_path_factory.mktemp("transcoding"), CLIENTS, account=account) as stand:
        yield stand


@pytest.fixture(scope="session", autouse=True)
def silent(stand: Stand) -> Iterator[tuple[float, Json]]:
    """The start time and client of a connection that does not log in."""
    wire = Wire(("127.0.0.1", stand.proxy.port), "/v2/iex", JAVA)
    wire.socket.settimeout(LOGIN_SECONDS + SECONDS)
    yield time.monotonic(), Json(wire)
    wire.socket.close()


@pytest.fixture
def dial(stand: Stand) -> Iterator[Dial]:
    """Open connections, which are closed after the test."""
    with ExitStack() as stack:

        def dial(path: str, headers: str, at: Stand = stand) -> Wire:
            wire = Wire(("127.0.0.1", at.proxy.port), path, headers)
            stack.callback(wire.socket.close)
            return wire

        yield dial
