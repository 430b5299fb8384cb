"""The status page: one HTML file with its own style and script, and the policy that allows nothing else.

It is read with `importlib.resources`, which also works when the package is in a zip file.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

_TOKEN_WANTED = 'data-token=""'  # the attribute that tells the script whether a token is required


class Page:
    """The page and its Content-Security-Policy, `policy`.

    The policy allows the page's own script and style, by their hashes, and requests to its own origin, and nothing
    else. Text cannot become markup (`require-trusted-types-for`).
    """

    def __init__(self) -> None:
        self._html = files("proxy.observe").joinpath("status.html").read_text("utf-8")
        self.policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src {_hash(self._html, 'script')}",
                f"style-src {_hash(self._html, 'style')}",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
                "require-trusted-types-for 'script'",
                "trusted-types 'none'",
            )
        )

    def __repr__(self) -> str:
        return f"<Page of {len(self._html)} characters>"

    def html(self, token_wanted: bool) -> str:
        return self._html.replace(_TOKEN_WANTED, 'data-token="wanted"', 1) if token_wanted else self._html


def _hash(html: str, tag: str) -> str:
    """The source expression for the one element of this tag (CSP level 3, §2.3.1)."""
    [content] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
