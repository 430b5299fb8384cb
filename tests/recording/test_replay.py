"""Replays: what a client gets is what one got live, at the recorded pace or another; several files on one clock."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timezone
from datetime import time as time_of_day
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from zoneinfo import ZoneInfo

import gevent
import msgpack
import pytest
from gevent.event import Event

from proxy.alpaca import timestamps
from proxy.recording import lines
from proxy.recording.replay import Pace, Replay
from proxy.recording.timeline import PIECE_BYTES, Batch, batches, scan, windows
from proxy.recording.zstd import frame
from proxy.simulator import AccountPlan, Simulator, server
from proxy.simulator.exchange import SourceError
from tests.harness import ACCOUNT, AUTHENTICATED, CONNECTED, Client, Harness, dial, trade, wait_for
from tests.recording.recordings import MORNING, SECOND, bodies, body, record, replaying

CLIENT = '  alpha: {key: alpha, secret: alpha, allow: {iex: "*", crypto: "*", news: "*"}}'
ODD = [
    b'{"T":"t","S":"AAPL","i":123456789012345678901234567890,"p":1.10,"t":"2023-04-06T13:15:42.83540958Z"}',
    b'{"S":"AAPL","T":"zz","x":1E+2,"text":"\\u00e9\\n{\\"at\\":1}"}',
    b'{"T":"q","S":"BRK.B","bp":9007199254740993,"c":["R"],"t":"2026-11-27T14:30:00.000000001Z"}',
    b'{"T":"n","id":1,"headline":"x","symbols":["AAPL","MSFT"],"created_at":"2026-11-27T14:30:00Z"}',
]


def client(simulator: Simulator, path: str = "/v2/iex", codec: str | None = None, **channels: list[str]) -> Client:
    """A client of a replay that has subscribed."""
    host, port = simulator._host, simulator._port
    one = dial((host, port), path, codec)
    assert one.receive() == CONNECTED
    one.log_in("key", "secret")
    if channels:
        one.subscribe(**channels)
    return one


def everything(simulator: Simulator, codec: str | None = None) -> Client:
    """A client that has read a replay to its end, with all of it."""
    one = client(simulator, codec=codec, trades=["*"], quotes=["*"], bars=["*"], statuses=["*"])
    assert simulator.market_ended.wait(20)
    gevent.spawn(simulator.finish)
    assert one.closed()[0] == 1000
    return one


@pytest.mark.parametrize("upstream", ["json", "msgpack"])
def test_each_pairing_of_codecs_is_equal_after_record_and_replay(
    start: Callable[..., Harness], tmp_path: Path, upstream: str
) -> None:
    """Live clients of both codecs behind a proxy that records; then clients of both codecs of the replay."""
    accounts = ACCOUNT.replace('trading_url: "{url}"', f'trading_url: "{{url}}", codec: {{{{iex: {upstream}}}}}')
    topics = '{iex: {trades: ["*"], quotes: ["*"], bars: ["*"], statuses: ["*"], "*": ["*"]}}'
    more = f"record: {{folder: {tmp_path / 'rec'}, topics: {topics}}}"
    proxy = start(CLIENT, config={"accounts": accounts, "more": more})
    live = {codec: proxy.client("alpha", codec=codec) for codec in ("json", "msgpack")}
    for one in live.values():
        one.subscribe(trades=["*"], quotes=["*"], bars=["*"], statuses=["*"])
    if upstream == "json":
        proxy.simulator.publish_raw("iex", b"[%b]" % b",".join(ODD[:3]))
    else:
        packed = [{"T": "zz", "S": "AAPL", "big": 2**64 - 1, "f": 1.0, "t": msgpack.Timestamp(1_700_000_000, 1)}]
        proxy.simulator.publish_raw("iex", msgpack.packb(packed))
    proxy.simulator.publish("iex", [trade("AAPL", number, p=float(number)) for number in range(300)])
    for one in live.values():
        one.numbers("AAPL", 299)
    proxy.gateway.stop(0.5)
    paths = [*(tmp_path / "rec").iterdir()]
    with replaying(paths) as simulator:
        read = everything(simulator, "json")
    with replaying(paths) as simulator:
        replayed = everything(simulator, "msgpack")
    assert bodies(read.frames) == bodies(live["json"].frames)
    if upstream == "json":
        assert bodies(read.frames)[:3] == ODD[:3]
    assert replayed.data == live["msgpack"].data
    assert [{k: type(v) for k, v in m.items()} for m in replayed.data] == [
        {k: type(v) for k, v in m.items()} for m in live["msgpack"].data
    ]


def test_the_recorded_pace_is_kept_within_20_ms(tmp_path: Path) -> None:
    spacing = [0, 0.3, 0.31, 0.75, 1.2, 1.21, 1.9]
    path = record(
        tmp_path, "iex", [(MORNING + int(s * SECOND), [body("t", "AAPL", i=n)]) for n, s in enumerate(spacing)]
    )
    with replaying([path], Pace()) as simulator:
        one = client(simulator, trades=["AAPL"])
        arrivals = []
        while len(one.data) < len(spacing):
            one.receive()
            arrivals.append(time.monotonic())
    errors = [abs((at - arrivals[0]) - expected) for at, expected in zip(arrivals, spacing, strict=True)]
    assert max(errors) < 0.02
    assert [message["i"] for message in one.data] == [*range(len(spacing))]


def test_ten_times_the_pace(tmp_path: Path) -> None:
    path = record(tmp_path, "iex", [(MORNING + n * SECOND, [body("t", "AAPL", i=n)]) for n in range(11)])
    with replaying([path], Pace(speed=10)) as simulator:
        one = client(simulator, trades=["AAPL"])
        one.gather(1)
        began = time.monotonic()
        one.gather(11)
        assert 0.95 < time.monotonic() - began < 1.2


def test_max_waits_for_the_slowest_client_and_loses_nothing(tmp_path: Path) -> None:
    count = 60_000
    filler = "x" * 200
    arrivals = [(MORNING + n, [body("t", "AAPL", i=n, pad=filler)]) for n in range(count)]
    path = record(tmp_path, "iex", arrivals, per_frame=500)
    with replaying([path]) as simulator:
        slow = client(simulator)
        fast = client_in_background(simulator)
        slow.ws.recv_bufsize = 4096
        slow.subscribe(trades=["*"])
        numbers = 0
        while numbers < count:
            numbers = len(slow.gather(numbers + 1))
            if numbers % 5000 == 0:
                gevent.sleep(0.01)
        assert [message["i"] for message in slow.data] == [*range(count)]
        assert fast.get(timeout=30) <= count


def client_in_background(simulator: Simulator) -> Any:
    def read() -> int:
        return len(client(simulator, "/v1beta1/news", news=["*"]).data)

    return gevent.spawn(read)


def test_several_files_of_several_feeds_run_on_one_clock(tmp_path: Path) -> None:
    paths = [
        record(tmp_path, "iex", [(MORNING + n * 10, [body("t", "AAPL", i=n)]) for n in range(50)]),
        record(tmp_path, "crypto", [(MORNING + n * 10 + 5, [body("t", "BTC/USD", i=n)]) for n in range(100)]),
        record(tmp_path, "iex", [(MORNING + n * 10, [body("t", "AAPL", i=n)]) for n in range(50, 100)]),
    ]
    recordings = [scan(path) for path in paths]
    merged = [*batches(recordings, windows(recordings), frozenset())]
    assert [batch.at for batch in merged] == sorted(batch.at for batch in merged)
    assert [batch.feed for batch in merged] == ["iex", "crypto"] * 100
    [first, *_] = merged
    assert isinstance(first, Batch)


def test_symbols_limit_what_is_replayed(tmp_path: Path) -> None:
    news = body("n", "", symbols=["MSFT", "AAPL"])
    update = json.dumps({"stream": "trade_updates", "data": {"order": {"symbol": "AAPL"}}}).encode()
    paths = [
        record(tmp_path, "iex", [(MORNING, [body("t", "AAPL"), body("t", "MSFT")])]),
        record(tmp_path, "news", [(MORNING + 1, [news, body("n", "", symbols=["TSLA"])])]),
        record(tmp_path, "trading", [(MORNING + 2, [update])]),
    ]
    recordings = [scan(path) for path in paths]
    found = [m.body for batch in batches(recordings, windows(recordings), frozenset(["AAPL"])) for m in batch.messages]
    assert found == [body("t", "AAPL"), news, update]


NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("begin", "end", "zone", "numbers"),
    [
        (None, None, "UTC", [0, 1, 2, 3, 4, 5]),
        ("09:30", "16:00", "America/New_York", [1, 2, 4, 5]),
        ("14:30", None, "UTC", [1, 2, 4, 5]),
        (None, "14:30", "UTC", [0, 3]),
        ("20:00", "03:00", "UTC", [2, 3]),
    ],
)
def test_times_of_day_choose_a_part_of_each_day(
    tmp_path: Path, begin: str | None, end: str | None, zone: str, numbers: list[int]
) -> None:
    """Messages at 09:00, 09:30, 15:59 and 21:00 in New York, and at 09:30 and 09:31 on the next day."""
    minutes = [-30, 0, 389, 690, 24 * 60, 24 * 60 + 1]
    paths = [
        record(tmp_path, "iex", [(MORNING + minute * 60 * SECOND, [body("t", "AAPL", i=n)])])
        for n, minute in enumerate(minutes)
    ]
    recordings = [scan(path) for path in paths]
    times = [None if text is None else time_of_day.fromisoformat(text) for text in (begin, end)]
    within = windows(recordings, *times, ZoneInfo(zone))
    assert [json.loads(m.body)["i"] for m in sent(Replay(recordings, within, Pace(speed=1000_000)))] == numbers


def sent(replay: Replay) -> list[Any]:
    """All that a replay sends until its end, without a wait: its clock goes from one due time to the next."""
    found: list[Any] = []
    now = 0
    while not replay.ended:
        for _, messages in replay.advance(now, {"iex": 1, "crypto": 1}):
            found += messages
        now += max(1, int(replay.pause(now) * SECOND))
    return found


def test_the_night_between_two_days_is_not_waited_for(tmp_path: Path) -> None:
    days = [(MORNING + day * 86_400 * SECOND, [body("t", "AAPL", i=day)]) for day in range(3)]
    recordings = [scan(record(tmp_path, "iex", [one])) for one in days]
    within = windows(recordings, time_of_day(9), time_of_day(16), NEW_YORK)
    replay = Replay(recordings, within, Pace())
    assert [len(messages) for _, messages in replay.advance(0, {"iex": 1}) if messages] == [1, 1, 1]
    assert replay.ended


def whole(symbol: str = "BTC/USD", **more: Any) -> bytes:
    return body("o", symbol, b=[{"p": 1.5, "s": 2}], a=[{"p": 1.6, "s": 1}], t="2026-11-27T14:30:00Z", r=True, **more)


def test_a_session_that_joins_late_gets_the_whole_book_first(tmp_path: Path) -> None:
    differences = [body("o", "BTC/USD", b=[{"p": 1.4, "s": n}], a=[], t="2026-11-27T14:30:01Z") for n in range(1, 4)]
    arrivals = [(MORNING, [whole()]), *((MORNING + n * SECOND, [one]) for n, one in enumerate(differences, 1))]
    path = record(tmp_path, "crypto", [*arrivals, (MORNING + 600 * SECOND, [body("t", "BTC/USD", i=1)])])
    with replaying([path], Pace(speed=50)) as simulator:
        first = client(simulator, "/v1beta3/crypto/us", orderbooks=["BTC/USD"])
        assert [json.dumps(m) for m in first.gather(4)] == [json.dumps(json.loads(b)) for b in [whole(), *differences]]
        simulator.slots.plan = AccountPlan(connections=2)
        late = client(simulator, "/v1beta3/crypto/us", orderbooks=["*"])
        [book] = late.gather(1)
        assert (book["r"], book["b"]) == (True, [{"p": 1.5, "s": 2}, {"p": 1.4, "s": 3}])


def test_a_start_in_the_middle_begins_with_the_books_as_they_were(tmp_path: Path) -> None:
    differences = [
        (MORNING + n * 60 * SECOND, [body("o", "BTC/USD", b=[{"p": 1.4, "s": n}], a=[])]) for n in range(1, 4)
    ]
    recordings = [scan(record(tmp_path, "crypto", [(MORNING, [whole()]), *differences], per_frame=1))]
    within = windows(recordings, time_of_day(14, 32))
    book, *rest = [json.loads(message.body) for message in sent(Replay(recordings, within, Pace(speed=1000)))]
    assert (book["r"], book["b"]) == (True, [{"p": 1.5, "s": 2}, {"p": 1.4, "s": 1}])
    assert [message["b"][0]["s"] for message in rest] == [2, 3]


def test_shift_moves_every_timestamp_and_keeps_bars_on_their_minute(tmp_path: Path) -> None:
    arrivals = [
        (MORNING, [body("t", "AAPL", t="2026-11-27T14:29:59.999999999Z", c=["2026"])]),
        (MORNING + SECOND, [body("b", "AAPL", t="2026-11-27T14:29:00Z"), body("q", "AAPL", t="2026-11-27T14:30:01Z")]),
    ]
    recordings = [scan(record(tmp_path, "iex", arrivals))]
    replay = Replay(recordings, windows(recordings), Pace(shift=True))
    began = MORNING + 86_400 * SECOND + 12_345_678_901
    found = [m for _, messages in replay.advance(began, {"iex": 1}) for m in messages]
    found += [m for _, messages in replay.advance(began + SECOND, {"iex": 1}) for m in messages]
    trade_, bar, quote = (json.loads(message.body) for message in found)
    assert timestamps.nanoseconds(trade_["t"]) == began - 1
    assert trade_["c"] == ["2026"]
    assert bar["t"] == "2026-11-28T14:29:00Z"
    assert timestamps.nanoseconds(quote["t"]) == began + SECOND


def test_a_loop_begins_anew(tmp_path: Path) -> None:
    path = record(tmp_path, "iex", [(MORNING + n, [body("t", "AAPL", i=n)]) for n in range(3)])
    with replaying([path], Pace(loop=True)) as simulator:
        one = client(simulator, trades=["AAPL"])
        assert [message["i"] for message in one.gather(7)[:7]] == [0, 1, 2, 0, 1, 2, 0]


def test_it_waits_for_sessions_that_have_subscribed(tmp_path: Path) -> None:
    recordings = [scan(record(tmp_path, "iex", [(MORNING, [body("t", "AAPL", i=1)])]))]
    replay = Replay(recordings, windows(recordings), Pace(wait=2))
    assert [*replay.advance(0, {"iex": 0})] == [*replay.advance(1, {"iex": 1, "crypto": 0})] == []
    assert [feed for feed, messages in replay.advance(2, {"iex": 1, "crypto": 1}) if messages] == ["iex"]


def test_order_updates_come_by_stream_and_as_events(tmp_path: Path) -> None:
    updates = [{"stream": "trade_updates", "data": {"event": "new", "order": {"id": str(n)}}} for n in range(3)]
    path = record(tmp_path, "trading", [(MORNING + n, [json.dumps(one).encode()]) for n, one in enumerate(updates)])
    with replaying([path], Pace(speed=None, wait=2)) as simulator:
        url = simulator.url.replace("ws", "http") + "/v2/events/trades"
        headers = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
        with urlopen(Request(url, headers=headers), timeout=10) as events:
            one = dial((simulator._host, simulator._port), "/stream").log_in("key", "secret")
            one.listen("trade_updates")
            assert one.gather(3) == updates
            first = next(line for line in events if line.startswith(b"data: "))
        assert json.loads(first.removeprefix(b"data: "))["order"] == {"id": "0"}


def test_limits_are_those_of_the_simulator(tmp_path: Path) -> None:
    path = record(tmp_path, "iex", [(MORNING, [body("t", "AAPL", i=1)])])
    with replaying([path], Pace(wait=9)) as simulator:
        simulator.slots.plan = AccountPlan(symbol_limit=1)
        one = client(simulator)
        assert one.subscribe(trades=["AAPL", "MSFT"])["code"] == 405
        other = dial((simulator._host, simulator._port))
        assert other.receive() == CONNECTED
        assert other.ask({"action": "auth", "key": "key", "secret": "secret"})[0]["code"] == 406
        assert other.ask({"action": "auth", "key": "key", "secret": "wrong"})[0]["code"] == 402
        assert AUTHENTICATED


MINUTE = Path(__file__).parent / "data" / "iex-2026-11-27T14Z.jsonl.zst"


def test_the_proxy_before_a_replay_works_as_before_alpaca(quick: None) -> None:
    """The file is a minute of the simulated market at a rate of 4, recorded with `iex: "*"`."""
    recordings = [scan(MINUTE)]
    assert 55 * SECOND < recordings[0].last - recordings[0].first < 61 * SECOND
    with_replay = Simulator(source=Replay(recordings, windows(recordings), Pace(speed=None)))
    proxy = Harness(CLIENT, simulator=with_replay)
    try:
        alpha = proxy.client("alpha")
        alpha.subscribe(
            trades=["*"],
            quotes=["*"],
            bars=["*"],
            updatedBars=["*"],
            dailyBars=["*"],
            statuses=["*"],
            lulds=["*"],
            imbalances=["*"],
        )
        expected = recordings[0].messages
        assert len(alpha.gather(expected)) == expected
        wait_for(proxy.simulator.market_ended.is_set)
    finally:
        proxy.close()


def rewrite(path: Path, *texts: bytes) -> Path:
    """Put frames of these texts in the place of a file's own."""
    path.write_bytes(b"".join(frame(text) for text in texts))
    return path


def start_line(feed: str = "iex", at: int = MORNING) -> bytes:
    return lines.own(lines.START, at, format=lines.FORMAT, feed=feed, topics={})[1:] + b"\n"


def stamped(at: int | bytes, number: int) -> bytes:
    time_ = at if isinstance(at, bytes) else b"%d" % at
    return b'{"at":%b,"T":"t","S":"AAPL","i":%d}\n' % (time_, number)


def numbers_of(path: Path, symbols: frozenset[str] = frozenset()) -> list[int]:
    recordings = [scan(path)]
    found = batches(recordings, windows(recordings), symbols)
    return [json.loads(message.body)["i"] for batch in found for message in batch.messages]


@pytest.mark.parametrize("bad", [b"abc", b"123", b"1764340200", b"12345678901234567890", b"-176434020012345678", b""])
def test_a_line_without_a_time_is_the_torn_end_of_its_file(tmp_path: Path, bad: bytes) -> None:
    path = record(tmp_path, "iex", [(MORNING, [body("t", "AAPL", i=0)])])
    first = start_line() + stamped(MORNING, 0)
    rewrite(path, first, stamped(MORNING + 1, 1) + stamped(bad, 2) + stamped(MORNING + 3, 3), stamped(MORNING + 4, 4))
    recording = scan(path)
    assert (recording.messages, recording.first, recording.last, recording.torn) == (2, MORNING, MORNING + 1, True)
    assert numbers_of(path) == [0, 1]


def test_an_error_while_playing_ends_the_market(tmp_path: Path) -> None:
    first, path = (record(tmp_path, "iex", [(MORNING + n, [body("t", "AAPL", i=n)])]) for n in range(2))
    with replaying([first, path], Pace()) as simulator:
        path.unlink()
        one = client(simulator, trades=["AAPL"])
        assert simulator.market_ended.wait(5)
        assert isinstance(simulator.market_error, SourceError)
        assert str(path) in str(simulator.market_error)
        gevent.spawn(simulator.finish)
        assert one.closed()[0] == 1000
        assert [message["i"] for message in one.data] == [0]


def test_messages_that_are_left_out_do_not_block_other_greenlets(tmp_path: Path) -> None:
    count = 60_000
    arrivals = [(MORNING + n, [body("t", "AAPL", i=n)]) for n in range(count)]
    path = record(tmp_path, "iex", [*arrivals, (MORNING + count, [body("t", "MSFT", i=-1)])], per_frame=20_000)
    with replaying([path], Pace(wait=1), ["MSFT"]) as simulator:
        one = client(simulator, trades=["*"])
        longest, before = 0.0, time.monotonic()
        while not simulator.market_ended.is_set():
            gevent.sleep(0.001)
            now = time.monotonic()
            longest, before = max(longest, now - before), now
        assert [message["i"] for message in one.gather(1)] == [-1]
        assert longest < 0.5  # without the pauses it is a second; other programs may hold the processor


def test_a_frame_of_line_breaks_is_read_in_pieces(tmp_path: Path) -> None:
    path = record(tmp_path, "iex", [(MORNING, [body("t", "AAPL", i=0)])])
    size = 2 * 1024 * 1024
    rewrite(path, start_line() + stamped(MORNING, 0), b"\n" * size + stamped(MORNING + 1, 1))
    tracemalloc.start()
    try:
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1

        recordings = [scan(path, step)]
        found = [*batches(recordings, windows(recordings), frozenset())]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert steps > size // PIECE_BYTES
    assert len(found) > size // PIECE_BYTES
    assert [json.loads(message.body)["i"] for batch in found for message in batch.messages] == [0, 1]
    assert peak < 4 * size


def test_nothing_is_left_out_where_the_clock_was_set_back(tmp_path: Path) -> None:
    offsets = [0, 50, 100, -20, 60, 10]
    path = record(tmp_path, "iex", [(MORNING + n, [body("t", "AAPL", i=i)]) for i, n in enumerate(offsets)])
    recordings = [scan(path)]
    assert (recordings[0].first, recordings[0].last) == (MORNING - 20, MORNING + 100)
    found = [*batches(recordings, windows(recordings), frozenset())]
    assert [json.loads(message.body)["i"] for batch in found for message in batch.messages] == [0, 1, 2, 3, 4, 5]
    assert [batch.at - MORNING for batch in found] == [0, 50, 100]
    assert numbers_of(path) == [0, 1, 2, 3, 4, 5]


def book_file(folder: Path, *, gap: bool) -> Path:
    """A whole book, a difference, perhaps a gap, and another whole book, as at the start of the next hour."""
    path = record(folder, "crypto", [(MORNING, [whole()])])
    later = body("o", "BTC/USD", b=[{"p": 1.2, "s": 7}], a=[{"p": 1.6, "s": 1}], r=True)
    text = start_line("crypto") + lines.stamped(b"\n" + whole(), MORNING)[1:]
    text += lines.own(lines.GAP, MORNING + 1, since=MORNING, messages=1, reason="x") if gap else b""
    text += lines.books(b"\n" + later, MORNING + 2)
    text += lines.stamped(b"\n" + body("o", "BTC/USD", b=[{"p": 1.1, "s": 1}], a=[]), MORNING + 3)
    return rewrite(path, text + b"\n")


@pytest.mark.parametrize("gap", [True, False])
def test_a_recorded_whole_book_replaces_the_kept_one_and_is_sent_after_a_gap(tmp_path: Path, gap: bool) -> None:
    recordings = [scan(book_file(tmp_path, gap=gap))]
    replay = Replay(recordings, windows(recordings), Pace(speed=1000))
    found = [json.loads(message.body) for message in sent(replay)]
    assert [(message.get("r"), message["b"][0]["s"]) for message in found] == (
        [(True, 2), (True, 7), (None, 1)] if gap else [(True, 2), (None, 1)]
    )
    [late] = replay.follow("crypto", "orderbooks", "BTC/USD", 0)
    assert json.loads(late.body)["b"] == [{"p": 1.2, "s": 7}, {"p": 1.1, "s": 1}]


@pytest.mark.parametrize("loop", [False, True])
def test_a_pass_without_a_message_ends_the_replay_with_an_error(tmp_path: Path, loop: bool) -> None:
    path = record(tmp_path, "iex", [(MORNING, [body("t", "AAPL", i=1)])])
    with replaying([path], Pace(loop=loop), ["TYPO"]) as simulator:
        client(simulator, trades=["*"])
        assert simulator.market_ended.wait(5)
        assert str(simulator.market_error) == "no message of TYPO was recorded in the chosen span"


def test_a_second_passes_between_two_passes_of_a_loop(tmp_path: Path) -> None:
    path = record(tmp_path, "iex", [(MORNING, [body("t", "AAPL", i=1)])])
    with replaying([path], Pace(speed=100, loop=True)) as simulator:
        one = client(simulator, trades=["AAPL"])
        one.gather(1)
        began = time.monotonic()
        one.gather(3)
        assert 1.9 < time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [("02:30", "03:15", ("07:00", "07:15")), ("01:30", "02:30", ("06:30", "07:00")), ("02:10", "02:50", None)],
)
def test_times_that_the_clock_skips_in_spring(
    tmp_path: Path, begin: str, end: str, expected: tuple[str, str] | None
) -> None:
    """In New York on 2026-03-08 the clock goes from 02:00 to 03:00, at 07:00 UTC."""
    midnight = int(datetime(2026, 3, 8, 6, tzinfo=timezone.utc).timestamp()) * SECOND
    path = record(tmp_path, "iex", [(midnight + n * 3600 * SECOND, [body("t", "AAPL", i=n)]) for n in range(4)])
    found = windows([scan(path)], time_of_day.fromisoformat(begin), time_of_day.fromisoformat(end), NEW_YORK)
    shown = [tuple(f"{datetime.fromtimestamp(at // SECOND, timezone.utc):%H:%M}" for at in window) for window in found]
    assert shown == ([] if expected is None else [expected])


def test_the_end_waits_for_all_sessions_together_and_not_after_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(tmp_path, "iex", [(MORNING, [body("t", "AAPL", i=1)])])
    with replaying([path], Pace(wait=9)) as simulator:
        simulator.slots.plan = AccountPlan(connections=3)
        for _ in range(3):
            client(simulator)
        for peer in simulator.connections("iex"):
            peer.mute()
            peer.put_payload(b"[]")
        monkeypatch.setattr(server, "FINISH_SECONDS", 0.5)
        stopped = Event()
        gevent.spawn_later(0.1, stopped.set)
        began = time.monotonic()
        simulator.finish(stopped)
        assert time.monotonic() - began < 0.4
        simulator.finish()
        assert time.monotonic() - began < 5
        assert simulator.connections("iex") == []
