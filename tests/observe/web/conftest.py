from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Harness
from tests.observe.web import axe
from tests.observe.web.browser import Browser, Tab

CLIENTS = """
  momentum: {key: momentum, secret: momentum, allow: {iex: "*", crypto: "*", trading: {trade_updates: ["*"]}}}
  meanrev: {key: meanrev, secret: meanrev, allow: {iex: "*", crypto: "*"}}
  recorder: {key: recorder, secret: recorder, outbox: 1MiB, allow: {iex: "*"}}
"""


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def axe_core(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, kept in pytest's cache directory if the cache plugin is enabled."""
    cache = getattr(pytestconfig, "cache", None)
    return axe.script(Path(cache.mkdir("axe")) if cache else tmp_path_factory.mktemp("axe"))


@pytest.fixture
def proxy(start: Callable[..., Harness]) -> Harness:
    return start(CLIENTS)


@pytest.fixture
def show(browser: Browser) -> Callable[..., Tab]:
    """A function that opens a proxy's status page; `width` and `dark` are passed to the tab."""

    def show(proxy: Harness, width: int = 1200, *, dark: bool = False, content: bool = True) -> Tab:
        tab = browser.tab(width, dark=dark)
        tab.go("http://{}:{}/".format(*proxy.gateway.admin.address))
        if content:
            tab.wait("!document.getElementById('content').hidden")
        return tab

    return show
