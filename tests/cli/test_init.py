"""`init`: a configuration that is good at once, for its owner alone, and in no other's place."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.endpoints import Dialect, endpoint, feed_names
from proxy.cli.init import ask
from proxy.cli.keygen import NewClient
from proxy.cli.starter import SCHEMA_FILE, Answers, starter
from proxy.config import model as configuration
from proxy.config import values as rules
from tests.cli.conftest import Call

ROOT = Path(__file__).parent.parent.parent
ENVIRON = {"APCA_API_KEY_ID": "PKAAAABBBB1111", "APCA_API_SECRET_KEY": "canary"}
MARKET = [feed for feed in feed_names() if (known := endpoint(feed)) and known.dialect is Dialect.MARKET]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working one; nobody is at the terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return tmp_path


def test_it_writes_a_configuration_that_works(elsewhere: Path, call: Call) -> None:
    said = call("init")
    path = elsewhere / "config" / "proxy.yaml"
    assert said.code == 0
    assert said.err == ""
    assert path.stat().st_mode & 0o777 == 0o600
    config = configuration.load(path, ENVIRON)
    assert configuration.warnings(config, path) == []
    assert config.accounts["paper"].trading == "paper"


def test_the_secret_is_shown_once_and_kept_as_a_digest(elsewhere: Path, call: Call) -> None:
    said = call("init", "proxy.yaml")
    found = re.search(r"key (\S+) +secret (\S+)", said.out)
    assert found is not None
    key, secret = found.groups()
    assert secret not in Path("proxy.yaml").read_text()
    directory = configuration.load(Path("proxy.yaml"), ENVIRON).directory()
    assert directory.authenticate(key, secret) is not None
    call("init", "second.yaml")
    assert configuration.load(Path("second.yaml"), ENVIRON).directory().authenticate(key, secret) is None


def test_it_says_what_comes_next(elsewhere: Path, call: Call) -> None:
    """Each command that it names is one that works."""
    said = call("init", "some/where.yaml")
    for arguments in ("check -c some/where.yaml", "-c some/where.yaml", f"schema > some/{SCHEMA_FILE}"):
        assert f"  python3 -m proxy {arguments}\n" in f"{said.out}\n"
    first = Path("some/where.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA_FILE}"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_it_never_overwrites(elsewhere: Path, call: Call, kind: str) -> None:
    path = elsewhere / "proxy.yaml"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    said = call("init", "proxy.yaml")
    assert (said.code, said.out) == (1, "")
    assert said.err == "proxy.yaml exists already and stays as it is; name another file, as in `init my-proxy.yaml`\n"
    assert not (elsewhere / "nowhere").exists()
    assert kind != "file" or path.read_text() == "mine"


def test_a_place_that_cannot_be_written(elsewhere: Path, call: Call) -> None:
    (elsewhere / "file").write_text("")
    said = call("init", "file/proxy.yaml")
    assert said.code == 1
    assert said.err == "cannot write file/proxy.yaml: Not a directory; name another file, as in `init my-proxy.yaml`\n"


def test_where_the_configuration_is_otherwise(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPACA_PROXY_CONFIG", "mine.yaml")
    assert call("init").code == 0
    assert Path("mine.yaml").exists()


def test_the_mode_is_its_owners_whatever_the_umask(elsewhere: Path, call: Call) -> None:
    before = os.umask(0o777)
    try:
        assert call("init", "proxy.yaml").code == 0
    finally:
        os.umask(before)
    assert Path("proxy.yaml").stat().st_mode & 0o777 == 0o600


# What is asked


def typed(*lines: str) -> Answers:
    """The answers of somebody who types these lines and then the end of the input."""
    typing: Iterator[str] = chain((f"{line}\n" for line in lines), repeat(""))
    return ask(Answers(), lambda: next(typing))


def test_enter_takes_the_default() -> None:
    assert typed("", "", "", "") == Answers(symbols=("AAPL", "MSFT"))
    assert typed() == typed("", "", "", "")


def test_answers() -> None:
    assert typed("LIVE", "crypto", "one, two two", "BTC/USD,ETH/*") == Answers(
        "live", "crypto", ("one", "two"), ("BTC/USD", "ETH/*")
    )


def test_the_example_symbols_suit_the_feed() -> None:
    assert typed("", "crypto").symbols == ("BTC/USD", "ETH/USD")
    assert typed("", "opra").symbols == ("AAPL*",)


def test_a_bad_answer_is_explained_and_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    answers = typed("sandbox", "paper", "iexx", "sip", "é", "one", "A*B", "A", "")
    assert answers == Answers("paper", "sip", ("one",), ("A",))
    said = capsys.readouterr().err
    assert 'should be "paper" or "live"' in said
    assert 'unknown feed "iexx"; did you mean "iex"?' in said
    assert "cannot be a name" in said
    assert '"A*B" has a "*" elsewhere than at its end' in said


# What is written


@pytest.mark.parametrize("feed", MARKET)
@pytest.mark.parametrize("trading", ["paper", "live"])
def test_every_answer_makes_a_good_file(feed: str, trading: str) -> None:
    clients = [NewClient("one"), NewClient("a-rather-long-name.2")]
    text = starter(Answers(trading, feed, ("one", "a-rather-long-name.2")), clients, Path("config/proxy.yaml"))
    config = configuration.parse(text, "proxy.yaml", ENVIRON, Path())
    assert config.accounts[trading].trading == trading
    assert all(feed in entry.allow for entry in config.clients.values())
    assert max(map(len, text.splitlines())) <= 120


symbols = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=",*"), min_size=1, max_size=20)


@given(st.lists(st.one_of(symbols, symbols.map("{}*".format), st.just("*")), min_size=1, max_size=5, unique=True))
def test_any_symbol_is_written_as_it_was_given(entries: list[str]) -> None:
    """Whatever YAML would make of it: `on`, `1e5`, `{`, `- `, `#`."""
    text = starter(Answers(symbols=tuple(entries)), [NewClient("one")], Path("proxy.yaml"))
    assert yaml.safe_load(text)
    allow = configuration.parse(text, "proxy.yaml", ENVIRON, Path()).clients["one"].allow
    assert allow["iex"]["trades"] == tuple(entries)


names = st.from_regex(rules._NAME, fullmatch=True)


@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_any_name_is_written_as_it_was_given(algorithms: list[str]) -> None:
    text = starter(Answers(algorithms=tuple(algorithms)), [NewClient(name) for name in algorithms], Path("proxy.yaml"))
    assert list(configuration.parse(text, "proxy.yaml", ENVIRON, Path()).clients) == algorithms


def test_on_a_terminal_it_asks(tmp_path: Path) -> None:
    """A real one: questions on standard error, and nothing but the result on standard output."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "proxy", "init", "proxy.yaml"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdin=slave, stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    try:
        seen = b""
        for question, answer in ((b"paper or live? [paper] ", b""), (b"[iex] ", b"crypto"), (b"[momentum] ", b"a b"),
                                 (b"[BTC/USD ETH/USD] ", b"*")):  # fmt: skip
            seen = _read_until(master, question, seen)
            os.write(master, answer + b"\n")
        out = process.communicate(timeout=20)[0].decode()
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert process.returncode == 0
    assert len(re.findall("^  key [ab]-[0-9a-f]{8} +secret ", out, re.MULTILINE)) == 2
    config = configuration.load(tmp_path / "proxy.yaml", ENVIRON)
    assert list(config.clients) == ["a", "b"]
    assert config.clients["b"].allow["crypto"]["trades"] == ("*",)


def _read_until(terminal: int, wanted: bytes, seen: bytes) -> bytes:
    """What a terminal shows, from after the last thing that was waited for."""
    deadline = time.monotonic() + 20
    while wanted not in seen:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], f"never saw {wanted!r}"
        seen += os.read(terminal, 4096)
    return seen.partition(wanted)[2]
