"""`completion SHELL`: print the completion script of bash, zsh or fish.

shtab generates it from the parser, for the command `alpaca-proxy` (the usual name of an alias or a link). A last line
adds `alpaca-proxy.pyz`.
"""

from __future__ import annotations

import argparse

import shtab

from proxy.cli.parser import parser
from proxy.cli.terminal import Exit

FILE_NAME = {
    "bash": "complete -o bashdefault -F _shtab_alpaca_proxy alpaca-proxy.pyz",
    "zsh": "compdef _shtab_alpaca_proxy alpaca-proxy.pyz",
    "fish": "complete -c alpaca-proxy.pyz -w alpaca-proxy",
}


def run(options: argparse.Namespace) -> Exit:
    print(script(options.shell))
    return Exit.GOOD


def script(shell: str) -> str:
    """Return the completion script of a shell."""
    return f"{shtab.complete(parser(shtab.FILE), shell)}\n{FILE_NAME[shell]}"
