"""Decoders for addresses: listening hosts, networks, Alpaca's URLs, and the origins and host names of requests.

As in `values`, each decoder takes a value of the file's tree and raises `Unsuitable`.
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
# An origin written with a WebSocket scheme is read as the page's HTTP scheme.
_PAGE_SCHEMES = {"": "", "http": "http", "https": "https", "ws": "http", "wss": "https"}


def host(value: object) -> str:
    """An IP address or a host name, in lower case."""
    written = text(value)
    bare = written[1:-1] if written.startswith("[") and written.endswith("]") else written
    if ip_address(bare) is None and not _HOST.fullmatch(bare):
        raise Unsuitable(Fault(f"should be an address or a host name without a port, not {quoted(written)}"))
    return bare.lower()


def ip_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an IP address; None for a host name."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(name: str) -> bool:
    """Whether a host is certainly this machine: a loopback address or `localhost`."""
    address = ip_address(name)
    return name.lower() == "localhost" if address is None else address.is_loopback


def network(value: object) -> str:
    """An IP address, or a network as ADDRESS/BITS; as a network, such as 127.0.0.1/32."""
    written = text(value)
    try:
        interface = ipaddress.ip_interface("%" if "%" in written else written)  # a zone (fe80::1%eth0) is none
    except ValueError:
        raise Unsuitable(
            Fault(f"should be an address or a network, such as 127.0.0.1 or 10.0.0.0/8, not {quoted(written)}")
        ) from None
    found, mapped = interface.network, getattr(interface.ip, "ipv4_mapped", None)
    if "/" in written and interface.ip != found.network_address:
        hint = str(found) if getattr(value, "literal", True) else None
        raise Unsuitable(Fault(f"should begin with the first address of the network, not {quoted(written)}", hint))
    if found.prefixlen == 0:
        raise Unsuitable(Fault("is every address there is; list those of your reverse proxies"))
    return str(found) if mapped is None or "/" in written else f"{mapped}/32"


def origin(value: object) -> str:
    """The origin of a web page: a host (any scheme and port), or exactly scheme, host and port."""
    written = text(value)
    parsed = _parse_leniently(written)
    if parsed is not None and parsed.host == "null":
        raise Unsuitable(Fault('cannot be listed: "null" stands for every page that hides its origin'))
    if parsed is None or parsed.scheme not in _PAGE_SCHEMES:
        raise _not_an_address(
            written, "a host such as app.example.com, or an origin such as https://app.example.com:8443"
        )
    normal = parsed._replace(scheme=_PAGE_SCHEMES[parsed.scheme] or ("https" if parsed.port else ""))
    if parse(written.removesuffix("/")) != normal:
        hint = str(normal) if getattr(value, "literal", True) else None
        raise Unsuitable(
            Fault(f"should be a host alone, or scheme, host and port of a page, not {quoted(written)}", hint)
        )
    return str(normal)


def host_name(value: object) -> str:
    """A name that a request's Host header may have, without a port."""
    written = text(value)
    parsed = _parse_leniently(written)
    if parsed is None:
        raise _not_an_address(written, "a host name such as proxy.example.com")
    host_only = Origin("", parsed.host, None)
    if parse(written) != host_only:
        hint = str(host_only) if getattr(value, "literal", True) else None
        raise Unsuitable(Fault(f"should be a host name alone, without scheme and port, not {quoted(written)}", hint))
    return parsed.host


def _parse_leniently(written: str) -> Origin | None:
    """Parse an origin leniently: a path after it is ignored; None if it has no valid host or port."""
    scheme, separator, rest = written.rpartition("://")
    parsed = parse(scheme + separator + re.split("[/?#]", rest)[0])
    if parsed is None or not (_HOST.fullmatch(parsed.host) or is_literal(parsed.host)):
        return None
    return parsed if parsed.port is None or 0 < parsed.port < 65536 else None


def _not_an_address(written: str, form: str) -> Unsuitable:
    form = form if written.isascii() else "written as browsers send it, in ASCII (xn--…)"
    return Unsuitable(Fault(f"should be {form}, not {quoted(written)}"))


def url(value: object) -> str:
    """The URL of a WebSocket server: ws:// or wss://, without a trailing slash."""
    written = text(value)
    try:
        parts = urlsplit(written)
        number = parts.port
    except ValueError:
        raise Unsuitable(Fault("is not a URL")) from None
    if "@" in written or parts.query or parts.fragment:
        raise Unsuitable(Fault("should be scheme, host, port and path alone"))
    if parts.scheme not in ("ws", "wss"):
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme)
        suggest = scheme and len(written) < 64 and written.isprintable() and getattr(value, "literal", True)
        hint = f"{scheme}://{parts.netloc}{parts.path}" if suggest else None
        raise Unsuitable(Fault("should begin with wss:// or ws://", hint))
    if not parts.hostname or number == 0 or not re.fullmatch("[!-~]+", written):
        raise Unsuitable(Fault("should name a host, as in wss://stream.data.alpaca.markets"))
    return written.rstrip("/")
