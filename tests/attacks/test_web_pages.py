"""Access of web pages, in a browser on the same machine, to the proxy's ports."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable

import pytest

from tests.attacks.target import Target

pytestmark = pytest.mark.attack

Start = Callable[..., Target]

FETCHED = "Sec-Fetch-Mode: websocket\r\nSec-Fetch-Site: cross-site\r\n"


def upgraded(proxy: Target, origin: str, host: str, headers: str = "") -> int:
    """Return the status of the response to an upgrade request."""
    with socket.create_connection(proxy.address, 5) as sock:
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        upgrade = f"GET /v2/iex HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        sock.sendall(f"{upgrade}{key}Origin: {origin}\r\n{headers}\r\n".encode())
        return int(sock.recv(4096).split()[1])


def test_origins(target: Start) -> None:
    """A page may connect if it comes from this machine or from the same address.

    The address is the one that the page connects to. In a browser's request, that address must be an IP literal: a name
    could be rebound.
    """
    proxy = target()
    port = proxy.address[1]
    here = f"127.0.0.1:{port}"
    expected = {
        ("http://203.0.113.5", here, ""): 403,
        ("http://203.0.113.5", here, FETCHED): 403,
        ("http://203.0.113.5:8000", f"203.0.113.6:{port}", FETCHED): 403,
        ("http://[2001:db8::5]", here, FETCHED): 403,
        ("http://192.168.0.1", here, FETCHED): 403,
        ("http://0.0.0.0", here, FETCHED): 403,
        ("https://evil.example", here, FETCHED): 403,
        (f"http://evil.example:{port}", f"evil.example:{port}", FETCHED): 403,
        ("null", here, FETCHED): 403,
        ("file://", here, FETCHED): 403,
        (f"http://localhost.evil.example:{port}", here, FETCHED): 403,
        ("http://127.0.0.1.evil.example", here, FETCHED): 403,
        ("http://127.0.0.1:3000", here, FETCHED): 101,
        ("http://127.9.9.9", here, FETCHED): 101,
        ("http://localhost:3000", here, FETCHED): 101,
        ("http://[::1]:3000", here, FETCHED): 101,
        (f"http://203.0.113.5:{port}", f"203.0.113.5:{port}", FETCHED): 101,
        (f"http://203.0.113.5:{port}", f"203.0.113.5:{port}", ""): 101,
        (f"http://proxy.example:{port}", f"proxy.example:{port}", ""): 101,
    }
    assert {request: upgraded(proxy, *request) for request in expected} == expected


def tap(proxy: Target, symbol: str, site: str | None) -> int:
    """Return the status of the response to a request for a tap.

    `site` is the header by which browsers mark the origin of a request.
    """
    connection = http.client.HTTPConnection(*proxy.process.address("proxy.admin"), timeout=5)
    headers = {} if site is None else {"Sec-Fetch-Site": site}
    connection.request("GET", f"/tap?account=good&feed=iex&channel=trades&symbol={symbol}", headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status != 200 or "messages" in json.loads(body)
    return response.status


def test_taps_of_other_sites(target: Start) -> None:
    """They are refused, and take none of the few taps."""
    proxy = target()
    for number in range(6):
        assert tap(proxy, f"OTHER{number}", "cross-site") == 403
    for site in ("same-origin", "none", None):
        assert tap(proxy, "AAPL", site) == 200
