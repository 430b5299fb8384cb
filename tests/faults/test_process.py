"""Faults of the machine, injected into a real proxy process."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import gevent
import pytest

from proxy.simulator import Simulator
from tests.harness import CONNECTED, PING, Client, Process, Wire, certificate, dial, trade, wait_for
from tests.ports import free_port

pytestmark = pytest.mark.slow

CONFIG = """\
listen: {port: LISTENTLS}
admin: {port: 0}
accounts:
  main: {key: key, secret: secret, data_url: "URL"}
clients:
  witness: {key: witness, secret: witness, allow: {iex: "*"}}
  rogue: {key: rogue, secret: rogue, max_connections: 100, outbox: 256KiB, allow: {iex: "*"}}
"""
FAT = "x" * 20_000

Start = Callable[..., Process]


@pytest.fixture
def alpaca() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def start(alpaca: Simulator, tmp_path: Path) -> Iterator[Start]:
    """Start a proxy in front of the simulator; `options` go to `Process`."""
    with ExitStack() as stack:

        def start(*, port: int = 0, tls: str = "", **options: object) -> Process:
            file = tmp_path / "proxy.yaml"
            file.write_text(CONFIG.replace("URL", alpaca.url).replace("LISTEN", str(port)).replace("TLS", tls))
            return stack.enter_context(Process("-c", str(file), folder=tmp_path, **options))

        yield start


@contextmanager
def undisturbed(alpaca: Simulator, address: tuple[str, int]) -> Iterator[Client]:
    """An algorithm that must get every trade, once and in order, during the block."""
    with dial(address) as witness:
        assert witness.receive() == CONNECTED
        witness.log_in("witness").subscribe(trades=["AAPL"])
        over = False

        def flow() -> None:
            while not over:
                alpaca.publish_trades("iex", "AAPL", 5)
                gevent.sleep(0.005)

        flowing = gevent.spawn(flow)
        try:
            yield witness
        finally:
            over = True
            flowing.join()
        alpaca.publish_trades("iex", "AAPL", 1)
        last = alpaca._trade_counts["iex", "AAPL"]
        assert witness.numbers("AAPL", last) == list(range(1, last + 1))


def test_no_file_descriptors_left(start: Start, alpaca: Simulator) -> None:
    """Open sessions are served; new connections wait until a descriptor is free."""
    process = start()
    address = process.address()
    with undisturbed(alpaca, address), ExitStack() as crowd:
        pid = process.popen.pid
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 3, used + 20))
        for _ in range(20):
            crowd.enter_context(socket.create_connection(address, 5))
        wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) == used + 3)
        crowd.close()
        with dial(address) as newcomer:
            assert newcomer.receive() == CONNECTED
            newcomer.log_in("rogue").subscribe(trades=["AAPL"])
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == 0


@pytest.mark.parametrize("tls", [False, True])
def test_memory_of_an_idle_session(start: Start, tmp_path: Path, tls: bool) -> None:
    """At most 64 KiB for each session, with TLS 112 KiB."""
    options, trust = {}, None
    if tls:
        cert, key = certificate(tmp_path)
        options["tls"] = f", tls: {{cert: {cert}, key: {key}}}"
        trust = ssl.create_default_context(cafile=str(cert))
    process = start(**options)
    address = process.address()
    with ExitStack() as crowd:

        def join(count: int) -> int:
            for _ in range(count):
                wire = Wire(address, trust=trust)
                crowd.callback(wire.socket.close)
                wire.log_in("rogue", trades=["AAPL", "MSFT"], quotes=["AAPL"])
            status = Path(f"/proc/{process.popen.pid}/status").read_text()
            return int(status.partition("VmRSS:")[2].split()[0])

        few = join(10)
        assert (join(85) - few) / 85 <= (112 if tls else 64)
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == 0


def test_stderr_is_closed_from_the_start(start: Start, alpaca: Simulator) -> None:
    port = free_port()
    process = start(port=port, stderr=None, preexec_fn=lambda: os.close(2))
    wait_for(lambda: _listens(port))
    with undisturbed(alpaca, ("127.0.0.1", port)):
        _refused_login(("127.0.0.1", port))
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == 0


def test_the_reader_of_the_log_has_exited(start: Start, alpaca: Simulator) -> None:
    process = start()
    address = process.address()
    with undisturbed(alpaca, address):
        process.leave_unread("stdout")
        process.leave_unread("stderr")
        _refused_login(address)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(5) == 0


def test_the_pipe_of_the_log_is_full(start: Start, alpaca: Simulator) -> None:
    """The log waits or loses lines; market data is neither delayed nor lost."""
    port = free_port()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"full\n" * 1000)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n")
    os.set_blocking(writer, True)
    process = start(port=port, stderr=writer)
    os.close(writer)
    wait_for(lambda: _listens(port))
    with undisturbed(alpaca, ("127.0.0.1", port)):
        _refused_login(("127.0.0.1", port))
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(8) == 0
    os.close(reader)


@pytest.mark.parametrize("how", ["crash", "stay"])
def test_stops_reading_and_goes_on_pinging(start: Start, alpaca: Simulator, how: str) -> None:
    """A pong is due while the writer waits for the socket.

    In this case libev once aborted the process.
    """
    process = start()
    address = process.address()
    with undisturbed(alpaca, address), ExitStack() as stack:
        for _ in range(3):
            wire = Wire(address, buffer=4096)
            stack.callback(wire.socket.close)
            wire.log_in("rogue", trades=["FAT"])
            for number in range(60):
                alpaca.publish("iex", [trade("FAT", number, pad=FAT)] * 4)
                with suppress(ConnectionError):
                    wire.send(PING, b"are you there")
                gevent.sleep(0.002)
            if how == "crash":
                wire.crash()
    process.popen.send_signal(signal.SIGTERM)
    assert process.end(seconds=10) == 0


def test_a_process_that_was_stopped(start: Start, alpaca: Simulator) -> None:
    """For longer than the clock's grace: no session ends, and the delay that `/metrics` shows is the whole stall."""
    process = start()
    with undisturbed(alpaca, process.address()):
        process.popen.send_signal(signal.SIGSTOP)
        gevent.sleep(6)
        process.popen.send_signal(signal.SIGCONT)
        delays = [0.0]

        def shown() -> bool:
            host, port = process.address("proxy.admin")
            with urlopen(f"http://{host}:{port}/metrics") as response:
                delays.extend(
                    float(n) for n in re.findall(r"^alpaca_proxy_delay_seconds (.+)$", response.read().decode(), re.M)
                )
            return delays[-1] > 1

        wait_for(shown, "no delay is shown")
    assert 5.5 < delays[-1] < 8
    [stalled] = [event["seconds"] for event in process.events if event["event"] == "proxy.stalled"]
    assert 5.5 < stalled < 8


def test_sigkill_and_a_new_start(start: Start, alpaca: Simulator) -> None:
    """The proxy keeps no state on disk: after SIGKILL, a new process serves at once."""
    first = start()
    with undisturbed(alpaca, first.address()):
        pass
    first.popen.kill()
    assert first.popen.wait(5) == -signal.SIGKILL
    with dial(start().address()) as client:
        client.receive()
        assert client.log_in("witness").subscribe(trades=["AAPL"])["trades"] == ["AAPL"]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return False
    return True


def _refused_login(address: tuple[str, int]) -> None:
    """Cause an event in the log by a log-in that is refused."""
    with dial(address) as client:
        client.receive()
        client.send_json({"action": "auth", "key": "nobody", "secret": "nothing"})
        assert client.receive()[0]["code"] == 402
