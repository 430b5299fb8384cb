"""The parser: every verb has a module and a help text."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from proxy.cli.parser import parser
from proxy.config import model as config
from tests.cli.conftest import Call, Write

ROOT = Path(__file__).parent.parent.parent

VERBS = next(
    sorted(action.choices) for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
)  # fmt: skip


def test_the_verbs() -> None:
    assert (
        " ".join(VERBS) == "check completion demo explain healthcheck init keygen reload replay schema simulate status"
    )


@pytest.mark.parametrize("verb", [*VERBS, "run"])
def test_every_verb_has_a_module(verb: str) -> None:
    assert callable(import_module(f"proxy.cli.{verb}").run)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_text(call: Call, verb: str) -> None:
    result = call(verb, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: alpaca-proxy {verb} ")
    assert result.out.split("\n\n")[1].endswith(".")


def test_the_help_names_the_verbs_and_the_exit_codes(call: Call) -> None:
    result = call("--help")
    for word in (*VERBS, "-c FILE", "ALPACA_PROXY_CONFIG", "Exit status: 0 good; 1 ", "; 78 "):
        assert word in result.out


CONFIG = """\
accounts: {main: {key: PKAAAABBBB1111, secret: s}}
clients: {momentum: {key: one, secret: s, allow: {iex: {trades: [AAPL]}}}}
"""
ENDING = {"check", "completion", "explain", "init", "keygen", "schema"}  # by themselves, at once, without a proxy


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_a_verb_works_as_it_is_printed(call: Call, verb: str, tmp_path: Path) -> None:
    """It is no usage error, and does not fail where there is `config/proxy.yaml`."""
    shown = call(verb, "--help").out.partition("\nexample:\n")[2]
    [arguments] = re.findall(r"python3 -m proxy ([^>)]+)", shown)
    assert parser().parse_args(shlex.split(arguments)).verb == verb
    if verb in ENDING:
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "proxy.yaml").write_text(CONFIG)
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{python_folder(tmp_path)}:{os.environ['PATH']}"}
        command = ["bash", "-ec", shown]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr


def python_folder(tmp_path: Path) -> Path:
    """Return a new folder in which `python3` is the Python of the tests."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "python3"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    script.chmod(0o755)
    return folder


def test_the_example_of_the_proxy_is_a_run_of_it(call: Call) -> None:
    [arguments] = re.findall(r"\nexample:\n  python3 -m proxy (.+)\n", call("--help").out)
    assert parser().parse_args(shlex.split(arguments)).verb == "run"


def test_schema(call: Call) -> None:
    result = call("schema")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == config.schema()


@pytest.mark.parametrize(
    ("arguments", "closed"), [(["schema"], "stdout"), (["keygen", "one"], "stderr"), (["--version"], "both")]
)
def test_closed_output_streams(arguments: list[str], closed: str) -> None:
    shell = {"stdout": 'exec "$@" >&-', "stderr": 'exec "$@" 2>&-', "both": 'exec "$@" >&- 2>&-'}[closed]
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "proxy", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_unencodable_characters_are_replaced(write: Write) -> None:
    text = "accounts: {main: {key: PKAAAABBBB1111, secret: s}}\nclients: {one: {key: one, secret: s}}\n"
    command = [sys.executable, "-m", "proxy", "check", "-c", str(write(text))]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert "main     ?1111" in done.stdout
