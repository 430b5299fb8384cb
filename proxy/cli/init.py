"""`init`: a commented configuration to start from, after a few questions if there is somebody to ask.

The file is made for its owner alone (0600) and never in the place of another.
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
from proxy.cli.terminal import Exit, command, fail, say
from proxy.config import values as settings
from proxy.config.values import Unsuitable
from proxy.config.yamlfile import Items, Table, Text

T = TypeVar("T")

SECRETS = """\
{path} is written, for you alone to read (mode 0600). For your algorithms (the secrets are shown this once):
{clients}
"""
NEXT = """\
Next: put Alpaca's key and secret into the environment, then see whether all is well, then run:
  export APCA_API_KEY_ID=… APCA_API_SECRET_KEY=…
  {command} check -c {path}
  {command} -c {path}
For an editor that completes and checks the file as you type:
  {command} schema > {schema}"""


def run(options: argparse.Namespace) -> Exit:
    path: Path = options.file or config_path(options, os.environ)
    if os.path.lexists(path):
        return _exists(path)
    answers = Answers()
    if sys.stdin.isatty() and sys.stderr.isatty():
        say(f"A few questions for {path}; Enter takes what is in brackets.")
        answers = ask(answers, sys.stdin.readline)
    clients = [NewClient(name) for name in answers.algorithms]
    try:
        write(path, starter(answers, clients, path))
    except FileExistsError:
        return _exists(path)
    except OSError as error:
        return fail(f"cannot write {path}: {error.strerror or error}; name another file, as in `init my-proxy.yaml`")
    width = max(len(client.key) for client in clients)
    shown = "\n".join(f"  key {client.key:{width}}  secret {client.secret}" for client in clients)
    print(SECRETS.format(path=path, clients=shown))
    print(NEXT.format(command=command(), path=path, schema=path.with_name(SCHEMA_FILE)))
    return Exit.GOOD


def _exists(path: Path) -> Exit:
    return fail(f"{path} exists already and stays as it is; name another file, as in `init my-proxy.yaml`")


def write(path: Path, text: str) -> None:
    """A new file, whole or not at all. Raises FileExistsError, or another OSError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # whatever the umask took away
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def ask(default: Answers, read: Callable[[], str]) -> Answers:
    """The answers of whoever types the lines that `read` gives; at their end the rest is as in `default`."""
    trading = _ask("Alpaca account, paper or live?", default.trading, read, _trading)
    feed = _ask("Feed of market data (iex, sip, crypto, …)?", default.feed, read, settings.market_feed)
    names = _ask("Names of your algorithms?", " ".join(default.algorithms), read, _names)
    symbols = _ask("Symbols that they may see (* for all)?", " ".join(symbols_of(feed)), read, _symbols)
    return Answers(trading=trading, feed=feed, algorithms=names, symbols=symbols)


def _ask(question: str, default: str, read: Callable[[], str], decode: Callable[[str], T]) -> T:
    while True:
        print(f"{question} [{default}] ", end="", file=sys.stderr, flush=True)
        line = read()
        if not line:
            say("")  # the end of the input has left the cursor on the question's line
        try:
            return decode(line.strip() or default)
        except Unsuitable as error:
            for fault in error.faults:
                say(f"  {fault.reason}" + (f'; did you mean "{fault.hint}"?' if fault.hint else ""))


def _trading(text: str) -> str:
    if text.lower() not in ("paper", "live"):
        raise Unsuitable(settings.Fault('should be "paper" or "live"'))
    return text.lower()


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(settings.name, text.replace(",", " ").split())))


def _symbols(text: str) -> tuple[str, ...]:
    """Entries of an allowlist, checked by the same rules."""
    entries = tuple(dict.fromkeys(text.replace(",", " ").split()))
    settings.allow(Table(iex=Table(trades=Items(map(_written, entries)))))
    return entries


def _written(entry: str) -> Text:
    """An entry as the file would have it."""
    text = Text(entry)
    text.written = entry
    return text
