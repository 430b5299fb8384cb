"""`status`: the running proxy as tables, once or repeatedly."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time

from proxy.cli.config_file import config_path, report_config_error
from proxy.cli.overview import overview
from proxy.cli.running import NO_HISTORY, NotRunning, Running, not_this_version, running
from proxy.cli.terminal import Exit, columns, fail, plain, wrapped
from proxy.config.errors import ConfigError
from proxy.observe.style import Style

WATCH_SECONDS = 2.0


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    try:
        proxy = running(path, os.environ)
    except ConfigError as error:
        return report_config_error(error, path)
    if options.watch:
        return _watch(proxy, as_json=options.json)
    try:
        print(_fetch(proxy, as_json=options.json, width=columns() if sys.stdout.isatty() else None))
    except NotRunning as error:
        return fail(str(error))
    return Exit.GOOD


def _fetch(proxy: Running, *, as_json: bool, width: int | None) -> str:
    """Return the text to print. Raises NotRunning."""
    status, body = proxy.get("/status.json" if as_json else f"/status.json?since={NO_HISTORY}")
    try:
        if status != 200:
            raise ValueError(status)
        document = json.loads(body)
        return body.rstrip() if as_json else overview(document, Style.of(sys.stdout, os.environ), width)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise not_this_version(proxy) from None


def _watch(proxy: Running, *, as_json: bool) -> Exit:
    """Print until Ctrl-C.

    On a terminal each table overwrites the last one, and an unreachable proxy is tried again.
    """
    overwrite = sys.stdout.isatty() and not as_json
    try:
        while True:
            try:
                text = _fetch(proxy, as_json=as_json, width=columns())
            except NotRunning as error:
                if not overwrite:
                    return fail(str(error))
                again = f"(trying again every {WATCH_SECONDS:.0f} s; Ctrl-C stops)"
                text = f"{wrapped(plain(str(error)), columns())}\n{again}"
            print(_in_place(text) if overwrite else text if as_json else f"{text}\n", end="" if overwrite else "\n")
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return Exit.GOOD


def _in_place(text: str) -> str:
    """Return control sequences that overwrite the terminal with the text, cut to fit."""
    lines = text.splitlines()[: shutil.get_terminal_size().lines - 1]
    return "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"
