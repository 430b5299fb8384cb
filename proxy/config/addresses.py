"""What a setting that is an address may be: where the proxy listens, where Alpaca is, which pages and names come in.

As in `settings`, each function takes a value of the file's tree and raises `Unsuitable`.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from proxy.config.values import Fault, Unsuitable, text
from proxy.config.yamlfile import quoted
from proxy.transport.origins import Origin, is_literal, parse

LOOPBACK = "127.0.0.1"

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL}){{0,31}}\.?", re.IGNORECASE)
# Whoever takes the scheme of the stream for that of the page means this one.
_PAGES = {"": "", "http": "http", "https": "https", "ws": "http", "wss": "https"}


def host(value: object) -> str:
    """An IP address or a host name, in lower case."""
    written = text(value)
    bare = written[1:-1] if written.startswith("[") and written.endswith("]") else written
    if ip_address(bare) is None and not _HOST.fullmatch(bare):
        raise Unsuitable(Fault(f"should be an address or a host name without a port, not {quoted(written)}"))
    return bare.lower()


def ip_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, or None for a name."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(name: str) -> bool:
    """Whether a host is this machine for sure."""
    address = ip_address(name)
    return name.lower() == "localhost" if address is None else address.is_loopback


def origin(value: object) -> str:
    """Where a browser's page may come from: a host, whatever its scheme and port, or exactly scheme, host and port."""
    written = text(value)
    found = _place(written)
    if found is not None and found.host == "null":
        raise Unsuitable(Fault('cannot be listed: "null" is any page that hides where it comes from'))
    if found is None or found.scheme not in _PAGES:
        raise _nowhere(written, "a host such as app.example.com, or an origin such as https://app.example.com:8443")
    meant = found._replace(scheme=_PAGES[found.scheme] or ("https" if found.port else ""))
    if parse(written.removesuffix("/")) != meant:
        hint = str(meant) if getattr(value, "literal", True) else None
        raise Unsuitable(
            Fault(f"should be a host alone, or scheme, host and port of a page, not {quoted(written)}", hint)
        )
    return str(meant)


def host_name(value: object) -> str:
    """A host name by which a request may ask for this machine, whatever its port."""
    written = text(value)
    found = _place(written)
    if found is None:
        raise _nowhere(written, "a host name such as proxy.example.com")
    alone = Origin("", found.host, None)
    if parse(written) != alone:
        hint = str(alone) if getattr(value, "literal", True) else None
        raise Unsuitable(Fault(f"should be a host name alone, without scheme and port, not {quoted(written)}", hint))
    return found.host


def _place(written: str) -> Origin | None:
    """What somebody names who wrote this, perhaps with a path behind it; None if there is no host in it."""
    scheme, mark, rest = written.rpartition("://")
    found = parse(scheme + mark + re.split("[/?#]", rest)[0])
    if found is None or not (_HOST.fullmatch(found.host) or is_literal(found.host)):
        return None
    return found if found.port is None or 0 < found.port < 65536 else None


def _nowhere(written: str, form: str) -> Unsuitable:
    form = form if written.isascii() else "written as browsers send it, in ASCII (xn--…)"
    return Unsuitable(Fault(f"should be {form}, not {quoted(written)}"))


def url(value: object) -> str:
    """Where a WebSocket server is: ws:// or wss://, without a slash at its end."""
    written = text(value)
    try:
        parts = urlsplit(written)
        number = parts.port
    except ValueError:
        raise Unsuitable(Fault("is not a URL")) from None
    if "@" in written or parts.query or parts.fragment:
        raise Unsuitable(Fault("should be scheme, host, port and path alone"))
    if parts.scheme not in ("ws", "wss"):
        swapped = {"http": "ws", "https": "wss"}.get(parts.scheme)
        shown = swapped and len(written) < 64 and written.isprintable() and getattr(value, "literal", True)
        hint = f"{swapped}://{parts.netloc}{parts.path}" if shown else None
        raise Unsuitable(Fault("should begin with wss:// or ws://", hint))
    if not parts.hostname or number == 0 or not re.fullmatch("[!-~]+", written):
        raise Unsuitable(Fault("should name a host, as in wss://stream.data.alpaca.markets"))
    return written.rstrip("/")
