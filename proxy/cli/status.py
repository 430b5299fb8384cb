"""`status`: what the running proxy does, as a table, once or again and again."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time

from proxy.cli.config_file import complain, config_path
from proxy.cli.overview import overview
from proxy.cli.running import NotRunning, Running, running
from proxy.cli.terminal import Exit, fail, plain
from proxy.config.errors import ConfigError
from proxy.observe.style import Style

WATCH_SECONDS = 2.0
NO_HISTORY = 1 << 53
"""A second that never comes: of the history, which only the page draws, nothing is asked for."""


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    try:
        proxy = running(path, os.environ)
    except ConfigError as error:
        return complain(error, path)
    if options.watch:
        return _watch(proxy, as_json=options.json)
    try:
        print(_answer(proxy, as_json=options.json))
    except NotRunning as error:
        return fail(str(error))
    return Exit.GOOD


def _answer(proxy: Running, *, as_json: bool) -> str:
    """What there is to print. Raises NotRunning."""
    status, body = proxy.ask("/status.json" if as_json else f"/status.json?since={NO_HISTORY}")
    try:
        if status != 200:
            raise ValueError(status)
        document = json.loads(body)
        return body.rstrip() if as_json else overview(document, Style.of(sys.stdout, os.environ))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NotRunning(
            f"what answers at {proxy} is no alpaca-proxy of this version; see what has that address"
        ) from None


def _watch(proxy: Running, *, as_json: bool) -> Exit:
    """Until Ctrl-C. A proxy that is away is waited for; on a terminal each table takes the place of the last one."""
    still = sys.stdout.isatty() and not as_json
    try:
        while True:
            try:
                shown = _answer(proxy, as_json=as_json)
            except NotRunning as error:
                if not still:
                    return fail(str(error))
                shown = plain(f"{error}\n(looking again every {WATCH_SECONDS:.0f} s; Ctrl-C ends it)")
            print(_in_place(shown) if still else shown if as_json else f"{shown}\n", end="" if still else "\n")
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return Exit.GOOD


def _in_place(text: str) -> str:
    """A text from the upper left corner of the terminal on, as far as it fits; what was there before is erased."""
    lines = text.splitlines()[: shutil.get_terminal_size().lines - 1]
    return "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"
