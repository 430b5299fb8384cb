"""The attacked proxy, and the cost of an attack.

The cost is the delay of another client's messages, and memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import msgpack
import pytest

from tests.harness import BINARY, Process, Wire, wait_for

CALM_SECONDS = 0.05
TRIES = 3
RECOVERY_SECONDS = 2
MIB = 1 << 20


def long(*values: Any) -> Any:
    """Parameters of one more variant of an attack, which a run with `-m "attack and not long"` leaves out."""
    return pytest.param(*values, marks=pytest.mark.long)


CONFIG = """\
listen: {{port: 0}}
admin: {{port: 0}}
accounts:
  good: {{key: key, secret: secret, data_url: "{good}", trading_url: "{good}"}}
  bad: {{key: bad, secret: bad, data_url: "{bad}", trading_url: "{bad}"{account}}}
clients:
  witness: {{key: witness, secret: witness, account: good, allow: {{iex: "*"}}}}
  victim: {{key: victim, secret: victim, account: bad, allow: {{{allow}}}}}
{clients}
"""
ALLOW = 'iex: "*", opra: "*", crypto: "*", news: "*", trading: "*"'


class Cost(NamedTuple):
    """The cost of an attack.

    `waited` is the longest delay of a message to the witness during the attack, `calm` the longest one during as long a
    time without an attack, both in seconds. `grown` is the largest growth of the proxy's memory in MiB.
    """

    waited: float
    calm: float
    grown: float

    @property
    def excess(self) -> float:
        return self.waited - self.calm

    def __repr__(self) -> str:
        return f"waited {self.waited * 1000:.0f} ms (calm: {self.calm * 1000:.0f} ms), grew by {self.grown:.0f} MiB"


class Target:
    """A proxy process and a witness process.

    The witness is connected to the proxy through the account `good`.
    """

    def __init__(self, process: Process, witness: Process, file: Path, stack: ExitStack) -> None:
        self.process = process
        self.file = file
        self._clients: list[Wire] = []
        stack.callback(self.close_clients)
        self._readers: list[gevent.Greenlet] = []
        self.address = process.address()
        self._witness = witness
        host, port = self.address
        self._command(f"dial {host} {port}", "dialed")

    @property
    def pid(self) -> int:
        return self.process.popen.pid

    def wire(self, path: str = "/v2/iex", *, msgpack: bool = False) -> Wire:
        """Open a connection of a client that has not sent a message."""
        wire = Wire(self.address, path, "Content-Type: application/msgpack\r\n" if msgpack else "")
        self._clients.append(wire)
        return wire

    def close_clients(self) -> None:
        """Close all connections that `wire` and `client` have opened."""
        clients, self._clients = self._clients, []
        readers, self._readers = self._readers, []
        gevent.killall(readers)
        for wire in clients:
            wire.socket.close()

    def sockets(self) -> int:
        """Return the number of open sockets of the process."""
        count = 0
        for name in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                count += str(name.readlink()).startswith("socket:")
        return count

    def processor(self) -> float:
        """Return the processor time that the process has taken, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def read(self, wire: Wire) -> Wire:
        """Read and discard everything that the client receives from now on."""

        def read() -> None:
            with suppress(OSError):
                for _ in wire.rest():
                    pass

        self._readers.append(gevent.spawn(read))
        return wire

    def client(self, key: str = "victim", path: str = "/v2/iex", *, msgpack: bool = False) -> Wire:
        """Open a connection and log in."""
        wire = self.wire(path, msgpack=msgpack)
        if path.startswith("/stream"):
            wire.send_json({"action": "authenticate", "data": {"key_id": key, "secret_key": key}})
        else:
            send(wire, {"action": "auth", "key": key, "secret": key}, msgpack)
            wire.receive()
        assert b"auth" in wire.receive()[1]
        return wire

    def cost(self, attack: Callable[[], Any], seconds: float, tries: int = TRIES) -> Cost:
        """Return the cost of an attack that may take so many seconds.

        The attack is repeated while the delay is too long: the result has the shortest delay, since the test is whether
        the witness can be served during the attack, and the largest growth.
        """
        calm, _ = self._watch(lambda: gevent.sleep(seconds))
        costs: list[Cost] = []
        while len(costs) < tries:
            before = self._reset_peak()
            waited, late = self._watch(attack, seconds)
            costs.append(Cost(waited, max(calm, late), self._grown(before)))
            if costs[-1].excess <= CALM_SECONDS or not self._recovers():
                break
        return min(costs, key=lambda cost: cost.excess)._replace(grown=max(cost.grown for cost in costs))

    def grows(self, attack: Callable[[], Any], seconds: float) -> float:
        """Return the largest growth of the memory during an attack, in MiB.

        The attack may take so many seconds; the memory shortly afterwards counts too.
        """
        before = self._reset_peak()
        with gevent.Timeout(seconds, False):
            attack()
        gevent.sleep(0.5)  # the proxy may not have received everything
        return self._grown(before)

    def _reset_peak(self) -> int:
        """Reset `VmHWM`, the peak of the memory, and return the current memory in bytes."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.memory()

    def _grown(self, before: int) -> float:
        return (self.memory("VmHWM") - before) / MIB

    def _recovers(self) -> bool:
        """Return whether the witness is served without a delay soon afterwards."""
        until = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < until:
            waited, _ = self._watch(lambda: gevent.sleep(0.3))
            if waited <= CALM_SECONDS:
                return True
        return False

    def _watch(self, action: Callable[[], Any], seconds: float = 0.0) -> tuple[float, float]:
        """Return the witness's `waited` and `late` during the action."""
        self._command("watch", "watching")
        until = time.monotonic() + seconds
        with gevent.Timeout(seconds or None, False):
            action()
        gevent.sleep(max(0.0, until - time.monotonic()))
        worst = self._command("worst", "worst")
        assert not worst["lost"], "the witness has lost its connection"
        return worst["waited"], worst["late"]

    def _command(self, line: str, event: str) -> dict[str, Any]:
        """Send a command to the witness and return its answer."""
        before = len(self._witness.events)
        self._witness.popen.stdin.write(line + "\n")
        self._witness.popen.stdin.flush()
        wait_for(lambda: len(self._witness.events) > before, f"the witness did not answer {line}: {self._witness.text}")
        answer = self._witness.events[-1]
        assert answer["event"] == event
        return answer

    def memory(self, name: str = "VmRSS") -> int:
        """Return the process's resident memory in bytes.

        With `VmHWM`, return its peak since `_reset_peak`.
        """
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def send(wire: Wire, request: Any, packed: bool) -> None:
    if packed:
        wire.send(BINARY, msgpack.packb(request))
    else:
        wire.send_json(request)
