"""The documentation is correct.

Checked are links, commands, configurations, file names, metrics and events.
"""

from __future__ import annotations

import http.client
import re
import shlex
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from docs import make_configuration
from proxy.cli import demonstration, main, overview, sdk_lines
from proxy.cli.parser import parser
from proxy.config import model as configuration
from proxy.observe import metrics
from proxy.observe.version import __version__
from proxy.simulator.fault_settings import FaultSettings
from tests.harness import Harness
from tests.sdk.replays.peers import CSHARP, GO
from tests.sdk.sdks import SDKS, WEBSOCAT
from tests.snapshots import feed, snapshot

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), EXAMPLES / "README.md"])
FIRST = "python3 build_zipapp.py && python3 alpaca-proxy.pyz demo"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -r tests/requirements.txt && .venv/bin/pytest"
ENVIRON = {"APCA_API_KEY_ID": "PKAAAABBBB1111", "APCA_API_SECRET_KEY": "canary", "MOMENTUM_SECRET": "canary"}
FOLDERS = ("proxy", "tests", "config", "docs", "benchmarks", "examples", r"\.ci")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks of a language, without their indentation."""
    matches = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in matches]


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each call of this program on the page.

    A name in capitals is a placeholder.
    """
    text = page.read_text("utf-8")
    shown = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    shown += re.findall(r"`([^`\n]+)`", text)
    for line in shown:
        for match in re.finditer(r"(?:alpaca-proxy\.pyz|-m proxy)(?= |$)([^&|;>()]*)", line):
            yield shlex.split(match[1], comments=True)


def is_valid(arguments: list[str]) -> bool:
    """Whether the command line is no usage error; `--help` and `--version` are valid."""
    try:
        parser().parse_args(arguments)
    except SystemExit as exit_:
        return not exit_.code
    return True


# README


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 400


def test_readme_has_the_two_commands() -> None:
    """The first one first, the tests' under "Develop"."""
    shown = [block.strip() for block in blocks(ROOT / "README.md", "sh")]
    assert shown[0] == FIRST
    assert TESTS in shown
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.index("\n## Develop\n") < text.index(TESTS)


def test_readme_keeps_its_order() -> None:
    """The headings are in the order in which a reader needs them."""
    text = (ROOT / "README.md").read_text("utf-8")
    order = ["Try it", "Three steps to your own", "Point your SDK here", "Configure", "Allowlists and keys",
             "Run it on a VPS", "Watch it", "What happens when …", "Limits", "What it costs", "Questions", "Develop",
             "License"]  # fmt: skip
    positions = [text.index(f"\n## {heading}\n") for heading in order]
    assert positions == sorted(positions)


def test_the_steps_for_missing_data_name_what_exists() -> None:
    """Events, columns and settings; the order is that of the causes from the client to the market."""
    text = (ROOT / "README.md").read_text("utf-8").partition("**Subscribed, but nothing comes.**")[2].partition("**")[0]
    events = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for event in re.findall(r"`((?:session|upstream)\.\w+)`", text):
        assert f"| `{event}` |" in events
    columns = re.findall(r"`([A-Z]{3,})`", text)
    assert {"TOPICS", "LAST", "DELIVERED"} <= set(columns) <= {*overview.FEED, *overview.CLIENT, "FAKEPACA"}
    configuration.parse(f"log: {{level: debug}}\n{blocks(ROOT / 'README.md', 'yaml')[0]}", "proxy.yaml", ENVIRON, ROOT)
    order = ["client there", "`live`", "confirmed the topics", "allowlist", "market open", "debug"]
    positions = [text.index(words) for words in order]
    assert positions == sorted(positions)


def test_the_example_of_explain_prints_the_output_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [example] = [block for block in blocks(ROOT / "README.md", "sh") if " explain " in block]
    command, output = example.splitlines()
    (tmp_path / "my-proxy.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0])
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    assert main(shlex.split(command)[2:]) == 1
    assert f"# {capsys.readouterr().out}" == f"{output}\n"


# SDKs


def test_the_lines_that_init_prints_for_each_sdk_are_those_of_the_documentation() -> None:
    """The SDK's row in README or docs/sdks.md has each argument word for word, with HOST in place of the address."""
    documented = "".join((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/sdks.md"))
    name = ""
    printed: dict[str, list[str]] = {}
    for line in sdk_lines.others(["iex"]).replace(sdk_lines.ADDRESS, "HOST:8765").splitlines():
        name, argument = line[:20].strip() or name, line[20:].strip(" ,")
        printed.setdefault(name, []).append(argument.removeprefix("Stream(…, "))
    printed["alpaca-trade-api"][-1] = printed["alpaca-trade-api"][-1].removesuffix(")")  # of Stream(…)
    assert len(printed) == 5
    for name, arguments in printed.items():
        rows = re.findall(rf"^\| {name.replace(' ', ' v?')}(?!\w).*", documented, re.MULTILINE)
        assert any(all(argument in row for argument in arguments) for row in rows), name


def test_the_lines_that_init_prints_for_alpaca_py_have_the_classes_and_paths_of_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert 'StockDataStream(KEY, SECRET, url_override="ws://HOST:8765/v2/iex")' in text
    for feed_name in ("iex", "crypto", "news", "opra", "trading"):
        printed = sdk_lines.alpaca_py("momentum", "secret", [feed_name])
        [(name, path)] = re.findall(r' = (\w+)\(KEY, SECRET, url_override=URL \+ "(/[\w/]+)"\)$', printed)
        assert re.search(rf"`{name}\b[^|]{{0,60}}{path}\b", text), (name, path)


# CHANGELOG


def test_the_changelog_begins_with_this_version_and_its_date() -> None:
    """Only a section of what is not released yet may stand above it."""
    headings = re.findall("^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    if headings[0] == "[Unreleased]":
        del headings[0]
    version, _, day = headings[0].partition(" - ")
    assert version == f"[{__version__}]"
    assert date.fromisoformat(day)


# Every page


@each_page
def test_links_have_targets(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


@each_page
def test_commands_are_valid_command_lines(page: Path) -> None:
    for arguments in commands(page):
        filled = ["1" if word == "N" else "bash" if word == "SHELL" else word for word in arguments]
        assert is_valid(filled), f"{page.name} shows {shlex.join(arguments)}"


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    names = re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./@-]*\w)", page.read_text("utf-8"))
    generated = {"config/alpaca-proxy.schema.json"}  # by the command that the page shows beside it
    names = [name for name in names if name not in generated and not (ROOT / "tests" / name).exists()]
    assert [name for name in names if not (ROOT / name).exists()] == []


@each_page
def test_configurations_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        if "accounts:" in block:
            configuration.parse(block, page.name, ENVIRON, ROOT)


@each_page
def test_lines_are_not_too_long(page: Path) -> None:
    """Tables are exempt: their lines cannot be broken."""
    lines = page.read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_each_page_begins_with_its_purpose(page: Path) -> None:
    heading, first = re.sub("<!--.*?-->\n\n", "", page.read_text("utf-8")).split("\n\n")[:2]
    assert heading.startswith("# ")
    assert first.startswith("This page ")


def test_the_faults_of_every_page_are_those_of_the_simulator() -> None:
    """Each `curl` to `/faults`, and each row of the table; every setting has a row."""
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    queries = re.findall(r'curl -X POST "http://127\.0\.0\.1:8770/faults\?([^"]+)"', text)
    assert len(queries) > 10
    for query in queries:
        FaultSettings().changed({name: "off" if value == "now" else value for name, value in parse_qsl(query)})
    rows = re.findall(
        r"^\| `--([a-z-]+) ?([^`]*)` \| `([a-z-]+)=([^`]+)` \|", (ROOT / "docs/rehearse.md").read_text(), re.M
    )
    assert [(name, value or "on") for name, value, _, _ in rows] == [(name, value) for _, _, name, value in rows]
    for name, value, _, _ in rows:
        assert is_valid(["simulate", f"--{name}", *value.split()]), name
    settings = FaultSettings().changed({name: value for _, _, name, value in rows})
    defaults = FaultSettings().document()
    assert all(value != defaults[name] for name, value in settings.document().items())


# Examples


def test_the_examples_are_those_that_their_page_lists() -> None:
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*") if path.is_file()}
    listed = re.findall(r"^\| \[([^]]+)\]\(\1\) \|", (EXAMPLES / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted([*listed, "README.md", "tls.yaml"]) == sorted(files)


def test_the_examples_install_the_releases_that_the_tests_run() -> None:
    """Those that tests/sdk installs; of Go and .NET, those whose sessions tests/sdk/replays plays."""
    python = next(sdk.version for sdk in SDKS if sdk.name == "alpaca-py")
    older = next(sdk.version for sdk in SDKS if sdk.name == "alpaca-trade-api")
    javascript = {sdk.version[0]: sdk.version for sdk in SDKS if sdk.name == "javascript"}
    installed = {
        "alpaca_py.py": f"alpaca-py=={python}",
        "trade_api.py": f"alpaca-trade-api=={older}",
        "javascript-4.js": f"@alpacahq/alpaca-trade-api@{javascript['4']}",
        "javascript-3.js": f"@alpacahq/alpaca-trade-api@{javascript['3']}",
        "websocat.sh": WEBSOCAT.requirements[0],
        "go/main.go": f"v3@v{GO.partition('APCA-GO/')[2].split()[0]}",
        "csharp/Program.cs": f"--version {CSHARP.partition('dotNET-SDK/')[2].split()[0]}.0",
    }
    page = (EXAMPLES / "README.md").read_text("utf-8")
    for name, requirement in installed.items():
        line = rf"Install: .*{re.escape(requirement)}(?![.\d]*\d)"
        assert re.search(line, (EXAMPLES / name).read_text("utf-8")), name
        version = re.split(r"[@= ]v?", requirement)[-1]
        assert re.search(rf"\]\({re.escape(name)}\) \| [^|]*\b{re.escape(version)}\b", page), name


def test_the_examples_have_the_address_and_a_client_of_the_demo() -> None:
    assert "momentum: {{key: momentum, secret: momentum," in demonstration.CONFIG
    for name in re.findall(r"^\| \[([^]]+)\]", (EXAMPLES / "README.md").read_text("utf-8"), re.MULTILINE):
        program = (EXAMPLES / name).read_text("utf-8")
        for setting, default in (
            ("URL", r"(ws|http)://127\.0\.0\.1:8765"),
            ("KEY", "momentum"),
            ("SECRET", "momentum"),
        ):
            assert re.search(rf'ALPACA_PROXY_{setting}\b"?(\)? \?\? "|, "|:-){default}["}}]', program), (name, setting)


def test_the_examples_page_has_the_same_command_for_a_certificate() -> None:
    [command] = [block for block in blocks(ROOT / "docs" / "sdks.md", "sh") if block.startswith("openssl")]
    assert command in (EXAMPLES / "README.md").read_text("utf-8")


# The checks before a commit


def test_the_hooks_before_a_commit_run_the_static_checks_of_ci() -> None:
    """With the tools of .venv, so that no version is written down a second time."""
    [section] = re.findall(
        r"^say 'format, lint, .*\n((?:\.venv.*\n)+)", (ROOT / ".ci" / "run").read_text("utf-8"), re.M
    )
    [repo] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert repo["repo"] == "local"
    assert [hook["entry"] for hook in repo["hooks"]] == section.splitlines()
    for hook in repo["hooks"]:
        assert (hook["language"], hook["always_run"], hook["pass_filenames"]) == ("system", True, False)


# Reference and operations


def test_the_reference_is_current() -> None:
    """Update it with `python3 docs/make_configuration.py > docs/configuration.md`."""
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == make_configuration.document()


def test_the_reference_describes_every_setting() -> None:
    reference = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    schema = configuration.schema()
    for section in (schema, *schema["$defs"].values()):
        for name in section["properties"]:
            assert f"| `{name}` | " in reference
    assert "|  |" not in reference


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
    exported = {family.name + ("_total" if family.type == "counter" else ""): family for family in families}
    table = re.findall(r"^\| `(alpaca_proxy_\w+)` \| (\w+) \|", (ROOT / "docs" / "operations.md").read_text(), re.M)
    assert dict(table) == {name: family.type for name, family in exported.items()}
    for page in PAGES:
        named = set(re.findall(r"\balpaca_proxy_[a-z_]*[a-z]", page.read_text("utf-8")))
        assert {re.sub("_(bucket|sum|count)$", "", name) for name in named} <= set(exported), page.name


@pytest.mark.parametrize("accounts", [1, 2])
def test_every_metric_is_documented_with_its_labels_and_its_help(accounts: int) -> None:
    """With several accounts, the metrics of a feed have the label `account` too, as the text above the table says."""
    table = re.findall(
        r"^\| `(alpaca_proxy_\w+)` \| \w+ \| ([^|]*) \| (.+) \|$", (ROOT / "docs" / "operations.md").read_text(), re.M
    )
    documented = {name: (set(re.findall(r"`(\w+)`", labels)), text) for name, labels, text in table}
    if accounts > 1:
        for name, (labels, _) in documented.items():
            of_a_feed = name.startswith(("alpaca_proxy_feed_", "alpaca_proxy_order_", "alpaca_proxy_cluster_"))
            labels |= {"account"} if of_a_feed and "feed" in labels else set()
    labels_of: dict[str, set[str]] = {}
    text_of = {}
    feeds = feed(), feed("trading", unowned=0, recovered=0)
    for family in metrics.families(snapshot(accounts=accounts, feeds=feeds)):
        if family.name.startswith("alpaca_proxy_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            text_of[name] = family.documentation
            for sample in family.samples:
                labels_of.setdefault(name, set()).update({*sample.labels} - {"le"})
    assert labels_of == {name: labels for name, (labels, _) in documented.items()}
    assert text_of == {name: text for name, (_, text) in documented.items()}


def test_the_documented_alerts_are_those_of_alerts_yml() -> None:
    defined = re.findall(r"- alert: (\w+)", (ROOT / "config" / "prometheus" / "alerts.yml").read_text("utf-8"))
    operations = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert re.findall(r"^\| `(AlpacaProxy\w+)` \|", operations, re.MULTILINE) == defined


def test_every_documented_event_is_logged() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "proxy").rglob("*.py"))
    events = re.findall(
        r"`((?:proxy|session|upstream|orders|gateway|listener|outbox|recording|cluster|node)\.[a-z_]+)`",
        (ROOT / "docs" / "operations.md").read_text(),
    )
    assert events
    for event in events:
        part, _, name = event.partition(".")
        assert f'Log("{part}"' in sources, event
        assert f'"{name}"' in sources, event


def test_every_logged_event_is_documented() -> None:
    """An event is the first string argument of a log call, in a module with one log. It has a row in the table."""
    rows = re.findall(
        r"^\| ((?:`[a-z_.]+`(?:, )?)+) \| (?:debug|info|warning|error)\b",
        (ROOT / "docs" / "operations.md").read_text("utf-8"),
        re.MULTILINE,
    )
    documented = {event for row in rows for event in re.findall("`([a-z_.]+)`", row)}
    logged = set()
    for path in (ROOT / "proxy").rglob("*.py"):
        source = path.read_text("utf-8")
        for part in set(re.findall(r'(?<!`)Log\("(\w+)"', source)):
            for name in re.findall(
                r'(?:\b_?log|\bwarn|\))(?:\.(?:debug|info|warning|error))?\(\s*"([a-z_]+)"[,)]', source
            ):
                logged.add(f"{part}.{name}")
    assert {"cluster.leads", "upstream.request", "upstream.silent"} <= logged
    assert logged - documented == set()


def test_every_test_that_a_page_names_exists() -> None:
    named = {name for page in PAGES for name in re.findall(r"`([a-z_/]+\.py::\w+)`", page.read_text("utf-8"))}
    assert named
    for name in named:
        path, _, test = name.partition("::")
        source = (ROOT / "tests" / path).read_text("utf-8")
        assert f"def {test}(" in source or f"\n{test} = " in source, name


# The architecture


def test_every_module_that_the_architecture_names_exists_and_has_the_functions_named_beside_it() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    modules = set(re.findall(r"(?<![\w/])([a-z_]+/[a-z_]+\.py)(?!::)", text))
    assert len(modules) > 30
    assert [name for name in modules if not (ROOT / "proxy" / name).exists() and not (ROOT / name).exists()] == []
    functions = re.findall(r"([a-z_]+/[a-z_]+\.py):(?:<br>| )(\w+)(?=<br>|\"|,|$)", text, re.MULTILINE)
    assert ("routing/router.py", "take") in functions
    for module, function in functions:
        assert f"def {function}(" in (ROOT / "proxy" / module).read_text("utf-8"), f"{module}: {function}"


def test_every_call_that_the_architecture_draws_exists() -> None:
    """In the sequence, an arrow's first word is a method of the module that it points to."""
    [drawing] = [block for block in blocks(ROOT / "docs" / "architecture.md", "mermaid") if "sequence" in block]
    modules = dict(re.findall(r"participant (\w) as (\S+\.py)$", drawing, re.MULTILINE))
    calls = [(at, name) for at, name in re.findall(r"->>(\w): ([a-z_]+)(?=[:\s]|$)", drawing) if at in modules]
    assert ("R", "next_request") in calls
    for at, name in calls:
        if name not in ("subscribe", "subscription"):  # messages
            assert f"def {name}(" in (ROOT / "proxy" / modules[at]).read_text("utf-8"), f"{modules[at]}: {name}"


def test_everything_that_is_deliberate_names_its_test() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    sections = text.partition("## Invariants")[2].partition("## What looks like a bug and is deliberate")
    for section in (sections[0], sections[2]):
        entries = re.findall(r"^- .+(?:\n  .+)*", section, re.MULTILINE)
        assert len(entries) > 10
        assert [entry for entry in entries if ".py::" not in entry] == []
