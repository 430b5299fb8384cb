"""Which pages a browser may bring here: what it sends, against what is listed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.transport.origins import Origin, is_literal, may_ask, may_come, parse

NAMES = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9-]{1,8}){0,3}", fullmatch=True)


@pytest.mark.parametrize(
    ("authority", "ours"),
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
def test_names_that_no_stranger_can_rebind(authority: str, ours: bool) -> None:
    assert may_ask(authority, {"desk.example"}) is ours


@given(NAMES, NAMES, st.sampled_from(["http", "https", "app"]), st.sampled_from(["", ":80", ":443", ":8443"]))
def test_a_listed_host_is_any_scheme_and_port_of_itself_alone(host: str, other: str, scheme: str, port: str) -> None:
    assert may_come(f"{scheme}://{host}{port}", {host})
    assert may_ask(host + port, {host})
    for name in (f"{other}.{host}", f"{host}.{other}", f"{other}{host}"):
        alike = name == host or is_literal(name)  # 0.0 and 0.0 together are an address
        assert alike or not may_come(f"{scheme}://{name}{port}", {host})
        assert alike or not may_ask(name + port, {host})


@example("..")
@example("a..")
@given(st.text(alphabet="htps:/.[]@?#%1lo-ü ", max_size=24))
def test_what_any_text_is_read_as_reads_the_same_again(written: str) -> None:
    found = parse(written)
    if found is not None:
        assert str(parse(str(found))) == str(found)


def test_an_origin_is_written_as_browsers_write_it() -> None:
    assert str(Origin("https", "a.example", 443)) == "https://a.example"
    assert str(Origin("https", "a.example", 80)) == "https://a.example:80"
    assert str(Origin("http", "::1", 80)) == "http://[::1]"
    assert str(Origin("", "a.example", None)) == "a.example"
