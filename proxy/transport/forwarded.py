"""The address of a client behind a reverse proxy, from the header `X-Forwarded-For`.

Each reverse proxy appends the address of its own peer, so the header is read from the right: what stands left of the
first address that is not trusted was written by that client and can be anything.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

PEER = "proxy.peer"  # in a WSGI environ: host and port of the peer, which may be a reverse proxy
HEADER = "HTTP_X_FORWARDED_FOR"  # in a WSGI environ; several such headers are joined with commas
HEADER_CHARACTERS = 1024  # that are read of a header, from its end

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_ENTRY = re.compile(r"([0-9.]+):[0-9]{1,5}|([0-9a-fA-F:.]+)|\[([0-9a-fA-F:.]+)\](?::[0-9]{1,5})?")


class TrustedPeers:
    """The networks whose `X-Forwarded-For` is believed; as texts, such as 127.0.0.1/32."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def __repr__(self) -> str:
        return f"<TrustedPeers {', '.join(map(str, self._networks))}>"

    def client_of(self, peer: str, header: str | None) -> str:
        """Return the address of the client whose request a peer sends, with this header or without one.

        It is the rightmost address that is not trusted, or the leftmost if all are. A peer that is not trusted, a
        missing or malformed header: the peer's own address.
        """
        if not self._networks or header is None:
            return peer
        address = _parse(peer)
        if address is None or not self._trusts(address):
            return peer
        entries = header[-HEADER_CHARACTERS:].split(",")
        if len(header) > HEADER_CHARACTERS:
            entries[0] = ""  # it is cut off: malformed, if the address depends on it
        for entry in reversed(entries):
            match = _ENTRY.fullmatch(entry.strip())
            address = _parse(match[1] or match[2] or match[3]) if match else None
            if address is None:
                return peer
            if not self._trusts(address):
                break
        return str(address)

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def shown(environ: Mapping[str, Any]) -> str:
    """Return the address of a request's client for logs and pages, and through which peer it came."""
    client, (host, port) = environ["REMOTE_ADDR"], environ[PEER]
    return f"{host}:{port}" if client == host else f"{client} via {host}:{port}"


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # A socket that listens on :: shows IPv4 peers in this form.
    return getattr(address, "ipv4_mapped", None) or address
