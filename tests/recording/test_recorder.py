"""A proxy that records: what is in its files, and that clients do not notice."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original

from proxy import gateway
from proxy.alpaca.endpoints import Endpoint
from proxy.cli.startup import announce
from proxy.config import model as configuration
from proxy.config.recording import disk_warnings
from proxy.recording import recorder as recording
from proxy.recording.files import HOUR, OpenFile, entries
from proxy.recording.recorder import FeedRecorder, Recorder
from proxy.recording.writer import Folder
from proxy.simulator import AccountPlan, Simulator
from proxy.transport import frames
from tests.harness import ACCOUNT, CONFIG, ROOT, Harness, trade, wait_for
from tests.recording.recordings import bodies, messages_of, own_lines, text_of

Start = Callable[..., Harness]

CLIENTS = """
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*", trading: {trade_updates: ["*"]}}}
"""
JSON_UPSTREAM = ACCOUNT.replace('trading_url: "{url}"', 'trading_url: "{url}", codec: {{iex: json, crypto: json}}')
EVERYTHING = '{iex: {trades: ["*"], quotes: [AAPL]}}'


def record(folder: Path, topics: str = EVERYTHING, **settings: str) -> str:
    more = "".join(f", {name}: {value}" for name, value in settings.items())
    return f"record: {{folder: {folder}, topics: {topics}{more}}}"


@pytest.fixture
def recording_proxy(start: Start, tmp_path: Path) -> Callable[..., Harness]:
    """Start a proxy that records to `tmp_path / "rec"`: `recording_proxy(TOPICS)`."""

    def begin(topics: str = EVERYTHING, *, accounts: str = ACCOUNT, clients: str = CLIENTS, **more: Any) -> Harness:
        config = {"more": record(tmp_path / "rec", topics), "accounts": accounts}
        proxy = start(clients, config=config, **more)
        for feed in proxy.gateway.upstreams.values():
            wait_for(lambda feed=feed: feed.live and not feed.reconciler.wanted - feed.acked, "not confirmed")
        return proxy

    return begin


@pytest.fixture
def events() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The log's events with their fields."""
    found: list[tuple[str, dict[str, Any]]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((record.getMessage(), getattr(record, "fields", {})))

    handler = Handler(logging.INFO)
    logging.getLogger("proxy").addHandler(handler)
    yield found
    logging.getLogger("proxy").removeHandler(handler)


def files(folder: Path) -> list[Path]:
    return [entry.path for entry in entries(folder / "rec")]


def written(proxy: Harness, feed: str = "iex") -> int:
    state = proxy.gateway.snapshot().recording
    assert state is not None
    return state.messages.get(feed, 0)


def test_the_file_has_the_bytes_that_a_json_client_gets_and_the_time_of_arrival(
    recording_proxy: Callable[..., Harness], tmp_path: Path
) -> None:
    proxy = recording_proxy(accounts=JSON_UPSTREAM)
    alpha = proxy.client("alpha")
    alpha.subscribe(trades=["*"], quotes=["AAPL"])
    odd = b'{"T":"t","S":"A\\u0041PL","p":1.10,"x":1E+2,"i":123456789012345678901234567890,"c":"\\n\xc3\xa9"}'
    proxy.simulator.publish_raw("iex", b'[%b , {"S":"MSFT","T":"t"}]' % odd)
    proxy.publish("iex", "AAPL", 500, batch=7)
    wait_for(lambda: written(proxy) >= 502, "not written")
    proxy.simulator.publish("iex", [trade("END", 1)])
    while b'"END"' not in alpha.frames[-1]:
        alpha.frames.append(_bytes(alpha.ws.recv(timeout=5)))
    proxy.gateway.stop(0.5)
    [path] = files(tmp_path)
    assert messages_of(path) == bodies(alpha.frames)
    assert path.stat().st_mode & 0o777 == 0o600
    text = text_of(path)
    first = json.loads(text.splitlines()[0])
    assert first == {
        "recording": "start", "at": first["at"], "format": 1, "feed": "iex",
        "topics": {"quotes": ["AAPL"], "trades": ["*"]},
    }  # fmt: skip
    assert b"secret" not in text
    assert b"key" not in text


def _bytes(frame: str | bytes) -> bytes:
    return frame.encode("utf-8", "surrogateescape") if isinstance(frame, str) else frame


def test_msgpack_is_recorded_as_json_with_its_nanoseconds(
    recording_proxy: Callable[..., Harness], tmp_path: Path
) -> None:
    proxy = recording_proxy()
    proxy.publish("iex", "AAPL", 3)
    wait_for(lambda: written(proxy) == 3)
    proxy.simulator.publish("iex", [trade("AAPL", 4, s=2**53 + 1)])
    wait_for(lambda: written(proxy) == 4)
    proxy.gateway.stop(0.5)
    [path] = files(tmp_path)
    assert json.loads(messages_of(path)[-1]) == trade("AAPL", 4, s=2**53 + 1)


def test_order_updates_are_recorded_only_where_they_are_named(start: Start, tmp_path: Path) -> None:
    topics = '{iex: {trades: [AAPL]}, trading: {trade_updates: ["momentum-*"]}}'
    proxy = start(CLIENTS, config={"more": record(tmp_path / "rec", topics)})
    wait_for(lambda: proxy.gateway.upstreams["main", "trading"].acked)
    for number, name in enumerate(("momentum-1", "other-2", "momentum-3")):
        order = {"id": str(number), "client_order_id": name, "symbol": "AAPL", "status": "new"}
        proxy.simulator.publish_order({"event": "new", "order": order})
    wait_for(lambda: written(proxy, "trading") == 2)
    proxy.gateway.stop(0.5)
    [path] = [path for path in files(tmp_path) if path.name.startswith("trading-")]
    found = [json.loads(one)["data"]["order"]["client_order_id"] for one in messages_of(path)]
    assert sorted(found) == ["momentum-1", "momentum-3"]  # an order that the start's reading has seen waits for its end


def test_an_outage_is_said_in_the_file(recording_proxy: Callable[..., Harness], tmp_path: Path) -> None:
    proxy = recording_proxy()
    proxy.publish("iex", "AAPL", 2)
    wait_for(lambda: written(proxy) == 2)
    proxy.simulator.drop("iex")
    wait_for(lambda: proxy.upstream().connects == 2 and proxy.upstream().acked)
    proxy.publish("iex", "AAPL", 1)
    wait_for(lambda: written(proxy) == 3)
    proxy.gateway.stop(0.5)
    [path] = files(tmp_path)
    outage, resumed = own_lines(path)
    assert (outage["recording"], resumed["recording"]) == ("outage", "resumed")
    assert resumed["since"] == outage["at"] <= resumed["at"]
    kinds = [next(iter(json.loads(line))) for line in text_of(path).splitlines()]
    assert kinds == ["recording", "at", "at", "recording", "recording", "at"]


def test_each_hour_begins_with_the_whole_order_books(
    recording_proxy: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = recording_proxy('{crypto: {orderbooks: ["*"]}}')
    book = {"T": "o", "S": "BTC/USD", "b": [{"p": 1.5, "s": 2}], "a": [], "t": "2026-11-27T14:30:00Z", "r": True}
    proxy.simulator.publish("crypto", [book])
    wait_for(lambda: written(proxy, "crypto") == 1)
    real = recording.time.time_ns
    monkeypatch.setattr(recording.time, "time_ns", lambda: real() + HOUR)
    difference = {"T": "o", "S": "BTC/USD", "b": [{"p": 1.4, "s": 1}], "a": [], "t": "2026-11-27T14:30:01Z"}
    proxy.simulator.publish("crypto", [difference])
    wait_for(lambda: len(files(tmp_path)) == 2)
    proxy.gateway.stop(0.5)
    _, second = files(tmp_path)
    [whole] = own_lines(second)
    assert [whole["S"], whole["r"], whole["b"]] == ["BTC/USD", True, [{"p": 1.5, "s": 2}, {"p": 1.4, "s": 1}]]
    assert [json.loads(one) for one in messages_of(second)] == [difference]


def test_topics_beyond_the_plan_are_left_out_and_the_others_recorded(
    start: Start, tmp_path: Path, events: list[tuple[str, dict[str, Any]]]
) -> None:
    symbols = ", ".join(f"S{number}" for number in range(6))
    proxy = start(
        CLIENTS,
        config={"more": record(tmp_path / "rec", f"{{iex: {{trades: [{symbols}]}}}}")},
        plan=AccountPlan(symbol_limit=4),
    )
    wait_for(lambda: len(proxy.upstream().acked) == 4 and any(name == "recording.refused" for name, _ in events))
    for number in range(6):
        proxy.simulator.publish("iex", [trade(f"S{number}", 1)])
    wait_for(lambda: written(proxy) == 4)
    refused = [fields for name, fields in events if name == "recording.refused"]
    assert refused[-1]["code"] == 405
    assert refused[-1]["feed"] == "iex"


def test_what_was_refused_is_asked_for_again(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "RETRY_SECONDS", 0.1)
    topics = "{iex: {trades: [GOOD, BAD]}}"
    simulator = {"plan": AccountPlan()}
    proxy = start(CLIENTS, config={"more": record(tmp_path / "rec", topics)}, **simulator)
    proxy.simulator.refuse_symbols(["BAD"])
    wait_for(lambda: proxy.upstream().acked == {("trades", "GOOD")})
    proxy.simulator.refuse_symbols([])
    wait_for(lambda: ("trades", "BAD") in proxy.upstream().acked)


def test_retries_are_five_minutes_apart() -> None:
    assert 300 < recording.RETRY_SECONDS < 330


@contextmanager
def hanging_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk that does not answer within this context."""
    answers = get_original("threading", "Event")()
    real = OpenFile.write

    def write(file: OpenFile, data: bytes) -> int:
        answers.wait(60)
        return real(file, data)

    monkeypatch.setattr(OpenFile, "write", write)
    try:
        yield
    finally:
        answers.set()


def test_a_disk_that_hangs_costs_the_recording_what_exceeds_32_mib_and_clients_nothing(
    recording_proxy: Callable[..., Harness],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: list[tuple[str, dict[str, Any]]],
) -> None:
    proxy = recording_proxy('{iex: {quotes: ["*"], trades: [AAPL]}}', accounts=JSON_UPSTREAM)
    alpha = proxy.client("alpha")
    alpha.subscribe(trades=["AAPL"])
    large = b'[{"T":"q","S":"MSFT","x":"%b"}]' % (b"x" * 500_000)
    with hanging_disk(monkeypatch):
        with proxy.undisturbed(alpha):
            for _ in range(80):
                proxy.simulator.publish_raw("iex", large)
                wait_for(lambda: not any(peer._queue for peer in proxy.simulator.connections("iex")))
        state = proxy.gateway.snapshot().recording
        assert state is not None
        assert 31 * 2**20 < state.pending <= 32 * 2**20
        assert state.dropped["iex", "queue_full"] > 0
        wait_for(lambda: any(name == "recording.dropped" for name, _ in events))
    wait_for(lambda: proxy.gateway.snapshot().recording.pending < 2**20, "not written")
    proxy.publish("iex", "AAPL", 1)
    wait_for(lambda: proxy.gateway.snapshot().recording.pending == 0, "not written")
    dropped = proxy.gateway.snapshot().recording.dropped["iex", "queue_full"]
    proxy.gateway.stop(0.5)
    [path] = files(tmp_path)
    assert sum(line["messages"] for line in own_lines(path)) == dropped
    assert {line["reason"] for line in own_lines(path)} == {"queue_full"}


def test_an_internal_error_of_the_recorder_costs_the_recorder_alone(
    recording_proxy: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = recording_proxy()
    alpha = proxy.client("alpha")
    alpha.subscribe(trades=["AAPL"])
    monkeypatch.setattr(FeedRecorder, "_append", lambda *arguments: 1 / 0)
    last = proxy.publish("iex", "AAPL", 3)
    assert alpha.numbers("AAPL", last) == [1, 2, 3]
    monkeypatch.undo()
    proxy.bugs.clear()


def test_after_an_internal_error_the_topics_are_asked_for_again_at_once_then_later(
    recording_proxy: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = recording_proxy()
    [feed] = proxy.gateway._recorder._feeds
    monkeypatch.setattr(FeedRecorder, "_append", lambda *arguments: 1 / 0)
    proxy.publish("iex", "AAPL", 1)
    wait_for(lambda: feed._failed_at > 0)
    monkeypatch.undo()
    wait_for(lambda: proxy.upstream().acked == feed._topics == feed._subscriber.held, "not asked for again")
    proxy.publish("iex", "AAPL", 1)
    wait_for(lambda: written(proxy) == 1)
    monkeypatch.setattr(FeedRecorder, "_append", lambda *arguments: 1 / 0)
    proxy.publish("iex", "AAPL", 1)
    wait_for(lambda: feed._retry_at is not None and feed._retry_at > feed._failed_at + 300, "not later")
    monkeypatch.undo()
    proxy.bugs.clear()
    proxy.gateway.stop(0.5)
    [path] = files(tmp_path)
    assert [line["reason"] for line in own_lines(path)] == ["internal_error"] * 2


def test_messages_that_are_no_objects_are_logged_and_said_in_the_file(
    recording_proxy: Callable[..., Harness],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: list[tuple[str, dict[str, Any]]],
) -> None:
    proxy = recording_proxy()
    [feed] = proxy.gateway._recorder._feeds
    feed._put(frames.encode(frames.TEXT, b""), 2)
    wait_for(lambda: any(name == "recording.dropped" for name, _ in events), "not logged")
    [dropped] = [fields for name, fields in events if name == "recording.dropped"]
    assert (dropped["messages"], dropped["reason"]) == (2, "they are no JSON objects")
    assert proxy.gateway.snapshot().recording.dropped["iex", "no_object"] == 2
    proxy.gateway.stop(0.5)
    [path] = files(tmp_path)
    assert [(line["messages"], line["reason"]) for line in own_lines(path)] == [(2, "no_object")]


def test_what_was_dropped_before_a_stop_is_said_in_the_file(
    recording_proxy: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = recording_proxy()
    proxy.publish("iex", "AAPL", 1)
    wait_for(lambda: written(proxy) == 1)
    monkeypatch.setattr(recording, "QUEUE_BYTES", 0)
    proxy.publish("iex", "AAPL", 3)
    wait_for(lambda: proxy.gateway.snapshot().recording.dropped["iex", "queue_full"] == 3)
    proxy.gateway.stop(0.5)
    [path] = files(tmp_path)
    assert [(line["messages"], line["reason"]) for line in own_lines(path)] == [(3, "queue_full")]


def test_topics_are_compared_once_a_minute_or_after_a_report(recording_proxy: Callable[..., Harness]) -> None:
    proxy = recording_proxy()
    [feed] = proxy.gateway._recorder._feeds
    wait_for(lambda: feed._check_at is not None)
    due = feed._check_at
    gevent.sleep(0.3)
    assert feed._check_at == due
    assert recording.CHECK_SECONDS == 60
    feed.report(None)
    wait_for(lambda: feed._check_at is not None and feed._check_at > due)


class Turns:
    """A cluster in which this node records while `mine` is true."""

    def __init__(self) -> None:
        self.mine = False

    def shares(self, _feed: Endpoint) -> bool:
        return True

    def records(self, account: str, _feed: Endpoint) -> bool:
        assert account == "main"
        return self.mine


def test_a_node_of_a_cluster_records_while_it_is_its_turn(start: Start, tmp_path: Path) -> None:
    """Each turn has a file of its own; what comes between them is neither recorded nor counted as lost."""
    proxy = start(CLIENTS, config={"more": record(tmp_path / "rec")})
    config, turns = proxy.gateway.config, Turns()
    assert config.recorder is not None
    proxy.gateway.reload(reloaded(proxy, ""))
    folder = Folder(tmp_path / "rec", 1e6, 10**9, 0, "node_1")
    recorder = Recorder(config.recorder, folder, proxy.gateway.upstream, turns)
    recorder.start()
    feed, supervisor = recorder._feeds[0], proxy.upstream()
    alpha = proxy.client("alpha")
    alpha.subscribe(trades=["AAPL"])
    for turn in range(3):
        turns.mine = False
        recorder.feed_is_live(supervisor)
        assert not supervisor.reconciler.wanted - {("trades", "AAPL")}
        proxy.publish("iex", "AAPL", 1)
        alpha.gather(3 * turn + 1)
        turns.mine = True
        recorder.feed_was_lost(supervisor, 0.5)
        recorder.tick(time.monotonic())
        assert feed.active
        wait_for(lambda: feed._topics <= supervisor.acked, "not asked for")
        proxy.publish("iex", "AAPL", 2)
        alpha.gather(3 * turn + 3)
        feed._subscriber.outages += 1
    turns.mine = False
    assert feed.active
    recorder.tick(time.monotonic())
    assert recorder.state().active == frozenset()
    wait_for(lambda: not supervisor.reconciler.wanted - {("trades", "AAPL")}, "not given up")
    wait_for(lambda: not any(path.name.endswith(".part") for path in files(tmp_path)), "not sealed")
    assert not any(recorder.state().dropped.values())
    recorder.stop()
    recorder.join(5)
    names = [re.sub(r"\d\d\d\d-\d\d-\d\dT\d\dZ", "H", path.name) for path in files(tmp_path)]
    assert names == ["iex-H@node_1.jsonl.zst", "iex-H@node_1.2.jsonl.zst", "iex-H@node_1.3.jsonl.zst"]
    for path in files(tmp_path):
        assert len(messages_of(path)) == 2
        first, last = own_lines(path)
        assert (first["recording"], last["recording"]) == ("resumed", "outage")
        assert 0.5e9 <= first["at"] - first["since"] < 5e9
        assert json.loads(text_of(path).splitlines()[0])["node"] == "node_1"
    assert supervisor.needed_here
    alpha.unsubscribe(trades=["AAPL"])
    wait_for(lambda: not supervisor.needed_here, "held after the end")


def reloaded(proxy: Harness, more: str) -> configuration.Config:
    text = CONFIG.format(
        clients=CLIENTS, accounts=ACCOUNT.format(url=proxy.simulator.url), listen="", admin="", admin_port=0, more=more
    )
    config = configuration.parse(text, "proxy.yaml", os.environ, Path())
    return config.model_copy(update={"listen": proxy.gateway.config.listen, "admin": proxy.gateway.config.admin})


def test_a_reload_that_changes_what_is_recorded_begins_new_files_without_a_gap(
    recording_proxy: Callable[..., Harness], tmp_path: Path
) -> None:
    proxy = recording_proxy()
    proxy.publish("iex", "AAPL", 2)
    wait_for(lambda: written(proxy) == 2)
    requests = len(proxy.simulator.requests("iex"))
    plan = proxy.gateway.reload(reloaded(proxy, record(tmp_path / "rec", EVERYTHING, keep="8d")))
    assert plan.lines() == ["record: changed"]
    proxy.publish("iex", "AAPL", 2)
    wait_for(lambda: written(proxy) == 2)
    assert len(proxy.simulator.requests("iex")) == requests
    proxy.gateway.reload(reloaded(proxy, ""))
    assert proxy.gateway.snapshot().recording is None
    wait_for(lambda: not any(path.name.endswith(".part") for path in files(tmp_path)), "not sealed")
    assert [len(messages_of(path)) for path in files(tmp_path)] == [2, 2]
    assert proxy.gateway.reload(reloaded(proxy, "")).lines() == ["nothing changed"]


def test_a_stop_waits_for_the_recorders_of_former_reloads(
    recording_proxy: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = recording_proxy()
    with hanging_disk(monkeypatch):
        for days in (8, 9):
            proxy.publish("iex", "AAPL", 2)
            gevent.sleep(0.1)
            proxy.gateway.reload(reloaded(proxy, record(tmp_path / "rec", EVERYTHING, keep=f"{days}d")))
        assert len(proxy.gateway._former_recorders) == 2
        stopping = gevent.spawn(proxy.gateway.stop, 0.1)
        gevent.sleep(0.5)
        assert not stopping.ready()
    stopping.join(10)
    assert [len(messages_of(path)) for path in files(tmp_path)] == [2, 2]
    assert not any(path.name.endswith(".part") for path in files(tmp_path))


def test_a_stop_waits_no_longer_than_its_time_for_all_recorders_together(
    recording_proxy: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "RECORDER_SECONDS", 0.5)
    proxy = recording_proxy()
    with hanging_disk(monkeypatch):
        for days in (8, 9):
            proxy.publish("iex", "AAPL", 2)
            gevent.sleep(0.1)
            proxy.gateway.reload(reloaded(proxy, record(tmp_path / "rec", EVERYTHING, keep=f"{days}d")))
        proxy.publish("iex", "AAPL", 2)
        began = time.monotonic()
        proxy.gateway.stop(0.1)
        assert time.monotonic() - began < 1.2


def test_reloads_while_the_disk_hangs_do_not_add_up_queues(
    recording_proxy: Callable[..., Harness],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: list[tuple[str, dict[str, Any]]],
) -> None:
    monkeypatch.setattr(gateway, "FORMER_RECORDERS_BYTES", 1500)
    proxy = recording_proxy()
    with hanging_disk(monkeypatch):
        for number in range(5):
            proxy.publish("iex", "AAPL", 1)  # which the thread takes
            wait_for(lambda: proxy.gateway._recorder._writer._queue.empty() and proxy.gateway._recorder.pending)
            wait_for(lambda: not proxy.gateway._recorder._feeds[0].pending)
            proxy.publish("iex", "AAPL", 10, batch=10)
            wait_for(lambda: proxy.gateway._recorder.pending > 1000)
            proxy.gateway.reload(reloaded(proxy, record(tmp_path / "rec", EVERYTHING, keep=f"{8 + number}d")))
        former = proxy.gateway._former_recorders
        assert len(former) == 5
        assert [one.pending < 1000 for one in former] == [True, True, True, True, False]
        unfinished = [fields for name, fields in events if name == "recording.unfinished"]
        assert sum(fields["messages"] for fields in unfinished) == 40
    wait_for(lambda: all(one.ended for one in former))
    found = [line for path in files(tmp_path) for line in own_lines(path)]
    assert sum(line["messages"] for line in found) == 40


def test_a_recorder_that_cannot_start_at_a_reload_leaves_the_former_one(
    recording_proxy: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = recording_proxy()
    former = proxy.gateway._recorder
    new = reloaded(proxy, record(tmp_path / "rec", EVERYTHING, keep="8d"))
    proxy.gateway._read = lambda: new
    monkeypatch.setattr(FeedRecorder, "start", lambda feed: 1 / 0)
    proxy.gateway._reload_from_file()
    state = proxy.gateway.snapshot().reload
    assert state.problems == ("record: an internal error, the log has its traceback; the rest is applied",)
    assert proxy.gateway._recorder is former
    proxy.publish("iex", "AAPL", 2)
    wait_for(lambda: written(proxy) == 2)
    assert len(proxy.upstream().router._group_of) == 1
    monkeypatch.undo()
    proxy.bugs.clear()
    proxy.gateway._reload_from_file()
    assert proxy.gateway.snapshot().reload.problems == ()
    assert proxy.gateway._recorder is not former
    proxy.publish("iex", "AAPL", 2)
    wait_for(lambda: written(proxy) == 2)


def test_the_start_does_not_look_at_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: list[tuple[str, dict[str, Any]]]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: 1 / 0)
    topics = "{iex: {trades: [" + ", ".join(f"S{number}" for number in range(31)) + "]}}"
    text = CONFIG.format(
        clients=CLIENTS, accounts=ACCOUNT.format(url="ws://127.0.0.1:1"), listen="", admin="", admin_port=0,
        more=record(tmp_path / "rec", topics),
    )  # fmt: skip
    config = configuration.parse(text, "proxy.yaml", os.environ, Path())
    announce(config, Path("proxy.yaml"), listening=("127.0.0.1", 1), admin=("127.0.0.1", 2))
    warnings = [fields["warning"] for name, fields in events if name == "proxy.config"]
    assert [one.partition(": is more")[0] for one in warnings if "record" in one] == ["proxy.yaml: record.topics.iex"]


def test_a_look_at_the_disk_survives_links_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "iex-2026-11-27T14Z.jsonl.zst").symlink_to("nowhere")
    assert [*disk_warnings(tmp_path, 0, 0)] == []
    [fault] = disk_warnings(tmp_path / "none" / "rec", 0, 0)
    assert fault.path == ("record", "folder")
    assert fault.reason == f"{tmp_path / 'none'}: No such file or directory; nothing is recorded until it is there"


def test_a_reload_begins_to_record(start: Start, tmp_path: Path) -> None:
    proxy = start(CLIENTS)
    proxy.gateway.reload(reloaded(proxy, record(tmp_path / "rec")))
    wait_for(lambda: proxy.gateway.upstreams and proxy.upstream().acked)
    proxy.publish("iex", "AAPL", 1)
    wait_for(lambda: written(proxy) == 1)


def test_a_proxy_that_does_not_record_does_not_load_the_package() -> None:
    """The compression is imported in this package alone, except by urllib3, which takes what it finds."""
    program = "import sys, proxy.gateway, proxy.cli.demonstration; print('proxy.recording' in sys.modules)"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.strip() == "False"


def test_a_message_is_written_within_a_second(tmp_path: Path) -> None:
    """At the product's own ticks, which other tests shorten."""
    proxy = Harness(CLIENTS, simulator=Simulator(), more=record(tmp_path / "rec"))
    try:
        wait_for(lambda: proxy.gateway.upstreams and proxy.upstream().acked)
        for number in range(5):
            began = time.monotonic()
            proxy.publish("iex", "AAPL", 1)
            wait_for(lambda number=number: written(proxy) == number + 1, "not written", 1.0)
            assert time.monotonic() - began <= 1.0
    finally:
        proxy.close()


def test_the_log_says_when_it_cannot_be_written_and_when_it_can_again(
    start: Start, tmp_path: Path, events: list[tuple[str, dict[str, Any]]]
) -> None:
    folder = tmp_path / "disk" / "rec"
    proxy = start(CLIENTS, config={"more": record(folder)})
    wait_for(lambda: any(name == "recording.failed" for name, _ in events), "not logged")
    [failed] = [fields for name, fields in events if name == "recording.failed"]
    assert failed["reason"] == f"{tmp_path / 'disk'}/rec: No such file or directory"
    assert failed["hint"] == "messages are dropped until it can write"
    assert proxy.gateway.snapshot().recording.problem == failed["reason"]
    wait_for(lambda: proxy.upstream().acked)
    proxy.publish("iex", "AAPL", 2)
    wait_for(lambda: proxy.gateway.snapshot().recording.dropped["iex", "disk_error"] == 2)
    folder.parent.mkdir()
    proxy.publish("iex", "AAPL", 1)
    wait_for(lambda: any(name == "recording.resumed" for name, _ in events), "not logged")
    wait_for(lambda: written(proxy) == 1)
