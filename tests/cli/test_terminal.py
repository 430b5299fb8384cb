"""Output of the verbs: colours, tables, replaced characters, the command."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from proxy.cli.terminal import Cell, StatusLine, command, plain, table, warn
from proxy.observe.style import Color, Style


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "on"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colour_needs_a_terminal_that_allows_it(environ: dict[str, str], on: bool) -> None:
    assert Style.of(Terminal(), environ).on is on
    assert Style.of(io.StringIO(), environ).on is False


def test_warnings_are_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for stream, label in ((Terminal(), "\x1b[33mwarning:\x1b[0m"), (io.StringIO(), "warning:")):
        monkeypatch.setattr("sys.stderr", stream)
        warn("two\x1b[2J words")
        assert stream.getvalue() == f"{label} two\ufffd[2J words\n"


def test_a_dumb_terminal_gets_a_line_for_each_status() -> None:
    terminal = Terminal()
    status = StatusLine(terminal, {"TERM": "dumb"})
    status.show("one")
    status.clear()
    status.show("two")
    status.end()
    assert (terminal.getvalue(), status.width) == ("one\ntwo\n", None)


def test_paint() -> None:
    assert Style(on=True).paint("text", Color.BAD) == "\x1b[31mtext\x1b[0m"
    assert Style(on=False).paint("text", Color.BAD) == Style(on=True).paint("text", None) == "text"


def test_tables_are_aligned_with_and_without_colour() -> None:
    rows: list[list[Cell]] = [["a", "b", "c"], ["longer", ("painted", Color.BAD), ""]]
    off = table(("ONE", "TWO", "THREE"), rows, Style(on=False))
    assert off.splitlines() == ["ONE     TWO      THREE", "a       b        c", "longer  painted"]
    on = table(("ONE", "TWO", "THREE"), rows, Style(on=True))
    for colour in Color:
        on = on.replace(f"\x1b[{colour.value}m", "")
    assert on.replace("\x1b[0m", "") == off


def test_control_characters_are_replaced() -> None:
    assert plain("a\x1b[2Jb\r\x9bc\u202ed\ne") == "a\ufffd[2Jb\ufffd\ufffdc\ufffdd\ne"


@pytest.mark.parametrize(
    ("file", "again"),
    [
        ("/opt/alpaca-proxy.pyz", "python3 /opt/alpaca-proxy.pyz"),
        ("/opt/my files/alpaca-proxy.pyz", "python3 '/opt/my files/alpaca-proxy.pyz'"),
        (str(Path.cwd() / "built" / "alpaca-proxy.pyz"), "python3 built/alpaca-proxy.pyz"),
        ("", "python3 -m proxy"),
        ("/opt/some-other.pex", "python3 -m proxy"),
    ],
)
def test_command_of_this_program(monkeypatch: pytest.MonkeyPatch, file: str, again: str) -> None:
    monkeypatch.setenv("PEX", file)
    assert command() == again


def test_a_table_that_is_too_wide_loses_columns_then_the_ends_of_cells() -> None:
    def lines(width: int) -> list[str]:
        rows: list[list[Cell]] = [["a long name", "1", ("2", Color.BAD), "the last cell"]]
        off = Style(on=False)
        return table(("NAME", "X", "Y", "END"), rows, off, width=width, optional=("Y", "X")).splitlines()

    assert lines(40) == ["NAME         X  Y  END", "a long name  1  2  the last cell"]
    assert lines(30) == ["NAME         X  END", "a long name  1  the last cell"]
    assert lines(26) == ["NAME         END", "a long name  the last cell"]
    assert lines(16) == ["NAME     END", "a long…  the la…"]
    assert lines(1) == ["NAME  END", "a l…  the…"]
