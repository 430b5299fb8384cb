"""The stand itself: what its checks find, and what its forwarder does."""

from __future__ import annotations

import socket
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack

import gevent
import pytest

from tests.cluster.clients import Account, Client, Run, judge
from tests.cluster.forwarder import Forwarder
from tests.cluster.numbered import FEED, SYMBOLS, Alpaca
from tests.harness import wait_for

SHORT_SECONDS = 0.2


def test_what_is_wrong_with_a_sequence() -> None:
    assert judge(array("L", [1, 2, 5, 9])) == Account()
    assert judge(array("L", [1, 2, 2, 5])) == Account(twice=1)
    assert judge(array("L", [1, 5, 2, 9])) == Account(out_of_order=1)
    assert judge(array("L", [1, 2, 5, 1, 2, 5])) == Account(twice=3)


def test_what_is_missing_and_how_long_it_was_silent() -> None:
    client = Client([("127.0.0.1", 9)], 0, ["S0"])
    client.close()
    now = time.monotonic()
    first, second = Run(0), Run(0)
    first.numbers["S0"].extend([3, 4, 6])
    first.times["S0"].extend([now - 9, now - 8, now - 7])
    second.numbers["S0"].extend([9])
    second.times["S0"].extend([now - 2])
    client.runs = [first, second]
    assert client.missing("S0") == [5, 7, 8]
    assert client.silence(now - 10) == pytest.approx(5, abs=0.5)
    assert client.last("S0") == 9


def test_every_message_is_numbered_and_its_taker_known() -> None:
    """A client that is connected to Alpaca itself gets everything; a second connection is refused, and counted."""
    alpaca = Alpaca()
    alpaca.start()
    port = int(alpaca.url.rpartition(":")[2])
    client = Client([("127.0.0.1", port)], 0, key="key", secret="secret")
    try:
        client.receives()
        second = Client([("127.0.0.1", port)], 0, key="key", secret="secret")
        wait_for(lambda: alpaca.slots.refused["key"] > 0)
        second.close()
        assert second.count() == 0
        client.receives()
        assert client.account() == Account()
        for symbol in SYMBOLS:
            assert client.missing(symbol) == []
            taken = [number for number, taker in enumerate(alpaca.taker[symbol]) if taker]
            assert [*client.sequence(symbol)] == taken[: len(client.sequence(symbol))]
        assert alpaca.most == {("key", FEED): 1}
    finally:
        client.close()
        alpaca.close()


@pytest.fixture
def line() -> Iterator[tuple[Forwarder, socket.socket, socket.socket]]:
    """A forwarder, and both ends of a connection through it."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        forwarder = stack.enter_context(Forwarder(server.getsockname()[1]))
        near = stack.enter_context(socket.create_connection(("127.0.0.1", forwarder.port), 5))
        far = stack.enter_context(server.accept()[0])
        far.settimeout(5)
        yield forwarder, near, far


Line = tuple[Forwarder, socket.socket, socket.socket]


def test_a_frozen_line_delivers_later(line: Line) -> None:
    forwarder, near, far = line
    forwarder.freeze()
    near.sendall(b"later")
    far.settimeout(SHORT_SECONDS)
    with pytest.raises(TimeoutError):
        far.recv(9)
    forwarder.resume()
    assert far.recv(9) == b"later"


def test_a_line_that_is_cut_or_down(line: Line) -> None:
    forwarder, near, far = line
    forwarder.down()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", forwarder.port), 5)
    near.sendall(b"still")
    assert far.recv(9) == b"still"
    forwarder.cut()
    with pytest.raises(ConnectionResetError):
        far.recv(9)
    forwarder.up()
    socket.create_connection(("127.0.0.1", forwarder.port), 5).close()


def test_a_dark_line_does_not_answer(line: Line) -> None:
    forwarder, _, far = line
    forwarder.go_dark()
    far.close()
    gevent.sleep(SHORT_SECONDS)
    assert forwarder.pairs
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", forwarder.port), SHORT_SECONDS)
