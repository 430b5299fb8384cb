"""`init`: write a commented starter configuration.

On a terminal it asks a few questions first. The file is readable by its owner alone (0600); an existing file is never
overwritten.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from proxy.cli.config_file import config_path
from proxy.cli.keygen import NewClient
from proxy.cli.starter import SCHEMA_FILE, Answers, starter, symbols_of
from proxy.cli.terminal import Exit, command, fail, print_err
from proxy.config import values
from proxy.config.values import Unsuitable
from proxy.config.yamlfile import Items, Table, Text

T = TypeVar("T")

SECRETS = """\
Wrote {path}, readable by you alone (mode 0600). For your algorithms (the secrets are not shown again):
{clients}
"""
NEXT = """\
Next: put Alpaca's key and secret into the environment, check the configuration, and run the proxy:
  export APCA_API_KEY_ID=… APCA_API_SECRET_KEY=…
  {command} check -c {path}
  {command} -c {path}
For an editor that completes and checks the file as you type:
  {command} schema > {schema}"""


def run(options: argparse.Namespace) -> Exit:
    path: Path = options.file or config_path(options, os.environ)
    if os.path.lexists(path):
        return _fail_exists(path)
    answers = Answers()
    if sys.stdin.isatty() and sys.stderr.isatty():
        print_err(f"A few questions for {path}; Enter accepts the value in brackets.")
        answers = ask(answers, sys.stdin.readline)
    clients = [NewClient(name) for name in answers.algorithms]
    try:
        write(path, starter(answers, clients, path))
    except FileExistsError:
        return _fail_exists(path)
    except OSError as error:
        return fail(f"cannot write {path}: {error.strerror or error}; name another file, as in `init my-proxy.yaml`")
    width = max(len(client.key) for client in clients)
    lines = "\n".join(f"  key {client.key:{width}}  secret {client.secret}" for client in clients)
    print(SECRETS.format(path=path, clients=lines))
    print(NEXT.format(command=command(), path=path, schema=path.with_name(SCHEMA_FILE)))
    return Exit.GOOD


def _fail_exists(path: Path) -> Exit:
    return fail(f"{path} already exists and was not changed; name another file, as in `init my-proxy.yaml`")


def write(path: Path, text: str) -> None:
    """Create a file with this text; on an error no file is left.

    Raises FileExistsError, or another OSError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # the umask may have removed bits
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def ask(default: Answers, read: Callable[[], str]) -> Answers:
    """Ask the questions and return the answers.

    `read` returns a line, and "" at the end of the input. An empty line, or the end of the input, takes the default.
    """
    trading = _ask("Alpaca account, paper or live?", default.trading, read, _trading)
    feed = _ask("Feed of market data (iex, sip, crypto, …)?", default.feed, read, values.market_feed)
    names = _ask("Names of your algorithms?", " ".join(default.algorithms), read, _names)
    symbols = _ask("Symbols that they may see (* for all)?", " ".join(symbols_of(feed)), read, _symbols)
    return Answers(trading=trading, feed=feed, algorithms=names, symbols=symbols)


def _ask(question: str, default: str, read: Callable[[], str], decode: Callable[[str], T]) -> T:
    while True:
        print(f"{question} [{default}] ", end="", file=sys.stderr, flush=True)
        line = read()
        if not line:
            print_err("")  # at the end of the input the cursor is still on the line of the question
        try:
            return decode(line.strip() or default)
        except Unsuitable as error:
            for fault in error.faults:
                print_err(f"  {fault.reason}" + (f'; did you mean "{fault.hint}"?' if fault.hint else ""))


def _trading(text: str) -> str:
    if text.lower() not in ("paper", "live"):
        raise Unsuitable(values.Fault('should be "paper" or "live"'))
    return text.lower()


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(values.name, text.replace(",", " ").split())))


def _symbols(text: str) -> tuple[str, ...]:
    """Parse entries of an allowlist, by the rules of the configuration."""
    entries = tuple(dict.fromkeys(text.replace(",", " ").split()))
    values.allow(Table(iex=Table(trades=Items(map(_as_written, entries)))))
    return entries


def _as_written(entry: str) -> Text:
    """Return an entry as if it were read from the file."""
    text = Text(entry)
    text.written = entry
    return text
