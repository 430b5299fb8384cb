"""Recording side by side with none, and a replay at full speed: `python benchmarks/recording.py`.

Rounds alternate between a proxy that records everything and one that records nothing, both with 20,000 messages a
second for 50 clients; the thread that writes shares the proxy's core. Then a million messages are replayed at `max` to
one client. Everything listens on 127.0.0.1, and the recordings lie in a folder that is deleted.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contenders import ROOT, Bench, free_port
from measure import Figures, run

sys.path.insert(0, str(ROOT))

from proxy.alpaca.timestamps import rfc3339
from proxy.recording import lines
from proxy.recording.files import HOUR, OpenFile

LOAD = {"clients": 50, "batch": 20, "rate": 20_000}
RECORD = 'record: {{folder: "{folder}", topics: {{iex: {{trades: ["*"]}}}}, min_free: 0}}'
MESSAGES = 1_000_000
SECOND = 10**9
BEGIN = 1_795_789_800 * SECOND
SYMBOLS = [b"AAPL", b"MSFT", b"NVDA", b"TSLA", b"SPY"]
TRADE = b'{"T":"t","S":"%b","i":%d,"x":"D","p":%.2f,"s":%d,"t":"%b","c":["@"],"z":"C"}'
MARK = b'{"T":"t"'


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=5)
    given = options.parse_args()
    bench = Bench()
    with tempfile.TemporaryDirectory() as folder:
        for codec in ("json", "msgpack"):
            compare(bench, Path(folder), codec, given.rounds, given.seconds)
        replay(bench, Path(folder) / "replay")


def compare(bench: Bench, folder: Path, codec: str, rounds: int, seconds: float) -> None:
    """Print the figures with and without a recording, and their difference."""
    load = {**LOAD, "upstream": codec}
    without, recording = [], []
    for number in range(rounds):
        without.append(run(bench, "proxy", load, seconds, codec=codec))
        more = RECORD.format(folder=folder / f"{codec}-{number}")
        recording.append(run(bench, "proxy", load, seconds, codec=codec, more=more))
    for name, figures in (("without", without), ("recording", recording)):
        print(f"{codec} {name}: {words(figures)}", flush=True)
    more_core = [100 * (b.share - a.share) for a, b in zip(without, recording, strict=True)]
    p50 = [b.p50 / a.p50 for a, b in zip(without, recording, strict=True)]
    p99 = [b.p99 / a.p99 for a, b in zip(without, recording, strict=True)]
    print(
        f"{codec}: {statistics.median(more_core):+.1f} % of a core ({min(more_core):+.1f} to {max(more_core):+.1f}), "
        f"p50 {statistics.median(p50):.2f}x ({min(p50):.2f} to {max(p50):.2f}), "
        f"p99 {statistics.median(p99):.2f}x ({min(p99):.2f} to {max(p99):.2f})",
        flush=True,
    )


def words(figures: list[Figures]) -> str:
    def median(name: str) -> float:
        return statistics.median(getattr(one, name) for one in figures)

    lost = sum(one.lost + one.disconnected for one in figures)
    return (
        f"core {100 * median('share'):.1f} %, p50 {median('p50'):.0f} p99 {median('p99'):.0f} us, "
        f"{median('offered'):,.0f} messages/s, {lost} lost, {median('mib'):.0f} MiB"
    )


def replay(bench: Bench, folder: Path) -> None:
    """Record a million made-up trades, and replay them as fast as a client reads."""
    path = make(folder)
    port = free_port()
    command = [bench.python, "-m", "proxy", "replay", str(path), "--port", str(port), "--speed", "max"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "Ctrl-C" not in process.stdout.readline():
            pass
        seconds = read_all(port)
        process.wait()
    size = path.stat().st_size
    print(f"replay at max: {MESSAGES / seconds:,.0f} messages/s ({seconds:.1f} s), {size / MESSAGES:.1f} bytes each")


def make(folder: Path) -> Path:
    """Write a recording of MESSAGES trades, one every 50 us."""
    folder.mkdir()
    file = OpenFile(folder, "iex", BEGIN - BEGIN % HOUR)
    file.write(lines.own(lines.START, BEGIN, format=lines.FORMAT, feed="iex", topics={})[1:] + b"\n")
    rng = random.Random(1)
    for first in range(0, MESSAGES, 2000):
        text = b""
        for number in range(first, first + 2000):
            at = BEGIN + number * 50_000
            trade = TRADE % (
                rng.choice(SYMBOLS),
                number,
                rng.uniform(10, 500),
                rng.randint(1, 900),
                rfc3339(at).encode(),
            )
            text += lines.stamped(b"\n" + trade, at)
        file.write(text[1:] + b"\n")
    file.seal()
    return file.path


def read_all(port: int) -> float:
    """Read a replay to its end, without a loss; return the seconds that it took."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        head = "GET /v2/iex HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        connection.sendall(f"{head}{key}\r\n".encode())
        for request in ({"action": "auth", "key": "key", "secret": "secret"}, {"action": "subscribe", "trades": ["*"]}):
            payload = json.dumps(request).encode()
            connection.sendall(bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload)
        began = time.monotonic()
        count, rest = 0, b""
        while data := connection.recv(1 << 20):
            data = rest + data
            count += data.count(MARK)
            rest = data[-len(MARK) + 1 :]
        assert count == MESSAGES, f"{count} messages came"
        return time.monotonic() - began


if __name__ == "__main__":
    main()
