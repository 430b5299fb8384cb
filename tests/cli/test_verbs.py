"""The parser: every verb has a module and a help text."""

from __future__ import annotations

import argparse
import json
import os
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
