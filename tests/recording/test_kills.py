"""A recording process that is killed at random moments: every file is readable, and at most the last second is lost."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import gevent
import pytest

from proxy.recording.files import entries
from proxy.recording.timeline import scan
from proxy.simulator import Simulator
from tests.harness import Process, trade, wait_for
from tests.recording.recordings import messages_of

CONFIG = """\
listen: {port: 0}
admin: {port: 0}
accounts: {main: {key: key, secret: secret, data_url: "URL"}}
clients: {witness: {key: witness, secret: witness}}
record: {folder: rec, topics: {iex: {trades: [AAPL]}}}
"""
LOST_SECONDS = 1.0


class Publisher:
    """Publishes numbered trades without an end, and keeps when each was sent."""

    def __init__(self, simulator: Simulator, pause: float, batch: int) -> None:
        self.sent: list[float] = []
        self._simulator = simulator
        self._pause = pause
        self._batch = batch

    def run(self) -> None:
        while True:
            first = len(self.sent)
            self._simulator.publish("iex", [trade("AAPL", number) for number in range(first, first + self._batch)])
            self.sent += [time.monotonic()] * self._batch
            gevent.sleep(self._pause)


def kill_once(folder: Path, simulator: Simulator, rng: random.Random) -> float:
    """Record, kill, read what is there; return the age of the oldest message that is lost, in seconds."""
    before = {entry.path for entry in entries(folder / "rec")} if (folder / "rec").exists() else set()
    with Process("-c", "proxy.yaml", folder=folder) as process:
        wait_for(lambda: simulator.subscribed("iex"), "not subscribed")
        publisher = Publisher(simulator, rng.choice((0.0, 0.001, 0.05)), rng.choice((1, 20)))
        publishing = gevent.spawn(publisher.run)
        gevent.sleep(rng.uniform(0.05, 3))
        process.popen.kill()
        killed = time.monotonic()
        publishing.kill()
        process.popen.wait()
    wait_for(lambda: not simulator.connections("iex"))
    new = (
        [entry.path for entry in entries(folder / "rec") if entry.path not in before]
        if (folder / "rec").exists()
        else []
    )
    assert len(new) <= 1
    numbers: list[int] = []
    if new and new[0].stat().st_size:
        assert new[0].name.endswith(".part")
        scan(new[0])
        numbers = [json.loads(body)["i"] for body in messages_of(new[0])]
    assert numbers == [*range(len(numbers))]
    return killed - publisher.sent[len(numbers)] if len(numbers) < len(publisher.sent) else 0.0


def kill(folder: Path, times: int) -> None:
    rng = random.Random(times)
    with Simulator() as simulator:
        (folder / "proxy.yaml").write_text(CONFIG.replace("URL", simulator.url))
        ages = [kill_once(folder, simulator, rng) for _ in range(times)]
    print(f"oldest lost message of each kill: {' '.join(f'{age:.2f}' for age in sorted(ages))} s")
    assert max(ages) <= LOST_SECONDS


@pytest.mark.slow
def test_a_few_kills(tmp_path: Path) -> None:
    kill(tmp_path, 3)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_fifty_kills(tmp_path: Path) -> None:
    kill(tmp_path, 50)
