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
from tests.harness import CONFIG, Harness, trade
from tests.observe.web.browser import Tab
from tests.observe.web.conftest import CLIENTS

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
    page.wait(contains("#headline", "Nobody is connected"))
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
        page.wait(contains("#headline", "Nobody is connected"))
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
    page.wait(contains("#headline", "Nobody is connected"))
    page.go(page.run("location.href"))
    page.wait(contains("#headline", "Nobody is connected"))  # the token is kept in this tab,
    assert page.run("localStorage.length") == 0
    assert "let-me" not in page.run("document.documentElement.outerHTML")
    assert not [url for url in page.requests if "let-me" in url]
    show(proxy, content=False).wait("document.activeElement.id === 'secret'")  # and in no other tab


def test_all_requests_go_to_the_proxy(proxy: Harness, show: Show) -> None:
    page = show(proxy)
    page.wait(contains("#headline", "Nobody"))
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
    assert page.text("#tap-button") == "Tap"
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
        "document.getElementById('tap-channel').options.length > 1 && document.querySelectorAll('summary').length === 2"
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
    assert [focus for focus in reached if focus not in ("BODY", "A")] == [*wanted, "tap-symbol", "tap-button"]
    assert len(keep) == 2
    assert page.complaints == []


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_no_horizontal_overflow(start: Start, show: Show, width: int) -> None:
    long = "an-algorithm-with-a-name-that-is-as-long-as-any-name-may-ever-be"
    proxy = start(f'{CLIENTS}  {long}: {{key: long, secret: long, allow: {{iex: "*"}}}}')
    keep = [*busy(proxy), proxy.client("long")]
    keep[-1].subscribe(trades=[f"SYMBOL{number}" for number in range(50)])
    proxy.gateway._outboxes.limit = 1 << 50
    page = show(proxy, width)
    page.wait(contains(".client summary", long))
    page.run("document.querySelectorAll('details').forEach((node) => node.open = true)")
    page.wait(contains(".sessions .topics", "and 38 more"))
    page.wait(contains(".totals", "1,073,741,824 MiB"))
    assert page.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_accessibility(proxy: Harness, show: Show, axe_core: str, width: int, dark: bool) -> None:
    """With everything open, a feed down and a client that has lost messages."""
    keep = busy(proxy)
    proxy.gateway.server.totals["meanrev", "crypto"].lost["slow"] = 12
    page = show(proxy, width, dark=dark)
    page.bypass_policy()  # otherwise the policy refuses axe itself
    page.go(page.run("location.href"))
    page.wait("!document.getElementById('content').hidden")
    page.run("document.querySelectorAll('details').forEach((node) => node.open = true)")
    page.run("document.getElementById('tap-button').click()")
    page.wait(contains("#tap-words", "so far"))
    proxy.publish("iex", "AAPL", 5)
    page.wait("document.querySelectorAll('#tapped li').length")
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
