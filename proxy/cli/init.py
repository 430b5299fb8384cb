"""`init`: write a commented starter configuration, and print the lines that connect the algorithms.

On a terminal it asks a few questions first, unless it has `--yes`. The file is readable by its owner alone (0600); an
existing file is never overwritten, and a folder is created only after a question.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from proxy.cli import answers, sdk_lines
from proxy.cli.answers import Answers
from proxy.cli.config_file import config_path
from proxy.cli.keygen import NewClient
from proxy.cli.starter import SCHEMA_FILE, allowed, starter
from proxy.cli.terminal import Exit, command, fail, print_err
from proxy.config.values import Unsuitable

T = TypeVar("T")

FINISHED = """\
Wrote {path}, readable by you alone (mode 0600).

For your algorithms, with alpaca-py; the secrets are not shown again:

{clients}

With other SDKs, and the same keys and secrets:
{others}

Orders do not pass through the proxy: your algorithms go on sending them to
Alpaca, with Alpaca's own key and secret. Data and order updates come from here.
An algorithm receives the updates of the orders whose client_order_id begins
with its name and a dash, unless `trading` in the file says otherwise.

Next: put Alpaca's key and secret into the environment, check the configuration,
and run the proxy:
  export APCA_API_KEY_ID=… APCA_API_SECRET_KEY=…
  {command} check -c {path}
  {command} -c {path}
For an editor that completes and checks the file as you type:
  {command} schema > {schema}"""


def run(options: argparse.Namespace) -> Exit:
    path: Path = options.file or config_path(options, os.environ)
    if os.path.lexists(path):
        return _fail_exists(path)
    ask_first = sys.stdin.isatty() and sys.stderr.isatty() and not options.yes
    read = sys.stdin.readline if ask_first else lambda: ""
    if ask_first:
        print_err(f"A few questions for {path}; Enter accepts the value in brackets.")
    try:
        if not path.parent.is_dir() and not (ask_first and _make_folder(path.parent, read)):
            return fail(
                f"there is no folder {path.parent}; create it, or name a file elsewhere, as in `init my-proxy.yaml`"
            )
        given = Answers(clients=answers.by_client(options.clients)) if options.clients else Answers()
        if ask_first:
            given = ask(given, read, clients=not options.clients)
        clients = [NewClient(name) for name in given.clients]
        write(path, starter(given, clients, path))
    except FileExistsError:
        return _fail_exists(path)
    except OSError as error:
        return fail(f"cannot write {path}: {error.strerror or error}; name another file, as in `init my-proxy.yaml`")
    print(_finished(path, given, clients))
    return Exit.GOOD


def _fail_exists(path: Path) -> Exit:
    return fail(f"{path} already exists and was not changed; name another file, as in `init my-proxy.yaml`")


def _make_folder(folder: Path, read: Callable[[], str]) -> bool:
    """Ask whether to create a folder; return whether it was created."""
    create = _ask(f"There is no folder {folder}; create it?", "yes", read, answers.yes)
    if create:
        folder.mkdir(parents=True)
    return create


def _finished(path: Path, given: Answers, clients: list[NewClient]) -> str:
    """Return the lines to paste and the next steps."""
    blocks = []
    listed: list[str] = []
    for client in clients:
        feeds = allowed(client.name, given.clients[client.name])
        blocks.append(f"# {client.name}\n{sdk_lines.alpaca_py(client.key, client.secret, feeds)}")
        listed += feeds
    names = {"path": shlex.quote(str(path)), "schema": shlex.quote(str(path.with_name(SCHEMA_FILE)))}
    return FINISHED.format(clients="\n\n".join(blocks), others=sdk_lines.others(listed), command=command(), **names)


def write(path: Path, text: str) -> None:
    """Create a file with this text; on an error no file is left.

    Raises FileExistsError, or another OSError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # the umask may have removed bits
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def ask(default: Answers, read: Callable[[], str], *, clients: bool = True) -> Answers:
    """Ask the questions and return the answers; without `clients`, those of the default stay.

    `read` returns a line, and "" at the end of the input. An empty line, or the end of the input, takes the value in
    brackets, which for each algorithm is that of the one before it.
    """
    print_err("Orders do not pass here. Market data and order updates come from this account:")
    trading = _ask("Alpaca account, paper or live?", default.trading, read, answers.trading)
    if not clients:
        return Answers(trading, default.clients)
    asked = {}
    feed, listed = "iex", answers.examples("iex")
    for name in _ask("Names of your algorithms, with commas between them?", "momentum", read, answers.names):
        before = feed
        feed = _ask(f"Feed of market data for {name} (iex, sip, crypto, …)?", before, read, answers.market_feed)
        listed = listed if feed == before else answers.examples(feed)
        question = f"Symbols that {name} may see (* for all)?"
        listed = _ask(question, " ".join(listed), read, partial(answers.market_entries, feed))
        asked[name] = answers.market(feed, listed)
    return Answers(trading, asked)


def _ask(question: str, default: str, read: Callable[[], str], decode: Callable[[str], T]) -> T:
    """Ask until the answer is valid. A valid proposal for an invalid answer is the next default."""
    while True:
        print(f"{question} [{default}] ", end="", file=sys.stderr, flush=True)
        line = read()
        if not line:
            print_err("")  # at the end of the input the cursor is still on the line of the question
        try:
            return decode(line.strip() or default)
        except Unsuitable as error:
            print_err(f"  {error}")
            for hint in filter(None, (fault.hint for fault in error.faults)):
                with contextlib.suppress(Unsuitable):
                    decode(hint)
                    default = hint
                    break
