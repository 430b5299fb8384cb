"""Web pages: which of them a browser may bring to the proxy's ports.

A browser says where a page comes from (`Origin`: scheme, host, and the port unless it is the scheme's own) and which
host it asks for (`Host`). Whoever owns a name can make it point at this machine (DNS rebinding), so a name counts only
if it is listed; IP literals and localhost cannot be had that way. What is listed is a host, whatever its scheme and
port, or an origin, which is exactly that one; both as `parse` writes them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import NamedTuple

_PARTS = re.compile(r"(?:([a-z][a-z0-9+.-]*)://)?(\[[^]]+\]|[^][/?#@:\s]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_OWN_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """A host in lower-case ASCII, without brackets and the root's dot; `scheme` is empty and `port` None if not said.

    The text of it is as browsers write an origin.
    """

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        scheme = f"{self.scheme}://" if self.scheme else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port in (None, _OWN_PORTS.get(self.scheme)) else f":{self.port}"
        return scheme + host + port


def parse(written: str) -> Origin | None:
    """An origin, or a host with or without a port; None for what is neither."""
    match = _PARTS.fullmatch(written)
    if match is None:
        return None
    scheme, written_host, port = match.groups()
    host = _ascii(written_host.lower().removesuffix(".").removesuffix("]").removeprefix("["))
    if not host.strip(".") or host.endswith(".") or (written_host.startswith("[") and not is_literal(host)):
        return None
    return Origin((scheme or "").lower(), host, int(port) if port else None)


def is_literal(host: str) -> bool:
    """Whether a host is an IP address, which needs no look-up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def may_come(origin: str, listed: Collection[str]) -> bool:
    """Whether a page of this origin, a request's `Origin`, is from here or listed."""
    found = parse(origin)
    return found is not None and found.scheme != "" and (_is_ours(found.host, listed) or str(found) in listed)


def may_ask(authority: str, listed: Collection[str]) -> bool:
    """Whether a request may call this machine so: by `Host`, with or without a port."""
    found = parse(authority)
    return found is not None and not found.scheme and _is_ours(found.host, listed)


def _is_ours(host: str, listed: Collection[str]) -> bool:
    return host == "localhost" or host in listed or is_literal(host)


def _ascii(host: str) -> str:
    """A name as browsers send it; empty if Python's older rules would make another name of it than theirs (ß, say)."""
    if host.isascii():
        return host
    try:
        found = host.encode("idna")
        return found.decode() if found.decode("idna") == host else ""
    except UnicodeError:
        return ""
