"""Outages rehearsed with the real program: each option of `simulate`, mostly with the proxy in between."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from proxy.alpaca.client_protocol import Phase
from proxy.cli.parser import FAULTS
from proxy.config import model as configuration
from proxy.gateway import Gateway
from tests.harness import AUTHENTICATED, CONNECTED, Client, Process, dial, wait_for

CONFIG = """\
listen: {port: 0}
admin: {port: 0}
accounts:
  main: {key: key, secret: secret, data_url: "URL", trading_url: "URL"}
clients:
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*", trading: {trade_updates: ["*"]}}}
"""
PROGRAMS = {
    "drop": ("--drop", "0.4", "--rate", "200"),
    "refuse": ("--refuse", "406"),
    "stall": ("--stall", "auth", "--feeds", "iex", "--rate", "200"),
    "silence": ("--silence", "--feeds", "iex", "--symbol-limit", "2", "--rest", "500"),
}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URLs of one `simulate` for each of PROGRAMS, which start side by side."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("simulate")
        started = {
            name: stack.enter_context(Process("simulate", "--port", "0", *options, folder=folder))
            for name, options in PROGRAMS.items()
        }
        for process in started.values():
            wait_for(lambda process=process: "Ctrl-C ends it." in process.text, "no address")
        yield {name: re.findall(r"ws://[\d.:]+", process.text)[0] for name, process in started.items()}


@pytest.fixture
def proxy(quick: None) -> Iterator[Callable[[str], Gateway]]:
    """Start a proxy whose only account is at a URL."""
    with ExitStack() as stack:

        def start(url: str) -> Gateway:
            gateway = Gateway(configuration.parse(CONFIG.replace("URL", url), "proxy.yaml", os.environ, Path()))
            gateway.start()
            stack.callback(gateway.stop, 0.5)
            return gateway

        yield start


def connect(gateway: Gateway, path: str = "/v2/iex") -> Client:
    client = dial(gateway.server.address, path)
    assert client.receive() == CONNECTED
    return client.log_in("alpha")


def bare(url: str, path: str = "/v2/iex") -> Client:
    """A client of the simulator itself."""
    host, port = url.removeprefix("ws://").split(":")
    return dial((host, int(port)), path)


def post(url: str, query: str) -> None:
    """Change the faults as the documentation's `curl -X POST` does."""
    with urlopen(Request(f"{url.replace('ws', 'http', 1)}/faults?{query}", method="POST"), timeout=5) as response:
        assert response.status == 200


def test_every_option_is_tried_here() -> None:
    tried = {option for options in PROGRAMS.values() for option in options if option.startswith("--")}
    assert tried == {f"--{name}" for name, _, _ in FAULTS}


def test_drop(urls: dict[str, str], proxy: Callable[[str], Gateway]) -> None:
    """The proxy reconnects again and again; its client stays and gets the data in between."""
    gateway = proxy(urls["drop"])
    with connect(gateway) as client:
        assert client.subscribe(quotes=["*"]) == {"quotes": ["*"]}
        upstream = gateway.upstreams["main", "iex"]
        for connects in (2, 3):
            while upstream.connects < connects:
                client.receive()
        before = len(client.data)
        client.gather(before + 20)
        assert client.ws.close_code is None


def test_rate(urls: dict[str, str]) -> None:
    with bare(urls["stall"], "/v1beta1/indicative") as client:
        client.receive()
        client.log_in("key", "secret").subscribe(trades=["*"])
        client.gather(1)
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            client.receive()
        rate = len(client.data) / (time.monotonic() - began)
        assert rate > 20  # every fifth of 200 changes is a trade; at the default rate of 20 that would be 4


def test_refuse(urls: dict[str, str], proxy: Callable[[str], Gateway]) -> None:
    """The proxy names the reason, keeps its client, and delivers as soon as it is let in."""
    gateway = proxy(urls["refuse"])
    with connect(gateway) as client:
        client.send_json({"action": "subscribe", "quotes": ["*"]})
        wait_for(lambda: "connection limit exceeded" in str(gateway.snapshot().feeds[0].last_error), "no reason")
        assert not gateway.snapshot().ready
        post(urls["refuse"], "refuse=off")
        client.gather(1)
        assert gateway.upstreams["main", "iex"].phase is Phase.LIVE


def test_stall(urls: dict[str, str]) -> None:
    """A log-in has no answer until the stall ends; feeds that are not named go on."""
    with bare(urls["stall"]) as stalled, bare(urls["stall"], "/v1beta3/crypto/us") as other:
        for client in (stalled, other):
            assert client.receive() == CONNECTED
        other.log_in("key", "secret")
        stalled.send_json({"action": "auth", "key": "key", "secret": "secret"})
        with pytest.raises(TimeoutError):
            stalled.receive(0.2)
        post(urls["stall"], "stall=off")
        assert stalled.answer() == AUTHENTICATED


def test_silence_and_symbol_limit(urls: dict[str, str], proxy: Callable[[str], Gateway]) -> None:
    """A silent feed is live and has no data; the other feed flows. Over the limit, one client gets 405."""
    gateway = proxy(urls["silence"])
    with connect(gateway) as silent, connect(gateway, "/v1beta3/crypto/us") as flowing:
        assert silent.subscribe(quotes=["AAPL", "MSFT"]) == {"quotes": ["AAPL", "MSFT"]}
        assert silent.subscribe(trades=["AAPL"])["code"] == 405
        flowing.subscribe(quotes=["BTC/USD"])
        flowing.gather(3)
        assert gateway.upstreams["main", "iex"].phase is Phase.LIVE
        assert silent.silent()
        post(urls["silence"], "silence=off")
        silent.gather(1)
