"""The permitted origins and hosts, with and without lists."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.transport.origins import Origin, is_literal, may_ask, may_connect, parse

NAMES = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9-]{1,8}){0,3}", fullmatch=True)


@pytest.mark.parametrize(
    ("authority", "permitted"),
    [
        ("localhost", True),
        ("localhost:3000", True),
        ("LocalHost.", True),
        ("127.0.0.1:8765", True),
        ("192.168.1.4", True),
        ("[::1]:80", True),
        ("desk.example", True),
        ("desk.example:443", True),
        ("Desk.Example.:443", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("desk.example.evil.example", False),
        ("desk.example..", False),
        ("localhost,evil.example", False),
        ("localhost evil.example", False),
        ("local\thost", False),
        ("localhost\n", False),
        ("user@evil.example", False),
        ("localhost@evil.example", False),
        ("localhost:80@evil.example", False),
        ("localhost/", False),
        ("http://localhost", False),
        ("localhost:port", False),
        ("[localhost]", False),
        ("[desk.example]", False),
        ("[::1", False),
        ("::1", False),
        ("", False),
    ],
)
def test_hosts_that_cannot_be_rebound(authority: str, permitted: bool) -> None:
    assert may_ask(authority, {"desk.example"}) is permitted


@given(NAMES, NAMES, st.sampled_from(["http", "https", "app"]), st.sampled_from(["", ":80", ":443", ":8443"]))
def test_a_listed_host_permits_any_scheme_and_port_but_no_other_host(
    host: str, other: str, scheme: str, port: str
) -> None:
    assert may_connect(f"{scheme}://{host}{port}", "127.0.0.1", True, {host})
    assert may_ask(host + port, {host})
    for name in (f"{other}.{host}", f"{host}.{other}", f"{other}{host}"):
        permitted = name == host or is_literal(name)  # 0.0 and 0.0 together are an address
        assert permitted or not may_connect(f"{scheme}://{name}{port}", "127.0.0.1", True, {host})
        assert permitted or not may_ask(name + port, {host})


@pytest.mark.parametrize(
    ("origin", "authority", "from_browser", "permitted"),
    [
        ("http://localhost:3000", "127.0.0.1:8765", True, True),
        ("http://127.0.0.1:3000", "203.0.113.5:8765", True, True),
        ("http://127.7.7.7", "127.0.0.1:8765", True, True),
        ("http://[::1]:3000", "[::1]:8765", True, True),
        ("http://203.0.113.5", "127.0.0.1:8765", False, False),
        ("http://203.0.113.5:8765", "203.0.113.5:8765", True, True),
        ("http://203.0.113.5:9999", "203.0.113.5:8765", True, False),
        ("http://[2001:db8::1]:8765", "[2001:db8::1]:8765", True, True),
        ("http://proxy:8765", "proxy:8765", False, True),
        ("http://proxy:8765", "proxy:8765", True, False),
        ("http://evil.example:8765", "proxy:8765", False, False),
        ("https://proxy.example", "proxy.example", False, True),
        ("https://proxy.example", "proxy.example:443", False, True),
        ("https://proxy.example", "proxy.example:80", False, False),
        ("http://proxy.example", "proxy.example:443", False, False),
        ("https://proxy.example", "", False, False),
        ("null", "null", False, False),
        ("proxy:8765", "proxy:8765", False, False),
        ("http://proxy:8765", "http://proxy:8765", False, False),
    ],
)
def test_origins_that_are_not_listed(origin: str, authority: str, from_browser: bool, permitted: bool) -> None:
    """Loopback and the requested address itself are permitted.

    A name is not permitted from a browser, since it can be rebound.
    """
    assert may_connect(origin, authority, from_browser, ()) is permitted


@example("..")
@example("a..")
@given(st.text(alphabet="htps:/.[]@?#%1lo-ü ", max_size=24))
def test_a_parsed_origin_parses_to_itself(text: str) -> None:
    origin = parse(text)
    if origin is not None:
        assert str(parse(str(origin))) == str(origin)


def test_str_of_an_origin_is_as_browsers_write_it() -> None:
    assert str(Origin("https", "a.example", 443)) == "https://a.example"
    assert str(Origin("https", "a.example", 80)) == "https://a.example:80"
    assert str(Origin("http", "::1", 80)) == "http://[::1]"
    assert str(Origin("", "a.example", None)) == "a.example"
