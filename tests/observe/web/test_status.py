"""The status page in a real browser."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from proxy.config import model as configuration
from proxy.gateway import Gateway
from proxy.observe.logs import Log
from proxy.observe.snapshot import ClusterState
from proxy.observe.status_document import render
from tests.harness import CONFIG, Harness, trade
from tests.observe.web.browser import Tab
from tests.observe.web.conftest import CLIENTS
from tests.snapshots import FOLLOWER, LEADER, cluster, cluster_feed, snapshot

pytestmark = [pytest.mark.web, pytest.mark.timeout(120)]

Start = Callable[..., Harness]
Show = Callable[..., Tab]

ATTACK = "<img src=x onerror=console.error(1)>"


def contains(selector: str, text: str) -> str:
    """The JavaScript expression for: some element of the selector contains this text."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})]"
        f".some((node) => node.innerText.includes({json.dumps(text)}))"
    )


def busy(proxy: Harness) -> list[Any]:
    """Two clients with messages, on two feeds; the caller must keep them referenced."""
    one, other = proxy.client("momentum"), proxy.client("meanrev", "/v1beta3/crypto/us")
    one.subscribe(trades=["AAPL", "MSFT"], bars=["*"])
    other.subscribe(trades=["BTC/USD"])
    proxy.publish("iex", "AAPL", 10)
    proxy.publish("crypto", "BTC/USD", 3)
    one.gather(10)
    other.gather(3)
    return [one, other]


def alter(proxy: Harness, change: Callable[[dict[str, Any]], None]) -> None:
    """Have `change` alter each /status.json before it is sent."""
    renderings: Any = proxy.gateway.admin._renderings
    original = renderings["/status.json"]

    def altered(snapshot: Any, query: Any) -> tuple[str, list[bytes]]:
        content_type, pieces = original(snapshot, query)
        status = json.loads(b"".join(pieces))
        change(status)
        return content_type, [json.dumps(status).encode()]

    renderings["/status.json"] = altered


def test_feeds_clients_and_events_are_shown(proxy: Harness, show: Show) -> None:
    keep = busy(proxy)
    page = show(proxy)
    page.wait(contains("#headline", "All is well"))
    assert page.text("#detail") == "2 feeds live, 2 sessions."
    assert page.run(contains("#feeds .card", "iex"))
    assert page.run(contains("#feeds .card .phase", "live"))
    assert page.run(contains("#clients .client", "momentum"))
    assert page.run(contains("#events li", "session.authenticated"))
    page.run("document.querySelectorAll('details').forEach((node) => node.open = true)")
    page.wait(contains(".sessions .topics", "bars *, trades AAPL MSFT"))
    assert page.run(contains(".sessions", keep[0].ws.local_address[0]))
    assert page.complaints == []


def test_the_page_updates_itself(proxy: Harness, show: Show) -> None:
    page = show(proxy)
    page.wait(contains("#headline", "No client is connected"))
    assert page.text("#no-clients") == "No client has connected yet."
    keep = busy(proxy)
    page.wait(contains("#headline", "All is well"))
    page.wait(contains(".client summary", "momentum"))
    proxy.publish("iex", "AAPL", 500)
    page.wait(contains(".client summary", "510"))
    page.wait("document.querySelector('#rate-chart .rate')?.getAttribute('d').length > 10")
    proxy.simulator.refuse_upgrade("crypto", 502)
    proxy.simulator.drop("crypto")
    page.wait(contains("#headline", "crypto is"))
    page.wait(contains("#detail", "HTTP 502"))
    assert "crypto is" in page.run("document.title")
    proxy.simulator.accept("crypto")
    page.wait(contains("#headline", "All is well"))
    del keep[0]
    assert page.complaints == []


def test_slow_clients_are_shown(proxy: Harness, show: Show) -> None:
    """First the client falls behind, and may still recover; then the page shows its losses and their reason."""
    page = show(proxy)
    wire = proxy.wire(buffer=4096).log_in("recorder", trades=["AAPL"])
    [session] = proxy.gateway.server.sessions
    proxy.fill(session.outbox, 600_000)
    page.wait(contains("#headline", "recorder is falling behind on iex"))
    page.wait(contains(".client summary", "slow"))
    assert page.run("parseFloat(document.querySelector('.bar span').style.width)") > 50
    while not session.outbox.slow:
        proxy.publish("iex", "AAPL", 200, batch=100)
        gevent.sleep(0)
    page.wait(contains("#headline", "recorder has lost messages on iex"))
    page.wait("/[\\d,]+ slow/.test(document.querySelector('.client .lost').innerText)")
    wire.crash()
    page.wait(contains("#events li", "slow client"))
    assert page.complaints == []


def test_the_page_survives_a_restart_of_the_proxy(proxy: Harness, show: Show) -> None:
    busy(proxy)
    page = show(proxy)
    page.wait(contains("#feeds .card", "iex"))
    port = proxy.gateway.admin.address[1]
    proxy.gateway.stop(0.5)
    page.wait(contains("#headline", "The proxy does not answer"))
    assert "Asking again" in page.text("#detail")
    assert page.run(contains("#feeds .card", "iex"))  # the last state stays visible, in grey
    grey = "getComputedStyle(document.getElementById('content')).filter"
    assert page.run(grey) == "grayscale(1)"
    account = "  a: {key: k, secret: s}"
    text = CONFIG.format(clients=CLIENTS, accounts=account, listen="", admin="", admin_port=port, more="")
    again = Gateway(configuration.parse(text, "proxy.yaml", os.environ, Path()))
    again.start()
    try:
        page.wait(contains("#headline", "No client is connected"))
        assert page.run(grey) == "none"
        assert page.text("#feeds") == ""
        assert page.text("#clients") == ""
    finally:
        again.stop(0.5)
    # The browser itself logs each refused connection.
    assert [complaint for complaint in page.complaints if not complaint.startswith("network: ")] == []


def test_the_page_prompts_for_the_token(start: Start, show: Show) -> None:
    proxy = start(CLIENTS, config={"admin": "token: let-me-in"})
    page = show(proxy, content=False)
    page.wait("document.activeElement.id === 'secret'")
    assert page.run("document.getElementById('content').hidden")
    assert page.complaints == []  # the page does not send a request without the token first
    page.write("let-me-out")
    page.press("Enter", "\r")
    page.wait(contains("#headline", "That token was not accepted"))
    page.write("let-me-in")
    page.press("Enter", "\r")
    page.wait("!document.getElementById('content').hidden")
    page.wait(contains("#headline", "No client is connected"))
    page.go(page.run("location.href"))
    page.wait(contains("#headline", "No client is connected"))  # the token is kept in this tab,
    assert page.run("localStorage.length") == 0
    assert "let-me" not in page.run("document.documentElement.outerHTML")
    assert not [url for url in page.requests if "let-me" in url]
    show(proxy, content=False).wait("document.activeElement.id === 'secret'")  # and in no other tab


def test_all_requests_go_to_the_proxy(proxy: Harness, show: Show) -> None:
    page = show(proxy)
    page.wait(contains("#headline", "No client"))
    origin = page.run("location.origin")
    assert [url for url in page.requests if not url.startswith((f"{origin}/", "data:"))] == []


def test_text_never_becomes_markup(proxy: Harness, show: Show) -> None:
    """Text of a message is shown literally; the policy also refuses markup from text."""
    client = proxy.client("momentum")
    client.subscribe(trades=["*"])
    page = show(proxy)
    page.wait("document.getElementById('tap-channel').value === 'trades'")
    page.run("document.getElementById('tap-button').click()")
    page.wait(contains("#tap-words", "0 messages so far"))
    proxy.simulator.publish("iex", [trade(ATTACK, 1)])
    page.wait(contains("#tapped li", ATTACK))
    assert page.run("document.querySelectorAll('#tapped img').length") == 0
    assert page.complaints == []
    assert "TrustedHTML" in page.run(
        "(() => { try { document.body.innerHTML = '<p>' } catch (e) { return `${e}` } })()"
    )
    page.run("document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/x.png'}))")
    page.wait("1")
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


def test_a_tap_shows_a_sample_and_stops(proxy: Harness, show: Show) -> None:
    keep = busy(proxy)
    page = show(proxy)
    page.wait("document.getElementById('tap-channel').options.length > 1")
    page.run("document.getElementById('tap-symbol').value = 'AAPL'")
    page.run("document.getElementById('tap-button').click()")
    page.wait(contains("#tap-words", "0 messages so far"))
    proxy.publish("iex", "AAPL", 50)
    proxy.publish("iex", "MSFT", 50)
    page.wait(contains("#tap-words", "50 messages so far"))
    assert 1 <= page.run("document.querySelectorAll('#tapped li').length") <= 20
    assert not page.run(contains("#tapped li", "MSFT"))
    page.run("document.getElementById('tap-button').click()")
    before = [url for url in page.requests if "/tap" in url]
    page.wait("new Promise((then) => setTimeout(() => then(true), 1500))")
    assert [url for url in page.requests if "/tap" in url] == before
    assert page.text("#tap-button") == "Start"
    assert keep[0].ws.close_code is None
    assert page.complaints == []


def test_a_paused_page_sends_no_requests(proxy: Harness, show: Show) -> None:
    page = show(proxy)
    page.run("document.getElementById('pause').click()")
    page.wait("document.getElementById('pause').ariaPressed === 'true'")
    assert "paused" in page.text("#facts")
    page.wait("new Promise((then) => setTimeout(() => then(true), 200))")  # requests that are under way
    before = len(page.requests)
    page.wait("new Promise((then) => setTimeout(() => then(true), 1500))")
    assert len(page.requests) == before
    busy(proxy)
    page.run("document.getElementById('pause').click()")
    page.wait(contains(".client summary", "momentum"))


def test_all_controls_are_reached_by_keyboard(proxy: Harness, show: Show) -> None:
    keep = busy(proxy)
    page = show(proxy)
    page.wait(
        "document.getElementById('tap-channel').options.length > 1"
        " && document.querySelectorAll('.client summary').length === 2"
    )
    reached = []
    while (focus := page.run("(() => { const e = document.activeElement; return e.id || e.tagName })()")) or True:
        if reached and focus == "BODY":
            break
        reached.append(focus)
        if focus == "charts":
            page.press("ArrowLeft")
            assert page.run("document.activeElement.ariaValueText").startswith("1 s ago: ")
        if focus == "SUMMARY":
            page.press("Enter", "\r")
            page.wait("document.activeElement.parentNode.open")
        page.press("Tab")
        assert len(reached) < 40
    wanted = ["pause", "BUTTON", "BUTTON", "charts", "SUMMARY", "SUMMARY", "events", "tap-feed", "tap-channel"]
    wanted += ["tap-symbol", "tap-button", "SUMMARY"]  # the last is that of the explanations
    assert [focus for focus in reached if focus not in ("BODY", "A")] == wanted
    assert len(keep) == 2
    assert page.complaints == []


def test_the_next_attempt_of_a_feed_that_waits(proxy: Harness, show: Show) -> None:
    keep = busy(proxy)
    waits: dict[str, float | None] = {"iex": 7.6}

    def change(status: dict[str, Any]) -> None:
        for feed in status["feeds"]:
            if feed["feed"] in waits:
                feed |= {"phase": "waiting", "trouble": f"no {feed['feed']}", "next_attempt": waits[feed["feed"]]}

    alter(proxy, change)
    page = show(proxy)
    page.wait(contains("#headline", "iex is waiting"))
    assert page.text("#detail") == "no iex; next attempt in 8 s. Sessions stay open."
    assert page.text(".card .next") == "Next attempt in 8 s"
    waits |= {"iex": 0.4, "crypto": None}
    page.wait(contains("#headline", "iex and crypto are waiting"))
    assert page.text("#detail") == "iex: no iex; next attempt now. Sessions stay open."
    assert page.run("[...document.querySelectorAll('.card .next')].map((node) => node.hidden)") == [False, True]
    waits.clear()
    page.wait(contains("#headline", "All is well"))
    assert page.run("document.querySelectorAll('.card .next:not([hidden])').length") == 0
    assert len(keep) == 2
    assert page.complaints == []


def test_a_feed_that_fell_silent(proxy: Harness, show: Show) -> None:
    keep = busy(proxy)
    silences = {"iex": 2, "crypto": 1}
    alter(proxy, lambda status: [feed.update(silences=silences[feed["feed"]]) for feed in status["feeds"]] and None)
    page = show(proxy)
    page.wait(contains(".card", "none; fell silent 2 times"))
    page.wait(contains(".card", "none; fell silent once"))
    assert len(keep) == 2
    assert page.complaints == []


def test_a_recording_and_its_problem(proxy: Harness, show: Show) -> None:
    keep = busy(proxy)
    page = show(proxy)
    page.wait(contains("#headline", "All is well"))
    assert page.run("document.getElementById('recording').hidden")
    state = {
        "folder": "recordings", "newest": "iex-2026-11-27T14Z.jsonl.zst", "last": 1.0, "free": 5 * 2**30,
        "min_free": 2 * 10**9, "pending": 0, "limit": 32 * 2**20, "problem": "",
        "feeds": [
                {
                    "feed": "iex", "active": True, "messages": 1234, "bytes": 2048,
                    "dropped": {"queue_full": 2, "disk_error": 1},
                }
            ],
    }  # fmt: skip
    alter(proxy, lambda status: status.update(recording=state))
    page.wait(contains("#recording-facts", "iex-2026-11-27T14Z.jsonl.zst · recordings · 5 GiB free"))
    assert page.text("#recording-feeds") == "iex: 1,234 messages, 2 KiB, 3 dropped"
    state["problem"] = "/recordings: No space left on device"
    page.wait(contains("#headline", "The recording has stopped"))
    page.wait(contains("#recording-facts", "It cannot write: /recordings: No space left on device"))
    assert len(keep) == 2
    assert page.complaints == []


def in_cluster(proxy: Harness, state: ClusterState) -> dict[str, Any]:
    """Have the proxy's page show a cluster, and return that part of its document, to be altered."""
    shown: dict[str, Any] = json.loads(b"".join(render(snapshot(cluster=state))))["cluster"]
    alter(proxy, lambda status: status.update(cluster=shown))
    return shown


def test_a_cluster_its_leaders_and_its_problems(proxy: Harness, show: Show) -> None:
    keep = busy(proxy)
    page = show(proxy)
    page.wait(contains("#headline", "All is well"))
    for hidden in ("#cluster", ".card .through", "#terms .cluster"):
        assert page.run(f"[...document.querySelectorAll('{hidden}')].every((node) => node.hidden)")
    state = in_cluster(proxy, cluster(refused=0))
    iex, crypto = state["feeds"]
    page.wait(contains("#cluster-facts", f"This node is {FOLLOWER}, at ws://10.0.0.2:8767"))
    assert page.text("#cluster-facts").endswith(" · redis://10.0.0.9:6379/0 answers")
    assert page.run("document.getElementById('cluster-problem').hidden")
    rows = "[...document.querySelectorAll('#cluster li')].map((row) => [...row.children].map((cell) => cell.innerText))"
    assert page.run(rows) == [
        ["iex", f"led by {LEADER}", "link works, 0.4 ms · 2 changes of leader"],
        ["crypto", "led by this node", "connected to Alpaca · one node follows"],
        [LEADER, "ws://10.0.0.1:8767", "1.0.0 · 2 feeds"],
        [FOLLOWER, "ws://10.0.0.2:8767", "1.0.0 · 1 feed · this node"],
    ]
    through = "[...document.querySelectorAll('.card .through:not([hidden])')].map((node) => node.innerText)"
    assert page.run(through) == [f"through {LEADER}"]
    assert page.run(contains(".card", f"through {LEADER}"))
    state |= {"refused": 2, "redis_problem": "Redis at 10.0.0.9:6379 does not answer in time; check that it runs"}
    page.wait(contains("#headline", "Redis cannot be used"))
    assert "check that it runs. Streams go on;" in page.text("#detail")
    problem = page.text("#cluster-problem")
    assert problem.startswith("Redis cannot be used: Redis at 10.0.0.9:6379 does not answer in time")
    assert problem.endswith("2 log-ins of other nodes refused: is cluster.secret the same on every node?")
    iex |= {"link": "mute"}
    page.wait(contains("#headline", "Nothing comes from the leader of iex"))
    assert "Another node takes over" in page.text("#detail")
    assert page.run(contains("#cluster .bad", "link is mute"))
    assert page.run(through) == [f"through {LEADER}, from which nothing comes"]
    iex |= {"role": "none", "leader": "", "live": False, "link": "none", "round_trip": None}
    crypto |= {"live": False, "links": 0}
    page.wait(contains("#cluster li", "no leader is known"))
    assert page.run(contains("#cluster li", "not used by this node"))
    assert page.run(contains("#cluster li", "connecting to Alpaca"))
    assert page.run(through) == []
    assert len(keep) == 2
    assert page.complaints == []


def test_clients_that_are_not_connected(proxy: Harness, show: Show) -> None:
    """Those that were never here are listed; one that has left shows it in its row. An old proxy names none."""
    keep = busy(proxy)
    alter(proxy, lambda status: status.pop("configured"))
    page = show(proxy)
    page.wait(contains(".client summary", "momentum"))
    assert page.run("document.getElementById('absent').hidden")

    def change(status: dict[str, Any]) -> None:
        seen = {"momentum": status["time"], "meanrev": status["time"] - 3661, "recorder": None}
        connected = {row["client"] for row in status["clients"] if row["sessions"]}
        status["configured"] = [
            {"client": name, "connected": int(name in connected), "last_seen": last} for name, last in seen.items()
        ]

    alter(proxy, change)
    page.wait(contains("#absent li", "recorder"))
    assert page.text("#absent ul") == "recorder not seen since the proxy started"
    keep.pop().ws.close()
    page.wait(contains(".client summary", "last here 1 h 1 min ago"))
    assert page.run(contains(".client .badge", "away"))
    assert page.complaints == []


def test_a_stall_of_the_proxy(proxy: Harness, show: Show) -> None:
    keep = busy(proxy)
    age = 0.0

    def change(status: dict[str, Any]) -> None:
        for event in status["events"]:
            event["time"] -= age * (event["event"] == "proxy.stalled")

    alter(proxy, change)
    page = show(proxy)
    page.wait(contains("#headline", "All is well"))
    Log("proxy").warning("stalled", seconds=12.34)
    page.wait(contains("#headline", "The proxy stalled for 12 s"))
    assert "suspended" in page.text("#detail")
    assert page.run("document.getElementById('notice').hidden")
    age = 90.0
    page.wait(contains("#headline", "All is well"))
    assert page.text("#notice").startswith("The proxy stalled for 12 s at ")
    age = 3600.0
    page.wait("document.getElementById('notice').hidden")
    assert len(keep) == 2
    assert page.complaints == []


def test_the_plots_open_on_the_busiest_feed(proxy: Harness, show: Show) -> None:
    """They stay on it, and on a feed that is picked by hand."""
    keep = busy(proxy)
    proxy.publish("crypto", "BTC/USD", 200)
    keep[1].gather(203)
    page = show(proxy)
    page.wait(contains("#history-title", "crypto, the last minute"))
    proxy.publish("iex", "AAPL", 2000, batch=100)
    page.wait(contains(".client summary", "2,010"))
    assert page.text("#history-title") == "crypto, the last minute"
    page.run("[...document.querySelectorAll('.card button')].find((node) => node.innerText === 'iex').click()")
    assert page.text("#history-title") == "iex, the last minute"
    proxy.publish("crypto", "BTC/USD", 5000, batch=500)
    page.wait(contains(".client summary", "5,203"))
    assert page.text("#history-title") == "iex, the last minute"
    assert page.complaints == []


def test_a_clients_rate_and_outbox_are_plotted(proxy: Harness, show: Show) -> None:
    page = show(proxy)
    proxy.wire(buffer=4096).log_in("recorder", trades=["AAPL"])
    [session] = proxy.gateway.server.sessions
    proxy.fill(session.outbox, 600_000)
    page.wait(contains(".client summary", "recorder"))
    assert page.run("document.querySelectorAll('.client .charts svg > *').length") == 0  # closed: not drawn
    page.run("document.querySelector('.client').open = true")
    page.wait("/[5-9]\\d\\d KiB/.test(document.querySelectorAll('.client figcaption b')[1].innerText)")
    for line in (".rate", ".pending"):
        page.wait(f"document.querySelector('.client svg {line}')?.getAttribute('d').length > 20")
    labels = "[...document.querySelectorAll('.client svg')[1].querySelectorAll('text')].map((node) => node.textContent)"
    assert {"200 KiB", "400 KiB", "600 KiB"} <= set(page.run(labels))
    page.run("document.getElementById('charts').focus()")
    page.press("ArrowLeft")  # the cursor is the same in all plots
    assert page.text(".client figcaption b").startswith("1 s ago: ")
    assert page.run("document.querySelectorAll('svg .cursor').length") == 4
    assert page.complaints == []


def test_words_are_explained_to_a_mouse_a_finger_and_everyone_else(proxy: Harness, show: Show) -> None:
    keep = busy(proxy)
    page = show(proxy)
    page.wait(contains(".client summary", "momentum"))
    page.hover("[data-term=lag]")
    page.wait("!document.getElementById('tip').hidden")
    assert "own timestamp" in page.text("#tip")
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden")
    page.hover(".card [data-term=live]")
    page.wait(contains("#tip", "Connected to Alpaca"))
    page.hover("#headline")
    page.wait("document.getElementById('tip').hidden")
    narrow = show(proxy, 390)
    narrow.wait(contains(".client summary", "momentum"))
    narrow.touch(".client [data-term=lost]")
    narrow.wait("!document.getElementById('tip').hidden")
    assert "never sent" in narrow.text("#tip")
    assert not narrow.run("document.querySelector('.client').open")
    assert narrow.run("document.documentElement.scrollWidth") <= 390
    narrow.touch(".client .name")
    narrow.wait("document.getElementById('tip').hidden && document.querySelector('.client').open")
    page.run("document.getElementById('terms').open = true")
    explained = page.run("[...document.querySelectorAll('#terms dd')].map((node) => node.innerText)")
    assert len(explained) > 20
    assert page.run("document.querySelectorAll('[data-term]').length") > 20
    assert len(keep) == 2
    assert page.complaints == narrow.complaints == []


def test_a_topic_links_to_its_tap(proxy: Harness, show: Show) -> None:
    """From a feed's channel and a session's symbol; the address with the link opens the tap again."""
    keep = busy(proxy)
    proxy.client("momentum", "/stream").listen("trade_updates")
    page = show(proxy)
    page.wait(contains(".card dd", "trades 2"))
    page.wait(contains(".card dd", "trade_updates 1"))
    assert not page.run(contains(".card dd a", "trade_updates"))  # order updates are private
    page.click('.card a[href*="channel=bars"]')
    page.wait(contains("#tap-words", "0 messages so far"))
    assert page.run("['tap-channel', 'tap-symbol'].map((id) => document.getElementById(id).value)") == ["bars", "*"]
    page.run("document.querySelectorAll('.client').forEach((node) => node.open = true)")
    page.wait(contains(".sessions .topics", "bars *, trades AAPL MSFT"))
    link = '.sessions a[href*="symbol=AAPL"]'
    page.click(link)
    page.wait("document.getElementById('tap-symbol').value === 'AAPL'")
    page.wait(contains("#tap-words", "0 messages so far"))
    proxy.publish("iex", "AAPL", 5)
    page.wait(contains("#tap-words", "5 messages so far"))
    assert page.run(
        "(({top}) => top >= 0 && top < innerHeight)(document.getElementById('tap').getBoundingClientRect())"
    )
    page.go("about:blank")
    page.go(
        "http://{}:{}/{}".format(*proxy.gateway.admin.address, "#tap?account=main&feed=iex&channel=trades&symbol=MSFT")
    )
    page.wait("document.getElementById('tap-button').innerText === 'Stop'")
    assert page.run("document.getElementById('tap-symbol').value") == "MSFT"
    page.run("location.hash = '#tap?account=main&feed=iex&channel=lulds&symbol=X'")
    page.wait(contains("#tap-words", "No client subscribes to this"))
    assert page.text("#tap-button") == "Start"
    assert len(keep) == 2
    assert page.complaints == []


OVERLAPS = """
[...document.querySelectorAll('svg')].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll('text')].map((node) => [node.textContent, node.getBoundingClientRect()]);
  return boxes.flatMap(([text, box], i) => [
    ...(box.left < 0 || box.right > innerWidth ? [`${text} is outside`] : []),
    ...boxes.slice(i + 1).filter(([, other]) => box.left < other.right + 4 && other.left < box.right + 4
      && box.top < other.bottom && other.top < box.bottom).map(([other]) => `${text} touches ${other}`),
  ]);
})
"""


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_axis_labels_do_not_touch(proxy: Harness, show: Show, width: int) -> None:
    """With one minute of history, and with five minutes of large numbers."""
    keep = busy(proxy)
    page = show(proxy, width)
    page.run("document.querySelectorAll('.client').forEach((node) => node.open = true)")
    page.wait("document.querySelectorAll('.client svg text').length > 8")
    assert page.run(OVERLAPS) == []

    def change(status: dict[str, Any]) -> None:
        history, seconds = status["history"], 300
        history |= {"first": 1, "delivered": [0] * seconds, "delay": [0] * seconds}
        for feed in history["feeds"]:
            feed |= {"received": [123_456.7] * seconds, "p50": [0.25] * seconds, "p99": [900.5] * seconds}
        for client in history["clients"]:
            client |= {"delivered": [123_456.7] * seconds, "pending": [1000 * 2**20] * seconds}

    alter(proxy, change)
    page.go(page.run("location.href"))
    page.wait("!document.getElementById('content').hidden")
    page.run("document.querySelectorAll('.client').forEach((node) => node.open = true)")
    page.wait("[...document.querySelectorAll('.client svg text')].some((node) => node.textContent === '\\u22124 min')")
    assert page.run(OVERLAPS) == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert len(keep) == 2


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_horizontal_overflow(start: Start, show: Show, width: int) -> None:
    long = "an-algorithm-with-a-name-that-is-as-long-as-any-name-may-ever-be"
    proxy = start(f'{CLIENTS}  {long}: {{key: long, secret: long, allow: {{iex: "*"}}}}')
    keep = [*busy(proxy), proxy.client("long")]
    keep[-1].subscribe(trades=[f"SYMBOL{number}" for number in range(50)])
    proxy.gateway._outboxes.limit = 1 << 50
    leader = f"{'node' * 60}.example.internal:8767#a1b2c3"
    in_cluster(proxy, cluster(redis_problem="x" * 500, feeds=(cluster_feed(leader=leader, changes=10**6),)))
    page = show(proxy, width)
    page.wait(contains(".client summary", long))
    page.run("document.querySelectorAll('details').forEach((node) => node.open = true)")
    page.wait(contains(".sessions .topics", "and 38 more"))
    page.wait("document.querySelectorAll('.client svg text').length > 20")
    page.wait(contains(".totals", "1,073,741,824 MiB"))
    page.wait(contains(".card .through", leader))
    assert page.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_accessibility(proxy: Harness, show: Show, axe_core: str, width: int, dark: bool) -> None:
    """With everything open, in a cluster, a feed down and a client that has lost messages."""
    keep = busy(proxy)
    proxy.gateway.server.totals["meanrev", "crypto"].lost["slow"] = 12
    in_cluster(proxy, cluster(redis_problem="it is away", feeds=(cluster_feed(), cluster_feed("crypto", link="mute"))))
    page = show(proxy, width, dark=dark)
    page.bypass_policy()  # otherwise the policy refuses axe itself
    page.go(page.run("location.href"))
    page.wait("!document.getElementById('content').hidden")
    page.run("document.querySelectorAll('details').forEach((node) => node.open = true)")
    page.run("document.getElementById('tap-button').click()")
    page.wait(contains("#tap-words", "so far"))
    proxy.publish("iex", "AAPL", 5)
    page.wait("document.querySelectorAll('#tapped li').length")
    page.hover("[data-term=lag]")
    page.wait("!document.getElementById('tip').hidden")
    assert violations(page, axe_core) == []
    proxy.simulator.refuse_upgrade("crypto", 502)
    proxy.simulator.drop("crypto")
    page.wait(contains("#headline", "crypto is"))
    assert violations(page, axe_core) == []
    proxy.gateway.stop(0.5)
    page.wait(contains("#headline", "does not answer"))
    assert violations(page, axe_core) == []
    assert len(keep) == 2


def test_accessibility_of_the_token_form(start: Start, show: Show, axe_core: str) -> None:
    page = show(start(CLIENTS, config={"admin": "token: let-me-in"}), content=False)
    page.bypass_policy()
    page.go(page.run("location.href"))
    page.wait("document.activeElement.id === 'secret'")
    assert violations(page, axe_core) == []


def violations(page: Tab, axe_core: str) -> list[str]:
    """The violations that axe-core reports, its best practices included."""
    page.run(f"(() => {{ if (!window.axe) {{ {axe_core}\n }} }})()")
    result = page.run("axe.run().then(({ passes, violations }) => ({ passes: passes.length, violations }))")
    assert result["passes"] > 20  # the checks have run
    return [
        f"{rule['id']}: {node['html']} {node['failureSummary']}"
        for rule in result["violations"]
        for node in rule["nodes"]
    ]
