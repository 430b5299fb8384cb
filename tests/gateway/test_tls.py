"""The client port with TLS: sessions as without it, and faulty handshakes."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from proxy.transport import listener
from tests.harness import CLOSE, CONNECTED, Client, Harness, certificate, trade, wait_for

Start = Callable[..., Harness]

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*"}}
  beta: {key: beta, secret: beta, outbox: 256KiB, allow: {iex: "*"}}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def proxy(start: Start, files: tuple[Path, Path]) -> Harness:
    cert, key = files
    return start(CLIENTS, config={"listen": f'tls: {{cert: "{cert}", key: "{key}"}}'})


@pytest.fixture
def trust(files: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files[0]))


@pytest.fixture
def witness(proxy: Harness, trust: ssl.SSLContext) -> Iterator[Client]:
    client = log_in(proxy, trust, "alpha")
    client.subscribe(trades=["AAPL"])
    with proxy.undisturbed(client):
        yield client


def log_in(proxy: Harness, trust: ssl.SSLContext, key: str) -> Client:
    client = proxy.dial(ssl=trust)
    assert client.receive() == CONNECTED
    return client.log_in(key)


def test_a_session(proxy: Harness, trust: ssl.SSLContext) -> None:
    client = log_in(proxy, trust, "alpha")
    assert client.subscribe(trades=["AAPL"])["trades"] == ["AAPL"]
    proxy.simulator.publish("iex", [trade("AAPL", 1)])
    assert client.receive() == [trade("AAPL", 1)]
    assert client.ws.ping().wait(5)
    proxy.gateway.stop()
    assert client.closed() == (1001, "the proxy is shutting down")


@pytest.mark.usefixtures("witness")
def test_joins_and_leaves(proxy: Harness, trust: ssl.SSLContext) -> None:
    for _ in range(5):
        client = log_in(proxy, trust, "beta")
        client.subscribe(trades=["AAPL"])
        client.gather(20)
        client.ws.close()


@pytest.mark.usefixtures("witness")
def test_old_versions_are_refused(proxy: Harness, trust: ssl.SSLContext) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        trust.minimum_version = trust.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError), socket.create_connection(proxy.address, 5) as plain:
        trust.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("sent", [b"", b"GET /v2/iex HTTP/1.1\r\n\r\n", b"\x16\x03\x01", bytes(5000)])
def test_data_that_is_no_handshake(proxy: Harness, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """The connection ends at the deadline at the latest, and no error is logged."""
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.2)
    with socket.create_connection(proxy.address, 5) as plain:
        plain.sendall(sent)
        wait_for(lambda: proxy.gateway.server.unauthenticated == 0)


@pytest.mark.usefixtures("witness")
def test_stops_reading(proxy: Harness, trust: ssl.SSLContext) -> None:
    """A writer that waits for a TLS socket delays no other session.

    The client gets 407 when it reads on.
    """
    slow = proxy.wire(buffer=4096, trust=trust).log_in("beta", trades=["FAT"])
    [session] = [c for c in proxy.gateway.server.sessions if c.name == "beta"]
    number = 0
    while not session.outbox.slow:
        number += 1
        proxy.simulator.publish("iex", [trade("FAT", number, pad="x" * 20_000)])
        gevent.sleep(0.001)
    *data, last, close = slow.rest()
    numbers = [message["i"] for _, payload in data for message in json.loads(payload)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert b"slow client" in last[1]
    assert close[0] == CLOSE
