"""YAML as a tree of text with positions, with both of PyYAML's parsers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import references, yamlfile
from proxy.config.errors import ConfigError, Problem
from proxy.config.yamlfile import Items, Table, Text, YamlDocument

PARSERS = [yaml.BaseLoader] + ([yaml.CBaseLoader] if yaml.__with_libyaml__ else [])
SIGNS = st.text(alphabet="ab:*&!{}[]-\"'\\\n\t $#|>%@`,?~<.0Uux\x85\u2028é", max_size=40)

both_parsers = pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)


def parsed(
    text: str, environ: Mapping[str, str] | None = None, folder: Path = Path(), parser: type | None = None
) -> YamlDocument:
    with patch.object(yamlfile, "_LOADER", parser or yamlfile._LOADER):
        return yamlfile.parse(text, name="f.yaml", environ=environ or {}, folder=folder)


def refusal(text: str, parser: type | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text, parser=parser)
    return str(caught.value)


def problems(document: YamlDocument) -> list[str]:
    return [str(problem) for problem in document.problems]


@both_parsers
def test_scalars_are_not_interpreted(parser: type) -> None:
    words = [
        "ON",
        "NO",
        "TRUE",
        "yes",
        "null",
        "~",
        "1E5",
        "7203",
        "0x1F",
        "1_000",
        "2024-01-01",
        "BRK.B",
        "BTC/USD",
        "=",
    ]
    document = parsed(f"[{', '.join(words)}]", parser=parser)
    assert document.root == words
    assert all(type(text) is Text and text.literal and not text.broken for text in document.root)


@both_parsers
def test_positions_of_nodes_and_names(parser: type) -> None:
    root = parsed("a:\n  b: [é, y]\n  'c': |\n    text\n", parser=parser).root
    assert isinstance(root, Table)
    inner = root["a"]
    assert isinstance(inner, Table)
    assert (root.names_at["a"], inner.names_at["b"], inner.names_at["c"]) == ((1, 1), (2, 3), (3, 3))
    items = inner["b"]
    assert isinstance(items, Items)
    assert (items.line, items.column) == (2, 6)
    second = items[1]
    assert isinstance(second, Text)
    assert (second.line, second.column) == (2, 10)
    assert inner["c"] == "text\n"


def test_a_problem_has_the_position_of_the_nearest_existing_node() -> None:
    document = parsed("a:\n  b: [x, y]\n  c:\n")
    assert str(document.problem(("a", "b", 1), "no")) == "f.yaml:2:10: a.b[1]: no"
    assert str(document.problem(("a", "b"), "no")) == "f.yaml:2:3: a.b: no"
    assert str(document.problem(("a", "c"), "no")) == "f.yaml:3:3: a.c: no"
    assert str(document.problem(("a", "d", "e"), "missing")) == "f.yaml:1:1: a.d.e: missing"
    assert str(document.name_problem(("a", "b"), "no", "x")) == 'f.yaml:2:3: a.b: no; did you mean "x"?'
    assert document.find(("a", "b", 1)) == "y"
    assert document.find(("a", "b", 2)) is None


def test_a_problem_without_a_line_concerns_the_file() -> None:
    assert str(Problem("f.yaml", 0, 0, "", "does not exist")) == "f.yaml: does not exist"


def test_the_first_of_duplicate_keys_is_kept() -> None:
    document = parsed("a: {x: 1, y: 2, x: 3}\nb: 1\na: 4\n")
    assert document.root == {"a": {"x": "1", "y": "2"}, "b": "1"}
    assert problems(document) == [
        "f.yaml:1:17: a.x: duplicate key, first given on line 1; remove one of them",
        "f.yaml:3:1: a: duplicate key, first given on line 1; remove one of them",
    ]


@both_parsers
def test_aliases_are_not_expanded(parser: type) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    document = parsed("\n".join(["a0: &a0 x", *levels]), parser=parser)
    assert len(document.problems) == 20 + 19 * 9
    assert isinstance(document.root, Table)
    assert document.root["a19"] == [""] * 9


@both_parsers
def test_depth_is_bounded(parser: type) -> None:
    deep = "[" * 33 + "]" * 33
    assert refusal("[" * 100_000, parser) == "f.yaml:1:34: is nested deeper than 32 levels"
    assert refusal(deep.replace("[]", "[x]"), parser) == "f.yaml:1:34: is nested deeper than 32 levels"
    assert parsed("[" * 32 + "]" * 32, parser=parser).problems == ()


@both_parsers
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [*]", '1:5: a text that starts with "*" needs quotes, as in ["*"]'),
        ("a: *\nb: 1", '1:4: a text that starts with "*" needs quotes, as in ["*"]'),
        ("a: & b", '1:4: a text that starts with "&" needs quotes'),
        ("a: !<x y> b", '1:4: a text that starts with "!" needs quotes'),
        ("a: !e!x y", '1:4: a text that starts with "!" needs quotes'),
        ("a: @x", '1:4: a text that starts with "@" needs quotes'),
        ("a: `x", '1:4: a text that starts with "`" needs quotes'),
        ("a: %x", '1:4: a text that starts with "%" needs quotes'),
        ("a:\n\tb: 1", "2:1: a tab cannot indent; use spaces"),
        ("a: b: c", '1:5: an extra ":" or wrong indentation; a text with ": " needs quotes'),
        ("a: 1\n  b: 2", '2:4: an extra ":" or wrong indentation; a text with ": " needs quotes'),
        ("a: - x", '1:4: a "- " cannot stand here; start the list on the next line'),
        ("a: 1\nb\nc: 2", '2:1: a ":" is missing after this name'),
        ("a: 'x", "1:4: this quote is never closed"),
        ("a: 'x\n---\n'", "1:4: this quote is never closed"),
        ('a: "\\q"', "1:4: an unknown escape in double quotes; use single quotes"),
        ("a: [x, y\nb: 1", '1:4: this list lacks its "]", or a "," between two of its items'),
        ("a: {x: 1\nb: 1", '1:4: this "{" lacks its "}", or a "," between two of its entries'),
        ("a: |x\n y", '1:4: nothing may follow "|" or ">" on its line'),
        ("a: [x, ${X}]", '1:9: a text with "${" needs quotes inside of [ ] and { }'),
        ("a:\n  {b: x${X}}", '2:9: a text with "${" needs quotes inside of [ ] and { }'),
        ("a: [x,,y]", "1:7: a value is missing here"),
        ("a:\n  b: 1\n c: 2", "3:2: does not fit the lines above; check the indentation and the quotes"),
        ('a: "x" y', "1:8: does not fit the lines above; check the indentation and the quotes"),
        ("a: 1\n...\nb: 2", "3:1: only one document is allowed; remove the text after its end"),
        ("a: 1\n---\nb: 2", "2:1: a second document starts here; only one is allowed"),
        ("%YAML x\n---\na: 1", '1:7: a line that starts with "%" needs quotes'),
        ("a: x\x00", "1:5: the character U+0000 cannot stand in a YAML file"),
        ("é: x\nb: \x1b", "2:4: the character U+001B cannot stand in a YAML file"),
        ("a: \ud800", "1:4: the character U+D800 cannot stand in a YAML file"),
        ("", "1:1: the file is empty; `init` writes a commented one to start from"),
        ("---\n", "1:1: the file is empty; `init` writes a commented one to start from"),
    ],
)
def test_syntax_errors(parser: type, text: str, expected: str) -> None:
    assert refusal(text, parser) == f"f.yaml:{expected}"


@both_parsers
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x 1", 'a: a text that starts with "&" needs quotes'),
        ("a: !x 1", 'a: a text that starts with "!" needs quotes'),
        ("a: [*x]", 'a[0]: a text that starts with "*" needs quotes, as in ["*"]'),
        ("a: !!python/object:os.system {}", 'a: a text that starts with "!" needs quotes'),
    ],
)
def test_anchors_aliases_and_tags_are_refused(parser: type, text: str, expected: str) -> None:
    document = parsed(text, parser=parser)
    assert [str(problem).split(": ", 1)[1] for problem in document.problems] == [expected]


@both_parsers
@pytest.mark.parametrize("text", ["[a]: 1", "{a: 1}: 2", "? [a]\n: b"])
def test_names_that_are_not_text_are_refused(parser: type, text: str) -> None:
    assert "a name must be a plain text; put it in quotes if it starts with a sign" in problems(
        parsed(text, parser=parser)
    ).pop(0)


def test_a_syntax_error_comes_with_the_problems_before_it() -> None:
    assert refusal("a: ${UNSET}\nb: [").splitlines()[0] == "f.yaml:1:4: a: the environment variable UNSET is not set"


@both_parsers
@given(text=st.one_of(st.text(), SIGNS))
def test_any_text_raises_only_config_errors(parser: type, text: str) -> None:
    try:
        found = parsed(text, parser=parser).problems
    except ConfigError as error:
        found = error.problems or (Problem("no reason", 0, 0, "", ""),)
    assert all(line.startswith("f.yaml:") for problem in found for line in str(problem).splitlines())


@both_parsers
@pytest.mark.parametrize("text", ['a: "\\UFFFFFFFF"', 'a: "\\ud800"', "%YAML 1." + "1" * 5000 + "\n---\na: b"])
def test_internal_errors_of_the_parsers_become_config_errors(parser: type, text: str) -> None:
    try:
        document = parsed(text, parser=parser)
    except ConfigError:
        return
    assert problems(document) == ["f.yaml:1:4: a: is not valid Unicode"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_quoted_text_is_read_unchanged(text: str) -> None:
    written = "".join(f"\\U{ord(character):08x}" for character in text.replace("${", "$${"))
    assert parsed(f'a: "{written}"').root == {"a": text}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_the_value_of_a_variable_is_not_parsed_as_yaml(value: str) -> None:
    document = parsed("a: ${X}\nb: ['x${X}', '${X:-default}']", {"X": value})
    assert document.root == {"a": value, "b": ["x" + value, value]}
    assert document.problems == ()


@pytest.mark.parametrize(
    ("text", "value", "literal"),
    [
        ("${SET}", "value", False),
        ("<${SET}-${SET}>", "<value-value>", False),
        ("${EMPTY}", "", False),
        ("${SET:-other}", "value", False),
        ("${EMPTY:-other}", "other", True),
        ("${UNSET:-other}", "other", True),
        ("${UNSET:-}", "", True),
        ("${UNSET:-a:-b}", "a:-b", True),
        ("$${SET}", "${SET}", True),
        ("$SET $$ $", "$SET $$ $", True),
        ("${file:secret.txt}", "from a file", False),
    ],
)
def test_references(tmp_path: Path, text: str, value: str, literal: bool) -> None:
    (tmp_path / "secret.txt").write_text("from a file\r\n\n")
    document = parsed(f"a: '{text}'", {"SET": "value", "EMPTY": ""}, tmp_path)
    assert document.problems == ()
    found = document.find(("a",))
    assert isinstance(found, Text)
    assert (found, found.literal, found.written) == (value, literal, text)


def test_references_in_a_resolved_value_are_not_resolved() -> None:
    assert parsed("a: ${X}", {"X": "${Y}", "Y": "no"}).root == {"a": "${Y}"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${UNSET}", "the environment variable UNSET is not set"),
        ("${", '"${" without its "}" (they do not nest); write "$${" for a literal "${"'),
        ("${X", '"${" without its "}" (they do not nest); write "$${" for a literal "${"'),
        ("${}", '"${…}" takes NAME, NAME:-default or file:PATH; write "$${" for a literal "${"'),
        ("${1X}", '"${…}" takes NAME, NAME:-default or file:PATH; write "$${" for a literal "${"'),
        ("${X-default}", '"${…}" takes NAME, NAME:-default or file:PATH; write "$${" for a literal "${"'),
        ("${file:}", '"${…}" takes NAME, NAME:-default or file:PATH; write "$${" for a literal "${"'),
        ("${file:nowhere}", "the file 'nowhere' does not exist"),
        ("${file:.}", "the file '.' is a directory, not a file"),
        ("${file:empty}", "the file 'empty' is empty"),
        ("${file:large}", "the file 'large' is larger than 64 KiB"),
        ("${file:latin}", "the file 'latin' is not UTF-8"),
        ("${BYTES}", "is not valid Unicode"),
    ],
)
def test_references_that_cannot_be_resolved(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "large").write_bytes(b"x" * (references.MAX_FILE + 1))
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    document = parsed(f"k: {{a: '{text}'}}", {"BYTES": "caf\udce9"}, tmp_path)
    assert problems(document) == [f"f.yaml:1:8: k.a: {reason}"]
    assert document.problem(("k", "a"), "and must be a number") is None


def test_reference_to_an_invalid_path() -> None:
    document = parsed('a: "${file:x\\0y}"')
    assert problems(document) == ["f.yaml:1:4: a: the file 'x\\x00y' is not a path"]


def test_messages_quote_the_text_of_the_file_shortened() -> None:
    secret = parsed("a: ${X}", {"X": "hunter2"}).find(("a",))
    assert isinstance(secret, Text)
    assert yamlfile.quoted(secret) == '"${X}"'
    assert yamlfile.quoted("x" * 33) == "a text of 33 characters"
    assert yamlfile.quoted("a\n\x1b[2J") == '"a\\u000a\\u001b[2J"'
    assert yamlfile.dotted(("clients", "a b", "allow", "iex", "trades", 1)) == 'clients["a b"].allow.iex.trades[1]'


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "proxy.yaml"
    path.write_bytes("\ufeffa: é\n".encode())
    assert yamlfile.read(path) == "a: é\n"
    path.write_bytes(b"#" * yamlfile.MAX_FILE)
    assert len(yamlfile.read(path)) == yamlfile.MAX_FILE


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin, large = tmp_path / "latin.yaml", tmp_path / "large.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    large.write_bytes(b"#" * (yamlfile.MAX_FILE + 1))
    expected = {
        tmp_path / "none.yaml": f"{tmp_path}/none.yaml: does not exist",
        tmp_path: f"{tmp_path}: is a directory, not a file",
        tmp_path / "x\0y": f"{tmp_path}/x\0y: is not a path",
        latin: f"{latin}:2:7: is not UTF-8 from here on; save the file as UTF-8",
        large: f"{large}: is larger than 2 MiB",
    }
    for path, sentence in expected.items():
        with pytest.raises(ConfigError) as caught:
            yamlfile.read(path)
        assert str(caught.value) == sentence
