"""`completion SHELL`: the scripts in real shells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from proxy.cli.completion import script
from proxy.cli.parser import SHELLS, parser
from tests.cli.conftest import Call

INSTALLED = [shell for shell in SHELLS if shutil.which(shell)]
VERBS = {
    "check", "completion", "demo", "explain", "healthcheck", "init", "keygen", "reload", "replay", "schema", "simulate",
    "status",
}  # fmt: skip

BASH = """\
source ./script
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
registered=($(complete -p "$COMP_WORDS"))
"${{registered[-2]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def bash(line: str, folder: Path) -> set[str]:
    """Return bash's completions of a line's last word, empty after a space."""
    (folder / "script").write_text(script("bash"))
    words = line.split() + ([""] if line.endswith(" ") else [])
    program = BASH.format(words=" ".join(f"'{word}'" for word in words))
    done = subprocess.run(["bash", "--norc", "-c", program], cwd=folder, capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("alpaca-proxy.pyz ", VERBS),
        ("alpaca-proxy.pyz -", {"-h", "--help", "-c", "--config", "--version"}),
        ("alpaca-proxy st", {"status"}),
        ("alpaca-proxy.pyz s", {"simulate", "status", "schema"}),
        ("alpaca-proxy.pyz check --", {"--help", "--config", "--online"}),
        ("alpaca-proxy.pyz -c some.yaml st", {"status"}),
        ("alpaca-proxy.pyz -c ", {"a file.yaml", "script"}),
        ("alpaca-proxy.pyz status --config ", {"a file.yaml", "script"}),
        ("alpaca-proxy.pyz init a", {"a file.yaml"}),
        ("alpaca-proxy.pyz demo --seconds ", set()),
        ("alpaca-proxy.pyz completion ", {"bash", "zsh", "fish"}),
        ("alpaca-proxy.pyz explain momentum cr", {"crypto", "crypto-perps-global"}),
        ("alpaca-proxy.pyz explain -c x momentum iex daily", {"dailyBars"}),
        ("alpaca-proxy.pyz keygen ", set()),
    ],
)
def test_bash_completions(tmp_path: Path, line: str, offered: set[str]) -> None:
    (tmp_path / "a file.yaml").touch()
    assert bash(line, tmp_path) == offered


@pytest.mark.parametrize("shell", INSTALLED)
def test_the_shell_parses_the_script(tmp_path: Path, shell: str) -> None:
    (tmp_path / "script").write_text(script(shell))
    done = subprocess.run([shell, "-n", "script"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_all_verbs_and_options_are_complete(call: Call, shell: str) -> None:
    result = call("completion", shell)
    assert result.code == 0
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", result.out)
    options = set(re.findall(r"--([a-z]+)", parser().format_help())) | {"online", "seconds", "port", "json", "watch"}
    for option in options:
        assert re.search(rf"(--|-l ){option}\b", result.out)


def test_unknown_shell(call: Call) -> None:
    result = call("completion", "tcsh")
    assert result.code == 2
    assert 'unknown "tcsh"; there is bash, zsh, fish' in result.err


@pytest.mark.parametrize("shell", [shell for shell in INSTALLED if shell == "fish"])
def test_fish_completions(tmp_path: Path, shell: str) -> None:
    (tmp_path / "script").write_text(script(shell))
    program = 'source ./script; complete -C "alpaca-proxy.pyz s"; complete -C "alpaca-proxy.pyz check --o"'
    environ = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([shell, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=20)
    offered = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert offered == {"simulate", "status", "schema", "--online"}
