"""`init`: the written configuration, its file mode, and the questions."""

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
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory; standard input is not a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return tmp_path


def test_the_written_configuration_is_valid(working_directory: Path, call: Call) -> None:
    result = call("init")
    path = working_directory / "config" / "proxy.yaml"
    assert result.code == 0
    assert result.err == ""
    assert path.stat().st_mode & 0o777 == 0o600
    config = configuration.load(path, ENVIRON)
    assert configuration.warnings(config, path) == []
    assert config.accounts["paper"].trading == "paper"


def test_the_secret_is_printed_and_stored_as_a_digest(working_directory: Path, call: Call) -> None:
    result = call("init", "proxy.yaml")
    match = re.search(r"key (\S+) +secret (\S+)", result.out)
    assert match is not None
    key, secret = match.groups()
    assert secret not in Path("proxy.yaml").read_text()
    directory = configuration.load(Path("proxy.yaml"), ENVIRON).directory
    assert directory.authenticate(key, secret) is not None
    call("init", "second.yaml")
    assert configuration.load(Path("second.yaml"), ENVIRON).directory.authenticate(key, secret) is None


def test_output_names_the_next_commands(working_directory: Path, call: Call) -> None:
    """The output has the commands for the written file."""
    result = call("init", "some/where.yaml")
    for arguments in ("check -c some/where.yaml", "-c some/where.yaml", f"schema > some/{SCHEMA_FILE}"):
        assert f"  python3 -m proxy {arguments}\n" in f"{result.out}\n"
    first = Path("some/where.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA_FILE}"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_existing_paths_are_never_overwritten(working_directory: Path, call: Call, kind: str) -> None:
    path = working_directory / "proxy.yaml"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    result = call("init", "proxy.yaml")
    assert (result.code, result.out) == (1, "")
    assert (
        result.err == "proxy.yaml already exists and was not changed; name another file, as in `init my-proxy.yaml`\n"
    )
    assert not (working_directory / "nowhere").exists()
    assert kind != "file" or path.read_text() == "mine"


def test_unwritable_path(working_directory: Path, call: Call) -> None:
    (working_directory / "file").write_text("")
    result = call("init", "file/proxy.yaml")
    assert result.code == 1
    assert (
        result.err == "cannot write file/proxy.yaml: Not a directory; name another file, as in `init my-proxy.yaml`\n"
    )


def test_path_from_the_environment(working_directory: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPACA_PROXY_CONFIG", "mine.yaml")
    assert call("init").code == 0
    assert Path("mine.yaml").exists()


def test_file_mode_does_not_depend_on_the_umask(working_directory: Path, call: Call) -> None:
    before = os.umask(0o777)
    try:
        assert call("init", "proxy.yaml").code == 0
    finally:
        os.umask(before)
    assert Path("proxy.yaml").stat().st_mode & 0o777 == 0o600


# Questions


def typed(*lines: str) -> Answers:
    """Return the answers to these input lines, followed by the end of the input."""
    lines_read: Iterator[str] = chain((f"{line}\n" for line in lines), repeat(""))
    return ask(Answers(), lambda: next(lines_read))


def test_empty_lines_take_the_defaults() -> None:
    assert typed("", "", "", "") == Answers(symbols=("AAPL", "MSFT"))
    assert typed() == typed("", "", "", "")


def test_answers() -> None:
    assert typed("LIVE", "crypto", "one, two two", "BTC/USD,ETH/*") == Answers(
        "live", "crypto", ("one", "two"), ("BTC/USD", "ETH/*")
    )


def test_example_symbols_depend_on_the_feed() -> None:
    assert typed("", "crypto").symbols == ("BTC/USD", "ETH/USD")
    assert typed("", "opra").symbols == ("AAPL*",)


def test_invalid_answers_are_explained_and_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    answers = typed("sandbox", "paper", "iexx", "sip", "é", "one", "A*B", "A", "")
    assert answers == Answers("paper", "sip", ("one",), ("A",))
    output = capsys.readouterr().err
    assert 'should be "paper" or "live"' in output
    assert 'unknown feed "iexx"; did you mean "iex"?' in output
    assert "cannot be a name" in output
    assert '"A*B" has a "*" elsewhere than at its end' in output


# Written file


@pytest.mark.parametrize("feed", MARKET)
@pytest.mark.parametrize("trading", ["paper", "live"])
def test_every_feed_makes_a_valid_file(feed: str, trading: str) -> None:
    clients = [NewClient("one"), NewClient("a-rather-long-name.2")]
    text = starter(Answers(trading, feed, ("one", "a-rather-long-name.2")), clients, Path("config/proxy.yaml"))
    config = configuration.parse(text, "proxy.yaml", ENVIRON, Path())
    assert config.accounts[trading].trading == trading
    assert all(feed in entry.allow for entry in config.clients.values())
    assert max(map(len, text.splitlines())) <= 120


symbols = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=",*"), min_size=1, max_size=20)


@given(st.lists(st.one_of(symbols, symbols.map("{}*".format), st.just("*")), min_size=1, max_size=5, unique=True))
def test_symbols_survive_yaml(entries: list[str]) -> None:
    """Also symbols that are special in YAML: `on`, `1e5`, `{`, `- `, `#`."""
    text = starter(Answers(symbols=tuple(entries)), [NewClient("one")], Path("proxy.yaml"))
    assert yaml.safe_load(text)
    allow = configuration.parse(text, "proxy.yaml", ENVIRON, Path()).clients["one"].allow
    assert allow["iex"]["trades"] == tuple(entries)


names = st.from_regex(rules._NAME, fullmatch=True)


@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_names_survive_yaml(algorithms: list[str]) -> None:
    text = starter(Answers(algorithms=tuple(algorithms)), [NewClient(name) for name in algorithms], Path("proxy.yaml"))
    assert list(configuration.parse(text, "proxy.yaml", ENVIRON, Path()).clients) == algorithms


def test_questions_on_a_terminal(tmp_path: Path) -> None:
    """The questions go to standard error, the result to standard output."""
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
    """Read a terminal up to `wanted`; return what follows it."""
    deadline = time.monotonic() + 20
    while wanted not in seen:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], f"never saw {wanted!r}"
        seen += os.read(terminal, 4096)
    return seen.partition(wanted)[2]
