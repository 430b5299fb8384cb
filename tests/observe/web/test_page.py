"""The HTML of the status page, and its Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
import re

from proxy.observe.status_page import Page


def test_the_policy_allows_only_the_pages_own_script_and_style() -> None:
    page = Page()
    policy = dict(directive.split(" ", 1) for directive in page.policy.split("; "))
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page.html(False), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in page.policy


def test_the_page_loads_nothing_and_has_no_inline_handlers() -> None:
    html = Page().html(False)
    addresses = re.findall(r"(?:https?:)?//[\w.]+", html)
    assert set(addresses) <= {"http://www.w3.org"}  # the namespace of SVG, which is never fetched
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?!data:)", html) == []
    assert re.findall(r"\son\w+=|\sstyle=|innerHTML|outerHTML|insertAdjacentHTML|document\.write\b|eval\(", html) == []


def test_the_page_is_marked_if_a_token_is_required() -> None:
    page = Page()
    assert 'data-token=""' in page.html(False)
    assert 'data-token="wanted"' in page.html(True)
    assert page.html(True).replace('data-token="wanted"', 'data-token=""') == page.html(False)
