"""The permitted origins of the client port and host names of the admin port.

A browser sends the origin of a page (`Origin`: scheme, host, and the port unless it is the scheme's default) and the
host that it connects to (`Host`). With DNS rebinding (a name whose owner points it at this machine) both headers
contain that name; an IP literal cannot be rebound. Some libraries that are not browsers send an Origin too: that of the
address that they connect to. An entry of a list is a host, which permits any scheme and port, or an origin, which
permits exactly this one; both in the form of `parse`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import NamedTuple

_PARTS = re.compile(r"(?:([a-z][a-z0-9+.-]*)://)?(\[[^]]+\]|[^][/?#@:\s]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """A host with an optional scheme and port.

    `host` is in lower-case ASCII, without brackets and trailing dot; `scheme` may be empty and `port` None. `str`
    returns it as browsers write an origin.
    """

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        scheme = f"{self.scheme}://" if self.scheme else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port in (None, _DEFAULT_PORTS.get(self.scheme)) else f":{self.port}"
        return scheme + host + port


def parse(text: str) -> Origin | None:
    """Parse an origin, or a host with or without port; None for anything else."""
    match = _PARTS.fullmatch(text)
    if match is None:
        return None
    scheme, host_text, port = match.groups()
    host = _ascii(host_text.lower().removesuffix(".").removesuffix("]").removeprefix("["))
    if not host.strip(".") or host.endswith(".") or (host_text.startswith("[") and not is_literal(host)):
        return None
    return Origin((scheme or "").lower(), host, int(port) if port else None)


def is_literal(host: str) -> bool:
    """Return whether a host is an IP address, which needs no DNS look-up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def may_connect(origin: str, authority: str, from_browser: bool, listed: Collection[str]) -> bool:
    """Return whether a request with this `Origin` may open a WebSocket.

    `authority` is its `Host` header; `from_browser` tells whether it has Sec-Fetch-* headers, which libraries do not
    send.
    """
    page = parse(origin)
    if page is None or not page.scheme:
        return False
    if _is_loopback(page.host) or page.host in listed or str(page) in listed:
        return True
    return _same_address(page, parse(authority)) and (is_literal(page.host) or not from_browser)


def _same_address(page: Origin, target: Origin | None) -> bool:
    """Return whether a page is from the host and port that the request is sent to."""
    if target is None or target.scheme or page.host != target.host:
        return False
    default_port = _DEFAULT_PORTS.get(page.scheme)
    return (page.port or default_port) == (target.port or default_port)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (is_literal(host) and ipaddress.ip_address(host).is_loopback)


def may_ask(authority: str, listed: Collection[str]) -> bool:
    """Return whether a request to the admin port may have this `Host` header.

    The header may have a port.
    """
    target = parse(authority)
    return target is not None and not target.scheme and _is_permitted(target.host, listed)


def _is_permitted(host: str, listed: Collection[str]) -> bool:
    return host == "localhost" or host in listed or is_literal(host)


def _ascii(host: str) -> str:
    """Return a name as browsers send it, in ASCII.

    Empty for a name that browsers encode differently: Python's IDNA rules are older than theirs (ß, for example).
    """
    if host.isascii():
        return host
    try:
        encoded = host.encode("idna")
        return encoded.decode() if encoded.decode("idna") == host else ""
    except UnicodeError:
        return ""
