"""The address of a client behind reverse proxies, and that no other peer can name one."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.transport.forwarded import HEADER_CHARACTERS, TrustedPeers, shown

TRUSTED = TrustedPeers(["127.0.0.1/32", "10.0.0.0/8", "::1/128", "fd00::/8"])
FRONT = "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        (FRONT, "203.0.113.7", "203.0.113.7"),
        (FRONT, " 203.0.113.7\t", "203.0.113.7"),
        ("::1", "2001:db8::7", "2001:db8::7"),
        (FRONT, "203.0.113.7:4711", "203.0.113.7"),
        (FRONT, "[2001:db8::7]:4711", "2001:db8::7"),
        (FRONT, "::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
        # The rightmost that is not trusted; what is left of it was written by the client itself.
        (FRONT, "192.0.2.1, 203.0.113.7", "203.0.113.7"),
        (FRONT, "192.0.2.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        (FRONT, "not an address, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        (FRONT, "10.9.9.9, 203.0.113.7", "203.0.113.7"),
        (FRONT, "10.1.1.1, 10.2.2.2", "10.1.1.1"),
        (FRONT, "x" * 2000 + ", 203.0.113.7", "203.0.113.7"),
        # Without a usable header: the peer itself.
        (FRONT, None, FRONT),
        (FRONT, "", FRONT),
        (FRONT, "unknown", FRONT),
        (FRONT, "203.0.113.7, unknown", FRONT),
        (FRONT, "203.0.113.7,", FRONT),
        (FRONT, "203.0.113.7, , 10.1.2.3", FRONT),
        (FRONT, "fe80::1%\x1b[2J", FRONT),
        (FRONT, "203.0.113.7:", FRONT),
        (FRONT, "203.0.113.777", FRONT),
        (FRONT, "10.0.0.1, " * 200 + "10.0.0.2", FRONT),
        (FRONT, "1" * 2000, FRONT),
        # Of a peer that is not trusted the header is not read.
        ("203.0.113.9", "203.0.113.7", "203.0.113.9"),
        ("127.0.0.2", "203.0.113.7", "127.0.0.2"),
        ("fe80::1%eth0", "203.0.113.7", "fe80::1%eth0"),
        ("", "203.0.113.7", ""),
    ],
)
def test_address_of_the_client(peer: str, header: str | None, client: str) -> None:
    assert TRUSTED.client_of(peer, header) == client
    assert TrustedPeers().client_of(peer, header) == peer


@given(st.text(max_size=2 * HEADER_CHARACTERS))
def test_any_header_gives_an_address(header: str) -> None:
    ipaddress.ip_address(TRUSTED.client_of(FRONT, header))


@given(st.text(max_size=200))
def test_a_client_cannot_choose_its_address(written: str) -> None:
    """Whatever it sends as the header itself: its reverse proxy appends its real address."""
    assert TRUSTED.client_of(FRONT, f"{written}, 203.0.113.7") == "203.0.113.7"


def test_the_address_shown() -> None:
    peer = {"proxy.peer": (FRONT, 4711)}
    assert shown({"REMOTE_ADDR": FRONT, **peer}) == "127.0.0.1:4711"
    assert shown({"REMOTE_ADDR": "203.0.113.7", **peer}) == "203.0.113.7 via 127.0.0.1:4711"
