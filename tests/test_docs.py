"""What the documentation says is so: its links, commands, configurations, file names, metrics and events."""

from __future__ import annotations

import http.client
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.cli import main
from proxy.cli.parser import parser
from proxy.config import model as configuration
from tests.harness import Harness

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
FIRST = "python3 build_zipapp.py && python3 alpaca-proxy.pyz demo"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -r tests/requirements.txt && .venv/bin/pytest"
ENVIRON = {"APCA_API_KEY_ID": "PKAAAABBBB1111", "APCA_API_SECRET_KEY": "canary", "MOMENTUM_SECRET": "canary"}
FOLDERS = ("proxy", "tests", "config", "docs", "benchmarks", r"\.ci")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks of a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def anchors(page: Path) -> set[str]:
    """The names of its headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each call of this program that the page shows; a name in capitals stands for a value."""
    text = page.read_text("utf-8")
    shown = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    shown += re.findall(r"`([^`\n]+)`", text)
    for line in shown:
        for match in re.finditer(r"(?:alpaca-proxy\.pyz|-m proxy)(?= |$)([^&|;>()]*)", line):
            yield shlex.split(match[1], comments=True)


def understood(arguments: list[str]) -> bool:
    """Whether the command line is no usage error; `--help` and `--version` end well."""
    try:
        parser().parse_args(arguments)
    except SystemExit as end:
        return not end.code
    return True


# README


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 400


def test_readme_begins_with_the_two_commands() -> None:
    assert [block.strip() for block in blocks(ROOT / "README.md", "sh")[:2]] == [FIRST, TESTS]


def test_readme_keeps_its_order() -> None:
    """What a reader asks first comes first."""
    text = (ROOT / "README.md").read_text("utf-8")
    order = ["Point your SDK here", "Configure", "Allowlists and keys", "Run it on a VPS", "Watch it",
             "What happens when …", "Limits", "What it costs", "Questions", "Develop", "License"]  # fmt: skip
    places = [text.index(f"\n## {heading}\n") for heading in order]
    assert places == sorted(places)


def test_the_example_of_explain_is_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [example] = [block for block in blocks(ROOT / "README.md", "sh") if " explain " in block]
    command, said = example.splitlines()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "proxy.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0])
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    assert main(shlex.split(command)[2:]) == 0
    assert f"# {capsys.readouterr().out}" == f"{said}\n"


# Every page


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@each_page
def test_commands_are_ones_that_it_understands(page: Path) -> None:
    for arguments in commands(page):
        asked = ["1" if word == "N" else "bash" if word == "SHELL" else word for word in arguments]
        assert understood(asked), f"{page.name} shows {shlex.join(arguments)}"


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    names = re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", page.read_text("utf-8"))
    made = {"config/alpaca-proxy.schema.json"}  # by a command that stands beside it
    assert [name for name in names if name not in made and not (ROOT / name).exists()] == []


@each_page
def test_configurations_are_good(page: Path) -> None:
    for block in blocks(page, "yaml"):
        if "accounts:" in block:
            configuration.parse(block, page.name, ENVIRON, ROOT)


@each_page
def test_lines_are_not_too_long(page: Path) -> None:
    """But for tables, which cannot be broken."""
    lines = page.read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


# Reference and operations


def test_the_reference_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    """If not: python3 -m proxy schema --markdown > docs/configuration.md"""
    assert main(["schema", "--markdown"]) == 0
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == capsys.readouterr().out


def test_every_metric_is_documented_and_every_documented_metric_exists(start: Callable[..., Harness]) -> None:
    proxy = start('  alpha: {key: alpha, secret: alpha, allow: {iex: "*"}}')
    client = proxy.client("alpha")
    client.subscribe(trades=["AAPL"])
    client.numbers("AAPL", proxy.publish("iex", "AAPL", 3))
    connection = http.client.HTTPConnection(*proxy.gateway.admin.address, timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    families = [family for family in text_string_to_metric_families(text) if family.name.startswith("alpaca_proxy_")]
    exist = {family.name + ("_total" if family.type == "counter" else ""): family for family in families}
    table = re.findall(r"^\| `(alpaca_proxy_\w+)` \| (\w+) \|", (ROOT / "docs" / "operations.md").read_text(), re.M)
    assert dict(table) == {name: family.type for name, family in exist.items()}
    for page in PAGES:
        named = set(re.findall(r"\balpaca_proxy_[a-z_]*[a-z]", page.read_text("utf-8")))
        assert {re.sub("_(bucket|sum|count)$", "", name) for name in named} <= set(exist), page.name


def test_the_alerts_are_those_that_there_are() -> None:
    there = re.findall(r"- alert: (\w+)", (ROOT / "config" / "prometheus" / "alerts.yml").read_text("utf-8"))
    told = re.findall(r"^\| `(AlpacaProxy\w+)` \|", (ROOT / "docs" / "operations.md").read_text("utf-8"), re.MULTILINE)
    assert told == there


def test_every_documented_event_is_one_that_is_logged() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "proxy").rglob("*.py"))
    events = re.findall(
        r"`((?:proxy|session|upstream|gateway|listener|outbox)\.[a-z_]+)`",
        (ROOT / "docs" / "operations.md").read_text(),
    )
    assert events
    for event in events:
        part, _, name = event.partition(".")
        assert f'Log("{part}"' in sources, event
        assert f'"{name}"' in sources, event


def test_every_event_that_is_logged_is_documented() -> None:
    """An event is the first text of a call of a log's method, in a module that has one log."""
    documented = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for path in (ROOT / "proxy").rglob("*.py"):
        source = path.read_text("utf-8")
        for part in set(re.findall(r'(?<!`)Log\("(\w+)"', source)):
            for name in re.findall(r'\b(?:log|warn|\))(?:\.(?:info|warning|error))?\(\s*"([a-z_]+)"[,)]', source):
                assert f"`{part}.{name}`" in documented, f"{path.name} logs {part}.{name}"
