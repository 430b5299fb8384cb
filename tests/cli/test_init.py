"""`init`: the written configuration, its file mode, and the questions."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca.endpoints import Dialect, endpoint, feed_names, feed_of_path
from proxy.cli.answers import Answers, examples, market
from proxy.cli.init import ask
from proxy.cli.keygen import NewClient
from proxy.cli.starter import SCHEMA_FILE, starter
from proxy.config import model as configuration
from proxy.config import values as rules
from tests.cli.conftest import Call
from tests.harness import CONNECTED, Process, dial
from tests.terminal import Terminal

ENVIRON = {"APCA_API_KEY_ID": "PKAAAABBBB1111", "APCA_API_SECRET_KEY": "canary"}
ALPACA_PY = {  # the classes that the printed lines import, by module
    "alpaca.data.live": ("StockDataStream", "CryptoDataStream", "OptionDataStream", "NewsDataStream"),
    "alpaca.trading.stream": ("TradingStream",),
}
MARKET = [feed for feed in feed_names() if (known := endpoint(feed)) and known.dialect is Dialect.MARKET]


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory; standard input is not a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return tmp_path


def test_the_written_configuration_is_valid(working_directory: Path, call: Call) -> None:
    result = call("init", "my proxy.yaml")
    path = working_directory / "my proxy.yaml"
    assert result.code == 0
    assert result.err == ""
    assert path.stat().st_mode & 0o777 == 0o600
    config = configuration.load(path, ENVIRON)
    assert configuration.warnings(config, path) == []
    assert config.accounts["paper"].trading == "paper"


def printed_clients(output: str) -> list[tuple[str, str, str]]:
    """The names, keys and secrets that `init` prints."""
    return re.findall(r'^# (\S+)$.*?^KEY = "(\S+)"$\s^SECRET = "(\S+)"$', output, re.MULTILINE | re.DOTALL)


def test_the_secret_is_printed_and_stored_as_a_digest(working_directory: Path, call: Call) -> None:
    result = call("init", "proxy.yaml")
    [(_, key, secret)] = printed_clients(result.out)
    assert secret not in Path("proxy.yaml").read_text()
    directory = configuration.load(Path("proxy.yaml"), ENVIRON).directory
    assert directory.authenticate(key, secret) is not None
    call("init", "second.yaml")
    assert configuration.load(Path("second.yaml"), ENVIRON).directory.authenticate(key, secret) is None


@pytest.mark.parametrize("name", ["where.yaml", "some where.yaml"])
def test_output_names_the_next_commands(working_directory: Path, call: Call, name: str) -> None:
    """The output and the file have the commands for the written file."""
    (working_directory / "some").mkdir()
    result = call("init", f"some/{name}")
    quoted = shlex.quote(f"some/{name}")
    for arguments in (f"check -c {quoted}", f"-c {quoted}", f"schema > some/{SCHEMA_FILE}"):
        assert f"  python3 -m proxy {arguments}\n" in f"{result.out}\n"
        assert f"#   python3 -m proxy {arguments} " in Path("some", name).read_text()
    first = Path("some", name).read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA_FILE}"


def test_no_folder_is_created_without_a_question(working_directory: Path, call: Call) -> None:
    for arguments in ([], ["--yes"]):
        result = call("init", *arguments)
        assert (result.code, result.out) == (1, "")
        sentence = "there is no folder config; create it, or name a file elsewhere, as in `init my-proxy.yaml`\n"
        assert result.err == sentence
    assert not (working_directory / "config").exists()


def test_clients_for_scripts(working_directory: Path, call: Call) -> None:
    """The same name adds to what it may see; order updates are those of its own orders, unless they are given."""
    given = ["one:iex:trades:AAPL,MSFT", "two:crypto:*:BTC/USD", "one:iex:trades:TSLA,AAPL", "one:opra:trades:SPY*",
             "two:trading:trade_updates:x-*,symbol:BTCUSD"]  # fmt: skip
    result = call("init", "proxy.yaml", "--yes", *(word for value in given for word in ("--client", value)))
    assert (result.code, result.err) == (0, "")
    clients = configuration.load(Path("proxy.yaml"), ENVIRON).clients
    assert {name: entry.allow for name, entry in clients.items()} == {
        "one": {
            "iex": {"trades": ("AAPL", "MSFT", "TSLA")},
            "opra": {"trades": ("SPY*",)},
            "trading": {"trade_updates": ("one-*",)},
        },
        "two": {"crypto": {"*": ("BTC/USD",)}, "trading": {"trade_updates": ("x-*", "symbol:BTCUSD")}},
    }
    assert [name for name, _, _ in printed_clients(result.out)] == ["one", "two"]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("one", "should be NAME:FEED:CHANNEL:SYMBOLS, as in momentum:iex:trades:AAPL,MSFT"),
        ("my algo:iex:trades:AAPL", '"my algo" cannot be a name; use letters, digits, dots, dashes and underscores, '
         '64 at most; did you mean "my-algo"?'),
        ("one:iexx:trades:AAPL", 'unknown feed; did you mean "iex"?'),
        ("one:iex:trade:AAPL", '"trade" is no channel of iex; did you mean "trades"?'),
        ("one:iex:trades:AAPL;MSFT", '"AAPL;MSFT" has ";", which no symbol has'),
        ("one:iex:trades:$AAPL", '"$AAPL" has "$", which no symbol has; did you mean "AAPL"?'),
        ("one:iex:trades:???", '"???" has "?", which no symbol has'),
        (f"one:iex:trades:{'A' * 25}", f'"{"A" * 25}" is longer than any symbol'),
        ("one:iex:trades:", "should be one symbol at least"),
        ("one:iex:trades:aapl,X", '"aapl" is in lower case, and symbols are in upper case; did you mean "AAPL X"?'),
        ("one:crypto:trades:BTCUSD", '"BTCUSD" is no pair, such as BTC/USD; did you mean "BTC/USD"?'),
        ("one:sip:trades:BTC/USD", '"BTC/USD" is a pair of crypto; list it under crypto'),
    ],
)  # fmt: skip
def test_impossible_clients_are_usage_errors(working_directory: Path, call: Call, value: str, sentence: str) -> None:
    result = call("init", "proxy.yaml", "--client", value)
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1] == f"alpaca-proxy init: error: argument --client: {sentence}"
    assert not Path("proxy.yaml").exists()


def test_the_printed_lines_connect_to_a_proxy_that_runs_the_file(
    working_directory: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` accepts the file, and each stream of alpaca-py would log in at its URL."""
    clients = [f"one:{feed}:*:*" for feed in MARKET if feed != "opra"] + ["two:opra:trades:*"]
    out = call("init", "proxy.yaml", "--yes", *(word for value in clients for word in ("--client", value))).out
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    assert call("check", "-c", "proxy.yaml").code == 0
    with Path("proxy.yaml").open("a") as file:
        file.write("listen: {port: 0}\nadmin: {port: 0}\n")
    streams: list[tuple[str, str, str, str]] = []
    for module, classes in ALPACA_PY.items():
        constructors = {
            name: lambda key, secret, url_override, name=name: streams.append((name, key, secret, url_override))
            for name in classes
        }
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**constructors))
    exec(out.partition("not shown again:\n")[2].partition("\nWith other SDKs")[0])
    with Process("-c", "proxy.yaml", folder=working_directory) as proxy:
        address = proxy.address()
        feeds = []
        for name, key, secret, url in streams:
            assert url.startswith("ws://127.0.0.1:8765/")
            path = url.removeprefix("ws://127.0.0.1:8765")
            feed = feed_of_path(path, "iex")
            assert feed is not None
            feeds.append(feed)
            kinds = {"opra": "Option", "indicative": "Option", "news": "News", "trading": "Trading"}
            kind = kinds.get(feed, "Crypto" if "crypto" in feed else "Stock")
            assert name.startswith(kind)
            with dial(address, path, codec="msgpack" if kind == "Option" else "json") as client:
                if kind != "Trading":
                    assert client.receive() == CONNECTED
                client.log_in(key, secret)
    assert sorted(feeds) == sorted([*MARKET, "trading", "trading"])


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


def test_unwritable_paths(working_directory: Path, call: Call) -> None:
    (working_directory / "file").write_text("")
    for path, reason in {
        "file/proxy.yaml": "there is no folder file; create it, or name a file elsewhere",
        "a" * 300: f"cannot write {'a' * 300}: File name too long; name another file",
    }.items():
        result = call("init", path)
        assert (result.code, result.err) == (1, f"{reason}, as in `init my-proxy.yaml`\n")


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
    assert typed("", "", "", "") == Answers()
    assert typed() == typed("", "", "", "")


def test_each_algorithm_has_its_own_feed_and_symbols() -> None:
    """An empty line takes the answer for the algorithm before it, or the examples of another feed."""
    lines = ["LIVE", "one, two,two,three , four", "crypto", "BTC/USD,ETH/*", "", "*", "", "", "opra", ""]
    assert typed(*lines) == Answers(
        "live",
        {
            "one": market("crypto", ("BTC/USD", "ETH/*")),
            "two": market("crypto", ("*",)),
            "three": market("crypto", ("*",)),
            "four": market("opra", ("AAPL*",)),
        },
    )


def test_invalid_answers_are_explained_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """The answer is asked for again; Enter takes the proposal."""
    answers = typed("sandbox", "paper", "é", ",", "my algo, other one", "", "iexx", "sip", "A*B", "BTC/USD",
                    "aapl msft", "", "crypto", "BTCUSD", "")  # fmt: skip
    assert answers == Answers(
        "paper", {"my-algo": market("sip", ("AAPL", "MSFT")), "other-one": market("crypto", ("BTC/USD",))}
    )
    refusals = [line for line in capsys.readouterr().err.splitlines() if "] " in line]
    sentences = [line.partition("]   ")[2] for line in refusals]
    name = "cannot be a name; use letters, digits, dots, dashes and underscores, 64 at most"
    assert [sentence for sentence in sentences if sentence] == [
        'should be "paper" or "live"',
        f'"é" {name}',
        "should be one name at least",
        f'"my algo" {name}; did you mean "my-algo, other-one"?',
        'unknown feed "iexx"; did you mean "iex"?',
        '"A*B" has a "*" elsewhere than at its end',
        '"BTC/USD" is a pair of crypto; list it under crypto',
        '"aapl" is in lower case, and symbols are in upper case; did you mean "AAPL MSFT"?',
        '"BTCUSD" is no pair, such as BTC/USD; did you mean "BTC/USD"?',
    ]


def test_a_proposal_that_is_invalid_itself_is_no_default() -> None:
    assert typed("paper", "one", "crypto", "aapl", "") == Answers(
        "paper", {"one": market("crypto", ("BTC/USD", "ETH/USD"))}
    )


# Written file


@pytest.mark.parametrize("feed", MARKET)
@pytest.mark.parametrize("trading", ["paper", "live"])
def test_every_feed_makes_a_valid_file(feed: str, trading: str) -> None:
    clients = [NewClient("one"), NewClient("a-rather-long-name.2")]
    text = starter(
        Answers(trading, {client.name: market(feed, examples(feed)) for client in clients}),
        clients,
        Path("config/proxy.yaml"),
    )
    config = configuration.parse(text, "proxy.yaml", ENVIRON, Path())
    assert config.accounts[trading].trading == trading
    assert all(feed in entry.allow for entry in config.clients.values())
    assert max(map(len, text.splitlines())) <= 120


symbols = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=",*"), min_size=1, max_size=20)


@given(st.lists(st.one_of(symbols, symbols.map("{}*".format), st.just("*")), min_size=1, max_size=5, unique=True))
def test_symbols_survive_yaml(entries: list[str]) -> None:
    """Also symbols that are special in YAML: `on`, `1e5`, `{`, `- `, `#`."""
    text = starter(Answers(clients={"one": market("iex", tuple(entries))}), [NewClient("one")], Path("proxy.yaml"))
    assert yaml.safe_load(text)
    allow = configuration.parse(text, "proxy.yaml", ENVIRON, Path()).clients["one"].allow
    assert allow["iex"]["trades"] == tuple(entries)


names = st.from_regex(rules._NAME, fullmatch=True)


@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_names_survive_yaml(algorithms: list[str]) -> None:
    clients = {name: market("iex", ("AAPL",)) for name in algorithms}
    text = starter(Answers(clients=clients), [NewClient(name) for name in algorithms], Path("proxy.yaml"))
    assert list(configuration.parse(text, "proxy.yaml", ENVIRON, Path()).clients) == algorithms


def test_questions_on_a_terminal(tmp_path: Path) -> None:
    """The folder is created after a question."""
    with Terminal("init", folder=tmp_path) as terminal:
        for question, answer in (
            ("There is no folder config; create it? [yes]", ""),
            ("paper or live? [paper]", ""),
            ("with commas between them? [momentum]", "a b"),
            ("with commas between them? [a-b]", ""),
            ("for a-b (iex, sip, crypto, …)? [iex]", "crypto"),
            ("Symbols that a-b may see (* for all)? [BTC/USD ETH/USD]", "*"),
        ):
            terminal.wait_for(lambda question=question: "".join(terminal.printed[-1:]).endswith(question), question)
            terminal.write(f"{answer}\n")
        assert terminal.end() == 0
        [(name, _, _)] = printed_clients("\n".join(terminal.printed))
    assert name == "a-b"
    config = configuration.load(tmp_path / "config" / "proxy.yaml", ENVIRON)
    assert config.clients["a-b"].allow["crypto"]["trades"] == ("*",)


def test_a_folder_that_is_not_wanted(tmp_path: Path) -> None:
    with Terminal("init", "new/proxy.yaml", folder=tmp_path) as terminal:
        terminal.wait_for(lambda: "".join(terminal.printed[-1:]).endswith("create it? [yes]"), "asked")
        terminal.write("no\n")
        assert terminal.end() == 1
        assert terminal.printed[-1].startswith("there is no folder new; create it, or name a file elsewhere")
    assert not (tmp_path / "new").exists()


def test_yes_asks_nothing_on_a_terminal(tmp_path: Path) -> None:
    with Terminal("init", "proxy.yaml", "--yes", folder=tmp_path) as terminal:
        assert terminal.end() == 0
        assert terminal.printed[0] == "Wrote proxy.yaml, readable by you alone (mode 0600)."
