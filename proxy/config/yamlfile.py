"""YAML as a tree of text, with the position of every node.

A file becomes a tree of plain Python values that carry their position in the file: `Text` (a str), `Items` (a list)
and `Table` (a dict). Scalars are not interpreted: ON, NO, TRUE, 1E5 and 7203 stay text, and the decoders in `values`
decide which of them are numbers. Surprising features of YAML are refused, with their position: duplicate keys (the
first one is kept), anchors and aliases, tags, keys that are not text, several documents.

References such as `${NAME}` are resolved in values after parsing, so a resolved text is never parsed as YAML. They are
not resolved in names (the part before the colon).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from proxy.config import references
from proxy.config.errors import ConfigError, Problem

MAX_FILE = 2 * 1024 * 1024
MAX_DEPTH = 32
SHOWN = 32  # characters of a value that a message shows; a longer one may be a secret in the wrong place

# libyaml is about 30 times faster: without it, a reload of 10,000 symbols delays market data by a third of a second.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

_PLAIN_TAGS = (None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WORD = re.compile(r"[A-Za-z0-9_*/-]{1,64}")

Step = str | int


class Text(str):
    """A scalar. `written` is the file's text, before `${…}` is resolved; `literal`: no part came from outside the file.

    `broken` marks a value whose problem is already reported; later checks skip it.
    """

    __slots__ = ("broken", "column", "line", "literal", "written")
    line: int
    column: int
    written: str
    literal: bool
    broken: bool


class Items(list["Node"]):
    """A sequence, and its position."""

    __slots__ = ("column", "line")
    line: int
    column: int


class Table(dict[str, "Node"]):
    """A mapping, its position, and the position of each name."""

    __slots__ = ("column", "line", "names_at")
    line: int
    column: int
    names_at: dict[str, tuple[int, int]]


Node = Text | Items | Table


def dotted(path: tuple[Step, ...]) -> str:
    """Format a path: `clients.momentum.allow.iex.trades[1]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _WORD.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{quoted(step)}]"
    return text


def quoted(value: str, longest: int = SHOWN) -> str:
    """Quote a value for a message: short, one line, as written in the file (`${…}` may resolve to a secret)."""
    text = value.written if isinstance(value, Text) else value
    if len(text) > longest:
        return f"a text of {len(text)} characters"
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text) + '"'


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A parsed file: its tree, and the problems that did not stop the parser."""

    name: str
    root: Node
    problems: tuple[Problem, ...] = ()

    def find(self, path: tuple[Step, ...]) -> Node | None:
        """The node at a path, or None."""
        trail = self._trail(path)
        return trail[-1][2] if len(trail) > len(path) else None

    def problem(self, path: tuple[Step, ...], reason: str, hint: str | None = None) -> Problem | None:
        """A problem with the value at a path, placed at its nearest existing node; None if already reported."""
        line, column, node = self._trail(path)[-1]
        if isinstance(node, Text):
            if node.broken:
                return None
            if node.written:
                line, column = node.line, node.column
        return Problem(self.name, line, column, dotted(path), reason, hint)

    def name_problem(self, path: tuple[Step, ...], reason: str, hint: str | None = None) -> Problem:
        """A problem with the last name of a path."""
        line, column, _ = self._trail(path)[-1]
        return Problem(self.name, line, column, dotted(path), reason, hint)

    def _trail(self, path: tuple[Step, ...]) -> list[tuple[int, int, Node]]:
        """The existing nodes along a path from the root, each with the position of its name (or its own)."""
        node = self.root
        trail = [(node.line, node.column, node)]
        for step in path:
            if isinstance(node, Table) and isinstance(step, str) and step in node:
                place, node = node.names_at[step], node[step]
            elif isinstance(node, Items) and isinstance(step, int) and step < len(node):
                node = node[step]
                place = node.line, node.column
            else:
                break
            trail.append((*place, node))
        return trail


def read(path: Path) -> str:
    """Read a file as UTF-8 text. Raises ConfigError with one problem if that is not possible."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(str(path), 0, 0, "", references.unreadable(error))]) from None
    if len(data) > MAX_FILE:
        raise ConfigError([Problem(str(path), 0, 0, "", f"is larger than {MAX_FILE // 1024 // 1024} MiB")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start].decode("utf-8", "replace"))
        reason = "is not UTF-8 from here on; save the file as UTF-8"
    raise ConfigError([Problem(str(path), line, column, "", reason)])


def parse(text: str, *, name: str, environ: Mapping[str, str], folder: Path) -> YamlDocument:
    """Parse a YAML text. A relative `${file:PATH}` starts at `folder`.

    Raises ConfigError at a syntax error, with the problems found before it; other problems are in
    `YamlDocument.problems`.
    """
    if (match := _UNPRINTABLE.search(text)) is not None:
        reason = f"the character U+{ord(match[0]):04X} cannot stand in a YAML file"
        raise ConfigError([Problem(name, *_position(text[: match.start()]), "", reason)])
    reader = _Reader(name, yaml.parse(text, Loader=_LOADER), environ, folder)
    try:
        root = reader.document()
    except yaml.MarkedYAMLError as error:
        problem = _syntax_problem(name, text, error)
    except (yaml.YAMLError, ValueError, OverflowError):
        problem = Problem(name, 0, 0, "", "is not YAML that can be read; check its escapes and its directives")
    else:
        return YamlDocument(name, root, tuple(reader.problems))
    raise ConfigError([*reader.problems, problem])


@dataclass(slots=True)
class _Reader:
    """Builds the tree from parser events, one by one, so that depth is checked before a node is built."""

    name: str
    events: Iterator[yaml.Event]
    environ: Mapping[str, str]
    folder: Path
    problems: list[Problem] = field(default_factory=list)

    def document(self) -> Node:
        next(self.events)  # the stream's start
        empty = isinstance(next(self.events), yaml.StreamEndEvent)
        root = None if empty else self._node(next(self.events), ())
        if root is None or (isinstance(root, Text) and not root.written):
            raise self._fatal(1, 1, "the file is empty; `init` writes a commented one to start from")
        next(self.events)  # the document's end
        following = next(self.events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise self._fatal(
                *_mark_position(following.start_mark), "a second document starts here; only one is allowed"
            )
        return root

    def _node(self, event: yaml.Event, path: tuple[Step, ...]) -> Node:
        line, column = _mark_position(event.start_mark)
        if len(path) > MAX_DEPTH:
            raise self._fatal(line, column, f"is nested deeper than {MAX_DEPTH} levels")
        refused_sign = _refused_sign(event)
        if refused_sign:
            self._report(line, column, path, _needs_quotes(refused_sign))
        node: Node
        if isinstance(event, yaml.SequenceStartEvent):
            node = Items()
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                node.append(self._node(event, (*path, len(node))))
        elif isinstance(event, yaml.MappingStartEvent):
            node = Table()
            node.names_at = {}
            while not isinstance(event := next(self.events), yaml.MappingEndEvent):
                self._entry(node, event, path)
        else:
            node = self._text(event, path, broken=bool(refused_sign))
        node.line, node.column = line, column
        return node

    def _entry(self, table: Table, event: yaml.Event, path: tuple[Step, ...]) -> None:
        place, name = _mark_position(event.start_mark), None
        if isinstance(event, yaml.ScalarEvent) and not _refused_sign(event):
            name = event.value
        else:
            if not _refused_sign(event):
                self._report(*place, path, "a name must be a plain text; put it in quotes if it starts with a sign")
            self._node(event, path)
        value = self._node(next(self.events), path if name is None else (*path, name))
        if name is None:
            return
        if name in table:
            line = table.names_at[name][0]
            self._report(*place, (*path, name), f"duplicate key, first given on line {line}; remove one of them")
        else:
            table[name] = value
            table.names_at[name] = place

    def _text(self, event: yaml.Event, path: tuple[Step, ...], *, broken: bool) -> Text:
        written = event.value if isinstance(event, yaml.ScalarEvent) else ""
        value, external = written, False
        if "${" in written and not broken:
            value, external, errors = references.resolve(written, self.environ, self.folder)
            for error in errors:
                self._report(*_mark_position(event.start_mark), path, error)
            broken = bool(errors)
        if not value.isascii() and _has_surrogates(value):
            self._report(*_mark_position(event.start_mark), path, "is not valid Unicode")
            value, broken = "", True
        text = Text(value)
        text.written, text.literal, text.broken = written, not external, broken
        return text

    def _report(self, line: int, column: int, path: tuple[Step, ...], reason: str) -> None:
        self.problems.append(Problem(self.name, line, column, dotted(path), reason))

    def _fatal(self, line: int, column: int, reason: str) -> ConfigError:
        return ConfigError([*self.problems, Problem(self.name, line, column, "", reason)])


def _refused_sign(event: yaml.Event) -> str:
    """The sign of a refused YAML feature, or "": aliases (which can expand a text without bound), anchors and tags."""
    if isinstance(event, yaml.AliasEvent):
        return "*"
    if getattr(event, "anchor", None) is not None:
        return "&"
    return "" if getattr(event, "tag", None) in _PLAIN_TAGS else "!"


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _position(before: str) -> tuple[int, int]:
    """Line and column, from 1, of the position after a text."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _mark_position(mark: Any) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)


def _needs_quotes(sign: str) -> str:
    return f'a text that starts with "{sign}" needs quotes' + (', as in ["*"]' if sign == "*" else "")


# Maps errors of PyYAML's parsers (its own and libyaml) to this product's sentences: a part of the error's context, a
# part of its problem, whether the position is the start of the construct, and the sentence; the first match is used.
_SENTENCES = (
    ("alias", "", True, _needs_quotes("*")),
    ("anchor", "", True, _needs_quotes("&")),
    ("tag", "", True, _needs_quotes("!")),
    ("", "tag handle", False, _needs_quotes("!")),
    ("", "mapping values are not allowed", False, 'an extra ":" or wrong indentation; a text with ": " needs quotes'),
    ("", "sequence entries are not allowed", False, 'a "- " cannot stand here; start the list on the next line'),
    ("simple key", "", True, 'a ":" is missing after this name'),
    ("quoted scalar", "end of stream", True, "this quote is never closed"),
    ("quoted scalar", "document", True, "this quote is never closed"),
    ("quoted scalar", "", True, "an unknown escape in double quotes; use single quotes"),
    ("", "',' or ']'", True, 'this list lacks its "]", or a "," between two of its items'),
    ("", "',' or '}'", True, 'this "{" lacks its "}", or a "," between two of its entries'),
    ("block scalar", "", True, 'nothing may follow "|" or ">" on its line'),
    ("", "node content", False, "a value is missing here"),
    ("block", "", False, "does not fit the lines above; check the indentation and the quotes"),
    ("", "document start", False, "only one document is allowed; remove the text after its end"),
    ("directive", "", False, 'a line that starts with "%" needs quotes'),
)


def _syntax_problem(name: str, text: str, error: yaml.MarkedYAMLError) -> Problem:
    context, problem = error.context or "", error.problem or ""
    mark, reason = error.problem_mark, "is not YAML that can be read; check the quotes and the indentation"
    line = "" if mark is None else "".join(text.splitlines(keepends=True)[mark.line : mark.line + 1])
    before = line[: mark.column + 1] if mark is not None else ""
    if "cannot start any token" in problem:
        reason = "a tab cannot indent; use spaces" if before.endswith("\t") else _needs_quotes(before[-1:])
    elif "flow" in context and before.endswith("${"):
        reason = 'a text with "${" needs quotes inside of [ ] and { }'
    else:
        for in_context, in_problem, from_start, sentence in _SENTENCES:
            if in_context in context and in_problem in problem:
                mark, reason = (from_start and error.context_mark) or mark, sentence
                break
    return Problem(name, *_mark_position(mark), "", reason)
